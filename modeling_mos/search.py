# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Evolutionary search for the best subnet of a supernet under limits.

The published evolution (Mixture-of-Supernets, section 4.1; the algorithm of SuperShaper and HAT), with candidates
raced on growing slices of the validation set instead of all of it.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from .architecture import Architecture, CostTable, Limit, SearchSpace, check_bound
from .folder_lock import hold_folder
from .objectives import MaskedLMObjective, TaskObjective


logger = logging.get_logger(__name__)

_COSTS = ("parameters", "published_size", "flops", "latency")


# ---- limits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchConstraints:
    """
    Limits on what a search may return, in any combination; a bound that is `None` does not bind.

    Args:
        min_parameters, max_parameters (`int`, *optional*):
            Window on the parameters of the extracted subnet, head included.
        min_published_size, max_published_size (`int`, *optional*):
            Window on the size that the published tables use ([`~MosPreTrainedModel.published_size`]).
        min_flops, max_flops (`int`, *optional*):
            Window on the FLOPs of one sequence of `sequence_length` tokens.
        sequence_length (`int`, *optional*, defaults to 128):
            Tokens of the sequence whose FLOPs count.
        min_latency, max_latency (`float`, *optional*):
            Window on the milliseconds that one batch takes, as `latency` predicts them.
        latency ([`CostTable`], *optional*):
            Measured milliseconds on the device at hand, from [`measure_latency`]; needed for limits on them.

    Raises:
        TypeError: if a bound is no number.
        ValueError: on a window upside down, a bound that is not positive, or a latency limit without a table.
    """

    min_parameters: int | None = None
    max_parameters: int | None = None
    min_published_size: int | None = None
    max_published_size: int | None = None
    min_flops: int | None = None
    max_flops: int | None = None
    sequence_length: int = 128
    min_latency: float | None = None
    max_latency: float | None = None
    latency: CostTable | None = None

    def __post_init__(self):
        if self.sequence_length < 1:
            raise ValueError(f"`sequence_length` must be at least 1, got {self.sequence_length}.")
        for what in _COSTS:
            low, high = self.window(what)
            for name, bound in ((f"min_{what}", low), (f"max_{what}", high)):
                check_bound(f"`{name}`", bound)
                if bound is not None and not bound > 0:
                    raise ValueError(f"`{name}` must be positive, got {bound}.")
            if low is not None and high is not None and low > high:
                raise ValueError(f"`min_{what}` ({low:,}) exceeds `max_{what}` ({high:,}); swap them.")
        if self.latency is None and any(self.window("latency")):
            raise ValueError(
                "A limit on latency needs a table of what layers take on this device: give `latency=`, from "
                "`measure_latency(supernet)`."
            )

    def window(self, what: str) -> tuple[float | None, float | None]:
        """The bounds on `"parameters"`, `"published_size"`, `"flops"` or `"latency"`."""
        return getattr(self, f"min_{what}"), getattr(self, f"max_{what}")

    def cost(self, what: str, supernet: PreTrainedModel) -> CostTable:
        """
        What an architecture of `supernet` costs, as a table.

        Raises:
            ValueError: for a latency without a measured table, or a cost that is not known.
        """
        if what == "parameters":
            return supernet.parameter_cost()
        if what == "published_size":
            return supernet.published_size_cost()
        if what == "flops":
            return supernet.flop_cost(self.sequence_length)
        if what == "latency":
            if self.latency is None:
                raise ValueError("Latency is measured first: give `latency=`, from `measure_latency(supernet)`.")
            return self.latency
        raise ValueError(f"A cost is one of {list(_COSTS)}, got {what!r}.")

    def limits(self, supernet: PreTrainedModel) -> list[Limit]:
        """The windows that bind, as limits on the architectures of `supernet`."""
        return [Limit(self.cost(what, supernet), *self.window(what)) for what in _COSTS if any(self.window(what))]

    def to_dict(self) -> dict[str, Any]:
        """The bounds that bind, for reports, and the tokens that those on FLOPs and latency are about."""
        left_out = (
            {"latency"} if any(self.window("flops") + self.window("latency")) else {"latency", "sequence_length"}
        )
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in left_out and getattr(self, field.name) is not None
        }


# ---- variation ------------------------------------------------------------------------------------------------------


