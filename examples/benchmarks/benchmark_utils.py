# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What the benchmarks share: contestants that take turns, ratios within a round, facts of the machine, the results."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import BertConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import is_matplotlib_available

from example_utils import write_text_atomically
from modeling_mos import MosPreTrainedModel
from trainers import SupernetTrainer, SupernetTrainingArguments
from trainers.width_predictions import save_figure


__all__ = [
    "FORWARD_PASSES_A_STEP",
    "ModelSizes",
    "Timing",
    "check_positive",
    "check_tokens",
    "compare",
    "find_device",
    "machine_facts",
    "make_batches",
    "make_masked_batch",
    "make_step",
    "make_trainer",
    "report",
    "spread",
    "synchronize",
    "time_in_turns",
    "totals",
]


# A training step is three forward passes' worth: the pass itself and the gradients of inputs and of weights.
FORWARD_PASSES_A_STEP = 3


@dataclass
class Timing:
    """How often to measure, where, and where the results go."""

    rounds: int = field(default=5, metadata={"help": "Rounds that count, at least 5."})
    warmup_rounds: int = field(default=1, metadata={"help": "Rounds before that."})
    device: str | None = field(default=None, metadata={"help": "Where to run; an accelerator if there is one."})
    num_threads: int | None = field(default=None, metadata={"help": "Threads of the CPU; torch's own if not given."})
    clock: str = field(
        default="wall",
        metadata={
            "help": "What seconds are: of the wall clock, or of this process on the CPU ('cpu'), which other work on "
            "the machine changes least; that one needs one thread and no accelerator.",
            "choices": ["wall", "cpu"],
        },
    )
    output_file: str | None = field(
        default=None,
        metadata={
            "help": "Where to write the JSON, beside printing it; a picture, where there is one, gets the same name "
            "with .png."
        },
    )

    def __post_init__(self):
        for name, minimum in (("rounds", 5), ("warmup_rounds", 0), ("num_threads", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"--{name} must be at least {minimum}, got {value}.")

    def prepare(self) -> torch.device:
        """
        Pins the threads; returns the device.

        Raises:
            ValueError: if there is no such device, or the clock does not see all that is done.
        """
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        device = find_device(self.device)
        if self.clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() > 1):
            raise ValueError(
                f"--clock cpu needs one thread and the CPU, got {torch.get_num_threads()} on {device.type!r}: the sum "
                "over threads is not how long something takes. Add --num_threads 1 --device cpu, or use --clock wall."
            )
        return device

    def facts(self) -> dict[str, Any]:
        """What of it belongs to the results."""
        return {"clock": self.clock, "rounds": self.rounds}

    def seconds(self) -> float:
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


