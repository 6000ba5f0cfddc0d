#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Trains a sample-routed encoder (SHARCS) on a GLUE task or own files, and measures what each amount of compute buys.

    python run_glue_sharcs.py configs/sharcs_mnli.yaml --output_dir runs/sharcs-mnli
    python run_glue_sharcs.py --model_name_or_path google-bert/bert-base-uncased --task_name sst2 --data_dir GLUE \
        --output_dir runs/sharcs-sst2 --num_train_epochs 5

Flags after a configuration file override it. The same command continues a run that was stopped.
"""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from example_utils import (  # noqa: E402
    parse_arguments,
    pin_memory_for_accelerators,
    publish,
    run_script,
    show_progress_messages,
    write_text_atomically,
)
from glue_utils import (  # noqa: E402
    DataArguments,
    describe_task,
    get_label_names,
    glue_compute_metrics,
    load_task_datasets,
    load_tokenizer,
    main_metric,
    make_collator,
    match_labels,
    preprocess,
    save_predictions,
    set_model_labels,
    write_test_predictions,
)
from modeling_sharcs import SharcsForSequenceClassification  # noqa: E402
from sharcs_utils import (  # noqa: E402
    SharcsOptions,
    calibrate,
    find_curve,
    load_sharcs_model,
    longest_input,
    measure,
    routed_logits,
    save,
    train,
)
from teacher_utils import check_teacher_tokenizer, load_trained  # noqa: E402
from trainers import SharcsTrainer, SharcsTrainingArguments, WidthPredictions  # noqa: E402


logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """The model, its teacher, and what to write."""

    model_name_or_path: str = field(
        metadata={
            "help": "A BERT, RoBERTa, DistilBERT or ELECTRA model (Hub name or folder) to make a routed encoder of, "
            "or a SHARCS model to train further."
        }
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the model's own."})
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of hidden states and attention; the backbone's if not given."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "A model fine-tuned on the same task, instead of the widest path, as teacher."}
    )
    save_predictions: bool = field(
        default=False,
        metadata={
            "help": "Write each validation row's prediction and the width that it took to predictions.tsv, and the "
            "logits at each compute budget and width to predictions.safetensors."
        },
    )
    evaluate_only: bool = field(default=False, metadata={"help": "Calibrate and measure a SHARCS model, no training."})


ARGUMENT_TYPES = (ModelArguments, SharcsOptions, DataArguments, SharcsTrainingArguments)


def load_model(arguments: ModelArguments, options: SharcsOptions, data: DataArguments, names: list[str] | None):
    """A routed encoder whose labels are the data's, in the order that the backbone knows them."""
    config = AutoConfig.from_pretrained(arguments.model_name_or_path)
    order = match_labels(names, config, new_labels=not arguments.evaluate_only, task_name=data.task_name)
    set_model_labels(config, order)
    labels = {"num_labels": config.num_labels, "problem_type": config.problem_type}
    if order is not None:
        labels |= {"id2label": config.id2label, "label2id": config.label2id}
    dropout = {}
    if arguments.dropout is not None:
        dropout = {"hidden_dropout_prob": arguments.dropout, "attention_probs_dropout_prob": arguments.dropout}
    return load_sharcs_model(
        SharcsForSequenceClassification,
        arguments.model_name_or_path,
        options,
        arguments.evaluate_only,
        **dropout,
        **labels,
    )


