# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Two processes with DeepSpeed's ZeRO train what one process trains without it: in single precision, without dropout, to
rounding. Gradients are reduced once an optimizer step. `make test-distributed` runs these tests.
"""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_distributed_mos import torchrun

from deepspeed_training import CASES, make_supernet_run, train
from training_utils import largest_change, weights_of


pytestmark = pytest.mark.deepspeed
SCRIPT = Path(__file__).with_name("deepspeed_training.py")
STAGES = [1, 2, 3]


@pytest.fixture(scope="module")
def together(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """All cases in two processes, one start."""
    pytest.importorskip("deepspeed", reason='needs the extra: pip install -c constraints.txt -e ".[deepspeed]"')
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles an operation on CPU, and there is no g++")
    folder = tmp_path_factory.mktemp("two_processes")
    # The first start ever compiles for a minute.
    torchrun(str(SCRIPT), str(tiny_tokenizer_dir), str(folder), *map(str, STAGES), timeout=900)
    return folder


@pytest.fixture(scope="module")
def alone(tiny_tokenizer, tmp_path_factory):
    """The weights that one process trains without DeepSpeed."""
    folder = tmp_path_factory.mktemp("one_process")
    return {case: weights_of(train(tiny_tokenizer, case, folder).model) for case in CASES}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one(together, alone, stage, case):
    first, second = (load_file(together / str(stage) / f"{case}-{rank}.safetensors") for rank in range(2))
    assert largest_change(first, second) == 0
    assert largest_change(first, alone[case]) < 1e-5


def test_gradients_are_reduced_once_an_optimizer_step(together, tiny_tokenizer, tmp_path):
    model = make_supernet_run(tiny_tokenizer, tmp_path, processes=2).model
    gradients = sum(parameter.numel() for parameter in model.parameters())
    reduced = json.loads((together / "reduced.json").read_text())
    # Beside them: losses, counts of tokens, the norm of the gradients.
    for name in ("ddp", "stage_1", "stage_2", "stage_3"):
        assert gradients <= reduced[name] < 1.02 * gradients, name
    # Three sub-networks, two micro-batches; shallow ones have no gradients of all layers.
    assert 5 * gradients < reduced["stage_2_each_pass"] <= 6.1 * gradients
