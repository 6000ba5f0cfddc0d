# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Architectures, search spaces, sampling under limits, and what routers see. No model is run here."""

import collections
import itertools
import math
import random
import re

import pytest
import torch

from modeling_mos import Architecture, MosConfig, MosForMaskedLM, SearchSpace
from modeling_mos import architecture as architecture_module
from modeling_mos.architecture import PRESET_ALIASES, PRESETS, CostTable, Limit
from testing_utils import ELASTIC, TINY, UNIFORM, tiny_mos_config


BERT_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
BERT_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 6}
SMALL = {key: TINY[key] for key in BERT_BASE}


def resolve(spec, sizes=BERT_BASE) -> SearchSpace:
    return SearchSpace.resolve(spec, **sizes)


def costs_of(space: SearchSpace, name: str = "parameters", tokens: int = 1) -> CostTable:
    """A cost with all of a real one's terms; `tokens` makes another one of it."""
    return CostTable.tabulate(
        name,
        space,
        entry=lambda width: 31 * width,
        layer=lambda width, intermediate, heads: 4 * width * (width + tokens) + 2 * width * intermediate + heads,
        transition=lambda width, following: width * following + following if space.bottleneck else 0,
        exit=lambda width: 17 * width + tokens,
    )


def within(observed: dict, expected: dict) -> None:
    """A chi-square bound that fails one time in about a million, were the seeds not fixed."""
    assert set(observed) <= set(expected)
    statistic = sum((observed.get(key, 0) - count) ** 2 / count for key, count in expected.items())
    freedom = len(expected) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 10, (statistic, freedom)


# ---- Architecture ---------------------------------------------------------------------------------------------------


def test_architecture_is_a_value():
    first = Architecture([16, 36], [11, 20], [2, 4])
    second = Architecture((16, 36), (11, 20), (2, 4))
    assert first == second and hash(first) == hash(second) and len({first, second}) == 1
    assert first.hidden_sizes == (16, 36)
    assert first.num_hidden_layers == 2
    assert first.layers == ((16, 11, 2), (36, 20, 4))
    assert first != Architecture((16, 36), (11, 20), (2, 2))
    with pytest.raises(AttributeError):
        first.hidden_sizes = (1, 1)


def test_architecture_round_trip():
    architecture = Architecture((16, 36), (11, 20), (2, 4))
    data = architecture.to_dict()
    assert data == {"hidden_sizes": [16, 36], "intermediate_sizes": [11, 20], "num_attention_heads": [2, 4]}
    assert Architecture.from_dict(data) == architecture


def test_architecture_str_is_short():
    assert str(Architecture((16, 16, 36), (11, 11, 11), (2, 4, 4))) == "16x2,36|11x3|2,4x2"


@pytest.mark.parametrize(
    "values, message",
    [
        (([16, 36], [11], [2, 2]), "must have one entry a layer, got 2, 1 and 2"),
        (([], [], []), "must have one entry a layer, got 0, 0 and 0"),
        (([16, -4], [11, 11], [2, 2]), r"`hidden_sizes` must hold one positive integer a layer, got \[16, -4\]"),
        (([16, 36], [11, 1.5], [2, 2]), "`intermediate_sizes` must hold one positive integer a layer"),
        (([16, 36], [11, 11], [2, True]), "`num_attention_heads` must hold one positive integer a layer"),
        ((16, [11], [2]), "`hidden_sizes` must hold one positive integer a layer, got 16"),
        (("16", [11], [2]), "`hidden_sizes` must hold one positive integer a layer, got '16'"),
        (
            ([16, 38], [11, 11], [2, 4]),
            "Layer 1: the hidden size 38 is not divisible by its 4 attention heads; .* 36 and 40",
        ),
    ],
)
def test_architecture_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        Architecture(*values)


@pytest.mark.parametrize("extra, missing", [({"depth": 2}, None), ({}, "hidden_sizes")])
def test_architecture_from_dict_refuses(extra, missing):
    data = {**Architecture((16,), (11,), (2,)).to_dict(), **extra}
    data.pop(missing, None)
    with pytest.raises(ValueError, match="An architecture has the keys"):
        Architecture.from_dict(data)


# ---- presets --------------------------------------------------------------------------------------------------------


def valid_layers(space: SearchSpace, rule=lambda width, intermediate: True) -> int:
    """Layer choices counted from the published tables, not from the code under test."""
    intermediates = space.intermediate_sizes or ()
    count = 0
    for width in space.hidden_sizes:
        own = intermediates or [int(ratio * width) for ratio in space.intermediate_ratios]
        count += sum(
            width % heads == 0 and rule(width, intermediate)
            for heads in space.num_attention_heads
            for intermediate in own
        )
    return count


