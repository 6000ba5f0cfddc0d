# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Distillation against a second implementation, row by row; maps between widths; what a teacher has to be."""

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from testing_utils import (
    AUTO_CLASSES,
    SUBNET_CLASSES,
    assert_close,
    randomise_,
    tiny_backbone,
    tiny_sharcs,
    tiny_subnet_config,
    tiny_supernet,
)
from trainers import DistillationTrainer, DistillationTrainingArguments
from trainers.distillation import MAPS_NAME
from training_utils import (
    NO_DROPOUT,
    PROBLEMS,
    folders,
    largest_change,
    make_arguments,
    make_labelled,
    weights_of,
)


TERMS = ("hard_label", "logits", "hidden_states", "attentions")
each_problem = pytest.mark.parametrize("problem", PROBLEMS)


def only(*terms: str, **weights: float) -> dict[str, float]:
    """Weights of the loss that leave all but some terms out."""
    return {f"{term}_weight": weights.get(term, float(term in terms)) for term in TERMS}


HIDDEN = only("hidden_states")
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def make_student(tokenizer, problem: str = "single_label_classification", kind: str = "subnet", seed: int = 0, **more):
    """A subnet of widths 16, 48 and 36 with 2, 4 and 4 heads, or a stock model of width 48 with 4 heads."""
    head, options = PROBLEMS[problem]
    options = {"vocab_size": len(tokenizer), **NO_DROPOUT, **options, **more}
    if kind != "subnet":
        return tiny_backbone(kind, head, seed, **options)
    return randomise_(SUBNET_CLASSES[head](tiny_subnet_config(**options)), seed).eval()


def make_teacher(tokenizer, problem: str = "single_label_classification", seed: int = 8, **more):
    """A stock model of four layers of width 24, with four heads."""
    head, options = PROBLEMS[problem]
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "intermediate_size": 30, "vocab_size": len(tokenizer)}
    return tiny_backbone("bert", head, seed, **{**sizes, **NO_DROPOUT, **options, **more})


def make_trainer(
    tokenizer,
    output_dir,
    student,
    teacher=None,
    problem: str = "single_label_classification",
    rows: int = 12,
    callbacks=None,
    train_dataset=None,
    kind=DistillationTrainer,
    **overrides,
):
    padding = DataCollatorForTokenClassification if problem == "token_classification" else DataCollatorWithPadding
    further = {
        name: overrides.pop(name)
        for name in ("compute_metrics", "compute_loss_func", "model_init")
        if name in overrides
    }
    if kind is DistillationTrainer:
        further["teacher"] = teacher
    return kind(
        model=student,
        args=make_arguments(
            output_dir,
            DistillationTrainingArguments if kind is DistillationTrainer else TrainingArguments,
            **{"learning_rate": 0.02, **overrides},
        ),
        train_dataset=make_labelled(tokenizer, problem, rows) if train_dataset is None else train_dataset,
        eval_dataset=make_labelled(tokenizer, problem, 7, seed=1),
        data_collator=padding(tokenizer),
        callbacks=callbacks,
        **further,
    )


def eager(*models):
    for model in models:
        model.set_attn_implementation("eager")
    return models


