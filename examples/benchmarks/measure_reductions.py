#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
How often the processes of a supernet's training reduce its gradients: bytes an optimizer step over the weights' own.

    torchrun --nproc_per_node 2 measure_reductions.py --use_cpu --output_file reductions.json

Gradients are counted where DistributedDataParallel reduces them. A second training, in which no backward pass keeps
its gradients local, shows what reducing in each of them costs: as many times more as there are sub-networks (three)
and micro-batches. The supernet is small unless said otherwise, which changes bytes, not ratios; weights are random.
"""

import contextlib
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import PrinterCallback, TrainerCallback


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from benchmark_utils import make_masked_batch, report  # noqa: E402
from example_utils import parse_arguments, run_script  # noqa: E402
from modeling_mos import MosConfig, MosForMaskedLM  # noqa: E402
from trainers import SupernetTrainer, SupernetTrainingArguments  # noqa: E402


@dataclass
class ReductionArguments:
    """The supernet, its training, and where to run."""

    hidden_size: int = field(default=64, metadata={"help": "Width of the supernet."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Its layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "Its heads."})
    intermediate_size: int = field(default=256, metadata={"help": "Its feed-forward width."})
    vocab_size: int = field(default=1000, metadata={"help": "Its vocabulary."})
    routing: str = field(
        default="neuron", metadata={"help": "Its routing.", "choices": ["none", "layer", "neuron", "random"]}
    )
    steps: int = field(default=3, metadata={"help": "Optimizer steps of a training."})
    micro_batches: int = field(default=2, metadata={"help": "Of a step, in each process."})
    batch_size: int = field(default=2, metadata={"help": "Rows of a micro-batch."})
    sequence_length: int = field(default=16, metadata={"help": "Tokens of a row."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on CPU though there are GPUs."})
    output_file: str | None = field(default=None, metadata={"help": "Where to write the JSON, beside printing it."})

    def __post_init__(self):
        minima = {"vocab_size": 2, "steps": 1, "micro_batches": 1, "batch_size": 1, "sequence_length": 1}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"--{name} must be at least {minimum}, got {getattr(self, name)}.")


class CountReductions(TrainerCallback):
    """
    Counts the bytes of gradients that a training reduces.

    Args:
        trainer (`Trainer`): Whose training it is.
        in_every_pass (`bool`): Whether no backward pass may keep its gradients local.
    """

    def __init__(self, trainer: SupernetTrainer, in_every_pass: bool):
        self.trainer = trainer
        self.in_every_pass = in_every_pass
        self.num_bytes = 0

    def on_train_begin(self, args, state, control, **kwargs):
        model = self.trainer.model_wrapped
        model.register_comm_hook(None, self._reduce)
        if self.in_every_pass:
            model.no_sync = contextlib.nullcontext

    def _reduce(self, state: Any, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.num_bytes += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)


def make_trainer(arguments: ReductionArguments, output_dir: str) -> SupernetTrainer:
    """
    Raises:
        ValueError: there is one process, or sizes of the supernet contradict each other.
    """
    training_arguments = SupernetTrainingArguments(
        output_dir,
        max_steps=arguments.steps,
        gradient_accumulation_steps=arguments.micro_batches,
        per_device_train_batch_size=arguments.batch_size,
        use_cpu=arguments.use_cpu,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if training_arguments.world_size == 1:
        raise ValueError(
            "One process has nobody to reduce gradients with; start two or more: torchrun --nproc_per_node 2 "
            f"{Path(__file__).name}, on CPU with --use_cpu."
        )
    config = MosConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        intermediate_size=arguments.intermediate_size,
        max_position_embeddings=arguments.sequence_length,
        routing=arguments.routing,
        sparse_prediction=True,
    )
    torch.manual_seed(0)
    rows = arguments.micro_batches * arguments.batch_size * training_arguments.world_size
    batch = make_masked_batch((rows, arguments.sequence_length), arguments.vocab_size, torch.device("cpu"))
    trainer = SupernetTrainer(
        MosForMaskedLM(config),
        training_arguments,
        train_dataset=datasets.Dataset.from_dict({name: values.tolist() for name, values in batch.items()}),
    )
    trainer.remove_callback(PrinterCallback)  # the JSON is all that is printed
    return trainer


def count_reduced(arguments: ReductionArguments, in_every_pass: bool) -> tuple[float, SupernetTrainer]:
    """Bytes that an optimizer step reduces, and the trainer that took the steps."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(arguments, folder)
        counter = CountReductions(trainer, in_every_pass)
        trainer.add_callback(counter)
        trainer.train()
    return counter.num_bytes / arguments.steps, trainer


def measure(arguments: ReductionArguments) -> dict[str, Any]:
    as_trained, trainer = count_reduced(arguments, in_every_pass=False)
    in_every_pass, _ = count_reduced(arguments, in_every_pass=True)
    weights = sum(value.nbytes for value in trainer.model.parameters() if value.requires_grad)
    return {
        "device": trainer.args.device.type,
        "processes": trainer.args.world_size,
        "backend": distributed.get_backend(),
        "arguments": asdict(arguments),
        "backward_passes_per_step": arguments.micro_batches * len(trainer.architectures_of_step(0)),
        "bytes_of_weights": weights,
        "bytes_reduced_per_step": {"as_trained": as_trained, "in_every_backward_pass": in_every_pass},
        "reduced_over_weights": {
            "as_trained": as_trained / weights,
            "in_every_backward_pass": in_every_pass / weights,
        },
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    (parsed,) = parse_arguments(ReductionArguments, arguments, __doc__)
    found = measure(parsed)
    if PartialState().is_main_process:
        report(found, parsed.output_file)
    return found


if __name__ == "__main__":
    run_script(main)
