# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Short trainings that test_deepspeed.py runs in one process and, through torchrun and DeepSpeed, in two (those that are
stopped and continued, test_distributed_resuming.py runs without DeepSpeed):

    torchrun --standalone --nproc_per_node 2 deepspeed_training.py TOKENIZER_FOLDER OUTPUT_FOLDER STAGE...

Every step trains on the same eight rows: two processes share what one accumulates.
"""

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any


sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from safetensors.torch import save_file  # noqa: E402
from test_distillation_trainer import make_student, make_teacher, make_trainer  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import BertTokenizer, Trainer, TrainerCallback  # noqa: E402
from transformers.integrations.deepspeed import unset_hf_deepspeed_config  # noqa: E402

from testing_utils import ELASTIC  # noqa: E402
from trainers import SupernetTrainer, passes  # noqa: E402
from training_utils import (  # noqa: E402
    make_arguments,
    make_bert,
    make_masked,
    make_sharcs,
    make_sharcs_trainer,
    make_supernet,
    run_worker,
    weights_of,
)


def make_supernet_run(tokenizer, folder: Path, processes: int, taught: bool = False, **options) -> Trainer:
    """Widths and depth: three sub-networks a micro-batch, two or four micro-batches a step."""
    values = {
        "max_steps": 3,
        "learning_rate": 0.02,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // processes,
        "distillation": ["logits"] if taught else None,
    }
    # Before the arguments: from them on, ZeRO-3 partitions models where they are made, as `from_pretrained` does.
    model = make_supernet(tokenizer, search_space=ELASTIC, sparse_prediction=True)
    teacher = make_bert(tokenizer, seed=8) if taught else None
    return SupernetTrainer(
        model,
        make_arguments(folder, **{**values, **options}),
        teacher=teacher,
        train_dataset=make_masked(tokenizer, 16),
    )


def make_routed_run(tokenizer, folder: Path, processes: int, rows: int = 21, batch: int = 8, **options) -> Trainer:
    return make_sharcs_trainer(
        tokenizer,
        folder,
        make_sharcs(tokenizer, entry="projection"),
        rows=rows,
        per_device_train_batch_size=batch // processes,
        **options,
    )


def make_distillation_run(tokenizer, folder: Path, processes: int, **options) -> Trainer:
    return make_trainer(
        tokenizer,
        folder,
        make_student(tokenizer),
        make_teacher(tokenizer),
        rows=16,
        hidden_states_weight=0.7,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4 // processes,
        **options,
    )


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "supernet": (make_supernet_run, {}),
    "taught_supernet": (make_supernet_run, {"taught": True}),
    # A width a process, each with its own number of rows, and of passes through the network.
    "routed": (make_routed_run, {"width_batches": "one_per_rank", "distillation_weight": 0.5}),
    # Steps of two or three rows: a process has none of some width, or none at all.
    "routed_single_rows": (make_routed_run, {"rows": 13, "batch": 2, "hardness_source": "agreement"}),
    "distilled": (make_distillation_run, {}),
}


# Where updates depend on all that an optimizer and a scheduler remember, and spare biases and norms the decay; a large
# epsilon, so that rounding is not blown up where gradients vanish.
ADAM = {
    "optim": "adamw_torch_fused",
    "adam_epsilon": 0.1,
    "weight_decay": 0.5,
    "learning_rate": 0.05,
    "lr_scheduler_type": "linear",
}


def train(
    tokenizer,
    case: str,
    folder: Path,
    processes: int = 1,
    resume: bool = False,
    callback: TrainerCallback | None = None,
    **options,
) -> Trainer:
    make, own = CASES[case]
    trainer = make(tokenizer, folder / case, processes, **{**own, **options})
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.args.world_size == processes
    return trainer


def save_weights(trainer: Trainer, file: Path) -> None:
    passes.gather_parameters(trainer.model)
    save_file(weights_of(trainer.model), file)


# ---- DeepSpeed ------------------------------------------------------------------------------------------------------

OFFLOAD = Path(__file__).resolve().parents[1] / "examples" / "deepspeed" / "zero3_offload.json"


def deepspeed_config(stage: int) -> dict[str, Any]:
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        # Partitions matrices of the small models here, and leaves vectors whole.
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 1000,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }


# ---- resuming -------------------------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Ends a run after its second step's checkpoint, long before its schedule does."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


class Forget(TrainerCallback):
    """Clears what the optimizer remembers of the steps before."""

    def on_train_begin(self, args, state, control, optimizer, **kwargs):
        for remembered in optimizer.state.values():
            for value in remembered.values():
                value.zero_()


def stop_and_resume(tokenizer, case: str, folder: Path, **options) -> None:
    """A run that nobody disturbs, and one that is stopped and continued, before by one that forgets."""
    options = {**ADAM, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, **options}
    for kind, output, changes in (
        ("undisturbed", "undisturbed", {}),
        ("stopped", "resumed", {"callback": Stop()}),
        ("forgetful", "resumed", {"callback": Forget(), "resume": True, "save_strategy": "no"}),
        ("resumed", "resumed", {"resume": True}),
    ):
        unset_hf_deepspeed_config()
        trainer = train(tokenizer, case, folder / output, processes=2, **{**options, **changes})
        save_weights(trainer, folder / f"{case}-{kind}-{trainer.args.process_index}.safetensors")


# ---- reductions -----------------------------------------------------------------------------------------------------


class CountReductions(TrainerCallback):
    """Numbers that one optimizer step of a run sums over processes."""

    def __init__(self, step: int):
        self.step = step
        self.profiler = None
        self.numbers = 0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self.profiler is not None:
            self.profiler.stop()
            for event in self.profiler.events():
                if event.name.startswith("gloo:") and "reduce" in event.name:
                    self.numbers += sum(math.prod(shape) for shape in event.input_shapes if shape)
            self.profiler = None


def count_reductions(tokenizer, folder: Path, **options) -> int:
    trainer = make_supernet_run(tokenizer, folder, processes=2, max_steps=2, **options)
    counter = CountReductions(step=1)
    trainer.add_callback(counter)
    trainer.train()
    return counter.numbers


# Cases that are stopped and continued, each with ZeRO's stage.
RESUMED = [("supernet", 2), ("supernet", 3), ("routed", 2)]


def main(arguments: list[str]) -> None:
    tokenizer = BertTokenizer.from_pretrained(arguments[0])
    folder, rank = Path(arguments[1]), os.environ["RANK"]
    reduced = {"ddp": count_reductions(tokenizer, folder / "counted_ddp")}
    for stage in map(int, arguments[2:]):
        options = {"deepspeed": deepspeed_config(stage)}
        for case in CASES:
            unset_hf_deepspeed_config()
            trainer = train(tokenizer, case, folder / str(stage), processes=2, **options)
            save_weights(trainer, folder / str(stage) / f"{case}-{rank}.safetensors")
        unset_hf_deepspeed_config()
        reduced[f"stage_{stage}"] = count_reductions(tokenizer, folder / f"counted_{stage}", **options)
    for case, stage in RESUMED:
        stop_and_resume(tokenizer, case, folder / f"resumed_{stage}", deepspeed=deepspeed_config(stage))
    unset_hf_deepspeed_config()
    trainer = train(tokenizer, "taught_supernet", folder / "offloaded", processes=2, deepspeed=str(OFFLOAD), **ADAM)
    save_weights(trainer, folder / "offloaded" / f"taught_supernet-{rank}.safetensors")
    unset_hf_deepspeed_config()
    passes._open_reduction = lambda engine: contextlib.ExitStack()
    options = {"deepspeed": deepspeed_config(2)}
    reduced["stage_2_each_pass"] = count_reductions(tokenizer, folder / "counted_each_pass", **options)
    if rank == "0":
        (folder / "reduced.json").write_text(json.dumps(reduced))


if __name__ == "__main__":
    run_worker(main)