class Maps(TrainerCallback):
    """Remembers the maps at the start and after each step."""

    def __init__(self):
        self.weights: list[list[torch.Tensor]] = []

    def remember(self, model):
        self.weights.append([linear.weight.detach().clone() for linear in getattr(model, MAPS_NAME, [])])

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.remember(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.remember(model)


class Stop(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def losses_of(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- the same training by hand --------------------------------------------------------------------------------------


class ByHand:
    """One row after the other, without padding; plain gradient descent."""

    def __init__(self, student, teacher, problem: str, arguments, pairs, maps=()):
        self.student, self.teacher, self.problem, self.arguments = student, teacher, problem, arguments
        self.pairs, self.maps = pairs, [weight.clone().requires_grad_() for weight in maps]
        self.parameters = [*student.parameters(), *self.maps]

    def hard_label(self, outputs, targets):
        smoothing = self.arguments.label_smoothing_factor
        if self.problem == "question_answering":
            ends = [F.cross_entropy(outputs[f"{n}_logits"], targets[f"{n}_positions"]) for n in ("start", "end")]
            return sum(ends) / 2
        logits, labels = outputs["logits"], targets["labels"]
        if self.problem == "regression":
            return (logits[0, 0] - labels[0]) ** 2
        if self.problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels)
        if self.problem == "token_classification":
            return F.cross_entropy(logits[0], labels[0], label_smoothing=smoothing)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def logits(self, outputs, given, targets):
        temperature = self.arguments.distillation_temperature

        def soft(own, goal):
            return -(F.softmax(goal / temperature, -1) * F.softmax(own / temperature, -1).log()).sum(-1) * (
                temperature**2
            )

        if self.problem == "question_answering":
            return sum(soft(outputs[name], given[name])[0] for name in ("start_logits", "end_logits")) / 2
        own, goal = outputs["logits"], given["logits"]
        if self.problem == "regression":
            return F.mse_loss(own, goal)
        if self.problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(own, goal.sigmoid())
        if self.problem == "token_classification":
            return soft(own[0], goal[0])[targets["labels"][0] != -100].mean()
        return soft(own, goal)[0]

    def hidden_states(self, outputs, given):
        """One number a token: the sum over layers of the mean over channels."""

        def normal(state):
            return (state - state.mean(-1, keepdim=True)) / (state.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()

        total = 0
        for index, (own, goal) in enumerate(self.pairs):
            state = outputs.hidden_states[own][0]
            if self.maps:
                state = state @ self.maps[index].T
            total = total + ((normal(state) - normal(given.hidden_states[goal][0])) ** 2).mean(-1)
        return total / len(self.pairs)

    def attentions(self, outputs, given):
        total = 0
        for own, goal in self.pairs:
            cross = -(given.attentions[goal - 1][0] * outputs.attentions[own - 1][0].log()).sum(-1)
            total = total + cross.mean(0)
        return total / len(self.pairs)

    def step(self, rows) -> dict[str, float]:
        found: dict[str, list] = {}
        for row in rows:
            inputs = {"input_ids": torch.tensor([row["input_ids"]])}
            targets = {
                name: torch.tensor([row[name]])
                for name in ("labels", "start_positions", "end_positions")
                if name in row
            }
            extra = {f"output_{name}": bool(self.weight(name)) for name in ("hidden_states", "attentions")}
            outputs = self.student.train()(**inputs, **extra)
            with torch.no_grad():
                given = self.teacher(**inputs, **extra)
            arguments = {"hard_label": (targets,), "logits": (given, targets)}
            for name in TERMS:
                if self.weight(name):
                    value = getattr(self, name)(outputs, *arguments.get(name, (given,)))
                    found.setdefault(name, []).append(value.reshape(-1))
        # The mean over rows; of layers over the tokens of the batch.
        terms = {name: torch.cat(values).mean() for name, values in found.items()}
        loss = sum(self.weight(name) * value for name, value in terms.items())
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= self.arguments.learning_rate * gradient
        return {"loss": loss.item(), **{f"{name}_loss": value.item() for name, value in terms.items()}}

    def weight(self, name: str) -> float:
        return getattr(self.arguments, f"{name}_weight")


def compare_with_hand(tokenizer, folder, student, teacher, problem, pairs, by_hand=None, **options) -> None:
    """Trains for three steps; losses, weights and maps are those of the second implementation."""
    maps = Maps()
    trainer = make_trainer(tokenizer, folder, student, teacher, problem, callbacks=[maps], **options)
    copy = type(student)(student.config)
    copy.load_state_dict(student.state_dict())
    trainer.train()
    hand = ByHand(copy, teacher, problem, trainer.args, pairs, maps.weights[0])
    for step, entry in enumerate(losses_of(trainer)):
        expected = hand.step([trainer.train_dataset[index] for index in range(4 * step, 4 * step + 4)])
        assert {name: value for name, value in entry.items() if name.endswith("loss")} == pytest.approx(
            expected, rel=1e-4
        )
    assert step == 2
    found, expected = weights_of(trainer.model), weights_of(copy)
    assert found.keys() == expected.keys()
    assert_close(found, expected, atol=1e-5)
    assert_close(maps.weights[-1], [weight.detach() for weight in hand.maps], atol=1e-5)


@each_problem
@pytest.mark.parametrize("kind", ["subnet", "bert", "roberta"])
def test_every_term_is_the_one_written_by_hand(tiny_tokenizer, tmp_path, problem, kind):
    student, teacher = eager(make_student(tiny_tokenizer, problem, kind), make_teacher(tiny_tokenizer, problem))
    weights = only(hard_label=0.4, logits=0.7, hidden_states=1.3, attentions=0.2)
    options = {"distillation_temperature": 2.5, "distillation_layers": ["2:1", "3:4", "2:2"]}
    compare_with_hand(
        tiny_tokenizer, tmp_path, student, teacher, problem, [(2, 1), (3, 4), (2, 2)], **weights, **options
    )


@pytest.mark.parametrize("term", TERMS)
def test_a_term_alone(tiny_tokenizer, tmp_path, term):
    student, teacher = eager(make_student(tiny_tokenizer), make_teacher(tiny_tokenizer))
    pairs = {"distillation_layers": ["3:3"]} if term in ("hidden_states", "attentions") else {}
    if term == "hard_label":
        with pytest.raises(ValueError, match="A teacher is given, but `logits_weight`, `hidden_states_weight` and"):
            make_trainer(tiny_tokenizer, tmp_path, student, teacher, **only(term))
        return
    before = weights_of(student)
    compare_with_hand(
        tiny_tokenizer, tmp_path, student, teacher, "single_label_classification", [(3, 3)], **only(term), **pairs
    )
    changed = {name for name, value in weights_of(student).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("subnet.layers.2.") for name in changed)
    assert any(name.startswith("classifier.") for name in changed) is (term == "logits")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_defaults_and_label_smoothing(tiny_tokenizer, tmp_path, smoothing):
    """Half the labels, half the teacher's logits, at temperature 1."""
    sides = make_student(tiny_tokenizer), make_teacher(tiny_tokenizer)
    compare_with_hand(
        tiny_tokenizer, tmp_path, *sides, "single_label_classification", [], label_smoothing_factor=smoothing
    )


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "token_classification"])
@pytest.mark.filterwarnings("ignore:Label smoothing is not compatible with multi-label:UserWarning")
def test_label_smoothing_is_for_classes(tiny_tokenizer, tmp_path, problem):
    sides = make_student(tiny_tokenizer, problem), make_teacher(tiny_tokenizer, problem)
    compare_with_hand(tiny_tokenizer, tmp_path, *sides, problem, [], label_smoothing_factor=0.3)
    trainer = make_trainer(tiny_tokenizer, tmp_path, *sides, problem, label_smoothing_factor=0.3)
    smoothed = trainer.evaluate()["eval_loss"]
    plain = make_trainer(tiny_tokenizer, tmp_path, *sides, problem).evaluate()["eval_loss"]
    assert (smoothed == plain) is (problem != "token_classification")


@pytest.mark.parametrize(
    "depths, pairs",
    [
        ((3, 4), [(1, 1), (2, 3), (3, 4)]),
        ((3, 6), [(1, 2), (2, 4), (3, 6)]),
        ((3, 3), [(1, 1), (2, 2), (3, 3)]),
        ((3, 1), [(1, 1), (2, 1), (3, 1)]),
    ],
)
def test_layers_are_spread_evenly(tiny_tokenizer, tmp_path, depths, pairs):
    student = make_student(tiny_tokenizer)
    teacher = make_teacher(tiny_tokenizer, num_hidden_layers=depths[1])
    compare_with_hand(tiny_tokenizer, tmp_path, student, teacher, "single_label_classification", pairs, **HIDDEN)


def test_accumulated_batches_weigh_as_one(tiny_tokenizer, tmp_path):
    """The last step of an epoch accumulates fewer batches than the others."""
    trainers = {}
    for batch, accumulation in ((4, 1), (2, 2)):
        trainers[batch] = make_trainer(
            tiny_tokenizer,
            tmp_path,
            make_student(tiny_tokenizer),
            make_teacher(tiny_tokenizer),
            rows=6,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=4,
            logging_steps=2,
        )
        trainers[batch].train()
    assert largest_change(*(weights_of(trainer.model) for trainer in trainers.values())) < 1e-6
    for own, given in zip(*map(losses_of, trainers.values()), strict=True):
        for name in ("loss", "hard_label_loss", "logits_loss"):
            assert own[name] == pytest.approx(given[name], rel=1e-4)
        assert own["loss"] == pytest.approx((own["hard_label_loss"] + own["logits_loss"]) / 2)


def test_logs_are_means_over_steps(tiny_tokenizer, tmp_path):
    logs = {}
    for every in (1, 3):
        sides = make_student(tiny_tokenizer), make_teacher(tiny_tokenizer)
        # An interval of two leaves a step over, which no log of a second training may contain.
        trainer = make_trainer(tiny_tokenizer, tmp_path, *sides, logging_steps=every, rows=4, max_steps=3)
        trainer.train()
        logs[every] = losses_of(trainer)
    for name in ("loss", "hard_label_loss", "logits_loss"):
        assert logs[3][0][name] == pytest.approx(sum(entry[name] for entry in logs[1]) / 3)
    trainer = make_trainer(tiny_tokenizer, tmp_path, *sides, logging_steps=2, learning_rate=0.0)
    for _ in range(2):
        trainer.train()
        (entry,) = losses_of(trainer)
        assert entry["loss"] == pytest.approx((entry["hard_label_loss"] + entry["logits_loss"]) / 2)


# ---- who is trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", TERMS[1:])
def test_the_teacher_is_left_alone(tiny_tokenizer, tmp_path, term):
    student, teacher = eager(
        make_student(tiny_tokenizer), make_teacher(tiny_tokenizer, hidden_dropout_prob=0.5).train()
    )
    before, modes = weights_of(teacher), []
    teacher.register_forward_pre_hook(lambda *_: modes.append((teacher.training, torch.is_grad_enabled())))
    pairs = {"distillation_layers": ["2:1"]} if term != "logits" else {}
    trainer = make_trainer(tiny_tokenizer, tmp_path, student, teacher, **only(term), **pairs)
    trainer.train()
    assert modes[-3:] == [(False, False)] * 3 and set(modes) == {(False, False)}
    assert largest_change(before, weights_of(teacher)) == 0
    assert all(value.grad is None and not value.requires_grad for value in teacher.parameters())
    assert all(value.requires_grad for value in student.parameters())


def test_evaluations_use_labels_only(tiny_tokenizer, tmp_path):
    student, teacher = make_student(tiny_tokenizer), make_teacher(tiny_tokenizer)
    trainer = make_trainer(tiny_tokenizer, tmp_path, student, teacher, hidden_states_weight=1.0)
    teacher.forward = None  # which nobody may call
    metrics = trainer.evaluate()
    rows = trainer.eval_dataset
    with torch.no_grad():
        logits = torch.cat([student(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows])
    losses = F.cross_entropy(logits, torch.tensor(rows["labels"][:]), reduction="none")
    # Batches of five and two: Trainer's own mean.
    assert metrics["eval_loss"] == pytest.approx((losses[:5].mean() * 5 + losses[5:].mean() * 2).item() / 7)
    assert not [name for name in metrics if "logits" in name or "hidden" in name]
    assert_close(torch.tensor(trainer.predict(rows.remove_columns("labels")).predictions), logits)


@each_problem
def test_without_a_teacher_it_is_trainer(tiny_tokenizer, tmp_path, problem):
    found = {}
    for name, kind, batch, accumulation in (
        ("theirs", Trainer, 4, 1),
        ("ours", DistillationTrainer, 4, 1),
        ("accumulated", DistillationTrainer, 2, 2),
    ):
        # A subnet says itself that it takes no number of items; stock models do not.
        student = make_student(tiny_tokenizer, problem, "bert")
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(tiny_tokenizer, tmp_path, student, None, problem, kind=kind, **options)
        trainer.train()
        found[name] = weights_of(student)
        assert {"loss", "grad_norm", "learning_rate", "epoch", "step"} == set(losses_of(trainer)[0])
    assert largest_change(found["theirs"], found["ours"]) == 0
    # Trainer's mean over the tokens of a batch is none over rows, and its spans may lie in the padding.
    if problem not in ("token_classification", "question_answering"):
        assert largest_change(found["theirs"], found["accumulated"]) < 1e-6


def test_a_loss_of_ones_own_without_a_teacher(tiny_tokenizer, tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    found = []
    for batch, accumulation in ((4, 1), (2, 2)):
        student = make_student(tiny_tokenizer)
        make_trainer(
            tiny_tokenizer,
            tmp_path,
            student,
            compute_loss_func=loss,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        ).train()
        found.append(weights_of(student))
    assert largest_change(*found) < 1e-6


@pytest.mark.parametrize("problem", ["single_label_classification", "question_answering", "regression"])
def test_rows_without_labels(tiny_tokenizer, tmp_path, problem):
    """A teacher knows an answer to every row."""
    labelled = make_labelled(tiny_tokenizer, problem, 12)
    unlabelled = labelled.select_columns(["input_ids"])
    found = []
    for rows in (labelled, unlabelled):
        student = make_student(tiny_tokenizer, problem)
        trainer = make_trainer(
            tiny_tokenizer,
            tmp_path,
            student,
            make_teacher(tiny_tokenizer, problem),
            problem,
            train_dataset=rows,
            **only("logits"),
        )
        trainer.train()
        found.append(weights_of(student))
    assert largest_change(*found) == 0
    with pytest.raises(ValueError, match=r"The training rows have no (labels|start_positions, end_positions); "):
        make_trainer(
            tiny_tokenizer,
            tmp_path,
            make_student(tiny_tokenizer, problem),
            make_teacher(tiny_tokenizer, problem),
            problem,
            train_dataset=unlabelled,
        ).train()


def test_kinds_of_problems_are_saved(tiny_tokenizer, tmp_path):
    """A pipeline shows probabilities by the kind of problem, which a model learns only where it computes the loss."""
    for problem in ("single_label_classification", "multi_label_classification", "regression"):
        student = make_student(tiny_tokenizer, problem)
        assert student.config.problem_type is None
        teacher = make_teacher(tiny_tokenizer, problem)
        make_trainer(tiny_tokenizer, tmp_path, student, teacher, problem, max_steps=1).train()
        assert student.config.problem_type == problem


# ---- maps between widths --------------------------------------------------------------------------------------------


def test_no_maps_between_equal_widths(tiny_tokenizer, tmp_path):
    maps = Maps()
    student = make_student(tiny_tokenizer, kind="bert", hidden_size=24)
    make_trainer(tiny_tokenizer, tmp_path, student, make_teacher(tiny_tokenizer), callbacks=[maps], **HIDDEN).train()
    assert maps.weights == [[]] * 4


def test_maps_are_drawn_from_the_seed_alone(tiny_tokenizer, tmp_path):
    """Dropout and shuffling do not depend on whether there are maps."""
    drawn = []
    for seed in (3, 3, 4):
        maps = Maps()
        # In training mode, as a model may come: the rows that show its widths are not to draw masks of dropout.
        student = make_student(tiny_tokenizer, hidden_dropout_prob=0.3).train()
        trainer = make_trainer(
            tiny_tokenizer, tmp_path, student, make_teacher(tiny_tokenizer), callbacks=[maps], seed=seed, **HIDDEN
        )
        before = torch.random.get_rng_state()
        trainer._add_maps()
        assert torch.equal(torch.random.get_rng_state(), before) and student.training
        trainer.train()
        drawn.append(maps.weights[0])
    assert [tuple(weight.shape) for weight in drawn[0]] == [(24, 16), (24, 48), (24, 36)]
    assert all(torch.equal(one, two) for one, two in zip(*drawn[:2], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])


@pytest.mark.parametrize("kind", ["subnet", "roberta"])
def test_maps_leave_nothing_behind(tiny_tokenizer, tmp_path, kind):
    student, maps = make_student(tiny_tokenizer, kind=kind), Maps()
    names, modules = set(student.state_dict()), [name for name, _ in student.named_modules()]
    trainer = make_trainer(
        tiny_tokenizer, tmp_path, student, make_teacher(tiny_tokenizer), callbacks=[maps], **SAVING, **HIDDEN
    )
    trainer.train()
    assert len(maps.weights) == 7
    for first, last in zip(maps.weights[0], maps.weights[-1], strict=True):
        assert not torch.equal(first, last)
    assert set(student.state_dict()) == names and [name for name, _ in student.named_modules()] == modules
    assert not student._forward_hooks
    trainer.save_model()
    assert set(load_file(tmp_path / "model.safetensors")) == set(
        load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    ) - {f"{MAPS_NAME}.{index}.weight" for index in range(3)}
    loaded, info = AUTO_CLASSES["sequence-classification"].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert largest_change(weights_of(loaded), weights_of(student)) == 0
    assert "distillation" not in (tmp_path / "config.json").read_text()


def test_maps_leave_nothing_behind_after_an_interruption(tiny_tokenizer, tmp_path):
    student = make_student(tiny_tokenizer)
    names = set(student.state_dict())
    trainer = make_trainer(
        tiny_tokenizer, tmp_path, student, make_teacher(tiny_tokenizer), callbacks=[Stop(2)], **HIDDEN
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert set(student.state_dict()) == names and not student._forward_hooks
    trainer.evaluate()


def test_an_interrupted_run_continues_exactly(tiny_tokenizer, tmp_path):
    options = {"optim": "adamw_torch", "train_sampling_strategy": "random", "save_total_limit": 1, **SAVING}
    weights = {"hidden_states_weight": 1.0}
    found = {}
    for name in ("whole", "stopped", "stopped"):
        student = make_student(tiny_tokenizer, hidden_dropout_prob=0.2)
        trainer = make_trainer(
            tiny_tokenizer,
            tmp_path / name,
            student,
            make_teacher(tiny_tokenizer),
            callbacks=[Stop(3)] if name == "stopped" and name not in found else None,
            **weights,
            **options,
        )
        if name == "whole":
            trainer.train()
        elif name not in found:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            assert folders(tmp_path / name) == ["checkpoint-2"]
        else:
            trainer.train(resume_from_checkpoint=True)
        found[name] = weights_of(student)
    assert largest_change(found["whole"], found["stopped"]) == 0
    stored = [load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("whole", "stopped")]
    assert f"{MAPS_NAME}.0.weight" in stored[0] and largest_change(*stored) == 0


def test_the_best_model_is_loaded_at_the_end(tiny_tokenizer, tmp_path):
    script = iter([0.1, 0.9, 0.5])
    student = make_student(tiny_tokenizer)
    trainer = make_trainer(
        tiny_tokenizer,
        tmp_path,
        student,
        make_teacher(tiny_tokenizer),
        compute_metrics=lambda _: {"score": next(script)},
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        **SAVING,
        **HIDDEN,
    )
    trainer.train()
    best = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    kept = {name: value for name, value in best.items() if not name.startswith(MAPS_NAME)}
    assert len(best) == len(kept) + 3
    assert largest_change(weights_of(student), kept) == 0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")


def test_a_second_training_goes_on_with_the_maps(tiny_tokenizer, tmp_path):
    maps = Maps()
    trainer = make_trainer(
        tiny_tokenizer,
        tmp_path,
        make_student(tiny_tokenizer),
        make_teacher(tiny_tokenizer),
        callbacks=[maps],
        **HIDDEN,
    )
    trainer.train()
    trainer.train()
    assert len(maps.weights) == 8
    assert torch.equal(maps.weights[3][0], maps.weights[4][0])  # where the first training ended
    assert not torch.equal(maps.weights[4][0], maps.weights[7][0])


def test_models_made_anew_for_each_training(tiny_tokenizer, tmp_path):
    """As a search of hyper-parameters does."""
    trainer = make_trainer(
        tiny_tokenizer,
        tmp_path,
        None,
        make_teacher(tiny_tokenizer),
        model_init=lambda: make_student(tiny_tokenizer),
        **HIDDEN,
    )
    found = []
    for _ in range(2):
        trainer.train()
        found.append((weights_of(trainer.model), losses_of(trainer)))
    assert largest_change(found[0][0], found[1][0]) == 0
    assert [entry["loss"] for entry in found[0][1]] == [entry["loss"] for entry in found[1][1]]


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["autocast", "student", "teacher"])
def test_bfloat16(tiny_tokenizer, tmp_path, half):
    student, teacher = eager(make_student(tiny_tokenizer), make_teacher(tiny_tokenizer))
    if half != "autocast":
        (student if half == "student" else teacher).to(torch.bfloat16)
    before = weights_of(student)
    weights = only(*TERMS)
    trainer = make_trainer(
        tiny_tokenizer,
        tmp_path,
        student,
        teacher,
        bf16=half == "autocast",
        distillation_layers=["2:2", "3:4"],
        learning_rate=0.1,
        **weights,
    )
    trainer.train()
    exact_student, exact_teacher = eager(make_student(tiny_tokenizer), make_teacher(tiny_tokenizer))
    exact = make_trainer(
        tiny_tokenizer, tmp_path, exact_student, exact_teacher, distillation_layers=["2:2", "3:4"], **weights
    )
    exact.train()
    for name, value in losses_of(exact)[0].items():
        if name.endswith("loss"):
            assert losses_of(trainer)[0][name] == pytest.approx(value, rel=0.1), name
    assert {value.dtype for value in student.parameters()} == {value.dtype for value in before.values()}
    assert largest_change(before, weights_of(student)) > 0
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))


# ---- what is saved --------------------------------------------------------------------------------------------------


def test_the_saved_student_in_a_pipeline(tiny_tokenizer, tmp_path):
    names = ["bad", "so-so", "good"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    student = make_student(tiny_tokenizer, **labels)
    trainer = make_trainer(
        tiny_tokenizer, tmp_path, student, make_teacher(tiny_tokenizer, **labels), hidden_states_weight=1.0
    )
    trainer.processing_class = tiny_tokenizer
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(student) and loaded.config.hidden_sizes == [16, 48, 36]
    texts = ["The cats were small.", "Three dogs", "Nobody saw the old sailor go over the green field!"]
    found = pipeline("text-classification", model=str(tmp_path), device="cpu", batch_size=2)(texts)
    for text, answer in zip(texts, found, strict=True):
        with torch.no_grad():
            scores = student.eval()(**tiny_tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert answer["label"] == names[int(scores.argmax())]
        assert answer["score"] == pytest.approx(scores.max().item(), abs=1e-5)


# ---- messages -------------------------------------------------------------------------------------------------------


def named(*names: str) -> dict:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


@pytest.mark.parametrize(
    "own, given, options, message",
    [
        ({}, {"num_labels": 4}, {}, "The teacher has 4 labels, the student 3; choose a teacher"),
        (
            named("no", "maybe", "yes"),
            named("yes", "maybe", "no"),
            {},
            r"labels are \['yes', 'maybe', 'no'\], the student's \['no', 'maybe', 'yes'\]: give the student",
        ),
        (
            {},
            {"vocab_size": 130},
            {},
            r"The teacher's vocabulary has 130 entries, the student's \d+; choose a teacher",
        ),
        ({}, {}, only("attentions"), "attn_implementation='sdpa' does not return; .*eager"),
        (
            {},
            {},
            only("attentions"),
            "Attentions of 2 heads .the student's layer 1. and 4 heads .the teacher's layer 1. cannot be compared",
        ),
        (
            {},
            {},
            {**HIDDEN, "distillation_layers": ["1:1", "4:2"]},
            "`distillation_layers` names the student's layer 4, but it has 3 layers",
        ),
        ({}, {}, {**HIDDEN, "distillation_layers": ["3:5"]}, "names the teacher's layer 5, but it has 4 layers"),
        ({}, {}, {"compute_loss_func": print}, "takes no `compute_loss_func`"),
        ({}, {}, only("hard_label"), "A teacher is given, but `logits_weight`, .* are 0; set one of them"),
    ],
)
def test_a_teacher_that_does_not_fit(tiny_tokenizer, tmp_path, own, given, options, message):
    sides = make_student(tiny_tokenizer, **own), make_teacher(tiny_tokenizer, **given)
    if "Attentions" in message:
        eager(*sides)
    with pytest.raises(ValueError, match=message):
        make_trainer(tiny_tokenizer, tmp_path, *sides, **options)


@pytest.mark.parametrize("names", [(named("no", "maybe", "yes"), {}), ({}, named("no", "maybe", "yes"))])
def test_labels_without_names_fit_any(tiny_tokenizer, tmp_path, names):
    make_trainer(
        tiny_tokenizer, tmp_path, make_student(tiny_tokenizer, **names[0]), make_teacher(tiny_tokenizer, **names[1])
    )


@pytest.mark.parametrize("problem", ["token_classification", "question_answering"])
def test_a_teacher_of_another_task(tiny_tokenizer, tmp_path, problem):
    teacher = make_teacher(tiny_tokenizer, problem, num_labels=3)
    with pytest.raises(ValueError, match=r"The teacher is a BertFor\w+, the student a MosSubnetForSequenceClass"):
        make_trainer(tiny_tokenizer, tmp_path, make_student(tiny_tokenizer), teacher)


def test_a_student_that_shares_weights_with_its_teacher(tiny_tokenizer, tmp_path):
    student = make_student(tiny_tokenizer, kind="bert")
    teacher = make_student(tiny_tokenizer, kind="bert")
    teacher.bert.embeddings = student.bert.embeddings
    for given in (teacher, student):
        with pytest.raises(ValueError, match="share weights, bert.embeddings.word_embeddings.weight for one"):
            make_trainer(tiny_tokenizer, tmp_path, student, given)
    assert all(value.requires_grad for value in student.parameters())


def test_weights_in_half_precision(tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="The model's weights are float16 .* in which training diverges"):
        make_trainer(tiny_tokenizer, tmp_path, make_student(tiny_tokenizer).half())
    DistillationTrainer(make_student(tiny_tokenizer).half(), make_arguments(tmp_path, DistillationTrainingArguments))


@pytest.mark.parametrize(
    "options, message",
    [
        (only(), "All weights of the loss are 0, so that nothing is learnt; set at least one"),
        ({"logits_weight": -0.5}, "`logits_weight` must not be negative, got -0.5"),
        ({"distillation_temperature": 0.0}, "`distillation_temperature` must be positive, got 0.0"),
        *[
            ({**HIDDEN, "distillation_layers": [pair]}, f"takes pairs such as 2:4 .*, got '{pair}'")
            for pair in ("2", "2:", ":4", "0:1", "2:0", "-1:2", "1:2:3", "a:b", "²:1")
        ],
        ({"logits_weight": float("nan")}, "`logits_weight` must not be negative, got nan"),
        ({"distillation_temperature": float("nan")}, "`distillation_temperature` must be positive, got nan"),
        (
            {**HIDDEN, "logits_weight": 0.0, "distillation_temperature": 4.0},
            r"`distillation_temperature` \(4.0\) softens",
        ),
        ({"distillation_layers": ["1:2"]}, "`distillation_layers` .* but `hidden_states_weight` and"),
    ],
)
def test_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, DistillationTrainingArguments, **options)


def test_plain_arguments_serve_without_a_teacher(tiny_tokenizer, tmp_path):
    arguments, student = make_arguments(tmp_path, TrainingArguments), make_student(tiny_tokenizer)
    rows = make_trainer(tiny_tokenizer, tmp_path, student).train_dataset
    DistillationTrainer(student, arguments, train_dataset=rows)
    with pytest.raises(TypeError, match="`args` are DistillationTrainingArguments, .*, got TrainingArguments"):
        DistillationTrainer(student, arguments, teacher=make_student(tiny_tokenizer), train_dataset=rows)


def test_a_teacher_that_is_not_loaded(tiny_tokenizer, tmp_path):
    with pytest.raises(TypeError, match="`teacher` is a loaded model, got the str 'me/teacher'; load it with"):
        make_trainer(tiny_tokenizer, tmp_path, make_student(tiny_tokenizer), teacher="me/teacher")


def test_a_model_without_labels_to_learn(tiny_tokenizer, tmp_path):
    """Rows of the wrong kind are said before the first step, or by Trainer itself."""
    rows = datasets.Dataset.from_dict({"input_ids": [[2, 7, 8, 3]] * 4})
    trainer = make_trainer(
        tiny_tokenizer, tmp_path, make_student(tiny_tokenizer), make_teacher(tiny_tokenizer), train_dataset=rows
    )
    with pytest.raises(ValueError, match="The training rows have no labels; "):
        trainer.train()
    assert isinstance(trainer.model, nn.Module)


@pytest.mark.parametrize(
    "make, message",
    [
        (tiny_supernet, "MosForSequenceClassification is a supernet; take a subnet out with `extract_subnet`"),
        (tiny_sharcs, "only one path of SharcsForSequenceClassification, and no router; use SharcsTrainer"),
    ],
)
def test_elastic_students_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(make("sequence-classification"), DistillationTrainingArguments(output_dir=str(tmp_path)))
