# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Comparing GLUE runs on the same rows, over tasks and seeds, on made-up predictions whose scores are known."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from example_utils import parse_arguments


ROWS = 200


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("text-classification/compare_glue_runs.py")


@pytest.fixture(scope="module")
def save(load_example):
    load_example("text-classification/compare_glue_runs.py")
    from glue_utils import save_predictions

    def save_run(folder, labels, answers, names=None, prediction="", flops_share=None):
        """A run whose answers are class numbers, or numbers to be regressed."""
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{prediction}." if prediction else ""
        labels = np.asarray(labels)
        logits = np.asarray(answers, dtype=np.float32)[:, None]
        if np.issubdtype(labels.dtype, np.integer):
            logits = np.eye(3 if names is None else len(names), dtype=np.float32)[np.asarray(answers)]
        tensors = {"labels": labels, f"{prefix}logits": logits}
        if flops_share is not None:
            tensors[f"{prefix}flops_share"] = np.array([flops_share])
        save_predictions(folder / "predictions.safetensors", tensors, names)

    return save_run


@pytest.fixture
def compare(script):
    def call(*runs, tasks=("rte",), resamples=300, **options):
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        return script.main(
            ["--tasks", *tasks, "--resamples", resamples, "--baseline", "plain", "--runs", *runs, *flags]
        )

    return call


def with_errors(labels, wrong):
    """Two-class answers that miss the given rows."""
    answers = np.array(labels)
    answers[list(wrong)] = 1 - answers[list(wrong)]
    return answers


LABELS = np.random.default_rng(0).integers(2, size=ROWS)


def test_scores_and_differences_in_points(compare, script, save, tmp_path):
    for seed in (0, 1):
        # 30 and 32 wrong; of those the other arm gets 10 right, and an equal one none.
        save(tmp_path / f"plain{seed}", LABELS, with_errors(LABELS, range(30 + 2 * seed)))
        good = with_errors(LABELS, range(10, 30 + 2 * seed))
        save(tmp_path / f"good{seed}", LABELS, good, prediction="budget_0.5", flops_share=0.5 + 0.02 * seed)
    plain, good, same = (f"{tmp_path / name}0,{tmp_path / name}1" for name in ("plain", "good", "plain"))
    output = tmp_path / "results" / "rte.json"
    report = compare(f"plain={plain}", f"good@budget_0.5={good}", f"same={same}", output=str(output), resamples=1000)
    assert json.loads(output.read_text()) == report
    assert report["task_metrics"] == {"rte": "accuracy"} and report["rows"] == {"rte": ROWS} and report["seeds"] == 2
    arms = report["arms"]
    assert arms["plain"]["score_per_seed"] == pytest.approx([85, 84])
    assert arms["plain"]["score"] == pytest.approx(84.5) and arms["plain"]["minus_baseline"] == 0
    found = arms["good@budget_0.5"]
    assert found["score"] == pytest.approx(89.5) and found["minus_baseline"] == pytest.approx(5)
    # Ten of two hundred rows differ, the same for both seeds: 5 points, give or take those of a binomial.
    deviation = 100 * np.sqrt(0.05 * 0.95 / ROWS)
    assert found["minus_baseline_interval"] == pytest.approx([5 - 1.96 * deviation, 5 + 1.96 * deviation], abs=0.6)
    assert found["flops_share"] == pytest.approx(0.51) and arms["plain"]["flops_share"] is None
    # The same rows for all arms: equal answers never differ, however uncertain their scores.
    assert arms["same"]["minus_baseline_interval"] == [0, 0]
    low, high = arms["same"]["score_interval"]
    assert low < 82 and high > 87
    # Of a single task, the mean is that task.
    assert found["tasks"]["rte"] == {name: value for name, value in found.items() if name != "tasks"}
    table = script.as_markdown(report).split("\n")
    assert len({line.count("|") for line in table}) == 1
    assert "| good@budget_0.5 | 51% | 89.50 | +5.00 [" in table[3] and "| plain |  | 84.50 |  | 84.50 |" in table[2]
    for entry in arms.values():
        entry["flops_share"] = None
    assert script.as_markdown(report).startswith("| arm | mean score |")  # nothing to say of FLOPs
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in output.parent.iterdir() if "partial" in file.name] == []


