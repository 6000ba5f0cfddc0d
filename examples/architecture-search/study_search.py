# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
What a search costs and how good its winner is, over many seeds: look-ups in a table of every architecture of a space.

The table beside this script holds all 2,401 architectures of a supernet with four layers of seven widths, each
evaluated once on the same 1,024 validation sequences. It was made with

    python run_search.py --model_name_or_path runs/supernet --dataset_path data --max_eval_samples 1024 \
        --exhaustive true --racing false --output_dir runs/all
    python study_search.py --pack runs/all --supernet runs/supernet --table search_table.safetensors

and is studied with

    python study_search.py --seeds 100 --output study.json
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.utils import is_matplotlib_available, logging


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from example_utils import (  # noqa: E402
    parse_arguments,
    run_script,
    show_progress_messages,
    write_text_atomically,
)
from modeling_mos import Architecture, EvolutionarySearch, MosConfig, MosForMaskedLM, SearchConstraints  # noqa: E402
from modeling_mos.search import read_results  # noqa: E402
from trainers.width_predictions import save_figure  # noqa: E402


logger = logging.get_logger("study_search")

PUBLISHED_EVALUATIONS = 125 + 29 * 100
TABLE = Path(__file__).resolve().parent / "search_table.safetensors"


@dataclass
class StudyArguments:
    """Which table to make or to study."""

    table: str = field(default=str(TABLE), metadata={"help": "The table of all architectures."})
    pack: str | None = field(
        default=None, metadata={"help": "Makes the table out of the output folder of an exhaustive search."}
    )
    supernet: str | None = field(default=None, metadata={"help": "With --pack: the supernet that was searched."})
    block_size: int = field(default=8, metadata={"help": "With --pack: sequences that share one entry."})
    seeds: int = field(default=100, metadata={"help": "Searches for each limit."})
    limits: list[float] = field(
        default_factory=lambda: [0.25, 0.5, 0.75],
        metadata={"help": "Limits on parameters, as shares of the way from the smallest to the largest network."},
    )
    first_slice: int = field(default=32, metadata={"help": "Sequences that every candidate sees."})
    confidence: float = field(default=2.5, metadata={"help": "Standard errors to be behind to drop out."})
    num_finalists: int = field(default=10, metadata={"help": "Candidates that at least see all sequences."})
    num_rounds: int = field(default=30, metadata={"help": "Rounds of evolution."})
    patience: int | None = field(default=None, metadata={"help": "End after so many rounds without a new parent."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})
    show_progress: bool = field(default=True, metadata={"help": "Show a progress bar."})


def pack(arguments: StudyArguments) -> None:
    """
    Writes the table: losses by architecture and block, as differences from the block's mean over architectures.

    Raises:
        ValueError: if the results lack an architecture or some of its rows, or were altered.
    """
    if arguments.supernet is None:
        raise ValueError("--pack needs --supernet, the model that was searched.")
    config = AutoConfig.from_pretrained(arguments.supernet)
    space = config.build_search_space()
    path = Path(arguments.pack) / "results.jsonl"
    identity, found = read_results(path)
    rows = identity["rows"]
    edges = range(0, rows - rows % arguments.block_size, arguments.block_size)
    losses = []
    for architecture in space:
        if len(found.get(architecture, ())) != rows:
            raise ValueError(
                f"{str(path)!r} does not hold all {rows} rows of {architecture}; search with --exhaustive "
                "true --racing false, or let that search finish."
            )
        losses.append(np.add.reduceat(found[architecture][: len(edges) * arguments.block_size], edges, axis=0))
    counts = losses[0][:, 1]
    means = np.stack([summed[:, 0] / counts for summed in losses])
    common = means.mean(axis=0)
    tensors = {
        "differences": (means - common).astype(np.float16),
        "common": common.astype(np.float32),
        "counts": counts.astype(np.int32),
    }
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    model = {name: getattr(config, name) for name in (*kept, "max_position_embeddings", "search_space")}
    facts = {"model": json.dumps({**model, "routing": "none"}), "block_size": str(arguments.block_size)}
    temporary = Path(f"{arguments.table}.partial")
    save_file(tensors, temporary, metadata=facts)
    temporary.replace(arguments.table)
    logger.info(f"{len(losses):,} architectures of {rows:,} sequences are in {arguments.table!r}.")


class TableObjective:
    """Loss by look-up; a row is a block of sequences, in an order of the seed's own."""

    name, greater_is_better = "loss", False

    def __init__(self, table: dict[str, np.ndarray], seed: int):
        order = np.random.default_rng(seed).permutation(len(table["counts"]))
        self.counts = table["counts"][order].astype(np.float64)
        self.losses = (table["common"] + table["differences"].astype(np.float32))[:, order] * self.counts

    def __len__(self) -> int:
        return len(self.counts)

    def score(self, contributions: np.ndarray) -> float:
        summed, counted = contributions.sum(axis=0)
        return float(summed / counted)


class TableSearch(EvolutionarySearch):
    """A search whose candidates are looked up instead of run."""

    def __init__(self, supernet, objective: TableObjective, constraints: SearchConstraints, **options):
        super().__init__(supernet, objective, constraints, show_progress=False, **options)
        self.index = {architecture: index for index, architecture in enumerate(self.space)}

    def measure(self, candidate: Architecture, start: int, stop: int) -> np.ndarray:
        objective, index = self.objective, self.index[candidate]
        return np.stack([objective.losses[index, start:stop], objective.counts[start:stop]], axis=1)


