# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Model cards: what they say is what the model says, and their code runs."""

import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding
from transformers.utils import is_matplotlib_available

from modeling_mos import MosForSequenceClassification
from modeling_sharcs import SharcsForSequenceClassification
from testing_utils import (
    AUTO_CLASSES,
    HEADS,
    SHARCS_CLASSES,
    UNIFORM,
    code_of,
    make_batch,
    no_complaints,
    table_of,
    tiny_backbone,
    tiny_sharcs,
    tiny_supernet,
    tiny_tokenizer,
    training_of,
)
from trainers import DistillationTrainer, DistillationTrainingArguments, model_cards, save_curve, write_model_card
from trainers.model_cards import CARD_NAME, FIGURE_NAME, MARKER
from training_utils import (
    make_arguments,
    make_bert,
    make_labelled,
    make_sharcs_trainer,
    make_subnet,
    train_masked_lm,
    train_supernet,
)


TOKENIZER = tiny_tokenizer()
KINDS = ("supernet", "subnet", "stock")
PAIRS = [*((kind, head) for kind in KINDS for head in HEADS), *(("sharcs", head) for head in SHARCS_CLASSES)]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing takes longer than all else; the tests of figures turn it on."""
    monkeypatch.setattr(model_cards, "is_matplotlib_available", lambda: False)


def make_model(kind: str, head: str = "sequence-classification", **overrides):
    overrides = {"vocab_size": len(TOKENIZER), **overrides}
    if kind == "sharcs":
        return tiny_sharcs(head, **overrides)
    if kind == "encoder":
        return tiny_backbone("roberta", head, **overrides)
    if kind == "stock":
        overrides["search_space"] = UNIFORM
    supernet = tiny_supernet(head, **overrides)
    return supernet if kind == "supernet" else supernet.extract_subnet(supernet.search_space.sample(seed=3))


def make_card(model, folder, tokenizer=TOKENIZER, **arguments) -> ModelCard:
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    with no_complaints():
        path = write_model_card(model, folder, **arguments)
    assert path == folder / CARD_NAME
    return ModelCard.load(path)


# ---- what a card says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, head", PAIRS)
def test_the_code_of_a_card_runs(kind, head, tmp_path, monkeypatch):
    model = make_model(kind, head)
    code = code_of(make_card(model, tmp_path / "model"))
    assert f"{AUTO_CLASSES[head].__name__}.from_pretrained" in code
    assert ("trust_remote_code=True" in code) == (kind != "stock")
    monkeypatch.chdir(tmp_path)  # until it is published, the code opens the folder by its name
    names = {}
    exec(code, names)
    assert type(names["model"]) is type(model)
    if kind == "supernet":
        assert names["subnet"].num_parameters() == model.count_parameters(names["architecture"])
    if kind == "sharcs":
        assert names["outputs"].width_indices.tolist() == [0]


@pytest.mark.parametrize("kind", ["subnet", "sharcs", "stock"])
def test_the_code_of_a_classifier_of_pairs(kind, tmp_path, monkeypatch):
    code = code_of(make_card(make_model(kind), tmp_path / "model", text_pair=True))
    assert 'predict({"text": "The house is big.", "text_pair": "It is not small."})' in code
    assert ('inputs = tokenizer("The house is big.", "It is not small.", return' in code) == (kind == "sharcs")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    pair = TOKENIZER("The house is big.", "It is not small.", return_tensors="pt")
    expected = names["model"](**pair).logits.softmax(-1).max().item()
    found = names["predict"]({"text": "The house is big.", "text_pair": "It is not small."})
    assert (found[0] if isinstance(found, list) else found)["score"] == pytest.approx(expected, abs=1e-6)
    # Another head is not asked about pairs.
    other = make_card(make_model(kind, "token-classification"), tmp_path / "other", text_pair=True)
    assert "text_pair" not in code_of(other)


def test_a_card_that_is_not_published_says_so(tmp_path):
    model = make_model("stock")
    sentence = "The name is that of the folder."
    assert sentence in make_card(model, tmp_path / "here").text
    assert sentence not in make_card(model, tmp_path / "there", repo_id="me/stock").text


def test_metadata(tmp_path):
    card = make_card(
        make_model("subnet"),
        tmp_path / "mrpc-small",
        base_model="google-bert/bert-base-uncased",
        license="apache-2.0",
        language="en",
        tags=["small"],
        datasets="nyu-mll/glue",
        dataset_name="GLUE MRPC",
        dataset_config="mrpc",
        metrics={
            "eval_accuracy": 0.75,
            "eval_f1": 0.8,
            "eval_loss": 0.5,
            "eval_runtime": 3.0,
            "eval_samples_per_second": 2.0,
            "eval_samples": 408,
            "eval_width_0.25_accuracy": 0.6,
            "eval_pearson": float("nan"),
            "eval_budget_0.5": "out of reach",
            "epoch": 3.0,
        },
    )
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert (data.base_model, data.license, data.language) == ("google-bert/bert-base-uncased", "apache-2.0", "en")
    assert data.tags == ["mos", "small"] and data.datasets == ["nyu-mll/glue"]
    assert data.metrics == ["accuracy", "f1"] and data.model_name == "mrpc-small"
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "accuracy": 0.75,
        "f1": 0.8,
        "loss": 0.5,
    }
    accuracy = results["accuracy"]
    assert (accuracy.task_type, accuracy.dataset_type) == ("text-classification", "nyu-mll/glue")
    assert (accuracy.dataset_name, accuracy.dataset_config) == ("GLUE MRPC", "mrpc")
    # The table holds what the index leaves out, but not how long it took.
    scores = {row["metric"]: row["value"] for row in table_of(card, "metric")}
    assert scores == {
        "accuracy": "0.7500",
        "f1": "0.8000",
        "loss": "0.5000",
        "samples": "408",
        "width_0.25_accuracy": "0.6000",
        "pearson": "nan",
        "budget_0.5": "out of reach",
    }
    assert "On GLUE MRPC." in card.text and "The weights are under `apache-2.0`." in card.text


def test_without_a_data_set_there_is_no_index_of_results(tmp_path):
    card = make_card(make_model("subnet"), tmp_path / "model", metrics={"accuracy": 0.75})
    assert card.data.eval_results is None and card.data.metrics == ["accuracy"]
    assert table_of(card, "metric") == [{"metric": "accuracy", "value": "0.7500"}]


def test_what_is_not_known_is_said(tmp_path):
    card = make_card(make_model("subnet"), tmp_path / "model", tokenizer=None)
    for text in ("None were given", "Nothing was said about it", "No licence was given for the weights."):
        assert text in card.text
    assert card.data.license is None and card.data.base_model is None
    assert "okenizer" not in code_of(card)


@pytest.mark.parametrize("kind", ["supernet", "subnet", "stock", "sharcs", "encoder"])
def test_the_paper_of_the_method(kind, tmp_path):
    card = make_card(make_model(kind), tmp_path / "model")
    papers = {"sharcs": "2310.12126", "encoder": None}
    for identifier in ("2306.04845", "2310.12126"):
        assert (identifier in card.text) == (papers.get(kind, "2306.04845") == identifier)
    assert card.data.tags == {"sharcs": ["sharcs"], "encoder": []}.get(kind, ["mos"])
    assert ("taken out of a Mixture-of-Supernets" in card.text) == (kind in ("subnet", "stock"))


@pytest.mark.parametrize("space", ["bottleneck", "uniform"])
def test_a_supernet(space, tmp_path):
    overrides = {"search_space": UNIFORM} if space == "uniform" else {}
    supernet = make_model("supernet", "masked-lm", **overrides)
    found = supernet.search_space.sample(seed=3)
    entry = {"name": "24k", "architecture": found.to_dict(), "parameters": supernet.count_parameters(found)}
    supernet.config.front = [entry]
    supernet.config.default_architecture = supernet.search_space.sample(seed=4).to_dict()
    card = make_card(supernet, tmp_path / "model")
    architectures = {
        "smallest": supernet.search_space.smallest(),
        "largest": supernet.search_space.largest(),
        "default": supernet.default_architecture,
        "24k": found,
    }
    assert table_of(card, "subnet") == [
        {
            "subnet": name,
            "parameters": f"{supernet.count_parameters(architecture):,}",
            "FLOPs": f"{supernet.count_flops(architecture, 40):,}",
            "width, feed-forward width, heads": str(architecture),
        }
        for name, architecture in architectures.items()
    ]
    choices = {row["elastic"]: row["choices"] for row in table_of(card, "elastic")}
    assert choices["width"] == "16, 36, 48" and choices["layers"] == "2, 3"
    assert f"{supernet.num_parameters():,} parameters of its own; routing: neuron, 2 experts" in card.text
    assert 'model.extract_subnet("24k")' in code_of(card)


def test_a_subnet(tmp_path):
    subnet = make_model("subnet")
    card = make_card(subnet, tmp_path / "model", sequence_length=32)
    architecture = subnet.config.architecture
    rows = table_of(card, "layer")
    assert [row["layer"] for row in rows] == ["1", "2"]
    for row, (width, intermediate, heads) in zip(rows, architecture.layers, strict=True):
        assert (row["width"], row["feed-forward width"]) == (str(width), str(intermediate))
        assert row["attention heads"] == str(heads)
    supernet = make_model("supernet")
    flops = supernet.count_flops(architecture, 32)
    assert f"{subnet.num_parameters():,} parameters and {flops:,} FLOPs" in card.text
    assert "one sequence of 32 tokens" in card.text


@pytest.mark.parametrize("kind, head", [("stock", "masked-lm"), ("stock", "base"), ("encoder", "question-answering")])
def test_flops_of_ordinary_models(kind, head):
    model = make_model(kind, head)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones((1, 20), dtype=torch.long))
    assert model_cards.count_flops(model, 20) == counter.get_total_flops()


def test_layers_of_the_same_sizes_are_one_row(tmp_path):
    card = make_card(make_model("encoder"), tmp_path / "model")
    row = {"layer": "1 to 3", "width": "48", "feed-forward width": "37", "attention heads": "4"}
    assert table_of(card, "layer") == [row]


def test_a_routed_encoder(tmp_path):
    model = make_model("sharcs")
    card = make_card(model, tmp_path / "model", sequence_length=16)
    rows = table_of(card, "width")
    assert [row["width"] for row in rows] == ["0.25", "0.5", "1"]
    full = model.count_flops(16, 1.0)
    for row, width in zip(rows, (0.25, 0.5, 1.0), strict=True):
        assert row["FLOPs"] == f"{model.count_flops(16, width):,}"
        assert float(row["share of full FLOPs"]) == pytest.approx(model.count_flops(16, width) / full, abs=5e-4)
    assert "It is not calibrated" in card.text and "set_compute_budget(" not in code_of(card)


def test_budgets_of_a_routed_encoder(tmp_path, monkeypatch):
    model = make_model("sharcs")
    model.calibrate([make_batch(model.config, batch=12)])
    assert "every sample takes the widest path" in make_card(model, tmp_path / "widest").text
    model.set_compute_budget(0.7)
    card = make_card(model, tmp_path / "model")
    prices = {row["price"]: row for row in model.config.calibration["table"]}
    table = {f"{row['share']:.3f}": row for row in prices.values()}
    current = prices[model.config.router_price]["share"]
    assert f"The model is set to spend {current:.3f} of full FLOPs." in card.text
    rows = table_of(card, "spent")
    assert 3 <= len(rows) <= 5
    assert [rows[0]["spent"], rows[-1]["spent"]] == [min(table), max(table)]
    for row in rows:
        shares = [float(row[f"samples at {width:g}"].rstrip("%")) / 100 for width in (0.25, 0.5, 1.0)]
        assert table[row["spent"]]["rows_per_width"] == pytest.approx(shares, abs=1e-3)
    assert "set_compute_budget(" in code_of(card)
    monkeypatch.chdir(tmp_path)
    exec(code_of(card), {})  # the budget that it sets is in reach


def test_training(tmp_path):
    facts = {"seed": 3, "search": "50 to 60 million parameters", "teacher": None, "note": "a|b\nc"}
    card = make_card(make_model("subnet"), tmp_path / "model", training=facts)
    assert training_of(card) == {"seed": "3", "search": "50 to 60 million parameters", "note": "a|b c"}


# ---- where a model comes from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [MosForSequenceClassification, SharcsForSequenceClassification])
@pytest.mark.parametrize("loaded", [True, False])
def test_conversion_remembers_the_backbone(model_class, loaded, tmp_path):
    sizes = {} if model_class is MosForSequenceClassification else {"intermediate_size": 36}
    backbone = tiny_backbone("bert", "sequence-classification", **sizes)
    backbone.save_pretrained(tmp_path)
    backbone.name_or_path = str(tmp_path)
    options = {"search_space": UNIFORM} if model_class is MosForSequenceClassification else {"router_layer": 1}
    model = model_class.from_backbone(backbone if loaded else str(tmp_path), **options)
    assert model.name_or_path == str(tmp_path)
    if model_class is MosForSequenceClassification:
        assert model.extract_subnet().name_or_path == str(tmp_path)


@pytest.mark.parametrize(
    "name, base_model",
    [
        ("me/backbone", "me/backbone"),
        ("backbone", "backbone"),
        ("/no/folder/there", None),
        ("a/b/c", None),
        ("", None),
    ],
)
def test_the_backbone_of_a_card(name, base_model, tmp_path):
    model = make_model("subnet")
    model.name_or_path = name
    card = make_card(model, tmp_path / "model")
    assert card.data.base_model == base_model
    assert ("made from [" in card.text) == (base_model is not None)


def test_a_model_is_not_made_from_itself(tmp_path):
    model = make_model("subnet")
    model.name_or_path = "me/small"
    assert make_card(model, tmp_path / "model", repo_id="me/small").data.base_model is None


def test_a_card_continues_that_of_its_checkpoint(tmp_path):
    """What was fine-tuned from a folder knows what the folder was made from; a stock class, that it is a subnet."""
    facts = {"base_model": "me/backbone", "license": "mit", "language": "en", "datasets": "me/books"}
    make_card(make_model("stock"), tmp_path / "first", **facts)
    second = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    card = make_card(second, tmp_path / "second")
    assert (card.data.base_model, card.data.license, card.data.language) == ("me/backbone", "mit", "en")
    assert card.data.tags == ["mos"] and "2306.04845" in card.text
    assert card.data.datasets is None  # those were of another training


def test_the_tokenizer_of_the_backbone(tmp_path):
    card = make_card(make_model("subnet"), tmp_path / "model", tokenizer=None, base_model="me/backbone")
    assert 'AutoTokenizer.from_pretrained("me/backbone")' in code_of(card)


def test_the_tokenizer_beside_the_model_is_read_with_its_code(tmp_path):
    """Transformers would stop and ask, where nothing has imported this package."""
    for kind, trusted in (("subnet", True), ("stock", False)):
        code = code_of(make_card(make_model(kind), tmp_path / kind))
        (line,) = [line for line in code.split("\n") if line.startswith("tokenizer = ")]
        assert ("trust_remote_code=True" in line) == trusted


def test_a_front_says_what_its_search_measured(tmp_path):
    model = make_model("supernet")
    found = model.search_space.smallest()
    entry = {"name": "5k", "architecture": found.to_dict(), "parameters": model.count_parameters(found)}
    model.config.front = [{**entry, "latency": 2.87654, "score": 6.80844}]
    rows = {row["subnet"]: row for row in table_of(make_card(model, tmp_path / "model"), "subnet")}
    assert (rows["5k"]["latency, ms"], rows["5k"]["score"]) == ("2.877", "6.808")
    assert rows["largest"]["score"] == ""


def test_names(tmp_path):
    card = make_card(make_model("subnet"), tmp_path / "model", repo_id="me/mos-60m")
    assert "# mos-60m" in card.text and 'from_pretrained("me/mos-60m", trust_remote_code=True)' in code_of(card)
    card = make_card(make_model("subnet"), tmp_path / "model", repo_id="me/mos-60m", model_name="Sixty")
    assert "# Sixty" in card.text and 'from_pretrained("me/mos-60m"' in code_of(card)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_card_that_somebody_wrote_stays(tmp_path, caplog):
    model = make_model("subnet")
    card = make_card(model, tmp_path / "model", metrics={"accuracy": 0.5})
    make_card(model, tmp_path / "model", metrics={"accuracy": 0.6})
    path = tmp_path / "model" / CARD_NAME
    assert "0.6000" in path.read_text() and "0.5000" not in path.read_text()

    edited = str(card).replace(MARKER, "").replace("# model", "# My model")
    path.write_text(edited)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        assert write_model_card(model, tmp_path / "model") == path
    assert path.read_text() == edited
    assert "left as it is; delete it" in caplog.text


def test_the_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(model_cards, "is_matplotlib_available", is_matplotlib_available)
    card = make_card(make_model("supernet"), tmp_path / "model")
    assert f"![Sizes of the layers]({FIGURE_NAME})" in card.text
    assert (tmp_path / "model" / FIGURE_NAME).read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "model").glob("*.unfinished"))


def test_a_curve_instead(tmp_path):
    points = [{"flops_share": share, "accuracy": share} for share in (0.5, 1.0)]
    save_curve(points, str(tmp_path / "model" / "curve"), "accuracy")
    card = make_card(make_model("sharcs"), tmp_path / "model", figure="curve/compute_curve.png")
    assert "![What each amount of compute buys](curve/compute_curve.png)" in card.text
    assert not (tmp_path / "model" / FIGURE_NAME).exists()


def test_without_matplotlib_there_is_no_figure(tmp_path):
    card = make_card(make_model("subnet"), tmp_path / "model")
    assert "![" not in card.text and not (tmp_path / "model" / FIGURE_NAME).exists()


def test_what_is_missing_is_said(tmp_path):
    model = make_model("subnet")
    with pytest.raises(ValueError, match="no folder '.*nowhere' to write a model card to; save the model there first"):
        write_model_card(model, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no picture 'curve.png' in '.*'; leave `figure` out"):
        write_model_card(model, tmp_path, figure="curve.png")
    assert not list(tmp_path.iterdir())


# ---- trainers -------------------------------------------------------------------------------------------------------


def card_of(trainer, **arguments) -> ModelCard:
    trainer.save_model()
    trainer.create_model_card(**arguments)
    return ModelCard.load(Path(trainer.args.output_dir) / CARD_NAME)


def scores_of(card: ModelCard) -> dict[str, str]:
    return {row["metric"]: row["value"] for row in table_of(card, "metric")}


def test_the_card_of_a_supernets_trainer(tiny_tokenizer, tmp_path):
    teacher = make_bert(tiny_tokenizer)
    teacher.name_or_path = str(tmp_path / "somewhere" / "private")
    options = {"distillation": ["logits"], "panel_random_architectures": 1}
    trainer = train_supernet(tiny_tokenizer, tmp_path / "out", teacher=teacher, **options)
    metrics = trainer.evaluate()
    card = card_of(trainer)
    scores = scores_of(card)
    assert scores["largest_loss"] == f"{metrics['eval_largest_loss']:.4f}" and "random_0_loss" in scores
    assert not [name for name in scores if "runtime" in name or "second" in name or name in ("epoch", "step")]
    training = training_of(card)
    expected = {"trainer": "SupernetTrainer", "seed": "11", "learning_rate": "0.1", "samples": "12"}
    expected |= {"architecture_sampling": "sandwich", "distillation": "['logits']"}
    assert expected.items() <= training.items()
    # What a folder of one machine is called is nobody else's business.
    assert training["teacher"] == f"BertForMaskedLM ({teacher.num_parameters():,} parameters)"
    assert str(tmp_path) not in card.content
    assert card.data.tags == ["mos", "generated_from_trainer"]


def test_the_card_of_a_subnets_trainer(tiny_tokenizer, tmp_path):
    trainer = train_masked_lm(tiny_tokenizer, tmp_path, make_subnet(tiny_tokenizer))
    metrics = trainer.evaluate()
    card = card_of(trainer, language="en", tags="small", dataset_tags="me/books", dataset="Books", model_name="Small")
    loss, perplexity = metrics["eval_loss"], metrics["eval_perplexity"]
    assert perplexity > 10_000 and scores_of(card) == {"loss": f"{loss:.4f}", "perplexity": f"{perplexity:,.0f}"}
    training = training_of(card)
    assert training["trainer"] == "MaskedLMTrainer"
    assert "architecture_sampling" not in training  # of which nothing here depends
    assert card.data.tags == ["mos", "small", "generated_from_trainer"] and "# Small" in card.text
    assert (card.data.language, card.data.datasets, card.data.metrics) == ("en", ["me/books"], ["perplexity"])
    assert {result.dataset_name for result in card.data.eval_results} == {"Books"}


@pytest.mark.parametrize("taught", [True, False])
def test_the_card_of_a_fine_tuned_model(taught, tiny_tokenizer, tmp_path):
    teacher = make_bert(tiny_tokenizer, "sequence-classification")
    teacher.name_or_path = "me/teacher"
    trainer = DistillationTrainer(
        make_model("stock", vocab_size=len(tiny_tokenizer)),
        make_arguments(tmp_path, DistillationTrainingArguments),
        teacher=teacher if taught else None,
        train_dataset=make_labelled(tiny_tokenizer),
        data_collator=DataCollatorWithPadding(tiny_tokenizer),
        processing_class=tiny_tokenizer,
    )
    trainer.train()
    card = card_of(trainer, metrics={"eval_accuracy": 0.5}, finetuned_from="me/subnet", training={"note": "a second"})
    training = training_of(card)
    assert training["optimizer"].startswith("sgd and the args are")
    assert ("logits_weight" in training) == taught and training["note"] == "a second"
    assert training.get("teacher", "").startswith("me/teacher (") == taught
    assert card.data.base_model == "me/subnet" and scores_of(card) == {"accuracy": "0.5000"}
    assert 'AutoTokenizer.from_pretrained("' in code_of(card)


def test_the_card_of_a_routed_encoders_trainer(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path)
    trainer.train()
    metrics = trainer.evaluate()
    card = card_of(trainer, dataset_tags="me/data")
    scores = scores_of(card)
    for name in ("loss", "flops_share", "width_0.25_loss", "rows_at_1"):
        assert scores[name] == f"{metrics[f'eval_{name}']:.4f}"
    # Widths and groups are parts, whose scores are in the table only.
    assert {result.metric_type for result in card.data.eval_results} == {"loss", "flops_share", "mean_flops"}
    training = training_of(card)
    assert training["trainer"] == "SharcsTrainer" and training["hardness_window"] == "1"
    assert "It is not calibrated" in card.text


def test_a_card_of_a_model_that_was_only_evaluated(tiny_tokenizer, tmp_path):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path)
    trainer.train_dataset = None
    assert "Nothing was said about it" in card_of(trainer).text


def test_one_process_writes_the_card(tiny_tokenizer, tmp_path, monkeypatch):
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    assert not (tmp_path / CARD_NAME).exists()
