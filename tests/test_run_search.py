# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/architecture-search/run_search.py, from its flags to what it writes; in two processes too."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from test_distributed_mos import torchrun
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from modeling_mos import MosForMaskedLM
from script_utils import contents, read_json, to_flags, write_table
from training_utils import make_rows, make_supernet


SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "architecture-search" / "run_search.py"
SPACE = {"hidden_sizes": [16, 24, 36, 48]}


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tiny_tokenizer) -> dict:
    """A supernet, prepared data, and flags of a search that takes seconds."""
    folder = tmp_path_factory.mktemp("search")
    model = make_supernet(tiny_tokenizer, search_space=SPACE, routing="layer")
    model.save_pretrained(folder / "supernet")
    DatasetDict({"train": make_rows(tiny_tokenizer, 3), "validation": make_rows(tiny_tokenizer, 60)}).save_to_disk(
        folder / "data"
    )
    tiny_tokenizer.save_pretrained(folder / "data" / "tokenizer")
    sizes = [model.count_parameters(getattr(model.search_space, name)()) for name in ("smallest", "largest")]
    return {
        "model_name_or_path": folder / "supernet",
        "dataset_path": folder / "data",
        "max_parameters": sum(sizes) // 2,
        "sequence_length": 16,
        "eval_batch_size": 8,
        "population_size": 12,
        "parent_size": 4,
        "mutation_size": 6,
        "crossover_size": 6,
        "num_rounds": 2,
        "first_slice": 10,
        "num_finalists": 3,
        "use_cpu": True,
        "show_progress": False,
    }


@pytest.fixture
def run_search(load_example):
    module = load_example("architecture-search/run_search.py")
    return lambda settings: module.main(to_flags(settings))


def test_search_from_flags_to_files(run_search, settings, tmp_path):
    results = run_search({**settings, "output_dir": tmp_path})
    assert read_json(tmp_path / "front.json") == results
    assert {file.name for file in tmp_path.iterdir()} == {
        "front.json",
        "front.png",
        "results.jsonl",
        "subnet",
        "supernet",
    }
    assert results["constraints"] == {"max_parameters": settings["max_parameters"]}
    assert results["best"]["parameters"] <= settings["max_parameters"] and results["best"]["rows"] == 60
    cost = results["cost"]
    assert cost["sequences"] < cost["sequences_of_full_evaluation"] == 60 * cost["candidates"]
    subnet = AutoModelForMaskedLM.from_pretrained(tmp_path / "subnet")
    assert subnet.num_parameters() == results["best"]["parameters"]
    assert list(subnet.config.hidden_sizes) == results["best"]["architecture"]["hidden_sizes"]
    AutoTokenizer.from_pretrained(tmp_path / "subnet")
    for name in ("subnet", "supernet"):
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert "evolutionary search by loss" in card and f"max_parameters={settings['max_parameters']:,}" in card
    assert f"{results['best']['score']:.4f}" in (tmp_path / "subnet" / "README.md").read_text(encoding="utf-8")
    supernet = MosForMaskedLM.from_pretrained(tmp_path / "supernet")
    found = supernet.extract_subnet(max_parameters=settings["max_parameters"])
    ids = torch.arange(5, 16)[None]
    torch.testing.assert_close(found.eval()(ids).logits, subnet.eval()(ids).logits)
    # The same command again evaluates nothing and writes the same.
    before = (tmp_path / "results.jsonl").read_bytes()
    assert run_search({**settings, "output_dir": tmp_path}) == results
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_a_front_against_latency(run_search, settings, tmp_path):
    latency = {"trade_off": "latency", "latency_batch_size": 2, "latency_rounds": 1, "max_parameters": None}
    results = run_search({**settings, **latency, "output_dir": tmp_path})
    check = results["latency_check"]
    assert len(check["predicted_milliseconds"]) == len(check["measured_milliseconds"]) > 2
    assert 0 <= check["mean_relative_error"] <= check["largest_relative_error"]
    ratios = np.divide(check["predicted_milliseconds"], check["measured_milliseconds"])
    assert check["common_factor"] == pytest.approx(np.median(ratios))
    beside = np.abs(ratios / np.median(ratios) - 1).max()
    assert check["largest_relative_error_beside_it"] == pytest.approx(beside)
    prices = [entry["latency"] for entry in results["front"]]
    assert prices == sorted(prices) and len({entry["name"] for entry in results["front"]}) == len(prices)
    table = (tmp_path / "latency.json").read_bytes()
    again = run_search({**settings, **latency, "output_dir": tmp_path})
    assert (tmp_path / "latency.json").read_bytes() == table and again["front"] == results["front"]
    with pytest.raises(ValueError, match="was measured with batch_size=2, this search has 3; delete the file"):
        run_search({**settings, **latency, "latency_batch_size": 3, "output_dir": tmp_path})


