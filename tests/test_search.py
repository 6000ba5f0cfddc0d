# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""The search: limits, variation, races, fronts, determinism and what survives a kill."""

import functools
import json
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_mos import (
    Architecture,
    EvolutionarySearch,
    MaskedLMObjective,
    SearchConstraints,
    SearchSpace,
    TaskObjective,
    name_front,
)
from modeling_mos.folder_lock import hold_folder
from modeling_mos.search import cross, mutate, read_results
from testing_utils import tiny_supernet
from training_utils import make_labelled, make_masked, make_supernet


# Four layers of five widths: 625 architectures, enough to search and few enough to look at all.
SPACE = {"hidden_sizes": [8, 12, 16, 20, 24]}
QUICK = {"show_progress": False, "population_size": 30, "parent_size": 8, "mutation_size": 12, "crossover_size": 12}


@functools.cache
def supernet():
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 28}
    return tiny_supernet(search_space=SPACE, routing="none", **sizes)


class MadeUpObjective:
    """Rows whose losses are a known function of the architecture, plus noise that candidates share in part."""

    greater_is_better = False
    name = "loss"

    def __init__(self, rows: int = 640, noise: float = 0.3, supernet=None):
        self.rows, self.noise = rows, noise
        self.common = np.random.default_rng(0).normal(size=rows)

    def __len__(self) -> int:
        return self.rows

    def truth(self, widths) -> float:
        # Wide first and last layers help most, and a narrow middle hurts less than its parameters say.
        return 5.0 - sum(weight * np.log(width) for weight, width in zip((0.5, 0.1, 0.15, 0.4), widths, strict=True))

    def contributions(self, widths) -> np.ndarray:
        own = np.random.default_rng([*widths]).normal(size=self.rows)
        noise = self.noise * (self.common + 0.3 * own)
        losses = self.truth(widths) + noise - noise.mean()
        return np.stack([losses, np.ones_like(losses)], axis=1)

    def score(self, contributions: np.ndarray) -> float:
        return float(contributions[:, 0].sum() / contributions[:, 1].sum())

    def fingerprint(self) -> str:
        return f"{self.rows}/{self.noise}"


class MadeUpSearch(EvolutionarySearch):
    """Without the networks, which a made-up objective does not run."""

    def measure(self, candidate, start, stop):
        return self.objective.contributions(candidate.hidden_sizes)[start:stop]


def search(constraints=None, rows: int = 640, noise: float = 0.3, objective=None, **options):
    objective = MadeUpObjective(rows, noise) if objective is None else objective
    return MadeUpSearch(supernet(), objective, constraints, **{**QUICK, **options})


def middle(share: float = 0.5) -> int:
    """Parameters between the smallest and the largest architecture."""
    low, high = (supernet().count_parameters(found) for found in (extreme("smallest"), extreme("largest")))
    return int(low + share * (high - low))


def extreme(name: str) -> Architecture:
    return getattr(supernet().search_space, name)()


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_constraints_are_windows_on_every_cost():
    model = supernet()
    constraints = SearchConstraints(
        min_parameters=middle(0.2),
        max_parameters=middle(0.6),
        max_published_size=model.published_size(extreme("largest")) - 1,
        max_flops=model.count_flops(extreme("largest"), 17) - 1,
        sequence_length=17,
        max_latency=model.count_parameters(extreme("largest")) * 2 - 1.0,
        latency=model.parameter_cost(),
    )
    limits = constraints.limits(model)
    assert [limit.cost.name for limit in limits] == ["parameters", "published size", "FLOPs", "parameters"]
    assert limits[0].bounds == (middle(0.2), middle(0.6)) and limits[1].bounds[0] == -float("inf")
    assert limits[2].cost(extreme("largest")) == model.count_flops(extreme("largest"), 17)
    assert "latency" not in constraints.to_dict() and constraints.to_dict()["max_parameters"] == middle(0.6)
    found = search(constraints, num_rounds=2).run()
    for candidate in found.finalists:
        assert all(limit.holds(candidate.architecture) for limit in limits)
        assert middle(0.2) <= candidate.costs["parameters"] <= middle(0.6)
        assert candidate.costs["parameters"] == model.count_parameters(candidate.architecture)
        assert candidate.costs["flops"] == model.count_flops(candidate.architecture, 17)
        assert candidate.costs["published_size"] == model.published_size(candidate.architecture)
    assert SearchConstraints().limits(model) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_parameters": 5, "max_parameters": 4}, r"`min_parameters` \(5\) exceeds `max_parameters` \(4\); swap"),
        ({"max_flops": 0}, "`max_flops` must be positive, got 0"),
        ({"max_latency": 3.0}, "limit on latency needs a table .*: give `latency=`, from `measure_latency"),
        ({"sequence_length": 0}, "`sequence_length` must be at least 1, got 0"),
    ],
)
def test_constraints_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        SearchConstraints(**options)