def mutate(parent: Architecture, space: SearchSpace, probability: float, generator: random.Random) -> Architecture:
    """
    A variation of `parent`: its depth and, in each layer, width, feed-forward size and heads are each drawn anew with
    `probability`. What a new width does not allow is drawn among what it does; layers that are added are random.
    """

    def draw(values: Sequence[int], current: int | None) -> int:
        if current not in values or generator.random() < probability:
            return generator.choice(values)
        return current

    def draw_layer(layer: tuple[int, int, int] | None) -> tuple[int, int, int]:
        width, intermediate, heads = layer or (None, None, None)
        width = draw(space.hidden_sizes, width)
        intermediate = draw(sorted({choice[1] for choice in space.layer_choices if choice[0] == width}), intermediate)
        allowed = [choice[2] for choice in space.layer_choices if choice[:2] == (width, intermediate)]
        return width, intermediate, draw(allowed, heads)

    depth = draw(space.num_hidden_layers, parent.num_hidden_layers)
    if not space.bottleneck:
        return _stack([draw_layer(parent.layers[0])] * depth)
    return _stack([draw_layer(parent.layers[i] if i < parent.num_hidden_layers else None) for i in range(depth)])


def cross(first: Architecture, second: Architecture, space: SearchSpace, generator: random.Random) -> Architecture:
    """
    A child of two parents: depth and each layer's width, feed-forward size and heads come from either with equal
    chances; where they do not fit the width, all three come from the parent that gave it.
    """

    def cross_layer(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
        source, rest = (one, other) if generator.random() < 0.5 else (other, one)
        if source == rest:
            return source
        mixed = (
            source[0],
            *(own if generator.random() < 0.5 else given for own, given in zip(source[1:], rest[1:], strict=True)),
        )
        return mixed if mixed in choices else source

    choices = space.layer_choices
    depth = generator.choice((first.num_hidden_layers, second.num_hidden_layers))
    if not space.bottleneck:
        return _stack([cross_layer(first.layers[0], second.layers[0])] * depth)
    layers = []
    for index in range(depth):
        # Below the shallower parent's depth both have the layer; beyond it the deeper one alone.
        given = [parent.layers[index] for parent in (first, second) if index < parent.num_hidden_layers]
        layers.append(cross_layer(*given) if len(given) == 2 else given[0])
    return _stack(layers)


def _stack(layers: Sequence[tuple[int, int, int]]) -> Architecture:
    return Architecture(*zip(*layers, strict=True))


# ---- the search -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """
    An architecture that a search has looked at.

    Args:
        architecture ([`Architecture`]): The architecture.
        score (`float`): The objective over the `rows` that it was evaluated on.
        rows (`int`): How many of the validation rows those are.
        costs (`dict[str, float]`): Parameters, FLOPs and whatever else was limited or traded off.
    """

    architecture: Architecture
    score: float
    rows: int
    costs: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture.to_dict(),
            **self.costs,
            "score": self.score if math.isfinite(self.score) else None,  # JSON knows no NaN
            "rows": self.rows,
        }


@dataclass(frozen=True)
class SearchResult:
    """
    What a search found.

    Args:
        best ([`Candidate`]): The best architecture inside the limits.
        front (`list[Candidate]`): Those evaluated on all rows that no cheaper one beats, cheapest first.
        finalists (`list[Candidate]`): All that were evaluated on all rows, best first.
        num_candidates (`int`): Different architectures that were evaluated.
        num_rows (`int`): Validation rows that were put through a candidate, all candidates together.
        rounds (`int`): Rounds of evolution that ran; 0 where the limits hold so few that all were raced.
    """

    best: Candidate
    front: list[Candidate]
    finalists: list[Candidate]
    num_candidates: int
    num_rows: int
    rounds: int


class EvolutionarySearch:
    """
    Searches the best subnet of a supernet inside limits, or the front of quality against a cost.

    The published evolution: a population, of which the best become parents; mutants and children of theirs, and the
    parents, are the next population. Other than published, candidates are extracted subnets; a first population is
    made of different architectures inside the limits, and random ones fill the places that too few different children
    leave; each population is *raced*: all its members see a first slice of the validation rows, those that are surely
    not among the best drop out, the others see twice as many rows, and so on; after the last round, all candidates
    ever seen are raced for the win, and the finalists see every row.

    The result is a function of the seed, the rows and the weights: the same on one process or many, whose candidates
    are divided among them, and after a kill: every evaluation is written to `results.jsonl` as it is made, and a new
    run with the same arguments walks the same way over those results before it continues. A line that was altered
    since is refused.

    Args:
        supernet (`PreTrainedModel`): A `MosFor…` model.
        objective ([`MaskedLMObjective`], [`TaskObjective`] or alike): What candidates are judged by.
        constraints ([`SearchConstraints`], *optional*): Limits; none if not given.
        trade_off (`str`, *optional*):
            Searches the whole front of the objective against this cost (`"parameters"`, `"published_size"`, `"flops"`
            or `"latency"`, lower is better) instead of the single best.
        population_size, parent_size, mutation_size, crossover_size (`int`, *optional*):
            Sizes of the first population, and of the parts of the later ones; 125, 25, 50 and 50 as published.
        mutation_probability (`float`, *optional*, defaults to 0.3): Chance of each size of a layer to be drawn anew.
        num_rounds (`int`, *optional*, defaults to 30): Rounds of evolution.
        patience (`int`, *optional*): Ends the evolution after so many rounds in which no new parent came up.
        exhaustive (`bool`, *optional*, defaults to `False`):
            Races every architecture inside the limits, of a space that holds at most 100,000.
        racing (`bool`, *optional*, defaults to `True`): `False` evaluates every candidate on all rows, as published.
        first_slice (`int`, *optional*): Rows that every candidate sees; 1/64 of all, but at least 32.
        confidence (`float`, *optional*, defaults to 2.5):
            A candidate drops out when it is behind by more than so many standard errors of the paired difference.
        num_finalists (`int`, *optional*):
            Candidates that at least are evaluated on all rows; 10, or 50 for a trade-off.
        seed (`int`, *optional*, defaults to 0): Seed of population, mutations and crossovers.
        output_dir (`str` or `os.PathLike`, *optional*): Where `results.jsonl` is written and read from.
        show_progress (`bool`, *optional*, defaults to `True`): Shows a progress bar with the best so far.

    Raises:
        ValueError: if sizes are out of bounds, nothing meets the limits, or `output_dir` holds the results of another
            search or damaged ones.
    """

    EXHAUSTIVE = 100_000  # architectures; more are too many to race one by one

    def __init__(
        self,
        supernet: PreTrainedModel,
        objective: MaskedLMObjective | TaskObjective,
        constraints: SearchConstraints | None = None,
        *,
        trade_off: str | None = None,
        population_size: int = 125,
        parent_size: int = 25,
        mutation_size: int = 50,
        crossover_size: int = 50,
        mutation_probability: float = 0.3,
        num_rounds: int = 30,
        patience: int | None = None,
        exhaustive: bool = False,
        racing: bool = True,
        first_slice: int | None = None,
        confidence: float = 2.5,
        num_finalists: int | None = None,
        seed: int = 0,
        output_dir: str | os.PathLike | None = None,
        show_progress: bool = True,
    ):
        if not hasattr(supernet, "search_space"):
            raise ValueError(
                f"A search needs a supernet (`MosFor…`), got a {type(supernet).__name__}, which is a single network."
            )
        for name, value, least in (
            ("population_size", population_size, 1),
            ("parent_size", parent_size, 1),
            ("mutation_size", mutation_size, 0),
            ("crossover_size", crossover_size, 0),
            ("num_rounds", num_rounds, 0),
            ("patience", patience, 1),
            ("first_slice", first_slice, 1),
            ("num_finalists", num_finalists, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if parent_size > population_size:
            raise ValueError(
                f"`parent_size` ({parent_size}) must not exceed `population_size` ({population_size}), of which they "
                "are the best."
            )
        if not 0 <= mutation_probability <= 1:
            raise ValueError(f"`mutation_probability` must lie in [0, 1], got {mutation_probability}.")
        if not confidence > 0:
            raise ValueError(f"`confidence` must be positive, got {confidence}; `racing=False` drops nobody early.")
        self.supernet, self.objective = supernet, objective
        self.space: SearchSpace = supernet.search_space
        self.constraints = constraints or SearchConstraints()
        self.limits = self.constraints.limits(supernet)
        self.costs = {"parameters": supernet.parameter_cost()}
        self.costs["flops"] = supernet.flop_cost(self.constraints.sequence_length)
        for what in ("published_size", "latency"):
            if trade_off == what or any(self.constraints.window(what)):
                self.costs[what] = self.constraints.cost(what, supernet)
        self.trade_off = None if trade_off is None else self.constraints.cost(trade_off, supernet)
        self._cost: CostTable = self.trade_off or self.costs["parameters"]
        self.population_size, self.parent_size = population_size, parent_size
        self.mutation_size, self.crossover_size = mutation_size, crossover_size
        self.mutation_probability, self.num_rounds, self.patience = mutation_probability, num_rounds, patience
        self.exhaustive, self.confidence = exhaustive, confidence
        self.total_rows = len(objective)
        if not racing:
            first_slice = self.total_rows
        elif first_slice is None:
            first_slice = max(self.total_rows // 64, 32)
        self.first_slice = min(first_slice, self.total_rows)
        if num_finalists is None:
            num_finalists = 10 if trade_off is None else 50
        self.num_finalists, self.seed, self.show_progress = num_finalists, seed, show_progress
        self._contributions: dict[Architecture, np.ndarray] = {}
        self._scores: dict[tuple[Architecture, int], float] = {}
        self._errors: dict[tuple[Architecture, int], np.ndarray] = {}
        self._journal = None
        if output_dir is not None:
            identity = {"objective": objective.name, "rows": self.total_rows, "supernet": _fingerprint_of(supernet)}
            identity["data"] = objective.fingerprint()
            self._journal = _Journal(Path(output_dir) / "results.jsonl", identity)
            with self._journal.open():  # what is wrong with it shall be said before a search begins
                pass

    # ---- the walk ---------------------------------------------------------------------------------------------------

    def run(self) -> SearchResult:
        """
        Searches, or continues a search that was killed or interrupted.

        Raises:
            ValueError: if no candidate's score is a number, or another process searches into the output folder.
        """
        training = self.supernet.training
        self.supernet.eval()
        # What this walk has looked at and how far; the contributions may hold more, from a run that was killed.
        self._known: dict[Architecture, int] = {}
        bars = self.show_progress and _process_index() == 0
        try:
            with contextlib.ExitStack() as stack:
                if self._journal is not None:
                    self._contributions = stack.enter_context(self._journal.open())
                self._progress = stack.enter_context(tqdm(desc="Searching", unit=" evaluations", disable=not bars))
                return self._run()
        finally:
            self.supernet.train(training)

    def _run(self) -> SearchResult:
        population = self._first_population()
        # Where the limits hold fewer than a population, there is nothing to evolve.
        whole = self.exhaustive or len(population) < self.population_size
        rounds, unchanged, parents = 0, 0, None
        while not whole and rounds < self.num_rounds:
            found = self._race(population, self.parent_size)[: self.parent_size]
            unchanged = unchanged + 1 if parents is not None and set(found) == set(parents) else 0
            parents = found
            rounds += 1
            if self.patience is not None and unchanged >= self.patience:
                break
            population = [*parents, *self._offspring(parents, rounds)]
        everyone = list(dict.fromkeys([*self._known, *population]))
        finalists = [self._candidate(found) for found in self._race(everyone, self.num_finalists, last=True)]
        finalists.sort(key=lambda found: self._place(found.architecture, self.total_rows))
        if self._signed_score(finalists[0].architecture, self.total_rows) == float("inf"):
            raise ValueError(
                f"No candidate's {self.objective.name} is a number: that of the first is {finalists[0].score}. Either "
                "the supernet has diverged (train it again, with a lower learning rate) or the metric is not defined "
                "on these rows (give more of them)."
            )
        return SearchResult(
            best=finalists[0],
            front=self._front(finalists),
            finalists=finalists,
            num_candidates=len(self._known),
            num_rows=sum(self._known.values()),
            rounds=rounds,
        )

    def _first_population(self) -> list[Architecture]:
        if self.exhaustive:
            if self.space.num_architectures > self.EXHAUSTIVE:
                raise ValueError(
                    f"An exhaustive search would look at each of {self.space.num_architectures:,} architectures, more "
                    f"than {self.EXHAUSTIVE:,}; leave `exhaustive` out, or narrow the search space."
                )
            return self._sample(self.space.num_architectures, "all")
        population = self._sample(self.population_size, "population")
        if self.trade_off is not None and len(population) == self.population_size:
            # The ends of the front, which chance hardly ever draws.
            ends = [found for found in (self.space.smallest(), self.space.largest()) if self._is_inside(found)]
            population = list(dict.fromkeys([*ends, *population]))[: self.population_size]
        return population

    def _sample(self, count: int, purpose: str) -> list[Architecture]:
        """Different architectures inside the limits; all of them where there are no more than `count`."""
        generator = random.Random(f"{purpose}/{self.seed}")
        if self.limits:
            return self.space.sample_within(self.limits, count, generator)
        if self.space.num_architectures <= max(count, self.EXHAUSTIVE):
            found = list(self.space)
            return generator.sample(found, min(count, len(found)))
        found = {}
        while len(found) < count:
            found[self.space.sample(generator)] = None
        return list(found)

    def _is_inside(self, architecture: Architecture) -> bool:
        return all(limit.holds(architecture) for limit in self.limits)

    def _offspring(self, parents: list[Architecture], round_index: int) -> list[Architecture]:
        """Mutants, then children, that are inside the limits and not in the population yet."""
        generator = random.Random(f"{self.seed}/{round_index}")
        taken = dict.fromkeys(parents)

        def collect(make: Callable[[], Architecture], count: int) -> None:
            wanted = len(taken) + count
            # Parents that have become alike have fewer children than wanted: no endless search for them.
            for _ in range(20 * count):
                if len(taken) >= wanted:
                    return
                made = make()
                if made not in taken and self._is_inside(made):
                    taken[made] = None

        def make_mutant() -> Architecture:
            return mutate(generator.choice(parents), self.space, self.mutation_probability, generator)

        def make_child() -> Architecture:
            return cross(*generator.sample(parents, 2), self.space, generator)

        collect(make_mutant, self.mutation_size)
        if len(parents) > 1:
            collect(make_child, self.crossover_size)
        wanted = len(parents) + self.mutation_size + self.crossover_size
        if len(taken) < wanted:  # newcomers take the places that are left
            taken.update(dict.fromkeys(self._sample(wanted - len(taken), f"newcomers/{round_index}")))
        return list(taken)[len(parents) :]

    # ---- races ------------------------------------------------------------------------------------------------------

    def _race(self, candidates: list[Architecture], keep: int, last: bool = False) -> list[Architecture]:
        """
        Candidates that were not dropped, best first: on ever longer slices until `keep` are left, in the `last` race
        until those that are left have seen all rows. How many rows one stage may cost is bounded, in a round by what
        its first stage cost, in the last race by what `keep` evaluations on all rows do.
        """
        stop, alive = self.first_slice, candidates
        allowance = keep * self.total_rows if last else len(candidates) * stop
        while True:
            self._evaluate(alive, stop)
            alive = self._rank(alive, stop)
            best = min(alive, key=lambda found: self._place(found, stop))
            self._progress.set_postfix_str(self._describe(best, stop))
            if stop == self.total_rows or (len(alive) <= keep and not last):
                return alive
            following = min(2 * stop, self.total_rows)
            leading = self._leading(alive, keep, stop)
            alive = alive[:keep] + [found for found in alive[keep:] if not self._surely_behind(found, leading, stop)]
            alive = alive[: max(keep, allowance // following)]
            stop = following

    def _leading(self, ranked: list[Architecture], keep: int, stop: int) -> list[Architecture]:
        """Those that a candidate must not be surely behind: the last one kept, or in a trade-off the front."""
        if self.trade_off is None:
            return [ranked[min(keep, len(ranked)) - 1]]
        return self._fronts(ranked, stop)[0]

    def _surely_behind(self, candidate: Architecture, leading: list[Architecture], stop: int) -> bool:
        score = self._signed_score(candidate, stop)
        if score == float("inf"):
            return True
        for other in leading:
            if self.trade_off is not None and self.trade_off(other) > self.trade_off(candidate):
                continue
            behind = score - self._signed_score(other, stop)
            if behind > self.confidence * self._standard_error(candidate, other, stop):
                return True
        return False

    def _rank(self, candidates: list[Architecture], stop: int) -> list[Architecture]:
        """Best first; in a trade-off by fronts, and inside a front those first whose neighbours are far."""
        if self.trade_off is None:
            return sorted(candidates, key=lambda found: self._place(found, stop))
        ranked = []
        for front in self._fronts(candidates, stop):
            crowding = self._crowding(front, stop)
            ranked += sorted(front, key=lambda found: (-crowding[found], str(found)))
        return ranked

    def _place(self, candidate: Architecture, stop: int) -> tuple[float, float, str]:
        """Sorts by score; of equals, which metrics of few rows have many, the cheapest comes first."""
        return self._signed_score(candidate, stop), self._cost(candidate), str(candidate)

    def _signed_score(self, candidate: Architecture, stop: int) -> float:
        """Lower is better, and what is no number is worst."""
        score = self._score(candidate, stop)
        if math.isnan(score):
            return float("inf")
        return -score if self.objective.greater_is_better else score

    def _fronts(self, candidates: Iterable[Architecture], stop: int) -> list[list[Architecture]]:
        """Layers of candidates that none of the same or a later layer dominates, each cheapest first."""
        rest = sorted(
            candidates, key=lambda found: (self.trade_off(found), self._signed_score(found, stop), str(found))
        )
        fronts = []
        while rest:
            front, later, best = [], [], float("inf")
            for found in rest:
                score = self._signed_score(found, stop)
                (front if score < best or not front else later).append(found)
                best = min(best, score)
            fronts.append(front)
            rest = later
        return fronts

    def _crowding(self, front: list[Architecture], stop: int) -> dict[Architecture, float]:
        """How far the neighbours of each member are, as a share of the front's extent (NSGA-II)."""
        distance = dict.fromkeys(front, 0.0)
        for value in (self.trade_off, lambda found: self._signed_score(found, stop)):
            ordered = sorted(front, key=value)
            if value(ordered[-1]) == float("inf"):
                continue  # no number: a front of that one alone
            extent = value(ordered[-1]) - value(ordered[0])
            distance[ordered[0]] = distance[ordered[-1]] = float("inf")
            for before, found, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
                distance[found] += (value(after) - value(before)) / extent if extent else 0.0
        return distance

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def _seen(self, candidate: Architecture) -> int:
        found = self._contributions.get(candidate)
        return 0 if found is None else len(found)

    def _score(self, candidate: Architecture, stop: int) -> float:
        key = candidate, stop
        if key not in self._scores:
            self._scores[key] = self.objective.score(self._contributions[candidate][:stop])
        return self._scores[key]

    def _standard_error(self, first: Architecture, second: Architecture, stop: int) -> float:
        """Of the difference of two scores on the same rows: a jackknife over groups of rows, for any metric."""
        first, second = self._partial_scores(first, stop), self._partial_scores(second, stop)
        groups = len(first)
        if groups < 2:
            return float("inf")
        differences = first - second
        return float(np.sqrt((groups - 1) / groups * np.square(differences - differences.mean()).sum()))

    def _partial_scores(self, candidate: Architecture, stop: int) -> np.ndarray:
        """Scores without each of up to 16 groups of rows."""
        key = candidate, stop
        if key not in self._errors:
            rows = self._contributions[candidate][:stop]
            edges = np.linspace(0, stop, min(16, stop) + 1).round().astype(int)
            self._errors[key] = np.array(
                [
                    self.objective.score(np.concatenate([rows[:low], rows[high:]]))
                    for low, high in zip(edges, edges[1:], strict=False)
                    if high - low < stop
                ]
            )
        return self._errors[key]

    def _evaluate(self, candidates: Iterable[Architecture], stop: int) -> None:
        """Sees to it that each candidate has been evaluated on rows up to `stop`, divided among the processes."""
        for found in candidates:
            self._known[found] = max(stop, self._known.get(found, 0))
        waiting = [found for found in candidates if self._seen(found) < stop]
        processes = _num_processes()
        for first in range(0, len(waiting), processes):
            chunk = waiting[first : first + processes]
            mine = None
            if _process_index() < len(chunk):
                candidate = chunk[_process_index()]
                # Rounded, so that what is read back from the journal is what was computed.
                mine = np.round(self.measure(candidate, self._seen(candidate), stop), 6)
            for candidate, rows in zip(chunk, _gather(mine), strict=False):
                start = self._seen(candidate)
                known = self._contributions.get(candidate)
                self._contributions[candidate] = rows if known is None else np.concatenate([known, rows])
                if self._journal is not None:
                    self._journal.append(candidate, start, rows)
            self._progress.update(len(chunk))

    def measure(self, candidate: Architecture, start: int, stop: int) -> np.ndarray:
        """What rows `start` to `stop` contribute to the objective of the extracted candidate."""
        subnet = self.supernet.extract_subnet(candidate).eval()
        return np.asarray(self.objective.evaluate(subnet, start, stop), dtype=np.float64)

    # ---- results ----------------------------------------------------------------------------------------------------

    def _candidate(self, architecture: Architecture) -> Candidate:
        return Candidate(
            architecture=architecture,
            score=self._score(architecture, self.total_rows),
            rows=self.total_rows,
            costs={what: cost(architecture) for what, cost in self.costs.items()},
        )

    def _front(self, finalists: list[Candidate]) -> list[Candidate]:
        """Finalists that no cheaper one beats, in parameters or in what is traded off."""
        front: list[Candidate] = []
        best = float("inf")
        score = {found.architecture: self._signed_score(found.architecture, self.total_rows) for found in finalists}
        for found in sorted(finalists, key=lambda found: (self._cost(found.architecture), score[found.architecture])):
            if score[found.architecture] < best:
                front.append(found)
                best = score[found.architecture]
        return front

    def _describe(self, best: Architecture, stop: int) -> str:
        share = stop / self.total_rows
        return f"best {self.objective.name} {self._score(best, stop):.4f} ({best}) on {share:.0%} of the rows"


def name_front(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """
    A front as `config.front` stores it, so that `extract_subnet("60m")` and `extract_subnet(max_parameters=…)` find
    their architectures: each entry with a name of its own, made of its parameters, and its rank, 1 for the best.
    """
    entries = []
    for digits in range(10):
        names = [_short_number(found.costs["parameters"], digits) for found in candidates]
        if len(set(names)) == len(names):
            break
    else:  # equal sizes, as heads alone do not change them
        names = [f"{name}-{index + 1}" for index, name in enumerate(names)]
    for place, (name, found) in enumerate(zip(names, candidates, strict=True)):
        # The cheapest comes first; what costs more is in a front only if it is better.
        entries.append({"name": name, **found.to_dict(), "rank": len(candidates) - place})
    return entries


def _short_number(value: float, digits: int) -> str:
    for unit, letter in ((1e9, "b"), (1e6, "m"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.{digits}f}{letter}"
    return f"{value:.0f}"


def _fingerprint_of(supernet: PreTrainedModel) -> str:
    """Of its search space and all its weights."""
    digest = hashlib.sha256(json.dumps(supernet.search_space.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(supernet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Journal:
    """
    Every evaluation as a line of JSON, written as it is made; the first line says what they are evaluations of. Each
    line ends with a checksum of the rest of it, so that an altered number is no result.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.identity = path, identity
        self._file = None

    @contextlib.contextmanager
    def open(self) -> Iterator[dict[Architecture, np.ndarray]]:
        """
        Gives the contributions that are written, and takes more until the block ends.

        Raises:
            ValueError: if another process searches into the folder, or the file is damaged or another search's.
        """
        contributions: dict[Architecture, np.ndarray] = {}
        problem = None
        with contextlib.ExitStack() as stack:
            if _process_index() == 0:
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    # Lines of two searches would make the file unreadable.
                    stack.enter_context(hold_folder(self.path.parent, "searching"))
                    stack.callback(self._close)
                    contributions = self._read()
                except (OSError, ValueError) as error:  # said by all processes, or the others would wait
                    problem = str(error)
            # Every process walks over the same results, also where the others do not see the main one's disk.
            problem, contributions = _broadcast((problem, contributions))
            if problem is not None:
                raise ValueError(problem)
            yield contributions

    def _read(self) -> dict[Architecture, np.ndarray]:
        contributions: dict[Architecture, np.ndarray] = {}
        lines = _read_whole_lines(self.path) if self.path.exists() else []
        if lines:
            written, contributions = _parse_lines(self.path, lines)
            for name, value in self.identity.items():
                if written.get(name) != value:
                    raise ValueError(
                        f"{str(self.path)!r} holds the results of another search: its {name} is "
                        f"{written.get(name)!r}, this search's is {value!r}. Choose another output folder, or delete "
                        "the file."
                    )
        self._file = open(self.path, "ab")
        self._file.truncate(sum(map(len, lines)))
        if not lines:
            self._write(self.identity)
        return contributions

    def append(self, candidate: Architecture, start: int, rows: np.ndarray) -> None:
        if self._file is not None:
            self._write({"architecture": candidate.to_dict(), "start": start, "contributions": rows.tolist()})

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps({**record, "checksum": _checksum(record)}).encode() + b"\n")
        self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_results(path: str | os.PathLike) -> tuple[dict[str, Any], dict[Architecture, np.ndarray]]:
    """
    Reads the `results.jsonl` of a search, finished or not. A last line that is cut is left out.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `tuple`: What was evaluated (`objective`, `rows`, `supernet`, `data`), and by architecture the contributions of
            the rows that it saw, of shape `(seen rows, terms)`.

    Raises:
        ValueError: if the file holds no results, or a line was altered or is none of a search.
        OSError: if there is no such file.
    """
    path = Path(path)
    lines = _read_whole_lines(path)
    if not lines:
        raise ValueError(f"{str(path)!r} holds no results; start its search again.")
    return _parse_lines(path, lines)


def _read_whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        logger.warning(f"The last line of {str(path)!r} is cut; that evaluation is made again.")
        lines.pop()
    return lines


def _parse_lines(path: Path, lines: Sequence[bytes]) -> tuple[dict[str, Any], dict[Architecture, np.ndarray]]:
    """What was evaluated, and all contributions; `path` is for messages."""
    contributions: dict[Architecture, np.ndarray] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse_line(line)
            if number == 1:
                identity = record
                if "rows" not in identity:
                    raise ValueError("it does not say what was evaluated")
            else:
                _add_rows(contributions, record)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Line {number} of {str(path)!r} is not a result of a search ({error}); restore the file, delete this "
                "line and all after it, whose evaluations are then made again, or choose another output folder."
            ) from None
    return identity, contributions


def _add_rows(contributions: dict[Architecture, np.ndarray], record: dict[str, Any]) -> None:
    candidate, rows = Architecture.from_dict(record["architecture"]), np.array(record["contributions"])
    known = contributions.get(candidate)
    if record["start"] != (0 if known is None else len(known)) or rows.ndim != 2:
        raise ValueError(f"its rows begin at {record['start']}, not where those before it ended")
    contributions[candidate] = rows if known is None else np.concatenate([known, rows])


def _parse_line(line: bytes) -> dict[str, Any]:
    """A record of the journal, without its checksum, which must be right."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"it is the {type(record).__name__} {record!r}")
    written, found = record.pop("checksum", None), _checksum(record)
    if written != found:
        raise ValueError(f"its checksum is {written!r}, its content's is {found!r}")
    return record


def _checksum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record).encode()):08x}"


# ---- processes ------------------------------------------------------------------------------------------------------


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _num_processes() -> int:
    return distributed.get_world_size() if _is_distributed() else 1


def _process_index() -> int:
    return distributed.get_rank() if _is_distributed() else 0


def _gather(value: Any) -> list[Any]:
    """The values of all processes, in order."""
    if not _is_distributed():
        return [value]
    values: list[Any] = [None] * _num_processes()
    with _saying_who_is_missing():
        distributed.all_gather_object(values, value)
    return values


def _broadcast(value: Any) -> Any:
    """The main process's value."""
    if not _is_distributed():
        return value
    values = [value]
    with _saying_who_is_missing():
        distributed.broadcast_object_list(values, src=0)
    return values[0]


@contextlib.contextmanager
def _saying_who_is_missing():
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"Another process of this search has stopped ({error}). Start the search again with the same output "
            "folder: it continues where it was."
        ) from error


__all__ = [
    "Candidate",
    "EvolutionarySearch",
    "SearchConstraints",
    "SearchResult",
    "cross",
    "mutate",
    "name_front",
    "read_results",
]
