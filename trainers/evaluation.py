# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Evaluation in the order of the rows, one progress bar a loop."""

from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import has_length


def close_evaluation_bar(trainer: Trainer) -> None:
    """After an evaluation loop that no event follows: the next one would go on counting in its bar."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback):
            callback.on_predict(trainer.args, trainer.state, trainer.control, metrics={})


class OrderedEvaluationMixin:
    """
    Mixin for a `Trainer`: predictions come in the order of the rows. With `train_sampling_strategy="group_by_length"`
    Trainer shuffles the rows that it evaluates too, and gives predictions back in that order, of which nobody knows.
    """

    def _get_eval_sampler(self, eval_dataset) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None  # accelerate deals them out in their order
        return SequentialSampler(eval_dataset)


__all__ = ["OrderedEvaluationMixin", "close_evaluation_bar"]
