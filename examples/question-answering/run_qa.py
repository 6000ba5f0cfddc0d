#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Fine-tunes any encoder, MoS subnets included, on questions in the SQuAD format, with or without a teacher; with
--sharcs as a routed encoder.

    python run_qa.py --model_name_or_path google-bert/bert-base-uncased --dataset_name rajpurkar/squad \
        --output_dir runs/squad --num_train_epochs 2 --learning_rate 3e-5 --per_device_train_batch_size 16
    python run_qa.py --model_name_or_path mos-bert-60m --teacher_name_or_path runs/squad \
        --dataset_name rajpurkar/squad --output_dir runs/squad-60m --num_train_epochs 3
    python run_qa.py --sharcs --model_name_or_path google-bert/bert-base-uncased --train_file train-v1.1.json \
        --validation_file dev-v1.1.json --output_dir runs/squad-sharcs --num_train_epochs 4

One .json or .yaml file of arguments may come first. The same command continues a run that was stopped.
"""

import csv
import io
import json
import sys
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.hf_argparser import string_to_bool
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import modeling_mos  # noqa: E402, F401 (registers the auto classes)
from example_utils import (  # noqa: E402
    argument_names,
    describe_dataset,
    expand_argument_file,
    parse_arguments,
    pin_memory_for_accelerators,
    publish,
    run_script,
    show_progress_messages,
    without_timings,
    write_text_atomically,
)
from modeling_sharcs import SharcsForQuestionAnswering  # noqa: E402
from qa_utils import (  # noqa: E402
    QuestionAnsweringDataArguments,
    find_answers,
    load_questions,
    make_windows,
    question_answering_metrics,
)
from sharcs_utils import (  # noqa: E402
    SharcsOptions,
    calibrate,
    find_curve,
    load_sharcs_model,
    longest_input,
    measure,
    save,
    train,
)
from teacher_utils import check_teacher_tokenizer, load_trained, refuse_options_without_teacher  # noqa: E402
from trainers import (  # noqa: E402
    DistillationTrainer,
    DistillationTrainingArguments,
    SharcsTrainer,
    SharcsTrainingArguments,
)


logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """The model."""

    model_name_or_path: str = field(metadata={"help": "A Hub name or a folder."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the model's own."})
    sharcs: bool = field(default=False, metadata={"help": "Train a routed encoder; widths and router have options."})
    teacher_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A fine-tuned model to learn from; with --sharcs, instead of the widest path."},
    )
    save_predictions: bool = field(
        default=False,
        metadata={"help": "With --sharcs: write each question's answer, and the widths taken, to predictions.tsv."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, or eager, which distilling attentions needs."}
    )
    evaluate_only: bool = field(default=False, metadata={"help": "Measure the model, without training it."})


ARGUMENT_TYPES = (ModelArguments, QuestionAnsweringDataArguments, SharcsOptions)
ROUTED_ARGUMENTS = {
    "calibration_split_percentage",
    "save_predictions",
    *argument_names([SharcsOptions, SharcsTrainingArguments]),
} - set(argument_names([DistillationTrainingArguments]))


def read_arguments(arguments: Sequence[str] | None) -> tuple:
    """
    The dataclasses of the script. Without --sharcs training is ordinary, and so are its options and their defaults.

    Raises:
        ValueError: if options do not go together.
    """
    known = argument_names([*ARGUMENT_TYPES, SharcsTrainingArguments, DistillationTrainingArguments])
    words = expand_argument_file(sys.argv[1:] if arguments is None else arguments, known)
    # Asked for first: it decides which other options there are.
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--sharcs", type=string_to_bool, nargs="?", const=True, default=False)
    routed = first.parse_known_args(words)[0].sharcs
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    if not routed and given & ROUTED_ARGUMENTS:
        name = sorted(given & ROUTED_ARGUMENTS)[0]
        raise ValueError(f"--{name} is an option of routed encoders; add --sharcs, or leave it out.")
    kind = SharcsTrainingArguments if routed else DistillationTrainingArguments
    description = " ".join(__doc__.split("\n\n")[0].split())
    model, data, options, training = parse_arguments((*ARGUMENT_TYPES, kind), words, description)
    if not routed and model.teacher_name_or_path is None:
        refuse_options_without_teacher(given)
    if training.label_smoothing_factor:
        raise ValueError(
            f"--label_smoothing_factor={training.label_smoothing_factor:g} is for classes, and answers are places in "
            "a text; leave it out."
        )
    return model, data, options, training


def load_teacher(
    name: str, tokenizer: PreTrainedTokenizerBase, student: str, attention: str | None
) -> PreTrainedModel:
    """
    The teacher.

    Raises:
        ValueError: if it was not fine-tuned, or reads other tokens than the student.
    """
    check_teacher_tokenizer(AutoTokenizer.from_pretrained(name), name, tokenizer, student, pairs=True)
    way_out = "fine-tune it on questions first: run_qa.py without a teacher."
    return load_trained(AutoModelForQuestionAnswering, name, way_out, attn_implementation=attention)


def load_plain_model(name: str, attention: str | None) -> PreTrainedModel:
    """
    An encoder that is not routed, in float32 whatever its checkpoint's type.

    Raises:
        ValueError: if it is a supernet or a routed encoder.
    """
    model_type = AutoConfig.from_pretrained(name).model_type
    if model_type == "mos":
        raise ValueError(f"{name!r} is a supernet; take a subnet out with `extract_subnet` first.")
    if model_type == "sharcs":
        raise ValueError(f"{name!r} is a routed encoder; add --sharcs.")
    return AutoModelForQuestionAnswering.from_pretrained(name, dtype=torch.float32, attn_implementation=attention)


def write_prediction_table(path: Path, questions, windows, answers: dict[str, str], widths: Sequence[float]) -> None:
    """A table of the questions, with the answer to each and the widths that its windows took, in their order."""
    taken = defaultdict(list)
    for index, width in zip(windows["question_index"], widths, strict=True):
        taken[index].append(f"{width:g}")
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["id", "question", "prediction", "widths"])
    for index, (name, question) in enumerate(zip(questions["id"], questions["question"], strict=True)):
        writer.writerow([name, question, answers[name], " ".join(taken[index])])
    write_text_atomically(path, table.getvalue())


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    model_arguments, data_arguments, options, training_arguments = read_arguments(arguments)
    show_progress_messages(logger)
    pin_memory_for_accelerators(training_arguments)
    if model_arguments.sharcs and data_arguments.version_2_with_negative:
        logger.info("A question without an answer is as hard as its first token is as start and end.")
    set_seed(training_arguments.seed)
    name = model_arguments.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(model_arguments.tokenizer_name or name)
    if model_arguments.sharcs:
        model = load_sharcs_model(SharcsForQuestionAnswering, name, options, model_arguments.evaluate_only)
        if model_arguments.attn_implementation is not None:
            model.set_attn_implementation(model_arguments.attn_implementation)
    else:
        model = load_plain_model(name, model_arguments.attn_implementation)
    teacher = None
    if model_arguments.teacher_name_or_path is not None and not model_arguments.evaluate_only:
        teacher = load_teacher(
            model_arguments.teacher_name_or_path, tokenizer, name, model_arguments.attn_implementation
        )
    with training_arguments.main_process_first(desc="preparing data"):
        questions = load_questions(data_arguments, seed=training_arguments.seed)
        longest = min(longest_input(side.config, tokenizer) for side in (model, teacher) if side is not None)
        windows = {split: make_windows(rows, tokenizer, data_arguments, longest) for split, rows in questions.items()}
    if not model_arguments.evaluate_only and "train" not in windows:
        raise ValueError("There are no questions to train on; give train_file, or add --evaluate_only.")
    if model_arguments.evaluate_only and "validation" not in windows:
        raise ValueError("There are no questions to evaluate on; give validation_file.")
    common: dict[str, Any] = {
        "args": training_arguments,
        "train_dataset": None if model_arguments.evaluate_only else windows["train"],
        "eval_dataset": windows.get("validation"),
        "data_collator": DataCollatorWithPadding(tokenizer),
        "processing_class": tokenizer,
    }
    if "validation" in windows:
        common["compute_metrics"] = question_answering_metrics(
            questions["validation"], windows["validation"], data_arguments
        )
    kind = SharcsTrainer if model_arguments.sharcs else DistillationTrainer
    trainer: Trainer = kind(model, teacher=teacher, **common)
    logger.info(
        f"{type(model).__name__}: {model.num_parameters():,} parameters, "
        + ", ".join(f"{len(rows):,} {split} windows" for split, rows in windows.items())
    )
    if not model_arguments.evaluate_only:
        train(trainer)
    results: dict[str, Any] = {}
    if model_arguments.sharcs:
        if "calibration" in windows:
            calibrate(trainer, windows["calibration"], "held-out")
        elif "train" in windows:
            # Not the first ones, which are about few articles.
            rows = windows["train"].shuffle(seed=training_arguments.seed)
            calibrate(trainer, rows.select(range(min(500, len(rows)))), "training")
        save(trainer, options)
    elif not model_arguments.evaluate_only:
        trainer.save_model()
    if "validation" in windows:
        if model_arguments.sharcs:
            results, predictions, _ = measure(trainer, windows["validation"], options, "f1")
            chosen = trainer.chosen_widths(predictions).numpy()
            logits = predictions.select(chosen)
        else:
            predicted = trainer.predict(windows["validation"], metric_key_prefix="eval")
            results, logits = without_timings(predicted.metrics), predicted.predictions[:2]
            trainer.log_metrics("eval", results)
            trainer.save_metrics("eval", results)
        if trainer.is_world_process_zero():
            found = find_answers(questions["validation"], windows["validation"], logits, data_arguments)
            answers = {answer["id"]: answer["prediction_text"] for answer in found}
            text = json.dumps(answers, indent=2, ensure_ascii=False) + "\n"
            output = Path(training_arguments.output_dir)
            write_text_atomically(output / "predictions.json", text)
            if model_arguments.save_predictions:
                widths = [trainer.widths[index] for index in chosen]
                write_prediction_table(
                    output / "predictions.tsv", questions["validation"], windows["validation"], answers, widths
                )
    if model_arguments.sharcs or not model_arguments.evaluate_only:
        publish(trainer, metrics=results, figure=find_curve(trainer), **describe_dataset(data_arguments))
    return results


if __name__ == "__main__":
    run_script(main)
