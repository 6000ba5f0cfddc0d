# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What the trainers ask of a teacher."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer

from .passes import gather_parameters


def prepare_teacher(trainer: Trainer, teacher: PreTrainedModel, partition: bool = True) -> nn.Module:
    """
    The teacher, frozen, in evaluation mode and on the trainer's device; under ZeRO-3 partitioned like the student, or
    whole on every process if `partition` is `False`.
    """
    teacher.requires_grad_(False).eval()
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3 or not partition:
        gather_parameters(teacher)  # `from_pretrained` may have partitioned it
        return trainer.accelerator.prepare_model(teacher, evaluation_mode=True)
    import deepspeed

    given = plugin.deepspeed_config
    # What the Trainer fills in later is for the student; what is left out has a default.
    zero = {name: value for name, value in given["zero_optimization"].items() if value != "auto"}
    zero.pop("offload_optimizer", None)
    precision = {name: given[name] for name in ("bf16", "fp16") if name in given}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **precision}
    engine, *_ = deepspeed.initialize(model=teacher, config=config)
    engine.eval()
    return engine


def check_teacher(student: PreTrainedModel, teacher: PreTrainedModel, with_labels: bool) -> None:
    """
    Raises:
        ValueError: if the teacher shares weights with the student, or is for another task; if it has another
            vocabulary or, for heads `with_labels`, other labels.
    """
    of_teacher = set(map(id, teacher.parameters()))
    shared = next((name for name, value in student.named_parameters() if id(value) in of_teacher), None)
    if shared is not None:
        raise ValueError(
            f"Teacher and student share weights, {shared} for one, which would be frozen; make the student of a copy."
        )
    heads = [type(side).__name__.rpartition("For")[2] for side in (student, teacher)]
    if heads[0] != heads[1]:
        raise ValueError(
            f"The teacher is a {type(teacher).__name__}, the student a {type(student).__name__}; choose a teacher "
            "fine-tuned on the same task."
        )
    if with_labels:
        _check_labels(student.config, teacher.config)
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ValueError(
            f"The teacher's vocabulary has {teacher.config.vocab_size} entries, the student's "
            f"{student.config.vocab_size}; choose a teacher with the same tokenizer."
        )


def _check_labels(own: PreTrainedConfig, given: PreTrainedConfig) -> None:
    if own.num_labels != given.num_labels:
        raise ValueError(
            f"The teacher has {given.num_labels} labels, the student {own.num_labels}; choose a teacher fine-tuned on "
            "the same task."
        )
    names = [list(config.id2label[index] for index in range(config.num_labels)) for config in (own, given)]
    default = [f"LABEL_{index}" for index in range(own.num_labels)]
    if names[0] != names[1] and default not in names and own.num_labels > 1:
        raise ValueError(
            f"The teacher's labels are {names[1]}, the student's {names[0]}: give the student the teacher's label2id "
            "and id2label, so that both mean the same by each output."
        )


def check_attentions(*models: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: if a model does not return its attention weights.
    """
    for model in models:
        found = model.config._attn_implementation
        if found != "eager":
            raise ValueError(
                f"Distilling attentions needs attention weights, which attn_implementation={found!r} does not return; "
                'load student and teacher with attn_implementation="eager", or call '
                '`set_attn_implementation("eager")` on both.'
            )


__all__ = ["check_attentions", "check_teacher", "prepare_teacher"]
