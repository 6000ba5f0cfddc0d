#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Fine-tunes any encoder, MoS subnets included, on a GLUE task or own files, with or without a teacher.

    python run_glue.py --model_name_or_path google-bert/bert-base-uncased --task_name mrpc \
        --output_dir runs/mrpc-teacher
    python run_glue.py --model_name_or_path mos-bert-60m --task_name mrpc --output_dir runs/mrpc-60m \
        --teacher_name_or_path runs/mrpc-teacher --num_train_epochs 5 --learning_rate 5e-5

One .json or .yaml file of arguments may come first. The same command continues a run that was stopped.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import modeling_mos  # noqa: E402, F401 (registers the auto classes)
import modeling_sharcs  # noqa: E402, F401
from example_utils import parse_arguments, publish, run_script, show_progress_messages  # noqa: E402
from glue_utils import (  # noqa: E402
    DataArguments,
    describe_task,
    get_label_names,
    glue_compute_metrics,
    load_task_datasets,
    make_collator,
    match_labels,
    preprocess,
    set_model_labels,
    write_test_predictions,
)
from sharcs_utils import longest_input, train  # noqa: E402
from trainers import DistillationTrainer, DistillationTrainingArguments  # noqa: E402


logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """The student and its teacher."""

    model_name_or_path: str = field(metadata={"help": "A Hub name or a folder: a subnet, or any encoder."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the model's own."})
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "Keep only so many of the model's first layers: the simplest smaller model."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of hidden states and attention; the model's if not given."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, or eager, which distilling attentions needs."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "A model fine-tuned on the same task, from which to learn."}
    )
    save_predictions: bool = field(
        default=False,
        metadata={"help": "Write logits and labels of the validation rows to predictions.safetensors."},
    )


def load_model(arguments: ModelArguments, data: DataArguments, names: list[str] | None):
    """The student, with the data's labels in the order that it, or else its teacher, knows them."""
    config = AutoConfig.from_pretrained(arguments.model_name_or_path)
    if config.model_type == "mos":
        raise ValueError(
            f"{arguments.model_name_or_path!r} is a supernet; take a subnet out with `extract_subnet` first."
        )
    if config.model_type == "sharcs":
        raise ValueError(
            f"{arguments.model_name_or_path!r} is a routed encoder, whose router needs training too; use "
            "run_glue_sharcs.py."
        )
    order = match_labels(names, config, new_labels=True, task_name=data.task_name)
    if arguments.teacher_name_or_path is not None and names is not None:
        # The teacher's outputs decide.
        teacher = AutoConfig.from_pretrained(arguments.teacher_name_or_path)
        order = match_labels(names, teacher, task_name=data.task_name)
    set_model_labels(config, order)
    loading: dict[str, Any] = {"num_labels": config.num_labels, "problem_type": config.problem_type}
    if order is not None:
        loading |= {"id2label": config.id2label, "label2id": config.label2id}
    if arguments.dropout is not None:
        # The last two are DistilBERT's.
        names_of_dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
        loading |= {name: arguments.dropout for name in names_of_dropout if hasattr(config, name)}
    if arguments.num_hidden_layers is not None:
        if config.model_type == "mos_subnet":
            raise ValueError(
                "--num_hidden_layers is for ordinary models: the layers of a subnet have sizes of their own. Take one "
                "with fewer layers out of its supernet."
            )
        if not 1 <= arguments.num_hidden_layers <= config.num_hidden_layers:
            raise ValueError(
                f"--num_hidden_layers={arguments.num_hidden_layers} layers cannot be kept of a model that has "
                f"{config.num_hidden_layers}."
            )
        loading["num_hidden_layers"] = arguments.num_hidden_layers
    if arguments.attn_implementation is not None:
        loading["attn_implementation"] = arguments.attn_implementation
    # Whatever the checkpoint's type; mixed precision is the Trainer's affair.
    return AutoModelForSequenceClassification.from_pretrained(
        arguments.model_name_or_path, dtype=torch.float32, ignore_mismatched_sizes=True, **loading
    )


def load_teacher(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, names: list[str] | None, pairs: bool):
    """
    The teacher, with the names that the student has for its labels.

    Raises:
        ValueError: if the teacher reads other tokens than the student, or of pairs which text is which.
    """
    name = arguments.teacher_name_or_path
    if name is None:
        return None
    own = AutoTokenizer.from_pretrained(name)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"The teacher {name!r} and the student {arguments.model_name_or_path!r} have different tokenizers; choose "
            "a teacher that was fine-tuned with the student's."
        )
    if pairs and "token_type_ids" in own.model_input_names and "token_type_ids" not in tokenizer.model_input_names:
        raise ValueError(
            f"The teacher {name!r} tells the texts of a pair apart by token types, which the student "
            f"{arguments.model_name_or_path!r} does not have; choose a teacher or a student of the other's family."
        )
    loading = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    teacher = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, **loading)
    if names is not None:
        set_model_labels(teacher.config, names)  # It may write the same names in another way.
    return teacher


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    model_arguments, data_arguments, training_arguments = parse_arguments(
        (ModelArguments, DataArguments, DistillationTrainingArguments),
        arguments,
        description=__doc__.split("\n")[1],
    )
    show_progress_messages(logger)
    set_seed(training_arguments.seed)
    output = Path(training_arguments.output_dir)
    with training_arguments.main_process_first(desc="preparing data"):
        raw = load_task_datasets(data_arguments, seed=training_arguments.seed)
    if "train" not in raw:
        raise ValueError("There are no rows to train on; give train_file, or a task with a training split.")
    if training_arguments.do_predict and not any(name.startswith("test") for name in raw):
        raise ValueError("There are no rows to predict; give test_file, or a task with a test split.")
    names = get_label_names(raw)
    tokenizer = AutoTokenizer.from_pretrained(model_arguments.tokenizer_name or model_arguments.model_name_or_path)
    model = load_model(model_arguments, data_arguments, names)
    ordered = None if names is None else [model.config.id2label[index] for index in range(model.config.num_labels)]
    teacher = load_teacher(model_arguments, tokenizer, ordered, "sentence2" in raw["train"].column_names)
    longest = min(longest_input(side.config, tokenizer) for side in (model, teacher) if side is not None)
    if data_arguments.max_seq_length > longest:
        logger.warning(f"max_seq_length={data_arguments.max_seq_length} is more than the model takes: {longest}.")
        data_arguments.max_seq_length = longest
    with training_arguments.main_process_first(desc="tokenizing data"):
        splits = preprocess(raw, tokenizer, data_arguments, ordered, config=model.config, new_labels=True)
    trainer = DistillationTrainer(
        model,
        training_arguments,
        teacher=teacher,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=make_collator(tokenizer, data_arguments, training_arguments.bf16 or training_arguments.fp16),
        compute_metrics=glue_compute_metrics(data_arguments.task_name, names is None, ordered),
        processing_class=tokenizer,
    )
    logger.info(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(splits['train']):,} rows.")
    train(trainer)
    trainer.save_model()
    results: dict[str, Any] = {}
    for split in ("validation", "validation_mismatched"):
        if split not in splits:
            continue
        suffix = "_mm" if split.endswith("mismatched") else ""
        found = trainer.predict(splits[split], metric_key_prefix="eval")
        # How long it took is not kept: the same command on a finished run shall write the same files.
        timed = ("_runtime", "_per_second", "_time")
        metrics = {f"{name}{suffix}": value for name, value in found.metrics.items() if not name.endswith(timed)}
        metrics[f"eval_samples{suffix}"] = len(splits[split])
        trainer.log_metrics(f"eval{suffix}", metrics)
        trainer.save_metrics(f"eval{suffix}", metrics)
        results |= metrics
        if model_arguments.save_predictions and trainer.is_world_process_zero():
            tensors = {"logits": first(found.predictions), "labels": found.label_ids}
            temporary = output / f".predictions{suffix}.partial"
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary)
            temporary.replace(output / f"predictions{suffix}.safetensors")
    if training_arguments.do_predict:
        write_test_predictions(trainer, splits, data_arguments, ordered, output)
    publish(trainer, metrics=results, **describe_task(data_arguments))
    return results


def first(predictions) -> np.ndarray:
    """Logits, where a model also returns hidden states."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


if __name__ == "__main__":
    run_script(main)