def test_a_table_that_is_off_by_more_than_a_tenth_is_named(load_example, caplog, tmp_path):
    script = load_example("architecture-search/run_search.py")
    for error, level in ((0.1, "INFO"), (0.12, "WARNING")):
        with caplog.at_level("INFO"):
            check = {"largest_relative_error": error, "largest_relative_error_beside_it": 0.031}
            check |= {"measured_milliseconds": [5.0, 9.0], "predicted_milliseconds": [4.5, 9.0]}
            script.say_latency_check(check, tmp_path / "latency.json", max_latency=5.0)
        record = caplog.records[-1]
        assert record.levelname == level and f"by up to {error:.1%}" in record.message and "3.1%" in record.message
        assert ("latency.json' and search again" in record.message) == (level == "WARNING")


def test_whether_the_best_keeps_the_limit_is_said(load_example, caplog, tmp_path):
    script = load_example("architecture-search/run_search.py")
    check = {"largest_relative_error": 0.02, "largest_relative_error_beside_it": 0.01}
    check |= {"measured_milliseconds": [5.1, 9.0], "predicted_milliseconds": [5.0, 9.0]}
    for limit, said in ((None, False), (5.2, False), (5.0, True)):
        caplog.clear()
        script.say_latency_check(check, tmp_path / "latency.json", max_latency=limit)
        assert ("takes 5.1 ms, measured now; the table predicts 5, and the limit is 5" in caplog.text) == said


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_eval_samples": 0}, "`max_eval_samples` must be at least 1, got 0"),
        ({"data_dir": "glue"}, r"`data_dir` \('glue'\) only acts with --task_name; leave it out"),
        ({"max_seq_length": 64}, r"`max_seq_length` \(64\) only acts with --task_name"),
        ({"latency_rounds": 7}, r"`latency_rounds` \(7\) only acts with a limit on latency or --trade_off latency"),
        ({"latency_batch_size": 8}, r"`latency_batch_size` \(8\) only acts with a limit on latency"),
        (
            {"dataset_path": None, "task_name": "sst2", "mlm_probability": 0.3},
            r"`mlm_probability` \(0.3\) only acts with --dataset_path",
        ),
    ],
)
def test_options_that_would_not_act(run_search, settings, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_search({**settings, "output_dir": tmp_path, **options})


def test_data_longer_than_the_supernet(run_search, settings, tmp_path, tiny_tokenizer):
    model = make_supernet(tiny_tokenizer, search_space=SPACE, max_position_embeddings=8)
    model.save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match=r"sequences of \d+ tokens, the supernet 8 positions; .* --max_seq_length 8"):
        run_search({**settings, "model_name_or_path": tmp_path / "short", "output_dir": tmp_path / "out"})


def test_a_search_by_a_task(run_search, settings, tmp_path, tiny_tokenizer, monkeypatch):
    model = make_supernet(tiny_tokenizer, "sequence-classification", search_space=SPACE, num_labels=2)
    model.save_pretrained(tmp_path / "supernet")
    tiny_tokenizer.save_pretrained(tmp_path / "supernet")
    words = ["sailor", "boats", "letter", "field", "cold", "teacher", "dogs"]
    rows = [(f"the {words[i % 7]} and the {words[i % 5]}", str(i % 3 % 2)) for i in range(30)]
    for name in ("train", "dev"):
        write_table(tmp_path / "SST-2" / f"{name}.tsv", ["sentence", "label"], rows)
    options = {"model_name_or_path": tmp_path / "supernet", "dataset_path": None, "num_rounds": 1}
    options |= {"task_name": "sst2", "data_dir": tmp_path, "output_dir": tmp_path / "out"}
    module, tokenized = sys.modules["run_search"], []
    preprocess = module.preprocess
    monkeypatch.setattr(
        module,
        "preprocess",
        lambda splits, *rest, **more: tokenized.append(list(splits)) or preprocess(splits, *rest, **more),
    )
    results = run_search({**settings, **options})
    assert results["objective"] == "accuracy" and tokenized == [["validation"]]
    subnet = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "subnet").eval()
    batch = tiny_tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = subnet(**batch).logits.argmax(dim=1).tolist()
    right = sum(str(label) == wanted for label, (_, wanted) in zip(predicted, rows, strict=True))
    assert results["best"]["score"] == pytest.approx(right / 30)
    assert results["best"]["score"] == max(found["score"] for found in results["finalists"])
    with pytest.raises(ValueError, match="subnet' is a 'mos_subnet' model, not a supernet; give the folder"):
        run_search({**settings, **options, "model_name_or_path": tmp_path / "out" / "subnet"})
    with pytest.raises(ValueError, match="either --dataset_path .* or --task_name"):
        run_search({**settings, **options, "dataset_path": settings["dataset_path"]})
    # Nothing judges by a head that was never trained.
    with pytest.raises(ValueError, match="supernet' has no trained classifier.*fine-tune the supernet on the task"):
        run_search({**settings, **options, "model_name_or_path": settings["model_name_or_path"]})
    with pytest.raises(ValueError, match="supernet' has no trained lm_head.*: search by a task with --task_name"):
        run_search({**settings, "model_name_or_path": tmp_path / "supernet", "output_dir": tmp_path / "out"})


