# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/language-modeling/run_mlm_mos.py, from its flags to what it writes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

import trainers.model_cards
from modeling_mos import MosForMaskedLM, MosSubnetForMaskedLM
from synthetic_data import generate_documents
from testing_utils import table_of
from training_utils import folders, largest_change, weights_of


SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "language-modeling" / "run_mlm_mos.py"
CONFIGS = SCRIPT.parent / "configs"
SPACE = {"hidden_sizes": [12, 24], "intermediate_sizes": [13, 31]}
MODEL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 31,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "search_space": SPACE,
    "router_hidden_size": 7,
}
TRAINING = {
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "learning_rate": 0.002,
    "logging_steps": 1,
    "save_steps": 2,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 3,
}


def to_flags(settings: dict) -> list[str]:
    flags = []
    for name, value in settings.items():
        if isinstance(value, list):
            flags += [f"--{name}", *(str(entry) for entry in value)]
        elif value is not None:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("language-modeling/run_mlm_mos.py")


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(" ".join(text.split()) + "\n" for text in generate_documents(25)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(load_example, text_file, tmp_path_factory) -> Path:
    """A prepared folder with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    preparation = load_example("language-modeling/prepare_pretraining_data.py")
    preparation.prepare(
        preparation.PreparationArguments(
            output_dir=str(folder),
            train_file=[str(text_file)],
            validation_split_percentage=20,
            train_tokenizer_vocab_size=211,
            max_seq_length=19,
        )
    )
    return folder


@pytest.fixture(scope="module")
def settings(data) -> dict:
    return {**MODEL, **TRAINING, "dataset_path": str(data), "max_eval_samples": 13}


@pytest.fixture(scope="module")
def supernet(script, settings, tmp_path_factory) -> tuple[Path, dict]:
    """A finished run that others start from: its folder and the metrics that it returned."""
    folder = tmp_path_factory.mktemp("runs") / "supernet"
    metrics = script.main(to_flags({**settings, "output_dir": str(folder), "save_row_losses": True}))
    return folder, metrics


@pytest.fixture
def run(script, settings, tmp_path, monkeypatch):
    """Runs the script in this process, without figures, with settings that arguments replace; gives its metrics."""
    monkeypatch.setattr(trainers.model_cards, "is_matplotlib_available", lambda: False)

    def call(**options):
        return script.main(to_flags({**settings, "output_dir": str(tmp_path / "out"), **options}))

    return call


def saved_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def save_bert(folder, vocab_size: int) -> BertForMaskedLM:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "initializer_range")
    model = BertForMaskedLM(BertConfig(vocab_size=vocab_size, **{name: MODEL[name] for name in names}))
    model.save_pretrained(folder)
    return model


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--search_space", "--dataset_path", "--architecture_sampling", "--train_architecture"):
        assert flag in text


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_argument_files(script, settings, supernet, tmp_path, suffix):
    content = {**settings, "output_dir": str(tmp_path / "wrong")}
    path = tmp_path / f"arguments{suffix}"
    path.write_text(json.dumps(content) if suffix == ".json" else yaml.safe_dump(content))
    # A flag after the file wins.
    metrics = script.main([str(path), "--output_dir", str(tmp_path / "right")])
    assert not (tmp_path / "wrong").exists()
    assert largest_change(saved_weights(tmp_path / "right"), saved_weights(supernet[0])) == 0
    assert metrics["eval_largest_loss"] == supernet[1]["eval_largest_loss"]


def test_misspelt_names(script, settings, tmp_path):
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps({**settings, "hiden_size": 8}))
    with pytest.raises(ValueError, match=r"Unknown key 'hiden_size' in .*did you mean 'hidden_size'"):
        script.main([str(path), "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"'--serch_space'; did you mean '--search_space'"):
        script.main([*to_flags(settings), "--output_dir", str(tmp_path), "--serch_space", "v1"])


# ---- a supernet -----------------------------------------------------------------------------------------------------


def test_supernet_is_trained_and_saved(supernet, data):
    folder, metrics = supernet
    names = {file.name for file in folder.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "trainer_state.json",
        "training.png",
        "train_results.json",
        "eval_results.json",
        "row_losses.safetensors",
    }
    assert folders(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    scores = {row["metric"]: row["value"] for row in table_of(ModelCard.load(folder / "README.md"), "metric")}
    assert scores["largest_perplexity"] == f"{metrics['eval_largest_perplexity']:.4f}"
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert type(model) is MosForMaskedLM
    assert model.config.search_space["hidden_sizes"] == [12, 24]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(data / "tokenizer").get_vocab()
    assert model.config.vocab_size == len(tokenizer)
    assert model(**tokenizer("the old [MASK]", return_tensors="pt")).logits.isfinite().all()
    saved = json.loads((folder / "eval_results.json").read_text())
    for name in ("eval_loss", "eval_largest_loss", "eval_smallest_loss", "eval_smallest_perplexity"):
        assert saved[name] == metrics[name]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "random_0_loss" in entry] == [1, 2, 3, 4, 5]


def test_row_losses(supernet):
    folder, metrics = supernet
    rows = load_file(folder / "row_losses.safetensors")
    assert sorted(rows) == ["largest.count", "largest.loss", "smallest.count", "smallest.loss"]
    assert torch.equal(rows["largest.count"], rows["smallest.count"])
    for name in ("largest", "smallest"):
        assert rows[f"{name}.loss"].shape == (13,)
        mean = rows[f"{name}.loss"].double().sum() / rows[f"{name}.count"].sum()
        assert mean.item() == pytest.approx(metrics[f"eval_{name}_loss"], rel=1e-6)
    assert not torch.equal(rows["largest.loss"], rows["smallest.loss"])
    assert not list(folder.glob("*.partial"))


def test_evaluation_masks_do_not_depend_on_the_seed(run, supernet, tmp_path):
    run(seed=8, max_steps=1, save_row_losses=True)
    rows, others = (load_file(path / "row_losses.safetensors") for path in (tmp_path / "out", supernet[0]))
    assert torch.equal(rows["largest.count"], others["largest.count"])
    assert not torch.equal(rows["largest.loss"], others["largest.loss"])


def test_a_finished_run_given_again_stays_as_it_is(script, settings, supernet, tmp_path):
    options = {**settings, "output_dir": str(tmp_path), "max_steps": 2, "lr_scheduler_type": "constant"}
    first = script.main(to_flags(options))
    weights = saved_weights(tmp_path)
    again = script.main(to_flags(options))
    assert again["eval_loss"] == first["eval_loss"]
    assert largest_change(weights, saved_weights(tmp_path)) == 0
    assert folders(tmp_path) == ["checkpoint-2"]
    # With more steps it goes on from where it ended.
    script.main(to_flags({**options, "max_steps": 3}))
    assert folders(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert largest_change(weights, saved_weights(tmp_path)) > 0


def test_killed_run_goes_on_when_the_command_is_given_again(settings, supernet, tmp_path):
    output = tmp_path / "killed"
    command = [str(SCRIPT), *to_flags({**settings, "output_dir": str(output), "save_total_limit": 2})]
    # The first run waits at the end of step 3, after its first checkpoint, to be killed there.
    waiting = (
        "import runpy, sys, time, transformers\n"
        "original = transformers.trainer_callback.DefaultFlowCallback.on_step_end\n"
        "def on_step_end(self, args, state, control, **kwargs):\n"
        "    if state.global_step == 3:\n"
        "        time.sleep(600)\n"
        "    return original(self, args, state, control, **kwargs)\n"
        "transformers.trainer_callback.DefaultFlowCallback.on_step_end = on_step_end\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    process = start(["-c", waiting, *command])
    try:
        deadline = time.monotonic() + 180
        while not (output / "checkpoint-2").is_dir():
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (output / "model.safetensors").exists()
    again = start(command)
    text = again.communicate(timeout=180)[0].decode()
    assert again.returncode == 0, text
    assert f"Continuing from {output / 'checkpoint-2'}" in text
    assert largest_change(saved_weights(output), saved_weights(supernet[0])) == 0
    assert folders(output) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.distributed
def test_two_processes_train_the_same_supernet(run, settings, tmp_path):
    options = {"optim": "sgd", "learning_rate": 0.05, "max_steps": 3, "distillation": ["logits"]}
    alone = run(**options, gradient_accumulation_steps=2)
    output = tmp_path / "together"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    process = start([*command, *to_flags({**settings, **options, "output_dir": str(output)})])
    text = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, text[-6000:]
    assert largest_change(saved_weights(output), saved_weights(tmp_path / "out")) < 1e-5
    found = json.loads((output / "eval_results.json").read_text())
    assert found["eval_smallest_loss"] == pytest.approx(alone["eval_smallest_loss"], rel=1e-5)


# ---- single architectures -------------------------------------------------------------------------------------------


def test_a_subnet_of_a_saved_supernet(run, supernet, tmp_path):
    metrics = run(model_name_or_path=str(supernet[0]), train_architecture="smallest", max_steps=1)
    assert "eval_perplexity" in metrics and "eval_largest_loss" not in metrics
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert type(model) is MosSubnetForMaskedLM
    assert model.config.hidden_sizes == [12, 12] and model.config.intermediate_sizes == [13, 13]
    # It began as the supernet's slice, so one small step later it is still close to it.
    parent = MosForMaskedLM.from_pretrained(supernet[0])
    begun = parent.extract_subnet(parent.search_space.smallest())
    assert 0 < largest_change(weights_of(model), weights_of(begun)) < 0.01
    # A subnet can be trained on.
    run(model_name_or_path=str(tmp_path / "out"), output_dir=str(tmp_path / "more"), max_steps=1)
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "more")) is MosSubnetForMaskedLM


@pytest.mark.parametrize("form", ["json", "file"])
def test_sizes_as_json(run, supernet, tmp_path, form):
    text = json.dumps({"hidden_sizes": [24, 12], "intermediate_sizes": [13, 31]})
    if form == "file":
        path = tmp_path / "architecture.json"
        path.write_text(text)
        text = str(path)
    run(model_name_or_path=str(supernet[0]), train_architecture=text, max_steps=1)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.config.hidden_sizes == [24, 12] and model.config.intermediate_sizes == [13, 31]


def test_a_baseline_inside_the_supernet(run, tmp_path):
    sizes = json.dumps({"hidden_sizes": [12, 24], "intermediate_sizes": [31, 13]})
    metrics = run(default_architecture=sizes, architecture_sampling="fixed", max_steps=2)
    assert "eval_default_loss" in metrics and "eval_largest_loss" not in metrics
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert type(model) is MosForMaskedLM
    assert model.default_architecture.hidden_sizes == (12, 24)
    assert model.default_architecture.intermediate_sizes == (31, 13)


def test_without_bottlenecks_the_largest_is_a_stock_bert(run, tmp_path):
    space = {**SPACE, "bottleneck": False}
    metrics = run(search_space=space, train_architecture="largest", max_steps=2)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert type(model) is BertForMaskedLM
    assert (model.config.hidden_size, model.config.intermediate_size) == (24, 31)
    assert metrics["eval_perplexity"] > 1


def test_from_a_stock_backbone(run, data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    backbone = save_bert(tmp_path / "bert", vocab_size=len(tokenizer))
    run(model_name_or_path=str(tmp_path / "bert"), max_steps=1, learning_rate=1e-9, routing="layer", num_experts=3)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert type(model) is MosForMaskedLM and model.config.routing == "layer" and model.config.num_experts == 3
    batch = tokenizer("the old [MASK]", return_tensors="pt")
    torch.testing.assert_close(model(**batch).logits, backbone.eval()(**batch).logits, atol=1e-4, rtol=1e-4)


# ---- distillation ---------------------------------------------------------------------------------------------------


def test_outside_teacher(run, supernet, tmp_path):
    run(teacher_name_or_path=str(supernet[0]), distillation=["logits"], max_steps=2)
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert "largest_distillation_logits" in history[0]


def test_teacher_without_a_head(run, supernet, tmp_path):
    AutoModel.from_pretrained(supernet[0]).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="teacher' has no trained lm_head.*choose a masked language model as the"):
        run(teacher_name_or_path=str(tmp_path / "teacher"), distillation=["logits"])


def test_teacher_with_another_vocabulary(run, tmp_path):
    save_bert(tmp_path / "teacher", vocab_size=77)
    with pytest.raises(ValueError, match="teacher's vocabulary has 77 entries, the student's"):
        run(teacher_name_or_path=str(tmp_path / "teacher"), distillation=["logits"])


# ---- data -----------------------------------------------------------------------------------------------------------


def test_text_is_prepared_on_the_fly_and_once(run, text_file, tmp_path):
    options = {"dataset_path": None, "train_file": [str(text_file)], "train_tokenizer_vocab_size": 150}
    options |= {"max_seq_length": 17, "validation_split_percentage": 20, "max_steps": 1}
    first = run(**options)
    prepared = tmp_path / "out" / "_data"
    assert (prepared / "dataset_dict.json").is_file()
    written = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.arrow")}
    assert run(**options)["eval_loss"] == first["eval_loss"]
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.arrow")} == written
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.vocab_size <= 150


def test_limits_of_samples(run, script, monkeypatch):
    sizes = []
    original = script.SupernetTrainer

    def spy(*args, **kwargs):
        sizes.append((len(kwargs["train_dataset"]), len(kwargs["eval_dataset"])))
        return original(*args, **kwargs)

    monkeypatch.setattr(script, "SupernetTrainer", spy)
    run(max_train_samples=6, max_eval_samples=3, max_steps=1)
    assert sizes == [(6, 3)]


# ---- messages -------------------------------------------------------------------------------------------------------


def test_no_data(run):
    with pytest.raises(ValueError, match="Name the data: --dataset_path"):
        run(dataset_path=None)


def test_a_folder_that_is_not_prepared(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a prepared data folder; write one with prepare_pretraining_data.py"):
        run(dataset_path=str(tmp_path / "empty"))


def test_tokenizer_larger_than_the_model(run, tmp_path):
    save_bert(tmp_path / "small", vocab_size=50)
    with pytest.raises(ValueError, match="vocabulary has 50 entries, the tokenizer"):
        run(model_name_or_path=str(tmp_path / "small"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"search_space": '{"hidden_sizes": [12'}, "--search_space is not valid JSON"),
        ({"train_architecture": '{"hidden_sizes": [12'}, "The architecture is not valid JSON"),
        ({"train_architecture": '{"hidden_size": [12, 12]}'}, "Unknown size 'hidden_size' of an architecture"),
        ({"train_architecture": '{"hidden_sizes": [12, 13]}'}, "13"),
        ({"train_architecture": "60m"}, "front"),
        ({"train_architecture": "smallest", "teacher_name_or_path": "anything"}, "a single architecture is trained"),
    ],
)
def test_options_that_cannot_be(run, options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.parametrize("option", ["train_architecture", "default_architecture"])
def test_a_subnet_has_no_architectures_to_choose(run, supernet, tmp_path, option):
    parent = MosForMaskedLM.from_pretrained(supernet[0])
    parent.extract_subnet(parent.search_space.smallest()).save_pretrained(tmp_path / "subnet")
    with pytest.raises(ValueError, match=f"--{option} .* supernet, but the model is not one"):
        run(model_name_or_path=str(tmp_path / "subnet"), **{option: "smallest"})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("mlm_mos_*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_argument_file_is_read(script, path, tmp_path):
    types = (script.ModelArguments, script.DataArguments, script.SupernetTrainingArguments)
    # bf16 and data loader workers of the published recipe need not exist here.
    overrides = [
        "--output_dir",
        str(tmp_path),
        "--bf16",
        "false",
        "--use_cpu",
        "true",
        "--load_best_model_at_end",
        "0",
    ]
    model_arguments, data_arguments, training_arguments = script.parse_arguments(types, [str(path), *overrides])
    space = script.parse_search_space(model_arguments.search_space)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: getattr(model_arguments, name) for name in names}
    if model_arguments.model_name_or_path == "sentence-transformers/all-MiniLM-L6-v2":  # brings its own
        sizes = dict(zip(names, (384, 6, 12, 1536), strict=True))
    config = script.MosConfig(
        **sizes,
        search_space=space,
        routing=model_arguments.routing,
        num_experts=model_arguments.num_experts,
    )
    assert len(config.build_search_space().hidden_sizes) > 1
    written = yaml.safe_load(path.read_text())
    for name, value in written.items():
        if name in {override.lstrip("-") for override in overrides}:
            continue
        holder = next(part for part in (model_arguments, data_arguments, training_arguments) if hasattr(part, name))
        found = getattr(holder, name)
        found = "none" if found == [] else getattr(found, "value", found)
        assert found == value or str(found) == str(value), name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"routing": "layer"}, "has routing='neuron', but 'layer' is asked for; drop the option"),
        ({"num_experts": 3}, "has num_experts=2, but 3 is asked for"),
        ({"hidden_size": 48}, "has hidden_size=24, but 48 is asked for"),
        ({"search_space": {"hidden_sizes": [24]}}, "has search_space=.* is asked for"),
    ],
)
def test_options_that_contradict_a_saved_supernet(run, supernet, options, message):
    with pytest.raises(ValueError, match=message):
        run(model_name_or_path=str(supernet[0]), **options)


def test_an_output_folder_of_another_run_is_refused(run, tmp_path):
    run(max_steps=2)
    before = saved_weights(tmp_path / "out")
    for options, message in (
        ({"routing": "layer"}, "its routing is 'neuron', this run's is 'layer'. Choose another --output_dir"),
        ({"router_input": "constant"}, "its router_input is 'scaled', this run's is 'constant'"),
        ({"train_architecture": "smallest"}, "its model_type is 'mos', this run's is 'mos_subnet'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**options)
    assert largest_change(before, saved_weights(tmp_path / "out")) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"architecture_sampling": "fixed", "default_architecture": "largest"},
        {"train_architecture": "smallest"},
    ],
)
def test_best_checkpoint_of_one_architecture(run, tmp_path, options):
    """The published recipe chooses by the largest network, which these runs do not evaluate by that name."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_largest_loss", "greater_is_better": False}
    run(**best, **options, eval_strategy="steps", eval_steps=2, max_steps=4)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["best_metric"] == min(entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry)


def test_an_ordinary_subnet_is_trained_as_it_is(run, tmp_path):
    space = {**SPACE, "bottleneck": False}
    run(search_space=space, train_architecture="smallest", max_steps=1)
    run(model_name_or_path=str(tmp_path / "out"), as_is=True, output_dir=str(tmp_path / "more"), max_steps=1)
    further = AutoModelForMaskedLM.from_pretrained(tmp_path / "more")
    assert type(further) is BertForMaskedLM and further.config.hidden_size == 12
    assert largest_change(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "more")) > 0
