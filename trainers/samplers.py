# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Which samples train which width in which step: the same plan on every process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


@dataclass(frozen=True)
class RoutedSample:
    """A training sample on its way to one width."""

    index: int
    width_index: int
    # Share of the row in the loss of its step, over all processes: one over the step's rows.
    weight: float
    # Place in the epoch's order: where a sample is trained twice, the later occurrence counts; -1: none does.
    place: int


# One step, over all processes: for each width index its sample indices.
Step = dict[int, list[int]]


def choose_bucket(targets: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """
    One width for each sample, drawn uniformly from those that may handle it: a function of (seed, epoch, sample).

    Args:
        targets (`torch.Tensor` of shape `(samples, widths)`): Booleans, at least one a row.

    Returns:
        `torch.LongTensor` of shape `(samples,)`.
    """
    generator = torch.Generator().manual_seed(_mix(seed, epoch, 1))
    lottery = torch.rand(targets.shape, generator=generator)
    return lottery.masked_fill(~targets, -1.0).argmax(dim=1)


def plan_epoch(
    members: torch.Tensor,
    num_steps: int,
    seed: int,
    epoch: int,
    repeat_smaller_buckets: bool = False,
    alternating: bool = False,
    lengths: Sequence[int] | None = None,
) -> list[Step]:
    """
    Distributes an epoch's samples over a fixed number of steps.

    Every sample of every bucket occurs exactly once, in one shuffled order that all buckets share; with
    `repeat_smaller_buckets` smaller buckets are tiled to the size of the largest one. Empty buckets are left out.

    Args:
        members (`torch.Tensor` of shape `(samples, widths)`): Booleans: which samples train which width.
        num_steps (`int`): Steps of the epoch, not more than samples.
        seed, epoch (`int`): The order is a function of them.
        repeat_smaller_buckets (`bool`, *optional*, defaults to `False`): Tile smaller buckets.
        alternating (`bool`, *optional*, defaults to `False`):
            Steps of one width only, taking turns, as the published code trains on one device; by default every step
            holds its part of every bucket.
        lengths (`Sequence[int]`, *optional*):
            Tokens of each sample: steps hold samples of about the same length then, and take turns in random order.

    Returns:
        `list[dict[int, list[int]]]`: for each step, the sample indices of each width index, the widest first.
    """
    generator = torch.Generator().manual_seed(_mix(seed, epoch, 0))
    if lengths is not None:
        batch_size = -(-len(members) // num_steps)
        order = torch.tensor(get_length_grouped_indices(lengths, batch_size, generator=generator))
        steps = _fill_steps(order, members, num_steps, repeat_smaller_buckets, alternating)
        return [steps[place] for place in torch.randperm(len(steps), generator=generator).tolist()]
    order = torch.randperm(len(members), generator=generator)
    return _fill_steps(order, members, num_steps, repeat_smaller_buckets, alternating)


def _fill_steps(
    order: torch.Tensor, members: torch.Tensor, num_steps: int, repeat_smaller_buckets: bool, alternating: bool
) -> list[Step]:
    buckets = {index: order[members[order, index]] for index in reversed(range(members.shape[1]))}
    buckets = {index: bucket for index, bucket in buckets.items() if len(bucket)}
    if repeat_smaller_buckets:
        largest = max(len(bucket) for bucket in buckets.values())
        buckets = {index: bucket.repeat(-(-largest // len(bucket)))[:largest] for index, bucket in buckets.items()}
    if not alternating and members.all():
        # The same rows at every width, so that narrow paths can learn from what the widest says about them.
        return [dict.fromkeys(buckets, part) for part in _cut(order.tolist(), num_steps)]
    if not alternating:
        # Each bucket spread evenly, then cut where steps are full: all hold as many rows, and none is empty.
        rows = [
            ((position + 0.5) / len(bucket), -index, row)
            for index, bucket in buckets.items()
            for position, row in enumerate(bucket.tolist())
        ]
        parts = _cut(sorted(rows, key=lambda row: row[:2]), num_steps)
        steps = [{index: [row for _, own, row in part if own == -index] for index in buckets} for part in parts]
        return [{index: rows for index, rows in step.items() if rows} for step in steps]
    shares = _share_steps({index: len(bucket) for index, bucket in buckets.items()}, num_steps)
    turns = []
    for index, count in shares.items():
        parts = _cut(buckets[index].tolist(), count)
        # Spread evenly over the epoch; narrow widths first where they fall together, as published.
        turns += [((position + 0.5) / count, index, part) for position, part in enumerate(parts)]
    return [{index: part} for _, index, part in sorted(turns, key=lambda turn: turn[:2])]


def rows_of_rank(step: Step, rank: int, world_size: int, width_per_rank: bool = False) -> Step:
    """
    A process's part of a step: its cut of every width's rows, or, with `width_per_rank` and at least as many processes
    as widths, the rows of one width (the published distribution).
    """
    if width_per_rank and len(step) > 1 and world_size >= len(step):
        widths = sorted(step)
        own = [place for place in range(world_size) if place % len(widths) == rank % len(widths)]
        index = widths[rank % len(widths)]
        parts = {index: _cut(step[index], len(own))[own.index(rank)]}
    else:
        parts = {index: _cut(rows, world_size)[rank] for index, rows in step.items()}
    return {index: rows for index, rows in parts.items() if rows}


class RoutedBatchSampler(Sampler[list[RoutedSample]]):
    """
    Yields one process's samples of each step of the plan that it was given last.

    Args:
        num_steps (`int`): Steps of an epoch, which never changes, so that learning rate schedules stay true.
        rank, world_size (`int`): Which of how many processes this is.
        width_per_rank (`bool`, *optional*, defaults to `False`): See [`rows_of_rank`].
    """

    def __init__(self, num_steps: int, rank: int = 0, world_size: int = 1, width_per_rank: bool = False):
        self.num_steps = num_steps
        self.rank, self.world_size, self.width_per_rank = rank, world_size, width_per_rank
        self.plan: list[Step] | None = None

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[RoutedSample]]:
        if self.plan is None:
            raise RuntimeError("RoutedBatchSampler has no plan yet; SharcsTrainer gives it one when an epoch begins.")
        place = 0
        for step in self.plan:
            weight = 1 / sum(len(rows) for rows in step.values())
            samples = {}
            # The widest path's score counts where a step trains a sample at several widths.
            for index in sorted(step):
                samples[index] = [
                    RoutedSample(row, index, weight, place + offset) for offset, row in enumerate(step[index])
                ]
                place += len(step[index])
            samples = {index: samples[index] for index in step}
            own = rows_of_rank(samples, self.rank, self.world_size, self.width_per_rank)
            # A process without rows runs one that counts for nothing: every step is a forward pass on every process.
            idle = replace(next(iter(samples.values()))[0], weight=0.0, place=-1)
            yield [sample for rows in own.values() for sample in rows] or [idle]


class RoutedDataset(Dataset):
    """A data set whose items are asked for with a [`RoutedSample`], which comes back beside them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: RoutedSample) -> tuple[RoutedSample, Any]:
        return sample, self.dataset[sample.index]


class RoutedCollator:
    """Collates the items as ever; where each row goes travels beside them."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, items: Sequence[tuple[RoutedSample, Any]]) -> dict[str, Any]:
        samples = [sample for sample, _ in items]
        batch = dict(self.collate([item for _, item in items])) if items else {}
        batch["routing"] = {
            "index": torch.tensor([sample.index for sample in samples], dtype=torch.long),
            "width_index": torch.tensor([sample.width_index for sample in samples], dtype=torch.long),
            "weight": torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
            "place": torch.tensor([sample.place for sample in samples], dtype=torch.long),
        }
        return batch


def _mix(seed: int, epoch: int, purpose: int) -> int:
    """A seed of its own for each (seed, epoch, purpose)."""
    return (seed * 1_000_003 + epoch) * 11 + purpose


def _cut(rows: list[int], parts: int) -> list[list[int]]:
    """Consecutive parts whose sizes differ by one at most, in an order that favours no part."""
    return [rows[len(rows) * part // parts : len(rows) * (part + 1) // parts] for part in range(parts)]


def _share_steps(sizes: dict[int, int], num_steps: int) -> dict[int, int]:
    """Steps for each bucket in proportion to its size, at least one each."""
    if num_steps < len(sizes):
        raise ValueError(
            f"An epoch of {num_steps} steps cannot alternate between {len(sizes)} widths; use smaller batches, or "
            "width_batches='joint'."
        )
    total = sum(sizes.values())
    shares = {index: max(1, int(num_steps * size / total)) for index, size in sizes.items()}
    while sum(shares.values()) != num_steps:
        # The bucket whose batches are the largest gains a step; the one whose are the smallest loses one.
        if sum(shares.values()) < num_steps:
            shares[max(shares, key=lambda index: (sizes[index] / shares[index], index))] += 1
        else:
            removable = [index for index in shares if shares[index] > 1]
            shares[min(removable, key=lambda index: (sizes[index] / shares[index], index))] -= 1
    return shares


__all__ = [
    "RoutedBatchSampler",
    "RoutedCollator",
    "RoutedDataset",
    "RoutedSample",
    "choose_bucket",
    "plan_epoch",
    "rows_of_rank",
]