@pytest.mark.distributed
def test_two_processes_find_what_one_finds(run_search, settings, tmp_path):
    run_search({**settings, "output_dir": tmp_path / "one"})
    torchrun(str(SCRIPT), *to_flags({**settings, "output_dir": tmp_path / "two"}))
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    for name in ("results.jsonl", "front.json"):
        assert one[name] == two[name], name


@pytest.mark.distributed
def test_a_killed_process_stops_the_others_and_a_restart_continues(run_search, settings, tmp_path):
    run_search({**settings, "output_dir": tmp_path / "whole"})
    flags = to_flags({**settings, "output_dir": tmp_path / "killed"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without torchrun, which would end the others.
    shared = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in ("0", "1"):
        own = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        with open(tmp_path / f"log_{rank}", "wb") as log:
            command = [sys.executable, str(SCRIPT), *flags]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **shared, **own}))
    try:
        wait_for_lines(tmp_path / "killed" / "results.jsonl", 6, processes[0], tmp_path / "log_0")
        processes[1].kill()
        assert processes[0].wait(timeout=120) != 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = (tmp_path / "log_0").read_text()
    assert "Another process of this search has stopped" in said and "Start the search again" in said
    run_search({**settings, "output_dir": tmp_path / "killed"})
    whole, killed = (contents(tmp_path / name) for name in ("whole", "killed"))
    for name in ("results.jsonl", "front.json"):
        assert whole[name] == killed[name], name


def wait_for_lines(path: Path, count: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.002)


def test_a_killed_search_continues(run_search, settings, tmp_path):
    run_search({**settings, "output_dir": tmp_path / "whole"})
    flags = to_flags({**settings, "output_dir": tmp_path / "killed"})
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *flags], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        wait_for_lines(tmp_path / "killed" / "results.jsonl", 6, process, tmp_path / "log")
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_search({**settings, "output_dir": tmp_path / "killed"})
    whole, killed = (contents(tmp_path / name) for name in ("whole", "killed"))
    for name in ("results.jsonl", "front.json"):
        assert whole[name] == killed[name], name


def test_bad_input_gets_a_sentence(run_search, settings, tmp_path, tiny_tokenizer):
    settings = {**settings, "output_dir": tmp_path / "out"}
    with pytest.raises(ValueError, match=r"No architecture .* parameters up to .* \(nearest reachable: "):
        run_search({**settings, "max_parameters": 1_000})
    with pytest.raises(ValueError, match="is not a prepared data folder; write one with prepare_pretraining_data.py"):
        run_search({**settings, "dataset_path": tmp_path})
    DatasetDict({"train": make_rows(tiny_tokenizer, 3)}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"has the splits \['train'\], none of them is 'validation'"):
        run_search({**settings, "dataset_path": tmp_path / "data"})
    supernet = MosForMaskedLM.from_pretrained(settings["model_name_or_path"])
    small = make_supernet(tiny_tokenizer, vocab_size=50)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="vocabulary has 50 entries, the tokenizer [0-9]+; the data was prepared for"):
        run_search({**settings, "model_name_or_path": tmp_path / "small"})
    # A search in the folder of another supernet's search.
    run_search({**settings, "num_rounds": 0})
    supernet.lm_head.decoder.bias.data += 1
    supernet.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="holds the results of another search: its supernet is"):
        run_search({**settings, "model_name_or_path": tmp_path / "other"})