@pytest.mark.parametrize(
    "name, count",
    [
        ("v1", 7**12),
        ("v1.1", 7**12),
        # Feed-forward sizes of at least twice the width: 5 + 4 + 3 + 3 + 2 + 2 + 2 of the five.
        ("v1.2", 21**12),
        ("hidden_layer_elastic", 7**6 + 7**8 + 7**10 + 7**12),
        ("ffn_intermediate_elastic", 28**12),
        ("ffn_intermediate_ratio_elastic", 21**12),
        ("v2", 12**6 + 12**9 + 12**12),
        ("v5.1", 550),
        ("v5.2", 840),
    ],
)
def test_preset_counts(name, count):
    space = resolve(name)
    assert space.num_architectures == count
    assert space == resolve(PRESET_ALIASES[name])


def test_elastic_ffn_preset_keeps_the_published_rule():
    space = resolve("v1.2")
    sizes = {width: {choice[1] for choice in space.layer_choices if choice[0] == width} for width in (120, 360, 768)}
    assert sizes == {120: {256, 512, 1024, 2048, 3072}, 360: {1024, 2048, 3072}, 768: {2048, 3072}}
    assert all(intermediate >= 2 * width for width, intermediate, _ in space.layer_choices)


def test_elastic_heads_preset_keeps_heads_that_divide():
    space = resolve("attn_elastic")
    heads = {width: [choice[2] for choice in space.layer_choices if choice[0] == width] for width in (120, 540, 768)}
    assert heads == {120: [2, 4, 6, 8, 10, 12], 540: [2, 4, 6, 10, 12], 768: [2, 4, 6, 8, 12]}
    assert len(space.layer_choices) == valid_layers(space)
    assert space.num_architectures == valid_layers(space) ** 12


@pytest.mark.parametrize("name", ["v5.1", "v5.2"])
def test_uniform_presets_are_enumerable(name):
    space = resolve(name)
    architectures = list(space)
    assert len(set(architectures)) == len(architectures) == space.num_architectures
    assert all(architecture in space for architecture in architectures)
    assert all(len(set(architecture.layers)) == 1 for architecture in architectures)
    assert min(architectures, key=lambda found: sum(found.hidden_sizes)) in (space.smallest(), architectures[1])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sizes", [BERT_BASE, BERT_LARGE, MINILM], ids=["base", "large", "minilm"])
def test_presets_scale_to_other_backbones(name, sizes):
    space = resolve(name, sizes)
    largest = space.largest()
    assert largest.hidden_sizes == (sizes["hidden_size"],) * sizes["num_hidden_layers"]
    assert set(largest.intermediate_sizes) == {sizes["intermediate_size"]}
    assert set(largest.num_attention_heads) == {sizes["num_attention_heads"]}
    assert all(width % sizes["num_attention_heads"] == 0 for width in space.hidden_sizes)
    # The same fractions of the backbone, to within half a head's share.
    published = resolve(name).hidden_sizes
    for width in published:
        wanted = width / 768 * sizes["hidden_size"]
        assert min(abs(wanted - found) for found in space.hidden_sizes) <= sizes["num_attention_heads"] / 2
    depths = [round(depth / 12 * sizes["num_hidden_layers"]) for depth in resolve(name).num_hidden_layers]
    assert space.num_hidden_layers == tuple(sorted(set(depths)))
    assert space.smallest() in space and space.largest() in space
    assert SearchSpace(**space.to_dict()) == space


def test_minilm_preset_by_hand():
    # 120, 240, 360, 480, 540, 600, 768 of 768 are 60, 120, 180, 240, 270, 300, 384 of 384; 270 is no multiple of 12.
    assert resolve("v1", MINILM).hidden_sizes == (60, 120, 180, 240, 264, 300, 384)


@pytest.mark.parametrize("hidden, intermediate", [(28, 61), (28, 115), (48, 37), (96, 401)])
def test_ratios_end_at_the_backbone_whatever_its_sizes(hidden, intermediate):
    """61 / 28 * 28 is 60.99… in floating point."""
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": 4}
    space = resolve("v1.1", {**sizes, "num_hidden_layers": 3})
    assert set(space.largest().intermediate_sizes) == {intermediate}


# ---- spaces of one's own --------------------------------------------------------------------------------------------


def test_dictionary_fills_in_what_is_not_elastic():
    space = resolve({"hidden_sizes": [16, 32, 48]}, SMALL)
    assert space.hidden_sizes == (16, 32, 48)
    assert (space.intermediate_sizes, space.num_attention_heads, space.num_hidden_layers) == ((37,), (4,), (3,))
    assert space.bottleneck and space.num_architectures == 27


def test_choices_are_sorted_and_unique():
    space = resolve({"hidden_sizes": [48, 16, 16, 32], "num_hidden_layers": 3, "intermediate_sizes": 37}, SMALL)
    assert space.hidden_sizes == (16, 32, 48) and space.num_hidden_layers == (3,)
    assert space == resolve({"hidden_sizes": (16, 32, 48)}, SMALL)
    assert resolve(space, SMALL) == space


