# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What the scripts that compare runs share: arms of several seeds, paired bootstrap intervals, the report."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from example_utils import write_text_atomically


__all__ = [
    "ComparisonArguments",
    "check_arms",
    "compare_with_baseline",
    "interval",
    "signed",
    "split_arms",
    "write_report",
]


@dataclass(kw_only=True)
class ComparisonArguments:
    """Which runs to compare, and how."""

    runs: list[str] = field(metadata={"help": "Arms as NAME=FOLDER,FOLDER,… with one folder a seed."})
    baseline: str = field(metadata={"help": "The arm that the others are compared with."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})
    resamples: int = field(default=2000, metadata={"help": "Bootstrap resamples."})
    confidence: float = field(default=0.95, metadata={"help": "Coverage of the intervals."})
    seed: int = field(default=0, metadata={"help": "Seed of the resampling."})

    def __post_init__(self):
        if self.resamples < 1:
            raise ValueError(f"--resamples must be at least 1, got {self.resamples}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"--confidence must lie between 0 and 1, such as 0.95; got {self.confidence}.")


def split_arms(texts: Iterable[str]) -> dict[str, list[str]]:
    """
    The folders of each arm by its name.

    Raises:
        ValueError: if a text has no name or folder, or a name occurs twice.
    """
    arms: dict[str, list[str]] = {}
    for text in texts:
        name, _, folders = text.partition("=")
        if not name or not folders:
            raise ValueError(f"An arm is NAME=FOLDER,FOLDER,…, got {text!r}.")
        if name in arms:
            raise ValueError(f"Two arms are called {name!r}; give all folders of an arm at once.")
        arms[name] = folders.split(",")
    return arms


def check_arms(wanted: Iterable[str], arms: Iterable[str]) -> None:
    """
    Raises:
        ValueError: if an arm that is asked for was not given.
    """
    for name in wanted:
        if name not in arms:
            raise ValueError(f"No arm is called {name!r}; the arms are {sorted(arms)}.")


def interval(replicates: np.ndarray, confidence: float) -> list[float]:
    """The percentile interval of bootstrap replicates."""
    tail = 100 * (1 - confidence) / 2
    return [float(edge) for edge in np.percentile(replicates, [tail, 100 - tail])]


def compare_with_baseline(
    metric: str, value: float, replicates: np.ndarray, baseline: tuple[float, np.ndarray], confidence: float
) -> dict[str, Any]:
    """
    An arm's metric and its difference to the baseline's, both with intervals.

    Args:
        metric (`str`): The metric's name.
        value (`float`): The arm's metric.
        replicates (`np.ndarray` of shape `(resamples,)`): Its bootstrap replicates, paired with the baseline's.
        baseline (`tuple[float, np.ndarray]`): The same two of the baseline.
        confidence (`float`): Coverage of the intervals.
    """
    return {
        metric: float(value),
        f"{metric}_interval": interval(replicates, confidence),
        "minus_baseline": float(value - baseline[0]),
        "minus_baseline_interval": interval(replicates - baseline[1], confidence),
    }


def signed(value: float, edges: list[float], digits: int) -> str:
    """A difference and its interval, as tables show them."""
    return f"{value:+.{digits}f} [{edges[0]:+.{digits}f}, {edges[1]:+.{digits}f}]"


def write_report(report: dict[str, Any], path: str | Path | None) -> None:
    if path is not None:
        write_text_atomically(path, json.dumps(report, indent=2) + "\n")
