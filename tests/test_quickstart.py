# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/quickstart.py, with less to do."""

import logging
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from modeling_mos import MosSubnetForMaskedLM


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
