# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/export: graphs and the runner of routed ones give what the PyTorch models give; torch.export; refusals."""

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from script_utils import read_table, to_flags, write_table, write_task_folder
from testing_utils import (
    SENTENCES,
    SHARCS_CLASSES,
    SUBNET_CLASSES,
    UNIFORM,
    assert_close,
    make_batch,
    randomise_,
    splitting_price,
    tiny_backbone,
    tiny_sharcs,
    tiny_subnet_config,
    tiny_supernet,
    tiny_tokenizer,
)


PACKAGES = ("onnx", "onnxscript", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES),
    reason=f"needs {', '.join(PACKAGES)}: pip install -e '.[onnx]'",
)
SHAPES = [(1, 4), (1, 29), (8, 13), (8, 30)]


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("export/export_onnx.py")


@pytest.fixture(scope="module")
def runner(load_example):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[onnx]'")
    return load_example("export/routed_runner.py")


def tiny_subnet(head: str, layout: str):
    return randomise_(SUBNET_CLASSES[head](tiny_subnet_config(layout))).eval()


def tiny_routed(head: str = "sequence-classification", layout: str = "bert", **overrides):
    """A routed encoder at a price at which the rows of a batch of eight take more than one width."""
    model = tiny_sharcs(head, layout, num_hidden_layers=2, **overrides)
    model.config.router_price = splitting_price(model, uneven_batch(model.config, 8, 13))
    return model


