#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
What training a supernet costs on several devices, on paper: counted FLOPs and bytes, and processor time measured here.

    python estimate_run.py --tflops_per_device 100 --output_file estimate.json

An update's operations are three times the forward pass's (one forward, two for gradients) of every sub-network for
every token; hours = updates * tokens * operations a token / (devices * rate). Gradients of 4 bytes a parameter are
reduced once an update; reducing them in every backward pass, as the published code does, takes as many times more as
there are sub-networks and micro-batches. Sizes are those of the published run unless said otherwise.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from benchmark_utils import report  # noqa: E402
from example_utils import parse_arguments, run_script  # noqa: E402
from modeling_mos import MosConfig, MosForMaskedLM  # noqa: E402


@dataclass
class EstimateArguments:
    """The run, and the devices."""

    routing: str = field(
        default="neuron", metadata={"help": "Of the supernet.", "choices": ["none", "layer", "neuron", "random"]}
    )
    num_experts: int = field(default=2, metadata={"help": "Of the supernet, with routing."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Of the supernet, as wide as BERT-base."})
    updates: int = field(default=125_000, metadata={"help": "Optimizer steps."})
    rows: int = field(default=2048, metadata={"help": "Rows of an update, on all devices."})
    sequence_length: int = field(default=128, metadata={"help": "Tokens of a row."})
    devices: int = field(default=8, metadata={"help": "How many there are."})
    micro_batches: int = field(default=2, metadata={"help": "Of an update, on each device."})
    tflops_per_device: float = field(default=100.0, metadata={"help": "Useful operations a device does, in 1e12/s."})
    measured_rows: int = field(default=1, metadata={"help": "Rows to measure processor time with; 0 measures none."})
    output_file: str | None = field(default=None, metadata={"help": "Where to write the JSON, beside printing it."})


def estimate(arguments: EstimateArguments) -> dict[str, Any]:
    config = MosConfig(
        num_hidden_layers=arguments.num_hidden_layers,
        routing=arguments.routing,
        num_experts=1 if arguments.routing == "none" else arguments.num_experts,
        sparse_prediction=True,
    )
    supernet = MosForMaskedLM(config)
    space = supernet.search_space
    sandwich = {"largest": space.largest(), "smallest": space.smallest(), "random": space.sample(0)}
    tokens = arguments.rows * arguments.sequence_length
    operations = {
        name: 3 * supernet.count_flops(architecture, arguments.sequence_length) // arguments.sequence_length
        for name, architecture in sandwich.items()
    }
    of_update = tokens * sum(operations.values())
    gradients = 4 * sum(value.numel() for value in supernet.parameters())
    found: dict[str, Any] = {
        "flops_per_token": operations,
        "tokens": arguments.updates * tokens,
        "hours": arguments.updates * of_update / (arguments.devices * arguments.tflops_per_device * 1e12) / 3600,
        "bytes_reduced_per_update": {
            "once": gradients,
            "in_every_backward_pass": gradients * len(sandwich) * arguments.micro_batches,
        },
    }
    if arguments.measured_rows:
        found["processor_seconds_per_token"] = measure(supernet, sandwich, arguments)
    return found


def measure(supernet: MosForMaskedLM, sandwich: dict, arguments: EstimateArguments) -> dict[str, float]:
    """Of one thread: each sub-network forward and backward, and the optimizer step, divided by an update's tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.measured_rows, arguments.sequence_length)
    ids = torch.randint(1000, supernet.config.vocab_size, shape, generator=generator)
    labels = ids.masked_fill(torch.rand(shape, generator=generator) > 0.15, -100)
    optimizer = torch.optim.AdamW(supernet.parameters(), fused=True)
    found = {}
    for name, architecture in sandwich.items():

        def run(architecture=architecture) -> None:
            supernet(ids, labels=labels, architecture=architecture).loss.backward()

        run()  # what a first call prepares is no part of it
        found[name] = _processor_seconds(run) / ids.numel()
    optimizer.step()
    # Once an update, whatever its tokens.
    found["optimizer"] = _processor_seconds(optimizer.step) / (arguments.rows * arguments.sequence_length)
    return found


def _processor_seconds(run: Callable[[], Any]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        run()
        return time.process_time() - start
    finally:
        torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    (parsed,) = parse_arguments(EstimateArguments, arguments, __doc__)
    found = estimate(parsed)
    report(found, parsed.output_file)
    return found


if __name__ == "__main__":
    run_script(main)
