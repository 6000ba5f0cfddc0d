# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Two processes train what one process trains: in single precision, without dropout, to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distributed_training import CASES, run
from training_utils import folders, largest_change


pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("distributed_training.py")


def torchrun(*command, processes: int = 2, timeout: float = 300) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if finished.returncode != 0:
        pytest.fail(finished.stdout[-500:] + finished.stderr[-4000:], pytrace=False)


@pytest.fixture(scope="module")
def together(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """All cases in two processes, one start."""
    folder = tmp_path_factory.mktemp("two_processes")
    torchrun(str(SCRIPT), str(tiny_tokenizer_dir), str(folder), *CASES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(tiny_tokenizer, together, tmp_path, case):
    alone = run(tiny_tokenizer, case, tmp_path, processes=1)
    expected = load_file(tmp_path / f"{case}-0.safetensors")
    first, second = (load_file(together / f"{case}-{rank}.safetensors") for rank in range(2))
    assert largest_change(first, second) == 0
    assert largest_change(first, expected) < 1e-5
    found = json.loads((together / "results.json").read_text())[case]
    for own, given in zip(found["logs"], alone["logs"], strict=True):
        assert own.keys() == given.keys()
        for name, value in given.items():
            if name == "loss" or "_loss" in name or "distillation" in name or name == "grad_norm":
                assert own[name] == pytest.approx(value, rel=1e-4), name
    # Seven rows in batches of two: some are repeated to fill the last ones, and must not count. (Trainer's own
    # evaluation loss, which is that of classification, counts them.)
    exact = ("accuracy",) if case == "classification" else ("loss", "perplexity")
    assert any(name.endswith(exact) for name in alone["metrics"])
    for name, value in alone["metrics"].items():
        if name.endswith(exact):
            assert found["metrics"][name] == pytest.approx(value, rel=1e-4), name
    assert folders(together / case) == folders(tmp_path / case) == ["checkpoint-3"]
