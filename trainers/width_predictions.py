# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What every width says about every row, and the curve of what each amount of compute buys."""

import csv
import io
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import is_matplotlib_available, logging


logger = logging.get_logger(__name__)


@dataclass
class WidthPredictions:
    """
    What every width of a model, and its router, say about every row of a data set.

    Args:
        predictions (`list` of `np.ndarray` or tuples of them): One entry a width: `logits`, or start and end logits.
        router_logits (`np.ndarray` of shape `(rows, widths)`): The router's scores.
        lengths (`np.ndarray` of shape `(rows,)`): Real tokens.
        losses (`np.ndarray` of shape `(rows, widths)`, *optional*): Task losses, where the rows have labels.
        label_ids (`np.ndarray` or a tuple of them, *optional*): The labels.
    """

    predictions: list
    router_logits: np.ndarray
    lengths: np.ndarray
    losses: np.ndarray | None
    label_ids: Any

    def select(self, width_indices: np.ndarray):
        """Predictions of rows that take the given widths, which is what routed inference returns."""

        def pick(entries):
            stacked = np.stack(entries)
            return stacked[width_indices, np.arange(len(width_indices))]

        if isinstance(self.predictions[0], tuple):
            return tuple(pick(entries) for entries in zip(*self.predictions, strict=True))
        return pick(self.predictions)


def save_curve(
    points: list[dict[str, Any]], folder: str, metric: str, widths: dict[str, dict[str, float]] | None = None
) -> dict[str, str]:
    """
    Writes `compute_curve.json`, `.csv` and, where matplotlib is installed, `.png`.

    Args:
        points (`list[dict]`): Of [`SharcsTrainer.compute_curve`].
        folder (`str`): Where to write.
        metric (`str`): The metric on the plot's vertical axis.
        widths (`dict`, *optional*): Other points by name, each with `flops_share` and `metric`, to mark on the plot.

    Returns:
        `dict[str, str]`: the paths by suffix.

    Raises:
        ValueError: if there is no such metric.
    """
    if metric not in points[0]:
        raise ValueError(f"The curve has no metric {metric!r}; it has {sorted(points[0])}.")
    os.makedirs(folder, exist_ok=True)
    paths = {suffix: os.path.join(folder, f"compute_curve.{suffix}") for suffix in ("json", "csv", "png")}
    columns = [name for name in points[0] if name != "rows_per_width"]
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(columns)
    writer.writerows([point[name] for name in columns] for point in points)
    for suffix, text in (("json", json.dumps(points, indent=2) + "\n"), ("csv", table.getvalue())):
        with open(f"{paths[suffix]}.unfinished", "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        os.replace(f"{paths[suffix]}.unfinished", paths[suffix])
    if not is_matplotlib_available():
        logger.warning(f"No plot is written to {paths.pop('png')}: matplotlib is not installed.")
        return paths
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([point["flops_share"] for point in points], [point[metric] for point in points], marker=".")
    for name, point in (widths or {}).items():
        axes.plot(point["flops_share"], point[metric], marker="x", linestyle="none", label=name)
    axes.set(xlabel="share of full FLOPs", ylabel=metric, title="What compute buys")
    axes.grid(alpha=0.3)
    if widths:
        axes.legend(loc="best")
    save_figure(figure, paths["png"])
    return paths


def save_figure(figure, path: str | os.PathLike) -> None:
    """Writes a figure of matplotlib beside its place and renames it."""
    figure.savefig(f"{path}.unfinished", format="png", dpi=150)
    os.replace(f"{path}.unfinished", path)


def agreement(narrow, wide, problem: str, labels=None) -> np.ndarray:
    """Rows for which two paths give the same answer; for a regression the closer half."""
    if problem == "question_answering":
        return np.all([a.argmax(-1) == b.argmax(-1) for a, b in zip(narrow, wide, strict=True)], axis=0)
    if problem == "regression":
        difference = np.abs(narrow - wide).reshape(len(narrow), -1).mean(axis=1)
        return difference <= np.median(difference)
    if problem == "multi_label_classification":
        return ((narrow > 0) == (wide > 0)).all(axis=1)
    same = narrow.argmax(-1) == wide.argmax(-1)
    if problem != "token_classification":
        return same
    return (same if labels is None else same | (labels == -100)).all(axis=1)


def take_rows(values, rows: np.ndarray):
    """Some rows of an array or of each of several; `None` stays."""
    if values is None:
        return None
    return tuple(value[rows] for value in values) if isinstance(values, (tuple, list)) else values[rows]


__all__ = ["WidthPredictions", "agreement", "save_curve", "take_rows"]