def test_largest_smallest_and_membership():
    space = resolve(ELASTIC, SMALL)
    assert space.largest() == Architecture((48,) * 3, (37,) * 3, (4,) * 3)
    assert space.smallest() == Architecture((16,) * 2, (11,) * 2, (2,) * 2)
    assert Architecture((16, 48), (37, 11), (4, 2)) in space
    assert Architecture((16, 48, 16, 16), (37,) * 4, (4,) * 4) not in space
    assert Architecture((16, 40), (37, 11), (4, 2)) not in space
    assert Architecture((16, 48), (37, 12), (4, 2)) not in space
    assert Architecture((16, 48), (37, 11), (4, 1)) not in space
    assert "48x3|37x3|4x3" not in space and None not in space
    uniform = resolve(UNIFORM, SMALL)
    assert Architecture((16, 16), (20, 20), (4, 4)) in uniform
    assert Architecture((16, 48), (20, 20), (4, 4)) not in uniform


def test_iteration_is_the_whole_space():
    for spec in (ELASTIC, UNIFORM, {"hidden_sizes": [16, 48], "intermediate_ratios": [0.5, 37 / 48]}):
        space = resolve(spec, SMALL)
        architectures = list(space)
        assert len(set(architectures)) == len(architectures) == space.num_architectures
        assert all(architecture in space for architecture in architectures)
        assert space.largest() in architectures and space.smallest() in architectures


def test_uniform_architectures():
    found = resolve(ELASTIC, SMALL).uniform_architectures()
    assert [architecture.hidden_sizes[0] for architecture in found] == [16, 36, 48]
    assert all(architecture.num_hidden_layers == 3 for architecture in found)
    assert all(
        set(architecture.layers) == {(found.hidden_sizes[0], 37, 4)} for found in found for architecture in [found]
    )


def test_architecture_fills_in_what_is_fixed():
    space = resolve("v1")
    by_list, by_number = space.architecture(hidden_sizes=[360] * 12), space.architecture(hidden_sizes=360)
    assert by_list == by_number == Architecture((360,) * 12, (3072,) * 12, (12,) * 12)
    ratios = resolve("v1.1").architecture(hidden_sizes=[120, 240] * 6)
    assert ratios.intermediate_sizes == (480, 960) * 6
    depths = resolve("hidden_layer_elastic")
    assert depths.architecture(hidden_sizes=120, num_hidden_layers=8).num_hidden_layers == 8
    assert depths.architecture(hidden_sizes=[120] * 6).num_hidden_layers == 6
    assert resolve({}, SMALL).architecture() == resolve({}, SMALL).largest()


