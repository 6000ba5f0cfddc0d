# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""The points of a sweep, the table of their results, and what it says: scores over seeds, the best one, a plot."""

import csv
import io
import itertools
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import is_matplotlib_available, logging

from example_utils import read_lines, write_text_atomically


logger = logging.get_logger(__name__)

TABLE_NAME = "sweep.jsonl"
# What does not change a result, and may differ between the calls of one sweep.
HARMLESS_PREFIXES = ("cache_dir", "dataloader_", "disable_tqdm", "logging_", "per_device_eval_", "preprocessing_")
HARMLESS_PREFIXES += ("report_to", "save_")

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """
    One run of a sweep.

    Args:
        task (`str`): Its GLUE task.
        values (`dict[str, Any]`): What the grid gives it, the seed last.
        settings (`dict[str, Any]`): These, and all other arguments that decide its result.
    """

    task: str
    values: dict[str, Any]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return name_values(self.values)

    @property
    def configuration(self) -> str:
        """What it shares with the runs that differ in the seed only."""
        return name_values({name: value for name, value in self.values.items() if name != "seed"})


def name_values(values: Mapping[str, Any]) -> str:
    """Names and values as one word that can be a folder's name."""
    words = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())
    return "_".join(words).replace(os.sep, "-") or "default"


