# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Embeddings and parts of parameters, whose gradients may be added in place.

The packages of both families have this file: a family's code is pushed with its models, and imports no other package.
"""

import contextlib
from contextvars import ContextVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


_IN_PLACE = ContextVar("add_gradients_in_place", default=False)


@contextlib.contextmanager
def add_gradients_in_place():
    """
    Inside, gradients of a few entries of a parameter (see [`leading`] and [`WordEmbedding`]) go straight into
    `parameter.grad`. Otherwise autograd pads each with zeros to the parameter's size, and adds all of that: 7 to 13%
    of a pass of the narrow parts of a BERT-base.

    For a forward pass and its `loss.backward()` whose gradients stay local, to one process or one pass: what reduces
    gradients is not given these. Nor is `torch.autograd.grad`, which would change `parameter.grad` all the same.
    """
    token = _IN_PLACE.set(True)
    try:
        yield
    finally:
        _IN_PLACE.reset(token)


def adds_in_place(parameter: torch.Tensor) -> bool:
    """Whether [`add_gradients_in_place`] holds, and `parameter` is an ordinary one whose gradient no hook awaits."""
    if torch.compiler.is_compiling() or not (_IN_PLACE.get() and torch.is_grad_enabled()):
        return False
    if type(parameter) is not nn.Parameter or not parameter.requires_grad:
        return False
    return not (parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """What there is to add to; zeros at first."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def is_part(parameter: torch.Tensor, sizes: tuple[int | None, ...]) -> bool:
    """Whether `sizes` leave anything of `parameter` out."""
    return any(size is not None and size < whole for size, whole in zip(sizes, parameter.shape, strict=False))


class LeadingInPlace(torch.autograd.Function):
    """[`leading`] of a parameter that adds its gradients in place."""

    @staticmethod
    def forward(ctx, parameter: torch.Tensor, taken: tuple[slice, ...]) -> torch.Tensor:
        ctx.parameter, ctx.taken = parameter, taken
        return parameter[taken]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        gradient_of(ctx.parameter)[ctx.taken].add_(gradient)
        return None, None


def leading(parameter: torch.Tensor, *sizes: int | None) -> torch.Tensor:
    """The first entries of each dimension, all of them where a size is `None`: a view of `parameter`."""
    taken = tuple(map(slice, sizes))
    if adds_in_place(parameter) and is_part(parameter, sizes):
        return LeadingInPlace.apply(parameter, taken)
    return parameter[taken]


class EmbedInPlace(torch.autograd.Function):
    """An embedding that adds its gradients in place."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor, ids: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
        ctx.weight, ctx.padding_idx = weight, padding_idx
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        (ids,) = ctx.saved_tensors
        if ctx.padding_idx is not None:  # which learns nothing
            gradient = gradient.masked_fill((ids == ctx.padding_idx).unsqueeze(-1), 0)
        gradient_of(ctx.weight).index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        return None, None, None


class WordEmbedding(nn.Embedding):
    """`nn.Embedding`, whose gradient of a few rows need not be as large as the vocabulary on a CPU."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        # Elsewhere, the order in which rows are added is not the same in every run.
        if ids.device.type == "cpu" and adds_in_place(self.weight):
            return EmbedInPlace.apply(self.weight, ids, self.padding_idx)
        return super().forward(ids)
