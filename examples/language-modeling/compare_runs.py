# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Compares masked language modeling runs on the same validation sequences: losses in nats with paired intervals.

Each run is a folder that run_mlm_mos.py wrote with --save_row_losses; runs that differ in the seed share a name:

    python compare_runs.py --runs plain=runs/plain_s1,runs/plain_s2 neuron=runs/neuron_s1,runs/neuron_s2 \
        alone=runs/largest_s1,runs/largest_s2 --baseline plain --reference alone --output results.json

Seeds and sequences are resampled together (hierarchical bootstrap), the same ones for all arms. With --reference, the
share of the gap between baseline and reference that each arm closes is given where the gap's interval excludes zero.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tqdm.auto import tqdm
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison_utils import (  # noqa: E402
    ComparisonArguments,
    check_arms,
    compare_with_baseline,
    interval,
    signed,
    split_arms,
    write_report,
)
from example_utils import parse_arguments, run_script, show_progress_messages  # noqa: E402


logger = logging.get_logger("compare_runs")


@dataclass(kw_only=True)
class MaskedLmComparisonArguments(ComparisonArguments):
    """Which masked language modeling runs to compare, and how."""

    reference: str | None = field(
        default=None, metadata={"help": "An arm such as the stand-alone network: what closing the gap means."}
    )
    architecture: str = field(
        default="largest", metadata={"help": "Panel architecture to compare; a run with one architecture has only it."}
    )


def read_arm(folders: Sequence[str], architecture: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Summed losses and counts of an arm, of shape `(seeds, sequences)`.

    Raises:
        ValueError: if a run has no losses, or lacks the architecture.
    """
    losses, counts = [], []
    for folder in folders:
        path = Path(folder) / "row_losses.safetensors"
        if not path.is_file():
            raise ValueError(f"{str(path)!r} does not exist; train that run with --save_row_losses.")
        tensors = load_file(path)
        names = sorted({key.rsplit(".", 1)[0] for key in tensors})
        chosen = names[0] if len(names) == 1 else architecture
        if chosen not in names:
            raise ValueError(f"The run {folder!r} has the architectures {names}, not {architecture!r}.")
        losses.append(tensors[f"{chosen}.loss"].astype(np.float64))
        counts.append(tensors[f"{chosen}.count"].astype(np.float64))
    return np.stack(losses), np.stack(counts)


def resampled_means(
    arms: dict[str, tuple[np.ndarray, np.ndarray]], resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """
    Token-weighted mean losses of each arm over its seeds, and their bootstrap replicates.

    Seed i of one arm is paired with seed i of the others, as are sequences.

    Raises:
        ValueError: if arms differ in their seeds, sequences or masks.
    """
    first, (reference, counts) = next(iter(arms.items()))
    for name, (losses, own_counts) in arms.items():
        if losses.shape != reference.shape or not np.array_equal(own_counts, counts):
            raise ValueError(
                f"The arms {first!r} and {name!r} were not evaluated on the same sequences, masks and number of seeds "
                f"(shapes {reference.shape} and {losses.shape}); evaluate them alike."
            )
    generator = np.random.default_rng(seed)
    num_seeds, num_rows = reference.shape
    tokens = counts[0]
    means = {name: float(losses.sum() / tokens.sum() / num_seeds) for name, (losses, _) in arms.items()}
    replicates = {name: np.empty(resamples) for name in arms}
    for index in tqdm(range(resamples), desc="Resampling", leave=False, disable=None):
        seeds = generator.integers(num_seeds, size=num_seeds)
        weights = np.bincount(generator.integers(num_rows, size=num_rows), minlength=num_rows).astype(np.float64)
        for name, (losses, _) in arms.items():
            replicates[name][index] = (losses[seeds].mean(axis=0) @ weights) / (tokens @ weights)
    return means, replicates


def compare(arguments: MaskedLmComparisonArguments) -> dict:
    """The results as the JSON file holds them."""
    arms = {name: read_arm(folders, arguments.architecture) for name, folders in split_arms(arguments.runs).items()}
    baseline, reference, confidence = arguments.baseline, arguments.reference, arguments.confidence
    check_arms([baseline] if reference is None else [baseline, reference], arms)
    means, replicates = resampled_means(arms, arguments.resamples, arguments.seed)
    gap_is_real = False
    if reference is not None:
        gap = replicates[baseline] - replicates[reference]
        low, high = interval(gap, confidence)
        gap_is_real = low > 0 or high < 0
    results = {}
    for name, (losses, counts) in arms.items():
        per_seed = losses.sum(axis=1) / counts.sum(axis=1)
        entry = compare_with_baseline(
            "loss", means[name], replicates[name], (means[baseline], replicates[baseline]), confidence
        )
        entry["loss_per_seed"] = [float(value) for value in per_seed]
        if gap_is_real and name not in (baseline, reference):
            closed = (replicates[baseline] - replicates[name]) / gap
            entry["gap_closed"] = (means[baseline] - means[name]) / (means[baseline] - means[reference])
            entry["gap_closed_interval"] = interval(closed, confidence)
        results[name] = entry
    return {
        "metric": "validation loss in nats, token-weighted",
        "architecture": arguments.architecture,
        "baseline": baseline,
        "reference": reference,
        "confidence": confidence,
        "seeds": int(next(iter(arms.values()))[0].shape[0]),
        "sequences": int(next(iter(arms.values()))[0].shape[1]),
        "arms": results,
    }


def as_markdown(report: dict) -> str:
    """The report as a table."""
    lines = [
        f"| arm ({report['architecture']}) | loss | minus {report['baseline']} | gap closed |",
        "|---|---|---|---|",
    ]
    for name, entry in report["arms"].items():
        difference = (
            "" if name == report["baseline"] else signed(entry["minus_baseline"], entry["minus_baseline_interval"], 4)
        )
        closed = ""
        if "gap_closed" in entry:
            low, high = entry["gap_closed_interval"]
            closed = f"{entry['gap_closed']:.0%} [{low:.0%}, {high:.0%}]"
        lines.append(f"| {name} | {entry['loss']:.4f} | {difference} | {closed} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict:
    (parsed,) = parse_arguments(MaskedLmComparisonArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    report = compare(parsed)
    logger.info("\n" + as_markdown(report))
    write_report(report, parsed.output)
    return report


if __name__ == "__main__":
    run_script(main)