@pytest.mark.parametrize(
    "spec, sizes, message",
    [
        (ELASTIC, {"hidden_sizes": 16, "intermediate_sizes": 11, "num_attention_heads": 2}, "The depth is elastic"),
        (ELASTIC, {"num_hidden_layers": 2}, r"`hidden_sizes` is elastic in this search space: .* \[16, 36, 48\]"),
        (
            ELASTIC,
            {"hidden_sizes": [16, 16], "num_attention_heads": 2},
            r"`intermediate_sizes` is elastic .* layer 0 may have \[11, 20, 37\]",
        ),
        (
            ELASTIC,
            {"hidden_sizes": [16] * 2, "intermediate_sizes": [11] * 3, "num_attention_heads": 2},
            r"for different numbers of layers: \[2, 3\]",
        ),
        ("v1", {"hidden_sizes": [360] * 11}, r"it has 11 layers, the space has \[12\]"),
        ("v1", {"hidden_sizes": [348] * 12}, r"layer 0 is 348 wide, .* 360 the nearest"),
        ("v1", {"hidden_sizes": [360] * 11 + [350]}, "350 is not divisible by its 12"),
        (
            "v1.2",
            {"hidden_sizes": 768, "intermediate_sizes": 1000},
            r"layer 0 has feed-forward size 1000, at width 768 the choices are \[2048, 3072\], 2048 the nearest",
        ),
        (
            "attn_elastic",
            {"hidden_sizes": 540, "num_attention_heads": 5},
            r"layer 0 has 5 heads, at width 540 the choices are \[2, 4, 6, 10, 12\]",
        ),
        (
            "v5.1",
            {"hidden_sizes": [120] * 11 + [132], "intermediate_sizes": [240] * 11 + [264], "num_attention_heads": 6},
            "without bottlenecks all layers must be alike",
        ),
    ],
)
def test_architecture_of_a_space_refuses(spec, sizes, message):
    space = resolve(spec, SMALL if isinstance(spec, dict) else BERT_BASE)
    with pytest.raises(ValueError, match=message):
        space.architecture(**sizes)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("v9", r"Unknown search space preset 'v9'; the presets are \["),
        ("botleneck", "Unknown search space preset 'botleneck'.* Did you mean 'bottleneck'?"),
        ({"hiden_sizes": [16, 48]}, r"Unknown search space key 'hiden_sizes'.* Did you mean 'hidden_sizes'\?"),
        (
            {"hidden_sizes": [16, 32]},
            "must be the backbone itself: hidden_sizes reaches 32, the backbone has 48; add 48",
        ),
        ({"intermediate_sizes": [37, 40]}, "intermediate_sizes reaches 40, the backbone has 37"),
        ({"intermediate_ratios": [0.5]}, "intermediate_sizes reaches 24, the backbone has 37"),
        ({"num_attention_heads": [2]}, "num_attention_heads reaches 2, the backbone has 4"),
        ({"num_hidden_layers": [2]}, "num_hidden_layers reaches 2, the backbone has 3"),
        (
            {"intermediate_sizes": [37], "intermediate_ratios": [1]},
            "either `intermediate_sizes` or `intermediate_ratios`",
        ),
        ({"hidden_sizes": []}, r"`hidden_sizes` of a search space must be a non-empty list of positive integers, got"),
        ({"hidden_sizes": [0, 48]}, "`hidden_sizes` of a search space must be a non-empty list of positive integers"),
        ({"hidden_sizes": [24.0, 48]}, "`hidden_sizes` of a search space must be a non-empty list of positive int"),
        ({"intermediate_ratios": ["4"]}, "`intermediate_ratios` of a search space .* positive numbers"),
        ({"num_attention_heads": "4"}, "`num_attention_heads` of a search space"),
        (
            {"hidden_sizes": [18, 48]},
            r"hidden sizes \[18\] are divisible by none of the head counts \[4\]; .* as \[16\]",
        ),
        ({"minimum_intermediate_ratio": 2}, r"The hidden sizes \[48\] allow no layer: .* reaches 2 times that"),
        (7, "A search space is a preset's name or a dictionary, got int"),
    ],
)
def test_a_space_refuses(spec, message):
    with pytest.raises(ValueError, match=message):
        resolve(spec, SMALL)


# ---- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*PRESETS])
def test_sampling_is_a_function_of_the_seed(spec):
    space = resolve(spec)
    state = random.getstate()
    first = [space.sample(seed=seed) for seed in range(20)]
    assert random.getstate() == state
    assert [space.sample(seed=seed) for seed in range(20)] == first
    assert all(found in space for found in first)
    assert len(set(first)) > 10
    assert space.sample(seed="a/1") == space.sample(seed="a/1") != space.sample(seed="a/2")


def test_sampling_never_changes_between_releases():
    """A resumed run, and another machine, must draw the same architectures: these are recorded."""
    space = resolve("v1")
    assert space.sample(seed=0).hidden_sizes == RECORDED_V1
    assert str(resolve("v5.2").sample(seed=1)) == RECORDED_V52


RECORDED_V1 = (600, 480, 360, 768, 600, 768, 768, 768, 120, 768, 768, 480)
RECORDED_V52 = "672x6|2352x6|6x6"


def test_sampling_is_uniform_over_each_choice():
    space = resolve(ELASTIC, SMALL)
    drawn = [space.sample(seed=seed) for seed in range(3_000)]
    within(collections.Counter(found.num_hidden_layers for found in drawn), {2: 1_500, 3: 1_500})
    layers = [layer for found in drawn for layer in found.layers]
    within(collections.Counter(layer[0] for layer in layers), dict.fromkeys([16, 36, 48], len(layers) / 3))
    within(collections.Counter(layer[1] for layer in layers), dict.fromkeys([11, 20, 37], len(layers) / 3))
    within(collections.Counter(layer[2] for layer in layers), dict.fromkeys([2, 4], len(layers) / 2))
    uniform = resolve(UNIFORM, SMALL)
    drawn = collections.Counter(uniform.sample(seed=seed) for seed in range(3_600))
    within(drawn, dict.fromkeys(uniform, 100))


def test_size_biased_sampling_prefers_large_choices():
    space = resolve(ELASTIC, SMALL)
    layers = [layer for seed in range(3_000) for layer in space.sample(seed=seed, size_biased=True).layers]
    total = len(layers)
    within(
        collections.Counter(layer[0] for layer in layers),
        {width: total * width / (16 + 36 + 48) for width in (16, 36, 48)},
    )
    within(
        collections.Counter(layer[1] for layer in layers),
        {size: total * size / (11 + 20 + 37) for size in (11, 20, 37)},
    )


