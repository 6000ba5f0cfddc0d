# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Plans of an epoch: every sample once, evenly spread, the same on every process."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.samplers import RoutedBatchSampler, RoutedDataset, RoutedSample, choose_bucket, plan_epoch, rows_of_rank


def buckets_of(sizes: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Members of disjoint buckets of these sizes."""
    indices = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(indices[order], len(sizes)).bool()


def rows_of(plan, index: int) -> list[int]:
    return [row for step in plan for row in step.get(index, [])]


def sizes_of(plan) -> list[int]:
    return [sum(map(len, step.values())) for step in plan]


SPLITS = [(10, 30), (30, 10), (0, 40), (40, 0), (1, 39), (20, 20), (5, 0, 8), (13, 1, 7), (3, 11, 2, 21)]
each_split = pytest.mark.parametrize("sizes", SPLITS, ids=str)
each_order = pytest.mark.parametrize("alternating", [False, True], ids=["joint", "alternating"])

# ---- plans ----------------------------------------------------------------------------------------------------------


@each_split
@each_order
@pytest.mark.parametrize("num_steps", [4, 5, 9, 12])
def test_every_sample_occurs_once_in_its_bucket(sizes, alternating, num_steps):
    members = buckets_of(sizes)
    plan = plan_epoch(members, num_steps, seed=3, epoch=2, alternating=alternating)
    assert len(plan) == num_steps and min(sizes_of(plan)) > 0
    for index in range(len(sizes)):
        assert sorted(rows_of(plan, index)) == members[:, index].nonzero()[:, 0].tolist()
    for step in plan:
        assert list(step) == sorted(step, reverse=True)  # the widest first
        assert all(step.values())
        assert len(step) == 1 or not alternating


@each_split
@pytest.mark.parametrize("num_steps", [1, 4, 7, 12])
def test_joint_steps_are_full_and_hold_their_part_of_every_bucket(sizes, num_steps):
    plan = plan_epoch(buckets_of(sizes), num_steps, seed=3, epoch=2)
    assert max(sizes_of(plan)) - min(sizes_of(plan)) <= 1
    for index, size in enumerate(sizes):
        counts = [len(step.get(index, [])) for step in plan]
        # Never far ahead of its share of the epoch, never far behind.
        for step, reached in enumerate(itertools.accumulate(counts), start=1):
            assert abs(reached - size * step / num_steps) <= len(sizes)


@each_order
@pytest.mark.parametrize("sizes", [(100, 300), (0, 400), (60, 200, 50, 490)], ids=str)
def test_steps_grouped_by_length(sizes, alternating):
    members = buckets_of(sizes)
    lengths = torch.randint(1, 100, (sum(sizes),), generator=torch.Generator().manual_seed(0)).tolist()
    plans = {
        name: plan_epoch(members, 40, seed=3, epoch=2, alternating=alternating, lengths=given)
        for name, given in (("random", None), ("grouped", lengths))
    }
    for index in range(len(sizes)):
        assert sorted(rows_of(plans["grouped"], index)) == members[:, index].nonzero()[:, 0].tolist()

    def padded(plan) -> int:
        return sum(max(lengths[row] for row in rows) * len(rows) for step in plan for rows in step.values())

    assert padded(plans["grouped"]) < 0.9 * padded(plans["random"])
    # Neither from long to short nor from short to long.
    longest = [max(lengths[row] for rows in step.values() for row in rows) for step in plans["grouped"]]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    again = plan_epoch(members, 40, seed=3, epoch=2, alternating=alternating, lengths=lengths)
    assert again == plans["grouped"] != plan_epoch(members, 40, 3, 3, alternating=alternating, lengths=lengths)


def test_grouped_steps_of_every_width_hold_the_same_rows():
    lengths = list(range(1, 25))
    plan = plan_epoch(torch.ones(24, 2).bool(), 6, seed=0, epoch=0, lengths=lengths)
    assert all(step[0] == step[1] for step in plan)
    assert sorted(rows_of(plan, 0)) == list(range(24))


def test_as_many_steps_as_samples():
    """Single rows, as in batches of one that are accumulated: no step is without rows."""
    for sizes in ((5, 5), (3, 7), (4, 3, 3)):
        assert sizes_of(plan_epoch(buckets_of(sizes), sum(sizes), seed=0, epoch=0)) == [1] * sum(sizes)


def test_every_width_on_every_sample():
    members = torch.ones(23, 3, dtype=torch.bool)
    plan = plan_epoch(members, 5, seed=0, epoch=0)
    for step in plan:
        assert step[0] == step[1] == step[2] and len(step[0]) in (4, 5)
    assert sorted(rows_of(plan, 0)) == list(range(23))


@each_order
@pytest.mark.parametrize("sizes", [(800, 200), (790, 210), (1, 9), (0, 7), (3, 2, 8)], ids=str)
def test_smaller_buckets_are_tiled(sizes, alternating):
    """Also where the largest is an exact multiple of a smaller one, which the published code trains a part of."""
    members = buckets_of(sizes)
    plan = plan_epoch(members, 5, 0, 0, repeat_smaller_buckets=True, alternating=alternating)
    assert len(plan) == 5 and min(sizes_of(plan)) > 0
    for index, size in enumerate(sizes):
        counts = Counter(rows_of(plan, index))
        if not size:
            assert not counts
            continue
        assert sum(counts.values()) == max(sizes)
        assert set(counts) == set(members[:, index].nonzero()[:, 0].tolist())
        assert set(counts.values()) <= {max(sizes) // size, -(-max(sizes) // size)}


@each_order
def test_a_plan_is_a_function_of_seed_and_epoch(alternating):
    members = buckets_of((12, 30))

    def plan(seed, epoch):
        return plan_epoch(members, 6, seed, epoch, alternating=alternating)

    first = plan(1, 2)
    torch.manual_seed(5)
    assert plan(1, 2) == first
    plans = [plan(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(one != other for one, other in itertools.combinations(plans, 2))


def test_plans_leave_the_global_generators_alone():
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    plan = plan_epoch(buckets_of((12, 30)), 6, 0, 0)
    choose_bucket(torch.ones(8, 2, dtype=torch.bool), 0, 0)
    sampler = RoutedBatchSampler(6)
    sampler.plan = plan
    list(sampler)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()


def test_samples_keep_their_place_in_the_order_when_buckets_change():
    """One shuffled order for all buckets: a sample that changes its width does not move the others."""
    members = buckets_of((20, 20))
    before = rows_of(plan_epoch(members, 4, 0, 0), 1)
    moved = int(members[:, 0].nonzero()[0])
    members[moved] = torch.tensor([False, True])
    after = rows_of(plan_epoch(members, 4, 0, 0), 1)
    assert [row for row in after if row != moved] == before


# ---- alternating ----------------------------------------------------------------------------------------------------


def test_published_turns():
    plan = plan_epoch(torch.eye(2, dtype=torch.bool).repeat(96, 1), 6, 0, 0, alternating=True)
    assert [list(step) for step in plan] == [[0], [1]] * 3
    three = plan_epoch(torch.eye(3, dtype=torch.bool).repeat(64, 1), 6, 0, 0, alternating=True)
    assert [list(step) for step in three] == [[0], [1], [2]] * 2


def test_turns_are_spread_over_the_epoch():
    """790 to 210 in batches of 32: as many batches as published, but no tail of the larger bucket alone."""
    plan = plan_epoch(buckets_of((210, 790)), 32, 0, 0, alternating=True)
    turns = [index for step in plan for index in step]
    assert turns.count(0) == 7
    places = [place for place, index in enumerate(turns) if index == 0]
    gaps = [second - first for first, second in itertools.pairwise(places)]
    assert max(gaps) - min(gaps) <= 1 and places[0] < 5 and places[-1] > 26
    assert max(sizes_of(plan)) - min(sizes_of(plan)) <= 2


def test_too_few_steps_to_alternate_have_a_sentence():
    message = "An epoch of 2 steps cannot alternate between 3 widths; use smaller batches, or width_batches='joint'"
    with pytest.raises(ValueError, match=message):
        plan_epoch(buckets_of((3, 3, 3)), 2, 0, 0, alternating=True)
    assert len(plan_epoch(buckets_of((0, 3, 3)), 2, 0, 0, alternating=True)) == 2


@pytest.mark.parametrize("sizes, num_steps", [((1, 1, 98), 3), ((1, 1, 98), 50), ((33, 33, 34), 10), ((1, 1), 2)])
def test_steps_are_shared_out_whole(sizes, num_steps):
    plan = plan_epoch(buckets_of(sizes), num_steps, 0, 0, alternating=True)
    assert len(plan) == num_steps and min(sizes_of(plan)) > 0


# ---- ranks ----------------------------------------------------------------------------------------------------------


STEPS = [
    {2: [5, 6, 7, 8, 9], 1: [3, 4], 0: [0, 1, 2]},
    {2: [5], 0: [1]},
    {1: [4]},
    {1: list(range(20)), 0: list(range(20, 23))},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: str({index: len(rows) for index, rows in step.items()}))
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width_per_rank", [False, True])
def test_ranks_together_are_the_step(step, world_size, width_per_rank):
    parts = [rows_of_rank(step, rank, world_size, width_per_rank) for rank in range(world_size)]
    for index, rows in step.items():
        assert [row for part in parts for row in part.get(index, [])] == rows
    assert all(set(part) <= set(step) and all(part.values()) for part in parts)
    if not width_per_rank:
        for index in step:
            counts = [len(part.get(index, [])) for part in parts]
            assert max(counts) - min(counts) <= 1


def test_one_width_a_rank():
    step = {1: list(range(8)), 0: list(range(10, 16))}

    def widths(world_size):
        return [list(rows_of_rank(step, rank, world_size, True)) for rank in range(world_size)]

    assert widths(2) == [[0], [1]]  # as published: rank r trains width r
    assert widths(4) == [[0], [1], [0], [1]]
    assert widths(3) == [[0], [1], [0]]
    assert widths(1) == [[1, 0]]
    counts = [len(next(iter(rows_of_rank(step, rank, 4, True).values()))) for rank in range(4)]
    assert counts == [3, 4, 3, 4]
    # Where a step has one width, all ranks share it.
    assert [rows_of_rank({1: [1, 2]}, rank, 2, True) for rank in range(2)] == [{1: [1]}, {1: [2]}]
    # With fewer ranks than widths each runs its part of them all.
    three = {2: [1, 2], 1: [3, 4], 0: [5, 6]}
    assert rows_of_rank(three, 0, 2, True) == {2: [1], 1: [3], 0: [5]}


# ---- sampler --------------------------------------------------------------------------------------------------------


def sampled(plan, **options) -> list[list[RoutedSample]]:
    sampler = RoutedBatchSampler(len(plan), **options)
    sampler.plan = plan
    assert len(sampler) == len(plan)
    return list(sampler)


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("world_size, width_per_rank", [(1, False), (2, False), (2, True), (3, True), (5, False)])
def test_samples_of_a_plan(repeat, every, world_size, width_per_rank):
    members = torch.ones(17, 2, dtype=torch.bool) if every else buckets_of((2, 15))
    plan = plan_epoch(members, 3, 0, 0, repeat)
    ranks = [
        sampled(plan, rank=rank, world_size=world_size, width_per_rank=width_per_rank) for rank in range(world_size)
    ]
    alone = sampled(plan)
    seen = []
    for number, step in enumerate(plan):
        together = [sample for rank in ranks for sample in rank[number] if sample.place >= 0]
        assert Counter(together) == Counter(alone[number])  # weights and places do not depend on who runs a row
        assert Counter((sample.index, sample.width_index) for sample in together) == Counter(
            (row, index) for index, rows in step.items() for row in rows
        )
        assert sum(sample.weight for sample in together) == pytest.approx(1)
        assert len({sample.weight for sample in together}) == 1
        seen += together
        # Where a step trains a sample at several widths, the widest one's score comes last.
        order = [sample.width_index for sample in sorted(together, key=lambda sample: sample.place)]
        assert order == sorted(order)
    assert sorted(sample.place for sample in seen) == list(range(len(seen)))


def test_processes_without_rows_run_one_that_counts_for_nothing():
    plan = [{1: [4], 0: [7]}, {1: [3]}]
    ranks = [sampled(plan, rank=rank, world_size=3) for rank in range(3)]
    assert all(batch for rank in ranks for batch in rank)
    idle = [sample for rank in ranks for batch in rank for sample in batch if sample.place < 0]
    assert len(idle) == 4 and all(sample.weight == 0 for sample in idle)
    assert {sample.index for sample in idle} == {4, 3}


def test_a_sampler_without_a_plan_has_a_sentence():
    with pytest.raises(RuntimeError, match="has no plan yet; SharcsTrainer gives it one when an epoch begins"):
        next(iter(RoutedBatchSampler(3)))


def test_items_come_back_with_where_they_go():
    dataset = RoutedDataset(["a", "b", "c"])
    sample = RoutedSample(2, 1, 0.5, 7)
    assert len(dataset) == 3 and dataset[sample] == (sample, "c")


# ---- buckets --------------------------------------------------------------------------------------------------------


def test_buckets_are_drawn_uniformly_from_those_that_are_allowed():
    allowed = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    targets = allowed.repeat(4000, 1)
    chosen = choose_bucket(targets, seed=0, epoch=0)
    assert targets[torch.arange(len(targets)), chosen].all()
    for row, widths in enumerate(allowed):
        shares = torch.bincount(chosen[row::5], minlength=4) / 4000
        assert (shares - widths / widths.sum()).abs().max() < 0.03


def test_buckets_are_a_function_of_seed_epoch_and_sample():
    targets = torch.ones(50, 3, dtype=torch.bool)
    first = choose_bucket(targets, 1, 2)
    torch.manual_seed(9)
    assert torch.equal(choose_bucket(targets, 1, 2), first)
    assert not torch.equal(choose_bucket(targets, 1, 3), first)
    assert not torch.equal(choose_bucket(targets, 2, 2), first)
    # What other samples may do does not matter.
    targets[10:] = torch.tensor([True, False, False])
    assert torch.equal(choose_bucket(targets, 1, 2)[:10], first[:10])
