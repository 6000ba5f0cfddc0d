#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Compares GLUE runs on the same validation rows, over tasks and seeds: scores in points with paired intervals.

Each run is a folder that run_glue.py or run_glue_sharcs.py wrote with --save_predictions; runs that differ in the seed
share a name, and {task} stands for each task's name. NAME@PREDICTION takes the logits of that name out of the files,
which for a routed encoder are those of a compute budget or of one width:

    python compare_glue_runs.py --tasks mrpc rte --baseline full --output results.json \
        --runs full=runs/plain-{task}-s1,runs/plain-{task}-s2 \
        half@budget_0.5=runs/sharcs-{task}-s1,runs/sharcs-{task}-s2

A task's score is accuracy (also for MRPC and QQP, as in published tables), Matthews correlation for CoLA, and for
STS-B the mean of Pearson's and Spearman's correlation. For own data the task is `accuracy` or `regression`. Seeds and
rows are resampled together (hierarchical bootstrap), the same ones for all arms; tasks are not.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tqdm.auto import tqdm
from transformers.utils import is_matplotlib_available, logging


# The helpers are in other folders; example scripts are run from anywhere and are not installed.
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parent / "metrics")]
from comparison_utils import (  # noqa: E402
    ComparisonArguments,
    check_arms,
    compare_with_baseline,
    signed,
    split_arms,
    write_report,
)
from elastic_glue import task_scores  # noqa: E402
from example_utils import parse_arguments, run_script, show_progress_messages  # noqa: E402
from glue_utils import TASKS, main_metric, official_classes  # noqa: E402


logger = logging.get_logger("compare_glue_runs")

OWN_DATA = ("accuracy", "regression")  # as in the metric module


@dataclass(kw_only=True)
class GlueComparisonArguments(ComparisonArguments):
    """Which GLUE runs to compare, and how."""

    runs: list[str] = field(
        metadata={
            "help": "Arms as NAME=FOLDER,FOLDER,… or NAME@PREDICTION=FOLDER,FOLDER,… with one folder a seed, in which "
            "{task} stands for the task; PREDICTION is for example budget_0.5 or width_1."
        }
    )
    tasks: list[str] = field(
        metadata={"help": "GLUE tasks: " + ", ".join(TASKS) + "; or, for own data, " + " or ".join(OWN_DATA) + "."}
    )

    def __post_init__(self):
        super().__post_init__()
        for position, task in enumerate(self.tasks):
            if task not in (*TASKS, *OWN_DATA):
                raise ValueError(
                    f"{task!r} is no GLUE task; the tasks are {', '.join(TASKS)}; for own data give "
                    f"{' or '.join(OWN_DATA)}."
                )
            if task in self.tasks[:position]:
                raise ValueError(f"--tasks names {task!r} twice.")
        if len(self.tasks) > 1:
            for text in self.runs:
                if any("{task}" not in folder for folder in text.split(",")):
                    raise ValueError(
                        f"With several tasks every folder of an arm needs {{task}} in its name: {text!r}."
                    )


@dataclass
class Predictions:
    """
    What the runs of an arm answer on a task.

    Args:
        answers (`np.ndarray` of shape `(seeds, rows)`): Official class numbers, or for STS-B numbers.
        labels (`np.ndarray` of shape `(rows,)`): The right answers.
        flops_share (`float`, *optional*): Share of full FLOPs, mean over the seeds, where the runs know it.
    """

    answers: np.ndarray
    labels: np.ndarray
    flops_share: float | None


def read_run(folder: str, task: str, prediction: str) -> tuple[np.ndarray, np.ndarray, float | None]:
    """
    Answers, labels and share of FLOPs of one run.

    Raises:
        ValueError: if the run has no such predictions.
    """
    path = Path(folder) / "predictions.safetensors"
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist; train that run with --save_predictions.")
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        names = json.loads((file.metadata() or {}).get("label_names", "null"))
    prefix = f"{prediction}." if prediction else ""
    if f"{prefix}logits" not in tensors:
        known = sorted(name.removesuffix(".logits") for name in tensors if name.endswith(".logits"))
        raise ValueError(f"{str(path)!r} has no predictions {prediction!r}; it has {known}.")
    logits, labels = tensors[f"{prefix}logits"], tensors["labels"]
    share = tensors.get(f"{prefix}flops_share")
    if is_regression(task):
        answers = logits.reshape(len(logits))
    else:
        common = class_numbers(task, names)
        answers, labels = common[logits.argmax(axis=-1)], common[labels]
    return answers, labels, None if share is None else float(share[0])


