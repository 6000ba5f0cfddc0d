# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/text-classification/run_glue_sharcs.py, from its flags to what it writes."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from test_distributed_mos import torchrun
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import trainers.model_cards
import trainers.width_predictions
from modeling_sharcs import SharcsForSequenceClassification
from script_utils import (
    NARROW,
    TRAINING,
    contents,
    make_tokenizer,
    read_json,
    read_table,
    save_backbone,
    saved_weights,
    to_flags,
    write_table,
)
from sharcs_utils import warn_of_budgets
from synthetic_data import generate_classification
from testing_utils import table_of, tiny_sharcs, training_of
from training_utils import folders, largest_change


SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "text-classification" / "run_glue_sharcs.py"
CONFIGS = SCRIPT.parent / "configs"
SENTENCES = [(row["sentence"], ("bad", "good")[row["label"]]) for row in generate_classification(110, seed=1)]
ROBERTA_ORDER = ["contradiction", "neutral", "entailment"]


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("text-classification/run_glue_sharcs.py")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([sentence for sentence, _ in SENTENCES])


@pytest.fixture(scope="module")
def backbone(tokenizer, tmp_path_factory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("models") / "bert", tokenizer)


@pytest.fixture(scope="module")
def settings(backbone, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("data")
    header = ["sentence", "label"]
    return {
        **NARROW,
        **TRAINING,
        "model_name_or_path": str(backbone),
        "train_file": write_table(folder / "train.csv", header, SENTENCES[:60]),
        "validation_file": write_table(folder / "validation.tsv", header, SENTENCES[60:95]),
        "cache_dir": str(folder / "cache"),
        "max_seq_length": 32,
        "curve_points": 7,
    }


@pytest.fixture(scope="module")
def finished(script, settings, tmp_path_factory) -> tuple[Path, dict]:
    """A run with all that it may write: its folder and the metrics that it returned."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    test_file = write_table(folder.parent / "test.tsv", ["sentence"], [(text,) for text, _ in SENTENCES[95:]])
    options = {
        "calibration_split_percentage": 30,
        "compute_budgets": [0.95, 0.8, 0.05],
        "compute_budget": 0.8,
        "save_predictions": True,
        "do_predict": True,
        "test_file": test_file,
        "output_dir": str(folder),
    }
    return folder, script.main(to_flags({**settings, **options}))


@pytest.fixture
def run(script, settings, tmp_path, monkeypatch):
    """Runs the script in this process, without plots, with settings that keyword arguments replace; gives metrics."""
    monkeypatch.setattr(trainers.width_predictions, "is_matplotlib_available", lambda: False)
    monkeypatch.setattr(trainers.model_cards, "is_matplotlib_available", lambda: False)

    def call(**options):
        return script.main(to_flags({**settings, "output_dir": str(tmp_path / "out"), **options}))

    return call


# ---- classification -------------------------------------------------------------------------------------------------


def test_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.count("Trains a sample-routed encoder (SHARCS) on a GLUE task or own files") == 1
    for flag in ("--width_multipliers", "--hardness_intervals", "--task_name", "--compute_budget", "--evaluate_only"):
        assert flag in text


def test_a_routed_encoder_is_trained_and_saved(finished):
    folder, metrics = finished
    names = {entry.name for entry in folder.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "trainer_state.json",
        "training.png",
        "train_results.json",
        "eval_results.json",
        "curve",
        "predictions.safetensors",
        "predictions.tsv",
        "predictions_test.tsv",
        "README.md",
    }
    assert folders(folder) == ["checkpoint-12", "checkpoint-18", "checkpoint-6", "curve"]
    assert not [name for name in names if name.endswith((".partial", ".unfinished"))]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model) is SharcsForSequenceClassification
    assert model.config.width_multipliers == [0.25, 1.0] and model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.calibration["rows"] == 18
    history = read_json(folder / "trainer_state.json")["log_history"]
    assert any("width_0.25_loss" in entry for entry in history) and any("router_loss" in entry for entry in history)
    card = ModelCard.load(folder / "README.md")
    assert "](curve/compute_curve.png)" in card.text and training_of(card)["hardness_window"] == "1"
    assert table_of(card, "spent")  # the budgets in reach
    saved = read_json(folder / "eval_results.json")
    assert saved == {name: value for name, value in metrics.items() if name in saved} == metrics
    assert metrics["eval_samples"] == 35
    assert metrics["eval_rows_at_0.25"] + metrics["eval_rows_at_1"] == pytest.approx(1)


def test_budgets(finished):
    folder, metrics = finished
    assert metrics["eval_budgets_out_of_reach"] == [0.05]
    assert not any(name.startswith("eval_budget_0.05") for name in metrics)
    assert all(isinstance(value, (int, float)) for name, value in metrics.items() if "out_of_reach" not in name)
    # Calibrated on eighteen other rows, budgets are met roughly.
    assert metrics["eval_budget_0.8_flops_share"] == pytest.approx(0.8, abs=0.15)
    assert metrics["eval_budget_0.8_flops_share"] < metrics["eval_budget_0.95_flops_share"] <= 1.001
    # The model is evaluated at the budget that it is saved with.
    for name in ("flops_share", "accuracy", "loss"):
        assert metrics[f"eval_budget_0.8_{name}"] == metrics[f"eval_{name}"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    price = model.config.router_price
    assert price not in (None, 0.0) and price == model.set_compute_budget(0.8)


def test_the_curve(finished):
    folder, metrics = finished
    points = read_json(folder / "curve" / "compute_curve.json")
    rows = read_table(folder / "curve" / "compute_curve.csv")
    assert 2 < len(points) == len(rows) <= 7
    for point, row in zip(points, rows, strict=True):
        assert sum(point.pop("rows_per_width")) == pytest.approx(1)
        assert {name: float(value) for name, value in row.items()} == point
    shares = [point["flops_share"] for point in points]
    assert shares == sorted(shares) and len(set(shares)) == len(shares)
    assert [point["price"] for point in points] == sorted((point["price"] for point in points), reverse=True)
    # Its ends are the widths alone.
    for point, width in ((points[0], "0.25"), (points[-1], "1")):
        for name in ("accuracy", "flops_share"):
            assert point[name] == pytest.approx(metrics[f"eval_width_{width}_{name}"])
    assert (folder / "curve" / "compute_curve.png").read_bytes().startswith(b"\x89PNG")


@torch.no_grad()
def test_predictions_are_those_of_routed_inference(finished):
    folder, metrics = finished
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = read_table(folder / "predictions.tsv")
    assert [(row["sentence1"], row["label"]) for row in rows] == SENTENCES[60:95]
    for row in rows:
        inputs = tokenizer(row["sentence1"], truncation=True, max_length=32, return_tensors="pt")
        outputs = model(**inputs)
        assert float(row["width"]) == model.config.width_multipliers[outputs.width_indices[0]]
        assert row["prediction"] == model.config.id2label[int(outputs.logits.argmax())]
    assert {row["width"] for row in rows} == {"0.25", "1"}
    right = [row["prediction"] == row["label"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(metrics["eval_accuracy"])


def test_the_logits_of_every_budget_and_width(finished):
    folder, metrics = finished
    with safe_open(folder / "predictions.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["label_names"]) == ["bad", "good"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    # What is out of reach is left out.
    names = {"", "budget_0.95_", "budget_0.8_", "width_0.25_", "width_1_"}
    expected = {f"{name[:-1]}.{kind}" if name else kind for name in names for kind in ("logits", "flops_share")}
    assert tensors.keys() == expected | {"labels"}
    labels = tensors["labels"]
    assert [("bad", "good")[label] for label in labels] == [label for _, label in SENTENCES[60:95]]
    for name in names:
        prefix = f"{name[:-1]}." if name else ""
        right = tensors[f"{prefix}logits"].argmax(dim=-1) == labels
        assert right.double().mean().item() == pytest.approx(metrics[f"eval_{name}accuracy"])
        assert tensors[f"{prefix}flops_share"].tolist() == [metrics[f"eval_{name}flops_share"]]
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer, texts = AutoTokenizer.from_pretrained(folder), [text for text, _ in SENTENCES[60:95]]
        inputs = tokenizer(texts, truncation=True, max_length=32, padding=True)
        for width in (0.25, 1.0):
            logits = model(**inputs.convert_to_tensors("pt"), width=width).logits
            torch.testing.assert_close(tensors[f"width_{width:g}.logits"], logits, atol=1e-4, rtol=1e-4)


def test_the_saved_folder_in_a_pipeline(finished):
    folder, _ = finished
    classify = pipeline("text-classification", model=str(folder), device="cpu", batch_size=3)
    for name, texts in (("predictions", SENTENCES[60:95]), ("predictions_test", SENTENCES[95:])):
        found = classify([text for text, _ in texts], truncation=True, max_length=32)
        rows = read_table(folder / f"{name}.tsv")
        assert [row["prediction"] for row in rows] == [answer["label"] for answer in found]
    assert [row["index"] for row in rows] == [str(index) for index in range(15)]


def test_a_finished_run_given_again_changes_nothing(script, settings, run, tmp_path):
    first = run(save_predictions=True)
    before, weights = contents(tmp_path / "out"), saved_weights(tmp_path / "out")
    trained = read_json(tmp_path / "out" / "train_results.json")
    assert "model.safetensors" in before and "predictions.tsv" in before
    assert run(save_predictions=True) == first
    assert contents(tmp_path / "out") == before
    assert read_json(tmp_path / "out" / "train_results.json") == trained
    # With another budget only that is new.
    price = read_json(tmp_path / "out" / "config.json")["router_price"]
    run(compute_budget=0.9)
    assert largest_change(saved_weights(tmp_path / "out"), weights) == 0
    assert read_json(tmp_path / "out" / "config.json")["router_price"] != price == 0.0


def test_without_a_calibration_split(run, tmp_path, caplog):
    metrics = run(compute_budgets=[0.9])
    assert "Prices are calibrated on training rows" in caplog.text
    config = read_json(tmp_path / "out" / "config.json")
    assert config["calibration"]["rows"] == 60 and config["router_price"] == 0.0
    assert metrics["eval_budget_0.9_flops_share"] < 1


def test_without_validation_rows(run, tmp_path):
    assert run(validation_file=None, num_train_epochs=2) == {}
    assert read_json(tmp_path / "out" / "config.json")["calibration"]["rows"] == 60


def test_three_widths_as_fractions(run, tmp_path):
    metrics = run(width_multipliers=["1/4", "1/2", "1"], entry="pooling", norm_start="scratch", router_pooling="all")
    assert {"eval_width_0.25_accuracy", "eval_width_0.5_accuracy", "eval_width_1_accuracy"} <= metrics.keys()
    config = read_json(tmp_path / "out" / "config.json")
    assert config["width_multipliers"] == [0.25, 0.5, 1.0]
    assert config["entry"] == "pooling" and config["router_pooling"] == "all"


# ---- other tasks ----------------------------------------------------------------------------------------------------


def test_regression(run, tmp_path):
    generator = random.Random(0)
    rows = [(text, f"{(label == 'good') * 3 + generator.random():.3f}") for text, label in SENTENCES]
    files = {
        name: write_table(tmp_path / f"{name}.csv", ["text", "score"], part)
        for name, part in (("train", rows[:60]), ("validation", rows[60:90]), ("test", rows[90:]))
    }
    metrics = run(
        **{f"{name}_file": path for name, path in files.items()},
        label_column="score",
        hardness_intervals=0.3,
        save_predictions=True,
        do_predict=True,
    )
    assert {"eval_pearson", "eval_spearmanr", "eval_width_0.25_pearson"} <= metrics.keys()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for name, part in (("predictions", rows[60:90]), ("predictions_test", rows[90:])):
        written = read_table(tmp_path / "out" / f"{name}.tsv")
        with torch.no_grad():
            inputs = tokenizer([text for text, _ in part], truncation=True, max_length=32, padding=True)
            expected = model(**inputs.convert_to_tensors("pt")).logits[:, 0]
        found = torch.tensor([float(row["prediction"]) for row in written])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        if name == "predictions":
            assert [float(row["label"]) for row in written] == pytest.approx([float(score) for _, score in part])


def mnli_folder(folder: Path) -> Path:
    """The classic layout, with both validation and both test files."""
    header = "index promptID pairID genre p1 p2 p3 p4 sentence1 sentence2 label1 gold_label".split()
    names = ["entailment", "neutral", "contradiction"]
    texts = [text for text, _ in SENTENCES]

    def rows(start: int, count: int) -> list[tuple]:
        pairs = itertools.islice(zip(texts, texts[7:], strict=False), start, start + count)
        return [
            (index, *"abcdefg", one, two, "x", names[(index + start) % 3]) for index, (one, two) in enumerate(pairs)
        ]

    write_table(folder / "MNLI" / "train.tsv", header, rows(0, 36))
    for name, start in (("matched", 40), ("mismatched", 60)):
        write_table(folder / "MNLI" / f"dev_{name}.tsv", header, rows(start, 12))
        write_table(folder / "MNLI" / f"test_{name}.tsv", header[:-2], [row[:-2] for row in rows(start + 12, 5)])
    return folder


def test_mnli_with_the_label_order_of_a_roberta(run, tokenizer, tmp_path, caplog):
    labels = dict(enumerate(ROBERTA_ORDER))
    folder = save_backbone(
        tmp_path / "roberta",
        tokenizer,
        "roberta",
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )
    metrics = run(
        model_name_or_path=str(folder),
        train_file=None,
        validation_file=None,
        task_name="mnli",
        data_dir=str(mnli_folder(tmp_path / "glue")),
        # Two texts are longer than the 39 tokens that the model takes: 40 positions, one of them for padding.
        max_seq_length=64,
        save_predictions=True,
        do_predict=True,
        hardness_intervals=0.3,
    )
    assert "max_seq_length=64 is more than the model takes: 39" in caplog.text
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert [model.config.id2label[index] for index in range(3)] == ROBERTA_ORDER
    # What the head had learnt stays with its label: the widest path began as the backbone.
    started = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.classifier.out_proj.bias - started.classifier.out_proj.bias).abs().max() < 0.2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for suffix, number in (("", 40), ("_mm", 60)):
        rows = read_table(tmp_path / "out" / f"predictions{suffix}.tsv")
        right = [row["prediction"] == row["label"] for row in rows]
        assert sum(right) / len(right) == pytest.approx(metrics[f"eval_accuracy{suffix}"])
        names = ["entailment", "neutral", "contradiction"]
        assert [row["label"] for row in rows] == [names[(index + number) % 3] for index in range(12)]
        assert (tmp_path / "out" / f"curve{suffix}" / "compute_curve.json").is_file()
        submission = read_table(tmp_path / "out" / f"MNLI-{'mm' if suffix else 'm'}.tsv")
        assert [row["index"] for row in submission] == list("01234")
        for index, row in enumerate(submission):
            pair = [SENTENCES[number + 12 + index + offset][0] for offset in (0, 7)]
            with torch.no_grad():
                inputs = tokenizer(*pair, truncation=True, max_length=39, return_tensors="pt")
                logits = model(**inputs).logits
            assert row["prediction"] == ROBERTA_ORDER[int(logits.argmax())]


# ---- continuing, evaluating, teachers -------------------------------------------------------------------------------


def test_a_stopped_run_goes_on(script, run, finished, tmp_path, monkeypatch):
    whole = run(output_dir=str(tmp_path / "whole"))
    steps = []
    original = script.SharcsTrainer.training_step

    def stopped(*args, **kwargs):
        steps.append(1)
        if len(steps) == 20:  # in the third epoch
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(script.SharcsTrainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert folders(tmp_path / "out") == ["checkpoint-16", "checkpoint-8"]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert run() == whole
    assert len(steps) == 28
    assert largest_change(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "whole")) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width_multipliers": [0.5, 1.0]}, r"its width_multipliers is \[0.25, 1.0\], this run's is \[0.5, 1.0\]"),
        ({"router_layer": 2}, "its router_layer is 1, this run's is 2"),
        ({"train_file": "words.csv", "validation_file": None}, "its id2label is"),
    ],
)
def test_the_checkpoint_of_another_run(run, finished, tmp_path, options, message):
    write_table(tmp_path / "words.csv", ["sentence", "label"], [(text, label + "!") for text, label in SENTENCES[:60]])
    if "train_file" in options:
        options = {**options, "train_file": str(tmp_path / "words.csv")}
    shutil.copytree(finished[0], tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=f"checkpoint-18' of another run: {message}"):
        run(**options)
    assert contents(tmp_path / "out") == before


def test_evaluation_only(run, finished, backbone, tmp_path):
    folder, expected = finished
    options = {"model_name_or_path": str(folder), "evaluate_only": True, "train_file": None}
    options["compute_budgets"] = [0.95, 0.8, 0.05]
    before = contents(folder)
    metrics = run(**options)
    assert metrics.pop("eval_budgets_out_of_reach") == expected["eval_budgets_out_of_reach"]
    assert metrics == pytest.approx({name: expected[name] for name in metrics}) and len(metrics) == len(expected) - 1
    assert contents(folder) == before
    assert not (tmp_path / "out" / "train_results.json").exists()
    # It keeps its price until another one is asked for.
    again = run(**options, compute_budget=0.95)
    assert again["eval_flops_share"] == pytest.approx(expected["eval_budget_0.95_flops_share"])
    with pytest.raises(ValueError, match="--evaluate_only measures a SHARCS model, .* is a 'bert' model"):
        run(evaluate_only=True)
    with pytest.raises(
        ValueError, match=r"--width_multipliers is for backbones: .* has \[0.25, 1.0\], not \[0.5, 1.0"
    ):
        run(**{**options, "width_multipliers": [0.5, 1.0]})


def test_a_routed_encoder_is_trained_further(run, finished, tmp_path):
    labels = ["awful", "dull", "fine"]
    rows = [(text, labels[index % 3]) for index, (text, _) in enumerate(SENTENCES[:48])]
    run(
        model_name_or_path=str(finished[0]),
        train_file=write_table(tmp_path / "three.csv", ["sentence", "label"], rows),
        validation_file=None,
        hardness_intervals=0.35,
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert list(model.config.id2label.values()) == labels and model.classifier.out_proj.out_features == 3
    assert model.config.router_price == 0.0  # the old price belonged to the router as it was
    assert model.config.calibration["rows"] == 48


def test_a_teacher(run, tokenizer, tmp_path):
    orders = {"teacher": ["bad", "good"], "other": ["good", "bad"]}
    for name, order in orders.items():
        save_backbone(
            tmp_path / name,
            tokenizer,
            num_hidden_layers=4,
            id2label=dict(enumerate(order)),
            label2id={label: index for index, label in enumerate(order)},
        )
    options = {"teacher_name_or_path": str(tmp_path / "teacher"), "num_train_epochs": 2}
    run(**options, distillation_weight=1.0)
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert "width_1_distillation" in history[0]
    with pytest.raises(ValueError, match="A teacher is given but `distillation_weight` is 0"):
        run(**options)
    with pytest.raises(
        ValueError, match=r"The teacher's labels are \['good', 'bad'\], the student's \['bad', 'good'\]"
    ):
        run(**{**options, "teacher_name_or_path": str(tmp_path / "other")}, distillation_weight=1.0)
    save_backbone(tmp_path / "pre-trained", tokenizer, head="masked-lm", num_hidden_layers=4)
    with pytest.raises(ValueError, match="pre-trained' has no trained bert.pooler.*: fine-tune it on the task first"):
        run(**{**options, "teacher_name_or_path": str(tmp_path / "pre-trained")}, distillation_weight=1.0)


# ---- messages -------------------------------------------------------------------------------------------------------


def test_a_budget_out_of_reach_is_named_before_training(caplog):
    model = tiny_sharcs()
    lowest = model.path_flops(128, 0, routed=True) / model.path_flops(128, 2, routed=False)
    shares = [lowest - 0.01, lowest + 0.01]
    warn_of_budgets(model, shares)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and f"budget of {shares[0]:g} will be out of reach" in record.message


def test_a_budget_out_of_reach_does_not_lose_the_model(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"budget of 0.1 of full FLOPs is out of reach: this model can spend 0\.\d+ to"
    ):
        run(compute_budget=0.1)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.router_price == 0.0 and model.config.calibration is not None
    weights = saved_weights(tmp_path / "out")
    metrics = run(compute_budget=0.9)
    assert metrics["eval_flops_share"] < 1
    assert largest_change(saved_weights(tmp_path / "out"), weights) == 0


@pytest.mark.parametrize(
    "name, text, options, message",
    [
        ("empty.csv", "", {}, "is empty"),
        ("header.csv", "sentence,label\n", {}, "holds no rows"),
        ("unlabelled.csv", "sentence\nA cat\n", {}, "There is no column 'label' with labels in the file"),
        ("blank.csv", "sentence,label\nA cat,\nA dog,good\n", {}, "There is no label in the column 'label' in line 2"),
        (
            "gap.yaml",
            "buckets:\n  confidence_threshs:\n    0.25: [0.6, 1.0]\n    1.0: [0.0, 0.4]\n",
            {},
            r"0\.4.*0\.6",
        ),
        (None, None, {"hardness_window": 3}, "hardness_window=3 needs more than 3 epochs, the run has 3"),
        (None, None, {"train_file": "nowhere.csv"}, "'nowhere.csv' does not exist"),
        (None, None, {"train_file": None}, "no rows to train on; give train_file, or add --evaluate_only"),
        (None, None, {"do_predict": True}, "no rows to predict; give test_file"),
        (None, None, {"curve_points": 1}, "--curve_points must be at least 2, got 1"),
        (None, None, {"width_multipliers": ["1/0", "1"]}, "--width_multipliers takes numbers such as 0.25 or 1/3"),
        (None, None, {"width_multipliers": ["1.0"]}, r"has the widths \[1.0\] and so no router"),
        (None, None, {"task_name": "sst", "train_file": None}, "'sst' is no GLUE task; did you mean 'sst2'"),
    ],
)
def test_messages(run, finished, tmp_path, name, text, options, message):
    if name is not None:
        (tmp_path / name).write_text(text)
        option = "train_file" if name.endswith(".csv") else "hardness_intervals"
        options = {**options, option: str(tmp_path / name)}
    shutil.copytree(finished[0], tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError if "nowhere" not in message and "exist" not in message else OSError, match=message):
        run(**options)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_name_or_path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"router_layer": 9}, "router_layer=9 is outside the network of 3 layers: use 1 to 2"),
        ({"width_multipliers": ["1/3", "1"]}, "The width multiplier 0.3333333333333333 does not give whole heads"),
    ],
)
def test_what_other_libraries_raise_is_a_sentence_too(script, monkeypatch, settings, tmp_path, options, message):
    flags = to_flags({**settings, "output_dir": str(tmp_path / "out"), **options})
    monkeypatch.setattr("sys.argv", ["run_glue_sharcs.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        script.run_script(script.main)
    assert stopped.value.code.startswith("run_glue_sharcs.py: ") and message in stopped.value.code
    assert not (tmp_path / "out").exists()


# ---- argument files -------------------------------------------------------------------------------------------------


def test_there_is_a_recipe_for_every_task(script):
    tasks = {path.stem.removeprefix("sharcs_") for path in CONFIGS.glob("sharcs_*.yaml")}
    assert tasks == set(script.DataArguments.__init__.__globals__["TASKS"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sharcs_*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_the_published_one(script, path, tmp_path):
    types = (script.ModelArguments, script.SharcsOptions, script.DataArguments, script.SharcsTrainingArguments)
    flags = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    parts = script.parse_arguments(types, [str(path), *flags])
    model, options, data, training = parts
    for name, value in yaml.safe_load(path.read_text()).items():
        if name != "output_dir":
            found = getattr(next(part for part in parts if hasattr(part, name)), name)
            found = "none" if found == [] else getattr(found, "value", found)
            assert found == value or str(found) == str(value), name
    assert model.model_name_or_path == "FacebookAI/roberta-base" and model.dropout is None
    assert data.task_name == path.stem.removeprefix("sharcs_") and data.max_seq_length == 128
    assert data.calibration_split_percentage > 0
    assert (options.width_multipliers, options.router_layer, options.router_hidden_size) == ([0.25, 1.0], 3, 1024)
    assert options.entry == "slice"
    assert (training.hardness_window, training.hardness_signal, training.hardness_source) == (
        3,
        "confidence",
        "training",
    )
    assert training.hardness_intervals == ("0.6" if data.task_name == "stsb" else "0.2")
    assert training.repeat_smaller_buckets and not training.train_every_width
    assert (training.task_loss_weight, training.router_loss_weight, training.distillation_weight) == (1, 1, 0)
    assert (training.num_train_epochs, training.learning_rate, training.per_device_train_batch_size) == (10, 2e-5, 32)
    assert (training.warmup_steps, training.weight_decay, training.seed) == (0.06, 0.0, 42)
    assert training.get_warmup_steps(1000) == 60
    assert training.metric_for_best_model == data.task.main_metric and training.greater_is_better


def test_an_argument_file(script, run, settings, tmp_path):
    path = tmp_path / "arguments.yaml"
    path.write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "wrong"), "num_train_epochs": 2}))
    metrics = script.main([str(path), "--output_dir", str(tmp_path / "right")])
    assert not (tmp_path / "wrong").exists()
    assert metrics == run(num_train_epochs=2)
    path.write_text(json.dumps({**settings, "ruoter_layer": 2}))
    with pytest.raises(ValueError, match="Unknown key 'ruoter_layer' .*did you mean 'router_layer'"):
        script.main([str(path), "--output_dir", str(tmp_path / "right")])


# ---- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_processes_measure_what_one_measures(run, settings, tmp_path):
    options = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "calibration_split_percentage": 25,
        "compute_budget": 0.8,
        "save_predictions": True,
        "do_predict": True,
        "test_file": write_table(tmp_path / "test.tsv", ["sentence"], [(text,) for text, _ in SENTENCES[95:]]),
    }
    alone = run(**options)
    output = tmp_path / "together"
    together = {**settings, **options, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3}
    torchrun(str(SCRIPT), *to_flags({**together, "output_dir": str(output)}))
    found = read_json(output / "eval_results.json")
    assert found.pop("eval_budgets_out_of_reach") == alone.pop("eval_budgets_out_of_reach")
    assert found == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert largest_change(saved_weights(output), saved_weights(tmp_path / "out")) < 1e-5
    for name in ("predictions", "predictions_test"):
        assert read_table(output / f"{name}.tsv") == read_table(tmp_path / "out" / f"{name}.tsv")
