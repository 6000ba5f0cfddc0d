# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Routed training against a second implementation, row by row; resumption; what is measured of a routed model."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from modeling_sharcs import SharcsForSequenceClassification, SharcsModel, gradients
from modeling_sharcs.calibration import share_of_full
from testing_utils import assert_close, splitting_price, tiny_sharcs_config
from trainers import SharcsTrainer, save_curve
from trainers.hardness import HardnessHistory, agreement_targets, interval_targets
from trainers.samplers import choose_bucket, plan_epoch
from training_utils import (
    PROBLEMS,
    folders,
    largest_change,
    make_arguments,
    make_bert,
    make_labelled,
    make_sharcs,
    make_sharcs_arguments,
    make_sharcs_trainer,
    record_bars,
    weights_of,
)


THREE, FOUR = [0.25, 0.5, 1.0], [0.25, 0.5, 0.75, 1.0]
each_problem = pytest.mark.parametrize("problem", PROBLEMS)


def accuracy(prediction) -> dict[str, float]:
    kept = prediction.label_ids != -100
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids)[kept].mean())}


class OnStep(TrainerCallback):
    """Calls something after one step, or after each."""

    def __init__(self, step: int | None, call):
        self.step, self.call = step, call

    def on_step_end(self, args, state, control, **kwargs):
        if self.step in (None, state.global_step):
            self.call()


# ---- the same training by hand --------------------------------------------------------------------------------------


class ByHand:
    """
    The published procedure and its options, one row after the other, without padding, batches or hooks. Which rows a
    step trains is taken from the plan, which test_samplers.py tests.
    """

    def __init__(self, model, problem: str, rows, arguments, intervals, teacher=None):
        self.model, self.problem, self.rows, self.arguments, self.teacher = model, problem, rows, arguments, teacher
        self.intervals, self.widths = intervals, model.config.width_multipliers
        self.last = len(self.widths) - 1
        self.scale = float(np.std(rows["labels"])) if problem == "regression" else 1.0
        self.history: list[list] = []  # the scores of each epoch
        self.learning_rates: list[float] = []
        self.plans: list = []

    def targets_of(self, row: int) -> dict[str, torch.Tensor]:
        names = ("start_positions", "end_positions") if self.problem == "question_answering" else ("labels",)
        return {name: torch.tensor([self.rows[row][name]]) for name in names}

    def forward(self, row: int, index: int | None, model=None):
        inputs = {"input_ids": torch.tensor([self.rows[row]["input_ids"]])}
        forced = {} if index is None else {"width": self.widths[index]}
        return (self.model if model is None else model)(**inputs, **forced)

    def loss(self, outputs, targets) -> torch.Tensor:
        smoothing = self.arguments.label_smoothing_factor
        if self.problem == "question_answering":
            ends = (
                F.cross_entropy(outputs[f"{name}_logits"], targets[f"{name}_positions"]) for name in ("start", "end")
            )
            return sum(ends) / 2
        logits, labels = outputs["logits"], targets["labels"]
        if self.problem == "regression":
            return (logits[0, 0] - labels[0].float()) ** 2
        if self.problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels)
        if self.problem == "token_classification":
            return F.cross_entropy(logits[0], labels[0], label_smoothing=smoothing)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def taught(self, outputs, teacher, targets) -> torch.Tensor:
        temperature = self.arguments.distillation_temperature

        def soft(own, given):
            goal = (given.detach() / temperature).softmax(-1)
            return temperature**2 * F.cross_entropy(own / temperature, goal)

        if self.problem == "question_answering":
            return sum(soft(outputs[name], teacher[name]) for name in ("start_logits", "end_logits")) / 2
        own, given = outputs["logits"], teacher["logits"].detach()
        if self.problem == "regression":
            return F.mse_loss(own, given)
        if self.problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(own, given.sigmoid())
        if self.problem == "token_classification":
            labelled = targets["labels"][0] != -100
            return soft(own[0, labelled], given[0, labelled])
        return soft(own, given)

    def confidence(self, outputs, targets) -> float:
        if self.problem == "question_answering":
            log = -sum(
                F.cross_entropy(outputs[f"{name}_logits"], targets[f"{name}_positions"]) for name in ("start", "end")
            )
            return log.exp().item()
        logits, labels = outputs["logits"], targets["labels"]
        if self.problem == "regression":
            return math.exp(-abs(logits.item() - labels.item()) / self.scale)
        if self.problem == "multi_label_classification":
            return (labels * logits.sigmoid() + (1 - labels) * (1 - logits.sigmoid())).mean().item()
        if self.problem == "token_classification":
            pairs = zip(logits[0].softmax(-1), labels[0].tolist(), strict=True)
            return float(np.mean([scores[label].item() for scores, label in pairs if label != -100]))
        return logits.softmax(-1)[0, labels.item()].item()

    def entropy(self, outputs, targets) -> float:
        def of(logits):
            return torch.distributions.Categorical(logits=logits).entropy()

        if self.problem == "question_answering":
            return ((of(outputs["start_logits"]) + of(outputs["end_logits"])) / 2).item()
        logits = outputs["logits"]
        if self.problem == "multi_label_classification":
            return torch.distributions.Bernoulli(logits=logits).entropy().mean().item()
        if self.problem == "token_classification":
            return of(logits[0][targets["labels"][0] != -100]).mean().item()
        return of(logits).item()

    def score(self, outputs, targets) -> float:
        chosen = self.entropy if self.arguments.hardness_signal == "entropy" else self.confidence
        return chosen(outputs, targets)

    def answer(self, outputs, targets) -> dict[str, torch.Tensor]:
        if self.problem == "question_answering":
            return {f"{name}_positions": outputs[f"{name}_logits"].argmax(-1) for name in ("start", "end")}
        logits = outputs["logits"]
        if self.problem == "regression":
            return {"labels": logits[0]}
        if self.problem == "multi_label_classification":
            return {"labels": (logits > 0).float()}
        if self.problem == "token_classification":
            return {"labels": torch.where(targets["labels"] == -100, -100, logits.argmax(-1))}
        return {"labels": logits.argmax(-1)}

    def distance_to_widest(self, row: int, index: int) -> torch.Tensor:
        """Token by token, between normalised states after each routed layer."""
        inputs = {"input_ids": torch.tensor([self.rows[row]["input_ids"]]), "output_hidden_states": True}
        own = self.model(**inputs, width=self.widths[index]).hidden_states
        with torch.no_grad():
            given = self.model(**inputs, width=1.0).hidden_states
        distances = []
        for layer in range(self.model.config.router_layer + 1, self.model.config.num_hidden_layers + 1):
            for state, target in zip(own[layer][0], given[layer][0], strict=True):
                target = target[: len(state)]
                state, target = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() for x in (state, target))
                distances.append((state - target).square().mean())
        return torch.stack(distances).mean()

    def router_targets(self) -> torch.Tensor | None:
        window = self.arguments.hardness_window
        if len(self.history) < window:
            return None
        scores = torch.tensor(self.history[-window:])
        if self.arguments.hardness_source == "agreement":
            return agreement_targets(scores.transpose(0, 1), self.intervals)
        return interval_targets(scores.T, self.intervals)

    def row_loss(self, row: int, index: int, targets, router_targets) -> tuple[torch.Tensor, float]:
        arguments = self.arguments
        outputs = self.forward(row, index)
        loss = self.loss(outputs, targets)
        if arguments.distillation_weight and (self.teacher is not None or index < self.last):
            with torch.no_grad():
                given = self.forward(row, self.last) if self.teacher is None else self.forward(row, None, self.teacher)
            taught = self.taught(outputs, given, targets)
            loss = arguments.hard_label_weight * loss + arguments.distillation_weight * taught
        loss = arguments.task_loss_weight * loss
        if arguments.hidden_states_weight and index < self.last:
            loss = loss + arguments.hidden_states_weight * self.distance_to_widest(row, index)
        if router_targets is not None:
            goal = router_targets[row].float()
        elif arguments.router_loss_before_targets:
            goal = F.one_hot(torch.tensor(self.last), len(self.widths)).float()
        else:
            goal = None
        if goal is not None:
            router_loss = F.binary_cross_entropy_with_logits(outputs.router_logits[0], goal)
            loss = loss + arguments.router_loss_weight * router_loss
        weights = arguments.width_loss_weights or [1.0] * len(self.widths)
        return weights[index] * loss, self.score(outputs, targets)

    @torch.no_grad()
    def scores_in_evaluation(self, buckets: torch.Tensor) -> list:
        self.model.eval()
        found = []
        for row in range(len(self.rows)):
            targets = self.targets_of(row)
            if self.arguments.hardness_source == "evaluation":
                found.append(self.score(self.forward(row, int(buckets[row])), targets))
                continue
            answer = self.answer(self.forward(row, self.last), targets)
            found.append([self.confidence(self.forward(row, index), answer) for index in range(len(self.widths))])
        self.model.train()
        return found

    def run(self) -> "ByHand":
        arguments, count = self.arguments, len(self.rows)
        num_steps = math.ceil(count / arguments.per_device_train_batch_size)
        accumulated = arguments.gradient_accumulation_steps
        self.model.train()
        for epoch in range(int(arguments.num_train_epochs)):
            targets = self.router_targets()
            buckets = torch.full((count,), self.last)
            if targets is not None and not arguments.train_every_width:
                buckets = choose_bucket(targets, arguments.seed, epoch)
            members = F.one_hot(buckets, self.last + 1).bool()
            plan = plan_epoch(
                torch.ones_like(members) if arguments.train_every_width else members,
                num_steps,
                arguments.seed,
                epoch,
                arguments.repeat_smaller_buckets,
                arguments.width_batches == "alternating",
            )
            self.plans.append(plan)
            scores = [math.nan] * count
            for first in range(0, num_steps, accumulated):
                steps = plan[first : first + accumulated]
                self.model.zero_grad()
                for step in steps:
                    rows_in_step = sum(map(len, step.values()))
                    for index in sorted(step):
                        for row in step[index]:
                            loss, scores[row] = self.row_loss(row, index, self.targets_of(row), targets)
                            (loss / rows_in_step / len(steps)).backward()
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        if parameter.grad is not None:
                            parameter -= arguments.learning_rate * parameter.grad
            if arguments.hardness_source != "training":
                scores = self.scores_in_evaluation(buckets)
            self.history.append(scores)
        return self

    def assert_is(self, trainer, atol: float = 2e-5) -> None:
        history = torch.tensor(self.history)
        history = history.unsqueeze(-1) if history.dim() == 2 else history
        if self.arguments.hardness_source != "training":
            history = history[:-1]  # the last epoch's scores would teach nobody
        assert_close(trainer.history.epochs.transpose(0, 1), history, atol=atol)
        assert largest_change(weights_of(trainer.model), weights_of(self.model)) < atol


