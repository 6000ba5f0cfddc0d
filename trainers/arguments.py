# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Training arguments of the trainers."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


DISTILLATION_TERMS = ("logits", "hidden_states", "attentions")


def check_arguments(args: TrainingArguments | None, wanted: type[TrainingArguments]) -> None:
    """
    Raises:
        TypeError: if they are not of the trainer's own kind.
    """
    if not isinstance(args, wanted):
        raise TypeError(
            f"`args` are {wanted.__name__}, which take all that TrainingArguments take, got {type(args).__name__}."
        )


@dataclass
class SupernetTrainingArguments(TrainingArguments):
    """
    Arguments of [`SupernetTrainer`], beside those of [`~transformers.TrainingArguments`].

    Raises:
        ValueError: on an unknown choice or a number out of range; the message names both.
    """

    architecture_sampling: str = field(
        default="sandwich",
        metadata={
            "help": "Architectures of each step. 'sandwich': the largest, the smallest and random ones; 'random': "
            "random ones only; 'fixed': the model's default architecture only.",
            "choices": ["sandwich", "random", "fixed"],
        },
    )
    num_random_architectures: int = field(
        default=1, metadata={"help": "Random architectures of each step, shared by its micro-batches and processes."}
    )
    size_biased_sampling: bool = field(
        default=False,
        metadata={"help": "Draw each size with a probability proportional to itself instead of uniformly."},
    )
    largest_only_steps: int = field(
        default=0, metadata={"help": "Train only the largest network for this many first steps."}
    )
    distillation: list[str] | None = field(
        default=None,
        metadata={
            "help": "What the smaller networks learn from the teacher (the largest network on the same batch, unless "
            "a teacher is given): any of 'logits' (at the labelled positions), 'hidden_states', 'attentions'."
        },
    )
    distillation_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Layers whose hidden states or attentions are compared, counted from 1; negative ones count from "
            "the end. The last one by default."
        },
    )
    distillation_temperature: float = field(default=1.0, metadata={"help": "Temperature of the soft targets."})
    distillation_weight: float = field(
        default=0.5, metadata={"help": "Weight of each distillation term for the networks that are taught."}
    )
    hard_label_weight: float = field(
        default=0.5,
        metadata={"help": "Weight of the labels' own loss for the networks that are taught; 0 leaves it out."},
    )
    panel_random_architectures: int = field(
        default=0, metadata={"help": "Random architectures, drawn once from the seed, that every evaluation includes."}
    )
    panel_uniform_widths: bool = field(
        default=False, metadata={"help": "Evaluate the architecture with all layers alike for each width as well."}
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.distillation, str):
            raise ValueError(f"`distillation` is a list, such as ['logits'], got the string {self.distillation!r}.")
        unknown = sorted(set(self.distillation or []) - set(DISTILLATION_TERMS))
        if unknown:
            raise ValueError(f"`distillation` takes any of {list(DISTILLATION_TERMS)}, got {unknown[0]!r}.")
        if self.architecture_sampling not in ("sandwich", "random", "fixed"):
            raise ValueError(
                f"`architecture_sampling` is 'sandwich', 'random' or 'fixed', got {self.architecture_sampling!r}."
            )
        for name, minimum in (
            ("num_random_architectures", 1 if self.architecture_sampling == "random" else 0),
            ("largest_only_steps", 0),
            ("distillation_weight", 0),
            ("hard_label_weight", 0),
            ("panel_random_architectures", 0),
        ):
            if not getattr(self, name) >= minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {getattr(self, name)}.")
        if not self.distillation_temperature > 0:
            raise ValueError(f"`distillation_temperature` must be positive, got {self.distillation_temperature}.")


