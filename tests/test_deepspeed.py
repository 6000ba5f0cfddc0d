# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Two processes with DeepSpeed's ZeRO train what one process trains without it: in single precision, without dropout, to
rounding. Gradients are reduced once an optimizer step. A run that is stopped and continued ends as if it had not been.
`make test-distributed` runs these tests.
"""

import json
import shutil
from pathlib import Path

import pytest
from test_distributed_mos import torchrun
from test_distributed_resuming import check_resumed, weights_of_both

from deepspeed_training import ADAM, CASES, RESUMED, make_supernet_run, train
from trainers.checkpoints import CHECKSUMS_NAME, check_files
from training_utils import folders, largest_change, weights_of


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
    assert largest_change(weights_of_both(together / str(stage), case), alone[case]) < 1e-5


def test_offloading_changes_nothing(together, tiny_tokenizer, tmp_path):
    """The configuration that is shipped, with the optimizer that the Trainer makes: no decay of biases and norms."""
    expected = weights_of(train(tiny_tokenizer, "taught_supernet", tmp_path, **ADAM).model)
    assert largest_change(weights_of_both(together / "offloaded", "taught_supernet"), expected) < 1e-5


def test_gradients_are_reduced_once_an_optimizer_step(together, tiny_tokenizer, tmp_path):
    model = make_supernet_run(tiny_tokenizer, tmp_path, processes=2).model
    gradients = sum(parameter.numel() for parameter in model.parameters())
    reduced = json.loads((together / "reduced.json").read_text())
    # Beside them: losses, counts of tokens, the norm of the gradients.
    for name in ("ddp", "stage_1", "stage_2", "stage_3"):
        assert gradients <= reduced[name] < 1.02 * gradients, name
    # Three sub-networks, two micro-batches; shallow ones have no gradients of all layers.
    assert 5 * gradients < reduced["stage_2_each_pass"] <= 6.1 * gradients


# ---- resuming -------------------------------------------------------------------------------------------------------

each_resumed = pytest.mark.parametrize("case, stage", RESUMED)


@each_resumed
def test_a_resumed_run_ends_where_the_undisturbed_one_does(together, case, stage):
    check_resumed(together / f"resumed_{stage}", case)


@each_resumed
def test_checkpoints_of_several_processes_are_whole(together, tmp_path, case, stage):
    """DeepSpeed writes a folder of its own into a checkpoint, each process its part of the optimizer's state."""
    run = together / f"resumed_{stage}" / "resumed" / case
    assert folders(run) == ["checkpoint-3", "checkpoint-4"]  # and nothing staged
    for step in (3, 4):
        checkpoint = run / f"checkpoint-{step}"
        check_files(checkpoint)
        files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
        assert files == {*json.loads((checkpoint / CHECKSUMS_NAME).read_text()), CHECKSUMS_NAME}
        parts = [name for name in files if name.endswith("optim_states.pt")]
        assert len(parts) == 2 and all(name.startswith(f"global_step{step}/") for name in parts)
        assert "model.safetensors" in files and (checkpoint / "latest").read_text() == f"global_step{step}"
    shutil.copytree(checkpoint, tmp_path / "altered")
    part = tmp_path / "altered" / parts[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=f"{parts[0]}' was cut or altered after it was written; continue from an"):
        check_files(tmp_path / "altered")
