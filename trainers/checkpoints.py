# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Checkpoints that exist whole or not at all."""

import hashlib
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from modeling_mos.folder_lock import hold_folder


# Not of the form "checkpoint-<step>", so that no resume ever picks it up; what begins with "_" is never published.
STAGING_FOLDER = "_unfinished-checkpoint"
CHECKSUMS_NAME = "checksums.json"


def write_checksums(folder: str | os.PathLike) -> None:
    """Writes the SHA-256 of every file of a folder into it."""
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS_NAME)
    digests = {file.relative_to(folder).as_posix(): _digest(file) for file in files}
    (folder / CHECKSUMS_NAME).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def check_files(folder: str | os.PathLike) -> None:
    """
    Raises:
        ValueError: if a file of a checkpoint is missing or not as [`write_checksums`] found it; other trainers'
            checkpoints, which have no checksums, are not looked at.
    """
    listed = Path(folder) / CHECKSUMS_NAME
    if not listed.is_file():
        return
    way_out = "continue from an earlier checkpoint"
    try:
        digests = dict(json.loads(listed.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{str(listed)!r} is damaged ({error}); {way_out}.") from None
    for name, expected in digests.items():
        file = Path(folder) / name
        if not file.is_file():
            raise ValueError(f"{str(file)!r} is missing; {way_out}.")
        if _digest(file) != expected:
            raise ValueError(
                f"{str(file)!r} was cut or altered after it was written; {way_out}, or delete {str(listed)!r} if the "
                "change was meant."
            )


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


class StagedCheckpointMixin:
    """
    Mixin for a `Trainer`: a checkpoint is written to a folder beside, renamed when all processes have finished, and
    only then old ones are deleted, so that a kill at any moment leaves a whole checkpoint to resume from. One whose
    files were damaged since is refused. Weights that are not finite stop the run, before they replace those that are.
    """

    _staging = False

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_FOLDER) if self._staging else folder

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, *args, **kwargs):
        if resume_from_checkpoint:
            last = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else None
            check_files(last or str(resume_from_checkpoint))
        # Trials of a search for hyper-parameters have folders of their own in it.
        alone = self.is_world_process_zero() and trial is None
        with hold_folder(self.args.output_dir, "training") if alone else nullcontext():
            output = super().train(resume_from_checkpoint, trial, *args, **kwargs)
        self._check_weights()
        return output

    def _check_weights(self) -> None:
        """
        Raises:
            ValueError: if training has diverged.
        """
        if self.is_fsdp_enabled:
            return  # Each process has parts of them.
        weights = {name: value for name, value in self.model.named_parameters() if value.is_floating_point()}
        finite = torch.stack([value.detach().isfinite().all().to(self.args.device) for value in weights.values()])
        if finite.all():
            return
        broken = [name for name, whole in zip(weights, finite.tolist(), strict=True) if not whole]
        last = get_last_checkpoint(self.args.output_dir)
        raise ValueError(
            f"Training has diverged: {len(broken)} of {len(weights)} weights hold numbers that are not finite, "
            f"{broken[0]} for one; nothing was saved. Lower the learning rate or clip gradients, and "
            + (f"continue from {last!r}." if last else "start again.")
        )

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the last checkpoint of a finished run: Trainer would only stop after one step too many.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_run_state(self, folder: str) -> None:
        """Writes what else a run needs to continue into the checkpoint; all processes call it together."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing, for Trainer calls it before the checkpoint is whole; `_publish_checkpoint` comes after."""

    def _publish_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            # Of the checkpoint Trainer takes weights and configuration, which need their code; DeepSpeed's scripts
            # (zero_to_fp32.py), which convert what is not taken, stay behind.
            for source in Path(checkpoint_folder).glob("*.py"):
                if not source.name.startswith("zero_to_"):
                    shutil.copy(source, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial):
        run_dir = self._get_output_dir(trial)
        self._check_weights()
        staging = os.path.join(run_dir, STAGING_FOLDER)
        final = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            self._write_checkpoint(model, trial, staging, final)
        except (OSError, RuntimeError, SafetensorError) as error:  # what a full disk is, by library
            shutil.rmtree(staging, ignore_errors=True)
            last = get_last_checkpoint(run_dir)
            left = f"a restart continues from the last whole one, {last!r}" if last else "there is none before it"
            raise OSError(
                f"The checkpoint {final!r} could not be written ({error}); {left}. Free space, or choose another "
                "`output_dir`."
            ) from error
        if self.args.push_to_hub:
            self._publish_checkpoint(final)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, model, trial, staging: str, final: str) -> None:
        staged = os.path.join(staging, os.path.basename(final))
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model:
                self._save_run_state(staged)
        finally:
            self._staging = False
        # Trainer found the best checkpoint where it was being written, if it is this one.
        if self.state.best_model_checkpoint == staged:
            self.state.best_model_checkpoint = final
            if self.args.should_save:
                self.state.save_to_json(os.path.join(staged, TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_checksums(staged)
            if os.path.isdir(final):  # written by an earlier run that is being continued from an older checkpoint
                shutil.rmtree(final)
            os.replace(staged, final)
            shutil.rmtree(staging, ignore_errors=True)
