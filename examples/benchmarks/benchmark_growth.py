#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
How the time of a training step and of a search grow with what they are made of.

    python benchmark_growth.py --num_threads 1 --output_file growth.json --plot growth.png

Steps of the largest architecture of a small neuron-wise supernet, with their optimizer, against the number of experts,
layers and tokens; searches without racing against the number of candidates. Through each a straight line is laid;
`worst_residual` is the largest distance from it, as a share of the measured time. All points of a line take turns.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate
from transformers import BertForMaskedLM
from transformers.utils import is_matplotlib_available, logging


# Helpers are beside this file and one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from benchmark_utils import (  # noqa: E402
    ModelSizes,
    Timing,
    machine_facts,
    make_masked_batch,
    make_step,
    make_trainer,
    report,
    time_in_turns,
    totals,
)
from example_utils import parse_arguments, run_script, show_progress_messages  # noqa: E402
from modeling_mos import EvolutionarySearch, MaskedLMObjective, MosForMaskedLM  # noqa: E402
from trainers.width_predictions import save_figure  # noqa: E402


logger = logging.get_logger(__name__)


@dataclass
class SmallSizes(ModelSizes):
    """Sizes at which a step takes a fraction of a second."""

    vocab_size: int = field(default=4000, metadata={"help": "Entries of the vocabulary."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the network."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Layers, where they are not what grows."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads a layer."})
    intermediate_size: int = field(default=768, metadata={"help": "Width of the feed-forward blocks."})


@dataclass
class GrowthArguments:
    """The points of each line."""

    experts: list[int] = field(default_factory=lambda: [1, 2, 4, 6, 8], metadata={"help": "Numbers of experts."})
    layers: list[int] = field(default_factory=lambda: [2, 4, 8, 12], metadata={"help": "Numbers of layers."})
    sequences: list[int] = field(
        default_factory=lambda: [2, 4, 8, 16], metadata={"help": "Sequences a step; 8 where they are not what grows."}
    )
    sequence_length: int = field(default=64, metadata={"help": "Tokens of a sequence."})
    search_rounds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 4], metadata={"help": "Rounds of evolution of a search."}
    )
    plot: str | None = field(
        default=None, metadata={"help": "Where to draw the lines (.png); by default beside --output_file."}
    )

    def __post_init__(self):
        for name in ("experts", "layers", "sequences", "search_rounds"):
            if len(set(getattr(self, name))) < 2:
                raise ValueError(f"--{name} needs two different numbers or more, got {getattr(self, name)}.")


def make_supernet(sizes: ModelSizes, device: torch.device, num_experts: int = 2) -> MosForMaskedLM:
    torch.manual_seed(sizes.seed)
    routing = "neuron" if num_experts > 1 else "none"  # a single expert is not mixed
    return MosForMaskedLM.from_backbone(
        BertForMaskedLM(sizes.config()), routing=routing, num_experts=num_experts, sparse_prediction=True
    ).to(device)


def make_steps(
    supernets: dict[int, MosForMaskedLM], folder: str, sizes: ModelSizes, shape: tuple[int, int], device: torch.device
) -> dict[int, Callable[[Any], None]]:
    """A training step for each supernet, all on the same batch."""
    batch = make_masked_batch(shape, sizes.vocab_size, device)

    def make(supernet: MosForMaskedLM) -> Callable[[Any], None]:
        step = make_step(make_trainer(supernet, folder, device, architecture_sampling="fixed"))
        return lambda _: step(batch)

    return {number: make(supernet) for number, supernet in supernets.items()}


def make_searches(
    options: GrowthArguments, sizes: ModelSizes, device: torch.device
) -> dict[int, Callable[[Any], None]]:
    """Searches of different length, by the number of their candidates."""
    supernet = make_supernet(sizes, device).eval()
    batch = make_masked_batch((16, options.sequence_length), sizes.vocab_size, torch.device("cpu"))
    rows = [{name: values[row] for name, values in batch.items()} for row in range(len(batch["labels"]))]
    objective = MaskedLMObjective(rows, default_collate)

    def search(rounds: int) -> int:
        searching = EvolutionarySearch(
            supernet,
            objective,
            population_size=8,
            parent_size=4,
            mutation_size=4,
            crossover_size=4,
            num_rounds=rounds,
            racing=False,
            show_progress=False,
        )
        return searching.run().num_candidates

    return {search(rounds): lambda _, rounds=rounds: search(rounds) for rounds in options.search_rounds}


def fit_line(points: dict[int, float]) -> dict[str, float]:
    """The straight line through seconds against a number."""
    numbers, seconds = np.array(list(points)), np.array(list(points.values()))
    slope, start = np.polyfit(numbers, seconds, 1)
    residuals = np.abs(seconds - (start + slope * numbers)) / seconds
    return {"seconds_at_zero": float(start), "seconds_each": float(slope), "worst_residual": float(residuals.max())}


def plot(lines: dict[str, dict[str, Any]], path: str) -> None:
    """Draws measured points and the lines through them, one panel a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(lines)), lines.items(), strict=True):
        numbers = [int(number) for number in found["seconds"]]
        axes.plot(numbers, list(found["seconds"].values()), marker="o", linestyle="none")
        ends = np.array([0, max(numbers)])
        axes.plot(ends, found["line"]["seconds_at_zero"] + found["line"]["seconds_each"] * ends, linewidth=1)
        axes.set(xlabel=name, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options, sizes, timing = parse_arguments(
        (GrowthArguments, SmallSizes, Timing), arguments, description=__doc__.split("\n")[1]
    )
    show_progress_messages(logger)
    device = timing.prepare()
    shape = (8, options.sequence_length)

    with tempfile.TemporaryDirectory() as folder:

        def steps_of(supernets: dict[int, MosForMaskedLM]) -> dict[int, Callable[[Any], None]]:
            return make_steps(supernets, folder, sizes, shape, device)

        def steps_on(sequences: int) -> Callable[[Any], None]:
            shape = (sequences, options.sequence_length)
            return make_steps({0: make_supernet(sizes, device)}, folder, sizes, shape, device)[0]

        contestants = {
            "experts": lambda: steps_of({number: make_supernet(sizes, device, number) for number in options.experts}),
            "layers": lambda: steps_of(
                {number: make_supernet(replace(sizes, num_hidden_layers=number), device) for number in options.layers}
            ),
            "tokens": lambda: {number * options.sequence_length: steps_on(number) for number in options.sequences},
            "candidates": lambda: make_searches(options, sizes, device),
        }
        lines: dict[str, dict[str, Any]] = {}
        for name, make in contestants.items():
            logger.info(f"Growth with the number of {name}.")
            times = time_in_turns(make(), [None], timing, device)
            # The least disturbed round of each point: a line has no partner to be compared with in the same round.
            points = {number: min(totals(rounds)) for number, rounds in times.items()}
            lines[name] = {
                "seconds": {str(number): found for number, found in points.items()},
                "line": fit_line(points),
            }
    results = {**machine_facts(device), **timing.facts(), "sizes": vars(sizes), **lines}
    report(results, timing.output_file)
    drawn = options.plot
    if drawn is None and timing.output_file is not None and is_matplotlib_available():
        drawn = str(Path(timing.output_file).with_suffix(".png"))
    if drawn is not None:
        plot(lines, drawn)
    return results


if __name__ == "__main__":
    run_script(main)