FEW = SearchSpace((8, 12, 20), (4,), (1, 2), intermediate_sizes=(5, 30))
SEVERAL = SearchSpace((8, 12, 20), (4,), (2, 3), intermediate_sizes=(5, 30))
MANY = SearchSpace((8, 12, 20), (4,), (9,), intermediate_sizes=(30,))
ALIKE = SearchSpace(
    tuple(range(8, 200, 4)), (2, 4), tuple(range(1, 13)), intermediate_ratios=(1, 2, 3, 3.5, 4), bottleneck=False
)


@pytest.fixture(params=["listed", "walked", "drawn"])
def regime(request, monkeypatch) -> str:
    """The three ways in which `sample_within` finds architectures, forced on spaces small enough for brute force."""
    # The space is listed whole; it is too large but what is feasible is listed; architectures are drawn one by one.
    enumerable = {"listed": 10**9, "walked": min(FEW.num_architectures, SEVERAL.num_architectures) - 1, "drawn": 0}
    monkeypatch.setattr(architecture_module, "ENUMERABLE", enumerable[request.param])
    return request.param


def quantile(space: SearchSpace, cost: CostTable, *shares: float) -> list[float]:
    costs = sorted(cost(architecture) for architecture in space)
    return [costs[int(share * (len(costs) - 1))] for share in shares]


def feasible_of(space: SearchSpace, limits: list[Limit]) -> set[Architecture]:
    return {found for found in space if all(limit.holds(found) for limit in limits)}


@pytest.mark.parametrize("space", [FEW, SEVERAL])
@pytest.mark.parametrize("low, high", [(0.4, 0.6), (0.1, 0.9), (0, 1)])
def test_sampling_within_returns_every_feasible_architecture(space, low, high, regime):
    cost = costs_of(space)
    limits = [Limit(cost, *quantile(space, cost, low, high))]
    feasible = feasible_of(space, limits)
    found = space.sample_within(limits, count=len(feasible) + 1 if regime != "drawn" else len(feasible), seed=1)
    assert len(set(found)) == len(found)
    assert set(found) == feasible


@pytest.mark.parametrize("space", [MANY, ALIKE])
def test_sampling_within_a_large_space_returns_every_feasible_architecture(space):
    assert space.num_architectures > architecture_module.ENUMERABLE
    cost = costs_of(space)
    limits = [Limit(cost, *quantile(space, cost, 0.4, 0.42))]
    feasible = feasible_of(space, limits)
    assert len(feasible) > 100
    assert set(space.sample_within(limits, count=2 * len(feasible))) == feasible


def test_sampling_within_is_uniform(regime):
    """One architecture a seed, compared with the whole feasible set."""
    cost = costs_of(FEW)
    limits = [Limit(cost, *quantile(FEW, cost, 0.3, 0.8))]
    feasible = feasible_of(FEW, limits)
    assert len(feasible) > 15
    drawn = collections.Counter(FEW.sample_within(limits, seed=seed)[0] for seed in range(1_000))
    within(drawn, dict.fromkeys(feasible, 1_000 / len(feasible)))


def test_sampling_within_a_large_space_is_uniform():
    cost = costs_of(MANY)
    limits = [Limit(cost, *quantile(MANY, cost, 0.2, 0.8))]
    feasible = feasible_of(MANY, limits)
    drawn = MANY.sample_within(limits, count=1_500, seed=0)
    assert len(set(drawn)) == 1_500

    def group(architecture: Architecture):
        return (*architecture.hidden_sizes[::4], architecture.hidden_sizes.count(20) > 3)

    share = 1_500 / len(feasible)
    expected = {key: share * count for key, count in collections.Counter(map(group, feasible)).items()}
    assert len(expected) > 30
    within(collections.Counter(map(group, drawn)), expected)


def test_sampling_within_can_prefer_large_sizes(regime):
    cost = costs_of(FEW)
    limits = [Limit(cost, *quantile(FEW, cost, 0.1, 0.9))]
    weights = collections.Counter()
    for found in feasible_of(FEW, limits):
        weights[found] = math.prod(width * size * heads / 2_400 for width, size, heads in found.layers)
    draws = 2_000
    drawn = [FEW.sample_within(limits, seed=seed, size_biased=True)[0] for seed in range(draws)]
    # Rare ones share a cell.
    common = {found: draws * weight / weights.total() for found, weight in weights.items()}
    rare = {found for found, count in common.items() if count < 10}
    expected = {found: count for found, count in common.items() if found not in rare}
    expected["rare"] = sum(common[found] for found in rare)
    within(collections.Counter("rare" if found in rare else found for found in drawn), expected)


def test_size_biased_draws_differ_and_repeat():
    cost = costs_of(MANY)
    limits = [Limit(cost, *quantile(MANY, cost, 0.4, 0.6))]
    found = MANY.sample_within(limits, count=50, seed=0, size_biased=True)
    assert len(set(found)) == 50 and set(found) <= feasible_of(MANY, limits)
    assert found == MANY.sample_within(limits, count=50, seed=0, size_biased=True)


