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


def check_tokens_to_keep(tokens_to_keep: Any) -> None:
    """
    Raises:
        TypeError: if it is no index of `(batch, tokens)`.
    """
    if torch.is_tensor(tokens_to_keep):
        valid = tokens_to_keep.dtype == torch.bool and tokens_to_keep.dim() == 2
        given = f"{tokens_to_keep.dtype} of {tokens_to_keep.dim()} dimensions"
    else:
        valid = tokens_to_keep is None or isinstance(tokens_to_keep, tuple) and len(tokens_to_keep) == 2
        given = repr(tokens_to_keep)
    if not valid:
        raise TypeError(
            "`tokens_to_keep` is a boolean mask of shape (batch, tokens), or what `mask.nonzero(as_tuple=True)` makes "
            f"of it, got {given}."
        )


def refuse_tokens_to_keep(kwargs: dict[str, Any]) -> None:
    """
    Raises:
        TypeError: if a head is told what it chooses itself.
    """
    if "tokens_to_keep" in kwargs:
        raise TypeError(
            "`tokens_to_keep` is for encoders (`model.base_model`); heads choose the tokens that they read themselves."
        )