def uneven_batch(config, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Every row has padding, on the right, but a single one."""
    batch = make_batch(config, rows, tokens, padding=False, seed=rows + tokens)
    for row in range(rows if rows > 1 else 0):
        batch["attention_mask"][row, tokens - 1 - row :] = 0
    batch["input_ids"][batch["attention_mask"] == 0] = config.pad_token_id
    return batch


def as_arrays(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in batch.items()}


@torch.no_grad()
def assert_runs_alike(run, model, batch: dict[str, torch.Tensor], names: list[str]) -> set[int]:
    """The runner against the model: routing, and outputs at real tokens. Returns the widths that rows took."""
    found, expected = run(**as_arrays(batch)), model(**batch)
    assert found["width_indices"].tolist() == expected.width_indices.tolist()
    assert_close(torch.from_numpy(found["router_logits"]), expected.router_logits, atol=1e-4, rtol=0)
    for name in names:
        values = torch.from_numpy(found[name])
        assert values.shape == expected[name].shape
        real = batch["attention_mask"].bool() if run.outputs_per_token else slice(None)
        assert_close(values[real], expected[name][real], atol=1e-4, rtol=0)
    return set(found["width_indices"].tolist())


# ---- ONNX -----------------------------------------------------------------------------------------------------------


@needs_onnx
@pytest.mark.parametrize("kind", ["mixed", "stock"])
def test_a_subnet_runs_at_any_batch_size_and_length(script, kind, tmp_path):
    import onnxruntime

    if kind == "stock":
        supernet = tiny_supernet("sequence-classification", search_space=UNIFORM)
        model = supernet.extract_subnet(supernet.search_space.sample(seed=3)).eval()
        assert type(model) is BertForSequenceClassification
    else:
        model = tiny_subnet("masked-lm", "roberta")
    model.save_pretrained(tmp_path / "model")
    folder = tmp_path / "onnx"
    report = script.main(to_flags({"model_name_or_path": tmp_path / "model", "output_dir": folder}))
    assert report["largest_difference"] < 1e-4
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert report["bytes"] == report["bytes_float32"] == (folder / "model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for rows, tokens in SHAPES:
        batch = uneven_batch(model.config, rows, tokens)
        (found,) = session.run(["logits"], as_arrays(batch))
        with torch.no_grad():
            assert_close(torch.from_numpy(found), model(**batch).logits, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def routed(script, tmp_path_factory):
    """A routed model, its folder, the folder of its graphs, and what the script reported."""
    if not all(importlib.util.find_spec(name) for name in PACKAGES):
        pytest.skip(needs_onnx.kwargs["reason"])
    folder = tmp_path_factory.mktemp("routed")
    model = tiny_routed(width_multipliers=[0.25, 1.0], entry="projection")
    model.save_pretrained(folder / "model")
    report = script.main(to_flags({"model_name_or_path": folder / "model", "output_dir": folder / "onnx"}))
    return model, folder / "model", folder / "onnx", report


def test_routed_graphs(runner, routed):
    model, _, folder, report = routed
    run = runner.RoutedRunner(folder)
    taken = [
        assert_runs_alike(run, model, uneven_batch(model.config, rows, tokens), ["logits"]) for rows, tokens in SHAPES
    ]
    assert {0, 1} in taken, "no batch was split"
    assert report["same_width"] == 1.0 and report["largest_difference"] < 1e-4


def test_files_of_a_routed_encoder(routed):
    import onnx

    model, _, folder, report = routed
    assert {path.name for path in folder.iterdir()} == {
        "front.onnx",
        "width_0.25.onnx",
        "width_1.onnx",
        "routing.json",
    }
    routing = json.loads((folder / "routing.json").read_text())
    assert routing["price"] == model.config.router_price
    assert [width["cost"] for width in routing["widths"]] == model.base_model.relative_costs()
    # A graph holds what it uses: the weights of its part at its width.
    largest = {}
    for path in folder.glob("*.onnx"):
        weights = onnx.load(path).graph.initializer
        largest[path.stem] = sorted(math.prod(weight.dims) for weight in weights if len(weight.dims) == 2)
    size, inner = model.config.hidden_size, model.config.intermediate_size
    assert largest["front"][-3:] == [size**2, size**2, model.config.vocab_size * size]
    # The head reads the padded stream; the entry's projection and the two feed-forward matrices are narrow.
    assert largest["width_0.25"][-2:] == [size * size // 4, size**2]
    assert largest["width_1"].count(size**2) == 5 and largest["width_1"].count(size * inner) == 2
    assert report["bytes"] == sum(path.stat().st_size for path in folder.glob("*.onnx"))


def test_a_row_of_padding_is_finite(script, routed, tmp_path):
    """As fills up batches of a fixed size; what PyTorch makes of its mask would be no number here."""
    import onnxruntime

    model, source, _, _ = routed
    script.main(to_flags({"model_name_or_path": source, "output_dir": tmp_path / "onnx", "width": 0.25}))
    batch = uneven_batch(model.config, 3, 13)
    batch["attention_mask"][2] = 0
    (found,) = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx").run(["logits"], as_arrays(batch))
    assert np.isfinite(found).all()
    with torch.no_grad():
        assert_close(torch.from_numpy(found[:2]), model(**batch, width=0.25).logits[:2], atol=1e-4, rtol=0)


def test_a_quantized_width(script, routed, tmp_path):
    import onnxruntime

    model, source, _, _ = routed
    options = {"model_name_or_path": source, "output_dir": tmp_path / "int8", "width": 0.25, "quantize": "dynamic"}
    report = script.main(to_flags(options))
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["model.onnx"]
    assert report["bytes"] == (tmp_path / "int8" / "model.onnx").stat().st_size
    batch = uneven_batch(model.config, 8, 13)
    (found,) = onnxruntime.InferenceSession(tmp_path / "int8" / "model.onnx").run(["logits"], as_arrays(batch))
    with torch.no_grad():
        expected = model(**batch, width=0.25).logits
    difference = (torch.from_numpy(found) - expected).abs().max()
    assert 1e-4 < difference < 0.2 * expected.abs().max()
    assert 1e-4 < report["largest_difference"] and 0.5 <= report["same_answer"] <= 1
    assert set(report["milliseconds"]) == {"pytorch", "onnx", "onnx_float32"}


@needs_onnx
def test_texts_are_compared(script, tmp_path, caplog):
    tokenizer = tiny_tokenizer()
    config = tiny_subnet_config(vocab_size=len(tokenizer))
    model = randomise_(SUBNET_CLASSES["token-classification"](config)).eval()
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n\n".join(SENTENCES))
    options = {"model_name_or_path": tmp_path / "model", "text_file": tmp_path / "texts.txt"}
    with caplog.at_level("INFO"):
        report = script.main(to_flags({**options, "output_dir": tmp_path / "onnx"}))
    assert report["same_answer"] == 1 and report["largest_difference"] < 1e-4
    assert "texts.txt" in caplog.text and "A batch of 5 rows, in turns: pytorch " in caplog.text
    beside = AutoTokenizer.from_pretrained(tmp_path / "onnx")
    assert beside(SENTENCES)["input_ids"] == tokenizer(SENTENCES)["input_ids"]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="empty.txt' has no lines with text"):
        script.read_rows(script.ExportArguments("model", "out", text_file=str(tmp_path / "empty.txt")), model.config)


def save_classifier(script, folder, task: str):
    """A classifier of a task with its labels the other way round, its tokenizer, and the task's files."""
    tokenizer, task = tiny_tokenizer(), script.DataArguments(task_name=task).task
    write_task_folder(folder, SENTENCES * 20, task)
    names = dict(enumerate(reversed(task.label_names)))
    labels = {"num_labels": 2, "id2label": names} if names else {"num_labels": 1}
    model = tiny_sharcs(vocab_size=len(tokenizer), **labels)
    for saved in (model, tokenizer):
        saved.save_pretrained(folder / "model")
    return model, task


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_labelled_rows_are_scored(script, tmp_path, task):
    """Each contestant by its own outputs, with labels in the model's order."""
    model, task = save_classifier(script, tmp_path, task)
    options = script.ExportArguments("model", "out", task_name=task.name, data_dir=str(tmp_path))
    loader, compute_metrics = script.read_labelled_rows(options.data, model, str(tmp_path / "model"))
    labels = [batch["labels"] for batch in loader]
    written = [row[task.label_column] for row in read_table(tmp_path / task.name / "dev.tsv")]
    known = [model.config.id2label[int(label)] if task.label_names else f"{label:.3f}" for label in torch.cat(labels)]
    assert known == written

    def contestant(sign: int):
        left = iter(labels)

        def run(batch):
            assert set(batch) == set(script.input_names(model.config))
            answers = next(left)
            best = torch.nn.functional.one_hot(answers, 2) if task.label_names else answers[:, None]
            return {"logits": sign * best.float()}

        return run

    found = script.score({"right": contestant(1), "contrary": contestant(-1)}, loader, compute_metrics)
    metric, worst = ("accuracy", 0) if task.label_names else ("pearson", -1)
    assert found["right"][metric] == pytest.approx(1) and found["contrary"][metric] == pytest.approx(worst)


def test_rows_to_score_are_chosen(script, tmp_path):
    model, _ = save_classifier(script, tmp_path, "rte")
    rows = [(text, "", label) for text, label in zip(SENTENCES, ["entailment", "not_entailment"] * 2, strict=False)]
    write_table(tmp_path / "own.csv", ["words", "more", "answer"], rows)
    options = {"text_columns": ["words"], "label_column": "answer", "max_eval_samples": 3}
    options = script.ExportArguments("model", "out", validation_file=str(tmp_path / "own.csv"), **options)
    loader, _ = script.read_labelled_rows(options.data, model, str(tmp_path / "model"))
    assert [model.config.id2label[int(label)] for batch in loader for label in batch["labels"]] == [
        "entailment",
        "not_entailment",
        "entailment",
    ]


@needs_onnx
def test_graphs_are_scored_beside_the_model(script, tmp_path):
    save_classifier(script, tmp_path, "rte")
    options = {"task_name": "rte", "data_dir": tmp_path, "width": 0.25, "quantize": "dynamic"}
    folders = {"model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "onnx"}
    scores = script.main(to_flags({**folders, **options}))["scores"]
    assert set(scores) == {"pytorch", "onnx", "onnx_float32"}
    assert scores["pytorch"] == scores["onnx_float32"] and scores["onnx"].keys() == {"accuracy"}


def test_what_cannot_be_scored_has_a_sentence(script, tmp_path):
    options = script.ExportArguments("model", "out", validation_file="rows.csv")
    with pytest.raises(ValueError, match="SharcsForQuestionAnswering is not scored on labelled rows"):
        script.read_labelled_rows(options.data, tiny_sharcs("question-answering"), "model")
    with pytest.raises(ValueError, match="Name the data: a GLUE task with task_name"):
        script.ExportArguments("model", "out", max_eval_samples=3)
    with pytest.raises(ValueError, match="data_dir='rows' needs a task_name"):
        script.ExportArguments("model", "out", data_dir="rows")
    (tmp_path / "RTE").mkdir()
    write_table(tmp_path / "RTE" / "train.tsv", ["sentence1", "sentence2", "label"], [("a", "b", "entailment")])
    options = script.ExportArguments("model", "out", task_name="rte", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="There are no rows to score on; give validation_file"):
        script.read_labelled_rows(options.data, tiny_sharcs(), "model")


def test_what_is_compared(script):
    """Padding never is, nor are rows that take another width."""
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    expected = {"logits": torch.tensor([[[1.0, 0.0]] * 3] * 3), "width_indices": torch.tensor([0, 1, 1])}
    found = {"logits": expected["logits"].clone(), "width_indices": torch.tensor([0, 1, 0])}
    found["logits"][0, 2], found["logits"][2] = 9.0, 7.0
    found["logits"][1, 0] = torch.tensor([1.0, 1.5])
    report = script.compare(expected, found, mask, ["logits"])
    assert report == {"same_width": pytest.approx(2 / 3), "largest_difference": 1.5, "same_answer": pytest.approx(0.8)}
    places = {"start_logits": torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])}
    moved = {
        "start_logits": places["start_logits"] + torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    }
    report = script.compare(places, moved, mask, ["start_logits"])
    assert report == {"largest_difference": 4.0, "same_answer": pytest.approx(2 / 3)}
    rows = {"logits": torch.tensor([[0.1, 0.2], [0.2, 0.1], [0.0, 1.0]])}
    assert script.compare(rows, rows, mask, ["logits"]) == {"largest_difference": 0.0, "same_answer": 1.0}