def train_both(tokenizer, path, problem="single_label_classification", teacher=None, rows=10, model=None, **options):
    """A trainer that has trained, and the same by hand."""
    configuration = {} if model is None else model
    trainer = make_sharcs_trainer(
        tokenizer, path, make_sharcs(tokenizer, problem, **configuration), problem, rows, teacher, **options
    )
    trainer.train()
    by_hand = ByHand(
        make_sharcs(tokenizer, problem, **configuration),
        problem,
        make_labelled(tokenizer, problem, rows),
        trainer.args,
        trainer.intervals,
        teacher,
    ).run()
    by_hand.assert_is(trainer)
    return trainer, by_hand


def widths_trained(by_hand: ByHand) -> list[dict[int, int]]:
    """For each epoch: how many rows each width trained."""
    found = []
    for plan in by_hand.plans:
        found.append({index: sum(len(step.get(index, [])) for step in plan) for index in range(by_hand.last + 1)})
    return found


@each_problem
@pytest.mark.parametrize("source", ["training", "evaluation", "agreement"])
def test_training_is_the_one_by_hand(tiny_tokenizer, tmp_path, problem, source):
    intervals = {"regression": "0.3", "question_answering": "0.012", "multi_label_classification": "0.5"}
    if source == "agreement":
        intervals["token_classification"] = "0.265"
    trainer, by_hand = train_both(
        tiny_tokenizer,
        tmp_path,
        problem,
        hardness_source=source,
        hardness_intervals=intervals.get(problem, "0.4"),
        distillation_weight=0.5,
    )
    phases = widths_trained(by_hand)
    assert phases[0] == {0: 0, 1: 10}
    assert 0 < phases[1][0] < 10 or 0 < phases[2][0] < 10  # both widths were trained
    assert trainer.model.config.router_price == 0


DEFAULTS: dict = {"num_train_epochs": 3, "hardness_window": 1}
OPTIONS = {
    "entropy": {"hardness_signal": "entropy", "hardness_intervals": "0.9"},
    "evaluation": {"hardness_source": "evaluation", "hardness_intervals": "0.45"},
    "agreement": {"hardness_source": "agreement"},
    "window": {"hardness_window": 2},
    "intervals": {"hardness_intervals": "0.6"},
    "every_width": {"train_every_width": True},
    "repeat": {"repeat_smaller_buckets": True},
    "alternating": {"width_batches": "alternating"},
    "router_before": {"router_loss_before_targets": True},
    "task_weight": {"task_loss_weight": 0.3},
    "router_weight": {"router_loss_weight": 0.3},
    "width_weights": {"width_loss_weights": [0.5, 2.0]},
    "distillation": {"distillation_weight": 0.7},
    "hidden_states": {"hidden_states_weight": 0.7},
    "seed": {"seed": 12},
    "accumulation": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2},
    "smoothing": {"label_smoothing_factor": 0.2},
}
# Options of options, and what they are compared with.
FURTHER = {
    "hard_weight": ("distillation", {"hard_label_weight": 0.2}),
    "temperature": ("distillation", {"distillation_temperature": 3.0}),
    "every_width_distilled": ("every_width", {"distillation_weight": 0.7}),
    "every_width_hidden_states": ("every_width", {"hidden_states_weight": 0.7}),
    "every_width_repeated_window": ("every_width", {"hardness_window": 2}),
}
_trained: dict[str, dict[str, torch.Tensor]] = {}


def trained_with(tokenizer, path, name: str) -> dict[str, torch.Tensor]:
    """Weights after a training with an option, which is that by hand."""
    if name not in _trained:
        base, extra = FURTHER.get(name, (None, OPTIONS.get(name, {})))
        options = {**DEFAULTS, **(OPTIONS[base] if base else {}), **extra}
        trainer, _ = train_both(tokenizer, path / name, **options)
        _trained[name] = weights_of(trainer.model)
    return _trained[name]


@pytest.mark.parametrize("option", [*OPTIONS, *FURTHER])
def test_every_option_does_what_it_says(tiny_tokenizer, tmp_path, option):
    base = FURTHER[option][0] if option in FURTHER else "defaults"
    found = trained_with(tiny_tokenizer, tmp_path, option)
    assert largest_change(found, trained_with(tiny_tokenizer, tmp_path, base)) > 1e-4


@pytest.mark.parametrize("widths, source", [(THREE, "training"), (THREE, "agreement"), (FOUR, "evaluation")])
def test_more_widths(tiny_tokenizer, tmp_path, widths, source):
    intervals = "0.6"
    if source == "agreement":
        intervals = str(tmp_path / "intervals.yaml")
        Path(intervals).write_text("0.25: [0.3, 1]\n0.5: [0.15, 1]\n1.0: [0, 1]\n")
    options = {"hardness_source": source, "hardness_intervals": intervals, "distillation_weight": 0.5}
    model = {"width_multipliers": widths}
    trainer, by_hand = train_both(tiny_tokenizer, tmp_path, rows=13, model=model, **options)
    trained = [sum(epoch[index] for epoch in widths_trained(by_hand)) for index in range(len(widths))]
    assert sum(count > 0 for count in trained) > 2
    metrics = trainer.evaluate()
    assert {f"eval_rows_at_{width:g}" for width in widths} <= metrics.keys()


