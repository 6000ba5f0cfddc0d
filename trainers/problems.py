# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Which kind of task a model with a head is trained for, as `config.problem_type` names it, and two kinds more."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel


def find_problem(model: PreTrainedModel, label_names: Sequence[str], dataset=None) -> str:
    """
    `"single_label_classification"`, `"multi_label_classification"`, `"regression"`, `"token_classification"` or
    `"question_answering"`.

    Args:
        model (`PreTrainedModel`): A model with a head.
        label_names (`Sequence[str]`): Its labels, as `Trainer` names them.
        dataset (*optional*): Its first row tells several labels from one where the configuration does not.
    """
    if "start_positions" in label_names:
        return "question_answering"
    if "TokenClassification" in type(model).__name__:
        return "token_classification"
    if model.config.problem_type is not None:
        return model.config.problem_type
    if model.config.num_labels == 1:
        return "regression"
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    label = label_of(dataset[0]) if hasattr(dataset, "__len__") and len(dataset) else None
    many = label is not None and np.ndim(label) > 0 and np.size(label) > 1
    return "multi_label_classification" if many else "single_label_classification"


def label_of(row: dict[str, Any]) -> Any:
    """A row's label: the data collators of transformers accept both names."""
    return row.get("labels", row.get("label"))
