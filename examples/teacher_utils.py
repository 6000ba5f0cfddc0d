# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What the scripts that learn from a teacher ask of it, and of the command line."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from example_utils import argument_names
from trainers import DistillationTrainingArguments


__all__ = ["check_teacher_tokenizer", "load_trained", "refuse_options_without_teacher"]

DISTILLATION_ARGUMENTS = set(argument_names([DistillationTrainingArguments])) - set(
    argument_names([TrainingArguments])
)


def refuse_options_without_teacher(given: Iterable[str]) -> None:
    """
    Checks a command line that names no teacher.

    Args:
        given (iterable of `str`): The options that it sets.

    Raises:
        ValueError: if one of them says how to learn from a teacher.
    """
    unused = sorted(DISTILLATION_ARGUMENTS & set(given))
    if unused:
        raise ValueError(
            f"{unused[0]} says how to learn from a teacher, but there is none: give one with --teacher_name_or_path, "
            f"or leave {' and '.join(unused)} out."
        )


def load_trained(model_class: type, name: str, way_out: str, **loading: Any) -> PreTrainedModel:
    """
    A model that is used as it is, in float32 whatever its checkpoint's type.

    Args:
        model_class (`type`): Its class, or an auto class.
        name (`str`): A Hub name or a folder.
        way_out (`str`): What the user can do where weights are missing.
        loading: Other arguments of `from_pretrained`.

    Raises:
        ValueError: if it has not all weights of that class, so that some would be drawn at random.
    """
    model, loaded = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **loading)
    missing = sorted(loaded["missing_keys"])
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise ValueError(
            f"{name!r} has no trained {', '.join(missing[:4])}{more}, which a {type(model).__name__} needs: {way_out}"
        )
    return model


def check_teacher_tokenizer(
    own: PreTrainedTokenizerBase, teacher: str, tokenizer: PreTrainedTokenizerBase, student: str, pairs: bool
) -> None:
    """
    Args:
        own (`PreTrainedTokenizerBase`): The teacher's.
        teacher, student (`str`): Their names, for messages.
        tokenizer (`PreTrainedTokenizerBase`): The student's, whose tokens the teacher is going to read.
        pairs (`bool`): Whether a row has two texts.

    Raises:
        ValueError: if the teacher reads other tokens than the student, or knows of pairs which text is which by what
            the student's tokenizer does not give.
    """
    if own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"The teacher {teacher!r} and the student {student!r} have different tokenizers; choose a teacher that "
            "was fine-tuned with the student's."
        )
    if pairs and "token_type_ids" in own.model_input_names and "token_type_ids" not in tokenizer.model_input_names:
        raise ValueError(
            f"The teacher {teacher!r} tells the texts of a pair apart by token types, which the student {student!r} "
            "does not have; choose a teacher or a student of the other's family."
        )
