# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/benchmarks/estimate_run.py: its formula, and what it measures."""

import pytest

from script_utils import read_json, to_flags


def test_hours_and_bytes_follow_the_formula(load_example, tmp_path):
    module = load_example("benchmarks/estimate_run.py")
    run = {"updates": 10, "rows": 6, "sequence_length": 16, "devices": 3, "micro_batches": 2, "tflops_per_device": 0.5}
    flags = {**run, "num_hidden_layers": 1, "measured_rows": 1, "output_file": tmp_path / "estimate.json"}
    found = module.main(to_flags(flags))
    assert read_json(tmp_path / "estimate.json") == found
    assert found["tokens"] == 10 * 6 * 16
    per_token = found["flops_per_token"]
    assert per_token["smallest"] < per_token["random"] <= per_token["largest"]
    assert found["hours"] == pytest.approx(960 * sum(per_token.values()) / (3 * 0.5e12) / 3600)
    reduced = found["bytes_reduced_per_update"]
    assert reduced["in_every_backward_pass"] == 6 * reduced["once"]
    measured = found["processor_seconds_per_token"]
    assert measured.keys() == {*per_token, "optimizer"} and min(measured.values()) > 0