@dataclass
class SharcsTrainingArguments(TrainingArguments):
    """
    Arguments of [`SharcsTrainer`], beside those of [`~transformers.TrainingArguments`].

    Raises:
        ValueError: on an unknown choice or a number out of range; the message names both.
    """

    num_train_epochs: float = field(default=10.0, metadata={"help": "Epochs (published recipe: 10)."})
    hardness_signal: str = field(
        default="confidence",
        metadata={
            "help": "A sample's score: the 'confidence' in its label (regression: exp(-|error| / standard "
            "deviation)), or the 'entropy' of the prediction.",
            "choices": ["confidence", "entropy"],
        },
    )
    hardness_source: str = field(
        default="training",
        metadata={
            "help": "Where scores come from. 'training': the training passes themselves (published); 'evaluation': a "
            "pass over the training set in evaluation mode after each epoch; 'agreement': every width is run on every "
            "sample then, and its score is the probability that it gives to the widest path's answer.",
            "choices": ["training", "evaluation", "agreement"],
        },
    )
    hardness_window: int = field(
        default=3,
        metadata={
            "help": "Epochs whose scores must all fall into a width's interval. As many epochs pass before the router "
            "has anything to learn; until then all samples train the widest path, unless train_every_width is set."
        },
    )
    hardness_intervals: str | None = field(
        default=None,
        metadata={
            "help": "The scores that each width handles: a YAML file in the published form, or a number t, as 0.2 or "
            "1/5: the narrowest width takes the scores on the easy side of t. With 'agreement' only lower ends count, "
            "and a number is that of every narrower width. If not given: 0.2, as published; 0.5 with 'agreement'."
        },
    )
    train_every_width: bool = field(
        default=False,
        metadata={
            "help": "Train every width on every sample, from the first epoch on, instead of each sample at one width."
        },
    )
    repeat_smaller_buckets: bool = field(
        default=False,
        metadata={"help": "Tile the samples of each width to the number of the width that has the most (published)."},
    )
    width_batches: str = field(
        default="joint",
        metadata={
            "help": "What a step holds. 'joint': rows of every width; 'alternating': one width a step, in turns (the "
            "published way on one device); 'one_per_rank': one width a process (the published way on several).",
            "choices": ["joint", "alternating", "one_per_rank"],
        },
    )
    router_loss_before_targets: bool = field(
        default=False,
        metadata={"help": "Teach the router to answer 'widest' in the epochs before it has targets (published)."},
    )
    task_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the task's loss."})
    router_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the router's loss."})
    width_loss_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for the losses of each width, narrowest first. 1 by default."}
    )
    distillation_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss against the widest path's output for the same row, for narrower paths; with a "
            "teacher, against the teacher's, for all. 0 leaves it out."
        },
    )
    hidden_states_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss of narrower paths against the widest path's hidden states for the same row, "
            "channel by channel of what they have of it, after every routed layer. 0 leaves it out."
        },
    )
    hard_label_weight: float = field(
        default=1.0, metadata={"help": "Weight of the labels' own loss for the paths that are taught."}
    )
    distillation_temperature: float = field(default=1.0, metadata={"help": "Temperature of the soft targets."})

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (
            ("hardness_signal", ("confidence", "entropy")),
            ("hardness_source", ("training", "evaluation", "agreement")),
            ("width_batches", ("joint", "alternating", "one_per_rank")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is one of {list(choices)}, got {getattr(self, name)!r}.")
        if self.hardness_source == "agreement" and self.hardness_signal == "entropy":
            raise ValueError("hardness_source='agreement' compares confidences; leave hardness_signal='confidence'.")
        for name, minimum in (
            ("hardness_window", 1),
            ("task_loss_weight", 0),
            ("router_loss_weight", 0),
            ("distillation_weight", 0),
            ("hidden_states_weight", 0),
            ("hard_label_weight", 0),
        ):
            if not getattr(self, name) >= minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {getattr(self, name)}.")
        if any(weight < 0 for weight in self.width_loss_weights or []):
            raise ValueError(f"`width_loss_weights` must not be negative, got {self.width_loss_weights}.")
        if not self.distillation_temperature > 0:
            raise ValueError(f"`distillation_temperature` must be positive, got {self.distillation_temperature}.")
        for name in ("hard_label_weight", "distillation_temperature"):
            if getattr(self, name) != 1.0 and not self.distillation_weight:
                raise ValueError(
                    f"`{name}`={getattr(self, name)} has no effect on paths that are not taught; set "
                    "`distillation_weight`, for example to 1, or leave it out."
                )
        if self.ddp_find_unused_parameters:
            raise ValueError(
                "SharcsTrainer reaches every parameter in each step; leave out ddp_find_unused_parameters."
            )
        # Trainer's default is True, under which DDP would count the entry and the router twice.
        self.ddp_find_unused_parameters = False
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                "SharcsTrainer plans its own batches: train_sampling_strategy is 'random' or 'group_by_length', not "
                f"{self.train_sampling_strategy!r}."
            )
        if self.train_every_width and self.width_batches == "alternating":
            raise ValueError(
                "train_every_width runs every width in each step; use width_batches='joint' or 'one_per_rank'."
            )
        if self.train_every_width and self.repeat_smaller_buckets:
            raise ValueError(
                "repeat_smaller_buckets has no effect with train_every_width, where every width has all samples; "
                "leave one of them out."
            )
        for name, usual, why in (
            ("dataloader_drop_last", False, "every sample is trained and scored once an epoch"),
            ("batch_eval_metrics", False, "metrics are computed for every width once all rows have been predicted"),
            ("eval_do_concat_batches", True, "rows are routed once all have been predicted"),
            ("include_for_metrics", [], "metrics are given predictions and labels only"),
        ):
            if getattr(self, name) != usual:
                raise ValueError(f"SharcsTrainer does not take {name}={getattr(self, name)!r}: {why}. Leave it out.")


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """
    Arguments of [`DistillationTrainer`], beside those of [`~transformers.TrainingArguments`]. Without a teacher they
    have no effect.

    Raises:
        ValueError: on a number out of range, a malformed pair of layers, or if nothing is left to learn from.
    """

    hard_label_weight: float = field(
        default=0.5, metadata={"help": "Weight of the labels' own loss; 0 leaves it out."}
    )
    logits_weight: float = field(
        default=0.5, metadata={"help": "Weight of the loss against the teacher's logits; 0 leaves it out."}
    )
    hidden_states_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss against the teacher's hidden states; 0 leaves it out."}
    )
    attentions_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss against the teacher's attentions; 0 leaves it out."}
    )
    distillation_temperature: float = field(default=1.0, metadata={"help": "Temperature of the soft targets."})
    distillation_layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pairs student:teacher of layers, counted from 1, whose hidden states and attentions are "
            "compared, such as 1:2 2:4 3:6. By default every student layer, with the teacher's spread evenly."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("hard_label_weight", "logits_weight", "hidden_states_weight", "attentions_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not (self.hard_label_weight or self.logits_weight or self.hidden_states_weight or self.attentions_weight):
            raise ValueError("All weights of the loss are 0, so that nothing is learnt; set at least one of them.")
        if not self.distillation_temperature > 0:
            raise ValueError(f"`distillation_temperature` must be positive, got {self.distillation_temperature}.")
        if self.distillation_temperature != 1 and not self.logits_weight:
            raise ValueError(
                f"`distillation_temperature` ({self.distillation_temperature}) softens the teacher's logits, but "
                "`logits_weight` is 0; set it, or leave the temperature out."
            )
        for pair in self.distillation_layers or []:
            student, _, teacher = str(pair).partition(":")
            if not all(layer.isdecimal() and int(layer) for layer in (student, teacher)):
                raise ValueError(
                    f"`distillation_layers` takes pairs such as 2:4 (the student's second layer learns from the "
                    f"teacher's fourth), got {pair!r}."
                )
        if self.distillation_layers and not (self.hidden_states_weight or self.attentions_weight):
            raise ValueError(
                "`distillation_layers` names layers to compare, but `hidden_states_weight` and `attentions_weight` "
                "are 0; set one of them."
            )