def test_seeds_are_resampled_too(compare, save, tmp_path):
    # Rows cannot differ: all right or all wrong. What is uncertain is which seeds there are.
    for seed, wrong in enumerate((0, ROWS)):
        save(tmp_path / f"plain{seed}", LABELS, LABELS)
        save(tmp_path / f"other{seed}", LABELS, with_errors(LABELS, range(wrong)))
    plain, other = (f"{name}={tmp_path / name}0,{tmp_path / name}1" for name in ("plain", "other"))
    found = compare(plain, other)["arms"]["other"]
    assert found["minus_baseline"] == -50 and found["minus_baseline_interval"] == [-100, 0]
    found = compare(plain, f"other={tmp_path / 'other1'},{tmp_path / 'other1'}")["arms"]["other"]
    assert found["minus_baseline_interval"] == [-100, -100]


def test_tasks_count_alike_with_their_own_metrics(compare, save, tmp_path):
    generator = np.random.default_rng(1)
    numbers = generator.uniform(0, 5, size=60)
    near, far = numbers + generator.normal(size=60), numbers + 3 * generator.normal(size=60)
    cola = np.array([1, 1, 1, 0] * 20)
    for name, answers, scores in (("plain", cola, far), ("other", with_errors(cola, range(8)), near)):
        save(tmp_path / f"{name}-cola", cola, answers, names=["unacceptable", "acceptable"])
        save(tmp_path / f"{name}-stsb", numbers, scores)
    report = compare(f"plain={tmp_path}/plain-{{task}}", f"other={tmp_path}/other-{{task}}", tasks=("cola", "stsb"))
    assert report["task_metrics"] == {"cola": "matthews_correlation", "stsb": "combined_score"}
    assert report["rows"] == {"cola": 80, "stsb": 60}
    expected = {}
    for name, answers, scores in (("plain", cola, far), ("other", with_errors(cola, range(8)), near)):
        pearson, spearman = np.corrcoef(scores, numbers)[0, 1], spearmanr(scores, numbers)[0]
        expected[name] = [100 * np.corrcoef(answers, cola)[0, 1], 50 * (pearson + spearman)]
        tasks = report["arms"][name]["tasks"]
        assert [tasks[task]["score"] for task in ("cola", "stsb")] == pytest.approx(expected[name], rel=1e-5)
        assert report["arms"][name]["score"] == pytest.approx(np.mean(expected[name]), rel=1e-5)
    other = report["arms"]["other"]
    assert other["minus_baseline"] == pytest.approx(np.mean(expected["other"]) - np.mean(expected["plain"]), rel=1e-4)
    low, high = other["minus_baseline_interval"]
    assert low < other["minus_baseline"] < high
    # The mean of two tasks is less uncertain than the mean of their uncertainties.
    widths = [np.ptp(other["tasks"][task]["minus_baseline_interval"]) for task in ("cola", "stsb")]
    assert high - low < np.mean(widths)


def test_a_model_with_its_labels_in_another_order(compare, save, tmp_path):
    names = ["entailment", "not_entailment"]
    answers = with_errors(LABELS, range(0, 60, 3))
    save(tmp_path / "plain", LABELS, answers)
    save(tmp_path / "turned", 1 - LABELS, 1 - answers, names=names[::-1])
    # A class that the task does not have is wrong wherever it is predicted.
    save(tmp_path / "more", LABELS, np.where(np.arange(ROWS) < 20, 2, answers), names=[*names, "neutral"])
    report = compare(*(f"{name}={tmp_path / name}" for name in ("plain", "turned", "more")))
    assert report["arms"]["turned"]["score"] == report["arms"]["plain"]["score"] == 90
    assert report["arms"]["turned"]["minus_baseline_interval"] == [0, 0]
    assert report["arms"]["more"]["score"] == 100 * (ROWS - 20 - 13) / ROWS


