# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Checkpoints exist whole or not at all, whatever happens while one is written."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint

import modeling_mos.folder_lock
from modeling_mos import MosSubnetForMaskedLM
from modeling_mos.folder_lock import hold_folder
from trainers import MaskedLMTrainer, publishing
from trainers.checkpoints import CHECKSUMS_NAME, STAGING_FOLDER, check_files
from training_utils import (
    folders,
    largest_change,
    make_arguments,
    make_masked,
    make_subnet,
    train_masked_lm,
    train_supernet,
    weights_of,
)


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "optim": "adamw_torch", "learning_rate": 1e-3}
FILES = {"config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}


def train(tokenizer, path, **overrides):
    return train_masked_lm(tokenizer, path, make_subnet(tokenizer), **{**SAVING, **overrides})


def fingerprint(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(folder).iterdir()}


def saved_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


class Watch(TrainerCallback):
    """Remembers what lies in the output folder after each checkpoint."""

    def __init__(self):
        self.folders, self.fingerprints = {}, {}

    def on_save(self, args, state, control, **kwargs):
        step = state.global_step
        self.folders[step] = folders(args.output_dir)
        self.fingerprints[step] = fingerprint(Path(args.output_dir) / f"checkpoint-{step}")


class ScriptedMetrics(MaskedLMTrainer):
    """Evaluations that give what the test says."""

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_loss": self.script[self.state.global_step]}
        self.log(metrics)
        return metrics


def train_scripted(tokenizer, path, script, **overrides):
    options = {
        **SAVING,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        **overrides,
    }
    trainer = ScriptedMetrics(
        make_subnet(tokenizer),
        make_arguments(path, **options),
        train_dataset=make_masked(tokenizer),
        eval_dataset=make_masked(tokenizer, 3),
    )
    trainer.script, trainer.watch = script, Watch()
    trainer.add_callback(trainer.watch)
    trainer.train()
    return trainer


# ---- names and contents ---------------------------------------------------------------------------------------------


def test_folders_are_those_of_trainer(tiny_tokenizer, tmp_path):
    train(tiny_tokenizer, tmp_path)
    assert folders(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        assert {file.name for file in folder.iterdir()} >= FILES
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step
    first, last = saved_weights(tmp_path / "checkpoint-2"), saved_weights(tmp_path / "checkpoint-6")
    assert largest_change(first, last) > 0


def test_supernets_are_saved_the_same_way(tiny_tokenizer, tmp_path):
    trainer = train_supernet(tiny_tokenizer, tmp_path, **SAVING, save_total_limit=2)
    assert folders(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    loaded = type(trainer.model).from_pretrained(tmp_path / "checkpoint-6")
    assert largest_change(weights_of(loaded), weights_of(trainer.model)) == 0


def test_best_checkpoint(tiny_tokenizer, tmp_path):
    trainer = train_scripted(tiny_tokenizer, tmp_path, {2: 3.0, 4: 1.0, 6: 2.0})
    best = tmp_path / "checkpoint-4"
    assert Path(trainer.state.best_model_checkpoint) == best
    expected = saved_weights(best)
    found = {name: tensor for name, tensor in trainer.model.state_dict().items() if name in expected}
    assert largest_change(found, expected) == 0
    assert largest_change(found, saved_weights(tmp_path / "checkpoint-6")) > 0
    # Each checkpoint knows the best one of its time, in its place for good.
    for step, best_step in ((2, 2), (4, 4), (6, 4)):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert Path(state["best_model_checkpoint"]) == tmp_path / f"checkpoint-{best_step}"


@pytest.mark.parametrize(
    "script, kept",
    [
        ({2: 1.0, 4: 2.0, 6: 3.0}, {2: [2], 4: [2, 4], 6: [2, 6]}),
        ({2: 3.0, 4: 2.0, 6: 1.0}, {2: [2], 4: [4], 6: [6]}),
        ({2: 3.0, 4: 1.0, 6: 2.0}, {2: [2], 4: [4], 6: [4, 6]}),
    ],
)
def test_limit_keeps_the_best_and_the_last(tiny_tokenizer, tmp_path, script, kept):
    trainer = train_scripted(tiny_tokenizer, tmp_path, script, save_total_limit=1)
    assert trainer.watch.folders == {
        step: [f"checkpoint-{number}" for number in numbers] for step, numbers in kept.items()
    }
    best = tmp_path / f"checkpoint-{min(script, key=script.get)}"
    assert Path(trainer.state.best_model_checkpoint) == best
    # Trainer takes the last one away when the run is over, if it is not the best.
    assert folders(tmp_path) == [best.name]


@pytest.mark.parametrize("limit, kept", [(None, [2, 4, 6]), (2, [4, 6]), (1, [6])])
def test_limit(tiny_tokenizer, tmp_path, limit, kept):
    train(tiny_tokenizer, tmp_path, save_total_limit=limit)
    assert folders(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_save_only_model(tiny_tokenizer, tmp_path):
    train(tiny_tokenizer, tmp_path, max_steps=2, save_only_model=True)
    files = {file.name for file in (tmp_path / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "trainer_state.json"} <= files and "optimizer.pt" not in files


def test_a_checkpoint_is_published_when_it_is_whole(tiny_tokenizer, tmp_path, monkeypatch):
    """Uploads run in the background: what they read must have its name already, and its code beside it."""
    published = []

    def write_script(self, folder):
        (Path(folder) / "zero_to_fp32.py").touch()

    def push(self, folder):
        published.append((folder, fingerprint(folder).keys(), {file.name for file in tmp_path.glob("*.py")}))

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    monkeypatch.setattr(publishing, "_read_written_card", lambda *args: None)
    # As DeepSpeed does; it is no code of the model.
    monkeypatch.setattr(MaskedLMTrainer, "_save_run_state", write_script)
    trainer = MaskedLMTrainer(
        make_subnet(tiny_tokenizer), make_arguments(tmp_path, **SAVING), train_dataset=make_masked(tiny_tokenizer)
    )
    trainer.args.push_to_hub = True
    trainer.train()
    assert [Path(folder).name for folder, _, _ in published] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for _, files, code in published:
        assert files >= FILES
        assert {"configuration_mos_subnet.py", "modeling_mos_subnet.py", "kept_tokens.py"} < code
    assert STAGING_FOLDER.startswith("_")  # which Trainer leaves out of what it uploads


@pytest.mark.parametrize("failure", [LocalEntryNotFoundError("no answer"), RuntimeError("half an answer")])
@pytest.mark.parametrize("strategy, published", [("every_save", 0), ("end", 3)])
def test_a_training_outlives_a_hub_that_does_not_answer(
    tiny_tokenizer, tmp_path, monkeypatch, caplog, failure, strategy, published
):
    """Whether somebody edited the card is not known then: nothing is published over it."""

    def fail(*args, **kwargs):
        raise failure

    pushed = []
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append(folder))
    monkeypatch.setattr(HfApi, "hf_hub_download", fail)
    trainer = MaskedLMTrainer(
        make_subnet(tiny_tokenizer),
        make_arguments(tmp_path, **SAVING, hub_strategy=strategy),
        train_dataset=make_masked(tiny_tokenizer),
    )
    trainer.args.push_to_hub = True
    trainer.hub_model_id = "me/trained"
    trainer.train()
    assert folders(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] and len(pushed) == published
    assert ("is not published: the card on the Hub cannot be read" in caplog.text) == (strategy == "every_save")


# ---- failures in the middle -----------------------------------------------------------------------------------------


class Full(OSError):
    def __init__(self):
        super().__init__(errno.ENOSPC, "No space left on device")


def fails_at(monkeypatch, where: str, step: int, state_of) -> None:
    """Makes one part of saving fail half-way at a step."""

    def broken(original, half_written=None):
        def call(*args, **kwargs):
            if state_of() != step:
                return original(*args, **kwargs)
            if half_written is not None:
                half_written(*args)
            raise Full

        return call

    def cut(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"half a fi")

    if where == "model":
        halve = lambda self, folder, *rest: cut(Path(folder) / "model.safetensors")  # noqa: E731
        monkeypatch.setattr(
            MosSubnetForMaskedLM, "save_pretrained", broken(MosSubnetForMaskedLM.save_pretrained, halve)
        )
    elif where == "optimizer":
        monkeypatch.setattr(torch, "save", broken(torch.save, lambda content, path, *rest: cut(path)))
    elif where == "state":
        monkeypatch.setattr(
            TrainerState, "save_to_json", broken(TrainerState.save_to_json, lambda self, path: cut(path))
        )
    elif where == "rename":
        monkeypatch.setattr(os, "replace", broken(os.replace))
    elif where == "quota":
        # Of this process: beyond it the libraries' own writes fail, each with an error of its own.
        monkeypatch.setattr(Trainer, "_save_checkpoint", broken_by_quota(Trainer._save_checkpoint, step, state_of))


def broken_by_quota(save, step: int, state_of):
    """Files end after so many bytes while a step's checkpoint is written."""

    def call(*args, **kwargs):
        if state_of() != step:
            return save(*args, **kwargs)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            return save(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return call


@pytest.mark.parametrize("where", ["model", "optimizer", "state", "rename"])
def test_failure_leaves_the_earlier_checkpoints_whole(tiny_tokenizer, tmp_path, monkeypatch, where):
    undisturbed = train(tiny_tokenizer, tmp_path / "undisturbed")
    path = tmp_path / "disturbed"
    model = make_subnet(tiny_tokenizer)
    trainer = MaskedLMTrainer(
        model, make_arguments(path, **SAVING, save_total_limit=1), train_dataset=make_masked(tiny_tokenizer)
    )
    watch = Watch()
    trainer.add_callback(watch)
    with monkeypatch.context() as patches:
        fails_at(patches, where, 4, lambda: trainer.state.global_step)
        with pytest.raises(OSError, match=r"checkpoint-4' could not be written .*No space.*continues from .*-2'"):
            trainer.train()
    # save_total_limit=1: the only checkpoint must outlive the attempt to write its successor.
    assert folders(path) == ["checkpoint-2"]
    assert fingerprint(path / "checkpoint-2") == watch.fingerprints[2]
    assert Path(get_last_checkpoint(path)) == path / "checkpoint-2"

    resumed = train(tiny_tokenizer, path, resume=get_last_checkpoint(path), save_total_limit=1)
    assert folders(path) == ["checkpoint-6"]
    assert largest_change(weights_of(resumed.model), weights_of(undisturbed.model)) == 0


def test_a_file_that_grows_too_large_leaves_the_earlier_checkpoint(tiny_tokenizer, tmp_path, monkeypatch):
    """The file system's own refusal, which each library puts into another error."""
    trainer = MaskedLMTrainer(
        make_subnet(tiny_tokenizer), make_arguments(tmp_path, **SAVING), train_dataset=make_masked(tiny_tokenizer)
    )
    fails_at(monkeypatch, "quota", 4, lambda: trainer.state.global_step)
    with pytest.raises(OSError, match="checkpoint-4' could not be written .*continues from .*-2'. Free space"):
        trainer.train()
    assert folders(tmp_path) == ["checkpoint-2"]
    check_files(tmp_path / "checkpoint-2")


def test_a_first_checkpoint_that_fails_has_none_before_it(tiny_tokenizer, tmp_path, monkeypatch):
    fails_at(monkeypatch, "optimizer", 2, lambda: 2)
    with pytest.raises(OSError, match="checkpoint-2' could not be written .*; there is none before it"):
        train(tiny_tokenizer, tmp_path)


# ---- damage afterwards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer_state.json", "optimizer.pt"])
def test_damaged_files_are_refused_by_name(tiny_tokenizer, whole_run, tmp_path, name, damage):
    shutil.copytree(whole_run, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-2" / name
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content[:-10] if damage == "cut" else content)
    if damage == "missing":
        file.unlink()
    with pytest.raises(ValueError, match=f"{name}' (was cut or altered|is missing).*; continue from an earlier"):
        train(tiny_tokenizer, tmp_path / "run", max_steps=2, resume=True)


@pytest.fixture(scope="module")
def whole_run(tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_tokenizer, folder, max_steps=2)
    return folder


def test_checksums_that_are_damaged_are_refused_and_those_deleted_are_not_missed(tiny_tokenizer, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    listed = tmp_path / "run" / "checkpoint-2" / CHECKSUMS_NAME
    listed.write_text(listed.read_text()[:-20])
    with pytest.raises(ValueError, match=f"{CHECKSUMS_NAME}' is damaged .*continue from an earlier checkpoint"):
        train(tiny_tokenizer, tmp_path / "run", max_steps=2, resume=True)
    listed.unlink()
    train(tiny_tokenizer, tmp_path / "run", max_steps=2, resume=True)


def test_a_run_continued_from_an_older_checkpoint_writes_over_the_newer_ones(tiny_tokenizer, tmp_path):
    train(tiny_tokenizer, tmp_path)
    for step in (4, 6):
        (tmp_path / f"checkpoint-{step}" / "left_over").write_text("")
    undisturbed = fingerprint(tmp_path / "checkpoint-4")["model.safetensors"]
    train(tiny_tokenizer, tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert folders(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert fingerprint(tmp_path / "checkpoint-4")["model.safetensors"] == undisturbed
    assert not list(tmp_path.glob("*/left_over"))


def test_what_a_kill_left_behind_is_no_checkpoint_and_is_cleared(tiny_tokenizer, tmp_path):
    half = tmp_path / STAGING_FOLDER / "checkpoint-99"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half a fi")
    assert get_last_checkpoint(tmp_path) is None
    train(tiny_tokenizer, tmp_path, max_steps=2)
    assert folders(tmp_path) == ["checkpoint-2"]


def test_a_worker_that_lives_on_holds_no_folder(tmp_path):
    """Data loaders fork workers while the folder is held, and persistent ones outlive the training."""
    context = multiprocessing.get_context("fork")
    leave = context.Event()
    with hold_folder(tmp_path, "training"):
        worker = context.Process(target=leave.wait, daemon=True)
        worker.start()
    try:
        with hold_folder(tmp_path, "training"):
            pass
    finally:
        leave.set()
        worker.join()


def test_one_process_trains_into_a_folder(tiny_tokenizer, tmp_path, monkeypatch):
    """What a launcher that was killed leaves behind would write the same checkpoints."""
    with hold_folder(tmp_path, "training"):
        with pytest.raises(ValueError, match=rf"Another process is training into '{tmp_path}'\. Wait .* or end it"):
            train(tiny_tokenizer, tmp_path)
        assert not folders(tmp_path)

    class Break(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            with pytest.raises(ValueError, match="Another process is training"), hold_folder(tmp_path, "training"):
                pass
            raise KeyboardInterrupt

    trainer = MaskedLMTrainer(
        make_subnet(tiny_tokenizer),
        make_arguments(tmp_path, **SAVING),
        train_dataset=make_masked(tiny_tokenizer, 12),
        callbacks=[Break()],
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    train(tiny_tokenizer, tmp_path, max_steps=2)  # free again

    # Where there are no locks, nobody is kept away.
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(modeling_mos.folder_lock.fcntl, "flock", refuse)
    train(tiny_tokenizer, tmp_path, max_steps=2)
    monkeypatch.setattr(modeling_mos.folder_lock, "fcntl", None)
    train(tiny_tokenizer, tmp_path, max_steps=2)
