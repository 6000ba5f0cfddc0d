# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Recorded router scores and a compute budget into the price of compute."""

import bisect
import itertools
import operator
import statistics
import time
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .modeling_sharcs import choose_widths


TABLE_SIZE = 201
# Latency is measured at so many prices, on so many batches, in so many rounds.
LATENCY_POINTS = 9
LATENCY_BATCHES = 8
LATENCY_ROUNDS = 5


@torch.no_grad()
def record(
    model: PreTrainedModel, dataloader: Iterable[dict[str, Any]], max_batches: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Router scores and lengths of the rows of a data loader. Only the full-width layers matter for them, so that one
    forced narrow pass is enough.

    Returns:
        Scores of shape `(rows, widths)` and numbers of real tokens of shape `(rows,)`, both on the CPU.
    """
    if len(model.config.width_multipliers) < 2:
        raise ValueError("A model with a single width has no router to calibrate.")
    was_training = model.training
    model.eval()
    narrowest = model.config.width_multipliers[0]
    scores, lengths = [], []
    try:
        for position, batch in enumerate(dataloader):
            if max_batches is not None and position >= max_batches:
                break
            inputs = _inputs(batch, model.device)
            logits = model.base_model(**inputs, width=narrowest).router_logits
            mask = inputs.get("attention_mask")
            reference = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
            scores.append(logits.float().cpu())
            lengths.append(
                torch.full((reference.shape[0],), reference.shape[1]) if mask is None else mask.sum(dim=1).cpu()
            )
    finally:
        model.train(was_training)
    if not scores:
        raise ValueError("The data loader gave no batches; calibration needs rows.")
    recorded = torch.cat(scores)
    if not recorded.isfinite().all():
        bad = int((~recorded.isfinite()).any(dim=1).sum())
        raise ValueError(f"The router's scores of {bad} of {len(recorded)} rows are not finite; the model is broken.")
    return recorded, torch.cat(lengths)


def _inputs(batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    return {name: value.to(device) for name, value in batch.items() if name in names}


def share_of_full(model: PreTrainedModel, widths: torch.Tensor, lengths: torch.Tensor) -> float:
    """Summed FLOPs, router included, over summed full FLOPs, at the rows' own lengths."""
    return float(row_shares(model, lengths).gather(1, widths.unsqueeze(1)).sum())


def mean_flops(model: PreTrainedModel, widths: torch.Tensor, lengths: torch.Tensor) -> float:
    """FLOPs of a row, router included, on average."""
    spent, _ = row_flops(model, lengths)
    return float(spent.gather(1, widths.unsqueeze(1)).mean())


def row_shares(model: PreTrainedModel, lengths: torch.Tensor) -> torch.Tensor:
    """What every row spends at every width, router included, as a share of all rows' full FLOPs: `(rows, widths)`."""
    spent, full = row_flops(model, lengths)
    return spent / full.sum()


def row_flops(model: PreTrainedModel, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FLOPs of every row at every width, router included: `(rows, widths)`; at full width without it: `(rows,)`."""
    last = len(model.config.width_multipliers) - 1
    known, places = lengths.unique(return_inverse=True)
    spent, full = [], []
    for length in known.tolist():
        spent.append([model.path_flops(length, index, routed=True) for index in range(last + 1)])
        full.append(model.path_flops(length, last, routed=False))
    return torch.tensor(spent, dtype=torch.double)[places], torch.tensor(full, dtype=torch.double)[places]


def calibrate(
    model: PreTrainedModel,
    dataloader: Iterable[dict[str, Any]],
    max_batches: int | None = None,
    measure_latency: bool = False,
    show_progress: bool = True,
) -> dict[str, Any]:
    """See [`SharcsPreTrainedModel.calibrate`]."""
    kept: list[dict[str, Any]] = []

    def batches():
        known = [count for count in (operator.length_hint(dataloader), max_batches) if count]
        shown = {"desc": "Recording router scores", "total": min(known, default=None), "leave": False}
        shown["disable"] = not show_progress
        for batch in logging.tqdm(itertools.islice(dataloader, max_batches), **shown):
            if not isinstance(batch, Mapping) or not any(map(torch.is_tensor, batch.values())):
                kind = "row without tensors" if isinstance(batch, Mapping) else type(batch).__name__
                raise ValueError(
                    f"Calibration reads batches of model inputs by name, got a {kind}; tokenize texts first, and give "
                    "a DataLoader with `DataCollatorWithPadding`, such as `trainer.get_eval_dataloader(rows)`."
                )
            if measure_latency and len(kept) < LATENCY_BATCHES:
                kept.append(batch)
            yield batch

    scores, lengths = record(model, batches())
    costs = model.base_model.relative_costs()  # those that the encoder, which has no head, chooses by
    prices = candidate_prices(scores, costs)
    shares = row_shares(model, lengths)
    table = []
    for price in prices.tolist():
        widths = choose_widths(scores, price, costs)
        counts = torch.bincount(widths, minlength=len(costs)).double()
        table.append(
            {
                "price": price,
                "share": float(shares.gather(1, widths.unsqueeze(1)).sum()),
                "rows_per_width": (counts / counts.sum()).tolist(),
            }
        )
    calibration = {"rows": len(scores), "mean_length": float(lengths.double().mean()), "table": table}
    if measure_latency:
        calibration["latency"] = _add_latency(model, kept, table, show_progress)
    model.config.calibration = calibration
    return calibration


def _add_latency(
    model: PreTrainedModel, batches: list[dict[str, Any]], table: list[dict[str, Any]], show_progress: bool
) -> dict[str, Any]:
    """Measures a few prices of the table and gives every row of it a `latency_share`; returns how it was measured."""
    by_share = sorted(table, key=lambda row: row["share"])
    places = [round(step * (len(by_share) - 1) / (LATENCY_POINTS - 1)) for step in range(LATENCY_POINTS)]
    measured = [by_share[place] for place in sorted(set(places))]
    latencies = measure_latencies(model, batches, [row["price"] for row in measured], show_progress=show_progress)
    # What costs more FLOPs is not faster; where a measurement says so, it is noise.
    latencies = list(itertools.accumulate(latencies, max))
    shares = [row["share"] for row in measured]
    for row in table:
        row["latency_share"] = _interpolate(row["share"], shares, latencies)
    reference = batches[0]["input_ids"] if "input_ids" in batches[0] else batches[0]["inputs_embeds"]
    return {
        "device": str(model.device),
        "batch_size": len(reference),
        "batches": len(batches),
        "rounds": LATENCY_ROUNDS,
        "threads": torch.get_num_threads(),
    }


def _interpolate(at: float, places: list[float], values: list[float]) -> float:
    after = bisect.bisect_left(places, at)
    if after == 0 or after == len(places):
        return values[min(after, len(values) - 1)]
    low, high = places[after - 1], places[after]
    share = (at - low) / (high - low)
    # In this form, unlike a weighted mean, rounding keeps the order of the values.
    return min(values[after - 1] + (values[after] - values[after - 1]) * share, values[after])


@torch.no_grad()
def measure_latencies(
    model: PreTrainedModel,
    batches: list[dict[str, Any]],
    prices: list[float],
    rounds: int = LATENCY_ROUNDS,
    show_progress: bool = True,
) -> list[float]:
    """
    Time of routed inference at each price over that of the widest path, on this device: medians over rounds in which
    all take turns, after one that warms up.
    """
    was_training = model.training
    model.eval()
    prepared = [_inputs(batch, model.device) for batch in batches]
    widest = {"width": model.config.width_multipliers[-1]}
    settings = [widest, *({"router_price": price} for price in prices)]
    times: list[list[float]] = [[] for _ in settings]
    try:
        progress = {"desc": "Measuring latency", "leave": False, "disable": not show_progress}
        for position in logging.tqdm(range(rounds + 1), **progress):
            for setting, found in zip(settings, times, strict=True):
                _synchronize(model.device)
                start = time.perf_counter()
                for inputs in prepared:
                    model(**inputs, **setting)
                _synchronize(model.device)
                if position:
                    found.append(time.perf_counter() - start)
    finally:
        model.train(was_training)
    full, *others = (statistics.median(found) for found in times)
    return [other / full for other in others]


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def candidate_prices(scores: torch.Tensor, costs: list[float]) -> torch.Tensor:
    """Prices between which rows change their width, thinned to `TABLE_SIZE` quantiles, and both ends."""
    changes = []
    for narrow in range(len(costs)):
        for wide in range(narrow + 1, len(costs)):
            changes.append((scores[:, wide] - scores[:, narrow]) / (costs[wide] - costs[narrow]))
    changes = torch.cat(changes).double().sort().values
    inner = torch.quantile(
        changes[torch.linspace(0, len(changes) - 1, min(len(changes), 100_000)).long()],
        torch.linspace(0, 1, TABLE_SIZE, dtype=torch.double),
    )
    margin = max(1e-3, float(changes[-1] - changes[0]) * 1e-3)
    return torch.cat([changes[:1] - margin, inner, changes[-1:] + margin]).unique()


def set_compute_budget(model: PreTrainedModel, budget: float, unit: str = "flops") -> float:
    """See [`SharcsPreTrainedModel.set_compute_budget`]."""
    calibration = model.config.calibration
    if calibration is None:
        raise ValueError(
            "This model has no calibration; run `model.calibrate(dataloader)` on a few hundred unlabelled rows first."
        )
    if torch.is_tensor(budget) and budget.numel() == 1:
        budget = budget.item()
    if not isinstance(budget, Real) or isinstance(budget, bool):
        raise TypeError(f"A compute budget is a number, the share of full FLOPs or latency to spend, got {budget!r}.")
    if unit not in ("flops", "latency"):
        raise ValueError(f"A compute budget is in 'flops' or 'latency', not in {unit!r}.")
    column = "share" if unit == "flops" else "latency_share"
    rows = sorted(calibration["table"], key=lambda row: row["price"])
    if column not in rows[0]:
        raise ValueError(
            "The calibration measured no latency; run `model.calibrate(dataloader, measure_latency=True)` first, on "
            "the device that counts."
        )
    shares = [row[column] for row in rows]
    lowest, highest = min(shares), max(shares)
    rounding = 5e-4  # the bounds that the message tells are in reach
    if not lowest - rounding <= budget <= max(highest, 1.0) + rounding:
        what = "FLOPs" if unit == "flops" else "latency"
        way_out = (
            "1 already sends every row through the widest path"
            if budget > highest
            else "for less, train narrower widths or an earlier router"
        )
        raise ValueError(
            f"A compute budget of {budget:g} of full {what} is out of reach: this model can "
            f"spend {lowest:.3f} to {highest:.3f}, the router included; {way_out}."
        )
    # All FLOPs are those of the widest path, whatever the router itself adds. Below, dearer compute never raises the
    # share; the cheapest price that keeps to the budget spends the most of it.
    budget = max(budget, lowest)
    everything = budget >= (min(highest, 1.0) if unit == "flops" else highest)
    price = rows[0]["price"] if everything else next(row["price"] for row in rows if row[column] <= budget + 1e-9)
    model.config.router_price = price
    return price


def shares_at_price(model: PreTrainedModel) -> list[float]:
    """Share of rows that take each width at the current price, from the calibration's table."""
    calibration = model.config.calibration
    if calibration is None:
        raise ValueError(
            "The expected FLOPs depend on the data: run `model.calibrate(dataloader)` first, or give a `width`."
        )
    price = model.config.router_price
    return min(calibration["table"], key=lambda row: abs(row["price"] - price))["rows_per_width"]


__all__ = [
    "calibrate",
    "candidate_prices",
    "mean_flops",
    "record",
    "row_flops",
    "row_shares",
    "set_compute_budget",
    "share_of_full",
    "shares_at_price",
]
