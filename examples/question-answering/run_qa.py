#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Fine-tunes any encoder, MoS subnets included, on questions in the SQuAD format; with --sharcs as a routed encoder.

    python run_qa.py --model_name_or_path google-bert/bert-base-uncased --dataset_name rajpurkar/squad \
        --output_dir runs/squad --num_train_epochs 2 --learning_rate 3e-5 --per_device_train_batch_size 16
    python run_qa.py --sharcs --model_name_or_path google-bert/bert-base-uncased --train_file train-v1.1.json \
        --validation_file dev-v1.1.json --output_dir runs/squad-sharcs --num_train_epochs 4

One .json or .yaml file of arguments may come first. The same command continues a run that was stopped.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import modeling_mos  # noqa: E402, F401 (registers the auto classes)
from example_utils import (  # noqa: E402
    describe_dataset,
    parse_arguments,
    publish,
    run_script,
    show_progress_messages,
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
from trainers import SharcsTrainer, SharcsTrainingArguments  # noqa: E402
from trainers.checkpoints import StagedCheckpointMixin  # noqa: E402
from trainers.model_cards import ModelCardMixin  # noqa: E402


logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """The model."""

    model_name_or_path: str = field(metadata={"help": "A Hub name or a folder."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the model's own."})
    sharcs: bool = field(default=False, metadata={"help": "Train a routed encoder; widths and router have options."})
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "With --sharcs: a fine-tuned model to learn from, instead of the widest path."}
    )
    evaluate_only: bool = field(default=False, metadata={"help": "Measure the model, without training it."})


class QuestionAnsweringTrainer(ModelCardMixin, StagedCheckpointMixin, Trainer):
    """A `Trainer` with our model cards, whose checkpoints are written beside and renamed when whole."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.accelerator.unwrap_model(self.model), "accepts_loss_kwargs"):
            # Stock models take keyword arguments and ignore the number of items that Trainer would divide by.
            self.model_accepts_loss_kwargs = False


def refuse_unused_options(options: SharcsOptions, arguments: SharcsTrainingArguments) -> None:
    """
    Raises:
        ValueError: if an option of SHARCS is set where no routed encoder is trained.
    """
    plain = {item.name for item in fields(TrainingArguments)}
    defaults = {**vars(SharcsOptions())}
    for item in fields(SharcsTrainingArguments):
        if item.name not in plain:
            defaults[item.name] = item.default
    for name, default in defaults.items():
        if getattr(options, name, getattr(arguments, name, None)) != default:
            raise ValueError(f"--{name} is an option of routed encoders; add --sharcs, or leave it out.")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    model_arguments, data_arguments, options, training_arguments = parse_arguments(
        (ModelArguments, QuestionAnsweringDataArguments, SharcsOptions, SharcsTrainingArguments),
        arguments,
        description=__doc__.split("\n")[1],
    )
    show_progress_messages(logger)
    if not model_arguments.sharcs:
        refuse_unused_options(options, training_arguments)
        if model_arguments.teacher_name_or_path is not None:
            raise ValueError("--teacher_name_or_path teaches a routed encoder; add --sharcs, or leave it out.")
    elif data_arguments.version_2_with_negative:
        logger.info("A question without an answer is as hard as its first token is as start and end.")
    set_seed(training_arguments.seed)
    name = model_arguments.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(model_arguments.tokenizer_name or name)
    if model_arguments.sharcs:
        model = load_sharcs_model(SharcsForQuestionAnswering, name, options, model_arguments.evaluate_only)
    else:
        model = AutoModelForQuestionAnswering.from_pretrained(name, dtype=torch.float32)
        if model.config.model_type == "sharcs":
            raise ValueError(f"{name!r} is a routed encoder; add --sharcs.")
    with training_arguments.main_process_first(desc="preparing data"):
        questions = load_questions(data_arguments)
        longest = longest_input(model.config, tokenizer)
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
    if model_arguments.sharcs:
        teacher = None
        if model_arguments.teacher_name_or_path is not None:
            teacher = AutoModelForQuestionAnswering.from_pretrained(
                model_arguments.teacher_name_or_path, dtype=torch.float32
            )
        trainer: Trainer = SharcsTrainer(model, teacher=teacher, **common)
    else:
        trainer = QuestionAnsweringTrainer(model, **common)
    logger.info(
        f"{type(model).__name__}: {model.num_parameters():,} parameters, "
        + ", ".join(f"{len(rows):,} {split} windows" for split, rows in windows.items())
    )
    if not model_arguments.evaluate_only:
        train(trainer)
    results: dict[str, Any] = {}
    if model_arguments.sharcs:
        if "train" in windows:
            # Not the first ones, which are about few articles.
            rows = windows["train"].shuffle(seed=training_arguments.seed)
            calibrate(trainer, rows.select(range(min(500, len(rows)))), "training")
        save(trainer, options)
    elif not model_arguments.evaluate_only:
        trainer.save_model()
    if "validation" in windows:
        if model_arguments.sharcs:
            results, predictions = measure(trainer, windows["validation"], options, "f1")
            logits = predictions.select(trainer.chosen_widths(predictions).numpy())
        else:
            output = trainer.predict(windows["validation"], metric_key_prefix="eval")
            results, logits = output.metrics, output.predictions[:2]
            trainer.log_metrics("eval", results)
            trainer.save_metrics("eval", results)
        if trainer.is_world_process_zero():
            found = find_answers(questions["validation"], windows["validation"], logits, data_arguments)
            answers = {answer["id"]: answer["prediction_text"] for answer in found}
            text = json.dumps(answers, indent=2, ensure_ascii=False) + "\n"
            write_text_atomically(Path(training_arguments.output_dir) / "predictions.json", text)
    if model_arguments.sharcs or not model_arguments.evaluate_only:
        publish(trainer, metrics=results, figure=find_curve(trainer), **describe_dataset(data_arguments))
    return results


if __name__ == "__main__":
    run_script(main)