def load_table(path: str) -> tuple[dict[str, np.ndarray], MosForMaskedLM, int]:
    """The tensors, a supernet of the table's sizes (for costs; its weights do not matter), and the block size."""
    with safe_open(path, framework="numpy") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, MosForMaskedLM(MosConfig(**json.loads(facts["model"]))), int(facts["block_size"])


def study_limit(
    arguments: StudyArguments, table: dict[str, np.ndarray], supernet: MosForMaskedLM, block_size: int, limit: int
) -> dict[str, Any]:
    """Searches of all seeds under one limit on parameters, by racing and as published."""
    space, counts = supernet.search_space, table["counts"]
    losses = table["common"] + table["differences"].astype(np.float32)
    cost = supernet.parameter_cost()
    inside = np.array([cost(architecture) <= limit for architecture in space])
    scores = losses @ counts / counts.sum()
    best = int(np.where(inside, scores, np.inf).argmin())
    index = {architecture: position for position, architecture in enumerate(space)}
    runs: dict[str, list[dict[str, float]]] = {"racing": [], "published": []}
    options = {"num_rounds": arguments.num_rounds}
    racing = {
        "first_slice": max(1, arguments.first_slice // block_size),
        "confidence": arguments.confidence,
        "num_finalists": arguments.num_finalists,
        "patience": arguments.patience,
    }
    constraints = SearchConstraints(max_parameters=limit)
    for seed in tqdm(range(arguments.seeds), desc=f"{limit:,} parameters", disable=not arguments.show_progress):
        for name, more in (("racing", racing), ("published", {"racing": False})):
            objective = TableObjective(table, seed)
            result = TableSearch(supernet, objective, constraints, seed=seed, **options, **more).run()
            winner = index[result.best.architecture]
            difference = losses[winner] - losses[best]
            runs[name].append(
                {
                    "regret": float(scores[winner] - scores[best]),
                    # Of a weighted mean over blocks, were the blocks drawn anew.
                    "noise": float(np.std(difference, ddof=1) / np.sqrt(len(difference))),
                    "sequences": result.num_rows * block_size,
                    "candidates": result.num_candidates,
                    "rounds": result.rounds,
                }
            )
    share = [ours["sequences"] / theirs["sequences"] for ours, theirs in zip(*runs.values(), strict=True)]
    summary: dict[str, Any] = {
        "max_parameters": limit,
        "architectures": int(inside.sum()),
        "best": float(scores[best]),
    }
    spread = scores[inside]
    summary["median_minus_best"] = float(np.median(spread) - scores[best])
    for name, found in runs.items():
        regrets = np.array([run["regret"] for run in found])
        noise = np.array([run["noise"] for run in found])
        summary[name] = {
            "mean_regret": float(regrets.mean()),
            "largest_regret": float(regrets.max()),
            "best_found": float((regrets <= 1e-9).mean()),
            "within_two_standard_errors": float((regrets <= 2 * noise + 1e-9).mean()),
            "mean_sequences": float(np.mean([run["sequences"] for run in found])),
            "mean_candidates": float(np.mean([run["candidates"] for run in found])),
        }
    # Of the published search on the same table, which evaluates no candidate twice; and of what the published code
    # evaluates, which is 125 candidates and, in each of 29 later rounds, 100.
    summary["share_of_published_sequences"] = {"mean": float(np.mean(share)), "largest": float(np.max(share))}
    of_count = [
        run["sequences"] / (PUBLISHED_EVALUATIONS * len(table["counts"]) * block_size) for run in runs["racing"]
    ]
    summary["share_of_published_count"] = {"mean": float(np.mean(of_count)), "largest": float(np.max(of_count))}
    return summary


def plot(limits: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws what either way of searching loses and takes, over the limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    sizes = [found["max_parameters"] for found in limits]
    for axes, (key, label) in zip(
        figure.subplots(1, 2),
        {"mean_regret": "mean loss behind the best", "mean_sequences": "mean sequences"}.items(),
        strict=True,
    ):
        for way in ("racing", "published"):
            axes.plot(sizes, [found[way][key] for found in limits], marker="o", label=way)
        axes.set(xlabel="limit on parameters", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any] | None:
    (arguments,) = parse_arguments(StudyArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    if arguments.pack is not None:
        return pack(arguments)
    table, supernet, block_size = load_table(arguments.table)
    sizes = [supernet.count_parameters(getattr(supernet.search_space, name)()) for name in ("smallest", "largest")]
    limits = [round(sizes[0] + share * (sizes[1] - sizes[0])) for share in arguments.limits]
    results = {
        "table": Path(arguments.table).name,
        "sequences": len(table["counts"]) * block_size,
        "seeds": arguments.seeds,
        "limits": [study_limit(arguments, table, supernet, block_size, limit) for limit in limits],
    }
    text = json.dumps(results, indent=2) + "\n"
    if arguments.output is not None:
        write_text_atomically(arguments.output, text)
        if is_matplotlib_available():
            plot(results["limits"], Path(arguments.output).with_suffix(".png"))
    sys.stdout.write(text)
    return results


if __name__ == "__main__":
    run_script(main)