@pytest.mark.parametrize("entry", ["pooling", "projection"])
def test_other_entries(tiny_tokenizer, tmp_path, entry):
    train_both(tiny_tokenizer, tmp_path, rows=8, model={"entry": entry}, num_train_epochs=2)


@pytest.mark.parametrize("every", [False, True])
def test_outside_teacher(tiny_tokenizer, tmp_path, every):
    teacher = make_bert(tiny_tokenizer, "sequence-classification", seed=8)
    before = weights_of(teacher)
    options = {"distillation_weight": 0.7, "hard_label_weight": 0.2, "train_every_width": every, "num_train_epochs": 2}
    trainer, _ = train_both(tiny_tokenizer, tmp_path, teacher=teacher, rows=8, **options)
    assert largest_change(before, weights_of(teacher)) == 0
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    # All paths are taught, the widest too.
    assert "width_1_distillation" in trainer.state.log_history[0]


# ---- phases, passes, padding ----------------------------------------------------------------------------------------


def test_before_targets_a_run_is_ordinary_fine_tuning(tiny_tokenizer, tmp_path):
    backbone = make_bert(tiny_tokenizer, "sequence-classification", intermediate_size=36)
    routed = SharcsForSequenceClassification.from_backbone(
        backbone, width_multipliers=[0.25, 1.0], router_layer=1, router_hidden_size=9, entry="projection"
    )
    untouched = {name: value for name, value in weights_of(routed).items() if "router" in name or "entry" in name}
    assert untouched
    options = {"num_train_epochs": 2, "hardness_window": 1, "weight_decay": 0.1, "optim": "adamw_torch"}
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path / "routed", routed, rows=12, **options)
    after = {}
    trainer.add_callback(OnStep(3, lambda: after.update(weights_of(routed))))
    trainer.train()
    plan = plan_epoch(torch.tensor([[False, True]] * 12), 3, seed=11, epoch=0)

    class Ordered(Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            return [row for step in plan for row in step[1]]

    plain = Ordered(
        backbone,
        make_arguments(tmp_path / "plain", optim="adamw_torch", weight_decay=0.1, learning_rate=0.02),
        train_dataset=make_labelled(tiny_tokenizer, count=12),
        data_collator=trainer.data_collator,
    )
    plain.train()
    for own, given in zip(trainer.state.log_history[:3], plain.state.log_history[:3], strict=True):
        assert own["loss"] == pytest.approx(given["loss"], rel=1e-4)
        assert own["width_1_loss"] == pytest.approx(own["loss"], rel=1e-5)
        assert own["grad_norm"] == pytest.approx(given["grad_norm"], rel=1e-4)
        assert not any("0.25" in name or "router" in name for name in own)
    # What nothing trains yet is neither decayed nor moved.
    for name, value in untouched.items():
        assert torch.equal(after[name], value), name
    assert largest_change({name: after[name] for name in untouched}, {n: weights_of(routed)[n] for n in untouched}) > 0


def test_steps_grouped_by_length(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, rows=60, train_sampling_strategy="group_by_length")
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    assert len(set(lengths)) > 3

    def padding(trainer) -> int:
        trainer.get_train_dataloader()
        trainer._begin_epoch(0)
        rows = [[lengths[row] for rows in step.values() for row in rows] for step in trainer._sampler.plan]
        return sum(max(row) * len(row) - sum(row) for row in rows)

    usual = make_sharcs_trainer(tiny_tokenizer, tmp_path, rows=60)
    assert padding(trainer) < padding(usual) / 2
    trainer.train()


def steps_of(trainer, every: bool = False) -> list[dict]:
    """The batches of an epoch in which each width has half of the rows, or all."""
    loader = trainer.get_train_dataloader()
    trainer._begin_epoch(0)
    members = torch.ones(len(trainer.train_dataset), 2, dtype=torch.bool)
    if not every:
        members[::2, 0] = False
        members[1::2, 1] = False
    trainer._targets = members
    trainer._sampler.plan = plan_epoch(members, len(loader), 0, 0)
    return list(loader)


def gradients_of(trainer, batch, **attributes) -> dict[str, torch.Tensor]:
    for name, value in attributes.items():
        setattr(trainer, name, value)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, {name: value for name, value in batch.items()})
    return {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}


def test_large_parts_are_run_in_chunks(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, rows=13, per_device_train_batch_size=13)
    (batch,) = steps_of(trainer)
    sizes = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    whole = gradients_of(trainer, batch)
    assert sizes == [7, 6] or sizes == [6, 7]
    sizes.clear()
    chunked = gradients_of(trainer, batch, _train_batch_size=3)
    assert sum(sizes) == 13 and max(sizes) <= 3 and len(sizes) == 5
    assert largest_change(whole, chunked) < 1e-5


@each_problem
def test_padding_does_not_matter(tiny_tokenizer, tmp_path, problem):
    options = {"per_device_train_batch_size": 6, "distillation_weight": 0.5}
    trainer = make_sharcs_trainer(
        tiny_tokenizer, tmp_path, make_sharcs(tiny_tokenizer, problem), problem, rows=6, **options
    )
    (batch,) = steps_of(trainer)
    tokens = batch["input_ids"].shape[1]
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    expected = gradients_of(trainer, batch)
    assert max(seen) <= tokens
    padded = dict(batch)
    for name, value in batch.items():
        if name != "routing" and value.dim() == 2 and value.shape[1] == tokens:
            padded[name] = F.pad(value, (0, 9), value=-100 if name == "labels" else 0)
    seen.clear()
    assert largest_change(gradients_of(trainer, padded), expected) < 1e-5
    assert max(seen) <= tokens  # the new padding was cut off again


def test_a_router_that_reads_padding_is_given_the_collators(tiny_tokenizer, tmp_path):
    """As published: the same rows with more padding are other rows to the router, and to nothing before it."""
    model = make_sharcs(tiny_tokenizer, router_pooling="all")
    options = {"per_device_train_batch_size": 6, "router_loss_before_targets": True}
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, model, rows=6, **options)
    (batch,) = steps_of(trainer)
    padded = {name: value if name in ("routing", "labels") else F.pad(value, (0, 9)) for name, value in batch.items()}
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found, expected = gradients_of(trainer, padded), gradients_of(trainer, batch)
    tokens = batch["input_ids"].shape[1]
    assert set(seen) == {tokens, tokens + 9}
    moved = {name: (found[name] - expected[name]).abs().max() for name in expected}
    assert max(change for name, change in moved.items() if "router" in name) > 1e-4
    assert max(change for name, change in moved.items() if name.startswith("classifier")) < 1e-5


def test_padding_of_a_batch_does_not_change_scores(tiny_tokenizer, tmp_path):
    """Of spans, too, whose probabilities are shares of a whole row, also in evaluation."""
    for problem in ("question_answering", "token_classification"):
        trainers = [
            make_sharcs_trainer(tiny_tokenizer, tmp_path, problem=problem, per_device_eval_batch_size=size)
            for size in (1, 7)
        ]
        found = []
        for trainer in trainers:
            trainer.get_train_dataloader()
            trainer.args.hardness_source = "agreement"
            trainer.history = HardnessHistory(14, 2)
            found.append(trainer._score_training_set())
        assert_close(found[0], found[1])
        evaluations = [trainer.evaluate() for trainer in trainers]
        for name, value in evaluations[0].items():
            if "runtime" not in name and "second" not in name:
                assert evaluations[1][name] == pytest.approx(value, rel=1e-4), name


