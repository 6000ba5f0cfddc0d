#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Fine-tunes any encoder, MoS subnets included, on a GLUE task or own files, with or without a teacher.

    python run_glue.py --model_name_or_path google-bert/bert-base-uncased --task_name mrpc \
        --output_dir runs/mrpc-teacher
    python run_glue.py --model_name_or_path mos-bert-60m --task_name mrpc --output_dir runs/mrpc-60m \
        --teacher_name_or_path runs/mrpc-teacher --num_train_epochs 5 --learning_rate 5e-5

One .json or .yaml file of arguments may come first. The same command continues a run that was stopped. `--do_predict`
writes the test rows' predictions as the GLUE server takes them (CoLA.tsv, MNLI-m.tsv, …), or those of your own rows in
`--test_file`, which may stand beside a task, to predictions_test.tsv.

A model that was fine-tuned for another number of labels, such as MNLI's before RTE, keeps all weights but those of the
classifier's last layer.
run_glue_sweep.py runs grids of this script, and all tasks in one command.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import modeling_mos  # noqa: E402, F401 (registers the auto classes)
import modeling_sharcs  # noqa: E402, F401
from example_utils import (  # noqa: E402
    parse_arguments,
    parse_given_arguments,
    pin_memory_for_accelerators,
    publish,
    run_script,
    show_progress_messages,
    without_timings,
)
from glue_utils import (  # noqa: E402
    DataArguments,
    describe_task,
    get_label_names,
    glue_compute_metrics,
    load_task_datasets,
    load_tokenizer,
    make_collator,
    match_labels,
    preprocess,
    save_predictions,
    set_model_labels,
    write_test_predictions,
)
from sharcs_utils import longest_input, train  # noqa: E402
from teacher_utils import check_teacher_tokenizer, load_trained, refuse_options_without_teacher  # noqa: E402
from trainers import DistillationTrainer, DistillationTrainingArguments  # noqa: E402


__all__ = ["ARGUMENT_TYPES", "main", "read_arguments"]


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


ARGUMENT_TYPES = (ModelArguments, DataArguments, DistillationTrainingArguments)


def read_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, DistillationTrainingArguments]:
    """
    Reads the command line.

    Raises:
        ValueError: an argument is unknown or out of range, or says how to learn from a teacher that is not given.
    """
    parsed = parse_arguments(ARGUMENT_TYPES, arguments, description=__doc__.split("\n")[1])
    if parsed[0].teacher_name_or_path is None:
        refuse_options_without_teacher(parse_given_arguments(ARGUMENT_TYPES, arguments))
    return parsed


def load_model(arguments: ModelArguments, data: DataArguments, names: list[str] | None) -> PreTrainedModel:
    """
    The student, with the data's labels in the order that it, or else its teacher, knows them. Of a model with another
    number of labels, the classifier's last layer starts anew.

    Raises:
        ValueError: if the model is none to be fine-tuned, or weights that are not the classifier's do not fit it.
    """
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
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        arguments.model_name_or_path,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **loading,
    )
    check_new_weights(model, sorted(loaded["mismatched_keys"]), arguments.model_name_or_path)
    return model


def check_new_weights(
    model: PreTrainedModel, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]], place: str
) -> None:
    """
    Says that a classifier for another number of labels starts anew.

    Args:
        model (`PreTrainedModel`): The model, loaded.
        mismatched (sequence of tuples): Name, stored shape and own shape of the weights that did not fit.
        place (`str`): Where the model comes from.

    Raises:
        ValueError: if they are not only a classifier's last layer with another number of labels.
    """
    if not mismatched:
        return
    for name, stored, own in mismatched:
        of_encoder = name.startswith(f"{model.base_model_prefix}.")
        if of_encoder or own[0] != model.config.num_labels or list(stored[1:]) != list(own[1:]):
            raise ValueError(
                f"The weights {name!r} of {place!r} have the shape {tuple(stored)}, but its configuration says "
                f"{tuple(own)}. Only a classifier for other labels may differ; correct config.json, or the weights."
            )
    logger.info(
        f"{place} was fine-tuned for {mismatched[0][1][0]} outputs, this task has {model.config.num_labels}: "
        f"{' and '.join(name for name, _, _ in mismatched)} start anew, everything else is kept."
    )


def load_teacher(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, names: list[str] | None, pairs: bool):
    """
    The teacher, with the names that the student has for its labels.

    Raises:
        ValueError: if the teacher was not fine-tuned, or reads other tokens than the student, or of pairs which text
            is which.
    """
    name = arguments.teacher_name_or_path
    if name is None:
        return None
    own = load_tokenizer(name, AutoConfig.from_pretrained(name).vocab_size)
    check_teacher_tokenizer(own, name, tokenizer, arguments.model_name_or_path, pairs)
    loading = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    way_out = "fine-tune it on the task first: run_glue.py without a teacher."
    teacher = load_trained(AutoModelForSequenceClassification, name, way_out, **loading)
    if names is not None:
        set_model_labels(teacher.config, names)  # It may write the same names in another way.
    return teacher


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    model_arguments, data_arguments, training_arguments = read_arguments(arguments)
    show_progress_messages(logger)
    pin_memory_for_accelerators(training_arguments)
    set_seed(training_arguments.seed)
    output = Path(training_arguments.output_dir)
    with training_arguments.main_process_first(desc="preparing data"):
        raw = load_task_datasets(data_arguments, seed=training_arguments.seed)
    if "train" not in raw:
        raise ValueError("There are no rows to train on; give train_file, or a task with a training split.")
    if training_arguments.do_predict and not any(name.startswith("test") for name in raw):
        raise ValueError("There are no rows to predict; give test_file, or a task with a test split.")
    names = get_label_names(raw)
    model = load_model(model_arguments, data_arguments, names)
    tokenizer = load_tokenizer(
        model_arguments.tokenizer_name or model_arguments.model_name_or_path, model.config.vocab_size
    )
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
        eval_dataset=splits.get("selection", splits.get("validation")),
        data_collator=make_collator(tokenizer, data_arguments, training_arguments.bf16 or training_arguments.fp16),
        compute_metrics=glue_compute_metrics(data_arguments.task_name, names is None, ordered),
        processing_class=tokenizer,
    )
    logger.info(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(splits['train']):,} rows.")
    train(trainer)
    trainer.save_model()
    results: dict[str, Any] = {}
    for split, prefix, suffix in (
        ("selection", "selection", ""),
        ("validation", "eval", ""),
        ("validation_mismatched", "eval", "_mm"),
    ):
        if split not in splits:
            continue
        found = trainer.predict(splits[split], metric_key_prefix=prefix)
        metrics = {f"{name}{suffix}": value for name, value in without_timings(found.metrics).items()}
        metrics[f"{prefix}_samples{suffix}"] = len(splits[split])
        trainer.log_metrics(f"{prefix}{suffix}", metrics)
        trainer.save_metrics(f"{prefix}{suffix}", metrics)
        results |= metrics
        if model_arguments.save_predictions and prefix == "eval" and trainer.is_world_process_zero():
            tensors = {"logits": first(found.predictions), "labels": found.label_ids}
            save_predictions(output / f"predictions{suffix}.safetensors", tensors, ordered)
    if training_arguments.do_predict:
        write_test_predictions(trainer, splits, data_arguments, ordered, output)
    publish(trainer, metrics=results, **describe_task(data_arguments, raw))
    return results


def first(predictions) -> np.ndarray:
    """Logits, where a model also returns hidden states."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


if __name__ == "__main__":
    run_script(main)
