# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Short trainings that test_distributed_*.py run in one process and, through torchrun, in several:

    torchrun --standalone --nproc_per_node 2 distributed_training.py TOKENIZER_FOLDER OUTPUT_FOLDER CASE...

Every step trains on the same eight rows: several processes share what one process accumulates.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from safetensors.torch import save_file  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from testing_utils import ELASTIC  # noqa: E402
from training_utils import (  # noqa: E402
    WIDTHS,
    make_bert,
    make_sharcs,
    make_sharcs_trainer,
    make_supernet,
    run_worker,
    train_masked_lm,
    train_supernet,
    weights_of,
)


CASES: dict[str, dict[str, Any]] = {
    "sandwich": {"search_space": WIDTHS},
    "depths": {"search_space": ELASTIC},
    "random_depths": {"search_space": ELASTIC, "architecture_sampling": "random", "num_random_architectures": 2},
    "in_place": {"search_space": WIDTHS, "distillation": ["logits"]},
    "in_place_depths": {"search_space": ELASTIC, "distillation": ["logits"]},
    "outside": {"search_space": WIDTHS, "distillation": ["logits"], "teacher": True},
    "checkpointed": {
        "search_space": ELASTIC,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "random_checkpointed": {
        "search_space": ELASTIC,
        "architecture_sampling": "random",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "classification": {"head": "sequence-classification"},
    "stock": {"stock": True},
}


# Where updates are smooth, so that rounding is not blown up, and yet depend on all that an optimiser remembers.
ADAM = {"optim": "adamw_torch", "adam_epsilon": 0.1, "weight_decay": 0.5, "learning_rate": 0.05}
SHARCS_CASES: dict[str, dict[str, Any]] = {
    "routed_joint": {},
    "routed_adam": {**ADAM},
    "routed_alternating": {"width_batches": "alternating"},
    "routed_one_per_rank": {"width_batches": "one_per_rank", "distillation_weight": 0.5},
    "routed_every_width": {"train_every_width": True, "distillation_weight": 0.5},
    "routed_evaluation": {"hardness_source": "evaluation"},
    "routed_agreement": {"hardness_source": "agreement", "hardness_intervals": "0.2148"},
    "routed_repeated": {
        "repeat_smaller_buckets": True,
        "router_loss_before_targets": True,
        "hardness_window": 2,
        "hardness_intervals": "0.25",
    },
    # Steps of two or three rows: a process has none of some width, or none at all.
    "routed_single_rows": {"rows": 13, "batch": 2, **ADAM},
    "routed_spans": {"problem": "question_answering", "hardness_intervals": "0.012"},
    "routed_tokens": {
        "problem": "token_classification",
        "hardness_source": "agreement",
        "hardness_intervals": "0.265",
    },
}


def run_sharcs(tokenizer, case: str, folder: Path, processes: int) -> dict[str, Any]:
    """Trains a routed encoder for three epochs, of which two have targets; otherwise as `run`."""
    from test_sharcs_trainer import accuracy

    options = dict(SHARCS_CASES[case])
    problem, rows = options.pop("problem", "single_label_classification"), options.pop("rows", 21)
    trainer = make_sharcs_trainer(
        tokenizer,
        folder / case,
        make_sharcs(tokenizer, problem, width_multipliers=[0.25, 0.5, 1.0] if "evaluation" in case else [0.25, 1.0]),
        problem,
        rows,
        compute_metrics=None if problem == "question_answering" else accuracy,
        **{
            "per_device_train_batch_size": options.pop("batch", 8) // processes,
            "per_device_eval_batch_size": 2,
            "save_strategy": "epoch",
            "save_total_limit": 1,
            **options,
        },
    )
    trainer.train()
    assert trainer.args.world_size == processes
    save_file(weights_of(trainer.model), folder / f"{case}-{trainer.args.process_index}.safetensors")
    logs = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return {"logs": logs, "metrics": trainer.evaluate()}


def run(tokenizer, case: str, folder: Path, processes: int) -> dict[str, Any]:
    """Trains one case for three steps; saves the weights of this process and returns logs and an evaluation."""
    options = dict(CASES[case])
    options |= {
        "learning_rate": 0.02,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // processes,
        "per_device_eval_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
    }
    output = folder / case
    if options.pop("stock", False):
        trainer = train_masked_lm(tokenizer, output, make_bert(tokenizer), rows=16, **options)
    elif options.pop("head", None):
        from test_supernet_trainer import make_classifier

        trainer = make_classifier(tokenizer, output, **options)
        trainer.train()
    else:
        if options.pop("teacher", False):
            options["teacher"] = make_bert(tokenizer, seed=8)
        model = make_supernet(tokenizer, search_space=options.pop("search_space"), sparse_prediction=True)
        trainer = train_supernet(tokenizer, output, model, rows=16, **options)
    assert trainer.args.world_size == processes
    save_file(weights_of(trainer.model), folder / f"{case}-{trainer.args.process_index}.safetensors")
    return {"logs": trainer.state.log_history[:3], "metrics": trainer.evaluate()}


def main(arguments: list[str]) -> None:
    tokenizer = BertTokenizer.from_pretrained(arguments[0])
    folder = Path(arguments[1])
    processes = int(os.environ["WORLD_SIZE"])
    results = {
        case: (run_sharcs if case in SHARCS_CASES else run)(tokenizer, case, folder, processes)
        for case in arguments[2:]
    }
    if os.environ["RANK"] == "0":
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    run_worker(main)
