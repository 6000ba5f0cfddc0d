# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/benchmarks/benchmark_sharcs.py: what it writes and what it refuses; not how long anything takes."""

import json
import statistics

import pytest
import torch

import benchmark_utils
from modeling_sharcs import SharcsForSequenceClassification
from script_utils import NARROW, make_tokenizer, save_backbone, to_flags
from synthetic_data import generate_classification
from testing_utils import randomise_


SENTENCES = [row["sentence"] for row in generate_classification(40, seed=3)]


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("benchmarks/benchmark_sharcs.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A routed encoder and the plain one that it was made of, each in a folder with the tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(SENTENCES)
    save_backbone(folder / "plain", tokenizer)
    model = SharcsForSequenceClassification.from_backbone(str(folder / "plain"), **NARROW)
    randomise_(model).save_pretrained(folder / "routed")
    tokenizer.save_pretrained(folder / "routed")
    return folder


@pytest.fixture
def run(script, models):
    """The script in this process, with few rows, with settings that keyword arguments replace."""
    settings = {
        "model_name_or_path": str(models / "routed"),
        "batch_sizes": [1, 3],
        "compute_budgets": [0.9, 0.6],
        "rows": 7,
        "rounds": 5,
        "warmup_rounds": 1,
        "mean_length": 10,
        "max_length": 30,
        "device": "cpu",
    }
    return lambda **options: script.main(to_flags({**settings, **options}))


@pytest.fixture
def asked(script, monkeypatch):
    """What is timed: for each call of the timer its batches' shapes; times follow from a clock that counts calls."""
    calls, clock = [], iter(range(1, 10_000_000))
    original = script.time_in_turns

    def spy(contestants, batches, timing, device):
        calls.append([tuple(batch["input_ids"].shape) for batch in batches])
        return original(contestants, batches, timing, device)

    monkeypatch.setattr(script, "time_in_turns", spy)
    monkeypatch.setattr(benchmark_utils.time, "perf_counter", lambda: next(clock) ** 1.01)
    return calls


def test_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    assert "--baseline_name_or_path" in capsys.readouterr().out


def test_the_results(run, models, asked, tmp_path, capsys):
    path = tmp_path / "results" / "latency.json"
    results = run(baseline_name_or_path=str(models / "plain"), output_file=str(path))
    assert json.loads(path.read_text()) == json.loads(capsys.readouterr().out) == results
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert (results["rows"], results["rounds"], results["dtype"], results["device"]) == (7, 5, "float32", "cpu")
    assert results["reference"] == "plain" and results["threads"] == torch.get_num_threads()
    assert 3 <= results["mean_length"] <= 30
    assert results["budgets_out_of_reach"] == []
    shares = results["flops_share"]
    assert 0.3 < shares["routed_0.6"] <= 0.6 < shares["routed_0.9"] <= 0.9  # of few rows, met from below
    assert list(results["batch_sizes"]) == ["1", "3"]
    for found in results["batch_sizes"].values():
        assert list(found) == ["trimmed", "padded"]
        for times in found.values():
            assert list(times) == ["plain", "widest", "routed_0.9", "routed_0.6"]
            assert times["plain"]["speedup"] == 1
            for entry in times.values():
                assert 0 < entry["median_ms"] <= entry["p90_ms"] <= entry["p99_ms"]
                assert entry["speedup_lowest_round"] <= entry["speedup"] <= entry["speedup_highest_round"]
    # Trimmed and padded batches of each size, the last one with what is left.
    assert [[shape[0] for shape in shapes] for shapes in asked] == [[1] * 7] * 2 + [[3, 3, 1]] * 2
    assert {shape[1] for shapes in asked[1::2] for shape in shapes} == {30}
    assert sum(shape[1] for shape in asked[0]) == pytest.approx(results["mean_length"] * 7)


def test_without_a_baseline_the_widest_path_is_the_reference(run, asked):
    results = run(batch_sizes=[4], compute_budgets=[0.8])
    assert results["reference"] == "widest"
    assert list(results["batch_sizes"]["4"]["trimmed"]) == ["widest", "routed_0.8"]


def test_a_budget_out_of_reach_is_left_out(run, asked, caplog):
    results = run(batch_sizes=[4], compute_budgets=[0.1, 0.8])
    assert "0.1 of full FLOPs is out of reach: this model can spend 0." in caplog.text
    assert results["budgets_out_of_reach"] == [0.1] and list(results["flops_share"]) == ["routed_0.8"]
    assert list(results["batch_sizes"]["4"]["padded"]) == ["widest", "routed_0.8"]


def test_ratios_are_those_of_the_times(script):
    times = {
        "widest": [[0.2, 0.4], [0.3, 0.3], [0.1, 0.2]],
        "routed": [[0.1, 0.2], [0.1, 0.1], [0.2, 0.2]],
    }
    found = script.summarize(times, "widest")
    ratios = [0.6 / 0.3, 0.6 / 0.2, 0.3 / 0.4]
    assert found["routed"]["speedup"] == pytest.approx(statistics.median(ratios))
    assert found["routed"]["speedup_lowest_round"] == pytest.approx(min(ratios))
    assert found["routed"]["speedup_highest_round"] == pytest.approx(max(ratios))
    assert found["widest"]["median_ms"] == pytest.approx(250) and found["widest"]["speedup"] == 1


def test_turns():
    said = []
    contestants = {name: lambda batch, name=name: said.append((name, batch)) for name in ("a", "b")}
    timing = benchmark_utils.Timing(rounds=5, warmup_rounds=2)
    times = benchmark_utils.time_in_turns(contestants, [1, 2], timing, torch.device("cpu"))
    assert said == [("a", 1), ("a", 2), ("b", 1), ("b", 2)] * 7
    assert {name: [len(calls) for calls in rounds] for name, rounds in times.items()} == {"a": [2] * 5, "b": [2] * 5}


def test_real_text_and_the_calibration_that_is_stored(script, run, models, asked, tmp_path, caplog):
    model = SharcsForSequenceClassification.from_pretrained(models / "routed")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (50, 12), generator=generator)
    model.calibrate([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    model.save_pretrained(tmp_path / "calibrated")
    make_tokenizer(SENTENCES).save_pretrained(tmp_path / "calibrated")
    (tmp_path / "lines.txt").write_text("\n".join(["", *SENTENCES, " "]), encoding="utf-8")
    options = {"text_file": str(tmp_path / "lines.txt"), "batch_sizes": [8], "rows": 20}
    results = run(model_name_or_path=str(tmp_path / "calibrated"), **options, dtype="bfloat16")
    assert results["rows"] == 20 and results["dtype"] == "bfloat16"
    here = "The model is calibrated on the rows that are timed"
    assert here not in caplog.text
    run(**options)
    assert here in caplog.text


def test_random_rows(script, models):
    tokenizer = make_tokenizer(SENTENCES)
    values = {"model_name_or_path": "x", "rows": 3000, "mean_length": 20, "max_length": 1000}
    rows = script.make_rows(script.BenchmarkArguments(**values), tokenizer)
    assert sum(map(len, rows)) / len(rows) == pytest.approx(20, abs=1)
    assert min(map(len, rows)) >= 3 and max(map(max, rows)) < len(tokenizer)
    assert rows == script.make_rows(script.BenchmarkArguments(**values), tokenizer)
    assert rows != script.make_rows(script.BenchmarkArguments(**values, seed=1), tokenizer)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rounds": 4}, "--rounds must be at least 5, got 4"),
        ({"num_threads": 0}, "--num_threads must be at least 1, got 0"),
        ({"batch_sizes": [4, 0]}, r"--batch_sizes must be positive, got \[4, 0\]"),
        ({"model_name_or_path": "plain"}, "is a 'bert' model; this benchmark times SHARCS ones"),
        ({"max_length": 41}, "--max_length 41 is more than '.*routed' takes: 40"),
        ({"device": "abacus"}, "There is no device 'abacus'"),
        ({"text_file": "empty.txt"}, "has no lines with text"),
        ({"baseline_name_or_path": "small"}, r"The tokenizer has \d+ entries, '.*small' knows 50; time a model with"),
    ],
)
def test_messages(run, models, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(models)
    (models / "empty.txt").write_text(" \n\n")
    if "baseline_name_or_path" in options:
        save_backbone("small", make_tokenizer(SENTENCES), vocab_size=50)
    with pytest.raises(ValueError, match=message):
        run(**options, output_file=str(tmp_path / "results.json"))
    assert not list(tmp_path.iterdir())
