# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""A run of two processes that is stopped and continued ends where the one does that nobody disturbed."""

import sys
from pathlib import Path


sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from packaging.version import Version  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_distributed_mos import torchrun  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from deepspeed_training import stop_and_resume  # noqa: E402
from training_utils import folders, largest_change, run_worker  # noqa: E402


pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.18"),
        reason="Transformers before 5.18 loads optimizers of several CPU processes to cpu:0, which torch refuses",
    ),
]
CASES = ["supernet", "routed", "distilled"]


@pytest.fixture(scope="module")
def together(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """All cases in two processes, one start."""
    folder = tmp_path_factory.mktemp("two_processes")
    torchrun(__file__, str(tiny_tokenizer_dir), str(folder), *CASES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_where_the_undisturbed_one_does(together, case):
    check_resumed(together, case)
    assert folders(together / "resumed" / case) == ["checkpoint-3", "checkpoint-4"]


def weights_of_both(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Weights that both processes ended with."""
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2))
    assert largest_change(first, second) == 0
    return first


def check_resumed(folder: Path, case: str) -> None:
    """What `stop_and_resume` left."""
    undisturbed, stopped, forgetful, resumed = (
        weights_of_both(folder, f"{case}-{kind}") for kind in ("undisturbed", "stopped", "forgetful", "resumed")
    )
    assert largest_change(resumed, undisturbed) == 0
    # What an optimizer remembers matters, and was read.
    assert largest_change(forgetful, undisturbed) > 1e-3 < largest_change(stopped, undisturbed)


def main(arguments: list[str]) -> None:
    tokenizer = BertTokenizer.from_pretrained(arguments[0])
    for case in arguments[2:]:
        stop_and_resume(tokenizer, case, Path(arguments[1]))


if __name__ == "__main__":
    run_worker(main)