def write_prediction_table(path: Path, rows, trainer: SharcsTrainer, predictions: WidthPredictions, names) -> None:
    """A table of the rows' texts and labels, with the prediction at the current price and the width taken."""
    chosen = trainer.chosen_widths(predictions)
    logits = predictions.select(chosen.numpy())
    texts = [name for name in ("sentence1", "sentence2", "sentence", "text") if name in rows.column_names]
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow([*texts, "label", "prediction", "width"])
    for row, label, own, index in zip(
        rows.select_columns(texts), predictions.label_ids, logits, chosen.tolist(), strict=True
    ):
        if names is None:
            answers = [f"{float(label):g}", f"{float(own[0]):.4f}"]
        else:
            answers = [names[int(label)], names[int(own.argmax())]]
        writer.writerow([*(row[name] for name in texts), *answers, f"{trainer.widths[index]:g}"])
    write_text_atomically(path, table.getvalue())


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    model_arguments, options, data_arguments, training_arguments = parse_arguments(
        ARGUMENT_TYPES, arguments, description=__doc__.split("\n")[1]
    )
    show_progress_messages(logger)
    pin_memory_for_accelerators(training_arguments)
    set_seed(training_arguments.seed)
    output = Path(training_arguments.output_dir)
    with training_arguments.main_process_first(desc="preparing data"):
        raw = load_task_datasets(data_arguments, seed=training_arguments.seed)
    if "train" not in raw and not model_arguments.evaluate_only:
        raise ValueError("There are no rows to train on; give train_file, or add --evaluate_only.")
    if training_arguments.do_predict and not any(name.startswith("test") for name in raw):
        raise ValueError("There are no rows to predict; give test_file, or a task with a test split.")
    names = get_label_names(raw)
    tokenizer = AutoTokenizer.from_pretrained(model_arguments.tokenizer_name or model_arguments.model_name_or_path)
    model = load_model(model_arguments, options, data_arguments, names)
    longest = longest_input(model.config, tokenizer)
    if data_arguments.max_seq_length > longest:
        logger.warning(f"max_seq_length={data_arguments.max_seq_length} is more than the model takes: {longest}.")
        data_arguments.max_seq_length = longest
    ordered = None if names is None else [model.config.id2label[index] for index in range(model.config.num_labels)]
    with training_arguments.main_process_first(desc="tokenizing data"):
        splits = preprocess(raw, tokenizer, data_arguments, ordered, config=model.config, new_labels=True)
    metric = main_metric(data_arguments.task_name, names is None)
    teacher = None
    if model_arguments.teacher_name_or_path is not None:
        name = model_arguments.teacher_name_or_path
        way_out = "fine-tune it on the task first: run_glue.py."
        teacher = load_trained(AutoModelForSequenceClassification, name, way_out)
        check_teacher_tokenizer(
            load_tokenizer(name, teacher.config.vocab_size),
            name,
            tokenizer,
            model_arguments.model_name_or_path,
            pairs="sentence2" in next(iter(raw.values())).column_names,
        )
        of_teacher = match_labels(ordered, teacher.config, task_name=data_arguments.task_name)
        if of_teacher != ordered:
            raise ValueError(
                f"The teacher's labels are {of_teacher}, the student's {ordered}: the same classes in another order; "
                "train the student from a backbone with the teacher's labels."
            )
    trainer = SharcsTrainer(
        model,
        training_arguments,
        teacher=teacher,
        train_dataset=None if model_arguments.evaluate_only else splits.get("train"),
        eval_dataset=splits.get("validation"),
        data_collator=make_collator(tokenizer, data_arguments, training_arguments.bf16 or training_arguments.fp16),
        compute_metrics=glue_compute_metrics(data_arguments.task_name, names is None, ordered),
        processing_class=tokenizer,
    )
    logger.info(f"{model.num_parameters():,} parameters, widths {model.config.width_multipliers}.")

    if not model_arguments.evaluate_only:
        train(trainer)
    results: dict[str, Any] = {}
    calibration = splits.get("calibration")
    if calibration is not None:
        calibrate(trainer, calibration, "held-out")
    elif "train" in splits and not (model_arguments.evaluate_only and model.config.calibration is not None):
        logger.warning(
            "Prices are calibrated on training rows, which the router knows; budgets will be met less exactly than "
            "with --calibration_split_percentage 5."
        )
        # Not the first ones: files may be sorted.
        rows = splits["train"].shuffle(seed=training_arguments.seed)
        calibrate(trainer, rows.select(range(min(2000, len(rows)))), "training")
    save(trainer, options)
    for name in ("validation", "validation_mismatched"):
        if name in splits:
            suffix = "_mm" if name.endswith("mismatched") else ""
            found, predictions, prices = measure(trainer, splits[name], options, metric, suffix)
            results |= found
            if model_arguments.save_predictions and trainer.is_world_process_zero():
                write_prediction_table(output / f"predictions{suffix}.tsv", raw[name], trainer, predictions, ordered)
                tensors = {"labels": predictions.label_ids, **routed_logits(trainer, predictions, prices)}
                save_predictions(output / f"predictions{suffix}.safetensors", tensors, ordered)
    if training_arguments.do_predict:
        write_test_predictions(trainer, splits, data_arguments, ordered, output)
    publish(trainer, metrics=results, figure=find_curve(trainer), **describe_task(data_arguments, raw))
    return results


if __name__ == "__main__":
    run_script(main)
