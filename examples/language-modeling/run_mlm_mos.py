# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Masked language modeling of a Mixture-of-Supernets model, or of one of its subnets.

A supernet from BERT-base, the published way:

    python run_mlm_mos.py configs/mlm_mos_bert_base.yaml --output_dir runs/supernet

A small supernet from scratch on two cores, then one of its subnets trained further:

    python run_mlm_mos.py configs/mlm_mos_small.yaml --dataset_path data --output_dir runs/small
    python run_mlm_mos.py configs/mlm_mos_small.yaml --dataset_path data --model_name_or_path runs/small \
        --train_architecture smallest --output_dir runs/small-smallest

Several processes: torchrun --nproc_per_node 2 run_mlm_mos.py … (on CPU add --use_cpu). A run that was killed continues
from its last checkpoint when the command is given again.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from example_utils import (  # noqa: E402
    describe_dataset,
    parse_arguments,
    parse_search_space,
    pin_memory_for_accelerators,
    publish,
    run_script,
    show_progress_messages,
    start_positions_as_sinusoids,
)
from modeling_mos import Architecture, MosConfig, MosForMaskedLM, SearchSpace  # noqa: E402
from prepare_pretraining_data import PreparationArguments, prepare  # noqa: E402
from teacher_utils import load_trained  # noqa: E402
from trainers import (  # noqa: E402
    MaskedLanguageModelingDataset,
    MaskedLMTrainer,
    SupernetTrainer,
    SupernetTrainingArguments,
)


logger = logging.get_logger("run_mlm_mos")


