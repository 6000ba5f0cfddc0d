# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What a search judges candidates by: their loss on masked words, or a metric of a task."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from .modeling_mos_subnet import MaskedLMHeadMixin


class _RowsObjective:
    """Validation rows in an order that is shuffled once, so that a first slice is like the whole."""

    def __init__(self, rows: Sequence[Any], collate: Callable, batch_size: int):
        if len(rows) == 0:
            raise ValueError("There are no validation rows to judge candidates by.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if "labels" not in rows[0]:
            raise ValueError(f"Validation rows have {sorted(rows[0])}, `labels` are missing.")
        self.rows, self.collate, self.batch_size = rows, collate, batch_size
        self.order = list(range(len(rows)))
        random.Random("rows of the search").shuffle(self.order)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, model: PreTrainedModel, start: int, stop: int) -> Iterable[dict[str, torch.Tensor]]:
        """The collated rows at the places `start` to `stop` of the random order, on the model's device."""
        for first in range(start, stop, self.batch_size):
            positions = self.order[first : min(first + self.batch_size, stop)]
            batch = self.collate([self.rows[position] for position in positions])
            yield {name: value.to(model.device) for name, value in batch.items()}

    def fingerprint(self) -> str:
        """Differs where the rows differ: of their number and of 256 of them."""
        digest = hashlib.sha256(str(len(self)).encode())
        for position in range(0, len(self), -(-len(self) // 256)):
            row = self.rows[self.order[position]]
            for name in sorted(row):
                digest.update(f"{name}={np.asarray(row[name]).tolist()}".encode())
        return digest.hexdigest()


class MaskedLMObjective(_RowsObjective):
    """
    Masked-LM loss in nats on sequences whose masks never change, so that candidates are compared on the same words.

    An objective is anything with these members: `len(objective)` rows; `evaluate(model, start, stop)`, an array of
    shape `(stop - start, values)` with what each of those rows contributes; `score(contributions)`, one number out of
    the contributions of any rows; `greater_is_better`; `name`; `fingerprint()` of the rows.

    Args:
        rows (sequence):
            Validation rows with `input_ids`, `attention_mask` and `labels` that are masked already and stay so, such
            as a [`~trainers.MaskedLanguageModelingDataset`]. Read in an order that is shuffled once, so that a first
            slice is like the whole.
        collate (`Callable`, *optional*): Makes a batch of a list of rows; `rows.collate` if not given.
        batch_size (`int`, *optional*, defaults to 32): Sequences in a forward pass.
    """

    name = "loss"
    greater_is_better = False

    def __init__(self, rows: Sequence[Any], collate: Callable | None = None, batch_size: int = 32):
        collate = getattr(rows, "collate", None) if collate is None else collate
        if collate is None:
            raise ValueError(
                f"A {type(rows).__name__} does not know how to make batches of its rows; give `collate=`, such as a "
                "data collator of Transformers."
            )
        super().__init__(rows, collate, batch_size)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, start: int, stop: int) -> np.ndarray:
        """Summed loss and number of predicted tokens of rows `start` to `stop`, of shape `(stop - start, 2)`."""
        found = []
        for batch in self.batches(model, start, stop):
            labels = batch.pop("labels")
            asked = (labels != -100).nonzero(as_tuple=True)
            # Vocabulary scores of the labelled positions only, where the head can be called on them.
            if isinstance(model, MaskedLMHeadMixin):
                scores = model.scores_of(asked, **batch)
            elif hasattr(model, "lm_head"):
                scores = model.lm_head(model.base_model(**batch).last_hidden_state[asked])
            elif hasattr(model, "cls"):
                scores = model.cls(model.base_model(**batch).last_hidden_state[asked])
            else:
                scores = model(**batch).logits[asked]
            losses = F.cross_entropy(scores.float(), labels[asked], reduction="none")
            summed = torch.zeros(len(labels), device=losses.device).index_add_(0, asked[0], losses)
            counts = (labels != -100).sum(dim=1).float()
            found.append(torch.stack([summed, counts], dim=1).cpu().numpy())
        return np.concatenate(found)

    def score(self, contributions: np.ndarray) -> float:
        """Mean loss of a predicted token, in nats, from the summed losses and counts of some rows."""
        summed, counted = contributions.sum(axis=0)
        return float(summed / max(counted, 1))


class TaskObjective(_RowsObjective):
    """
    A metric of a supernet that was fine-tuned on a task, on labelled validation rows (the published search by MNLI
    accuracy). The members are those of [`MaskedLMObjective`].

    Args:
        rows (sequence): Rows with inputs and `labels`, one label a row.
        collate (`Callable`): Makes a padded batch of a list of rows.
        metric (`Callable`): Takes logits of shape `(rows, labels)` and labels of shape `(rows,)`; returns a number.
        batch_size (`int`, *optional*, defaults to 32): Rows in a forward pass.
        greater_is_better (`bool`, *optional*, defaults to `True`): Which way the metric points.
        name (`str`, *optional*, defaults to `"metric"`): What reports call it.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable,
        metric: Callable[[np.ndarray, np.ndarray], float],
        batch_size: int = 32,
        greater_is_better: bool = True,
        name: str = "metric",
    ):
        super().__init__(rows, collate, batch_size)
        self.metric, self.greater_is_better, self.name = metric, greater_is_better, name

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, start: int, stop: int) -> np.ndarray:
        """Logits and, last, the label of rows `start` to `stop`."""
        found = []
        for batch in self.batches(model, start, stop):
            labels = batch.pop("labels")
            logits = model(**batch).logits.float()
            found.append(torch.cat([logits, labels.float()[:, None]], dim=1).cpu().numpy())
        return np.concatenate(found)

    def score(self, contributions: np.ndarray) -> float:
        """The metric, from the logits and, in the last column, the labels of some rows."""
        return float(self.metric(contributions[:, :-1], contributions[:, -1]))


__all__ = ["MaskedLMObjective", "TaskObjective"]
