# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/compression/run_compression.py: every method for real, at the smallest sizes."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification, DistilBertConfig
from transformers.utils import is_matplotlib_available

import modeling_mos
import modeling_sharcs
from script_utils import make_tokenizer, read_json, read_table, save_backbone, write_table
from synthetic_data import generate_documents
from testing_utils import randomise_, table_of, tiny_supernet


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
METHODS = ["plain", "sharcs", "mos_subnet", "fewer_layers"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """Arguments of a command on own files, with two classes that a word tells apart."""
    folder = tmp_path_factory.mktemp("compression")
    documents = ["\n".join(document) for document in generate_documents(12, seed=1)]
    tokenizer = make_tokenizer(documents)
    save_backbone(folder / "model", tokenizer, "bert", "base", num_hidden_layers=4)
    for name, count in (("train", 40), ("validation", 24)):
        rows = [
            (documents[row % 12][row : row + 40].replace("\n", " "), "no yes".split()[row % 2]) for row in range(count)
        ]
        write_table(folder / f"{name}.csv", ["text", "label"], rows)
    return {
        "model_name_or_path": str(folder / "model"),
        "train_file": str(folder / "train.csv"),
        "validation_file": str(folder / "validation.csv"),
        "cache_dir": str(folder / "cache"),
        "compute_budget": 0.6,
        "max_seq_length": 16,
        "finetuning": {"num_train_epochs": 2, "per_device_train_batch_size": 8},
        "sharcs": {"router_hidden_size": 4, "calibration_split_percentage": 20},
        "supernet": {"search_space": json.dumps({"hidden_sizes": [4, 8, 16]}), "max_steps": 2},
        "search": {"population_size": 6, "parent_size": 2, "mutation_size": 2, "crossover_size": 2, "num_rounds": 1},
        "resamples": 50,
        "use_cpu": True,
    }


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("compression/run_compression.py")


def run(script, files: dict, out, **options) -> dict:
    path = out.with_suffix(".arguments.json")
    path.write_text(json.dumps({**files, **options, "output_dir": str(out)}), encoding="utf-8")
    return script.main([str(path)])


@pytest.fixture(scope="module")
def finished(script, files, tmp_path_factory, load_example):
    """A whole command, whose steps run in this process: importing torch for each would take longer than all else."""

    def run_here(command, *_):
        load_example(str(Path(command[1]).relative_to(EXAMPLES))).main(command[2:])
        return 0

    out = tmp_path_factory.mktemp("compressed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("example_utils.run_logged", run_here)
        return out, run(script, files, out)


def test_the_table(finished):
    out, results = finished
    assert read_json(out / "results.json") == results
    assert list(results["arms"]) == METHODS and results["left_out"] == {} and results["baseline"] == "plain"
    assert results["rows"] == {"accuracy": 24}
    shares = {method: entry["flops_share"] for method, entry in results["arms"].items()}
    assert shares["plain"] == 1
    for method in METHODS[1:]:
        assert 0.2 < shares[method] < 0.62, method
        low, high = results["arms"][method]["minus_baseline_interval"]
        assert low <= results["arms"][method]["minus_baseline"] <= high
    table = read_table(out / "results.csv")
    assert [row["method"] for row in table] == METHODS
    for row in table:
        assert float(row["score"]) == results["arms"][row["method"]]["score"]
        assert float(row["flops_share"]) == shares[row["method"]]
    assert is_matplotlib_available() == (out / "results.png").exists()


def test_folders_that_are_ready_to_push(finished):
    out, results = finished
    kinds = {"plain": "bert", "sharcs": "sharcs", "mos_subnet": "mos_subnet", "fewer_layers": "bert"}
    for method, kind in kinds.items():
        folder = out / "models" / method
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
        assert not any(
            name.startswith(("checkpoint", "predictions", "all_results", "training_args")) for name in names
        )
        assert "accuracy" in {row["metric"] for row in table_of(ModelCard.load(folder / "README.md"), "metric")}
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.model_type == kind and model.config.id2label == {0: "no", 1: "yes"}
        assert model.num_parameters() == results["arms"][method]["parameters"]
    assert AutoConfig.from_pretrained(out / "models" / "fewer_layers").num_hidden_layers == 2


def test_what_is_finished_is_not_run_again(script, files, finished, monkeypatch):
    out, results = finished
    monkeypatch.setattr("example_utils.run_logged", lambda *_: pytest.fail("a step was run again"))
    for name in ("results.json", "results.csv"):
        (out / name).unlink()
    assert run(script, files, out) == results
    assert read_json(out / "results.json") == results and (out / "results.csv").exists()


def test_other_arguments_in_the_same_folder(script, files, finished):
    with pytest.raises(
        ValueError, match="holds the results of a command with compute_budget=0.6, this one has 0.7; choose"
    ):
        run(script, files, finished[0], compute_budget=0.7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"finetuning": {"num_train_epochs": 2, "learning_rat": 1e-4}},
            "run_glue.py .*'--learning_rat'; did you mean",
        ),
        ({"distillation": {"attention_weight": 1}}, "run_glue.py would refuse its options: Unknown .*_weight'"),
        ({"sharcs": {"router_layers": 2}}, "run_glue_sharcs.py would refuse its options: .*did you mean '--router_"),
        ({"supernet": {"routin": "layer"}}, "run_mlm_mos.py would refuse its options: .*'--routin'; did you mean"),
        ({"finetuning": {"learning_rate": "fast"}}, "run_glue.py would refuse its options: argument --learning_rate"),
        ({"finetuning": {"eval_strategy": "sometimes"}}, "refuse its options: argument --eval_strategy.*'sometimes'"),
        ({"search": {"rounds": 1}}, "run_search.py would refuse its options: Unknown argument '--rounds'"),
    ],
)
def test_options_of_steps_are_read_before_the_first_one(script, files, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("example_utils.run_logged", lambda *_: pytest.fail("a step was run"))
    with pytest.raises(ValueError, match=message):
        run(script, files, tmp_path / "out", **options)


# ---- methods that are left out --------------------------------------------------------------------------------------


def plan(script, files, out, **options):
    """What would be done, without doing it."""
    path = out / "arguments.json"
    path.write_text(json.dumps({**files, **options, "output_dir": str(out)}), encoding="utf-8")
    arguments, data = script.parse_arguments((script.CompressionArguments, script.DataArguments), [str(path)])
    return script.Compression(arguments, script.read_rows(arguments, data), {}).plan()


def test_budgets_out_of_reach(script, files, tmp_path):
    supernet = tiny_supernet(vocab_size=AutoConfig.from_pretrained(files["model_name_or_path"]).vocab_size)
    supernet.save_pretrained(tmp_path / "supernet")
    options = {"compute_budget": 0.1, "supernet_name_or_path": str(tmp_path / "supernet")}
    planned, left_out = plan(script, files, tmp_path, **options)
    assert planned == {}
    assert "a single layer takes 2" in left_out["fewer_layers"]
    assert "with 1 layers before the router and the widths [0.25, 1.0], budgets from 33% on" in left_out["sharcs"]
    assert "the smallest subnet takes " in left_out["mos_subnet"]
    with pytest.raises(ValueError, match="No method can be run: sharcs: with 1 layers.*; fewer_layers: a single"):
        run(script, files, tmp_path / "out", **options)


def test_a_budget_without_a_subnet_is_known_before_a_supernet_is_trained(script, files, tmp_path, monkeypatch):
    monkeypatch.setattr("example_utils.run_logged", lambda *_: pytest.fail("a step was run"))
    planned, left_out = plan(script, files, tmp_path, compute_budget=0.1, methods=["mos_subnet"])
    assert planned == {} and "the smallest subnet takes " in left_out["mos_subnet"]
    planned, left_out = plan(script, files, tmp_path, compute_budget=0.9, methods=["mos_subnet"])
    assert planned["mos_subnet"]["max_flops"] > 0 and left_out == {}


def test_models_that_a_method_does_not_take(script, files, tmp_path):
    model = tmp_path / "distilbert"
    tokenizer = AutoConfig.from_pretrained(files["model_name_or_path"])
    shutil.copytree(files["model_name_or_path"], model)
    config = DistilBertConfig(vocab_size=tokenizer.vocab_size, dim=16, n_layers=3, n_heads=4, hidden_dim=20)
    randomise_(AutoModelForSequenceClassification.from_config(config)).save_pretrained(model)
    planned, left_out = plan(script, files, tmp_path, model_name_or_path=str(model))
    assert set(planned) == {"sharcs", "fewer_layers"} and planned["fewer_layers"] == {"num_hidden_layers": 1}
    assert left_out["mos_subnet"].endswith("camembert models, not of distilbert")
    half, _ = plan(script, files, tmp_path, compute_budget=0.5, methods=["fewer_layers"])
    assert half == {"fewer_layers": {"num_hidden_layers": 2}}  # of 4, with a head
    _, left_out = plan(script, files, tmp_path, supernet={"max_steps": 0}, methods=["mos_subnet"])
    assert left_out == {"mos_subnet": "no supernet is given, and --supernet says to train none"}


@pytest.mark.parametrize("kind", ["mos", "sharcs"])
def test_models_that_are_elastic_already(script, files, tmp_path, kind):
    shutil.copytree(files["model_name_or_path"], tmp_path / kind)
    classes = {"mos": modeling_mos.MosForMaskedLM, "sharcs": modeling_sharcs.SharcsForSequenceClassification}
    options = {"router_layer": 1} if kind == "sharcs" else {}
    classes[kind].from_backbone(files["model_name_or_path"], **options).save_pretrained(tmp_path / kind)
    with pytest.raises(ValueError, match=f"is a '{kind}' model, which is elastic already; give the encoder"):
        run(script, files, tmp_path / "out", model_name_or_path=str(tmp_path / kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_budget": 1.5}, "above 0 and below 1, such as 0.5; got 1.5"),
        ({"methods": ["best"]}, "'best' is no method; the methods are sharcs, mos_subnet, fewer_layers"),
        ({"finetuning": "{"}, "--finetuning is not valid JSON: '{'"),
        ({"sharcs": "[1]"}, r"--sharcs must be a mapping, as .*, not '\[1\]'"),
        ({"finetuning": {"num_train_epochs": 1}}, "num_train_epochs in --finetuning must be at least 2, got 1"),
        ({"validation_file": None}, "There are no validation rows"),
        (
            {"validation_file": None, "validation_split_percentage": 10, "seeds": [1, 2]},
            "holds out other rows for each seed, which cannot be compared row by row",
        ),
        ({"supernet_name_or_path": "MODEL", "methods": ["mos_subnet"]}, "is a 'bert' model, not a supernet"),
    ],
)
def test_arguments_that_make_no_sense(script, files, tmp_path, options, message):
    if options.get("supernet_name_or_path") == "MODEL":
        options = {**options, "supernet_name_or_path": files["model_name_or_path"]}
    with pytest.raises(ValueError, match=message):
        run(script, files, tmp_path / "out", **options)


def test_a_supernet_with_another_vocabulary(script, files, tmp_path):
    tiny_supernet(vocab_size=77).save_pretrained(tmp_path / "supernet")
    with pytest.raises(ValueError, match="has a vocabulary of 77, the model of 35; give a supernet with the model's"):
        plan(script, files, tmp_path, supernet_name_or_path=str(tmp_path / "supernet"), methods=["mos_subnet"])