@dataclass
class ModelArguments:
    """What to train. Sizes are for a supernet from scratch; a named backbone or checkpoint brings its own."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A BERT or RoBERTa backbone to make a supernet of, a saved supernet, or a saved subnet: a Hub "
            "name or a folder. From scratch if not given."
        },
    )
    backbone_model_type: str = field(default="bert", metadata={"help": "From scratch: 'bert' or 'roberta'."})
    hidden_size: int = field(default=768, metadata={"help": "From scratch: width of the largest network."})
    num_hidden_layers: int = field(default=12, metadata={"help": "From scratch: layers of the largest network."})
    num_attention_heads: int = field(default=12, metadata={"help": "From scratch: heads of the largest network."})
    intermediate_size: int = field(default=3072, metadata={"help": "From scratch: its feed-forward width."})
    initializer_range: float = field(
        default=0.02, metadata={"help": "From scratch: standard deviation of the weights; more for narrow networks."}
    )
    sinusoidal_positions: bool = field(
        default=False,
        metadata={"help": "From scratch: position embeddings start as sinusoids; small networks learn faster so."},
    )
    hidden_dropout_prob: float = field(default=0.0, metadata={"help": "Dropout; the published pre-training has none."})
    attention_probs_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of attention weights."})
    search_space: str = field(
        default="bottleneck",
        metadata={"help": "A preset such as 'bottleneck' (v1), or choices as JSON: {\"hidden_sizes\": [64, 128]}."},
    )
    routing: str = field(default="neuron", metadata={"help": "'none', 'layer', 'neuron', or the control 'random'."})
    num_experts: int | None = field(default=None, metadata={"help": "Experts a layer; 2 by default with routing."})
    router_hidden_size: int = field(default=128, metadata={"help": "Hidden width of the routers."})
    router_num_layers: int = field(default=2, metadata={"help": "Linear layers of a router."})
    router_input: str = field(default="scaled", metadata={"help": "'scaled', 'one-hot' or 'constant'."})
    expert_start: str | None = field(default=None, metadata={"help": "'deltas', 'copies' or 'random'."})
    expert_delta_scale: float = field(default=0.5, metadata={"help": "Relative size of the starting differences."})
    average_last_expert: bool = field(default=False, metadata={"help": "The last expert is the mean of the others."})
    sparse_prediction: bool = field(
        default=True, metadata={"help": "Compute vocabulary scores at masked positions only while training."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "'sdpa' or 'eager'."})
    train_architecture: str | None = field(
        default=None,
        metadata={
            "help": "Take this subnet out and train it instead of the supernet: 'largest', 'smallest', a name of the "
            "stored front, sizes as JSON, or a JSON file with them."
        },
    )
    default_architecture: str | None = field(
        default=None,
        metadata={
            "help": "With --architecture_sampling fixed: the architecture to train inside the supernet (the published "
            "stand-alone baseline); same forms as --train_architecture."
        },
    )
    as_is: bool = field(
        default=False,
        metadata={
            "help": "Train the named model as it is, without making a supernet of it: a saved subnet of a space "
            "without bottlenecks is an ordinary BERT or RoBERTa."
        },
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "A masked language model that teaches what --distillation names."}
    )


@dataclass
class DataArguments:
    """What to train on: a prepared folder, or text that is prepared into the output folder first."""

    dataset_path: str | None = field(
        default=None, metadata={"help": "A folder that prepare_pretraining_data.py wrote."}
    )
    train_file: list[str] | None = field(default=None, metadata={"help": "Text, csv or json files, or a folder."})
    validation_file: list[str] | None = field(default=None, metadata={"help": "The same, for validation."})
    validation_split_percentage: float | None = field(
        default=None, metadata={"help": "Share of the training text held out where no validation file is given."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A data set of the Hub with a text column."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that data set."})
    text_column: str = field(default="text", metadata={"help": "Column of the text in csv, json and Hub data."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens of a sequence, when text is prepared here."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer; by default the one beside the data, else the model's."}
    )
    train_tokenizer_vocab_size: int | None = field(
        default=None, metadata={"help": "Train a WordPiece tokenizer of this size on the text."}
    )
    preprocessing_num_workers: int = field(default=1, metadata={"help": "Processes that prepare text."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens to predict."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first training sequences."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only the first validation sequences."})
    save_row_losses: bool = field(
        default=False,
        metadata={
            "help": "Write the summed loss and the number of predicted tokens of every validation sequence and panel "
            "architecture to row_losses.safetensors, for paired comparisons."
        },
    )


ARGUMENT_TYPES = (ModelArguments, DataArguments, SupernetTrainingArguments)


def load_data(arguments: DataArguments, model_name: str | None, output_dir: str, seed: int):
    """
    The tokenised data and the tokenizer.

    Raises:
        ValueError: if no data is named, or a prepared folder has no training split.
    """
    folder = arguments.dataset_path
    if folder is None:
        if arguments.train_file is None and arguments.dataset_name is None:
            raise ValueError("Name the data: --dataset_path (prepared), --train_file, or --dataset_name.")
        # Of the output folder, what begins with an underscore is not published.
        folder = str(Path(output_dir) / "_data")
        tokenizer_name = arguments.tokenizer_name
        if tokenizer_name is None and arguments.train_tokenizer_vocab_size is None:
            tokenizer_name = model_name
        prepare(
            PreparationArguments(
                output_dir=folder,
                train_file=arguments.train_file,
                validation_file=arguments.validation_file,
                validation_split_percentage=arguments.validation_split_percentage,
                dataset_name=arguments.dataset_name,
                dataset_config_name=arguments.dataset_config_name,
                text_column=arguments.text_column,
                tokenizer_name=tokenizer_name,
                train_tokenizer_vocab_size=arguments.train_tokenizer_vocab_size,
                max_seq_length=arguments.max_seq_length,
                preprocessing_num_workers=arguments.preprocessing_num_workers,
                seed=seed,
            )
        )
    if not (Path(folder) / "dataset_dict.json").is_file():
        raise ValueError(f"{folder!r} is not a prepared data folder; write one with prepare_pretraining_data.py.")
    splits = load_from_disk(folder)
    if "train" not in splits:
        raise ValueError(f"The data in {folder!r} has the splits {list(splits)}, none of them is 'train'.")
    beside = Path(folder) / "tokenizer"
    tokenizer_name = arguments.tokenizer_name or (str(beside) if beside.is_dir() else model_name)
    if tokenizer_name is None:
        raise ValueError(f"There is no tokenizer beside the data in {folder!r}: name one with --tokenizer_name.")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    limits = {"train": arguments.max_train_samples, "validation": arguments.max_eval_samples}
    for name, limit in limits.items():
        if limit is not None and name in splits:
            splits[name] = splits[name].select(range(min(limit, len(splits[name]))))
    return splits, tokenizer


def load_model(arguments: ModelArguments, tokenizer) -> PreTrainedModel:
    """
    The supernet or subnet to start from.

    Raises:
        ValueError: if the model's vocabulary is smaller than the tokenizer's, or options do not fit the model.
    """
    options: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in (
            "routing",
            "num_experts",
            "router_hidden_size",
            "router_num_layers",
            "router_input",
            "expert_start",
            "expert_delta_scale",
            "average_last_expert",
            "sparse_prediction",
        )
    }
    options["search_space"] = parse_search_space(arguments.search_space)
    dropout = {name: getattr(arguments, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    loading = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    name = arguments.model_name_or_path
    if name is None:
        config = MosConfig(
            backbone_model_type=arguments.backbone_model_type,
            vocab_size=len(tokenizer),
            hidden_size=arguments.hidden_size,
            num_hidden_layers=arguments.num_hidden_layers,
            num_attention_heads=arguments.num_attention_heads,
            intermediate_size=arguments.intermediate_size,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=arguments.initializer_range,
            **dropout,
            **options,
            **loading,
        )
        model = MosForMaskedLM(config)
        if arguments.sinusoidal_positions:
            start_positions_as_sinusoids(model)
        return model
    loading["dtype"] = torch.float32  # whatever the checkpoint's; mixed precision is the Trainer's affair
    config = AutoConfig.from_pretrained(name)
    if arguments.as_is or config.model_type == "mos_subnet":
        model = AutoModelForMaskedLM.from_pretrained(name, **dropout, **loading)
    elif config.model_type == "mos":
        check_stored_options(arguments, config, options)
        model = AutoModelForMaskedLM.from_pretrained(
            name, sparse_prediction=arguments.sparse_prediction, **dropout, **loading
        )
    else:
        model = MosForMaskedLM.from_backbone(name, **dropout, **options, **loading)
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"The model's vocabulary has {model.config.vocab_size} entries, the tokenizer {len(tokenizer)}; use the "
            "tokenizer that the model was trained with."
        )
    return model


def check_stored_options(arguments: ModelArguments, config: MosConfig, options: dict[str, Any]) -> None:
    """
    A saved supernet's options are its own; those that are asked for must be the same.

    Raises:
        ValueError: naming the first option that differs from what is stored.
    """
    defaults = ModelArguments()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", *options):
        asked, stored = getattr(arguments, name), getattr(config, name)
        if name == "sparse_prediction" or asked == getattr(defaults, name):
            continue
        if name == "search_space":
            sizes = (
                config.hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
                config.num_hidden_layers,
            )
            asked = SearchSpace.resolve(options[name], *sizes).to_dict()
        if asked != stored:
            raise ValueError(
                f"The supernet {arguments.model_name_or_path!r} has {name}={stored!r}, but {asked!r} is asked for; "
                "drop the option, or start from the backbone again."
            )


def check_continued_run(checkpoint: str, model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: if a checkpoint in the output folder is of another model than the one to be trained.
    """
    stored = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    names = ("model_type", "hidden_size", "hidden_sizes", "routing", "num_experts", "router_input", "search_space")
    for name in (*names, "default_architecture"):
        asked, found = getattr(model.config, name, None), stored.get(name)
        if asked != found:
            raise ValueError(
                f"The output folder holds the checkpoint {checkpoint!r} of another run: its {name} is {found!r}, this "
                f"run's is {asked!r}. Choose another --output_dir, or delete that folder's checkpoints."
            )