def test_labels_as_many_as_tokens_are_left_whole(tiny_tokenizer, tmp_path):
    problem = "multi_label_classification"
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, problem=problem)
    inputs = {
        "input_ids": torch.tensor([[3, 4, 0], [5, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
        "labels": torch.tensor([[1.0, 0, 1], [0, 1, 1]]),
    }
    taken = trainer._take_rows(inputs, torch.tensor([1]))
    assert taken["input_ids"].tolist() == [[5]] and taken["labels"].tolist() == [[0, 1, 1]]


# Of the model, and of its first layer: the samples of a step go through what all widths have in common once, unless
# they are more than were asked for at a time.
@pytest.mark.parametrize("every, size, forwards, fronts", [(True, 4, 2, 1), (False, 4, 3, 1), (False, 3, 3, 2)])
def test_nothing_is_run_again_for_the_same_rows(tiny_tokenizer, tmp_path, every, size, forwards, fronts):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, rows=4, distillation_weight=0.5)
    (batch,) = steps_of(trainer, every)
    calls = count_calls(trainer)
    gradients_of(trainer, batch, _train_batch_size=size)
    assert calls == {"model": forwards, "front": fronts}


@each_problem
@pytest.mark.parametrize("how", ["plain", "hidden states", "frozen", "checkpointing"])
def test_one_front_for_all_widths_gives_the_gradients_of_each_its_own(tiny_tokenizer, tmp_path, problem, how):
    options = {"per_device_train_batch_size": 6, "distillation_weight": 0.5, "router_loss_before_targets": True}
    model, frozen = make_sharcs(tiny_tokenizer, problem), how == "frozen"
    if frozen:
        for part in (model.base_model.embeddings, *model.base_model.layers[: model.config.router_layer]):
            part.requires_grad_(False)
    if how == "hidden states":
        options["hidden_states_weight"] = 0.5
    if how == "checkpointing":
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, model, problem, rows=6, **options)
    (batch,) = steps_of(trainer)
    assert trainer._may_share_front(model, batch["routing"])
    shared = gradients_of(trainer, batch)
    own = gradients_of(trainer, batch, _may_share_front=lambda *args: False)
    assert shared.keys() == own.keys()
    assert any("embeddings" in name for name in own) != frozen
    assert largest_change(shared, own) < 1e-5


def test_a_shared_front_is_run_as_the_rest(tiny_tokenizer, tmp_path, monkeypatch):
    """In mixed precision, and with its gradients in place."""
    model, seen, calls = make_sharcs(tiny_tokenizer), Counter(), []
    backward = gradients.EmbedInPlace.backward
    monkeypatch.setattr(gradients.EmbedInPlace, "backward", lambda *args: calls.append(1) or backward(*args))
    for index, layer in enumerate(model.base_model.layers):
        hook = lambda module, args, output, index=index: seen.update([(index, output.dtype)])  # noqa: E731
        layer.attention.query.register_forward_hook(hook)
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, model, rows=4, bf16=True)
    (batch,) = steps_of(trainer)
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    gradients_of(trainer, batch)
    front = model.config.router_layer
    assert seen == {
        (index, torch.bfloat16): 1 if index < front else 2 for index in range(len(model.base_model.layers))
    }
    assert len(calls) == 1


@pytest.mark.parametrize(
    "options, shared, asked",
    [
        ({}, True, [False] * 2),
        ({}, False, [False] * 2),
        # Narrow rows learn from their widest path, which goes on from their front.
        ({"distillation_weight": 0.5}, True, [False] * 3),
        ({"distillation_weight": 0.5}, False, [False, True, False]),
        ({"hidden_states_weight": 0.5}, True, [True] * 3),
    ],
)
def test_the_last_layer_ends_early(tiny_tokenizer, tmp_path, options, shared, asked):
    """Passes of classifiers ask for hidden states, which are those of whole layers, only where somebody reads them."""
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, rows=4, **options)
    (batch,) = steps_of(trainer)
    outputs = []
    trainer.model.base_model.register_forward_hook(lambda module, args, output: outputs.append(output))
    gradients_of(trainer, batch, **({} if shared else {"_may_share_front": lambda *args: False}))
    assert [output.hidden_states is not None for output in outputs] == asked
    assert {output.last_hidden_state.shape[1] for output in outputs} == {1}


def test_rows_of_padding_only(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, rows=4)
    (batch,) = steps_of(trainer)
    tokens, seen = batch["input_ids"].shape[1], []
    batch |= {name: F.pad(batch[name], (0, 5)) for name in ("input_ids", "attention_mask")}
    batch["attention_mask"][batch["routing"]["width_index"] == 0] = 0
    first = trainer.model.base_model.layers[0]
    handle = first.register_forward_hook(lambda module, args, output: seen.append(output[0].shape[1]))
    shared = gradients_of(trainer, batch)
    handle.remove()
    assert len(seen) == 1 and seen[0] <= tokens  # the padding behind all rows was cut off
    own = gradients_of(trainer, batch, _may_share_front=lambda *args: False)
    assert largest_change(shared, own) < 1e-5


def test_a_wrapped_model_sees_every_pass(tiny_tokenizer, tmp_path, monkeypatch):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, rows=4)
    (batch,) = steps_of(trainer)
    assert trainer._may_share_front(trainer.model, batch["routing"])
    assert not trainer._may_share_front(torch.nn.DataParallel(trainer.model), batch["routing"])
    for module in (trainer.model, trainer.model.base_model):
        handle = module.register_forward_pre_hook(lambda *args: None)  # which might change the inputs
        assert not trainer._may_share_front(trainer.model, batch["routing"])
        handle.remove()
    assert trainer._may_share_front(trainer.model, batch["routing"])
    monkeypatch.setattr(trainer.accelerator.state, "distributed_type", DistributedType.FSDP)
    assert not trainer._may_share_front(trainer.model, batch["routing"])


def test_every_width_is_scored_and_evaluated_behind_one_front(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(
        tiny_tokenizer, tmp_path, rows=8, hardness_source="agreement", per_device_eval_batch_size=4
    )
    trainer.get_train_dataloader()
    calls = count_calls(trainer)
    trainer._score_training_set()
    assert calls == {"model": 4, "front": 2}
    trainer.predict_widths(trainer.train_dataset)
    assert calls == {"model": 8, "front": 4}


def count_calls(trainer) -> Counter:
    calls = Counter()
    # After it: what may change a model's inputs has every pass run as a whole.
    trainer.model.register_forward_hook(lambda *_: calls.update(["model"]))
    trainer.model.base_model.layers[0].register_forward_pre_hook(lambda *_: calls.update(["front"]))
    return calls


def test_the_logged_parts_make_up_the_loss(tiny_tokenizer, tmp_path):
    weights = {"distillation_weight": 0.3, "hidden_states_weight": 0.6, "router_loss_weight": 0.8}
    trainer, _ = train_both(tiny_tokenizer, tmp_path, train_every_width=True, **weights)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    for step in steps:
        narrow = step["width_0.25_loss"] + 0.3 * step["width_0.25_distillation"]
        narrow += 0.6 * step["width_0.25_hidden_states"]
        expected = (narrow + step["width_1_loss"]) / 2 + 0.8 * step.get("router_loss", 0.0)
        assert step["loss"] == pytest.approx(expected, rel=1e-3)
    assert "router_loss" in steps[-1] and "router_loss" not in steps[0]


# ---- epochs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"repeat_smaller_buckets": True}, {"width_batches": "alternating"}], ids=str)
def test_every_epoch_has_as_many_steps_and_the_schedule_ends_at_zero(tiny_tokenizer, tmp_path, options):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, lr_scheduler_type="linear", **options)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 12
    assert trainer.lr_scheduler.get_last_lr()[0] == 0
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.02 * (12 - step) / 12 for step in range(12)])
    shares = [entry for entry in trainer.state.log_history if "share_of_targets_0.25" in entry]
    assert len(shares) == 2 and [entry["epoch"] for entry in shares] == [1, 2]


@pytest.mark.parametrize("window", [1, 2])
def test_routing_begins_with_targets(tiny_tokenizer, tmp_path, window, caplog):
    logging.warning_once.cache_clear()
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, hardness_window=window)
    prices = []
    trainer.add_callback(OnStep(None, lambda: prices.append(trainer.model.config.router_price)))
    trainer.train()
    assert prices == [None] * 4 * window + [0.0] * 4 * (3 - window)
    assert trainer.history.num_epochs == 3
    assert "all rows take the widest path" not in caplog.text  # every pass has a width


