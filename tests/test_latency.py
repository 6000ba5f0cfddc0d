# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""The table of latencies. A count of FLOPs stands in for the clock: then the table's sums are known exactly."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from modeling_mos import (
    EvolutionarySearch,
    SearchConstraints,
    latency,
    load_latency,
    measure_architectures,
    measure_latency,
    save_latency,
)
from testing_utils import ELASTIC, tiny_supernet
from training_utils import WIDTHS


UNIFORM = {"hidden_sizes": [8, 16], "intermediate_ratios": [1, 2], "bottleneck": False}


@pytest.fixture
def flops_for_milliseconds(monkeypatch):
    def count(run, device):
        with FlopCounterMode(display=False) as counter:
            run()
        return float(counter.get_total_flops())

    monkeypatch.setattr(latency, "_time", count)


def make(space, layout: str = "bert", **overrides):
    if space is UNIFORM:
        overrides = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, **overrides}
    # CPU's sdpa counts no FLOPs of attention.
    return tiny_supernet(layout=layout, search_space=space, routing="none", attn_implementation="eager", **overrides)


@pytest.mark.parametrize(
    ("space", "layout"), [(WIDTHS, "bert"), (ELASTIC, "roberta"), (UNIFORM, "bert"), (UNIFORM, "roberta")], ids=str
)
def test_the_table_adds_up(flops_for_milliseconds, space, layout):
    model = make(space, layout)
    table = measure_latency(model, batch_size=3, sequence_length=7, rounds=1)
    architectures = [model.search_space.sample(seed) for seed in range(6)]
    architectures += [model.search_space.smallest(), model.search_space.largest()]
    measured = measure_architectures(model, architectures, batch_size=3, sequence_length=7, rounds=1)
    for architecture, found in zip(architectures, measured, strict=True):
        assert found == 3 * model.count_flops(architecture, 7)
        assert table(architecture) == pytest.approx(found, rel=1e-9)


def test_a_search_keeps_to_a_measured_limit(flops_for_milliseconds):
    model = make(WIDTHS)
    table = measure_latency(model, sequence_length=9, rounds=1)
    limit = (table(model.search_space.smallest()) + table(model.search_space.largest())) / 2
    constraints = SearchConstraints(max_latency=limit, latency=table)

    class Objective:
        name, greater_is_better = "width", True

        def __len__(self):
            return 1

        def evaluate(self, subnet, start, stop):
            return [[sum(subnet.config.hidden_sizes)]]

        def score(self, contributions):
            return float(contributions.sum())

    options = {"population_size": 20, "parent_size": 5, "num_rounds": 3, "show_progress": False}
    result = EvolutionarySearch(model, Objective(), constraints, **options).run()
    assert all(found.costs["latency"] <= limit for found in result.finalists)
    assert result.best.costs["latency"] == model.count_flops(result.best.architecture, 9)
    with pytest.raises(ValueError, match=r"No architecture .* milliseconds a batch up to 1"):
        EvolutionarySearch(model, Objective(), SearchConstraints(max_latency=1.0, latency=table)).run()


def test_real_measurements_are_positive():
    model = make(WIDTHS)
    state = torch.get_rng_state()
    table = measure_latency(model, sequence_length=8, rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value >= 0 for part in ("entry", "layer", "transition", "exit") for _, value in getattr(table, part))
    assert table(model.search_space.largest()) > 0


def test_progress_is_shown_where_it_is_asked_for(flops_for_milliseconds, capsys):
    model = make(WIDTHS)

    def measure(**options) -> str:
        measure_latency(model, sequence_length=9, rounds=1, **options)
        measure_architectures(model, [model.search_space.smallest()], sequence_length=9, rounds=1, **options)
        return capsys.readouterr().err

    shown = measure(show_progress=True)
    assert "Measuring latency: " in shown and "Measuring architectures: " in shown
    logging.disable_progress_bar()
    try:
        assert not measure(show_progress=True)
    finally:
        logging.enable_progress_bar()
    assert not measure()


def test_tables_are_saved_and_read(flops_for_milliseconds, tmp_path):
    model = make(ELASTIC)
    table = measure_latency(model, sequence_length=5, rounds=1)
    path = tmp_path / "latency.json"
    save_latency(table, path, device="made up", batch_size=1)
    assert load_latency(path, model) == table and load_latency(path) == table
    assert json.loads(path.read_text())["device"] == "made up"
    assert [file.name for file in tmp_path.iterdir()] == ["latency.json"]
    with pytest.raises(ValueError, match=r"measured for another search space: it lacks the layer .* \(12, "):
        load_latency(path, make({"hidden_sizes": [12, 24]}, hidden_size=24))
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"latency.json' is not a table of latencies \(.*\); measure it again"):
        load_latency(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
        ({"sequence_length": 10_000}, "`sequence_length` is 10000, the model has [0-9]+ positions"),
    ],
)
def test_what_cannot_be_measured(options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(make(WIDTHS), **options)
