# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Encoders that run the end of their last layer for some tokens only. The same file stands in both families, as each is
pushed with its models and imports no other package.
"""

from typing import Any

import torch


# Index of `(batch, tokens)` for heads that read nothing else.
FIRST_TOKEN = (slice(None), slice(0, 1))


def keep_tokens(hidden: torch.Tensor, tokens_to_keep: torch.Tensor | tuple | None) -> torch.Tensor:
    """What a head reads of `(batch, tokens, width)`, by an index of the first two dimensions; all without one."""
    return hidden if tokens_to_keep is None else hidden[tokens_to_keep].contiguous()


def check_tokens_to_keep(tokens_to_keep: Any, shape: torch.Size) -> None:
    """
    Raises:
        TypeError: if it is no index of `(batch, tokens)`.
        ValueError: for a mask of another shape.
    """
    if torch.is_tensor(tokens_to_keep):
        valid = tokens_to_keep.dtype == torch.bool and tokens_to_keep.dim() == 2
        given = f"{tokens_to_keep.dtype} of {tokens_to_keep.dim()} dimensions"
        if valid and tokens_to_keep.shape != shape:
            raise ValueError(
                f"`tokens_to_keep` is a mask of shape {tuple(tokens_to_keep.shape)}, the tokens' is {tuple(shape)}."
            )
    elif isinstance(tokens_to_keep, tuple):
        valid = len(tokens_to_keep) == 2 and all(_is_index(entry) for entry in tokens_to_keep)
        given = f"({', '.join(type(entry).__name__ for entry in tokens_to_keep)})"
    else:
        valid, given = tokens_to_keep is None, type(tokens_to_keep).__name__
    if not valid:
        raise TypeError(
            "`tokens_to_keep` is a boolean mask of shape (batch, tokens), what `mask.nonzero(as_tuple=True)` makes of "
            f"it, or two slices, got {given}."
        )


def _is_index(entry: Any) -> bool:
    return isinstance(entry, slice) or torch.is_tensor(entry) and entry.dtype == torch.long and entry.dim() == 1


def refuse_tokens_to_keep(kwargs: dict[str, Any]) -> None:
    """
    Raises:
        TypeError: if a head is told what it chooses itself.
    """
    if "tokens_to_keep" in kwargs:
        raise TypeError(
            "`tokens_to_keep` is for encoders (`model.base_model`); heads choose the tokens that they read themselves."
        )