@pytest.mark.parametrize("bound", ["400000", True])
def test_limits_are_numbers(bound):
    for name in ("max_parameters", "min_flops"):
        with pytest.raises(TypeError, match=f"A limit is a number, got {bound!r} for `{name}`"):
            SearchConstraints(**{name: bound})
    supernet = tiny_supernet()
    with pytest.raises(TypeError, match=f"A limit is a number, got {bound!r} for the most parameters"):
        supernet.sample_architecture(max_parameters=bound)
    with pytest.raises(TypeError, match=f"A limit is a number, got {bound!r} for `max_flops`"):
        supernet.extract_subnet(max_flops=bound)


@pytest.mark.parametrize(
    ("constraints", "options", "message"),
    [
        ({"max_parameters": 1_000}, {}, r"No architecture .* parameters up to 1,000 \(nearest reachable: "),
        ({}, {"parent_size": 31}, r"`parent_size` \(31\) must not exceed `population_size` \(30\)"),
        ({}, {"population_size": 0}, "`population_size` must be at least 1, got 0"),
        ({}, {"patience": 0}, "`patience` must be at least 1, got 0"),
        ({}, {"mutation_probability": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ({}, {"confidence": 0.0}, "`confidence` must be positive, got 0.0; `racing=False`"),
        ({}, {"trade_off": "latency"}, "Latency is measured first: give `latency=`"),
        ({}, {"trade_off": "size"}, "A cost is one of .*, got 'size'"),
    ],
)
def test_searches_that_make_no_sense(constraints, options, message):
    with pytest.raises(ValueError, match=message):
        search(SearchConstraints(**constraints), **options).run()


def test_a_single_network_is_no_supernet():
    subnet = supernet().extract_subnet(extreme("smallest"))
    with pytest.raises(ValueError, match=r"needs a supernet \(`MosFor…`\), got a MosSubnetForMaskedLM"):
        EvolutionarySearch(subnet, MadeUpObjective())


def test_too_many_to_look_at_each(monkeypatch):
    monkeypatch.setattr(EvolutionarySearch, "EXHAUSTIVE", 600)
    with pytest.raises(ValueError, match="look at each of 625 architectures, more than 600; leave `exhaustive` out"):
        search(exhaustive=True).run()


# ---- variation ------------------------------------------------------------------------------------------------------

SPACES = {
    name: SearchSpace.resolve(name, 48, 96, 12, 12)
    for name in ("v1", "v1.2", "attn_elastic", "hidden_layer_elastic", "v2", "v5.1", "v5.2")
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@each_space
def test_variations_stay_in_the_space(space):
    generator = random.Random(0)
    parents = [space.sample(seed) for seed in range(12)]
    for probability in (0.0, 0.3, 1.0):
        for parent in parents:
            assert mutate(parent, space, probability, generator) in space
    for first in parents[:6]:
        for second in parents[6:]:
            assert cross(first, second, space, generator) in space


@each_space
def test_mutation_changes_as_much_as_it_should(space):
    parents = [space.sample(seed) for seed in range(60)]
    assert all(mutate(parent, space, 0.0, random.Random(0)) == parent for parent in parents)

    def share(probability: float) -> float:
        changed = total = 0
        for seed, parent in enumerate(parents):
            mutant = mutate(parent, space, probability, random.Random(seed))
            for before, after in zip(parent.hidden_sizes, mutant.hidden_sizes, strict=False):
                changed += before != after
                total += 1
        return changed / total

    # Drawn anew with a chance of 0.3, which hits the same width at times.
    expected = 0.3 * (1 - 1 / len(space.hidden_sizes))
    assert abs(share(0.3) - expected) < (0.08 if space.bottleneck else 0.16)
    assert share(1.0) > 0.6


def test_children_have_their_parents_sizes():
    space = SPACES["v1.2"]
    first, second = space.sample(1), space.sample(2)
    sources = set()
    for seed in range(50):
        child = cross(first, second, space, random.Random(seed))
        for made, one, other in zip(child.layers, first.layers, second.layers, strict=True):
            assert made[0] in (one[0], other[0]) and made[1] in (one[1], other[1])
            sources |= {made[0] == one[0], made[0] == other[0]}
    assert sources == {True, False}
    assert cross(first, first, space, random.Random(0)) == first


def test_children_of_unequal_depths():
    space = SPACES["hidden_layer_elastic"]
    short = space.architecture(hidden_sizes=12, num_hidden_layers=6)
    long = space.architecture(hidden_sizes=24, num_hidden_layers=12)
    depths = set()
    for seed in range(30):
        child = cross(short, long, space, random.Random(seed))
        depths.add(child.num_hidden_layers)
        assert set(child.hidden_sizes[6:]) <= {24}  # only the deeper parent has those
    assert depths == {6, 12}


# ---- races ----------------------------------------------------------------------------------------------------------


def all_inside(limit: int) -> dict[Architecture, float]:
    objective = MadeUpObjective()
    return {
        found: objective.truth(found.hidden_sizes)
        for found in supernet().search_space
        if supernet().count_parameters(found) <= limit
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_winner_is_that_of_full_evaluation(seed):
    truth = all_inside(middle())
    result = search(SearchConstraints(max_parameters=middle()), seed=seed, num_rounds=12).run()
    # The noise of rows that are all seen is centred: the score is the truth.
    assert result.best.score == pytest.approx(truth[result.best.architecture], abs=1e-5)
    assert result.best.score <= np.quantile(list(truth.values()), 0.01) + 1e-9
    assert result.best.rows == 640 and result.rounds == 12
    full = search(SearchConstraints(max_parameters=middle()), seed=seed, num_rounds=12, racing=False).run()
    assert full.best.score == pytest.approx(result.best.score, abs=0.02)
    assert full.num_rows == full.num_candidates * 640
    assert result.num_rows < full.num_rows / 4


def test_an_exhaustive_race_finds_the_best():
    truth = all_inside(middle())
    constraints = SearchConstraints(max_parameters=middle())
    result = search(constraints, exhaustive=True).run()
    assert result.best.architecture == min(truth, key=truth.get)
    assert result.num_candidates == len(truth) and result.rounds == 0
    assert result.num_rows < len(truth) * 640 / 5
    assert search(constraints, exhaustive=True, racing=False).run().best == result.best


def test_a_narrow_window_is_looked_at_whole():
    sizes = sorted({supernet().count_parameters(found) for found in supernet().search_space})
    constraints = SearchConstraints(min_parameters=sizes[10], max_parameters=sizes[12])
    inside = [found for found in supernet().search_space if constraints.limits(supernet())[0].holds(found)]
    assert 1 < len(inside) < 30
    result = search(constraints).run()
    assert result.rounds == 0 and result.num_candidates == len(inside)
    objective = MadeUpObjective()
    assert result.best.architecture == min(inside, key=lambda found: objective.truth(found.hidden_sizes))


def test_the_first_population_is_full_and_different():
    size = sorted(supernet().count_parameters(found) for found in supernet().search_space)[60]
    constraints = SearchConstraints(max_parameters=size)
    assert search(constraints, num_rounds=0).run().num_candidates == 30
    assert search(constraints, num_rounds=0, population_size=200).run().num_candidates == len(all_inside(size))


def test_patience_ends_a_search_that_stands_still():
    result = search(SearchConstraints(max_parameters=middle()), noise=0.0, num_rounds=100, patience=3).run()
    assert 4 < result.rounds < 60
    truth = all_inside(middle())
    assert result.best.score == pytest.approx(min(truth.values()), abs=1e-5)


def test_a_metric_to_maximise():
    class Accuracy(MadeUpObjective):
        greater_is_better = True
        name = "accuracy"

        def contributions(self, widths):
            return super().contributions(widths) * [-1, 1]

    constraints = SearchConstraints(max_parameters=middle())
    lower, higher = (search(constraints, objective=made(), num_rounds=6).run() for made in (MadeUpObjective, Accuracy))
    assert higher.best.architecture == lower.best.architecture
    assert higher.best.score == -lower.best.score and higher.num_rows == lower.num_rows
    assert [found.architecture for found in higher.front] == [found.architecture for found in lower.front]


def test_the_front_of_a_trade_off():
    objective, cost = MadeUpObjective(), supernet().flop_cost(128)
    truth = {found: (cost(found), objective.truth(found.hidden_sizes)) for found in supernet().search_space}
    best = {
        found
        for found, (price, loss) in truth.items()
        if not any(other[0] <= price and other[1] < loss for other in truth.values())
    }
    exhaustive = search(trade_off="flops", exhaustive=True, racing=False).run()
    assert {found.architecture for found in exhaustive.front} == best
    result = search(trade_off="flops", num_rounds=15, population_size=60, parent_size=20).run()
    found = [(candidate.costs["flops"], candidate.score) for candidate in result.front]
    assert found == sorted(found) and [loss for _, loss in found] == sorted((loss for _, loss in found), reverse=True)
    assert result.best.score == min(loss for _, loss in found)
    # No part of the true front is far from what was found.
    for price, loss in (truth[architecture] for architecture in best):
        assert min(score for flops, score in found if flops <= price * 1.05) <= loss + 0.05
    assert result.num_rows < result.num_candidates * 640 / 2


def test_scores_that_are_no_numbers_come_last():
    class Broken(MadeUpObjective):
        def contributions(self, widths):
            return super().contributions(widths) * (np.nan if widths[0] == 24 else 1.0)

    for options in ({}, {"trade_off": "flops"}, {"racing": False}, {"trade_off": "flops", "racing": False}):
        result = search(objective=Broken(), num_rounds=3, **options).run()
        assert np.isfinite(result.best.score) and result.best.architecture.hidden_sizes[0] < 24
        assert all(np.isfinite(found.score) for found in result.front)
        numbers = [np.isfinite(found.score) for found in result.finalists]
        assert numbers == sorted(numbers, reverse=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Not a directory|File exists"):
        search(output_dir=tmp_path / "file")


# ---- determinism and kills ------------------------------------------------------------------------------------------


def test_same_seed_same_search():
    constraints = SearchConstraints(max_parameters=middle())
    runs = [search(constraints, num_rounds=3, seed=seed).run() for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].finalists != runs[2].finalists


@pytest.mark.parametrize("evaluations", [1, 17, 40, 75])
def test_a_killed_search_continues_to_the_same_end(tmp_path, evaluations):
    constraints = SearchConstraints(max_parameters=middle())
    options = {"num_rounds": 3, "rows": 256}
    undisturbed = search(constraints, output_dir=tmp_path / "whole", **options).run()
    killed = search(constraints, output_dir=tmp_path / "killed", **options)
    measure, calls = killed.measure, []

    def measure_until(*arguments):
        calls.append(arguments)
        if len(calls) > evaluations:
            raise KeyboardInterrupt
        return measure(*arguments)

    killed.measure = measure_until
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    path = tmp_path / "killed" / "results.jsonl"
    assert len(path.read_text().splitlines()) == 1 + evaluations
    if evaluations == 40:  # in the middle of a line
        path.write_bytes(path.read_bytes()[:-20])
    continued = search(constraints, output_dir=tmp_path / "killed", **options)
    assert continued.run() == undisturbed
    assert path.read_bytes() == (tmp_path / "whole" / "results.jsonl").read_bytes()


def test_results_are_not_computed_again(tmp_path):
    constraints = SearchConstraints(max_parameters=middle())
    first = search(constraints, num_rounds=2, output_dir=tmp_path).run()
    again = search(constraints, num_rounds=2, output_dir=tmp_path)
    again.measure = None  # not callable
    assert again.run() == first
    # Another seed or window is another walk over the same results.
    assert search(num_rounds=2, seed=5, output_dir=tmp_path).run() == search(num_rounds=2, seed=5).run()


def test_one_process_searches_into_a_folder(tmp_path):
    """What a launcher that was killed leaves behind would append to the same results."""
    refused = pytest.raises(ValueError, match=rf"Another process is searching into '{tmp_path}'. Wait .* or end it")
    with hold_folder(tmp_path, "searching"), refused:
        search(num_rounds=0, output_dir=tmp_path)
    ready = search(num_rounds=0, output_dir=tmp_path)  # holds nothing before it runs
    found = search(num_rounds=0, output_dir=tmp_path).run()
    written = (tmp_path / "results.jsonl").read_bytes()
    with hold_folder(tmp_path, "searching"), refused:
        ready.run()
    assert ready.run() == found and (tmp_path / "results.jsonl").read_bytes() == written


def test_searches_that_were_made_together_share_results(tmp_path):
    searches = [search(num_rounds=1, seed=seed, output_dir=tmp_path) for seed in (0, 1, 0)]
    found = [one.run() for one in searches]
    assert found == [search(num_rounds=1, seed=seed).run() for seed in (0, 1, 0)]
    _, contributions = read_results(tmp_path / "results.jsonl")
    assert len(contributions) > found[0].num_candidates


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_search_goes_on(tmp_path, written):
    one = search(num_rounds=1, output_dir=tmp_path if written else None)
    measure, left = one.measure, iter(range(7))

    def interrupted(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return measure(*args)

    one.measure = interrupted
    with pytest.raises(KeyboardInterrupt):
        one.run()
    one.measure = measure
    assert one.run() == search(num_rounds=1).run()


def test_equal_scores():
    """Of those that a coarse metric cannot tell apart, the cheapest wins, and is the last of the front."""

    class Coarse(MadeUpObjective):
        def score(self, contributions):
            return float(round(super().score(contributions)))

    found = search(objective=Coarse(), num_rounds=2, num_finalists=20).run()
    equals = [other for other in found.finalists if other.score == found.best.score]
    assert len(equals) > 1
    assert found.best.costs["parameters"] == min(other.costs["parameters"] for other in equals)
    assert found.front[-1] == found.best


def test_a_search_without_a_number():
    class Diverged(MadeUpObjective):
        def score(self, contributions):
            return float("nan")

    one = search(objective=Diverged(), num_rounds=1)
    with pytest.raises(
        ValueError, match=r"No candidate's \w+ is a number: that of the first is nan\. Either the supern"
    ):
        one.run()


def test_results_of_another_search_are_refused(tmp_path):
    search(num_rounds=0, output_dir=tmp_path).run()
    with pytest.raises(ValueError, match=r"results of another search: its rows is 640, this search's is 320"):
        search(rows=320, output_dir=tmp_path)
    with pytest.raises(ValueError, match="its data is '640/0.3', this search's is '640/0.5'. Choose another output"):
        search(noise=0.5, output_dir=tmp_path)
    other = tiny_supernet(search_space=SPACE, routing="none", hidden_size=24, num_attention_heads=4,
                          num_hidden_layers=4, intermediate_size=28, seed=1)  # fmt: skip
    with pytest.raises(ValueError, match="results of another search: its supernet is"):
        EvolutionarySearch(other, MadeUpObjective(), output_dir=tmp_path)


@pytest.mark.parametrize("damage", ["no json", '{"architecture": {}}', "[1]", "5"])
def test_results_that_are_damaged_are_refused(tmp_path, damage):
    search(num_rounds=0, output_dir=tmp_path).run()
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[5] = damage
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="Line 6 of .*results.jsonl' is not a result of a search .*; restore"):
        search(num_rounds=0, output_dir=tmp_path)
    assert path.read_text().splitlines() == lines  # nothing is lost


@pytest.mark.parametrize("line", [1, 6])
def test_a_number_that_was_altered_is_refused(tmp_path, line):
    search(num_rounds=0, output_dir=tmp_path).run()
    path = tmp_path / "results.jsonl"
    written = path.read_bytes()
    lines = written.splitlines(keepends=True)
    record = json.loads(lines[line - 1])
    if line == 1:
        record["rows"] += 1
    else:
        record["contributions"][7][0] += 1e-6
    altered = json.dumps(record).encode() + b"\n"
    assert 0 < sum(one != other for one, other in zip(altered, lines[line - 1], strict=True)) < 3
    path.write_bytes(b"".join([*lines[: line - 1], altered, *lines[line:]]))
    message = f"Line {line} of .*results.jsonl' .*its checksum is '.*', its content's is '.*delete this line and all"
    with pytest.raises(ValueError, match=message):
        search(num_rounds=0, output_dir=tmp_path)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(ValueError, match="Line 1 of .*results.jsonl' .*it does not say what was evaluated"):
        search(num_rounds=0, output_dir=tmp_path)
    path.write_bytes(b"".join(lines[: line - 1]))
    search(num_rounds=0, output_dir=tmp_path).run()
    assert path.read_bytes() == written


def test_the_supernet_stays_as_it_was():
    model = supernet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    model.train()
    search(num_rounds=1).run()
    assert model.training
    model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert np.array_equal(np.random.get_state()[1], state[2])


# ---- real objectives ------------------------------------------------------------------------------------------------


def test_masked_lm_objective_is_the_loss(tiny_tokenizer):
    model = make_supernet(tiny_tokenizer, routing="neuron").eval()
    rows = make_masked(tiny_tokenizer, 13)
    objective = MaskedLMObjective(rows, batch_size=4)
    assert sorted(objective.order) == list(range(13)) != objective.order
    architecture = model.search_space.sample(3)
    subnet = model.extract_subnet(architecture).eval()
    found = objective.evaluate(subnet, 0, 13)
    assert found.shape == (13, 2)
    batch = rows.collate([rows[index] for index in objective.order])
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, architecture=architecture).logits
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    np.testing.assert_allclose(found[:, 0], losses.sum(dim=1).numpy(), atol=1e-4)
    np.testing.assert_array_equal(found[:, 1], (labels != -100).sum(dim=1).numpy())
    assert objective.score(found) == pytest.approx(losses[labels != -100].mean().item(), abs=1e-5)
    # Bit-identical, and the same rows whatever the slices (up to rounding).
    np.testing.assert_array_equal(objective.evaluate(subnet, 0, 13), found)
    parts = np.concatenate([objective.evaluate(subnet, 0, 5), objective.evaluate(subnet, 5, 13)])
    np.testing.assert_allclose(parts, found, atol=1e-4)


def test_masked_lm_objective_of_stock_subnets(tiny_tokenizer):
    space = {"hidden_sizes": [8, 16], "bottleneck": False}
    for layout in ("bert", "roberta"):
        model = tiny_supernet("masked-lm", layout, vocab_size=len(tiny_tokenizer), hidden_size=16,
                              num_attention_heads=4, search_space=space, routing="none").eval()  # fmt: skip
        rows = make_masked(tiny_tokenizer, 6)
        objective = MaskedLMObjective(rows, batch_size=6)
        subnet = model.extract_subnet(model.search_space.smallest()).eval()
        batch = rows.collate([rows[index] for index in objective.order])
        with torch.no_grad():
            expected = F.cross_entropy(
                subnet(batch["input_ids"], batch["attention_mask"]).logits.transpose(1, 2), batch["labels"]
            )
        assert objective.score(objective.evaluate(subnet, 0, 6)) == pytest.approx(expected.item(), abs=1e-5)


def test_a_real_search_end_to_end(tiny_tokenizer, tmp_path):
    model = make_supernet(tiny_tokenizer, routing="layer")
    objective = MaskedLMObjective(make_masked(tiny_tokenizer, 40), batch_size=8)
    limit = (model.count_parameters(model.search_space.largest()) * 9) // 10
    options = {**QUICK, "num_rounds": 2, "first_slice": 8, "output_dir": tmp_path}
    result = EvolutionarySearch(model, objective, SearchConstraints(max_parameters=limit), **options).run()
    subnet = model.extract_subnet(result.best.architecture).eval()
    assert subnet.num_parameters() == result.best.costs["parameters"] <= limit
    assert objective.score(objective.evaluate(subnet, 0, 40)) == pytest.approx(result.best.score, abs=1e-4)
    # The front in the configuration travels with the model.
    model.config.front = name_front(result.front)
    model.save_pretrained(tmp_path / "supernet")
    loaded = type(model).from_pretrained(tmp_path / "supernet")
    for entry, found in zip(loaded.config.front, result.front, strict=True):
        by_name = loaded.extract_subnet(entry["name"])
        assert by_name.num_parameters() == found.costs["parameters"]
        assert loaded.resolve_architecture(max_parameters=entry["parameters"]) == found.architecture


def test_a_search_by_a_task(tiny_tokenizer):
    model = make_supernet(tiny_tokenizer, "sequence-classification", num_labels=3).eval()
    rows = make_labelled(tiny_tokenizer, "single_label_classification", 24)

    def collate(items):
        padded = tiny_tokenizer.pad([{"input_ids": item["input_ids"]} for item in items], return_tensors="pt")
        return {**padded, "labels": torch.tensor([item["labels"] for item in items])}

    def accuracy(logits, labels):
        return float((logits.argmax(axis=1) == labels).mean())

    objective = TaskObjective(rows, collate, accuracy, batch_size=5, name="accuracy")
    result = EvolutionarySearch(model, objective, **{**QUICK, "num_rounds": 1}).run()
    with torch.no_grad():
        logits = model(**collate(list(rows)), architecture=result.best.architecture).logits
    assert result.best.score == accuracy(logits.numpy(), np.array(rows["labels"])) > 0
    assert result.best.score == max(found.score for found in result.finalists)


def test_objectives_without_rows_or_labels(tiny_tokenizer):
    with pytest.raises(ValueError, match="There are no validation rows"):
        MaskedLMObjective([], collate=list)
    with pytest.raises(ValueError, match=r"Validation rows have \['input_ids'\], `labels` are missing"):
        TaskObjective([{"input_ids": [1]}], list, max)
    with pytest.raises(ValueError, match="A list does not know how to make batches of its rows; give `collate=`"):
        MaskedLMObjective([{"input_ids": [1], "labels": [1]}])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        MaskedLMObjective(make_masked(tiny_tokenizer, 3), batch_size=0)


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_of_a_front():
    result = search(num_rounds=0, trade_off="parameters").run()
    entries = name_front(result.front)
    assert len({entry["name"] for entry in entries}) == len(entries) > 2
    assert all(entry["name"].endswith("k") for entry in entries)
    first = result.front[0]
    assert entries[0] == {
        "name": entries[0]["name"],
        "architecture": first.architecture.to_dict(),
        "parameters": first.costs["parameters"],
        "flops": first.costs["flops"],
        "score": first.score,
        "rows": 640,
        "rank": len(entries),
    }
    assert entries[-1]["rank"] == 1 and entries[-1]["score"] == min(entry["score"] for entry in entries)
    assert json.loads(json.dumps(entries)) == entries
    assert len({entry["name"] for entry in name_front([first, first])}) == 2