@pytest.mark.parametrize("space", [SEVERAL, MANY, ALIKE])
def test_sampling_within_is_a_function_of_the_seed(space):
    cost = costs_of(space)
    limits = [Limit(cost, *quantile(space, cost, 0.2, 0.8))]
    state = random.getstate()
    first = space.sample_within(limits, 30, seed=4)
    assert random.getstate() == state
    assert first == space.sample_within(limits, 30, seed=4)
    assert first != space.sample_within(limits, 30, seed=5)
    assert space.sample_within(limits, 30, seed="x") == space.sample_within(limits, 30, seed=random.Random("x"))


def two_limits(space: SearchSpace) -> list[Limit]:
    size, flops = costs_of(space), costs_of(space, "FLOPs", tokens=40)
    return [Limit(size, *quantile(space, size, 0.3, 0.6)), Limit(flops, *quantile(space, flops, 0.35, 0.55))]


def test_two_limits_at_once(regime):
    limits = two_limits(SEVERAL)
    feasible = feasible_of(SEVERAL, limits)
    assert 10 < len(feasible) < len(feasible_of(SEVERAL, limits[:1]))
    assert set(SEVERAL.sample_within(limits, count=len(feasible), seed=0)) == feasible


@pytest.mark.parametrize("space", [MANY, ALIKE])
def test_two_limits_at_once_in_a_large_space(space):
    limits = two_limits(space)
    found = space.sample_within(limits, count=100, seed=0)
    assert len(set(found)) == 100 and set(found) <= feasible_of(space, limits)


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", text)]


@pytest.mark.parametrize("space", [SEVERAL, MANY, ALIKE])
@pytest.mark.parametrize("place", ["below", "above", "gap"])
def test_an_empty_window_names_the_nearest_sizes(space, place):
    cost = costs_of(space)
    costs = sorted({cost(architecture) for architecture in space})
    if place == "below":
        limit, nearest = Limit(cost, maximum=costs[0] - 1), [costs[0]]
    elif place == "above":
        limit, nearest = Limit(cost, minimum=costs[-1] + 1), [costs[-1]]
    else:
        low, high = max(itertools.pairwise(costs), key=lambda pair: pair[1] - pair[0])
        limit, nearest = Limit(cost, low + 1, high - 1), [low, high]
    with pytest.raises(
        ValueError, match="No architecture of the search space has parameters (up to|from) .* widen"
    ) as caught:
        space.sample_within([limit])
    message = str(caught.value)
    assert numbers(message.split("nearest reachable: ")[1].split(", range")[0]) == nearest
    assert numbers(message.split("range ")[1].split(")")[0]) == [costs[0], costs[-1]]


@pytest.mark.parametrize("space", [SEVERAL, MANY])
def test_contradictory_limits_name_what_the_other_allows(space):
    size, flops = costs_of(space), costs_of(space, "FLOPs", tokens=40)
    (small,), (costly,) = quantile(space, size, 0.01), quantile(space, flops, 0.9)
    limits = [Limit(size, maximum=small), Limit(flops, minimum=costly)]
    allowed = [[found for found in space if limits[1 - index].holds(found)] for index in (0, 1)]
    with pytest.raises(ValueError, match="has parameters up to .* and FLOPs from .* up ") as caught:
        space.sample_within(limits)
    parts = [numbers(part.split(")")[0].split(", range")[0]) for part in str(caught.value).split("reachable: ")[1:]]
    assert parts == [[min(map(size, allowed[0]))], [max(map(flops, allowed[1]))]]


def test_bounds_are_numbers():
    cost = costs_of(SEVERAL)
    for bound in ("400000", True, [3]):
        with pytest.raises(
            TypeError, match=f"A limit is a number, got {re.escape(repr(bound))} for the most parameters"
        ):
            Limit(cost, maximum=bound)
    assert str(Limit(cost, 5, 1_000)) == "parameters from 5 to 1,000"


def test_a_window_upside_down():
    with pytest.raises(ValueError, match=r"window of parameters is upside down: the minimum 7 exceeds the maximum 5"):
        Limit(costs_of(FEW), 7, 5)


def test_cost_table_adds_up():
    cost = costs_of(FEW, tokens=3)
    found = cost(Architecture((8, 20, 12), (5, 30, 5), (4, 4, 4)))
    layers = sum(4 * width * (width + 3) + 2 * width * size + 4 for width, size in ((8, 5), (20, 30), (12, 5)))
    assert found == 31 * 8 + layers + (8 * 20 + 20) + (20 * 12 + 12) + 17 * 12 + 3


# ---- sampling from a model, at full size on the meta device ---------------------------------------------------------


