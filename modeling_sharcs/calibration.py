# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Recorded router scores and a compute budget into the price of compute."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from .modeling_sharcs import choose_widths


TABLE_SIZE = 201


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
            inputs = {
                name: value.to(model.device)
                for name, value in batch.items()
                if name in ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
            }
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


def share_of_full(model: PreTrainedModel, widths: torch.Tensor, lengths: torch.Tensor) -> float:
    """Summed FLOPs, router included, over summed full FLOPs, at the rows' own lengths."""
    last = len(model.config.width_multipliers) - 1
    spent = full = 0
    for length in lengths.unique().tolist():
        at_length = widths[lengths == length]
        full += len(at_length) * model._flops(length, last, routed=False)
        counts = torch.bincount(at_length, minlength=last + 1).tolist()
        spent += sum(count * model._flops(length, index, routed=True) for index, count in enumerate(counts))
    return spent / full


def calibrate(
    model: PreTrainedModel, dataloader: Iterable[dict[str, Any]], max_batches: int | None = None
) -> dict[str, Any]:
    """See [`SharcsPreTrainedModel.calibrate`]."""
    scores, lengths = record(model, dataloader, max_batches)
    costs = model.base_model.relative_costs()  # those that the encoder, which has no head, chooses by
    prices = _candidate_prices(scores, costs)
    table = []
    for price in prices.tolist():
        widths = choose_widths(scores, price, costs)
        counts = torch.bincount(widths, minlength=len(costs)).double()
        table.append(
            {
                "price": price,
                "share": share_of_full(model, widths, lengths),
                "rows_per_width": (counts / counts.sum()).tolist(),
            }
        )
    model.config.calibration = {"rows": len(scores), "mean_length": float(lengths.double().mean()), "table": table}
    return model.config.calibration


def _candidate_prices(scores: torch.Tensor, costs: list[float]) -> torch.Tensor:
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


def set_compute_budget(model: PreTrainedModel, budget: float) -> float:
    """See [`SharcsPreTrainedModel.set_compute_budget`]."""
    calibration = model.config.calibration
    if calibration is None:
        raise ValueError(
            "This model has no calibration; run `model.calibrate(dataloader)` on a few hundred unlabelled rows first."
        )
    rows = sorted(calibration["table"], key=lambda row: row["price"])
    shares = [row["share"] for row in rows]
    lowest, highest = min(shares), max(shares)
    if not lowest - 1e-9 <= budget <= max(highest, 1.0) + 1e-9:
        raise ValueError(
            f"A compute budget of {budget:g} of full FLOPs is out of reach: this model can spend {lowest:.3f} to "
            f"{highest:.3f}; for less, train narrower widths or an earlier router."
        )
    # Dearer compute never raises the share; the cheapest price that keeps to the budget spends the most of it.
    price = (
        next(row["price"] for row in rows if row["share"] <= budget + 1e-9) if budget < highest else rows[0]["price"]
    )
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


__all__ = ["calibrate", "record", "set_compute_budget", "share_of_full", "shares_at_price"]