def parse_architecture(text: str, supernet: MosForMaskedLM) -> Architecture | str:
    """'largest', 'smallest', sizes as JSON or a JSON file with them, or a name for the stored front."""
    space = supernet.search_space
    if text in ("largest", "smallest"):
        return getattr(space, text)()
    if text.endswith(".json"):
        text = Path(text).read_text(encoding="utf-8")
    if not text.lstrip().startswith("{"):
        return text
    try:
        sizes = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The architecture is not valid JSON: {text!r} ({error}).") from error
    known = ("hidden_sizes", "intermediate_sizes", "num_attention_heads", "num_hidden_layers")
    unknown = sorted(set(sizes) - set(known))
    if unknown:
        raise ValueError(f"Unknown size {unknown[0]!r} of an architecture; the sizes are {list(known)}.")
    return space.architecture(**sizes)


def save_row_losses(trainer: MaskedLMTrainer, dataset: MaskedLanguageModelingDataset, path: Path) -> None:
    """One `{name}.loss` (nats, summed) and one `{name}.count` tensor of shape `(sequences,)` a panel architecture."""
    tensors = {}
    panel = trainer.panel if isinstance(trainer, SupernetTrainer) else {"model": None}
    for name, architecture in panel.items():
        if architecture is None:
            output = trainer.predict(dataset)
        else:
            with trainer.evaluating(architecture):
                output = trainer.predict(dataset)
        tensors[f"{name}.loss"] = torch.from_numpy(output.predictions).contiguous()
        tensors[f"{name}.count"] = torch.from_numpy(output.label_ids).contiguous()
    if trainer.is_world_process_zero():
        temporary = path.with_suffix(".partial")
        save_file(tensors, temporary)
        temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    model_arguments, data_arguments, training_arguments = parse_arguments(
        ARGUMENT_TYPES, arguments, description=__doc__.split("\n")[1]
    )
    show_progress_messages(logger)
    pin_memory_for_accelerators(training_arguments)
    set_seed(training_arguments.seed)
    with training_arguments.main_process_first(desc="preparing data"):
        splits, tokenizer = load_data(
            data_arguments,
            model_arguments.model_name_or_path,
            training_arguments.output_dir,
            training_arguments.seed,
        )
    train_dataset = MaskedLanguageModelingDataset(
        splits["train"], tokenizer, training_arguments.seed, data_arguments.mlm_probability
    )
    eval_dataset = None
    if "validation" in splits:
        # Masks of the evaluation never depend on the run's seed, so that runs can be compared row by row.
        eval_dataset = MaskedLanguageModelingDataset(
            splits["validation"], tokenizer, seed=0, mlm_probability=data_arguments.mlm_probability
        )
    model = load_model(model_arguments, tokenizer)
    for option in ("train_architecture", "default_architecture"):
        if getattr(model_arguments, option) is not None and not isinstance(model, MosForMaskedLM):
            raise ValueError(f"--{option} names an architecture of a supernet, but the model is not one.")
    if model_arguments.default_architecture is not None:
        chosen = parse_architecture(model_arguments.default_architecture, model)
        model.config.default_architecture = model.resolve_architecture(chosen).to_dict()
    if model_arguments.train_architecture is not None:
        model = model.extract_subnet(parse_architecture(model_arguments.train_architecture, model)).train()
    one_architecture = not isinstance(model, MosForMaskedLM) or training_arguments.architecture_sampling == "fixed"
    wanted = training_arguments.metric_for_best_model
    if one_architecture and wanted is not None and wanted.startswith(("eval_largest", "eval_smallest", "eval_random")):
        training_arguments.metric_for_best_model = "eval_loss"
        logger.info(f"One architecture is trained: the best checkpoint goes by eval_loss instead of {wanted}.")
    common = {"args": training_arguments, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
    if isinstance(model, MosForMaskedLM):
        teacher = None
        if model_arguments.teacher_name_or_path is not None:
            way_out = "choose a masked language model as the teacher."
            teacher = load_trained(AutoModelForMaskedLM, model_arguments.teacher_name_or_path, way_out)
        trainer = SupernetTrainer(model, teacher=teacher, processing_class=tokenizer, **common)
    else:
        if model_arguments.teacher_name_or_path is not None:
            raise ValueError("--teacher_name_or_path teaches a supernet; a single architecture is trained without.")
        trainer = MaskedLMTrainer(model, processing_class=tokenizer, **common)
    logger.info(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(train_dataset):,} sequences.")

    checkpoint = training_arguments.resume_from_checkpoint
    if checkpoint is None and Path(training_arguments.output_dir).is_dir():
        checkpoint = get_last_checkpoint(training_arguments.output_dir)
        if checkpoint is not None:
            logger.info(f"Continuing from {checkpoint}.")
    if isinstance(checkpoint, str):
        check_continued_run(checkpoint, model)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if result.training_loss > 0 or checkpoint is None:
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
    else:
        logger.info("The training was finished already; its results stay as they are.")
    metrics: dict[str, float] = {}
    if eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        if data_arguments.save_row_losses:
            save_row_losses(trainer, eval_dataset, Path(training_arguments.output_dir) / "row_losses.safetensors")
    publish(trainer, metrics=metrics, **describe_dataset(data_arguments))
    return metrics


if __name__ == "__main__":
    run_script(main)