def test_widths_that_no_sample_asks_for_are_named(tiny_tokenizer, tmp_path, caplog):
    options = {"num_train_epochs": 3, "hardness_window": 1}
    make_sharcs_trainer(tiny_tokenizer, tmp_path / "none", hardness_intervals="0.01", **options).train()
    # Once, though two epochs have none.
    (record,) = [record for record in caplog.records if "no training sample belongs to the widths" in record.message]
    assert "widths 1: the router" in record.message and "move `hardness_intervals`" in record.message
    caplog.clear()
    make_sharcs_trainer(tiny_tokenizer, tmp_path / "some", hardness_intervals="0.4", **options).train()
    assert not [record for record in caplog.records if "no training sample" in record.message]


def test_a_price_that_is_set_stays_and_an_untaught_router_gets_none(tiny_tokenizer, tmp_path):
    model = make_sharcs(tiny_tokenizer, router_price=0.7)
    make_sharcs_trainer(tiny_tokenizer, tmp_path, model, num_train_epochs=2).train()
    assert model.config.router_price == 0.7
    model = make_sharcs(tiny_tokenizer)
    before = weights_of(model)
    make_sharcs_trainer(tiny_tokenizer, tmp_path, model, num_train_epochs=2, router_loss_weight=0.0).train()
    assert model.config.router_price is None
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items() if "router" in name)