@dataclass
class ModelSizes:
    """Sizes of the backbone, those of BERT-base by default; its weights are random."""

    vocab_size: int = field(default=30522, metadata={"help": "Entries of the vocabulary."})
    hidden_size: int = field(default=768, metadata={"help": "Width of the network."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=12, metadata={"help": "Attention heads a layer."})
    intermediate_size: int = field(default=3072, metadata={"help": "Width of the feed-forward blocks."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, tokens, lengths and architectures."})

    def config(self, **overrides: Any) -> BertConfig:
        """The backbone's configuration. Dropout is the published recipe's: in attention only."""
        sizes = {name: value for name, value in vars(self).items() if name != "seed"}
        return BertConfig(**{**sizes, "hidden_dropout_prob": 0.0, **overrides})


def check_positive(**counts: int | Sequence[int]) -> None:
    """
    Raises:
        ValueError: if an option, or one of its numbers, is below 1.
    """
    for name, given in counts.items():
        for count in [given] if isinstance(given, int) else given:
            if count < 1:
                raise ValueError(f"--{name} must be at least 1, got {count}.")


def check_tokens(name: str, tokens: int) -> None:
    """
    Raises:
        ValueError: if models of these benchmarks take no sequences of so many tokens.
    """
    most = BertConfig().max_position_embeddings
    if not 1 <= tokens <= most:
        raise ValueError(f"--{name} takes 1 to {most} tokens a sequence, got {tokens}.")


def find_device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:  # no such name, or none of that kind in this build or machine
        raise ValueError(f"There is no device {name!r}: {str(error).splitlines()[0]}") from error


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_in_turns(
    contestants: Mapping[str, Callable[[Any], Any]], items: Sequence[Any], timing: Timing, device: torch.device
) -> dict[str, list[list[float]]]:
    """Seconds of every call with every item, such as a batch: for each contestant, one list a round."""
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for position in tqdm(range(timing.warmup_rounds + timing.rounds), desc="Rounds", leave=False, disable=None):
        for name, run in contestants.items():
            calls = []
            for item in items:
                synchronize(device)
                start = timing.seconds()
                run(item)
                synchronize(device)
                calls.append(timing.seconds() - start)
            if position >= timing.warmup_rounds:
                times[name].append(calls)
    return times


def totals(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Seconds of each round."""
    return [sum(calls) for calls in rounds]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of a number that every round has."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def compare(values: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """The ratio of two contestants, round by round, which what else the machine does moves least."""
    return spread([own / reference for own, reference in zip(values, references, strict=True)])


def make_masked_batch(shape: tuple[int, int], vocab_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random tokens, of which 15% are to be predicted; no padding."""
    ids = torch.randint(1, vocab_size, shape)
    labels = ids.masked_fill(torch.rand(shape) >= 0.15, -100)
    labels[0, 0] = ids[0, 0]  # there is something to predict
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


def make_trainer(model: PreTrainedModel, output_dir: str, device: torch.device, **options: Any) -> Trainer:
    """A trainer that is ready for single steps with the default optimizer; data are none of its business."""
    supernet = isinstance(model, MosPreTrainedModel)
    arguments = (SupernetTrainingArguments if supernet else TrainingArguments)(
        output_dir, report_to="none", use_cpu=device.type == "cpu", learning_rate=1e-6, **options
    )
    trainer = (SupernetTrainer if supernet else Trainer)(model=model, args=arguments)
    trainer.create_optimizer()
    if arguments.torch_compile and not supernet:
        model.compile(backend=arguments.torch_compile_backend)  # Trainer itself does when it trains
    return trainer


def make_step(trainer: Trainer) -> Callable[[dict], None]:
    """One optimizer step after another on the batch that it is given, of a trainer that has made its optimizer."""
    trainer.current_gradient_accumulation_steps = 1  # what `train` sets

    def step(batch: dict) -> None:
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=(batch["labels"] != -100).sum())
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.state.global_step += 1

    return step


def make_batches(
    rows: Sequence[Sequence[int]], size: int, length: int | None, padding: int, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Batches of `size` rows of token ids, padded to `length`, or each to its longest row."""
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        tokens = length or max(map(len, part))
        ids = torch.full((len(part), tokens), padding)
        for index, row in enumerate(part):
            ids[index, : len(row)] = torch.tensor(row)
        mask = torch.arange(tokens) < torch.tensor([len(row) for row in part])[:, None]
        batches.append({"input_ids": ids.to(device), "attention_mask": mask.long().to(device)})
    return batches


ENVIRONMENT = ("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a number depends on, beside the code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        # How threads wait and memory is kept, which is read when Python starts.
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(ENVIRONMENT)},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def plot_speedups(
    panels: Mapping[str, Mapping[str, Mapping[int, tuple[float, float, float]]]], output_file: str | None
) -> None:
    """
    Draws how many times as fast something is, over batch sizes, beside the results' file, where there is one and
    matplotlib is installed.

    Args:
        panels (mapping): By title and contestant, for each batch size the median, the lowest and the highest round.
        output_file (`str`, *optional*): Where the results go; the picture has the same name and ends in .png.
    """
    panels = {title: curves for title, curves in panels.items() if curves}
    if output_file is None or not panels or not is_matplotlib_available():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in curves.items():
            sizes = list(points)
            medians, lowest, highest = zip(*points.values(), strict=True)
            axes.plot(sizes, medians, marker="o", label=name)
            axes.fill_between(sizes, lowest, highest, alpha=0.15)
        axes.axhline(1, color="gray", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="rows a batch", ylabel="times as fast", title=title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(loc="best")  # said, or matplotlib warns where a busy machine takes a second to place it
    path = Path(output_file).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def report(results: Mapping[str, Any], output_file: str | None) -> None:
    """Prints the results as JSON, and writes them."""
    text = json.dumps(results, indent=2) + "\n"
    if output_file is not None:
        write_text_atomically(output_file, text)
    print(text, end="")