def read_task(arms: dict[str, list[str]], task: str) -> dict[str, Predictions]:
    """
    The predictions of every arm on a task.

    Raises:
        ValueError: if runs were evaluated on other rows, or arms differ in their number of seeds.
    """
    found: dict[str, Predictions] = {}
    first_folder, first_labels = "", np.empty(0)
    for arm, folders in arms.items():
        _, _, prediction = arm.partition("@")
        runs = []
        for folder in folders:
            folder = folder.replace("{task}", task)
            answers, labels, share = read_run(folder, task, prediction)
            if not first_folder:
                first_folder, first_labels = folder, labels
            if not np.array_equal(labels, first_labels):
                raise ValueError(
                    f"{first_folder!r} and {folder!r} were not evaluated on the same rows of {task} "
                    f"({len(first_labels)} and {len(labels)} labels, or in another order); evaluate them alike."
                )
            runs.append((answers, share))
        shares = [share for _, share in runs]
        found[arm] = Predictions(
            answers=np.stack([answers for answers, _ in runs]),
            labels=first_labels,
            flops_share=None if None in shares else float(np.mean(shares)),
        )
    return found


def is_regression(task: str) -> bool:
    return task == "regression" if task in OWN_DATA else TASKS[task].is_regression


def class_numbers(task: str, names: list[str] | None) -> np.ndarray:
    """For each class of a run, which may have its own order, the number that it has in all runs."""
    if task in TASKS:
        return official_classes(task, names or TASKS[task].label_names)
    return np.asarray([sorted(names).index(name) for name in names])


def task_metric(task: str) -> str:
    if is_regression(task):
        return "combined_score"
    return task if task in OWN_DATA else main_metric(task)


def score(task: str, answers: np.ndarray, labels: np.ndarray) -> float:
    """A task's score in points."""
    return 100 * task_scores(task, answers, labels)[task_metric(task)]


