# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/text-classification/run_glue.py, from its flags to what it writes."""

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    pipeline,
)

import trainers.model_cards
from example_utils import pin_memory_for_accelerators, save_training_plot
from modeling_mos import MosSubnetForSequenceClassification
from script_utils import (
    contents,
    make_tokenizer,
    read_json,
    read_table,
    save_backbone,
    saved_weights,
    to_flags,
    write_table,
    write_task_folder,
)
from synthetic_data import generate_classification
from testing_utils import randomise_, table_of, tiny_sharcs, tiny_subnet_config, tiny_supernet
from training_utils import NO_DROPOUT, folders, largest_change


SENTENCES = [(row["sentence"], ("bad", "good")[row["label"]]) for row in generate_classification(90, seed=1)]
TEXTS = [text for text, _ in SENTENCES]
RTE_HEADER = ["index", "sentence1", "sentence2", "label"]
RTE_LABELS = ("entailment", "not_entailment")


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("text-classification/run_glue.py")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([sentence for sentence, _ in SENTENCES])


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory) -> Path:
    """A folder with a stock model, and a subnet, as `extract_subnet` would have given it, of the same tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    save_backbone(folder / "bert", tokenizer)
    config = tiny_subnet_config(vocab_size=len(tokenizer), **{**NO_DROPOUT, "num_labels": 2})
    randomise_(MosSubnetForSequenceClassification(config)).save_pretrained(folder / "subnet")
    tokenizer.save_pretrained(folder / "subnet")
    return folder


@pytest.fixture(scope="module")
def settings(models, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("data")
    header = ["sentence", "label"]
    return {
        "model_name_or_path": str(models / "bert"),
        "train_file": write_table(folder / "train.csv", header, SENTENCES[:50]),
        "validation_file": write_table(folder / "validation.tsv", header, SENTENCES[50:79]),
        "cache_dir": str(folder / "cache"),
        "max_seq_length": 32,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 0.002,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }


@pytest.fixture(scope="module")
def test_file(tmp_path_factory) -> str:
    return write_table(
        tmp_path_factory.mktemp("test") / "test.csv", ["sentence"], [(text,) for text, _ in SENTENCES[79:]]
    )


@pytest.fixture(scope="module")
def teacher(script, settings, test_file, tmp_path_factory) -> tuple[Path, dict]:
    """A teacher, trained by the script with all that it may write: its folder and its metrics."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    options = {"save_predictions": True, "do_predict": True, "test_file": test_file, "num_train_epochs": 4}
    return folder, script.main(to_flags({**settings, **options, "output_dir": str(folder)}))


@pytest.fixture
def run(script, settings, tmp_path, monkeypatch):
    """Runs the script, without figures, with settings that keyword arguments replace; gives metrics."""
    monkeypatch.setattr(trainers.model_cards, "is_matplotlib_available", lambda: False)

    def call(**options):
        return script.main(to_flags({**settings, "output_dir": str(tmp_path / "out"), **options}))

    return call


def logs_of(folder: Path) -> list[dict]:
    return [entry for entry in read_json(folder / "trainer_state.json")["log_history"] if "loss" in entry]


