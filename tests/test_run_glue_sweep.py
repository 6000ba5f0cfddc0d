# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/text-classification/run_glue_sweep.py: its points, its table, what it keeps, and that it goes on."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from example_utils import parse_given_arguments
from script_utils import make_tokenizer, read_json, read_table, save_backbone, saved_weights, write_task_folder
from synthetic_data import generate_classification
from training_utils import largest_change


CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "text-classification" / "configs"
TEXTS = [row["sentence"] for row in generate_classification(90, seed=1)]
TASKS = ("mnli", "rte", "stsb")


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("text-classification/run_glue_sweep.py")


@pytest.fixture(scope="module")
def run_glue(script, load_example):
    return load_example("text-classification/run_glue.py")


@pytest.fixture(scope="module")
def settings(run_glue, tmp_path_factory) -> dict:
    """Arguments of run_glue.py for a small model and a few rows of three tasks."""
    folder = tmp_path_factory.mktemp("sweep")
    tokenizer = make_tokenizer(TEXTS)
    for task in TASKS:
        write_task_folder(folder / "glue", TEXTS, run_glue.DataArguments(task_name=task).task)
    return {
        "model_name_or_path": str(save_backbone(folder / "bert", tokenizer, num_hidden_layers=2)),
        "data_dir": str(folder / "glue"),
        "cache_dir": str(folder / "cache"),
        "max_seq_length": 32,
        "num_train_epochs": 2,
        "per_device_eval_batch_size": 16,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


GRID = {"learning_rate": [0.001, 0.003], "total_train_batch_size": 8, "seed": [1, 2]}
POINTS = [
    f"learning_rate={rate}_total_train_batch_size=8_seed={seed}" for rate in ("0.001", "0.003") for seed in (1, 2)
]


@pytest.fixture
def sweep(script, settings, tmp_path):
    """Runs a sweep of RTE into `out` with options that keyword arguments replace; gives the summary."""

    def call(**options):
        options = {**settings, "output_dir": str(tmp_path / "out"), "tasks": ["rte"], "grid": GRID, **options}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(options))
        return script.main([str(path)])

    return call


@pytest.fixture
def in_this_process(script, run_glue, monkeypatch) -> list[list[str]]:
    """Runs happen without processes of their own, which take seconds to start; gives the flags of those so far."""
    started = []

    def launch(flags, log, num_processes, lock):
        started.append(flags)
        try:
            run_glue.main(flags)
        except ValueError as error:
            return str(error)

    monkeypatch.setattr(script, "launch", launch)
    return started


@pytest.fixture
def pretend(script, run_glue, monkeypatch):
    """
    Runs only write what a run would, with the metrics that a function of its arguments gives; an error if it gives a
    text. The fixture takes that function and gives the names of the points that were started.
    """

    def install(metrics_of):
        started = []

        def launch(flags, log, num_processes, lock):
            arguments = parse_given_arguments(run_glue.ARGUMENT_TYPES, flags)
            folder = Path(arguments["output_dir"])
            started.append(folder.name)
            (folder / "checkpoint-3").mkdir(exist_ok=True)
            found = metrics_of(arguments)
            if isinstance(found, str):
                return found
            (folder / "model.safetensors").write_text(folder.name)
            (folder / "all_results.json").write_text(json.dumps({**found, "train_loss": 1.0, "epoch": 2.0}))

        monkeypatch.setattr(script, "launch", launch)
        return started

    return install


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]


def with_models(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/model.safetensors") if path.parent.name != "best")


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "Runs run_glue.py over a grid",
        "--grid",
        "--start_from",
        "All other options are those of run_glue.py",
    ):
        assert words in text


