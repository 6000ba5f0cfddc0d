# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/benchmarks/measure_reductions.py, and that DDP reduces gradients once an optimizer step."""

from pathlib import Path

import pytest
from test_distributed_mos import torchrun

from script_utils import read_json, to_flags


SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "benchmarks" / "measure_reductions.py"


@pytest.mark.distributed
def test_gradients_are_reduced_once_an_optimizer_step(tmp_path):
    file = tmp_path / "reductions.json"
    torchrun(str(SCRIPT), *to_flags({"use_cpu": True, "steps": 3, "micro_batches": 2, "output_file": file}))
    found = read_json(file)
    assert (found["processes"], found["backend"], found["backward_passes_per_step"]) == (2, "gloo", 6)
    assert found["reduced_over_weights"]["as_trained"] == pytest.approx(1, rel=0.01)
    # The same training, but for what keeps gradients local: the count would show it.
    assert found["reduced_over_weights"]["in_every_backward_pass"] == pytest.approx(6, rel=0.01)
    assert found["bytes_reduced_per_step"]["as_trained"] == pytest.approx(found["bytes_of_weights"], rel=0.01)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "One process has nobody to reduce gradients with; start two or more: torchrun --nproc_per_node 2"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--micro_batches", "-1"], "--micro_batches must be at least 1, got -1"),
        (["--vocab_size", "1"], "--vocab_size must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_measured_has_a_sentence(load_example, flags, message):
    with pytest.raises(ValueError, match=message):
        load_example("benchmarks/measure_reductions.py").main(["--use_cpu", *flags])
