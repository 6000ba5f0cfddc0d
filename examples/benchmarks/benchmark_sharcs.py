#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Latency of a routed encoder (SHARCS) against its own widest path and, if given, a plain model, side by side.

    python benchmark_sharcs.py --model_name_or_path runs/sharcs-sst2 --text_file lines.txt --output_file latency.json
    python benchmark_sharcs.py --model_name_or_path runs/sharcs-sst2 --baseline_name_or_path runs/plain-sst2

All contestants take turns in every round, after warm-up rounds, with the device synchronised around each call. Ratios
are medians over rounds of the ratio within a round. Without a text file, rows are random tokens of random lengths, and
the budgets are shares of what those rows cost. Paths are packed (`pack_paths`), as for serving.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging


# Helpers are beside this file and one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from benchmark_utils import (  # noqa: E402
    Timing,
    compare,
    machine_facts,
    make_batches,
    plot_speedups,
    report,
    time_in_turns,
    totals,
)
from example_utils import parse_arguments, run_script, show_progress_messages  # noqa: E402
from modeling_sharcs import SharcsPreTrainedModel  # noqa: E402
from modeling_sharcs.calibration import record, share_of_full  # noqa: E402
from modeling_sharcs.modeling_sharcs import choose_widths  # noqa: E402
from sharcs_utils import budget_prices, longest_input  # noqa: E402


logger = logging.get_logger(__name__)


@dataclass
class BenchmarkArguments:
    """What to time, on what, and how often."""

    model_name_or_path: str = field(metadata={"help": "A SHARCS model for sequence classification."})
    baseline_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A plain model to time beside it, such as the one that was fine-tuned plainly."},
    )
    text_file: str | None = field(default=None, metadata={"help": "One text a line, for real lengths."})
    mean_length: int = field(default=25, metadata={"help": "Mean length of random rows, in tokens."})
    max_length: int = field(default=128, metadata={"help": "Longest row, and what 'padded' batches are padded to."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64], metadata={"help": "Rows a call."})
    compute_budgets: list[float] = field(
        default_factory=lambda: [0.75, 0.5],
        metadata={"help": "Shares of full FLOPs that the router is set to; those out of reach are left out."},
    )
    rows: int = field(default=256, metadata={"help": "Rows to time on; each batch size cuts them its own way."})
    dtype: str = field(
        default="float32",
        metadata={"help": "Type of the weights and the computation.", "choices": ["float32", "bfloat16", "float16"]},
    )
    seed: int = field(default=0, metadata={"help": "Seed of random rows."})

    def __post_init__(self):
        for name, minimum in (("rows", 1), ("mean_length", 3), ("max_length", 4)):
            value = getattr(self, name)
            if value < minimum:
                raise ValueError(f"--{name} must be at least {minimum}, got {value}.")
        if min(self.batch_sizes) < 1:
            raise ValueError(f"--batch_sizes must be positive, got {self.batch_sizes}.")


