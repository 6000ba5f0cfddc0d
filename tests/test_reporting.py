# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What trainers log reaches the programs that `report_to` names."""

import pytest

from testing_utils import tiny_tokenizer
from training_utils import make_sharcs_trainer, train_supernet


@pytest.mark.parametrize("kind", ["supernet", "sharcs"])
def test_tensorboard(kind, tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard: pip install tensorboard"
    )
    tokenizer, options = tiny_tokenizer(), {"report_to": "tensorboard", "eval_strategy": "epoch"}
    if kind == "supernet":
        trainer, expected = train_supernet(tokenizer, tmp_path, **options), "eval/largest_loss"
    else:
        trainer, expected = make_sharcs_trainer(tokenizer, tmp_path, **options), "eval/flops_share"
        trainer.train()
    (folder,) = (tmp_path / "runs").iterdir()
    events = reader.EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/learning_rate", expected} <= set(events.Tags()["scalars"])
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(logged)