def expand_grid(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    All combinations of a grid's values; a value alone is a list of one. The seed changes fastest, so that the runs of
    a configuration follow each other.

    Raises:
        ValueError: a list is empty, or holds a value twice.
    """
    axes = {name: values if isinstance(values, list) else [values] for name, values in grid.items()}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"The grid has no values for {name!r}; give one, or leave it out.")
        twice = [value for place, value in enumerate(values) if value in values[:place]]
        if twice:
            raise ValueError(f"The grid has {twice[0]!r} twice for {name!r}; leave one of them out.")
    names = sorted(axes, key=lambda name: name == "seed")
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axes[name] for name in names))]


# ---- the table ------------------------------------------------------------------------------------------------------


def read_results(folder: Path) -> dict[str, Row]:
    """
    The rows of a task's table by the name of their point. The last line may be torn, as by a full disk.

    Raises:
        ValueError: a line before the last is no row.
    """
    path = folder / TABLE_NAME
    lines = list(read_lines(path)) if path.is_file() else []
    rows = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["point"]] = row
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ValueError(
                    f"Line {number} of {str(path)!r} is no row of a sweep ({error}); correct it, or delete it to run "
                    "its point again."
                ) from error
            logger.warning(f"The last line of {str(path)!r} is torn; its point is run again.")
    return rows


def write_results(folder: Path, rows: Mapping[str, Row]) -> None:
    """Writes the table of a task as a whole."""
    write_text_atomically(folder / TABLE_NAME, [json.dumps(row, allow_nan=False) + "\n" for row in rows.values()])


def check_settings(rows: Mapping[str, Row], point: Point, folder: Path) -> None:
    """
    Results are compared with each other, so all but the grid must be the same for all rows.

    Raises:
        ValueError: a row was run with other arguments.
    """
    for row in rows.values():
        fixed = (row["settings"].keys() | point.settings.keys()) - row["values"].keys() - point.values.keys()
        for name in sorted(fixed):
            found, asked = row["settings"].get(name), point.settings.get(name)
            if found != asked and not name.startswith(HARMLESS_PREFIXES):
                raise ValueError(
                    f"The results in {str(folder)!r} are of runs with {name}={found!r}, but now {name} is {asked!r}. "
                    "Choose another --output_dir, or delete that folder."
                )


def make_row(point: Point, score_name: str, metrics: Mapping[str, float] | None, error: str | None = None) -> Row:
    """
    The row of a point: `finished`, `diverged` (a number is none) or, with an error, `failed`.

    Raises:
        ValueError: the score is not among the metrics.
    """
    metrics = dict(metrics or {})
    if error is None and score_name not in metrics:
        raise ValueError(
            f"The runs give no {score_name} to compare them by, only {', '.join(sorted(metrics)) or 'nothing'}; give "
            "data with a validation split, or --selection_split_percentage."
        )
    diverged = error is None and not all(map(math.isfinite, metrics.values()))
    metrics = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {
        "task": point.task,
        "point": point.name,
        "configuration": point.configuration,
        "values": point.values,
        "status": "failed" if error is not None else "diverged" if diverged else "finished",
        "score_name": score_name,
        "score": None if diverged else metrics.get(score_name),
        "metrics": metrics,
        "error": error,
        "settings": point.settings,
    }


# ---- what it says ---------------------------------------------------------------------------------------------------


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; `None` where there are too few values."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each configuration of a task with its scores over seeds; `best` marks the one with the best mean."""
    configurations: dict[str, list[Row]] = {}
    for row in rows:
        configurations.setdefault(row["configuration"], []).append(row)
    summary = []
    for name, runs in configurations.items():
        finished = [row for row in runs if row["status"] == "finished"]
        metrics = {
            metric: mean_and_deviation([row["metrics"][metric] for row in finished])
            for metric in (finished[0]["metrics"] if finished else ())
        }
        summary.append(
            {
                "configuration": name,
                "values": {name: value for name, value in runs[0]["values"].items() if name != "seed"},
                "runs": len(finished),
                "diverged": sum(row["status"] == "diverged" for row in runs),
                "failed": sum(row["status"] == "failed" for row in runs),
                "score_name": runs[0]["score_name"],
                "score": mean_and_deviation([row["score"] for row in finished]),
                "metrics": metrics,
                "best": False,
            }
        )
    with_scores = [entry for entry in summary if entry["runs"]]
    if with_scores:
        # A configuration that diverged for some seeds is no better than its luck with the others.
        max(with_scores, key=lambda entry: (entry["runs"], entry["score"]["mean"]))["best"] = True
    return summary


def best_run(rows: Sequence[Row]) -> Row | None:
    """The best run of the best configuration, if any run finished."""
    best = next((entry["configuration"] for entry in summarise(rows) if entry["best"]), None)
    runs = [row for row in rows if row["configuration"] == best and row["status"] == "finished"]
    return max(runs, key=lambda row: row["score"], default=None)


def write_summary(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Writes `summary.json` and `summary.csv` of all tasks that have a table, and gives the summary by task."""
    tables = {path.parent.name: read_results(path.parent) for path in sorted(output.glob(f"*/{TABLE_NAME}"))}
    summary = {task: summarise(list(rows.values())) for task, rows in tables.items()}
    write_text_atomically(output / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["task", "configuration", "runs", "diverged", "failed", "metric", "mean", "standard_deviation", "best"]
    )
    for task, entries in summary.items():
        for entry in entries:
            start = [task, *(entry[name] for name in ("configuration", "runs", "diverged", "failed"))]
            scored = {entry["score_name"]: entry["score"]} | entry["metrics"]
            for metric, found in scored.items():
                writer.writerow([*start, metric, found["mean"], found["standard_deviation"], entry["best"]])
    write_text_atomically(output / "summary.csv", table.getvalue())
    return summary


def plot_scores(rows: Sequence[Row], path: Path) -> None:
    """The score of every run, and each configuration's mean, on one line a configuration."""
    summary = [entry for entry in summarise(rows) if entry["runs"]]
    if not summary:
        return
    if not is_matplotlib_available():
        logger.warning(
            "matplotlib is not installed, so there is no plot; pip install -c constraints.txt -e '.[plots]'."
        )
        return
    from matplotlib.figure import Figure  # optional; without pyplot no display is looked for

    figure = Figure(figsize=(8, 1.2 + 0.25 * len(summary)), layout="constrained")
    axes = figure.subplots()
    for line, entry in enumerate(summary):
        scores = [row["score"] for row in rows if row["configuration"] == entry["configuration"]]
        scores = [score for score in scores if score is not None]
        axes.plot(scores, [line] * len(scores), ".", color="tab:blue")
        axes.plot(
            entry["score"]["mean"], line, "D", color="tab:red" if entry["best"] else "tab:blue", fillstyle="none"
        )
    axes.set_yticks(range(len(summary)), [entry["configuration"] for entry in summary], fontsize="small")
    axes.invert_yaxis()
    axes.set(
        xlabel=summary[0]["score_name"], title=f"{rows[0]['task']}: runs, means (diamonds) and the best one (red)"
    )
    axes.grid(alpha=0.3)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