def check_sizes(arguments: BenchmarkArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        ValueError: if rows are longer than a model can take, or have tokens that it does not know.
    """
    longest = longest_input(config, tokenizer)
    if arguments.max_length > longest:
        raise ValueError(f"--max_length {arguments.max_length} is more than {config.name_or_path!r} takes: {longest}.")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} entries, {config.name_or_path!r} knows {config.vocab_size}; time a "
            "model with the same vocabulary."
        )


def make_rows(arguments: BenchmarkArguments, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each row, special tokens included."""
    if arguments.text_file is not None:
        texts = Path(arguments.text_file).read_text(encoding="utf-8").split("\n")
        texts = [text for text in texts if text.strip()][: arguments.rows]
        if not texts:
            raise ValueError(f"The text file {arguments.text_file!r} has no lines with text.")
        return tokenizer(texts, truncation=True, max_length=arguments.max_length)["input_ids"]
    generator = random.Random(arguments.seed)
    longest = arguments.max_length
    # Three tokens and what lies beyond, half a token of which rounding down takes away.
    rate = 1 / (arguments.mean_length - 2.5)
    lengths = [min(longest, 3 + int(generator.expovariate(rate))) for _ in range(arguments.rows)]
    vocab_size = len(tokenizer)
    start = min(1000, vocab_size // 2)  # beyond special tokens
    return [[generator.randrange(start, vocab_size) for _ in range(length)] for length in lengths]


def summarize(times: dict[str, list[list[float]]], reference: str) -> dict[str, dict[str, float]]:
    """Milliseconds a call (median and percentiles over all calls), and the speed-up over `reference`."""
    summary = {}
    for name, rounds in times.items():
        calls = torch.tensor([call for round_ in rounds for call in round_], dtype=torch.double) * 1e3
        percentiles = torch.quantile(calls, torch.tensor([0.5, 0.9, 0.99], dtype=torch.double)).tolist()
        speedup = compare(totals(times[reference]), totals(rounds))
        summary[name] = {
            "median_ms": percentiles[0],
            "p90_ms": percentiles[1],
            "p99_ms": percentiles[2],
            "speedup": speedup["median"],
            "speedup_lowest_round": speedup["lowest"],
            "speedup_highest_round": speedup["highest"],
        }
    return summary


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options, timing = parse_arguments((BenchmarkArguments, Timing), arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    device = timing.prepare()
    dtype = getattr(torch, options.dtype)
    model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path, dtype=dtype)
    if not isinstance(model, SharcsPreTrainedModel):
        raise ValueError(
            f"{options.model_name_or_path!r} is a {model.config.model_type!r} model; this benchmark times SHARCS ones."
        )
    model = model.eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    check_sizes(options, model.config, tokenizer)
    padding = tokenizer.pad_token_id or 0
    rows = make_rows(options, tokenizer)
    batches = make_batches(rows, 32, None, padding, device)
    if options.text_file is None or model.config.calibration is None:
        # A router takes random tokens for something else than text.
        logger.info("The model is calibrated on the rows that are timed.")
        model.calibrate(batches)
    model.pack_paths()
    scores, lengths = record(model, batches)
    widest = model.config.width_multipliers[-1]
    contestants: dict[str, Callable[[dict], Any]] = {"widest": lambda batch: model(**batch, width=widest)}
    shares = {}
    prices = budget_prices(model, options.compute_budgets)
    for budget, price in prices.items():
        if price is None:
            continue
        name = f"routed_{budget:g}"
        contestants[name] = lambda batch, price=price: model(**batch, router_price=price)
        shares[name] = share_of_full(model, choose_widths(scores, price, model.base_model.relative_costs()), lengths)
    if options.baseline_name_or_path is not None:
        baseline = AutoModelForSequenceClassification.from_pretrained(options.baseline_name_or_path, dtype=dtype)
        check_sizes(options, baseline.config, tokenizer)
        baseline = baseline.eval().to(device)
        contestants = {"plain": lambda batch: baseline(**batch), **contestants}
    reference = next(iter(contestants))
    results: dict[str, Any] = {
        "model": options.model_name_or_path,
        **machine_facts(device),
        **timing.facts(),
        "dtype": options.dtype,
        "rows": len(rows),
        "mean_length": sum(map(len, rows)) / len(rows),
        "reference": reference,
        "flops_share": shares,
        "budgets_out_of_reach": [budget for budget, price in prices.items() if price is None],
        "batch_sizes": {},
    }
    for size in tqdm(options.batch_sizes, desc="Batch sizes"):
        found = {}
        for name, length in (("trimmed", None), ("padded", options.max_length)):
            batches = make_batches(rows, size, length, padding, device)
            times = time_in_turns(contestants, batches, timing, device)
            found[name] = summarize(times, reference)
        results["batch_sizes"][str(size)] = found
    keys = ("speedup", "speedup_lowest_round", "speedup_highest_round")
    panels = {
        rows: {
            name: {
                int(size): tuple(found[rows][name][key] for key in keys)
                for size, found in results["batch_sizes"].items()
            }
            for name in contestants
            if name != reference
        }
        for rows in ("trimmed", "padded")
    }
    plot_speedups({f"{rows}, against {reference}": curves for rows, curves in panels.items()}, timing.output_file)
    report(results, timing.output_file)
    return results


if __name__ == "__main__":
    run_script(main)
