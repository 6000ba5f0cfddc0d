# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Comparing runs on the same rows: means, paired intervals, shares of a gap."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("language-modeling/compare_runs.py")


def write_run(folder, losses, counts, name="largest"):
    folder.mkdir(parents=True)
    save_file({f"{name}.loss": losses, f"{name}.count": counts}, folder / "row_losses.safetensors")
    return str(folder)


@pytest.fixture
def arms(tmp_path):
    """Three arms, two seeds, 200 rows: `good` is 0.1 nats a token better than `plain`, `half` half of that."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 9, size=200)
    found = {}
    for name, better in (("plain", 0.0), ("good", 0.1), ("half", 0.05)):
        folders = []
        for seed in range(2):
            noise = np.random.default_rng(seed).normal(3, 0.5, size=200)
            rows = ((noise - better) * counts).astype(np.float32)
            folders.append(write_run(tmp_path / f"{name}{seed}", rows, counts))
        found[name] = f"{name}={','.join(folders)}"
    return found


def test_means_intervals_and_gap(script, arms, tmp_path):
    output = tmp_path / "results.json"
    report = script.main(
        [
            "--runs",
            *arms.values(),
            "--baseline",
            "plain",
            "--reference",
            "good",
            "--resamples",
            "200",
            "--output",
            output,
        ]
    )
    assert json.loads(output.read_text()) == report
    half = report["arms"]["half"]
    assert half["minus_baseline"] == pytest.approx(-0.05, abs=1e-5)
    # The rows are the same, so that the difference is certain though the losses themselves are not.
    assert half["minus_baseline_interval"] == pytest.approx([-0.05, -0.05], abs=1e-5)
    low, high = half["loss_interval"]
    assert high - low > 0.03
    assert half["gap_closed"] == pytest.approx(0.5, abs=1e-3)
    assert "gap_closed" not in report["arms"]["plain"] and "gap_closed" not in report["arms"]["good"]
    assert report["seeds"] == 2 and report["sequences"] == 200
    assert "| half |" in script.as_markdown(report)


def test_no_share_of_a_gap_that_may_be_zero(script, arms, tmp_path):
    generator = np.random.default_rng(5)
    counts = np.random.default_rng(0).integers(1, 9, size=200)
    folders = [
        write_run(tmp_path / f"noise{seed}", (generator.normal(3, 0.5, 200) * counts).astype(np.float32), counts)
        for seed in range(2)
    ]
    arms["noise"] = f"noise={','.join(folders)}"
    report = script.main(
        ["--runs", *arms.values(), "--baseline", "plain", "--reference", "noise", "--resamples", "200"]
    )
    assert not any("gap_closed" in entry for entry in report["arms"].values())


def test_messages(script, arms, tmp_path):
    with pytest.raises(ValueError, match=r"An arm is NAME=FOLDER,FOLDER,…, got 'plain'"):
        script.main(["--runs", "plain", "--baseline", "plain"])
    with pytest.raises(ValueError, match="Two arms are called 'plain'; give all folders of an arm at once"):
        script.main(["--runs", arms["plain"], arms["plain"], "--baseline", "plain"])
    with pytest.raises(ValueError, match="--resamples must be at least 1, got 0"):
        script.main(["--runs", arms["plain"], "--baseline", "plain", "--resamples", "0"])
    with pytest.raises(ValueError, match="--confidence must lie between 0 and 1, such as 0.95; got 95.0"):
        script.main(["--runs", arms["plain"], "--baseline", "plain", "--confidence", "95"])
    with pytest.raises(ValueError, match="row_losses.safetensors' does not exist; train that run with --save_row_"):
        script.main(["--runs", f"plain={tmp_path}", "--baseline", "plain"])
    with pytest.raises(ValueError, match=r"No arm is called 'other'; the arms are \['good', 'half', 'plain'\]"):
        script.main(["--runs", *arms.values(), "--baseline", "other"])
    other = write_run(tmp_path / "short", np.ones(3, dtype=np.float32), np.ones(3, dtype=np.int64))
    with pytest.raises(ValueError, match="'plain' and 'short' were not evaluated on the same sequences"):
        script.main(["--runs", arms["plain"], f"short={other},{other}", "--baseline", "plain"])
