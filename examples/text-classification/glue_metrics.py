# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""The official metrics of the GLUE tasks, as the `compute_metrics` of a Trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import evaluate
import numpy as np
from transformers import EvalPrediction

from glue_arguments import TASKS, plain_name


METRIC_SCRIPT = Path(__file__).resolve().parents[1] / "metrics" / "elastic_glue.py"


def main_metric(task_name: str | None, is_regression: bool = False) -> str:
    """The metric that models are selected by: the task's, else accuracy or, for regression, Pearson's correlation."""
    if task_name is not None:
        return TASKS[plain_name(task_name)].main_metric
    return "pearson" if is_regression else "accuracy"


def glue_compute_metrics(
    task_name: str | None, is_regression: bool | None = None, label_names: Sequence[str] | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    Makes the `compute_metrics` of a Trainer, from the metric module that the project carries: no network is needed.

    Args:
        task_name (`str` or `None`): A GLUE task, whose official metrics are computed; `None` for own data.
        is_regression (`bool`, *optional*): For own data, whether the labels are numbers.
        label_names (sequence of `str`, *optional*): The classes in the model's order, where it is not the official
            one: F1 is that of the official second class.

    Returns:
        `Callable`: Takes an `EvalPrediction` whose predictions are logits, alone or first in a tuple.

    Raises:
        ValueError: scikit-learn or scipy is not installed.
    """
    if task_name is not None:
        is_regression = TASKS[plain_name(task_name)].is_regression
    name = plain_name(task_name) if task_name is not None else "regression" if is_regression else "accuracy"
    try:
        # In memory: every process computes the metrics of all rows, and needs no files or locks to agree on.
        metric = evaluate.load(str(METRIC_SCRIPT), name, keep_in_memory=True)
    except ImportError as error:
        raise ValueError(
            f"Metrics need scikit-learn and scipy ({str(error).rstrip('.')}): pip install scikit-learn scipy."
        ) from error

    official = None
    if task_name is not None and label_names is not None and not is_regression:
        official = official_classes(task_name, label_names)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        logits = np.asarray(logits[0] if isinstance(logits, (tuple, list)) else logits)
        labels = np.asarray(prediction.label_ids)
        if is_regression:
            return metric.compute(predictions=logits.reshape(len(logits)), references=labels.reshape(len(labels)))
        predicted = logits.argmax(axis=-1)
        if official is not None:
            predicted, labels = official[predicted], official[labels]
        return metric.compute(predictions=predicted, references=labels)

    return compute_metrics


def official_classes(task_name: str, label_names: Sequence[str]) -> np.ndarray:
    """
    The official number of each class of a model. One that the model has, but not the task, gets a number of its own,
    which is wrong wherever it is predicted.
    """
    names = TASKS[plain_name(task_name)].label_names
    return np.asarray([names.index(name) if name in names else len(names) for name in label_names])
