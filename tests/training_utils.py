# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What the tests of the trainers share: rows of tokens, arguments, and weights to compare."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from torch import nn
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

from modeling_mos import MosSubnetForMaskedLM
from testing_utils import ELASTIC, randomise_, tiny_backbone, tiny_sharcs, tiny_subnet_config, tiny_supernet
from trainers import (
    MaskedLanguageModelingDataset,
    MaskedLMTrainer,
    SharcsTrainer,
    SharcsTrainingArguments,
    SupernetTrainer,
    SupernetTrainingArguments,
)


# Elastic in width, feed-forward width and heads; `ELASTIC` is elastic in depth as well.
WIDTHS = {name: choices for name, choices in ELASTIC.items() if name != "num_hidden_layers"}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def run_worker(main: Callable[[list[str]], None]) -> None:
    """What torchrun starts; threads of its process group may abort an interpreter that ends before they do."""
    main(sys.argv[1:])
    torch.distributed.destroy_process_group()


def make_rows(tokenizer, count: int = 12, seed: int = 0, shortest: int = 4, longest: int = 15) -> datasets.Dataset:
    """Rows of random tokens and unequal lengths, all different, between [CLS] and [SEP]."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        length = generator.randint(shortest, longest)
        words = [generator.randrange(5, len(tokenizer)) for _ in range(length)]
        rows.append([tokenizer.cls_token_id, *words, tokenizer.sep_token_id])
    special = [[1] + [0] * (len(row) - 2) + [1] for row in rows]
    return datasets.Dataset.from_dict({"input_ids": rows, "special_tokens_mask": special})


def make_masked(tokenizer, count: int = 12, seed: int = 0, probability: float = 0.3, mask_seed: int = 1):
    return MaskedLanguageModelingDataset(make_rows(tokenizer, count, seed), tokenizer, mask_seed, probability)


def make_arguments(output_dir, kind=SupernetTrainingArguments, **overrides):
    """
    Plain gradient descent without clipping or schedule, on rows in their order: what a step does to the weights is its
    gradient, and rounding is not blown up as Adam would where gradients vanish.
    """
    values = {
        "output_dir": str(output_dir),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 5,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 11,  # with `ELASTIC`, the random architectures of the first steps have both depths
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(**{**values, **overrides})


def make_supernet(tokenizer, head: str = "masked-lm", seed: int = 0, **overrides):
    values = {"vocab_size": len(tokenizer), "search_space": WIDTHS, **NO_DROPOUT, **overrides}
    return tiny_supernet(head, seed=seed, **values)


def make_bert(tokenizer, head: str = "masked-lm", seed: int = 0, **overrides):
    return tiny_backbone("bert", head, seed, **{"vocab_size": len(tokenizer), **NO_DROPOUT, **overrides})


def make_subnet(tokenizer, seed: int = 0):
    config = tiny_subnet_config(vocab_size=len(tokenizer), **NO_DROPOUT)
    return randomise_(MosSubnetForMaskedLM(config), seed)


def train_supernet(tokenizer, output_dir, model=None, rows: int = 12, resume=None, teacher=None, **overrides):
    """A supernet trained for a few steps; returns the trainer."""
    space = overrides.pop("search_space", WIDTHS)
    model = make_supernet(tokenizer, search_space=space) if model is None else model
    trainer = SupernetTrainer(
        model,
        make_arguments(output_dir, **overrides),
        teacher=teacher,
        train_dataset=make_masked(tokenizer, rows),
        eval_dataset=make_masked(tokenizer, 7, seed=1),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def train_masked_lm(tokenizer, output_dir, model, rows: int = 12, resume=None, **overrides) -> MaskedLMTrainer:
    trainer = MaskedLMTrainer(
        model,
        make_arguments(output_dir, **overrides),
        train_dataset=make_masked(tokenizer, rows),
        eval_dataset=make_masked(tokenizer, 7, seed=1),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# ---- routed encoders ------------------------------------------------------------------------------------------------

# Heads and configurations by the kind of their problem.
PROBLEMS = {
    "single_label_classification": ("sequence-classification", {}),
    "multi_label_classification": ("sequence-classification", {}),
    "regression": ("sequence-classification", {"num_labels": 1}),
    "token_classification": ("token-classification", {}),
    "question_answering": ("question-answering", {}),
}


def make_labelled(
    tokenizer, problem: str = "single_label_classification", count: int = 14, seed: int = 0
) -> datasets.Dataset:
    """Rows of random tokens and unequal lengths, with random targets of a problem."""
    generator = random.Random(seed + 100)
    rows = make_rows(tokenizer, count, seed).remove_columns("special_tokens_mask")
    lengths = [len(row) for row in rows["input_ids"]]
    if problem == "question_answering":
        starts = [generator.randrange(1, length - 1) for length in lengths]
        ends = [generator.randrange(start, length - 1) for start, length in zip(starts, lengths, strict=True)]
        return rows.add_column("start_positions", starts).add_column("end_positions", ends)
    draw = {
        "single_label_classification": lambda length: generator.randrange(3),
        "multi_label_classification": lambda length: [float(generator.random() < 0.4) for _ in range(3)],
        "regression": lambda length: generator.uniform(-2, 3),
        "token_classification": lambda length: [-100] + [generator.choice([0, 1, 2, -100]) for _ in range(length - 1)],
    }[problem]
    return rows.add_column("labels", [draw(length) for length in lengths])


def make_sharcs(tokenizer, problem: str = "single_label_classification", seed: int = 0, **overrides):
    """A routed encoder of two widths whose every parameter is random."""
    head, options = PROBLEMS[problem]
    values = {"vocab_size": len(tokenizer), "width_multipliers": [0.25, 1.0], **options, **NO_DROPOUT, **overrides}
    return tiny_sharcs(head, seed=seed, **values)


def make_sharcs_arguments(output_dir, **overrides) -> SharcsTrainingArguments:
    values = {
        "max_steps": -1,
        "num_train_epochs": 3,
        "learning_rate": 0.02,
        "hardness_window": 1,
        "hardness_intervals": "0.4",
        "train_sampling_strategy": "random",
    }
    return make_arguments(output_dir, SharcsTrainingArguments, **{**values, **overrides})


def make_sharcs_trainer(
    tokenizer,
    output_dir,
    model=None,
    problem: str = "single_label_classification",
    rows: int = 14,
    teacher=None,
    compute_metrics=None,
    **overrides,
) -> SharcsTrainer:
    padding = DataCollatorForTokenClassification if problem == "token_classification" else DataCollatorWithPadding
    return SharcsTrainer(
        make_sharcs(tokenizer, problem) if model is None else model,
        make_sharcs_arguments(output_dir, **overrides),
        teacher=teacher,
        train_dataset=make_labelled(tokenizer, problem, rows),
        eval_dataset=make_labelled(tokenizer, problem, 7, seed=1),
        data_collator=padding(tokenizer),
        compute_metrics=compute_metrics,
    )


# ---- weights and files ----------------------------------------------------------------------------------------------


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def largest_change(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of weights."""
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def folders(path) -> list[str]:
    return sorted(entry.name for entry in Path(path).iterdir() if entry.is_dir())


def record_bars(monkeypatch) -> list:
    """The progress bars that Trainer shows from now on, each with its `total` and the `count` that it reached."""
    bars = []

    class Bar:
        def __init__(self, total, **kwargs):
            self.total, self.count = total, 0
            bars.append(self)

        def update(self, steps):
            self.count += steps

        def close(self):
            pass

    monkeypatch.setattr("transformers.trainer_callback.tqdm", Bar)
    return bars