# ---- the parts of a routed encoder, without ONNX --------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize("head", SHARCS_CLASSES)
def test_the_parts_give_what_the_model_gives(script, runner, head, layout, tmp_path, monkeypatch):
    graphs = {}

    class Session:
        """Runs a part in PyTorch."""

        def __init__(self, path, providers):
            self.graph, self.inputs, self.outputs = graphs[path.name]

        @torch.no_grad()
        def run(self, names, arrays):
            assert names == self.outputs
            return [values.numpy() for values in self.graph(*(torch.from_numpy(arrays[name]) for name in self.inputs))]

    def keep(graph, inputs, outputs, path, quantize):
        script.keep_used_slices(graph, tuple(inputs.values()))
        graphs[path.name] = graph, list(inputs), list(outputs)
        return 0

    monkeypatch.setattr(script, "export_graph", keep)
    monkeypatch.setattr(runner.onnxruntime, "InferenceSession", Session)
    model = tiny_routed(head, layout, entry="slice" if layout == "bert" else "pooling")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    script.export_routed(model, tmp_path)
    after = model.state_dict()
    assert all(torch.equal(values, after[name]) for name, values in before.items()) and len(before) == len(after)
    run = runner.RoutedRunner(tmp_path)
    batch = uneven_batch(model.config, 8, 13)
    left = {name: values.flip(1) for name, values in batch.items()}
    shorter = uneven_batch(model.config, 5, 9)
    taken = [assert_runs_alike(run, model, inputs, run.outputs) for inputs in (batch, left, shorter)]
    assert max(map(len, taken)) > 1, "no batch was split"
    # Another price than the stored one, at either end.
    for price, index in ((-1e6, 2), (1e6, 0)):
        assert run(price=price, **as_arrays(batch))["width_indices"].tolist() == [index] * 8
    with pytest.raises(ValueError, match="The inputs are input_ids, attention_mask.*, not input_ids"):
        run(input_ids=batch["input_ids"].numpy())
    with pytest.raises(ValueError, match=r"All inputs must have one shape, \(batch, tokens\), got .*\(8, 5\)"):
        run(**{**as_arrays(batch), "attention_mask": batch["attention_mask"][:, :5].numpy()})


