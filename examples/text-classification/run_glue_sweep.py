#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Runs run_glue.py over a grid of arguments, seeds and tasks, and says which configuration is the best of each task.

    python run_glue_sweep.py configs/teachers.yaml  # a teacher for every task: runs/teachers/mrpc/best, …
    python run_glue_sweep.py configs/students.yaml --model_name_or_path mos-bert-60m  # their students, MNLI's first
    python run_glue_sweep.py configs/sweep_bert.yaml --model_name_or_path mos-bert-60m --tasks cola sst2 --dry_run
    python run_glue_sweep.py configs/sweep_bert.yaml --model_name_or_path mos-bert-60m --output_dir runs/chosen \
        --grid '{"learning_rate": [5e-5, 3e-5], "total_train_batch_size": 32, "seed": [1, 2, 3]}' \
        --selection_split_percentage 10

All options but those that --help lists are run_glue.py's and hold for every run; `{task_name}` in their values stands
for the task. Every run has a process and a folder of its own, OUTPUT/TASK/POINT, where log.txt holds its output. The
same command continues a sweep that was stopped: runs in OUTPUT/TASK/sweep.jsonl are not repeated, unless they failed,
and one that was under way goes on from its last checkpoint. OUTPUT/TASK/best is the best run of the configuration with
the best mean over seeds; OUTPUT/summary.json, summary.csv and OUTPUT/TASK/scores.png show them all.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from example_utils import (  # noqa: E402
    argument_names,
    expand_argument_file,
    parse_given_arguments,
    parse_mapping,
    run_logged,
    run_script,
    show_progress_messages,
    to_flags,
)
from glue_arguments import plain_name  # noqa: E402
from glue_metrics import main_metric  # noqa: E402
from glue_sweep import (  # noqa: E402
    TABLE_NAME,
    Point,
    Row,
    best_run,
    check_settings,
    expand_grid,
    make_row,
    plot_scores,
    read_results,
    write_results,
    write_summary,
)
from run_glue import ARGUMENT_TYPES, read_arguments  # noqa: E402


logger = logging.get_logger(__name__)

RUN_SCRIPT = Path(__file__).resolve().with_name("run_glue.py")
TOTAL_BATCH_SIZE = "total_train_batch_size"
STARTED_FROM = "started_from"  # In place of the model: the best run of another task, below the sweep's folder.
BEST = "best"
MODEL_FILES = "model*.safetensors*"
RESERVED = {
    "task_name": "name tasks with --tasks",
    "resume_from_checkpoint": "a run goes on from the last checkpoint in its folder",
}