def resampled_scores(
    tasks: dict[str, dict[str, Predictions]], resamples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """
    Bootstrap replicates of the mean score over seeds, by task and arm, each of shape `(resamples,)`.

    Seed i of one arm is paired with seed i of the others, and of the other tasks, as are the rows of a task.
    """
    generator = np.random.default_rng(seed)
    num_seeds = len(next(iter(next(iter(tasks.values())).values())).answers)
    replicates = {task: {arm: np.empty(resamples) for arm in arms} for task, arms in tasks.items()}
    for index in tqdm(range(resamples), desc="Resampling", leave=False, disable=None):
        seeds, counts = np.unique(generator.integers(num_seeds, size=num_seeds), return_counts=True)
        for task, arms in tasks.items():
            num_rows = len(next(iter(arms.values())).labels)
            rows = generator.integers(num_rows, size=num_rows)
            for arm, found in arms.items():
                scores = [score(task, found.answers[seed, rows], found.labels[rows]) for seed in seeds]
                replicates[task][arm][index] = np.average(scores, weights=counts)
    return replicates


def compare(arguments: GlueComparisonArguments) -> dict[str, Any]:
    """The results as the JSON file holds them."""
    folders = split_arms(arguments.runs)
    baseline, confidence = arguments.baseline, arguments.confidence
    check_arms([baseline], folders)
    for arm in folders:
        if len(folders[arm]) != len(folders[baseline]):
            raise ValueError(
                f"The arm {arm!r} has {len(folders[arm])} seeds, {baseline!r} has {len(folders[baseline])}; seeds are "
                "compared in pairs, so give as many folders for each."
            )
    tasks = {task: read_task(folders, task) for task in arguments.tasks}
    per_seed = {
        task: {
            arm: np.array([score(task, answers, found.labels) for answers in found.answers])
            for arm, found in arms.items()
        }
        for task, arms in tasks.items()
    }
    replicates = resampled_scores(tasks, arguments.resamples, arguments.seed)

    def entry(arm: str, names: Sequence[str]) -> dict[str, Any]:
        """An arm's mean over some tasks."""

        def over_tasks(arm: str) -> tuple[np.ndarray, np.ndarray]:
            return tuple(np.mean([source[task][arm] for task in names], axis=0) for source in (per_seed, replicates))

        (own, own_replicates), (other, other_replicates) = over_tasks(arm), over_tasks(baseline)
        shares = [tasks[task][arm].flops_share for task in names]
        return {
            **compare_with_baseline("score", own.mean(), own_replicates, (other.mean(), other_replicates), confidence),
            "score_per_seed": own.tolist(),
            "flops_share": None if None in shares else float(np.mean(shares)),
        }

    return {
        "metric": "mean over tasks of the task's metric, in points",
        "task_metrics": {task: task_metric(task) for task in tasks},
        "baseline": baseline,
        "confidence": confidence,
        "seeds": len(folders[baseline]),
        "rows": {task: len(arms[baseline].labels) for task, arms in tasks.items()},
        "arms": {
            arm: {**entry(arm, list(tasks)), "tasks": {task: entry(arm, [task]) for task in tasks}} for arm in folders
        },
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table; under each task the score, and in brackets its difference to the baseline's."""
    tasks, baseline = list(report["rows"]), report["baseline"]
    shares = {arm: entry["flops_share"] for arm, entry in report["arms"].items()}
    known = any(share is not None for share in shares.values())
    header = ["arm", *(["FLOPs"] if known else []), "mean score", f"minus {baseline}", *tasks]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for arm, entry in report["arms"].items():
        share = ["" if shares[arm] is None else f"{shares[arm]:.0%}"] if known else []
        difference = signed(entry["minus_baseline"], entry["minus_baseline_interval"], 2)
        cells = [arm, *share, f"{entry['score']:.2f}", "" if arm == baseline else difference]
        for found in entry["tasks"].values():
            difference = signed(found["minus_baseline"], found["minus_baseline_interval"], 2)
            cells.append(f"{found['score']:.2f}" + ("" if arm == baseline else f" ({difference})"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save_plot(report: dict[str, Any], path: Path) -> None:
    """
    Mean scores with their intervals: against the share of full FLOPs, and in a panel of their own where arms have no
    share.
    """
    from matplotlib.figure import Figure

    arms = report["arms"]
    without = [arm for arm, entry in arms.items() if entry["flops_share"] is None]
    panels = [names for names in ([arm for arm in arms if arm not in without], without) if names]
    figure = Figure(figsize=(3 + 3 * len(panels), 4), layout="constrained")
    figure.suptitle(", ".join(report["rows"]))
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    row[0].set_ylabel("mean score")
    for axes, names in zip(row, panels, strict=True):
        for place, arm in enumerate(names):
            entry, style = arms[arm], {"color": f"C{list(arms).index(arm)}", "label": arm}
            low, high = entry["score_interval"]
            # A percentile interval need not hold the score itself.
            errors = [[max(0.0, entry["score"] - low)], [max(0.0, high - entry["score"])]]
            where = place if names is without else entry["flops_share"]
            axes.errorbar(where, entry["score"], errors, marker="o", capsize=3, linestyle="none", **style)
        if names is without:
            axes.set_xticks(range(len(names)), names, rotation=45, horizontalalignment="right")
        else:
            axes.set_xlabel("share of full FLOPs")
            axes.legend(loc="best")
        axes.grid(alpha=0.3)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    (parsed,) = parse_arguments(GlueComparisonArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    report = compare(parsed)
    logger.info("\n" + as_markdown(report))
    write_report(report, parsed.output)
    if parsed.output is not None:
        path = Path(parsed.output).with_suffix(".png")
        if is_matplotlib_available():
            save_plot(report, path)
        else:
            logger.warning(f"No plot is written to {str(path)!r}: matplotlib is not installed.")
    return report


if __name__ == "__main__":
    run_script(main)