@pytest.fixture(scope="module")
def bert_base():
    with torch.device("meta"):
        return MosForMaskedLM(MosConfig(search_space="v1", routing="none"))


def test_narrow_window_of_bert_base(bert_base):
    found = bert_base.sample_architectures(125, seed=0, min_parameters=45_000_000, max_parameters=50_000_000)
    assert len(set(found)) == 125
    assert all(45_000_000 <= bert_base.count_parameters(architecture) <= 50_000_000 for architecture in found)
    assert all(architecture in bert_base.search_space for architecture in found)
    # The window has a share of about 0.001 of the space: few draws would find it.
    plain = [bert_base.search_space.sample(seed=seed) for seed in range(300)]
    assert sum(45e6 <= bert_base.count_parameters(architecture) <= 50e6 for architecture in plain) < 10
    # Both ends of the window are used.
    sizes = sorted(map(bert_base.count_parameters, found))
    assert sizes[-1] - sizes[0] > 2_000_000
    assert found == bert_base.sample_architectures(125, seed=0, min_parameters=45_000_000, max_parameters=50_000_000)


def test_parameter_and_flop_limits_of_bert_base(bert_base):
    middle = bert_base.search_space.architecture(hidden_sizes=360)
    size, flops = bert_base.count_parameters(middle), bert_base.count_flops(middle)
    window = {"min_parameters": size - 1_000_000, "max_parameters": size + 1_000_000}
    found = bert_base.sample_architectures(20, **window, max_flops=flops)
    assert len(set(found)) == 20
    for architecture in found:
        assert abs(bert_base.count_parameters(architecture) - size) <= 1_000_000
        assert bert_base.count_flops(architecture) <= flops
    longer = bert_base.sample_architectures(5, max_flops=2 * flops, sequence_length=256)
    assert all(bert_base.count_flops(architecture, 256) <= 2 * flops for architecture in longer)


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"max_parameters": 30_000_000}, "nearest reachable: 34,393,146, range 34,393,146 to 117,191,994"),
        ({"min_parameters": 120_000_000}, "nearest reachable: 117,191,994, range 34,393,146"),
        ({"max_flops": 1_000_000}, "FLOPs up to "),
        ({"min_parameters": 50_000_000, "max_parameters": 40_000_000}, "upside down"),
    ],
)
def test_impossible_limits_of_bert_base(bert_base, limits, message):
    with pytest.raises(ValueError, match=message):
        bert_base.sample_architecture(**limits)


