# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Budgets of latency: what `calibrate(measure_latency=True)` stores, with a clock that the tests wind themselves."""

import copy
import json

import pytest
import torch
from transformers.utils import logging

from modeling_sharcs import SharcsForSequenceClassification, calibration
from testing_utils import tiny_sharcs


def make_batches(config, count: int = 10, rows: int = 20) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        lengths = torch.randint(4, 14, (rows, 1), generator=generator)
        ids = torch.randint(5, config.vocab_size, (rows, 13), generator=generator)
        mask = (torch.arange(13) < lengths).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.zeros(rows).long()})
    return batches


class Clock:
    """Goes on only while a model runs: by what each of its rows costs, and a little for the call."""

    def __init__(self, model, costs: list[float], overhead: float = 0.05):
        self.now, self.costs, self.overhead = 0.0, costs, overhead
        self.calls = self.needed = 0
        model.base_model.register_forward_hook(self.tick)

    def tick(self, model, inputs, outputs) -> None:
        assert not model.training
        self.calls += 1
        widths = outputs.width_indices.tolist()
        self.now += self.overhead + sum(self.costs[width] for width in widths) / len(widths)

    def __call__(self) -> float:
        return self.now


def calibrate(costs=(0.3, 0.5, 1.0), head: str = "sequence-classification", as_given=list):
    """A model calibrated on batches, as they are given to it, with a clock that knows each width's costs."""
    model = tiny_sharcs(head)
    batches = make_batches(model.config)
    clock = Clock(model, list(costs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration.time, "perf_counter", clock)
        found = model.calibrate(as_given(batches), measure_latency=True)
    clock.needed = clock.calls
    assert found == model.config.calibration
    return model, batches, clock


@pytest.fixture(scope="module")
def measured():
    return calibrate()


def test_progress_is_shown(capsys):
    calibrate(as_given=iter)
    shown = capsys.readouterr().err
    assert "Recording router scores: " in shown and f"Measuring latency: 100%|{'█' * 10}| 6/6" in shown
    logging.disable_progress_bar()
    try:
        calibrate()
    finally:
        logging.enable_progress_bar()
    assert not capsys.readouterr().err


def shares_of_latency(model) -> list[float]:
    return [row["latency_share"] for row in sorted(model.config.calibration["table"], key=lambda row: row["share"])]


def test_the_table_gets_shares_of_latency(measured):
    model, _, clock = measured
    table = model.config.calibration["table"]
    shares = shares_of_latency(model)
    assert shares == sorted(shares) and len(shares) == len(table) > 50
    assert shares[0] == pytest.approx(0.35 / 1.05) and shares[-1] == pytest.approx(1)
    # Between the prices that were measured, too, it is what the clock says.
    for row in table[:: len(table) // 10]:
        taken = sum(cost * share for cost, share in zip((0.3, 0.5, 1.0), row["rows_per_width"], strict=True))
        assert row["latency_share"] == pytest.approx((taken + 0.05) / 1.05, abs=0.03)
    settings = model.config.calibration["latency"]
    assert settings == {
        "device": "cpu",
        "batch_size": 20,
        "batches": calibration.LATENCY_BATCHES,
        "rounds": calibration.LATENCY_ROUNDS,
        "threads": torch.get_num_threads(),
    }
    # All batches once for their scores; some, at some prices and at the widest, in all rounds and one that warms up.
    timed_calls = (calibration.LATENCY_POINTS + 1) * calibration.LATENCY_BATCHES * (calibration.LATENCY_ROUNDS + 1)
    assert clock.needed == 10 + timed_calls


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_budget_of_latency_is_kept(measured, part):
    model, batches, clock = measured
    shares = shares_of_latency(model)
    budget = shares[0] + part * (shares[-1] - shares[0])
    price = model.set_compute_budget(budget, unit="latency")
    assert price == model.config.router_price
    with torch.no_grad():
        begin = clock()
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        middle = clock()
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], width=1.0)
    assert (middle - begin) / (clock() - middle) == pytest.approx(budget, abs=0.05)
    # FLOPs and latency differ here: the narrow paths save less time than FLOPs.
    if part == 0.5:
        assert price != model.set_compute_budget(budget)


