# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/quickstart.py and examples/quickstart_sharcs.py, with less to do."""

import collections
import contextlib
import io
import json
import logging
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from modeling_mos import MosSubnetForMaskedLM
from modeling_sharcs import SharcsForSequenceClassification


SETTINGS = ["--num_documents", "40", "--max_steps", "4", "--num_candidates", "2"]


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("quickstart.py")


@pytest.fixture(scope="module")
def story(script, tmp_path_factory):
    """One run: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, script.main([*SETTINGS, "--output_dir", str(folder)])


def test_outputs(story):
    folder, result = story
    for name in ("text.txt", "data/dataset_dict.json", "data/tokenizer/tokenizer.json", "subnet/config.json"):
        assert (folder / name).is_file(), name
    assert result["difference"] < 1e-4
    assert len(result["rows"]) == 4
    assert {row["name"] for row in result["rows"]} == {"largest", "smallest", "candidate 1", "candidate 2"}
    for row in result["rows"]:
        assert row["perplexity"] > 1 and row["parameters"] > 0 and row["flops"] > 0


def test_the_best_one_inside_the_limit_is_taken_out(story):
    folder, result = story
    rows = {row["name"]: row for row in result["rows"]}
    limit = int(0.6 * rows["largest"]["parameters"])
    inside = [row for row in result["rows"] if row["parameters"] <= limit]
    assert len(inside) == 3
    best = rows[result["best"]]
    assert best["perplexity"] == min(row["perplexity"] for row in inside)
    for name in ("candidate 1", "candidate 2"):
        assert int(0.85 * limit) <= rows[name]["parameters"] <= limit


def test_the_subnet_is_an_ordinary_model(story):
    folder, result = story
    model = AutoModelForMaskedLM.from_pretrained(folder / "subnet").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "subnet")
    assert type(model) is MosSubnetForMaskedLM
    best = next(row for row in result["rows"] if row["name"] == result["best"])
    assert model.num_parameters() == best["parameters"]
    assert tuple(model.config.hidden_sizes) == best["architecture"].hidden_sizes
    with torch.no_grad():
        logits = model(**tokenizer("the old [MASK]", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer) and logits.isfinite().all()


def test_plot(story):
    pytest.importorskip("matplotlib")
    assert (story[0] / "subnets.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_there_is_a_warning_and_no_plot(script, story, tmp_path, monkeypatch, caplog):
    folder, result = story
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what makes `import matplotlib` fail
    with caplog.at_level(logging.WARNING):
        script.plot(result["rows"], result["best"], 10.0, tmp_path / "subnets.png")
    assert not (tmp_path / "subnets.png").exists()
    assert "matplotlib is not installed, so there is no plot" in caplog.text


def test_without_matplotlib_the_summary_promises_no_plot(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    script.main([*SETTINGS, "--output_dir", str(tmp_path)])
    assert not (tmp_path / "subnets.png").exists()
    summary = capsys.readouterr().out.partition("== Summary")[2]
    assert "difference of a logit" in summary and "subnets.png" not in summary


def test_misspelt_option(script):
    with pytest.raises(ValueError, match=r"'--max_step'.* did you mean '--max_steps'"):
        script.main(["--max_step", "4"])


class MaskedRows(list):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_word_frequencies_are_what_is_to_be_beaten(script):
    """Two words in the training text, three to one; the masked positions hold one of each."""
    train = SimpleNamespace(vocab_size=2, dataset={"input_ids": [[0] * 299 + [1] * 99]})
    rows = [{"labels": np.array([0, -100])}, {"labels": np.array([-100, 1])}]
    trainer = SimpleNamespace(train_dataset=train, eval_dataset=MaskedRows(rows))
    expected = math.exp(-(math.log(0.75) + math.log(0.25)) / 2)
    assert script.word_frequency_perplexity(trainer) == pytest.approx(expected, rel=1e-4)


# ---- SHARCS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed_story(load_example, tmp_path_factory):
    """One run: its folder, what it returned and what it printed."""
    folder = tmp_path_factory.mktemp("sharcs")
    settings = ["--num_samples", "40", "--num_backbone_epochs", "1", "--num_epochs", "2", "--budgets", "0.7", "0.4"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = load_example("quickstart_sharcs.py").main([*settings, "--output_dir", str(folder)])
    return folder, result, printed.getvalue()


def test_budgets_are_kept(routed_story):
    _, result, printed = routed_story
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"width 0.125 alone", "budget 0.4", "budget 0.7", "width 1 alone"}
    shares = [row["flops_share"] for row in result["rows"]]
    assert shares == sorted(shares) and shares[0] < 0.4 < 1 < shares[-1]
    for budget in (0.4, 0.7):  # calibrated on other rows
        assert rows[f"budget {budget}"]["flops_share"] == pytest.approx(budget, abs=0.1)
    narrowest, widest = rows["width 0.125 alone"], rows["width 1 alone"]
    assert narrowest["easy_rows_wide"] == narrowest["hard_rows_wide"] == 0
    assert widest["easy_rows_wide"] == widest["hard_rows_wide"] == 1
    summary = printed.partition("== Summary")[2]
    for name, row in rows.items():
        assert any(
            line.split()[: len(name.split()) + 1] == [*name.split(), f"{row['flops_share']:.2f}"]
            for line in summary.splitlines()
        ), name


def test_the_routed_model_is_an_ordinary_one(routed_story):
    folder, _, printed = routed_story
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert type(model) is SharcsForSequenceClassification and model.config.router_price is not None
    spent = model.count_flops(18) / model.count_flops(18, width=1.0)  # at that price, by the calibration
    assert spent == pytest.approx(0.5, abs=0.1)
    with torch.no_grad():
        outputs = model(**tokenizer(["the film was dull"], return_tensors="pt"))
    assert outputs.logits.isfinite().all() and outputs.width_indices.shape == (1,)
    told = printed.partition("== 4.")[2].partition("==")[0].splitlines()[1:]
    answers = [line.split()[0] for line in told if line.strip()]
    assert len(answers) == 12 and set(answers) == {"easy:", "hard:"} and answers == sorted(answers)
    assert {line.split()[1] for line in told if line.strip()} <= {"good", "bad"}


def test_the_curve(routed_story):
    """From all rows narrow to all rows wide, which the table says too."""
    folder, result, _ = routed_story
    points = sorted(json.loads((folder / "compute_curve.json").read_text()), key=lambda point: point["flops_share"])
    rows = {row["name"]: row for row in result["rows"]}
    for point, name in ((points[0], "width 0.125 alone"), (points[-1], "width 1 alone")):
        for key in ("flops_share", "accuracy"):
            assert point[key] == pytest.approx(rows[name][key])


def test_who_takes_the_wide_path_is_told_by_difficulty(load_example):
    """Of three easy and two hard rows, one easy and both hard ones go wide."""
    trainer = SimpleNamespace(
        model=SimpleNamespace(calibrate=lambda batches: None, set_compute_budget=lambda budget: 0.0),
        eval_dataset={"difficulty": ["easy", "hard", "easy", "hard", "easy"]},
        get_eval_dataloader=lambda rows: rows,
        predict_widths=lambda: None,
        routing_metrics=lambda predictions: collections.defaultdict(float),
        chosen_widths=lambda predictions: torch.tensor([0, 2, 2, 2, 0]),
        widths=[0.125, 0.5, 1.0],
    )
    row = next(row for row in load_example("quickstart_sharcs.py").dial(trainer, [], [0.7]) if "budget" in row["name"])
    assert row["easy_rows_wide"] == pytest.approx(1 / 3) and row["hard_rows_wide"] == 1


@pytest.mark.parametrize("budget", ["--budgets=1.5", "--budgets=0.05", "--saved_budget=-1"])
def test_budgets_out_of_reach_are_refused_before_training(load_example, budget):
    with pytest.raises(ValueError, match=r"--(budgets|saved_budget) takes shares of full FLOPs from 0.3 .* to 1, got"):
        load_example("quickstart_sharcs.py").main([budget])


def test_one_epoch_is_too_few(load_example):
    with pytest.raises(ValueError, match="--num_epochs must be at least 2, got 1"):
        load_example("quickstart_sharcs.py").main(["--num_epochs", "1"])
