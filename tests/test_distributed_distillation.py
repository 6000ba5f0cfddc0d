# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Two processes distil what one process does that accumulates gradients: in single precision, without dropout. Also the
script that torchrun runs:

    torchrun --standalone --nproc_per_node 2 test_distributed_distillation.py TOKENIZER_FOLDER OUTPUT_FOLDER CASE...
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import pytest  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_distillation_trainer import make_student, make_teacher, make_trainer  # noqa: E402
from test_distributed_mos import torchrun  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from training_utils import folders, largest_change, run_worker, weights_of  # noqa: E402


pytestmark = pytest.mark.distributed

HIDDEN = {"hard_label_weight": 0.0, "logits_weight": 0.0, "hidden_states_weight": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "logits": {},
    "every_term": {"hidden_states_weight": 0.7, "attentions_weight": 0.3, "distillation_layers": ["2:1", "3:4"]},
    # Heads that nothing trains, and layers that only the logits reach.
    "only_hidden_states": {**HIDDEN, "distillation_layers": ["1:2"]},
    "checkpointed": {
        "hidden_states_weight": 0.7,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "spans": {"problem": "question_answering"},
    "alone": {"teacher": False},
}


def run(tokenizer, case: str, folder: Path, processes: int) -> list[dict[str, Any]]:
    """Trains one case for three steps of eight rows each; saves the weights of this process and returns the logs."""
    options = dict(CASES[case])
    problem = options.pop("problem", "single_label_classification")
    eager = {"attentions_weight", "hidden_states_weight"} <= options.keys()
    sides = [make_student(tokenizer, problem), make_teacher(tokenizer, problem)]
    for side in sides if eager else ():
        side.set_attn_implementation("eager")
    trainer = make_trainer(
        tokenizer,
        folder / case,
        sides[0],
        sides[1] if options.pop("teacher", True) else None,
        problem,
        rows=16,
        **{
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4 // processes,
            "save_strategy": "steps",
            "save_steps": 2,
            **options,
        },
    )
    trainer.train()
    assert trainer.args.world_size == processes
    save_file(weights_of(trainer.model), folder / f"{case}-{trainer.args.process_index}.safetensors")
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def together(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """All cases in two processes, one start."""
    folder = tmp_path_factory.mktemp("two_processes")
    torchrun(__file__, str(tiny_tokenizer_dir), str(folder), *CASES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(tiny_tokenizer, together, tmp_path, case):
    alone = run(tiny_tokenizer, case, tmp_path, processes=1)
    expected = load_file(tmp_path / f"{case}-0.safetensors")
    first, second = (load_file(together / f"{case}-{rank}.safetensors") for rank in range(2))
    assert largest_change(first, second) == 0
    assert largest_change(first, expected) < 1e-5
    found = json.loads((together / "results.json").read_text())[case]
    for own, given in zip(found, alone, strict=True):
        assert own == pytest.approx(given, rel=1e-4)
    # What only training needs is in the checkpoints of both.
    assert folders(together / case) == folders(tmp_path / case) == ["checkpoint-2", "checkpoint-3"]
    stored = [load_file(place / case / "checkpoint-3" / "model.safetensors") for place in (together, tmp_path)]
    assert largest_change(*stored) < 1e-5
    assert any("distillation_maps" in name for name in stored[0]) is ("hidden_states_weight" in CASES[case])


def main(arguments: list[str]) -> None:
    tokenizer = BertTokenizer.from_pretrained(arguments[0])
    folder = Path(arguments[1])
    results = {case: run(tokenizer, case, folder, int(os.environ["WORLD_SIZE"])) for case in arguments[2:]}
    if os.environ["RANK"] == "0":
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    run_worker(main)