def test_it_is_saved_with_the_model(measured, tmp_path):
    model, _, _ = measured
    json.dumps(model.config.calibration)
    model.save_pretrained(tmp_path)
    loaded = SharcsForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.set_compute_budget(0.6, unit="latency") == model.set_compute_budget(0.6, "latency")


def test_batches_that_can_be_read_only_once(measured):
    model, _, _ = calibrate(as_given=iter)
    assert model.config.calibration == measured[0].config.calibration


@pytest.mark.parametrize("head", ["base", "question-answering"])
def test_few_batches_and_other_heads(head):
    model, _, clock = calibrate(head=head, as_given=lambda batches: batches[:1])
    assert model.config.calibration["latency"]["batches"] == 1
    assert clock.needed == 1 + (calibration.LATENCY_POINTS + 1) * (calibration.LATENCY_ROUNDS + 1)
    shares = shares_of_latency(model)
    assert shares == sorted(shares) and shares[0] < 0.5 < shares[-1]
    assert model.set_compute_budget(0.5, "latency") > model.set_compute_budget(0.9, "latency")


def test_noise_does_not_break_the_order():
    # Narrow paths that are slower: no price is faster than a dearer one in FLOPs.
    model, _, _ = calibrate(costs=(1.2, 0.4, 1.0), as_given=lambda batches: batches[:2])
    shares = shares_of_latency(model)
    assert shares == sorted(shares) and shares[0] == pytest.approx(1.25 / 1.05)
    with pytest.raises(
        ValueError, match=r"0.9 of full latency is out of reach: this model can spend 1\.190 to 1\.190"
    ):
        model.set_compute_budget(0.9, unit="latency")


def test_a_budget_of_all_latency_is_kept():
    """Unlike FLOPs: where routing makes the widest choice slower than the widest path, 1 means no slower than that."""
    model = tiny_sharcs()
    rows = [{"price": price, "share": 0.0, "latency_share": share} for price, share in ((0, 1.1), (1, 0.98), (2, 0.6))]
    model.config.calibration = {"table": rows}
    assert model.set_compute_budget(1.0, unit="latency") == 1
    assert model.set_compute_budget(1.1, unit="latency") == 0


def test_a_router_that_cannot_tell_rows_apart(monkeypatch):
    model = tiny_sharcs()
    torch.nn.init.zeros_(model.sharcs.router.output.weight)
    monkeypatch.setattr(calibration.time, "perf_counter", Clock(model, [0.3, 0.5, 1.0]))
    model.calibrate(make_batches(model.config, 1), measure_latency=True)
    shares = shares_of_latency(model)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (pytest.approx(0.35 / 1.05), pytest.approx(1))


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_is_restored(training):
    model = tiny_sharcs().train(training)
    model.calibrate(make_batches(model.config, 1), measure_latency=True)
    assert model.training is training
    assert model.config.router_price is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_max_batches():
    model = tiny_sharcs()
    model.calibrate(make_batches(model.config), max_batches=2, measure_latency=True)
    assert model.config.calibration["rows"] == 40
    assert model.config.calibration["latency"]["batches"] == 2


def test_messages(measured):
    model = tiny_sharcs()
    batches = make_batches(model.config, 2)
    model.calibrate(batches)
    assert "latency" not in model.config.calibration
    with pytest.raises(
        ValueError, match=r"measured no latency; run `model.calibrate\(dataloader, measure_latency=True"
    ):
        model.set_compute_budget(0.5, unit="latency")
    with pytest.raises(ValueError, match="A compute budget is in 'flops' or 'latency', not in 'seconds'"):
        model.set_compute_budget(0.5, unit="seconds")
    model = copy.deepcopy(measured[0])
    with pytest.raises(
        ValueError, match=r"0.2 of full latency is out of reach: this model can spend 0\.333 to 1\.000,"
    ):
        model.set_compute_budget(0.2, unit="latency")
    # Another calibration without it takes the old one's place.
    model.calibrate(batches)
    with pytest.raises(ValueError, match="measured no latency"):
        model.set_compute_budget(0.5, unit="latency")