def test_a_killed_sweep_goes_on_to_the_same_table(script, run_glue, sweep, in_this_process, tmp_path, monkeypatch):
    whole = sweep(output_dir=str(tmp_path / "whole"))
    assert [Path(flags_to(flags, "output_dir")).name for flags in in_this_process] == POINTS
    rows = rows_of(tmp_path / "whole" / "rte")
    assert [(row["point"], row["status"], row["score_name"]) for row in rows] == [
        (point, "finished", "eval_accuracy") for point in POINTS
    ]
    for row, flags in zip(rows, in_this_process, strict=True):
        assert row["score"] == row["metrics"]["eval_accuracy"] and row["metrics"]["eval_samples"] == 9
        assert flags_to(flags, "per_device_train_batch_size") == "8" and flags_to(flags, "task_name") == "rte"
        assert row["settings"]["learning_rate"] == row["values"]["learning_rate"]
    assert len({row["metrics"]["eval_loss"] for row in rows}) == 4

    steps = []
    original = run_glue.DistillationTrainer.training_step

    def stopped(*args, **kwargs):
        steps.append(1)
        if len(steps) == 2 * 6 + 5:  # in the second epoch of the third run
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(run_glue.DistillationTrainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep()
    out = tmp_path / "out" / "rte"
    assert [row["point"] for row in rows_of(out)] == POINTS[:2] and not (out / "best").exists()
    assert (out / POINTS[2] / "checkpoint-3").is_dir()
    before = len(steps)
    assert sweep() == whole
    assert len(steps) - before == 3 + 6  # the rest of the third run, and the fourth
    assert (out / "sweep.jsonl").read_bytes() == (tmp_path / "whole" / "rte" / "sweep.jsonl").read_bytes()
    best = max(rows[2:] if entry_of(whole, POINTS[2])["best"] else rows[:2], key=lambda row: row["score"])["point"]
    assert os.readlink(out / "best") == best and with_models(out) == [best]
    same = [saved_weights(tmp_path / name / "rte" / "best") for name in ("out", "whole")]
    assert largest_change(*same) == 0
    assert not list(out.glob("*/checkpoint-*"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rte", "summary.json", "summary.csv"}
    assert (out / "scores.png").read_bytes().startswith(b"\x89PNG")
    # Nothing is left to do.
    done = len(in_this_process)
    assert sweep() == whole and len(in_this_process) == done


def flags_to(flags: list[str], name: str) -> str:
    return next(flag.partition("=")[2] for flag in flags if flag.startswith(f"--{name}="))


def entry_of(summary: dict, point: str, task: str = "rte") -> dict:
    return next(entry for entry in summary[task] if point.startswith(entry["configuration"]))


def test_a_run_in_a_process_of_its_own(sweep, settings, tmp_path):
    grid = {"model_name_or_path": settings["model_name_or_path"], "total_train_batch_size": 24}
    sweep(model_name_or_path=None, grid=grid)
    [row] = rows_of(tmp_path / "out" / "rte")
    assert row["status"] == "finished" and "/" not in row["point"]
    assert "eval_accuracy" in (tmp_path / "out" / "rte" / row["point"] / "log.txt").read_text()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "rte" / "best").config.num_labels == 2


def test_tasks_that_start_from_the_best_model_of_another(sweep, in_this_process, tmp_path, caplog):
    teachers = tmp_path / "teachers"
    sweep(output_dir=str(teachers), tasks=["rte", "MNLI", "STS-B"], grid={"total_train_batch_size": 24})
    assert len(in_this_process) == 3
    in_this_process.clear()
    options = {
        "tasks": ["mnli", "rte", "stsb"],
        "start_from": {"rte": "mnli", "stsb": "mnli"},
        "grid": {"seed": [1, 2]},
        "per_device_train_batch_size": 12,
        "task_grids": {"rte": {"learning_rate": 0.0}, "stsb": {"learning_rate": 0.0, "seed": 3}},
        "teacher_name_or_path": str(teachers / "{task_name}" / "best"),
        "logits_weight": 0.7,
        "num_train_epochs": 1,
    }
    sweep(**options)
    out = tmp_path / "out"
    best = f"mnli/{os.readlink(out / 'mnli' / 'best')}"
    started = [flags_to(flags, "model_name_or_path") for flags in in_this_process]
    assert started[2:] == [str(out / best)] * 3
    assert [flags_to(flags, "teacher_name_or_path") for flags in in_this_process] == [
        str(teachers / task / "best") for task in ("mnli", "mnli", "rte", "rte", "stsb")
    ]
    weights = saved_weights(out / "mnli" / "best")
    for task in ("rte", "stsb"):
        assert {row["settings"]["started_from"] for row in rows_of(out / task)} == {best}
        own = saved_weights(out / task / "best")
        encoder = [name for name in weights if not name.startswith("classifier")]
        assert largest_change({name: own[name] for name in encoder}, {name: weights[name] for name in encoder}) == 0
    assert "classifier.bias and classifier.weight start anew" in caplog.text
    # MNLI's model is in the folder already, which another place may hold in the meantime.
    out.rename(tmp_path / "moved")
    sweep(**{**options, "tasks": ["stsb"], "output_dir": str(tmp_path / "moved")})
    assert len(in_this_process) == 5
    with pytest.raises(ValueError, match=r"'rte' starts from the best model of 'mnli', but there is no '.*best'"):
        sweep(**{**options, "tasks": ["rte"]})


def test_a_choice_by_training_rows_that_are_held_out(sweep, in_this_process, tmp_path, caplog):
    sweep(selection_split_percentage=25, grid={"learning_rate": [0.001, 0.002]}, num_train_epochs=1)
    for row in rows_of(tmp_path / "out" / "rte"):
        assert row["score_name"] == "selection_accuracy" and row["score"] == row["metrics"]["selection_accuracy"]
        assert (row["metrics"]["selection_samples"], row["metrics"]["eval_samples"]) == (6, 9)
    assert "rte: learning_rate=" in caplog.text and "which flatters it" not in caplog.text


# ---- the table and what it says -------------------------------------------------------------------------------------


def accuracy(value: float, **more) -> dict[str, float]:
    return {"eval_accuracy": value, "eval_loss": 0.5, **more}


def test_means_and_the_best_configuration(sweep, pretend, tmp_path, caplog):
    scores = {(0.001, 1): 0.5, (0.001, 2): 0.9, (0.003, 1): 0.8, (0.003, 2): 0.75}
    pretend(lambda run: accuracy(scores[run["learning_rate"], run["seed"]]))
    found = sweep()
    out = tmp_path / "out"
    assert read_json(out / "summary.json") == found
    first, second = found["rte"]
    assert first["configuration"] == "learning_rate=0.001_total_train_batch_size=8"
    assert first["values"] == {"learning_rate": 0.001, "total_train_batch_size": 8}
    assert (first["runs"], first["best"], second["best"]) == (2, False, True)
    assert first["score"] == pytest.approx({"mean": 0.7, "standard_deviation": 0.4 / math.sqrt(2)})
    assert second["metrics"]["eval_loss"] == {"mean": 0.5, "standard_deviation": 0.0}
    # Not the best run of all, but the best one of the best configuration.
    assert os.readlink(out / "rte" / "best") == POINTS[2] and with_models(out / "rte") == [POINTS[2]]
    table = read_table(out / "summary.csv")
    assert [(row["metric"], row["mean"], row["best"]) for row in table] == [
        ("eval_accuracy", "0.7", "False"),
        ("eval_loss", "0.5", "False"),
        ("eval_accuracy", "0.775", "True"),
        ("eval_loss", "0.5", "True"),
    ]
    assert "eval_accuracy 0.7750 ± 0.0354, runs: 2" in caplog.text and "which flatters it" in caplog.text


def test_a_run_that_diverged_or_failed(sweep, pretend, tmp_path, caplog):
    seen = []

    def metrics_of(run):
        seen.append((run["learning_rate"], run["seed"]))
        if seen[-1] == (0.003, 1):
            return accuracy(0.9, eval_loss=float("nan"))
        if seen[-1] == (0.003, 2) and seen.count(seen[-1]) == 1:
            return "CUDA out of memory"
        return accuracy({0.001: 0.6, 0.003: 0.95}[run["learning_rate"]])

    started = pretend(metrics_of)
    found = sweep()
    assert [row["status"] for row in rows_of(tmp_path / "out" / "rte")] == ["finished"] * 2 + ["diverged", "failed"]
    row = rows_of(tmp_path / "out" / "rte")[2]
    assert row["score"] is None and row["metrics"] == {"eval_accuracy": 0.9, "eval_loss": None}
    bad = found["rte"][1]
    assert (bad["runs"], bad["diverged"], bad["failed"], bad["best"]) == (0, 1, 1, False)
    assert bad["score"] == {"mean": None, "standard_deviation": None}
    assert "failed: CUDA out of memory" in caplog.text
    # A failed run keeps its checkpoint, from which the next call goes on; one that diverged would do so again.
    out = tmp_path / "out" / "rte"
    assert [path.parent.name for path in out.glob("*/checkpoint-3")] == [POINTS[3]]
    found = sweep()
    assert started == [*POINTS, POINTS[3]]
    # A better mean over fewer seeds is no better configuration.
    assert [(entry["runs"], entry["best"]) for entry in found["rte"]] == [(2, True), (1, False)]


def test_no_run_finishes(sweep, pretend, tmp_path, caplog):
    pretend(lambda run: "no such model")
    assert [entry["failed"] for entry in sweep()["rte"]] == [2, 2]
    assert "No run of rte finished" in caplog.text and not (tmp_path / "out" / "rte" / "best").exists()


def test_more_points_later(sweep, pretend, tmp_path):
    scores = {(0.001, 1): 0.9, (0.001, 2): 0.1, (0.003, 1): 0.7, (0.003, 2): 0.6}
    started = pretend(lambda run: accuracy(scores[run["learning_rate"], run["seed"]]))
    out = tmp_path / "out" / "rte"
    sweep(grid={**GRID, "seed": 1})
    assert os.readlink(out / "best") == POINTS[0]
    sweep()
    assert started == [POINTS[0], POINTS[2], POINTS[1], POINTS[3], POINTS[2]]  # the last one for its model
    assert os.readlink(out / "best") == POINTS[2] and with_models(out) == [POINTS[2]]
    assert [row["point"] for row in rows_of(out)] == [POINTS[0], POINTS[2], POINTS[1], POINTS[3]]


@pytest.mark.parametrize("keep, models", [("all", POINTS), ("best", POINTS[3:]), ("none", [])])
def test_what_is_kept(sweep, pretend, tmp_path, keep, models):
    largest = []

    def metrics_of(run):
        largest.append(len(with_models(tmp_path / "out" / "rte")))
        return accuracy(run["learning_rate"] * 100 + run["seed"] / 100)

    pretend(metrics_of)
    sweep(keep_models=keep)
    out = tmp_path / "out" / "rte"
    assert with_models(out) == models
    assert (out / "best").exists() == (keep != "none")
    assert len(list(out.glob("*/checkpoint-3"))) == (5 if keep == "all" else 0)  # the link shows one again
    assert max(largest) == {"all": 3, "best": 2, "none": 0}[keep]


def test_a_torn_last_line(sweep, pretend, tmp_path, caplog):
    started = pretend(lambda run: accuracy(0.5))
    sweep()
    path = tmp_path / "out" / "rte" / "sweep.jsonl"
    text = path.read_text()
    path.write_text(text[:-30])
    sweep()
    assert "The last line of" in caplog.text and "is torn; its point is run again" in caplog.text
    assert started == [*POINTS, POINTS[3]] and path.read_text() == text
    lines = text.splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:40] + "\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"Line 2 of '.*sweep.jsonl' is no row of a sweep .*delete it"):
        sweep()


def test_results_of_other_arguments(sweep, pretend, tmp_path):
    started = pretend(lambda run: accuracy(0.5))
    sweep(logging_steps=5)
    sweep(logging_steps=7, cache_dir=str(tmp_path / "elsewhere"))  # changes no result
    assert len(started) == 4
    with pytest.raises(ValueError, match="are of runs with weight_decay=None, but now weight_decay is 0.1. Choose"):
        sweep(weight_decay=0.1)
    with pytest.raises(ValueError, match="runs with num_train_epochs=2.0, but now num_train_epochs is None"):
        sweep(num_train_epochs=None)


def test_dry_run(sweep, pretend, tmp_path, caplog):
    calls = []

    def metrics_of(run):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return accuracy(0.25) if len(calls) == 1 else "broken"

    started = pretend(metrics_of)
    assert sweep(dry_run=True) == {} and not (tmp_path / "out").exists()
    assert caplog.text.count(": to run\n") == 4 and "4 of 4 runs are to be done." in caplog.text
    with pytest.raises(KeyboardInterrupt):
        sweep()
    caplog.clear()
    sweep(dry_run=True, tasks=["rte", "stsb"], start_from={"stsb": "rte"})
    states = [message.partition(": ")[2] for message in caplog.messages]
    assert states[:-1] == [
        "eval_accuracy 0.2500",
        "failed: broken",
        "continues from checkpoint-3",
        "to run",
        *["to run from the best of rte"] * 4,
    ]
    assert caplog.messages[-1] == "7 of 8 runs are to be done." and len(started) == 3


def test_total_batch_size(script, settings, tmp_path):
    def flags_for(**options):
        options = {"tasks": ["rte"], "grid": json.dumps({"total_train_batch_size": 24}), **options}
        sweep = script.SweepArguments(output_dir=str(tmp_path), **options)
        flags = script.to_flags({**settings, "gradient_accumulation_steps": 3})
        return script.run_flags(script.make_points(sweep, flags)["rte"][0], sweep)

    assert flags_to(flags_for(), "per_device_train_batch_size") == "8"
    assert flags_to(flags_for(num_processes=4), "per_device_train_batch_size") == "2"
    with pytest.raises(ValueError, match="total_train_batch_size=24 must be a multiple of 15"):
        flags_for(num_processes=5)


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(script, tmp_path, monkeypatch):
    """Launches a few lines of Python in place of run_glue.py."""

    def call(code: str, num_processes: int = 1):
        (tmp_path / "code.py").write_text("import os, signal, sys, time\n" + code)
        monkeypatch.setattr(script, "RUN_SCRIPT", tmp_path / "code.py")
        with script.lock_folder(tmp_path / "locked") as lock:
            return script.launch(["--first", "1"], tmp_path / "log.txt", num_processes, lock)

    return call


def test_launch(start, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert start("print(sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES'])") is None
    assert (tmp_path / "log.txt").read_text() == "['--first', '1'] 3\n"
    log = tmp_path / "log.txt"
    assert start("print('one'); sys.exit('run_glue.py: no data')") == f"run_glue.py: no data (see {log})"
    assert start("os.kill(os.getpid(), signal.SIGKILL)") == f"killed by signal 9 (see {log})"
    assert "one\n" in log.read_text()  # Earlier output stays.


@pytest.fixture
def interruptible():
    """Shells start background jobs with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_stops_the_run_under_way(start, tmp_path, interruptible):
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        start(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_sweep_at_a_time(script, sweep, pretend, tmp_path):
    started = pretend(lambda run: accuracy(0.5))
    folder = tmp_path / "out" / "rte"
    with script.lock_folder(folder) as lock:
        with pytest.raises(ValueError, match="Another sweep, or a run that it started, is at work in '.*rte'; wait"):
            sweep()
        left_behind = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    # The sweep is gone, but not its run.
    with pytest.raises(ValueError, match="is at work in"):
        sweep()
    left_behind.communicate(b"\n")
    sweep()
    assert len(started) == 4


# ---- messages and argument files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": None}, "There are no tasks to run; name some"),
        ({"tasks": ["rte", "RTE"]}, "tasks names 'rte' twice"),
        ({"tasks": ["rta"]}, "task_name='rta' is no GLUE task; did you mean 'rte'"),
        ({"task_name": "rte"}, "task_name is what the sweep sets for each run; name tasks with --tasks"),
        ({"keep_models": "some"}, "keep_models='some' must be 'best', 'all' or 'none'"),
        ({"num_processes": 0}, "num_processes=0 must be at least 1"),
        ({"grid": "{learning"}, "grid is not valid JSON"),
        ({"grid": [1]}, "grid must be a mapping, as"),
        ({"grid": {"learning_rate": []}}, "The grid has no values for 'learning_rate'"),
        ({"grid": {"seed": [1, 2, 1]}}, "The grid has 1 twice for 'seed'"),
        ({"grid": {"learning_rat": 1}}, "Unknown argument '--learning_rat'; did you mean '--learning_rate'"),
        ({"learning_rat": 1}, "Unknown key 'learning_rat' in the argument file .* did you mean 'learning_rate'"),
        ({"learning_rate": 0.1}, "learning_rate is given for all runs, but the grid of rte sets it too"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size is given for all runs, but the"),
        ({"grid": {"total_train_batch_size": 7}, "num_processes": 2}, "=7 must be a multiple of 2, the number of"),
        ({"grid": {"total_train_batch_size": "x"}}, "total_train_batch_size='x' must be a multiple of 1"),
        ({"grid": {"max_seq_length": [32, 3]}, "max_seq_length": None}, "max_seq_length=3 leaves no room for text"),
        ({"task_grids": {"rte": [1]}}, "task_grids has \\[1\\] for 'rte', which is no mapping"),
        ({"start_from": {"rte": "mnli"}, "keep_models": "none"}, "whose model keep_models='none' would not keep"),
        (
            {"start_from": {"rte": "mnli"}, "tasks": ["rte", "mnli"]},
            "'rte' starts from 'mnli', which must come before",
        ),
        ({"start_from": {"rte": "rte"}}, "'rte' starts from 'rte', which must come before"),
        ({"start_from": {"rte": "mnli"}}, "'rte' starts from the best model of 'mnli', but there is no"),
        ({"logits_weight": 1.0}, "logits_weight says how to learn from a teacher, but there is none"),
    ],
)
def test_messages(sweep, pretend, tmp_path, options, message):
    started = pretend(lambda run: accuracy(0.5))
    with pytest.raises(ValueError, match=message):
        sweep(**options)
    assert not started and not (tmp_path / "out" / "summary.json").exists()


def test_a_score_that_no_run_gives(sweep, pretend):
    pretend(lambda run: {})
    with pytest.raises(ValueError, match="The runs give no eval_accuracy to compare them by, only nothing; give data"):
        sweep()


def recipes() -> list[Path]:
    return [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith("sharcs_")]


GRID_SIZES = {
    "sweep_bert": 18,
    "sweep_roberta": 6,
    "sweep_well_read_students": 20,
    "sweep_supershaper": 1,
    "sweep_summer": 36,
    "sweep_autodistill": 6,
    "students": 18,
    "teachers": 1,
}


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe(script, path):
    model = [] if path.stem == "teachers" else ["--model_name_or_path", "model"]
    sweep, flags = script.read_sweep([str(path), *model])
    points = script.make_points(sweep, flags)
    assert {len(of_task) for of_task in points.values()} == {GRID_SIZES[path.stem]}
    published = {"mnli", "mrpc", "rte", "cola", "qqp", "sst2", "qnli", "stsb"}
    assert points.keys() == (published | {"wnli"} if path.stem == "teachers" else published)
    content = yaml.safe_load(path.read_text())
    for point in (point for of_task in points.values() for point in of_task):
        for name, value in content.items():
            if name not in vars(sweep):
                assert point.settings[name] in (value, str(value).replace("{task_name}", point.task)), name
    assert GRID_SIZES.keys() == {path.stem for path in recipes()}


def test_the_teachers_are_the_published_ones(script):
    sweep, flags = script.read_sweep([str(CONFIGS / "teachers.yaml")])
    chosen = {task: tuple(points[0].values.values()) for task, points in script.make_points(sweep, flags).items()}
    assert chosen == {
        "cola": (2e-5, 16, 4),
        "mnli": (3e-5, 16, 2),
        "sst2": (3e-5, 16, 3),
        "qnli": (3e-5, 16, 2),
        "qqp": (5e-5, 32, 4),
        "mrpc": (5e-5, 16, 3),
        "rte": (5e-5, 32, 3),
        "stsb": (5e-5, 16, 3),
        "wnli": (2e-5, 16, 2),
    }
