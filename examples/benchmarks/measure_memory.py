#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Peak memory of a supernet's training step and of taking a subnet out, beside what the weights themselves take.

    python measure_memory.py --output_file memory.json

Sizes are BERT-base's unless said otherwise, weights are random. Each part runs in a process of its own; on CPU the
peak is the process's resident memory (Linux), on a GPU what PyTorch has allocated there.
"""

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from benchmark_utils import report  # noqa: E402
from example_utils import parse_arguments, run_script, to_flags  # noqa: E402
from modeling_mos import MosConfig, MosForMaskedLM  # noqa: E402
from trainers import SupernetTrainer, SupernetTrainingArguments  # noqa: E402


@dataclass
class MemoryArguments:
    """The supernet, the batch, and where to run."""

    hidden_size: int = field(default=768, metadata={"help": "Width of the supernet."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Its layers."})
    num_attention_heads: int = field(default=12, metadata={"help": "Its heads."})
    intermediate_size: int = field(default=3072, metadata={"help": "Its feed-forward width."})
    vocab_size: int = field(default=30522, metadata={"help": "Its vocabulary."})
    routing: str = field(
        default="neuron", metadata={"help": "Its routing.", "choices": ["none", "layer", "neuron", "random"]}
    )
    num_experts: int = field(default=2, metadata={"help": "Its experts, with routing."})
    batch_size: int = field(default=4, metadata={"help": "Rows of the training step."})
    sequence_length: int = field(default=128, metadata={"help": "Tokens of a row."})
    parts: list[str] = field(
        default_factory=lambda: ["training", "extraction"], metadata={"help": "Any of training, extraction."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Run on CPU though there is a GPU."})
    output_file: str | None = field(default=None, metadata={"help": "Where to write the JSON, beside printing it."})

    def __post_init__(self):
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"`parts` may hold {sorted(PARTS)}, got {unknown}.")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and not self.use_cpu else "cpu")


def make_supernet(arguments: MemoryArguments) -> MosForMaskedLM:
    config = MosConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        intermediate_size=arguments.intermediate_size,
        max_position_embeddings=max(512, arguments.sequence_length),
        routing=arguments.routing,
        num_experts=1 if arguments.routing == "none" else arguments.num_experts,
        sparse_prediction=True,
    )
    return MosForMaskedLM(config).to(arguments.device)


def bytes_of(model: torch.nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.parameters())


def measure_peak(device: torch.device, run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run` returns, and by how many bytes memory rose above where it was before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        return result, torch.cuda.max_memory_allocated() - before
    _return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before = _resident("VmRSS")
    result = run()
    return result, _resident("VmHWM") - before


def _return_freed_memory() -> None:
    """glibc keeps some of it, which would be used again without raising the peak."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def measure_training(arguments: MemoryArguments) -> dict[str, int]:
    """Two optimizer steps of the sandwich rule (largest, smallest, one random architecture) with AdamW."""
    generator = torch.Generator().manual_seed(0)
    shape = (2 * arguments.batch_size, arguments.sequence_length)
    ids = torch.randint(5, arguments.vocab_size, shape, generator=generator)
    labels = ids.masked_fill(torch.rand(shape, generator=generator) > 0.15, -100)
    rows = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    model = make_supernet(arguments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SupernetTrainer(
            model,
            SupernetTrainingArguments(
                output_dir=folder,
                max_steps=2,
                per_device_train_batch_size=arguments.batch_size,
                save_strategy="no",
                use_cpu=arguments.device.type == "cpu",
                dataloader_pin_memory=False,
                disable_tqdm=True,
            ),
            train_dataset=rows,
        )
        _, rise = measure_peak(arguments.device, trainer.train)
    weights = bytes_of(model)
    return {"weights": weights, "peak_with_weights": weights + rise}


def measure_extraction(arguments: MemoryArguments) -> dict[str, int]:
    """Taking out the largest architecture, whose subnet needs the most."""
    supernet = make_supernet(arguments)
    space = supernet.search_space
    supernet.extract_subnet(space.smallest())  # what a first call loads is no part of it
    subnet, rise = measure_peak(arguments.device, lambda: supernet.extract_subnet(space.largest()))
    return {"supernet": bytes_of(supernet), "subnet": bytes_of(subnet), "peak_beside_supernet": rise}


PARTS = {"training": measure_training, "extraction": measure_extraction}


def measure(arguments: MemoryArguments) -> dict[str, Any]:
    found: dict[str, Any] = {"device": str(arguments.device), "arguments": asdict(arguments)}
    if len(arguments.parts) == 1:
        (name,) = arguments.parts
        return {**found, name: PARTS[name](arguments)}
    with tempfile.TemporaryDirectory() as folder:
        for name in tqdm(arguments.parts, desc="Measuring", disable=None):
            file = Path(folder) / f"{name}.json"
            flags = to_flags({**asdict(arguments), "parts": [name], "output_file": str(file)})
            subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.DEVNULL)
            found[name] = json.loads(file.read_text(encoding="utf-8"))[name]
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    (parsed,) = parse_arguments(MemoryArguments, arguments, __doc__)
    found = measure(parsed)
    report(found, parsed.output_file)
    return found


if __name__ == "__main__":
    run_script(main)
