# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/architecture-search/run_chain.py: every step for real, at the smallest sizes."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

from example_utils import check_same_command, run_logged
from script_utils import make_tokenizer, read_json, save_backbone, write_table
from synthetic_data import generate_documents


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chain")
    documents = ["\n".join(document) for document in generate_documents(12, seed=1)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    tokenizer = make_tokenizer(documents)
    save_backbone(folder / "teacher", tokenizer, "bert", "base")
    rows = [
        (f"{documents[i % 12][:30]} {word}".replace("\n", " "), i % 2) for i, word in enumerate(["one", "two"] * 8)
    ]
    for name in ("train", "dev"):
        write_table(folder / "glue" / "SST-2" / f"{name}.tsv", ["sentence", "label"], rows)
    mlm = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "search_space": json.dumps({"hidden_sizes": [8, 12, 16, 20, 24]}),
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    (folder / "mlm.json").write_text(json.dumps(mlm), encoding="utf-8")
    return {
        "train_file": [str(folder / "text.txt")],
        "teacher_name_or_path": str(folder / "teacher"),
        "data_dir": str(folder / "glue"),
        "tasks": ["sst2"],
        "mlm_config": str(folder / "mlm.json"),
        "max_steps": 2,
        "max_seq_length": 16,
        "max_eval_samples": 16,
        "validation_split_percentage": 30,
        "size_share": 0.7,
        "window": 0.5,
        "num_random": 3,
        "search": {"population_size": 6, "parent_size": 2, "mutation_size": 2, "crossover_size": 2, "num_rounds": 1},
        "finetuning": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
        "use_cpu": True,
    }


def run(load_example, files: dict, folder, arms: list[str]) -> None:
    path = folder / "arguments.json"
    path.write_text(json.dumps({**files, "arms": arms, "output_dir": str(folder / "out")}), encoding="utf-8")
    load_example("architecture-search/run_chain.py").main([str(path)])


def test_the_chain_of_two_arms(load_example, files, tmp_path):
    run(load_example, files, tmp_path, ["searched", "random"])
    out = tmp_path / "out"
    comparison = read_json(out / "comparison.json")
    networks = read_json(out / "networks.json")
    assert [network["arm"] for network in networks] == ["searched", "random"]
    best = read_json(out / "seed_1" / "search" / "front.json")["best"]
    assert networks[0]["parameters"] == best["parameters"]
    assert list(networks[0]["hidden_sizes"]) == best["architecture"]["hidden_sizes"]
    ranked = read_json(out / "seed_1" / "random_search" / "front.json")["finalists"]
    assert len(ranked) == 3 and ranked[1]["parameters"] == networks[1]["parameters"]
    assert {"teacher", "searched", "random"} <= set(json.dumps(comparison).replace('"', " ").split())
    # Given again, it finds everything there.
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    run(load_example, files, tmp_path, ["searched", "random"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == times
    assert read_json(out / "comparison.json") == comparison
    # With other arguments, it takes none of it for a result of theirs.
    with pytest.raises(ValueError, match="with size_share=0.7, this one has 0.6; choose another --output_dir"):
        run(load_example, {**files, "size_share": 0.6}, tmp_path, ["searched"])
    recipe = {**read_json(Path(files["mlm_config"])), "per_device_train_batch_size": 2}
    (tmp_path / "mlm.json").write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(ValueError, match="with mlm_config.per_device_train_batch_size=4, this one has 2"):
        run(load_example, {**files, "mlm_config": str(tmp_path / "mlm.json")}, tmp_path, ["searched"])


@pytest.mark.slow
def test_the_chain_of_all_arms(load_example, files, tmp_path):
    arms = list(load_example("architecture-search/run_chain.py").ARMS)
    run(load_example, files, tmp_path, arms)
    networks = {network["arm"]: network for network in read_json(tmp_path / "out" / "networks.json")}
    assert list(networks) == arms
    for arm in ("searched_alone", "stand_alone", "from_scratch"):
        assert networks[arm]["hidden_sizes"] == networks["searched"]["hidden_sizes"]
    assert len(set(networks["uniform"]["hidden_sizes"])) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_what_a_step_says_is_shown_on_a_terminal(tmp_path, monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream())
    monkeypatch.setattr("example_utils.STATUS_SECONDS", 0.05)
    code = "import sys, time; print(end=' 2/30\\r 3/30 [00:01]\\r', flush=True); time.sleep(0.5); sys.exit(3)"
    assert run_logged([sys.executable, "-c", code], tmp_path / "log", "run_glue.py") == 3
    shown = sys.stderr.getvalue()
    assert re.search(r"run_glue.py 00:\d\d, 3/30 \[00:01\]", shown) if stream is Terminal else not shown
    assert (tmp_path / "log").read_bytes() == b" 2/30\r 3/30 [00:01]\r"


def test_a_step_that_fails_is_named(load_example, files, tmp_path):
    with pytest.raises(ValueError, match=r"prepare_pretraining_data.py failed with 1: .*nothing.txt.* \(see .*log"):
        run(load_example, {**files, "train_file": ["nothing.txt"]}, tmp_path, ["searched"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ["best"]}, "'best' is no arm; the arms are searched, "),
        ({"size_share": 1.5}, r"`size_share` must lie in \(0, 1\], got 1.5"),
        ({"window": 0.8}, r"`window` must lie in \(0, size_share=0.7\], got 0.8"),
        ({"num_random": 0}, "at least one random subnet"),
        ({"search": "{"}, "--search is not valid JSON: '{'"),
        ({"search": {"rounds": 1}}, "run_search.py would refuse its options: Unknown argument '--rounds'"),
        ({"finetuning": {"logits_weight": 1}}, "run_glue.py would refuse .*: logits_weight says how to learn from a"),
        ({"tasks": ["sst3"]}, "run_glue.py would refuse its options: task_name='sst3' is no GLUE task; did you mean"),
        ({"tasks": ["sst2", "sst2"]}, "--tasks names 'sst2' twice"),
        ({"mlm_config": "nothing.yaml"}, "The argument file 'nothing.yaml' does not exist"),
    ],
)
def test_arguments_that_make_no_sense(load_example, files, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("example_utils.run_logged", lambda *_: pytest.fail("a step was run"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(load_example, {**files, **options}, tmp_path, options.get("arms", ["searched"]))


def test_a_command_may_be_corrected_until_it_has_results(tmp_path):
    path = tmp_path / "command.json"
    (tmp_path / "notes.txt").write_text("A folder may hold what is none of a command's.")
    check_same_command(path, {"train_file": ["nowhere.txt"]})
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "seed_1").mkdir()
    (tmp_path / "seed_1" / "step.log").write_text("There is no such file.")
    check_same_command(path, {"train_file": ["text.txt"]})
    (tmp_path / "seed_1" / "result.json").write_text("{}")
    check_same_command(path, {"train_file": ["text.txt"]})
    with pytest.raises(ValueError, match=r"results of a command with train_file=\['text.txt'\], this one has \['o"):
        check_same_command(path, {"train_file": ["other.txt"]})
