# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
The whole story of SHARCS on sentences that this script makes itself: a minute or two, no network.

It fine-tunes a small BERT on a task with easy and hard sentences, makes it a routed encoder, trains its widths and its
router, dials budgets afterwards, loads the model back with `AutoModelForSequenceClassification` and uses it in a
pipeline.

    python examples/quickstart_sharcs.py
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)


sys.path.insert(0, str(Path(__file__).resolve().parent))

from example_utils import parse_arguments, run_script  # noqa: E402
from modeling_sharcs import SharcsForSequenceClassification  # noqa: E402
from synthetic_data import generate_classification, train_tokenizer  # noqa: E402
from trainers import SharcsTrainer, SharcsTrainingArguments, save_curve  # noqa: E402


# A little more than what the narrow path, its layer at full width and the router take of the small model below.
LOWEST_BUDGET = 0.3


@dataclass
class QuickstartArguments:
    """How much to do; the defaults take a minute or two."""

    output_dir: str = field(default="quickstart_output/sharcs", metadata={"help": "Where everything is written."})
    num_samples: int = field(default=3000, metadata={"help": "Made-up sentences to train on."})
    num_backbone_epochs: int = field(default=8, metadata={"help": "Epochs of the plain model."})
    num_epochs: int = field(default=3, metadata={"help": "Epochs of the routed model; the first scores its rows."})
    budgets: list[float] = field(
        default_factory=lambda: [0.4, 0.5, 0.6, 0.8], metadata={"help": "Shares of full FLOPs to dial."}
    )
    saved_budget: float = field(default=0.5, metadata={"help": "The share that the saved model spends."})
    seed: int = field(default=0, metadata={"help": "Seed of sentences, weights and order."})

    def __post_init__(self):
        if self.num_epochs < 2:
            raise ValueError(f"--num_epochs must be at least 2, got {self.num_epochs}: the first one scores the rows.")
        for name, budget in [("budgets", budget) for budget in self.budgets] + [("saved_budget", self.saved_budget)]:
            if not LOWEST_BUDGET <= budget <= 1:
                raise ValueError(
                    f"--{name} takes shares of full FLOPs from {LOWEST_BUDGET:g} (few sentences are wide) to 1, got "
                    f"{budget:g}."
                )


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def make_rows(count: int, seed: int, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    rows = Dataset.from_list(generate_classification(count, seed=seed, hard_fraction=0.4))
    return rows.map(lambda batch: tokenizer(batch["sentence"]), batched=True)


def accuracy(found: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def train(
    arguments: QuickstartArguments,
    folder: Path,
    train_set: Dataset,
    validation_set: Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Trainer, SharcsTrainer]:
    """The plain model's trainer and the routed model's, after as many epochs each."""
    data: dict[str, Any] = {
        "train_dataset": train_set,
        "eval_dataset": validation_set,
        "processing_class": tokenizer,
        "compute_metrics": accuracy,
    }
    common: dict[str, Any] = {
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 128,
        "warmup_steps": 0.1,
        "logging_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "seed": arguments.seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    backbone = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=8,
            intermediate_size=384,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,
            id2label={0: "bad", 1: "good"},
            label2id={"bad": 0, "good": 1},
        )
    )
    plain = Trainer(
        backbone,
        TrainingArguments(str(folder), num_train_epochs=arguments.num_backbone_epochs, learning_rate=1e-3, **common),
        **data,
    )
    plain.train()

    routed = SharcsTrainer(
        # One of eight heads, and an eighth of all else, after one layer at full width.
        SharcsForSequenceClassification.from_backbone(backbone, width_multipliers=[0.125, 1.0], router_layer=1),
        SharcsTrainingArguments(
            str(folder),
            num_train_epochs=arguments.num_epochs,
            learning_rate=3e-4,
            hardness_window=1,
            hardness_intervals="0.8",  # easy: the right answer has a probability of 0.8
            hardness_source="evaluation",
            train_every_width=True,  # and not each row at one: easy rows stay right on the widest path too
            **common,
        ),
        **data,
    )
    routed.train()

    # The plain model goes on as long, for the table to show what routing does and not what more training does.
    longer = TrainingArguments(str(folder), num_train_epochs=arguments.num_epochs, learning_rate=3e-4, **common)
    plain = Trainer(backbone, longer, **data)
    plain.train()
    return plain, routed


def dial(trainer: SharcsTrainer, calibration_set: Dataset, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """One row a budget, and one for each width alone: what is spent, what is right, and who goes through where."""
    model, hard = trainer.model, np.array(trainer.eval_dataset["difficulty"]) == "hard"
    model.calibrate(trainer.get_eval_dataloader(calibration_set))  # labels are not looked at
    predictions = trainer.predict_widths()
    rows = []
    for budget in budgets:
        model.set_compute_budget(budget)
        metrics = trainer.routing_metrics(predictions)
        wide = trainer.chosen_widths(predictions).numpy() == len(trainer.widths) - 1
        rows.append(
            {
                "name": f"budget {budget:g}",
                "flops_share": metrics["flops_share"],
                "accuracy": metrics["accuracy"],
                "easy_rows_wide": float(wide[~hard].mean()),
                "hard_rows_wide": float(wide[hard].mean()),
            }
        )
    for width in trainer.widths:
        alone = {name: metrics[f"width_{width:g}_{name}"] for name in ("flops_share", "accuracy")}
        wide = float(width == trainer.widths[-1])
        rows.append({"name": f"width {width:g} alone", **alone, "easy_rows_wide": wide, "hard_rows_wide": wide})
    return sorted(rows, key=lambda row: row["flops_share"])


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'':2}{'':<20}{'share of FLOPs':>16}{'accuracy':>10}{'easy rows wide':>16}{'hard rows wide':>16}")
    for row in rows:
        print(
            f"{'':2}{row['name']:<20}{row['flops_share']:>16.2f}{row['accuracy']:>10.3f}"
            f"{row['easy_rows_wide']:>16.0%}{row['hard_rows_wide']:>16.0%}"
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    (arguments,) = parse_arguments(QuickstartArguments, arguments, description="SHARCS in a minute or two")
    folder = Path(arguments.output_dir)
    set_seed(arguments.seed)

    heading("1. Sentences: is the verdict good or bad? Easy ones say it outright, hard ones turn it round")
    sentences = [row["sentence"] for row in generate_classification(arguments.num_samples, seed=arguments.seed)]
    tokenizer = train_tokenizer(sentences, vocab_size=600)
    train_set = make_rows(arguments.num_samples, arguments.seed, tokenizer)
    validation_set = make_rows(1000, arguments.seed + 1, tokenizer)
    for difficulty in ("easy", "hard"):
        row = next(row for row in validation_set if row["difficulty"] == difficulty)
        print(f"  {difficulty}: {row['sentence']}")

    heading("2. A plain BERT learns the task; routed, it learns it at two widths, and its router who is easy")
    plain, routed = train(arguments, folder, train_set, validation_set, tokenizer)

    heading("3. Budgets, dialled after training")
    calibration_set = make_rows(1000, arguments.seed + 2, tokenizer)
    rows = dial(routed, calibration_set, arguments.budgets)

    heading(f"4. Saved at a budget of {arguments.saved_budget:g}, and loaded back")
    routed.model.set_compute_budget(arguments.saved_budget)
    routed.save_model(str(folder / "model"))
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    classify = pipeline("text-classification", model=loaded, tokenizer=tokenizer, batch_size=8)
    examples = sorted(validation_set.select(range(12)), key=lambda row: row["difficulty"])
    sentences = [row["sentence"] for row in examples]
    with torch.no_grad():
        batch = tokenizer(sentences, padding=True, return_tensors="pt").to(classify.model.device)
        widths = [loaded.config.width_multipliers[index] for index in classify.model(**batch).width_indices.tolist()]
    for row, answer, width in zip(examples, classify(sentences), widths, strict=True):
        print(
            f"  {row['difficulty']}: {answer['label']:<5}{answer['score']:.2f}  at width {width:<6g}{row['sentence']}"
        )

    curve = routed.compute_curve(routed.predict_widths())
    marks = {row["name"]: row for row in rows if row["name"].startswith("width")}
    written = save_curve(curve, str(folder), "accuracy", marks)
    plain_accuracy = plain.evaluate()["eval_accuracy"]
    heading("Summary")
    print_table(rows)
    print(f"{'':2}{'plain BERT':<20}{1.0:>16.2f}{plain_accuracy:>10.3f}")
    print("The plain model trained for as many epochs; the router's own FLOPs count.")
    print(f"written: {folder / 'model'} (at {arguments.saved_budget:g} of full FLOPs), {', '.join(written.values())}")
    print("Any script loads it with an AutoModel class after `import modeling_sharcs`.")
    return {"rows": rows, "plain_accuracy": plain_accuracy}


if __name__ == "__main__":
    run_script(main)
