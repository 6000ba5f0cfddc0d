# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Two processes train the routed encoder that one trains: in single precision, without dropout, to rounding."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_distributed_mos import SCRIPT, torchrun

from distributed_training import SHARCS_CASES, run, run_sharcs
from testing_utils import assert_close
from training_utils import folders, largest_change


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def together(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """All cases in two processes, one start."""
    folder = tmp_path_factory.mktemp("two_processes")
    torchrun(str(SCRIPT), str(tiny_tokenizer_dir), str(folder), *SHARCS_CASES)
    return folder


@pytest.mark.parametrize("case", SHARCS_CASES)
def test_two_processes_equal_one(tiny_tokenizer, together, tmp_path, case):
    alone = run_sharcs(tiny_tokenizer, case, tmp_path, processes=1)
    expected = load_file(tmp_path / f"{case}-0.safetensors")
    first, second = (load_file(together / f"{case}-{rank}.safetensors") for rank in range(2))
    assert largest_change(first, second) == 0
    assert largest_change(first, expected) < 1e-5

    assert folders(together / case) == folders(tmp_path / case)
    checkpoint = Path(folders(tmp_path / case)[-1])
    histories = [load_file(folder / case / checkpoint / "hardness.safetensors") for folder in (together, tmp_path)]
    # A pass of its own over the training set is spared after the last epoch.
    assert histories[0]["epochs"].shape[1] == (2 if "hardness_source" in SHARCS_CASES[case] else 3)
    assert_close(histories[0]["epochs"], histories[1]["epochs"], atol=1e-5)

    found = json.loads((together / "results.json").read_text())[case]
    narrow = 0
    for own, given in zip(found["logs"], alone["logs"], strict=True):
        assert own.keys() == given.keys()
        assert own == pytest.approx(given, rel=1e-3, abs=1e-5)
        narrow += "width_0.25_loss" in given
    assert narrow > 1  # both paths were trained
    for name, value in alone["metrics"].items():
        if not any(part in name for part in ("runtime", "per_second")):
            assert found["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_one_process_of_torchrun(tiny_tokenizer, tiny_tokenizer_dir, tmp_path):
    """A job of a single process is wrapped for several all the same."""
    case = next(iter(SHARCS_CASES))
    torchrun(str(SCRIPT), str(tiny_tokenizer_dir), str(tmp_path), case, "sandwich", processes=1)
    for name, train in ((case, run_sharcs), ("sandwich", run)):
        (tmp_path / "alone").mkdir(exist_ok=True)
        train(tiny_tokenizer, name, tmp_path / "alone", processes=1)
        found, expected = (load_file(folder / f"{name}-0.safetensors") for folder in (tmp_path, tmp_path / "alone"))
        assert largest_change(found, expected) < 1e-6