@dataclass
class SweepArguments:
    """What to run, and what to keep of it."""

    output_dir: str = field(metadata={"help": "The folder of the sweep, with one folder a task."})
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "The GLUE tasks, in order; several sweeps may share a folder."}
    )
    grid: str = field(
        default="{}",
        metadata={
            "help": "A mapping from arguments of run_glue.py to lists of values, all combinations of which are run. "
            f"{TOTAL_BATCH_SIZE} is one of them: the rows of an update, shared out among processes."
        },
    )
    task_grids: str = field(
        default="{}", metadata={"help": "A mapping from tasks to what they have in place of, or besides, the grid."}
    )
    start_from: str = field(
        default="{}",
        metadata={"help": "A mapping from tasks to the earlier tasks whose best model they start from, as rte: mnli."},
    )
    num_processes: int = field(
        default=1, metadata={"help": "Processes of each run, one a GPU; more than one are started with torchrun."}
    )
    keep_models: str = field(
        default="best",
        metadata={"help": "Whose models stay: those of the best run of each task, or all or none."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Only list the runs, and how far each one is."})

    def __post_init__(self) -> None:
        self.tasks = [plain_name(task) for task in self.tasks]
        if not self.tasks:
            raise ValueError("There are no tasks to run; name some, as in --tasks mrpc rte.")
        twice = [task for place, task in enumerate(self.tasks) if task in self.tasks[:place]]
        if twice:
            raise ValueError(f"tasks names {twice[0]!r} twice; leave one of them out.")
        if self.keep_models not in ("best", "all", "none"):
            raise ValueError(f"keep_models={self.keep_models!r} must be 'best', 'all' or 'none'.")
        if self.num_processes < 1:
            raise ValueError(f"num_processes={self.num_processes} must be at least 1.")
        for name in ("grid", "task_grids", "start_from"):
            setattr(self, name, parse_mapping(name, getattr(self, name)))
        self.task_grids = {plain_name(task): grid for task, grid in self.task_grids.items()}
        self.start_from = {plain_name(task): plain_name(str(first)) for task, first in self.start_from.items()}
        for task, grid in self.task_grids.items():
            if not isinstance(grid, dict):
                raise ValueError(
                    f"task_grids has {grid!r} for {task!r}, which is no mapping from arguments to values."
                )
        for task in self.tasks:
            first = self.start_from.get(task)
            if first is None:
                continue
            if self.keep_models == "none":
                raise ValueError(f"{task!r} starts from {first!r}, whose model keep_models='none' would not keep.")
            if first in self.tasks[self.tasks.index(task) :]:
                raise ValueError(f"{task!r} starts from {first!r}, which must come before it in tasks.")


def read_sweep(arguments: Sequence[str] | None = None) -> tuple[SweepArguments, list[str]]:
    """The sweep's own arguments, and the flags that it hands on to run_glue.py."""
    parser = HfArgumentParser(
        SweepArguments,
        allow_abbrev=False,
        description=__doc__.split("\n")[1],
        epilog="All other options are those of run_glue.py, for every run.",
    )
    flags = expand_argument_file(
        sys.argv[1:] if arguments is None else arguments, argument_names([SweepArguments, *ARGUMENT_TYPES])
    )
    return parser.parse_args_into_dataclasses(flags, return_remaining_strings=True, look_for_args_file=False)


# ---- points ---------------------------------------------------------------------------------------------------------


def make_points(sweep: SweepArguments, flags: Sequence[str]) -> dict[str, list[Point]]:
    """
    The points of each task. All are read as run_glue.py will read them, before any is run.

    Raises:
        ValueError: an argument is unknown, out of range, or set twice.
    """
    fixed = {flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    for name in RESERVED:
        if name in fixed:
            raise ValueError(f"{name} is what the sweep sets for each run; {RESERVED[name]}.")
    points = {}
    for task in sweep.tasks:
        grid = {**sweep.grid, **sweep.task_grids.get(task, {})}
        names = grid.keys() | ({"per_device_train_batch_size"} if TOTAL_BATCH_SIZE in grid else set())
        twice = sorted(names & fixed)
        if twice:
            raise ValueError(
                f"{twice[0]} is given for all runs, but the grid of {task} sets it too; leave one of them out, or "
                "give another --grid."
            )
        points[task] = [make_point(task, values, sweep, flags) for values in expand_grid(grid)]
        for point in points[task]:
            read_arguments([*run_flags(point, sweep), "--use_cpu"])  # The parent takes no room on a GPU.
    return points


def make_point(task: str, values: Mapping[str, Any], sweep: SweepArguments, flags: Sequence[str]) -> Point:
    """
    A point with its values in the types of run_glue.py.

    Raises:
        ValueError: a name is unknown, or the total batch size cannot be shared out.
    """
    own = {name: value for name, value in values.items() if name != TOTAL_BATCH_SIZE}
    settings = parse_given_arguments(ARGUMENT_TYPES, [*flags, *to_flags(own)])
    settings = {
        name: value.replace("{task_name}", task) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    if TOTAL_BATCH_SIZE in values:
        total, parts = values[TOTAL_BATCH_SIZE], sweep.num_processes * settings.get("gradient_accumulation_steps", 1)
        if not isinstance(total, int) or total < 1 or total % parts:
            raise ValueError(
                f"{TOTAL_BATCH_SIZE}={total!r} must be a multiple of {parts}, the number of processes times "
                "gradient_accumulation_steps."
            )
        settings[TOTAL_BATCH_SIZE] = total
    return Point(task, {name: settings.get(name) for name in values}, settings)


def run_flags(point: Point, sweep: SweepArguments) -> list[str]:
    """The command line of run_glue.py for a point."""
    settings = {**point.settings, "task_name": point.task, "output_dir": str(folder_of(point, sweep))}
    total = settings.pop(TOTAL_BATCH_SIZE, None)
    if total is not None:
        parts = sweep.num_processes * settings.get("gradient_accumulation_steps", 1)
        settings["per_device_train_batch_size"] = total // parts
    start = settings.pop(STARTED_FROM, None)
    if start is not None:
        settings["model_name_or_path"] = str(Path(sweep.output_dir) / start)
    return to_flags(settings)


def folder_of(point: Point, sweep: SweepArguments) -> Path:
    return Path(sweep.output_dir) / point.task / point.name


def start_from_best(points: Sequence[Point], first: str, sweep: SweepArguments) -> list[Point]:
    """
    The points with the best model of an earlier task in place of their own.

    Raises:
        ValueError: that task has none yet.
    """
    link = Path(sweep.output_dir) / first / BEST
    if not link.is_dir():
        raise ValueError(
            f"{points[0].task!r} starts from the best model of {first!r}, but there is no {str(link)!r}; put "
            f"{first!r} before it in tasks."
        )
    start = f"{first}/{os.readlink(link)}"
    rest = [
        {name: value for name, value in point.settings.items() if name != "model_name_or_path"} for point in points
    ]
    return [
        replace(point, settings={**settings, STARTED_FROM: start})
        for point, settings in zip(points, rest, strict=True)
    ]


# ---- runs -----------------------------------------------------------------------------------------------------------


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """
    Keeps a second sweep out of a folder. The run that is under way holds the lock too, should the sweep be killed.

    Raises:
        ValueError: another sweep, or a run that it left behind, is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"Another sweep, or a run that it started, is at work in {str(folder)!r}; wait for it, or choose "
                "another --output_dir."
            ) from error
        yield file.fileno()


def launch(flags: Sequence[str], log: Path, num_processes: int, lock: int) -> str | None:
    """Runs run_glue.py in processes of its own, so that nothing of it stays in memory. Gives its error, if any."""
    command = [sys.executable]
    environment = dict(os.environ)
    if num_processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    else:
        # On several GPUs, one process would use them all, each with a whole batch.
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command += [str(RUN_SCRIPT), *flags]
    code = run_logged(command, log, log.parent.name, env=environment, stdin=subprocess.DEVNULL, pass_fds=[lock])
    if code == 0:
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    reason = f"killed by signal {-code}" if code < 0 else lines[-1].strip() if lines else f"exit status {code}"
    return f"{reason} (see {log})"


def run_point(point: Point, sweep: SweepArguments, lock: int) -> Row:
    """Runs a point and gives its row."""
    folder = folder_of(point, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    error = launch(run_flags(point, sweep), folder / "log.txt", sweep.num_processes, lock)
    metrics = None
    if error is None:
        results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
        metrics = {name: value for name, value in results.items() if name.startswith(("eval_", "selection_"))}
    return make_row(point, score_name_of(point), metrics, error)


def score_name_of(point: Point) -> str:
    split = "selection" if "selection_split_percentage" in point.settings else "eval"
    return f"{split}_{main_metric(point.task)}"


def run_task(points: Sequence[Point], sweep: SweepArguments) -> None:
    """Runs the points of a task that are not in its table yet, and links the best one."""
    folder = Path(sweep.output_dir) / points[0].task
    with lock_folder(folder) as lock:
        rows = read_results(folder)
        check_settings(rows, points[0], folder)
        to_run = [point for point in points if rows.get(point.name, {"status": "failed"})["status"] == "failed"]
        if to_run:
            (folder / BEST).unlink(missing_ok=True)
        for number, point in enumerate(to_run, start=1):
            logger.info(f"{point.task} {number}/{len(to_run)}: {point.name}")
            rows[point.name] = run_point(point, sweep, lock)
            write_results(folder, rows)
            logger.info(f"  {describe(rows[point.name])}")
            remove_files(folder, rows, sweep.keep_models, point.configuration)
        best = best_run(list(rows.values()))
        if best is None:
            logger.warning(f"No run of {points[0].task} finished; {folder / TABLE_NAME} says why.")
            return
        if sweep.keep_models != "none":
            if not has_model(folder / best["point"]):
                # Another one was the best when it was deleted, or no model was to be kept.
                logger.info(f"{best['task']}: the best run is repeated for its model, which was not kept.")
                again = Point(best["task"], best["values"], best["settings"])
                rows[again.name] = run_point(again, sweep, lock)
                write_results(folder, rows)
            if has_model(folder / best["point"]):
                link_best(folder, best["point"])
        remove_files(folder, rows, sweep.keep_models)
        plot_scores(list(rows.values()), folder / "scores.png")


def describe(row: Row) -> str:
    if row["status"] == "finished":
        return f"{row['score_name']} {row['score']:.4f}"
    return row["status"] if row["error"] is None else f"{row['status']}: {row['error']}"


# ---- files ----------------------------------------------------------------------------------------------------------


def has_model(folder: Path) -> bool:
    return any(folder.glob(MODEL_FILES))


def remove_files(folder: Path, rows: Mapping[str, Row], keep_models: str, running: str | None = None) -> None:
    """
    Deletes checkpoints of runs that are over, and models but the best one's and that of the best run, so far, of the
    configuration whose runs are under way.
    """
    if keep_models == "all":
        return
    kept = set()
    if keep_models == "best":
        candidates = [list(rows.values()), [row for row in rows.values() if row["configuration"] == running]]
        kept = {best["point"] for best in map(best_run, candidates) if best is not None}
    for name, row in rows.items():
        if row["status"] == "failed":
            continue  # It goes on from its checkpoint.
        for checkpoint in (folder / name).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if name not in kept:
            for file in (folder / name).glob(MODEL_FILES):
                file.unlink()


def link_best(folder: Path, name: str) -> None:
    temporary = folder / f".{BEST}.partial"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name, target_is_directory=True)
    temporary.replace(folder / BEST)


# ---- the whole ------------------------------------------------------------------------------------------------------


def list_points(points: Mapping[str, Sequence[Point]], sweep: SweepArguments) -> None:
    """Says of every point how far it is."""
    count = 0
    for task, of_task in points.items():
        rows = read_results(Path(sweep.output_dir) / task)
        for point in of_task:
            folder, row = folder_of(point, sweep), rows.get(point.name)
            checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
            if row is not None:
                state = describe(row)
            elif checkpoint is not None:
                state = f"continues from {Path(checkpoint).name}"
            else:
                state = (
                    "to run" if task not in sweep.start_from else f"to run from the best of {sweep.start_from[task]}"
                )
            logger.info(f"{task} {point.name}: {state}")
            count += row is None or row["status"] == "failed"
    logger.info(f"{count} of {sum(map(len, points.values()))} runs are to be done.")


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    sweep, flags = read_sweep(arguments)
    show_progress_messages(logger)
    points = make_points(sweep, flags)
    if sweep.dry_run:
        list_points(points, sweep)
        return {}
    summary: dict[str, list[dict[str, Any]]] = {}
    for task, of_task in points.items():
        first = sweep.start_from.get(task)
        run_task(of_task if first is None else start_from_best(of_task, first, sweep), sweep)
        summary = write_summary(Path(sweep.output_dir))
    for task in points:
        report_best(task, summary[task])
    return summary


def report_best(task: str, summary: Sequence[Mapping[str, Any]]) -> None:
    """The best configuration's score on the validation rows, which may have had a part in the choice."""
    best = next((entry for entry in summary if entry["best"]), None)
    if best is None:
        return
    name = f"eval_{main_metric(task)}"
    found = best["metrics"][name] if name in best["metrics"] else best["score"]
    deviation = found["standard_deviation"]
    spread = "" if deviation is None else f" ± {deviation:.4f}"
    logger.info(f"{task}: {best['configuration']}: {name} {found['mean']:.4f}{spread}, runs: {best['runs']}")
    if len(summary) > 1 and best["score_name"] == name:
        logger.warning(
            f"The configuration for {task} was chosen by the rows that this score is of, which flatters it; "
            "--selection_split_percentage 10 chooses by training rows that are held out."
        )


if __name__ == "__main__":
    # As on a keyboard interrupt: the run under way is stopped too, and goes on with the next call.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    run_script(main)
