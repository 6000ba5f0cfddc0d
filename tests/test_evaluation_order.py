# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Whoever writes predictions down, or compares them row by row, needs to know whose they are."""

import pytest
from transformers import DataCollatorWithPadding

from testing_utils import assert_close
from trainers import DistillationTrainer, DistillationTrainingArguments, MaskedLMTrainer
from training_utils import (
    make_arguments,
    make_bert,
    make_labelled,
    make_masked,
    make_sharcs_trainer,
    make_subnet,
)


def make_distillation_trainer(tokenizer, path, **overrides):
    return DistillationTrainer(
        make_bert(tokenizer, "sequence-classification", num_labels=3),
        make_arguments(path, DistillationTrainingArguments, **overrides),
        eval_dataset=make_labelled(tokenizer, count=9),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def make_masked_lm_trainer(tokenizer, path, **overrides):
    rows = make_masked(tokenizer, 9)
    return MaskedLMTrainer(make_subnet(tokenizer), make_arguments(path, **overrides), eval_dataset=rows)


@pytest.mark.parametrize("make", [make_distillation_trainer, make_masked_lm_trainer, make_sharcs_trainer])
def test_predictions_come_in_the_order_of_the_rows(tiny_tokenizer, tmp_path, make):
    found = [
        make(tiny_tokenizer, tmp_path, train_sampling_strategy=strategy, per_device_eval_batch_size=2)
        for strategy in ("random", "group_by_length")
    ]
    first, second = (trainer.predict(trainer.eval_dataset) for trainer in found)
    assert (first.label_ids == second.label_ids).all()
    for own, other in zip(as_tuple(first.predictions), as_tuple(second.predictions), strict=True):
        assert_close(own, other)


def as_tuple(predictions):
    return predictions if isinstance(predictions, tuple) else (predictions,)