@torch.no_grad()
def logits_of(folder: Path, texts: list, length: int = 32) -> torch.Tensor:
    """What the model in a folder says about each text, or pair of texts, alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        inputs = tokenizer(*([text] if isinstance(text, str) else text), truncation=True, max_length=length)
        found.append(model(**inputs.convert_to_tensors("pt", prepend_batch_axis=True)).logits)
    return torch.cat(found)


# ---- without a teacher ----------------------------------------------------------------------------------------------


def test_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.count("Fine-tunes any encoder, MoS subnets included, on a GLUE task or own files") == 1
    for flag in ("--teacher_name_or_path", "--hidden_states_weight", "--num_hidden_layers", "--task_name"):
        assert flag in text


def test_a_model_is_trained_and_saved(teacher):
    folder, metrics = teacher
    names = {entry.name for entry in folder.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "trainer_state.json",
        "training.png",
        "train_results.json",
        "eval_results.json",
        "predictions.safetensors",
        "predictions_test.tsv",
        "README.md",
    }
    assert folders(folder) == ["checkpoint-14", "checkpoint-21", "checkpoint-28", "checkpoint-7"]
    assert not [name for name in names if name.endswith(".partial")]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model) is BertForSequenceClassification and model.config.id2label == {0: "bad", 1: "good"}
    assert read_json(folder / "eval_results.json") == metrics
    scores = {row["metric"]: row["value"] for row in table_of(ModelCard.load(folder / "README.md"), "metric")}
    assert scores["accuracy"] == f"{metrics['eval_accuracy']:.4f}"
    assert metrics.keys() == {"eval_loss", "eval_accuracy", "eval_samples"} and metrics["eval_samples"] == 29
    losses = [entry["loss"] for entry in logs_of(folder)]
    assert len(losses) == 28 and sum(losses[-7:]) < sum(losses[:7])


def test_memory_is_pinned_for_accelerators_only():
    arguments = SimpleNamespace(device=torch.device("cuda"), dataloader_pin_memory=True)
    pin_memory_for_accelerators(arguments)
    assert arguments.dataloader_pin_memory
    arguments.device = torch.device("cpu")
    pin_memory_for_accelerators(arguments)
    assert not arguments.dataloader_pin_memory


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without an accelerator")
@pytest.mark.filterwarnings("error:'pin_memory' argument")
def test_no_warning_of_pinned_memory_without_an_accelerator(run):
    run(use_cpu=None, num_train_epochs=1)


def test_predictions_agree_with_metrics(teacher):
    folder, metrics = teacher
    tensors = load_file(folder / "predictions.safetensors")
    torch.testing.assert_close(
        tensors["logits"], logits_of(folder, [text for text, _ in SENTENCES[50:79]]), atol=1e-5, rtol=1e-4
    )
    assert [("bad", "good")[label] for label in tensors["labels"].tolist()] == [label for _, label in SENTENCES[50:79]]
    right = tensors["logits"].argmax(-1) == tensors["labels"]
    assert metrics["eval_accuracy"] == pytest.approx(right.double().mean().item())
    classify = pipeline("text-classification", model=str(folder), device="cpu", batch_size=3)
    expected = classify([text for text, _ in SENTENCES[79:]], truncation=True, max_length=32)
    rows = read_table(folder / "predictions_test.tsv")
    assert [row["prediction"] for row in rows] == [answer["label"] for answer in expected]
    assert [row["index"] for row in rows] == [str(index) for index in range(11)]


def test_regression(run, teacher, tmp_path):
    generator = random.Random(0)
    rows = [(text, f"{(label == 'good') * 3 + generator.random():.3f}") for text, label in SENTENCES]
    files = {
        f"{name}_file": write_table(tmp_path / f"{name}.csv", ["text", "score"], part)
        for name, part in (("train", rows[:50]), ("validation", rows[50:79]), ("test", rows[79:]))
    }
    options = {**files, "label_column": "score", "save_predictions": True, "do_predict": True}
    metrics = run(**options)
    assert {"eval_loss", "eval_pearson", "eval_spearmanr", "eval_samples"} <= metrics.keys()
    out = tmp_path / "out"
    config = read_json(out / "config.json")
    assert config["problem_type"] == "regression"
    tensors = load_file(out / "predictions.safetensors")
    pearson = np.corrcoef(tensors["logits"][:, 0], tensors["labels"])[0, 1]
    assert metrics["eval_pearson"] == pytest.approx(pearson, abs=1e-5)
    written = [float(row["prediction"]) for row in read_table(out / "predictions_test.tsv")]
    assert written == pytest.approx(logits_of(out, [text for text, _ in rows[79:]])[:, 0].tolist(), abs=1e-3)
    # A student of it; a classifier is no teacher for numbers.
    student = {"num_hidden_layers": 1, "output_dir": str(tmp_path / "student")}
    run(**options, **student, teacher_name_or_path=str(out), hidden_states_weight=1.0)
    assert {"hard_label_loss", "logits_loss", "hidden_states_loss"} <= logs_of(tmp_path / "student")[0].keys()
    with pytest.raises(ValueError, match="The teacher has 2 labels, the student 1"):
        run(**options, num_hidden_layers=1, teacher_name_or_path=str(teacher[0]))


def test_the_plot_of_a_training(tmp_path, monkeypatch):
    axes = pytest.importorskip("matplotlib.axes").Axes
    drawn, plot = {}, axes.plot

    def see(self, steps, values, label, **style):
        drawn[label] = list(zip(steps, values, strict=True))
        return plot(self, steps, values, label=label, **style)

    monkeypatch.setattr(axes, "plot", see)
    history = [
        {"loss": 2.0, "learning_rate": 0.1, "step": 1},
        {"eval_loss": 3.0, "eval_accuracy": 0.5, "step": 1},
        {"loss": 1.0, "step": 2},
        {"eval_loss": 2.5, "eval_largest_loss": 2.0, "step": 2},
        {"train_runtime": 3.0, "train_loss": 1.5, "step": 2},
    ]
    save_training_plot(history, tmp_path / "training.png")
    assert drawn == {
        "loss": [(1, 2.0), (2, 1.0)],
        "eval_loss": [(1, 3.0), (2, 2.5)],
        "eval_largest_loss": [(2, 2.0)],
    }
    assert list(drawn)[0] == "loss" and [file.name for file in tmp_path.iterdir()] == ["training.png"]
    save_training_plot(history[-1:], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_no_plot_without_matplotlib(run, tmp_path, monkeypatch):
    monkeypatch.setattr("example_utils.is_matplotlib_available", lambda: False)
    run(num_train_epochs=1)
    assert (tmp_path / "out" / "README.md").exists() and not (tmp_path / "out" / "training.png").exists()


# ---- with a teacher -------------------------------------------------------------------------------------------------


def test_a_subnet_learns_from_a_teacher(run, models, teacher, tmp_path):
    options = {"model_name_or_path": str(models / "subnet"), "teacher_name_or_path": str(teacher[0])}
    before = contents(teacher[0])
    metrics = run(**options, hidden_states_weight=1.0, distillation_temperature=2.0)
    assert contents(teacher[0]) == before
    out = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model) is MosSubnetForSequenceClassification and model.config.hidden_sizes == [16, 48, 36]
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert not [name for name in saved_weights(out) if "distillation" in name]
    first = logs_of(out)[0]
    assert first["loss"] == pytest.approx(
        0.5 * first["hard_label_loss"] + 0.5 * first["logits_loss"] + first["hidden_states_loss"], rel=1e-4
    )
    assert read_json(out / "eval_results.json") == metrics
    classify = pipeline("text-classification", model=str(out), device="cpu")
    found = classify([text for text, _ in SENTENCES[50:79]], truncation=True, max_length=32)
    right = [answer["label"] == label for answer, (_, label) in zip(found, SENTENCES[50:79], strict=True)]
    assert metrics["eval_accuracy"] == pytest.approx(sum(right) / len(right))


def test_a_stock_model_of_fewer_layers(run, teacher, tmp_path):
    run(
        model_name_or_path=str(teacher[0]),
        teacher_name_or_path=str(teacher[0]),
        num_hidden_layers=2,
        attn_implementation="eager",
        attentions_weight=1.0,
        dropout=0.25,
        learning_rate=0.0,
    )
    out, weights = tmp_path / "out", saved_weights(teacher[0])
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model) is BertForSequenceClassification and model.config.num_hidden_layers == 2
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.25
    # It starts as the first layers and the head of what it is made of.
    own = saved_weights(out)
    assert {name for name in weights if name not in own} == {name for name in weights if ".layer.2." in name} != set()
    assert largest_change(own, {name: weights[name] for name in own}) == 0
    assert "attentions_loss" in logs_of(out)[0]


def test_dropout_of_a_distilbert(run, tokenizer, models, teacher, tmp_path):
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, n_layers=2, n_heads=2, hidden_dim=20, max_position_embeddings=40
    )
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "distilbert")
    DistilBertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=64).save_pretrained(tmp_path / "distilbert")
    options = {"model_name_or_path": str(tmp_path / "distilbert"), "num_train_epochs": 1, "dropout": 0.2}
    run(**options, teacher_name_or_path=str(teacher[0]), num_hidden_layers=1)
    config = read_json(tmp_path / "out" / "config.json")
    assert (config["dropout"], config["attention_dropout"], config["n_layers"]) == (0.2, 0.2, 1)
    # A BERT has read pairs with token types, which are not in what its student reads.
    with pytest.raises(ValueError, match="tells the texts of a pair apart by token types, which the student"):
        run(
            **options,
            teacher_name_or_path=str(models / "bert"),
            train_file=None,
            validation_file=None,
            task_name="rte",
            data_dir=str(rte_folder(tmp_path / "glue")),
        )


def rte_folder(folder: Path) -> Path:
    texts = [text for text, _ in SENTENCES]

    def rows(start: int, count: int) -> list[tuple]:
        return [(i, texts[start + i], texts[start + i + 9], RTE_LABELS[(i + start) % 2]) for i in range(count)]

    write_table(folder / "RTE" / "train.tsv", RTE_HEADER, rows(0, 30))
    write_table(folder / "RTE" / "dev.tsv", RTE_HEADER, rows(31, 13))
    write_table(folder / "RTE" / "test.tsv", RTE_HEADER[:-1], [row[:-1] for row in rows(50, 6)])
    return folder


def test_pairs_with_the_label_order_of_the_teacher(run, tokenizer, models, tmp_path, caplog):
    names = ["Not-Entailment", "Entailment"]  # neither the task's order nor its spelling
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    folder = save_backbone(tmp_path / "teacher", tokenizer, num_hidden_layers=2, **labels)
    metrics = run(
        model_name_or_path=str(models / "subnet"),
        teacher_name_or_path=str(folder),
        train_file=None,
        validation_file=None,
        task_name="rte",
        data_dir=str(rte_folder(tmp_path / "glue")),
        # Pairs are longer than the 40 tokens that the models take.
        max_seq_length=64,
        save_predictions=True,
        do_predict=True,
        learning_rate=0.0,
    )
    assert "max_seq_length=64 is more than the model takes: 40" in caplog.text
    out = tmp_path / "out"
    order = ["not_entailment", "entailment"]
    assert read_json(out / "config.json")["id2label"] == {"0": order[0], "1": order[1]}
    tensors = load_file(out / "predictions.safetensors")
    assert [order[label] for label in tensors["labels"].tolist()] == [RTE_LABELS[(i + 31) % 2] for i in range(13)]
    texts = [text for text, _ in SENTENCES]
    logits = logits_of(out, [(texts[31 + i], texts[40 + i]) for i in range(13)], 40)
    torch.testing.assert_close(tensors["logits"], logits, atol=1e-5, rtol=1e-4)
    assert metrics["eval_accuracy"] == pytest.approx((logits.argmax(-1) == tensors["labels"]).double().mean().item())
    submission = read_table(out / "RTE.tsv")
    logits = logits_of(out, [(texts[50 + i], texts[59 + i]) for i in range(6)], 40)
    assert [row["prediction"] for row in submission] == [order[index] for index in logits.argmax(-1).tolist()]
    # What the student is to learn are the teacher's outputs for the same labels.
    given = logits_of(folder, [(texts[i], texts[9 + i]) for i in range(30)], 40)
    own = logits_of(out, [(texts[i], texts[9 + i]) for i in range(30)], 40)
    expected = torch.nn.functional.cross_entropy(own, given.softmax(-1)).item()
    found = logs_of(out)[:4]
    rows = [8, 8, 8, 6]
    assert sum(n * entry["logits_loss"] for n, entry in zip(rows, found, strict=True)) / 30 == pytest.approx(
        expected, rel=1e-4
    )


# ---- every GLUE task, and a start from another one ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, metrics, predicted",
    [
        ("cola", {"matthews_correlation"}, {"CoLA.tsv": {"0", "1"}}),
        ("sst2", {"accuracy"}, {"SST-2.tsv": {"0", "1"}}),
        ("mrpc", {"accuracy", "f1", "combined_score"}, {"MRPC.tsv": {"0", "1"}}),
        ("stsb", {"pearson", "spearmanr", "combined_score"}, {"STS-B.tsv": None}),
        ("qqp", {"accuracy", "f1", "combined_score"}, {"QQP.tsv": {"0", "1"}}),
        (
            "mnli",
            {"accuracy", "accuracy_mm"},
            dict.fromkeys(("MNLI-m.tsv", "MNLI-mm.tsv"), {"entailment", "neutral", "contradiction"}),
        ),
        ("qnli", {"accuracy"}, {"QNLI.tsv": {"entailment", "not_entailment"}}),
        ("rte", {"accuracy"}, {"RTE.tsv": {"entailment", "not_entailment"}}),
        ("wnli", {"accuracy"}, {"WNLI.tsv": {"0", "1"}}),
    ],
)
def test_every_task_with_its_metrics_and_submission(script, run, tmp_path, name, metrics, predicted):
    task = script.DataArguments(task_name=name).task
    found = run(
        train_file=None,
        validation_file=None,
        task_name=name,
        data_dir=str(write_task_folder(tmp_path / "glue", TEXTS, task)),
        num_train_epochs=1,
        do_predict=True,
    )
    losses = {"loss", "loss_mm"} if name == "mnli" else {"loss"}
    samples = {"samples", "samples_mm"} if name == "mnli" else {"samples"}
    assert found.keys() == {f"eval_{metric}" for metric in metrics | losses | samples}
    out = tmp_path / "out"
    assert {path.name for path in out.glob("*.tsv")} == predicted.keys()
    for file, words in predicted.items():
        rows = read_table(out / file)
        assert list(rows[0]) == ["index", "prediction"]
        assert [row["index"] for row in rows] == [str(index) for index in range(6 if file == "MNLI-mm.tsv" else 7)]
        for row in rows:
            if words is None:
                assert re.fullmatch(r"[0-5]\.\d{3}", row["prediction"])
            else:
                assert row["prediction"] in words


def test_own_rows_beside_a_task(script, run, tmp_path):
    """They go to no server: a row of its own words each, under the names of the labels."""
    task = script.DataArguments(task_name="rte").task
    found = run(
        train_file=None,
        validation_file=None,
        task_name="rte",
        data_dir=str(write_task_folder(tmp_path / "glue", TEXTS, task)),
        test_file=write_table(tmp_path / "own.csv", ["sentence1", "sentence2"], [("a boat", "a dog"), ("x", "y")]),
        max_steps=1,
        do_predict=True,
    )
    assert "eval_accuracy" in found
    assert {path.name for path in (tmp_path / "out").glob("*.tsv")} == {"predictions_test.tsv"}
    rows = read_table(tmp_path / "out" / "predictions_test.tsv")
    assert [row["index"] for row in rows] == ["0", "1"] and {row["prediction"] for row in rows} <= set(RTE_LABELS)


@pytest.fixture(scope="module")
def mnli_student(script, settings, models, tmp_path_factory) -> Path:
    """A subnet that was fine-tuned on MNLI."""
    folder = tmp_path_factory.mktemp("mnli")
    data = {"train_file": None, "validation_file": None, "task_name": "mnli"}
    data["data_dir"] = str(write_task_folder(folder / "glue", TEXTS, script.DataArguments(task_name="mnli").task))
    options = {"model_name_or_path": str(models / "subnet"), "num_train_epochs": 1, "save_strategy": "no"}
    script.main(to_flags({**settings, **data, **options, "output_dir": str(folder / "student")}))
    return folder / "student"


@pytest.mark.parametrize("name, outputs", [("rte", 2), ("mrpc", 2), ("stsb", 1)])
def test_a_start_from_mnli_keeps_all_but_the_classifier(script, run, mnli_student, tmp_path, caplog, name, outputs):
    run(
        model_name_or_path=str(mnli_student),
        train_file=None,
        validation_file=None,
        task_name=name,
        data_dir=str(write_task_folder(tmp_path / "glue", TEXTS, script.DataArguments(task_name=name).task)),
        num_train_epochs=1,
        learning_rate=0.0,
    )
    before, after = saved_weights(mnli_student), saved_weights(tmp_path / "out")
    assert before.keys() == after.keys()
    new = {key for key in before if before[key].shape != after[key].shape}
    assert new == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert after["classifier.out_proj.weight"].shape[0] == outputs and after["classifier.out_proj.weight"].std() > 0
    kept = before.keys() - new
    assert largest_change({key: after[key] for key in kept}, {key: before[key] for key in kept}) == 0
    assert (
        f"was fine-tuned for 3 outputs, this task has {outputs}: classifier.out_proj.bias and "
        "classifier.out_proj.weight start anew, everything else is kept." in caplog.text
    )


def test_other_weights_that_do_not_fit_are_refused(run, tokenizer, tmp_path):
    folder = save_backbone(tmp_path / "mnli", tokenizer, num_labels=3)  # The name must not matter.
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    with pytest.raises(ValueError, match=r"'bert.encoder.layer.0.*' .* the shape \(.*20.*\), but .* says \(.*24.*\)"):
        run(model_name_or_path=str(folder))


def test_rows_to_choose_by(run, tmp_path):
    options = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    metrics = run(selection_split_percentage=20, **options)
    assert {"selection_accuracy", "selection_loss", "eval_accuracy"} <= metrics.keys()
    assert (metrics["selection_samples"], metrics["eval_samples"]) == (10, 29)
    found = read_json(tmp_path / "out" / "selection_results.json")
    assert found == {name: value for name, value in metrics.items() if name.startswith("selection")}
    # Epochs are chosen by them, not by the validation rows.
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    tenths = [entry["eval_accuracy"] * 10 for entry in history if "eval_accuracy" in entry]
    assert len(tenths) == 2 and tenths == pytest.approx([round(value) for value in tenths])
    assert max(tenths) / 10 == pytest.approx(metrics["selection_accuracy"])


# ---- continuing -----------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on(script, run, models, teacher, tmp_path, monkeypatch):
    options = {"model_name_or_path": str(models / "subnet"), "teacher_name_or_path": str(teacher[0])}
    options |= {"hidden_states_weight": 1.0, "dropout": 0.1}
    whole = run(**options, output_dir=str(tmp_path / "whole"))
    steps = []
    original = script.DistillationTrainer.training_step

    def stopped(*args, **kwargs):
        steps.append(1)
        if len(steps) == 10:  # in the second epoch
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(script.DistillationTrainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(**options)
    assert folders(tmp_path / "out") == ["checkpoint-7"]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert run(**options) == whole
    assert len(steps) == 17
    assert largest_change(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "whole")) == 0


def test_a_finished_run_given_again_changes_nothing(run, models, teacher, test_file, tmp_path):
    options = {
        "model_name_or_path": str(models / "subnet"),
        "teacher_name_or_path": str(teacher[0]),
        "hidden_states_weight": 1.0,
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "save_predictions": True,
        "do_predict": True,
        "test_file": test_file,
    }
    first = run(**options)
    before, trained = contents(tmp_path / "out"), read_json(tmp_path / "out" / "train_results.json")
    assert {"model.safetensors", "predictions.safetensors", "eval_results.json"} <= before.keys()
    assert run(**options) == first
    assert contents(tmp_path / "out") == before
    assert read_json(tmp_path / "out" / "train_results.json") == trained


def test_a_checkpoint_of_another_model(run, models, tmp_path):
    run(model_name_or_path=str(models / "subnet"), save_strategy="epoch")
    with pytest.raises(ValueError, match="of another run: its model_type is 'mos_subnet'"):
        run(model_name_or_path=str(models / "bert"))


# ---- messages and argument files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_name_or_path": "supernet"}, "'.*supernet' is a supernet; take a subnet out with `extract_subnet`"),
        ({"model_name_or_path": "sharcs"}, "'.*sharcs' is a routed encoder, .*use run_glue_sharcs.py"),
        (
            {"model_name_or_path": "silent"},
            "There is no tokenizer in '.*silent'.* Save the one .* name it with tokenizer_name",
        ),
        (
            {"model_name_or_path": "silent-subnet"},
            "There is no tokenizer in '.*silent-subnet'. Save the one .* name it with tokenizer_name",
        ),
        ({"teacher_name_or_path": "silent"}, "There is no tokenizer in '.*silent'"),
        (
            {"tokenizer_name": "bigger"},
            "The tokenizer in '.*bigger' has .* entries, the model only .*: it is another",
        ),
        ({"logits_weight": 0.5}, "logits_weight says how to learn from a teacher, but there is none"),
        (
            {"distillation_temperature": 2.0, "hard_label_weight": 1.0},
            "leave distillation_temperature and hard_label_weight out",
        ),
        ({"teacher_name_or_path": "words"}, "have different tokenizers; choose a teacher that was fine-tuned with"),
        (
            {"teacher_name_or_path": "masked-lm"},
            r"'.*masked-lm' has no trained bert.pooler.dense.bias, .*classifier.weight, which a BertFor\w+ needs: "
            "fine-tune it on the task first: run_glue.py",
        ),
        ({"teacher_name_or_path": "three"}, "knows the labels 'a', 'b', 'c', but the data has 'bad', 'good'"),
        ({"label_column": "mood"}, "There is no column 'mood' with labels in the file"),
        ({"text_columns": ["body"]}, "There is no column 'body' in the file"),
        ({"train_file": None}, "There are no rows to train on; give train_file"),
        ({"do_predict": True}, "There are no rows to predict; give test_file"),
        ({"num_hidden_layers": 4}, "--num_hidden_layers=4 layers cannot be kept of a model that has 3"),
        ({"num_hidden_layers": 0}, "--num_hidden_layers=0 layers cannot be kept"),
        ({"model_name_or_path": "subnet", "num_hidden_layers": 2}, "--num_hidden_layers is for ordinary models"),
        ({"teacher_name_or_path": "bert", "attentions_weight": 1.0}, 'attn_implementation="eager"'),
        ({"teacher_name_or_path": "bert", "logits_weight": 0.0}, "A teacher is given, but `logits_weight`"),
        ({"teachr_name_or_path": "bert"}, "Unknown argument '--teachr_name_or_path'; did you mean '--teacher_name"),
        ({"teacher_name_or_path": "bert", "logits_weight": -1.0}, "`logits_weight` must not be negative, got -1.0"),
    ],
)
def test_messages(run, models, tokenizer, tmp_path, options, message):
    def make(name: str) -> Path:
        folder = tmp_path / name
        if name == "supernet":
            tiny_supernet("sequence-classification", vocab_size=len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        elif name == "sharcs":
            tiny_sharcs(vocab_size=len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        elif name == "silent":
            save_backbone(folder, tokenizer)
            for file in folder.glob("tokenizer*"):
                file.unlink()
        elif name == "silent-subnet":
            config = tiny_subnet_config(vocab_size=len(tokenizer), num_labels=2)
            MosSubnetForSequenceClassification(config).save_pretrained(folder)
        elif name == "bigger":
            make_tokenizer([text for text, _ in SENTENCES], vocab_size=len(tokenizer) + 9).save_pretrained(folder)
        elif name == "masked-lm":
            save_backbone(folder, tokenizer, head="masked-lm")
        elif name == "words":
            other = make_tokenizer([text[::-1] for text, _ in SENTENCES])
            save_backbone(folder, other, vocab_size=len(tokenizer))
        elif name == "three":
            labels = dict(enumerate("abc"))
            save_backbone(
                folder, tokenizer, id2label=labels, label2id={label: index for index, label in labels.items()}
            )
        else:
            return models / name
        return folder

    options = {
        name: str(make(value)) if name.endswith(("_name_or_path", "tokenizer_name")) else value
        for name, value in options.items()
    }
    with pytest.raises(ValueError, match=message):
        run(**options)
    assert not (tmp_path / "out").exists() or not contents(tmp_path / "out")


def test_messages_come_without_a_traceback(script, settings, tmp_path, monkeypatch):
    flags = to_flags({**settings, "output_dir": str(tmp_path / "out"), "teacher_name_or_path": "/nowhere/at/all"})
    monkeypatch.setattr("sys.argv", ["run_glue.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        script.run_script(script.main)
    assert stopped.value.code.startswith("run_glue.py: ")
    assert stopped.value.code.endswith(" '/nowhere/at/all' is no folder here.")


def test_an_argument_file(script, run, settings, tmp_path):
    path = tmp_path / "arguments.yaml"
    path.write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "wrong"), "num_train_epochs": 3}))
    metrics = script.main([str(path), "--output_dir", str(tmp_path / "right"), "--num_train_epochs", "1"])
    assert not (tmp_path / "wrong").exists()
    assert metrics == run(num_train_epochs=1)
    path.write_text(yaml.safe_dump({**settings, "logit_weight": 1.0}))
    with pytest.raises(ValueError, match="Unknown key 'logit_weight' .*did you mean 'logits_weight'"):
        script.main([str(path), "--output_dir", str(tmp_path / "right")])


def test_without_validation_rows(run, tmp_path):
    assert run(validation_file=None, num_train_epochs=1) == {}
    assert (tmp_path / "out" / "model.safetensors").is_file()