@pytest.mark.parametrize("source", ["training", "evaluation"])
def test_nothing_reseeds_the_global_generators(tiny_tokenizer, tmp_path, monkeypatch, source):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, num_train_epochs=2, hardness_source=source)

    def refuse(*args):
        raise AssertionError("a global generator was reseeded")

    for module, name in ((torch, "manual_seed"), (torch.random, "manual_seed"), (random, "seed"), (np.random, "seed")):
        monkeypatch.setattr(module, name, refuse)
    trainer.train()
    before = torch.get_rng_state()
    trainer._buckets = torch.ones(14, dtype=torch.long)
    trainer.history = HardnessHistory(14)
    trainer._score_training_set()
    trainer._begin_epoch(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_bf16(tiny_tokenizer, tmp_path):
    single = make_sharcs_trainer(tiny_tokenizer, tmp_path / "single")
    half = make_sharcs_trainer(tiny_tokenizer, tmp_path / "half", bf16=True)
    for trainer in (single, half):
        trainer.train()
    assert_close(half.history.epochs[:, 0], single.history.epochs[:, 0], atol=0.05)
    assert half.history.epochs.dtype == torch.float32
    assert 0 < largest_change(weights_of(half.model), weights_of(single.model)) < 0.1


@pytest.mark.parametrize("options", [{}, {"bf16_full_eval": True}], ids=str)
@pytest.mark.parametrize("every", [True, False])
def test_all_in_bf16(tiny_tokenizer, tmp_path, options, every):
    model = make_sharcs(tiny_tokenizer)
    if not options:
        model = model.to(torch.bfloat16)
    trainer = make_sharcs_trainer(
        tiny_tokenizer,
        tmp_path,
        model,
        bf16=True,
        train_every_width=every,
        distillation_weight=0.5,
        hardness_source="agreement",
        num_train_epochs=2,
        hardness_window=1,
        **options,
    )
    assert np.isfinite(trainer.train().training_loss) and np.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("source", ["training", "evaluation", "agreement"])
def test_a_diverged_run_keeps_its_good_checkpoint(tiny_tokenizer, tmp_path, source):
    trainer = make_saving(
        tiny_tokenizer, tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1, hardness_source=source
    )
    broken = trainer.model.classifier.dense.weight

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                broken.data[0, 0] = math.nan

    trainer.add_callback(Break())
    with pytest.raises(ValueError, match="Training has diverged: 1 of .* weights .*classifier.dense.weight .*-2'"):
        trainer.train()
    assert folders(tmp_path) == ["checkpoint-2"]


def test_divergence_in_the_last_step_is_noticed(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, hardness_source="evaluation")

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == state.max_steps:
                trainer.model.classifier.out_proj.bias.data[:] = math.inf

    trainer.add_callback(Break())
    with pytest.raises(ValueError, match="Training has diverged: .* or clip gradients, and start again"):
        trainer.train()


def test_diverged_scores_stop_the_run(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, learning_rate=1e30)
    with pytest.raises(
        ValueError, match="have no finite score in epoch 0 .* training has diverged; lower the learning"
    ):
        trainer.train()


def test_workers_and_labels_by_another_name(tiny_tokenizer, tmp_path):
    plain = make_sharcs_trainer(tiny_tokenizer, tmp_path / "plain", num_train_epochs=2)
    other = make_sharcs_trainer(tiny_tokenizer, tmp_path / "other", num_train_epochs=2, dataloader_num_workers=1)
    other.train_dataset = other.train_dataset.rename_column("labels", "label").add_column("text", ["a"] * 14)
    for trainer in (plain, other):
        trainer.train()
    assert largest_change(weights_of(plain.model), weights_of(other.model)) == 0


# ---- resumption -----------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def make_saving(tokenizer, path, **overrides) -> SharcsTrainer:
    """Three epochs of three steps, with everything that a checkpoint has to remember."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    options = {
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "save_strategy": "steps",
        "save_steps": 1,
        **overrides,
    }
    return make_sharcs_trainer(tokenizer, path, make_sharcs(tokenizer, **dropout), rows=10, **options)


SOURCES = ("training", "evaluation", "agreement")


@pytest.fixture(scope="module")
def straight(tiny_tokenizer, tmp_path_factory):
    """Uninterrupted runs, by source of hardness."""
    trainers = {}
    for source in SOURCES:
        trainers[source] = make_saving(tiny_tokenizer, tmp_path_factory.mktemp(source), hardness_source=source)
        trainers[source].train()
        assert trainers[source].state.global_step == 9
    return trainers


def assert_same_run(found: SharcsTrainer, expected: SharcsTrainer) -> None:
    assert found.state.global_step == 9
    assert largest_change(weights_of(found.model), weights_of(expected.model)) == 0
    assert torch.equal(found.history.epochs, expected.history.epochs)
    assert found.model.config.router_price == expected.model.config.router_price == 0


# In the middle of an epoch and at its end, before and after there are targets.
KILLS = [("steps", 2, 1), ("steps", 4, 3), ("steps", 6, 5), ("steps", 7, 6), ("epoch", 5, 3), ("epoch", 8, 6)]


@pytest.mark.parametrize(
    "source, strategy, killed_at, resumed_from",
    [("training", *kill) for kill in KILLS] + [(source, *kill) for source in SOURCES[1:] for kill in KILLS[2:5]],
)
def test_killed_run_continues_as_if_it_had_not_been(
    tiny_tokenizer, tmp_path, straight, source, strategy, killed_at, resumed_from
):
    options = {"hardness_source": source, "save_strategy": strategy}
    killed = make_saving(tiny_tokenizer, tmp_path, **options)

    def kill():
        raise Killed

    killed.add_callback(OnStep(killed_at, kill))
    with pytest.raises(Killed):
        killed.train()
    checkpoint = get_last_checkpoint(tmp_path)
    assert checkpoint.endswith(f"checkpoint-{resumed_from}")
    resumed = make_saving(tiny_tokenizer, tmp_path, **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_run(resumed, straight[source])


def test_a_finished_run_given_again_stays_as_it_is(tiny_tokenizer, straight):
    done = straight["training"]
    again = make_saving(tiny_tokenizer, done.args.output_dir)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 9
    assert largest_change(weights_of(again.model), weights_of(done.model)) == 0
    # The router has been taught, and is asked.
    metrics, expected = again.evaluate(), done.evaluate()
    assert metrics["eval_rows_at_0.25"] == expected["eval_rows_at_0.25"]
    assert again.model.config.router_price == 0


def test_a_run_with_accumulation_continues(tiny_tokenizer, tmp_path):
    """Steps of an epoch that the accumulation does not divide."""
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    whole = make_saving(tiny_tokenizer, tmp_path / "whole", **options)
    whole.train()
    resumed = make_saving(tiny_tokenizer, tmp_path / "whole", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("source", SOURCES[1:])
def test_a_finished_run_goes_on_for_more_epochs(tiny_tokenizer, tmp_path, source):
    """Whose last scores nobody had asked for until then."""
    options = {"hardness_source": source, "lr_scheduler_type": "constant", "save_strategy": "epoch"}
    whole = make_saving(tiny_tokenizer, tmp_path / "whole", **options)
    whole.train()
    make_saving(tiny_tokenizer, tmp_path / "parts", **options, num_train_epochs=2).train()
    resumed = make_saving(tiny_tokenizer, tmp_path / "parts", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-6"))
    assert_same_run(resumed, whole)


SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from transformers import BertTokenizer
from test_sharcs_trainer import OnStep, make_saving
trainer = make_saving(BertTokenizer.from_pretrained(sys.argv[1]), sys.argv[2])
trainer.add_callback(OnStep(6, lambda: time.sleep(600)))
trainer.train()
"""


def test_sigkill(tiny_tokenizer, tiny_tokenizer_dir, tmp_path, straight):
    tests = Path(__file__).resolve().parent
    script = SCRIPT.format(tests=str(tests), root=str(tests.parent))
    command = [sys.executable, "-c", script, str(tiny_tokenizer_dir), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "checkpoint-5").is_dir():
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # Another process goes on with what that one left.
    again = make_saving(tiny_tokenizer, tmp_path)
    again.train(resume_from_checkpoint=get_last_checkpoint(tmp_path))
    assert_same_run(again, straight["training"])


def test_checkpoints_without_a_history_have_a_sentence(tiny_tokenizer, tmp_path):
    make_saving(tiny_tokenizer, tmp_path).train()
    checkpoint = tmp_path / "checkpoint-5"
    assert (checkpoint / "hardness.safetensors").is_file()
    # As another trainer would have written it.
    os.remove(checkpoint / "hardness.safetensors")
    os.remove(checkpoint / "checksums.json")
    message = (
        "no hardness history .*checkpoint-5/hardness.safetensors; a checkpoint written with save_only_model has none"
    )
    with pytest.raises(ValueError, match=message):
        make_saving(tiny_tokenizer, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    message = "is about 10 samples with 1 scores each, this run has 10 with 2"
    with pytest.raises(ValueError, match=message):
        other = make_saving(tiny_tokenizer, tmp_path, hardness_source="agreement")
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_best_checkpoint_is_one_with_a_taught_router(tiny_tokenizer, tmp_path):
    trainer = make_saving(
        tiny_tokenizer,
        tmp_path,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        save_total_limit=1,
    )
    # Before there are targets all rows take the widest path, and a router that nobody taught would be loaded with it.
    script = {3: 1.0, 6: 2.0, 9: 3.0}
    trainer.evaluate = lambda **kwargs: {"eval_loss": script[trainer.state.global_step]}
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-6"
    assert folders(tmp_path) == ["checkpoint-6"]


# ---- evaluation -----------------------------------------------------------------------------------------------------


def evaluated(tokenizer, path, problem, widths=THREE, price: float | None = None, **options) -> SharcsTrainer:
    """A trainer whose model sends the rows of its evaluation set to several widths."""
    # Weights under which some rows get the same answer from two paths, and others do not.
    seed = 9 if problem == "question_answering" else 4
    model = make_sharcs(tokenizer, problem, seed=seed, width_multipliers=widths)
    metrics = accuracy if problem in ("single_label_classification", "token_classification") else None
    trainer = make_sharcs_trainer(tokenizer, path, model, problem, compute_metrics=metrics, **options)
    batch = (
        trainer.data_collator([{"input_ids": ids} for ids in trainer.eval_dataset["input_ids"]])
        if (problem != "token_classification")
        else trainer.data_collator([dict(row) for row in trainer.eval_dataset])
    )
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.config.router_price = splitting_price(model, batch) if price is None else price
    return trainer


@torch.no_grad()
def one_by_one(trainer, width: float | None) -> list:
    model = trainer.model.eval()
    forced = {} if width is None else {"width": width}
    return [model(input_ids=torch.tensor([row["input_ids"]]), **forced) for row in trainer.eval_dataset]


@each_problem
@pytest.mark.parametrize("batch_size", [2, 7])
def test_metrics_are_those_of_real_inference(tiny_tokenizer, tmp_path, problem, batch_size):
    trainer = evaluated(tiny_tokenizer, tmp_path, problem, per_device_eval_batch_size=batch_size)
    metrics = trainer.evaluate()
    by_hand = ByHand(trainer.model, problem, trainer.eval_dataset, trainer.args, None)
    lengths = torch.tensor([len(row["input_ids"]) for row in trainer.eval_dataset])

    def expect(prefix: str, outputs, kept=None) -> None:
        rows = list(range(7)) if kept is None else kept
        losses = [by_hand.loss(outputs[row], by_hand.targets_of(row)).item() for row in rows]
        assert metrics[f"eval_{prefix}loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        if trainer.compute_metrics is None:
            return
        right = []
        for row in rows:
            labels = by_hand.targets_of(row)["labels"].view(-1)
            right += (outputs[row].logits.argmax(-1).view(-1) == labels)[labels != -100].tolist()
        assert metrics[f"eval_{prefix}accuracy"] == pytest.approx(np.mean(right))

    routed = one_by_one(trainer, None)
    chosen = torch.cat([outputs.width_indices for outputs in routed])
    assert len(chosen.unique()) > 1
    expect("", routed)
    assert metrics["eval_flops_share"] == pytest.approx(share_of_full(trainer.model, chosen, lengths))
    taken = zip(lengths.tolist(), chosen.tolist(), strict=True)
    spent = [trainer.model.count_flops(length, THREE[index]) for length, index in taken]
    assert metrics["eval_mean_flops"] == pytest.approx(np.mean(spent))
    for index, width in enumerate(THREE):
        alone = torch.full_like(chosen, index)
        expect(f"width_{width:g}_", one_by_one(trainer, width))
        assert metrics[f"eval_width_{width:g}_flops_share"] == share_of_full(trainer.model, alone, lengths)
        kept = (chosen == index).nonzero()[:, 0].tolist()
        assert metrics[f"eval_rows_at_{width:g}"] == pytest.approx(len(kept) / 7)
        if kept and problem != "question_answering":
            expect(f"routed_to_{width:g}_", routed, kept)
        else:
            assert f"eval_routed_to_{width:g}_loss" not in metrics
    assert {"eval_runtime", "eval_samples_per_second"} <= metrics.keys()
    assert trainer.state.log_history[-1].items() >= {"eval_loss": metrics["eval_loss"]}.items()


@each_problem
def test_router_auc_is_that_of_counting_pairs(tiny_tokenizer, tmp_path, problem):
    trainer = evaluated(tiny_tokenizer, tmp_path, problem)
    trainer.eval_dataset = make_labelled(tiny_tokenizer, problem, 16, seed=2)
    metrics = trainer.evaluate()
    by_hand = ByHand(trainer.model, problem, trainer.eval_dataset, trainer.args, None)
    wide = one_by_one(trainer, 1.0)
    counted = 0
    for index, width in enumerate(THREE[:-1]):
        narrow = one_by_one(trainer, width)
        scores = [(outputs.router_logits[0, index] - outputs.router_logits[0, -1]).item() for outputs in wide]
        if problem == "regression":
            differences = [abs(a.logits.item() - b.logits.item()) for a, b in zip(narrow, wide, strict=True)]
            agrees = [difference <= np.median(differences) + 1e-6 for difference in differences]
        else:
            agrees = []
            for row in range(16):
                first, second = (by_hand.answer(outs[row], by_hand.targets_of(row)) for outs in (narrow, wide))
                agrees.append(all(torch.equal(first[name], second[name]) for name in first))
        pairs = [
            1.0 if first > second else 0.5 if first == second else 0.0
            for first, one in zip(scores, agrees, strict=True)
            for second, other in zip(scores, agrees, strict=True)
            if one and not other
        ]
        if not pairs:
            assert f"eval_router_auc_{width:g}" not in metrics
            continue
        counted += 1
        assert metrics[f"eval_router_auc_{width:g}"] == pytest.approx(np.mean(pairs))
    assert counted


def test_evaluation_without_a_price_is_that_of_the_widest_path(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, compute_metrics=accuracy)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == metrics["eval_width_1_loss"] != metrics["eval_width_0.25_loss"]
    assert metrics["eval_rows_at_1"] == 1


def test_evaluation_of_several_sets_and_without_labels(tiny_tokenizer, tmp_path):
    trainer = evaluated(tiny_tokenizer, tmp_path, "single_label_classification")
    expected = trainer.evaluate()
    sets = {"first": trainer.eval_dataset, "second": make_labelled(tiny_tokenizer, count=5, seed=3)}
    metrics = trainer.evaluate(sets)
    assert metrics["eval_first_loss"] == expected["eval_loss"] != metrics["eval_second_loss"]
    trainer.eval_dataset = sets
    assert trainer.evaluate()["eval_second_loss"] == metrics["eval_second_loss"]
    unlabelled = sets["first"].remove_columns("labels")
    metrics = trainer.evaluate(unlabelled, metric_key_prefix="test")
    assert "test_loss" not in metrics and "test_accuracy" not in metrics
    assert metrics["test_flops_share"] == expected["eval_flops_share"]
    # `predict` is inference as ever: routed.
    predicted = trainer.predict(sets["first"]).predictions
    predicted = predicted[0] if isinstance(predicted, tuple) else predicted
    routed = torch.cat([outputs.logits for outputs in (one_by_one_of(trainer, sets["first"]))])
    assert_close(torch.from_numpy(predicted), routed)


@torch.no_grad()
def one_by_one_of(trainer, rows) -> list:
    return [trainer.model.eval()(input_ids=torch.tensor([row["input_ids"]])) for row in rows]


def test_spans_have_metrics_without_labels(tiny_tokenizer, tmp_path):
    trainer = evaluated(tiny_tokenizer, tmp_path, "question_answering")
    given = []

    def exact(prediction):
        given.append(prediction)
        return {"starts": float(prediction.predictions[0].argmax(-1).mean())}

    trainer.compute_metrics = exact
    metrics = trainer.evaluate(trainer.eval_dataset.remove_columns(["start_positions", "end_positions"]))
    starts = [outputs.start_logits.argmax().item() for outputs in one_by_one(trainer, None)]
    assert metrics["eval_starts"] == pytest.approx(np.mean(starts))
    assert "eval_loss" not in metrics and given[0].label_ids is None


def test_curve(tiny_tokenizer, tmp_path):
    trainer = evaluated(tiny_tokenizer, tmp_path, "single_label_classification")
    predictions = trainer.predict_widths()
    metrics = trainer.routing_metrics(predictions)
    points = trainer.compute_curve(predictions, num_points=5)
    assert 2 < len(points) <= 5
    shares = [point["flops_share"] for point in points]
    assert all(first < second for first, second in zip(shares, shares[1:], strict=False))
    assert points[0]["rows_per_width"] == [1, 0, 0] and points[-1]["rows_per_width"] == [0, 0, 1]
    for point, width in ((points[0], 0.25), (points[-1], 1.0)):
        for name in ("accuracy", "loss", "flops_share"):
            assert point[name] == metrics[f"width_{width:g}_{name}"]
    prices = [point["price"] for point in points]
    assert prices == sorted(prices, reverse=True)
    # What a point says is what the model does at that price.
    for point in points:
        trainer.model.config.router_price = point["price"]
        found = trainer.evaluate()
        assert found["eval_flops_share"] == point["flops_share"]
        assert found["eval_accuracy"] == point["accuracy"]
    assert len(trainer.compute_curve(predictions)) <= 21


def test_curve_files(tmp_path):
    points = [
        {"price": 2.0, "flops_share": 0.5, "accuracy": 0.75, "rows_per_width": [1.0, 0.0]},
        {"price": -1.0, "flops_share": 1.0, "accuracy": 0.5, "rows_per_width": [0.0, 1.0]},
    ]
    others = {"width 0.25": {"flops_share": 0.45, "accuracy": 0.7}}
    paths = save_curve(points, str(tmp_path / "new" / "folder"), "accuracy", others)
    assert sorted(paths) == ["csv", "json", "png"]
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        f"compute_curve.{suffix}" for suffix in ("csv", "json", "png")
    ]
    assert json.loads(Path(paths["json"]).read_text()) == points
    with open(paths["csv"], newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["accuracy"] for row in rows] == ["0.75", "0.5"] and "rows_per_width" not in rows[0]
    assert Path(paths["png"]).read_bytes().startswith(b"\x89PNG")
    save_curve(points, str(tmp_path), "accuracy")
    with pytest.raises(ValueError, match=r"no metric 'f1'; it has \['accuracy', 'flops_share', 'price'"):
        save_curve(points, str(tmp_path), "f1")


# ---- sentences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hardness_signal": "loss"}, r"`hardness_signal` is one of \['confidence', 'entropy'\], got 'loss'"),
        ({"hardness_source": "test"}, "`hardness_source` is one of .*'agreement'.*, got 'test'"),
        ({"width_batches": "mixed"}, "`width_batches` is one of .*'one_per_rank'.*, got 'mixed'"),
        (
            {"hardness_source": "agreement", "hardness_signal": "entropy"},
            "compares confidences; leave hardness_signal",
        ),
        ({"hardness_window": 0}, "`hardness_window` must be at least 1, got 0"),
        ({"task_loss_weight": -1.0}, "`task_loss_weight` must be at least 0, got -1.0"),
        ({"router_loss_weight": -1.0}, "`router_loss_weight` must be at least 0"),
        ({"distillation_weight": -1.0}, "`distillation_weight` must be at least 0"),
        ({"hard_label_weight": -1.0}, "`hard_label_weight` must be at least 0"),
        ({"width_loss_weights": [1.0, -1.0]}, r"`width_loss_weights` must not be negative, got \[1.0, -1.0\]"),
        ({"distillation_temperature": 0.0}, "`distillation_temperature` must be positive, got 0.0"),
        ({"hard_label_weight": 0.5}, "`hard_label_weight`=0.5 has no effect on paths that are not taught; set `dist"),
        ({"distillation_temperature": 2.0}, "`distillation_temperature`=2.0 has no effect on paths that are not"),
        (
            {"train_every_width": True, "width_batches": "alternating"},
            "train_every_width runs every width in each step",
        ),
        (
            {"train_every_width": True, "repeat_smaller_buckets": True},
            "repeat_smaller_buckets has no effect with train_every_width",
        ),
        ({"dataloader_drop_last": True}, "does not take dataloader_drop_last=True: every sample is trained"),
        ({"batch_eval_metrics": True}, "does not take batch_eval_metrics=True: metrics are computed for every width"),
        ({"eval_do_concat_batches": False}, "does not take eval_do_concat_batches=False: rows are routed once"),
        ({"include_for_metrics": ["inputs"]}, r"does not take include_for_metrics=\['inputs'\]: metrics are given"),
        ({"ddp_find_unused_parameters": True}, "leave out ddp_find_unused_parameters"),
        ({"train_sampling_strategy": "sequential"}, "is 'random' or 'group_by_length', not 'sequential'"),
        # Of the trainer, which knows model and data.
        ({"width_loss_weights": [1.0]}, r"has 1 entries for the 2 widths \[0.25, 1.0\]"),
        (
            {"hardness_window": 3},
            "hardness_window=3 needs more than 3 epochs, the run has 3: narrow paths and the router",
        ),
        ({"hardness_window": 3, "train_every_width": True}, "the run has 3: the router would never be trained"),
        ({"max_steps": 4}, "hardness_window=1 needs more than 1 epochs, the run has 1:"),
        ({"per_device_train_batch_size": 14, "width_batches": "alternating"}, "An epoch of 1 steps cannot alternate"),
        ({"hardness_intervals": "1.5"}, "threshold of hardness must lie between 0 and 1"),
        ({"hardness_intervals": "none.yaml"}, "'none.yaml' is neither a number nor a file of intervals"),
        ({"hardness_intervals": "1.2", "hardness_signal": "entropy"}, "between 0 and 1.099, got 1.2"),
    ],
)
def test_arguments_that_make_no_sense_have_a_sentence(tiny_tokenizer, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_sharcs_trainer(tiny_tokenizer, tmp_path, **options)


def test_plain_arguments(tiny_tokenizer, tmp_path):
    arguments = make_arguments(tmp_path, TrainingArguments)
    with pytest.raises(TypeError, match="`args` are SharcsTrainingArguments, .*, got TrainingArguments"):
        SharcsTrainer(make_sharcs(tiny_tokenizer), arguments)


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


def test_models_and_data_that_make_no_sense_have_a_sentence(tiny_tokenizer, tmp_path):
    rows = make_labelled(tiny_tokenizer)

    def refuse(message, model=None, teacher=None, problem="single_label_classification", arguments=None, **kwargs):
        model = make_sharcs(tiny_tokenizer, problem) if model is None else model
        options = {"train_dataset": rows, **kwargs}
        with pytest.raises(ValueError, match=message):
            SharcsTrainer(model, make_sharcs_arguments(tmp_path, **(arguments or {})), teacher=teacher, **options)

    bert = make_bert(tiny_tokenizer, "sequence-classification")
    refuse("trains `Sharcs…For…` models, got a BertForSequenceClassification; make one with", bert)
    refuse(r"has the widths \[1.0\] and so no router", make_sharcs(tiny_tokenizer, width_multipliers=[1.0]))
    refuse("SharcsModel has no head to train", SharcsModel(tiny_sharcs_config()))
    refuse("takes no `compute_loss_func`", compute_loss_func=lambda *args: 0)
    refuse("takes no `preprocess_logits_for_metrics`", preprocess_logits_for_metrics=lambda logits, labels: logits)
    refuse("predicts no distribution", problem="regression", arguments={"hardness_signal": "entropy"})
    refuse("the training set needs a length", train_dataset=Endless(), arguments={"max_steps": 9})
    refuse("The training set is empty; check the file", train_dataset=rows.select([]))
    unlabelled = rows.remove_columns("labels")
    refuse(r"no labels: its columns are \['input_ids'\], and \['labels'\] is missing", train_dataset=unlabelled)
    refuse(r"\['end_positions', 'start_positions'\] are missing", problem="question_answering")
    refuse("A teacher is given but `distillation_weight` is 0; set it", teacher=bert)
    two = make_bert(tiny_tokenizer, "sequence-classification", num_labels=2)
    distilling = {"distillation_weight": 1.0}
    refuse("The teacher has 2 labels, the student 3; choose", teacher=two, arguments=distilling)
    student = make_sharcs(tiny_tokenizer)
    refuse("Teacher and student share weights, sharcs.embedd", student, teacher=student, arguments=distilling)
    tagger = make_bert(tiny_tokenizer, "token-classification")
    refuse("The teacher is a BertForTokenClassification, the student a", teacher=tagger, arguments=distilling)
    names = {"id2label": dict(enumerate("abc")), "label2id": {name: index for index, name in enumerate("abc")}}
    turned = {"id2label": dict(enumerate("bca")), "label2id": {name: index for index, name in enumerate("bca")}}
    refuse(
        r"The teacher's labels are \['b', 'c', 'a'\], the student's \['a', 'b', 'c'\]: give the student the teacher's",
        make_sharcs(tiny_tokenizer, **names),
        teacher=make_bert(tiny_tokenizer, "sequence-classification", **turned),
        arguments=distilling,
    )
    small = make_bert(tiny_tokenizer, "sequence-classification", vocab_size=50)
    refuse("The teacher's vocabulary has 50 entries, the student's 120; choose", teacher=small, arguments=distilling)
    broken = make_labelled(tiny_tokenizer, "regression")
    broken = broken.remove_columns("labels").add_column("labels", [0.5, float("nan"), *[1.0] * (len(broken) - 2)])
    refuse("The label of training row 1 is nan; mend or drop", problem="regression", train_dataset=broken)
    smoothed = {"label_smoothing_factor": 0.1}
    for problem in ("regression", "multi_label_classification", "question_answering"):
        refuse(
            f"label_smoothing_factor=0.1 is for one class of several and has no effect on {problem.replace('_', ' ')}",
            problem=problem,
            train_dataset=make_labelled(tiny_tokenizer, problem),
            arguments=smoothed,
        )
    for label in (-100, 3):
        wrong = rows.remove_columns("labels").add_column("labels", [0, label, *[1] * (len(rows) - 2)])
        refuse(
            f"The label of training row 1 is {label}, but the model has 3 classes, 0 to 2; mend", train_dataset=wrong
        )
    with pytest.raises(ValueError, match="SharcsTrainer needs a `model`"):
        SharcsTrainer(None, make_sharcs_arguments(tmp_path), model_init=lambda: student)
    trainer = SharcsTrainer(make_sharcs(tiny_tokenizer), make_sharcs_arguments(tmp_path))
    with pytest.raises(ValueError, match="training requires a train_dataset"):
        trainer.train()


@pytest.mark.parametrize(
    "overrides, label, expected",
    [
        ({}, 1, "single_label_classification"),
        ({}, [1], "single_label_classification"),
        ({}, [1.0, 0.0, 0.0], "multi_label_classification"),
        ({"num_labels": 1}, 0.5, "regression"),
        ({"problem_type": "regression"}, [1.0, 0.0, 2.0], "regression"),
    ],
)
def test_the_kind_of_problem_is_found(tiny_tokenizer, tmp_path, overrides, label, expected):
    rows = [{"input_ids": [2, 7, 3], "label": label}] * 4
    trainer = SharcsTrainer(
        make_sharcs(tiny_tokenizer, **overrides), make_sharcs_arguments(tmp_path), train_dataset=rows
    )
    assert trainer.problem == trainer.model.config.problem_type == expected  # pipelines go by the configuration
    evaluating = SharcsTrainer(
        make_sharcs(tiny_tokenizer, **overrides), make_sharcs_arguments(tmp_path), eval_dataset={"a": rows}
    )
    assert evaluating.problem == expected


@pytest.mark.parametrize("source, threshold", [("training", 0.2), ("evaluation", 0.2), ("agreement", 0.5)])
def test_the_threshold_that_is_not_given(tiny_tokenizer, tmp_path, source, threshold):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, hardness_source=source, hardness_intervals=None)
    assert trainer.intervals[0] == (threshold, 1.0)


