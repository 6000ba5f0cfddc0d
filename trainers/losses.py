# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Losses as pure functions. The teacher's side never receives a gradient."""

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F


def soft_cross_entropy(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """
    Cross entropy of the student's distribution against the teacher's, times the squared temperature so that its
    gradient keeps its scale.

    Args:
        student_logits, teacher_logits (`torch.Tensor` of shape `(rows, classes)`): Scores of the same rows.
        temperature (`float`, *optional*, defaults to 1.0): Divides both.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    targets = (teacher_logits.detach().float() / temperature).softmax(dim=-1)
    return -(targets * (student_logits.float() / temperature).log_softmax(dim=-1)).sum(dim=-1) * temperature**2


def soft_binary_cross_entropy(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """
    Binary cross entropy of independent labels against the teacher's probabilities.

    Args:
        student_logits, teacher_logits (`torch.Tensor` of shape `(rows, labels)`): Scores of the same rows.

    Returns:
        `torch.Tensor` of shape `(rows,)`: the mean over labels.
    """
    targets = teacher_logits.detach().float().sigmoid()
    return F.binary_cross_entropy_with_logits(student_logits.float(), targets, reduction="none").mean(dim=-1)


def row_losses(
    outputs: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    problem: str,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """
    The loss of each row against its labels.

    Args:
        outputs (`Mapping`): `logits`, or `start_logits` and `end_logits`.
        targets (`Mapping`): `labels`, or `start_positions` and `end_positions`.
        problem (`str`):
            `"single_label_classification"`, `"multi_label_classification"`, `"regression"`, `"token_classification"`
            (mean over a row's labelled tokens) or `"question_answering"` (mean of start and end).
        label_smoothing (`float`, *optional*, defaults to 0.0): For the two kinds of single-label classification.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    if problem == "question_answering":
        length = outputs["start_logits"].shape[1]
        ends = [
            F.cross_entropy(
                outputs[f"{name}_logits"].float(),
                targets[f"{name}_positions"].view(-1).clamp(0, length),
                ignore_index=length,  # an answer that was cut off
                reduction="none",
            )
            for name in ("start", "end")
        ]
        return (ends[0] + ends[1]) / 2
    logits, labels = outputs["logits"].float(), targets["labels"]
    if problem == "regression":
        losses = (logits.reshape(labels.shape) - labels.float()).square()
        return losses.reshape(len(labels), -1).mean(dim=-1)
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=-1)
    if problem == "token_classification":
        losses = F.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", label_smoothing=label_smoothing
        )  # zero where the label is -100
        return losses.sum(dim=-1) / (labels != -100).sum(dim=-1).clamp(min=1)
    return F.cross_entropy(logits, labels.view(-1), reduction="none", label_smoothing=label_smoothing)


def row_distillation_losses(
    outputs: Mapping[str, torch.Tensor],
    teacher_outputs: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    problem: str,
    temperature: float = 1.0,
) -> torch.Tensor:
    """
    The loss of each row against a teacher's output for it: soft cross entropy; mean squared difference for regression.

    Args:
        targets (`Mapping`): The labels, of which only the ignored tokens of a token classification matter.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    if problem == "question_answering":
        ends = [
            soft_cross_entropy(outputs[name], teacher_outputs[name], temperature)
            for name in ("start_logits", "end_logits")
        ]
        return (ends[0] + ends[1]) / 2
    own, given = outputs["logits"], teacher_outputs["logits"]
    if problem == "regression":
        return (own.float() - given.detach().float()).square().mean(dim=-1)
    if problem == "multi_label_classification":
        return soft_binary_cross_entropy(own, given)
    losses = soft_cross_entropy(own, given, temperature)
    if problem == "token_classification":
        labelled = targets["labels"] != -100
        return (losses * labelled).sum(dim=-1) / labelled.sum(dim=-1).clamp(min=1)
    return losses


def row_hidden_state_losses(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    The loss of each row's hidden states against those of a wider path through the same layers: the mean squared
    difference to its first channels, both normalised token by token.

    Args:
        student (`Sequence` of `torch.Tensor` of shape `(rows, tokens, width)`): One tensor a layer.
        teacher (`Sequence` of `torch.Tensor` of shape `(rows, tokens, larger width)`): One tensor a layer.
        attention_mask (`torch.Tensor` of shape `(rows, tokens)`, *optional*): 0 at padding.

    Returns:
        `torch.Tensor` of shape `(rows,)`: means over layers, real tokens and channels.
    """
    losses = []
    for own, target in zip(student, teacher, strict=True):
        size = own.shape[-1:]
        target = target.detach()[..., : own.shape[-1]]
        difference = F.layer_norm(own.float(), size) - F.layer_norm(target.float(), size)
        losses.append(difference.square().mean(dim=-1))
    by_token = torch.stack(losses).mean(dim=0)
    mask = torch.ones_like(by_token) if attention_mask is None else attention_mask.to(by_token.dtype)
    return (by_token * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def hidden_state_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    Mean squared difference of hidden states that are normalised token by token, over real tokens only.

    Args:
        student, teacher (`Sequence` of `torch.Tensor` of shape `(batch, tokens, width)`): One tensor a layer.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 0 at padding.

    Returns:
        A scalar: the mean over layers, tokens and channels.

    Raises:
        ValueError: if widths differ.
    """
    losses = []
    for own, target in zip(student, teacher, strict=True):
        if own.shape != target.shape:
            raise ValueError(
                f"Hidden states of widths {own.shape[-1]} and {target.shape[-1]} cannot be compared; distil 'logits' "
                "only, or use a search space with bottlenecks and a teacher of the backbone's width."
            )
        size = own.shape[-1:]
        difference = F.layer_norm(own.float(), size) - F.layer_norm(target.detach().float(), size)
        losses.append(_token_mean(difference.square().mean(dim=-1), attention_mask))
    return torch.stack(losses).mean()


def attention_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    Cross entropy of attention distributions, over real query positions only.

    Args:
        student, teacher (`Sequence` of `torch.Tensor` of shape `(batch, heads, tokens, tokens)`): One tensor a layer.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 0 at padding.

    Returns:
        A scalar: the mean over layers, heads and query positions.

    Raises:
        ValueError: if numbers of heads differ.
    """
    losses = []
    for own, target in zip(student, teacher, strict=True):
        if own.shape != target.shape:
            raise ValueError(
                f"Attentions of {own.shape[1]} and {target.shape[1]} heads cannot be compared; distil 'logits' or "
                "'hidden_states' instead, or keep the number of heads fixed."
            )
        cross = -(target.detach().float() * own.float().clamp(min=1e-6).log()).sum(dim=-1)
        losses.append(_token_mean(cross.mean(dim=1), attention_mask))
    return torch.stack(losses).mean()


def _token_mean(values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of `(batch, tokens)` values over the positions that `attention_mask` keeps."""
    if attention_mask is None:
        return values.mean()
    mask = attention_mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1)