def test_a_folder_without_a_routed_encoder_is_refused(runner, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no routing.json; give a folder that export_onnx.py wrote"):
        runner.RoutedRunner(tmp_path)


# ---- torch.export ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["subnet", "routed"])
def test_torch_export(kind):
    model = tiny_subnet("sequence-classification", "bert") if kind == "subnet" else tiny_routed()
    arguments = {} if kind == "subnet" else {"width": 0.5}
    batch = make_batch(model.config)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {**dict.fromkeys(batch, axes), **dict.fromkeys(arguments)}
    exported = torch.export.export(model, (), {**batch, **arguments}, dynamic_shapes=shapes).module()
    for rows, tokens in SHAPES:
        batch = uneven_batch(model.config, rows, tokens)
        with torch.no_grad():
            found, expected = exported(**batch, **arguments), model(**batch, **arguments)
        assert_close(found.logits, expected.logits, atol=1e-5)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda: tiny_supernet(), {}, "is a supernet, whose weights depend on the architecture; take a subnet out"),
        (lambda: tiny_sharcs(), {}, "has no router price, so that every row would take the widest path. Set one"),
        (lambda: tiny_sharcs(), {"compute_budget": 0.5}, "calibrat"),
        (lambda: tiny_sharcs(), {"width": 0.3}, r"has the widths \[0.25, 0.5, 1.0\], not 0.3"),
        (lambda: tiny_backbone(), {"width": 0.5}, "--width is for SHARCS models; .* is a 'bert' model"),
        (lambda: tiny_backbone(), {"compute_budget": 0.5}, "--compute_budget is for SHARCS models"),
    ],
)
def test_what_cannot_be_exported_is_refused(script, make, options, message, tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        script.load_model(script.ExportArguments(str(tmp_path), "out", **options))


def test_other_models_are_refused(script, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    with pytest.raises(ValueError, match=r"is a 'distilbert' model; this script exports subnets \(bert, roberta"):
        script.load_model(script.ExportArguments(str(tmp_path), "out"))


def test_a_width_and_a_budget_contradict(script):
    with pytest.raises(ValueError, match="--width 0.5 runs every row at one width, so that --compute_budget 0.4"):
        script.ExportArguments("model", "out", width=0.5, compute_budget=0.4)


def test_missing_packages_are_named(script):
    with pytest.raises(ValueError, match=r"The export needs not_there: pip install -c constraints.txt -e '.\[onnx\]'"):
        script.require_packages(["json", "not_there"])


def test_a_budget_sets_the_price(script, tmp_path):
    model = tiny_routed()
    model.calibrate([make_batch(model.config, 8, 13)])
    expected = model.set_compute_budget(0.8)
    model.config.router_price = None
    model.save_pretrained(tmp_path)
    loaded = script.load_model(script.ExportArguments(str(tmp_path), "out", compute_budget=0.8))
    assert loaded.config.router_price == expected and not loaded.training