def test_a_backend_that_runs_all_passes_together_has_a_sentence(tiny_tokenizer, tmp_path, monkeypatch):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="does not run under FSDP,.*torchrun"):
        trainer._check_backend()


def test_a_number_is_the_agreement_asked_of_every_narrower_width(tiny_tokenizer, tmp_path):
    model = make_sharcs(tiny_tokenizer, width_multipliers=THREE)
    for number in ("0.4", "2/5"):
        options = {"hardness_intervals": number, "hardness_source": "agreement"}
        trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, model=model, **options)
        assert trainer.intervals == [(0.4, 1.0), (0.4, 1.0), (0.0, 1.0)]


def test_fewer_processes_than_widths_have_a_sentence(tiny_tokenizer, tmp_path, caplog):
    make_sharcs_trainer(tiny_tokenizer, tmp_path, width_batches="one_per_rank")
    assert "with 1 for 2 widths a process trains several in a step. Start 2 processes with torchrun" in caplog.text


def test_floating_point_operations_are_those_of_each_row_at_its_width(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path)
    trainer.train()
    narrow, wide = (trainer.model.count_flops(9, width) for width in (0.25, 1.0))
    batch = {"input_ids": torch.ones(3, 9), "routing": {"width_index": torch.tensor([1, 0, 1])}}
    assert trainer.floating_point_ops(batch) == 3 * (narrow + 2 * wide)
    assert trainer.state.total_flos > 0


def test_every_evaluation_of_widths_has_a_bar_of_its_own(tiny_tokenizer, tmp_path, monkeypatch):
    bars = record_bars(monkeypatch)
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, disable_tqdm=False)
    for _ in range(2):
        trainer.predict_widths(trainer.train_dataset)
    assert len(bars) == 2 and all(bar.count == bar.total for bar in bars)
