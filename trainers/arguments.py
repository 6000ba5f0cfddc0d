# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Training arguments of the trainers."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


DISTILLATION_TERMS = ("logits", "hidden_states", "attentions")


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
            if getattr(self, name) < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {getattr(self, name)}.")
        if self.distillation_temperature <= 0:
            raise ValueError(f"`distillation_temperature` must be positive, got {self.distillation_temperature}.")
