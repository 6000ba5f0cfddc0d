# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Checkpoints that exist whole or not at all."""

import os
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints


# Not of the form "checkpoint-<step>", so that no resume ever picks it up; what begins with "_" is never published.
STAGING_FOLDER = "_unfinished-checkpoint"


class StagedCheckpointMixin:
    """
    Mixin for a `Trainer`: a checkpoint is written to a folder beside, renamed when all processes have finished, and
    only then old ones are deleted, so that a kill at any moment leaves a whole checkpoint to resume from.
    """

    _staging = False

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_FOLDER) if self._staging else folder

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the last checkpoint of a finished run: Trainer would only stop after one step too many.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_run_state(self, folder: str) -> None:
        """Writes what else a run needs to continue into the checkpoint; all processes call it together."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging:
            return  # It is published once it is whole, in the background.
        if self.is_world_process_zero():
            # Of the checkpoint Trainer takes weights and configuration, which need their code.
            for source in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(source, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial):
        run_dir = self._get_output_dir(trial)
        staging = os.path.join(run_dir, STAGING_FOLDER)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = os.path.join(run_dir, name)
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model:
                self._save_run_state(os.path.join(staging, name))
        finally:
            self._staging = False
        # Trainer found the best checkpoint where it was being written, if it is this one.
        if self.state.best_model_checkpoint == os.path.join(staging, name):
            self.state.best_model_checkpoint = final
            if self.args.should_save:
                self.state.save_to_json(os.path.join(staging, name, TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if os.path.isdir(final):  # written by an earlier run that is being continued from an older checkpoint
                shutil.rmtree(final)
            os.replace(os.path.join(staging, name), final)
            shutil.rmtree(staging, ignore_errors=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