@pytest.mark.parametrize("width", [500_000, 5_000, 0])
def test_every_architecture_has_a_window_that_finds_it(bert_base, width):
    for seed in range(3):
        size = bert_base.count_parameters(bert_base.search_space.sample(seed=seed))
        found = bert_base.sample_architecture(min_parameters=size - width // 2, max_parameters=size + width // 2)
        assert abs(bert_base.count_parameters(found) - size) <= width // 2


def test_sampling_without_limits_gives_different_ones(bert_base):
    assert len(set(bert_base.sample_architectures(50, seed=0))) == 50
    with torch.device("meta"):
        tiny = MosForMaskedLM(tiny_mos_config(search_space={"hidden_sizes": [16, 48]}))
    assert set(tiny.sample_architectures(100)) == set(tiny.search_space)
    assert tiny.sample_architecture(seed=3) == tiny.search_space.sample(seed=3)


# ---- what the router sees -------------------------------------------------------------------------------------------


def test_scaled_encoding_of_the_published_space():
    space = resolve("v1")
    widths = [120, 240, 360, 480, 540, 600, 768] + [120] * 5
    encoded = space.encode(space.architecture(hidden_sizes=widths))
    expected = [0.01 + (width - 120) / 648 for width in widths]
    assert encoded == pytest.approx(expected) and space.encoding_size() == 12
    assert encoded[0] == pytest.approx(0.01) and encoded[6] == pytest.approx(1.01)


def test_one_hot_and_constant_encodings():
    space = resolve("v1")
    assert space.encoding_size("one-hot") == 84
    encoded = space.encode(space.architecture(hidden_sizes=[240] + [768] * 11), "one-hot")
    assert encoded[:7] == [0, 1, 0, 0, 0, 0, 0] and encoded[-7:] == [0, 0, 0, 0, 0, 0, 1]
    assert space.encode(space.smallest(), "constant") == space.encode(space.largest(), "constant") == [0.5] * 12
    with pytest.raises(ValueError, match="`router_input` is 'scaled', 'one-hot' or 'constant', got 'onehot'"):
        space.encode(space.largest(), "onehot")


def test_encoding_of_uniform_spaces():
    space = resolve("v5.1")
    encoded = space.encode(space.architecture(hidden_sizes=120, intermediate_sizes=300, num_attention_heads=6))
    assert encoded == pytest.approx([120 / 768, 6 / 12, 300 / 3072])
    deep = resolve("v5.2")
    sizes = {"hidden_sizes": 120, "intermediate_sizes": 300, "num_attention_heads": 6}
    encoded = [deep.encode(deep.architecture(**sizes, num_hidden_layers=depth)) for depth in (6, 9, 12)]
    assert encoded[0][:3] == pytest.approx([120 / 768, 6 / 12, 300 / 3072])
    assert [entry[3] for entry in encoded] == pytest.approx([0.5, 0.75, 1])


def test_absent_layers_are_zero():
    space = resolve("hidden_layer_elastic")
    shallow = space.encode(space.architecture(hidden_sizes=120, num_hidden_layers=6))
    assert shallow == pytest.approx([0.01] * 6 + [0] * 6 + [0.5])
    assert space.encode(space.largest()) == pytest.approx([1.01] * 12 + [1])
    one_hot = space.encode(space.architecture(hidden_sizes=120, num_hidden_layers=6), "one-hot")
    assert len(one_hot) == 12 * 7 + 4 and one_hot[42:84] == [0] * 42 and one_hot[84:] == [1, 0, 0, 0]


@pytest.mark.parametrize("router_input", ["scaled", "one-hot"])
@pytest.mark.parametrize("spec", [*PRESETS, "elastic", "uniform-small"])
def test_no_two_architectures_look_alike(spec, router_input):
    own = {"elastic": ELASTIC, "uniform-small": UNIFORM}
    space = resolve(own[spec], SMALL) if spec in own else resolve(spec)
    if space.num_architectures < 7_000:
        architectures = set(space)
    else:
        # Neighbours, which differ in one layer only, and random ones.
        architectures = {space.largest(), space.smallest(), *(space.sample(seed=seed) for seed in range(300))}
        for base in (space.largest(), space.smallest()):
            for index, choice in itertools.product(range(base.num_hidden_layers), space.layer_choices):
                layers = list(base.layers)
                layers[index] = choice
                architectures.add(Architecture(*zip(*layers, strict=True)))
    encodings = {tuple(space.encode(architecture, router_input)) for architecture in architectures}
    assert len(encodings) == len(architectures)
    assert {len(encoding) for encoding in encodings} == {space.encoding_size(router_input)}


def test_encoding_of_a_size_that_the_other_rules_fix():
    """Two feed-forward sizes are named, but only one of them may follow these widths."""
    space = SearchSpace((16, 48), (4,), (3,), intermediate_sizes=(16, 96), minimum_intermediate_ratio=2)
    encodings = {tuple(space.encode(architecture)) for architecture in space}
    assert len(encodings) == space.num_architectures == 8


def test_nothing_elastic_has_no_encoding():
    assert resolve({}, SMALL).encoding_size() == 0


@pytest.mark.parametrize("bad", ["60m", None, {"hidden_sizes": [48]}])
def test_what_is_no_architecture_is_refused_with_a_sentence(bad):
    space = SearchSpace.resolve({"hidden_sizes": [16, 48]}, 48, 37, 4, 3)
    assert bad not in space
    with pytest.raises(ValueError, match="Expected an Architecture, got .*search_space.architecture"):
        space.validate(bad)


@pytest.mark.parametrize("sizes", [((4,), None, (2,)), (4, (8,), (2,)), ((4,), "8", (2,)), ((4,), (8.0,), (2,))])
def test_sizes_that_are_no_lists_of_integers(sizes):
    with pytest.raises(ValueError, match="must hold one positive integer a layer, got"):
        Architecture(*sizes)
    keys = ("hidden_sizes", "intermediate_sizes", "num_attention_heads")
    with pytest.raises(ValueError, match="must hold one positive integer a layer, got"):
        Architecture.from_dict(dict(zip(keys, sizes, strict=True)))


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"bottleneck": "no"}, "`bottleneck` is true or false, got 'no'"),
        ({"minimum_intermediate_ratio": "a"}, "must be a number of at least 0, got 'a'"),
        ({"minimum_intermediate_ratio": -1}, "must be a number of at least 0, got -1"),
    ],
)
def test_flags_and_numbers_of_a_space_are_checked(spec, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.resolve({"hidden_sizes": [16, 48], **spec}, 48, 37, 4, 3)


def test_what_the_rules_fix_is_filled_in():
    spec = {"hidden_sizes": [18, 48], "intermediate_sizes": [20, 96], "num_attention_heads": [2, 3]}
    space = SearchSpace.resolve({**spec, "minimum_intermediate_ratio": 2}, 48, 96, 3, 2)
    # 48 leaves one feed-forward size that is at least twice as wide; 18 leaves one as well.
    assert space.architecture([48, 18], num_attention_heads=3).intermediate_sizes == (96, 96)
    with pytest.raises(ValueError, match="is 20 wide"):
        space.architecture([48, 20], num_attention_heads=2)