def test_own_data(compare, save, tmp_path):
    names = ["bad", "fair", "good"]
    labels = np.arange(ROWS) % 3
    answers = np.where(np.arange(ROWS) < 50, (labels + 1) % 3, labels)
    save(tmp_path / "plain", labels, answers, names=names)
    turned = np.array([2, 1, 0])
    save(tmp_path / "turned", turned[labels], turned[answers], names=names[::-1])
    report = compare(f"plain={tmp_path / 'plain'}", f"turned={tmp_path / 'turned'}", tasks=["accuracy"])
    assert report["task_metrics"] == {"accuracy": "accuracy"}
    assert report["arms"]["turned"]["score"] == report["arms"]["plain"]["score"] == 75
    assert report["arms"]["turned"]["minus_baseline_interval"] == [0, 0]
    numbers = np.random.default_rng(0).normal(size=ROWS)
    save(tmp_path / "numbers", numbers, 2 * numbers + 1)
    report = compare(f"plain={tmp_path / 'numbers'}", tasks=["regression"])
    assert report["task_metrics"] == {"regression": "combined_score"}
    assert report["arms"]["plain"]["score"] == pytest.approx(100)


def test_without_matplotlib(compare, script, save, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(script, "is_matplotlib_available", lambda: False)
    save(tmp_path / "plain", LABELS, LABELS)
    compare(f"plain={tmp_path / 'plain'}", output=str(tmp_path / "results.json"), resamples=2)
    assert "results.png': matplotlib is not installed" in caplog.text
    assert (tmp_path / "results.json").is_file() and not (tmp_path / "results.png").exists()


def test_messages(compare, script, save, tmp_path):
    save(tmp_path / "plain", LABELS, LABELS)
    save(tmp_path / "sharcs", LABELS, LABELS, prediction="budget_0.5")
    save(tmp_path / "turned", LABELS[::-1], LABELS)
    plain = f"plain={tmp_path / 'plain'}"
    with pytest.raises(ValueError, match="'sst' is no GLUE task; the tasks are cola, sst2, .*; for own data"):
        compare(plain, tasks=["sst"])
    with pytest.raises(ValueError, match="--tasks names 'rte' twice"):
        compare(plain, tasks=["rte", "rte"])
    with pytest.raises(ValueError, match=r"every folder of an arm needs \{task\} in its name: 'plain"):
        compare(plain, tasks=["rte", "mrpc"])
    with pytest.raises(ValueError, match=r"No arm is called 'plain'; the arms are \['other'\]"):
        compare(f"other={tmp_path / 'plain'}")
    with pytest.raises(ValueError, match="The arm 'other' has 2 seeds, 'plain' has 1; seeds are compared in pairs"):
        compare(plain, f"other={tmp_path / 'plain'},{tmp_path / 'plain'}")
    with pytest.raises(ValueError, match="none/predictions.safetensors' does not exist; train .* --save_predictions"):
        compare(plain, f"other={tmp_path / 'none'}")
    with pytest.raises(ValueError, match=r"has no predictions 'budget_0.7'; it has \['budget_0.5'\]"):
        compare(plain, f"other@budget_0.7={tmp_path / 'sharcs'}")
    with pytest.raises(ValueError, match=r"turned' were not evaluated on the same rows of rte \(200 and 200 labels"):
        compare(plain, f"other={tmp_path / 'turned'}")
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(script.GlueComparisonArguments, ["--help"])
    assert stopped.value.code == 0


@pytest.mark.parametrize("shares", [[None, None], [None, 0.5], [1.0, 0.5]])
def test_the_plot_has_a_point_with_its_interval_for_each_arm(script, tmp_path, monkeypatch, shares):
    axes = pytest.importorskip("matplotlib.axes").Axes
    drawn, errorbar = [], axes.errorbar
    monkeypatch.setattr(
        axes, "errorbar", lambda self, *place, **style: drawn.append(place) or errorbar(self, *place, **style)
    )
    arms = {
        name: {"flops_share": share, "score": score, "score_interval": [score - 1, score + 2]}
        for name, share, score in zip(["plain", "half"], shares, [70.0, 60.0], strict=True)
    }
    script.save_plot({"arms": arms, "rows": {"rte": 9}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1_000
    assert {score: errors for _, score, errors in drawn} == {70.0: [[1.0], [2.0]], 60.0: [[1.0], [2.0]]}
    assert len({where for where, *_ in drawn}) == 2
