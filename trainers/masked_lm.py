# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Masked language modeling whose masks are a function of (seed, epoch, sample)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from modeling_mos.modeling_mos_subnet import MaskedLMHeadMixin

from .checkpoints import StagedCheckpointMixin
from .evaluation import OrderedEvaluationMixin
from .passes import check_precision
from .publishing import PublishingMixin


logger = logging.get_logger(__name__)

CHECKED_ROWS = 256  # of a data set, for words that the tokenizer knows
MUCH_UNKNOWN = 0.3


class MaskedLanguageModelingDataset(Dataset):
    """
    Masks tokenised sequences on the fly: the same masks on any number of processes and after a resume, new ones every
    epoch once [`SetEpochCallback`] tells it which; without it (evaluation) the masks never change.

    Args:
        dataset (`datasets.Dataset`):
            Rows with `input_ids` and, optionally, `special_tokens_mask` (1 at tokens that are never masked).
        tokenizer (`PreTrainedTokenizerBase`):
            Gives the mask, padding and special tokens.
        seed (`int`, *optional*, defaults to 0):
            Seed of the masks.
        mlm_probability (`float`, *optional*, defaults to 0.15):
            Share of tokens to predict, of which 80% become the mask token, 10% a random token, 10% stay.

    Raises:
        TypeError: if `dataset` is no data set, or several splits of one.
        ValueError: if the tokenizer has no mask or padding token, `mlm_probability` is not in (0, 1], the column
            `input_ids` is missing, the dataset is empty or holds special tokens only.
    """

    def __init__(self, dataset, tokenizer: PreTrainedTokenizerBase, seed: int = 0, mlm_probability: float = 0.15):
        for name in ("mask_token_id", "pad_token_id"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"The tokenizer has no {name}; masked language modeling needs one.")
        if not 0 < mlm_probability <= 1:
            raise ValueError(f"`mlm_probability` must lie in (0, 1], got {mlm_probability}.")
        if isinstance(dataset, dict):
            raise TypeError(f"Expected one data set, got the splits {list(dataset)}; choose one, `dataset[...]`.")
        if not hasattr(dataset, "column_names"):
            raise TypeError(
                f"Expected a datasets.Dataset with a column `input_ids`, got a {type(dataset).__name__}; make one "
                "with `datasets.Dataset.from_list(rows)`."
            )
        if "input_ids" not in dataset.column_names:
            raise ValueError(
                f"The dataset has the columns {dataset.column_names}, `input_ids` is missing; tokenise it first, for "
                "example with examples/language-modeling/prepare_pretraining_data.py."
            )
        if len(dataset) == 0:
            raise ValueError("The dataset has no rows.")
        self.dataset = dataset
        self.seed = seed
        self.mlm_probability = mlm_probability
        self.mask_token_id = tokenizer.mask_token_id
        self.pad_token_id = tokenizer.pad_token_id
        self.special_ids = np.array(sorted(tokenizer.all_special_ids))
        self.vocab_size = len(tokenizer)
        # Shared memory, so that data loader workers that outlive an epoch see the next one.
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._check_tokens(tokenizer.unk_token_id)

    def _check_tokens(self, unknown: int | None) -> None:
        """A tokenizer of another language makes unknown tokens of words; to train on those succeeds, at a low loss."""
        places = np.linspace(0, len(self.dataset) - 1, min(len(self.dataset), CHECKED_ROWS), dtype=int).tolist()
        columns = self.dataset[places]
        rows = [np.asarray(ids, dtype=np.int64) for ids in columns["input_ids"]]
        special = columns.get("special_tokens_mask", [None] * len(rows))
        kept = np.concatenate([self._never_masked(ids, own) for ids, own in zip(rows, special, strict=True)])
        tokens = np.concatenate(rows)
        words = tokens[~np.isin(tokens, self.special_ids) | (tokens == unknown)]
        share = float((words == unknown).mean()) if len(words) else 1.0
        if kept.all() or share == 1:
            raise ValueError(
                f"There is nothing to predict: {len(places)} rows of {len(self.dataset)}, evenly spaced, hold special "
                f"tokens only (ids {np.unique(tokens)[:10].tolist()}), such as the one of unknown words. Was the text "
                "tokenised with a tokenizer of its language?"
            )
        if share > MUCH_UNKNOWN:
            logger.warning(
                f"{share:.0%} of the words are unknown to the tokenizer (id {unknown}). Was the text tokenised with a "
                "tokenizer of its language?"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    # Not called `set_epoch`: accelerate calls a method of that name each time a data loader starts again, also that of
    # an evaluation, whose masks must not change.
    def set_mask_epoch(self, epoch: int) -> None:
        """Draws other masks from now on, the same for the same epoch; workers of data loaders see it too."""
        self.epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        columns = self.dataset[list(indices)]
        special = columns.get("special_tokens_mask", [None] * len(indices))
        return [
            self._mask(index, np.asarray(ids, dtype=np.int64), kept)
            for index, ids, kept in zip(indices, columns["input_ids"], special, strict=True)
        ]

    def _never_masked(self, ids: np.ndarray, special: Sequence[int] | None) -> np.ndarray:
        return np.isin(ids, self.special_ids) if special is None else np.asarray(special, dtype=bool)

    def _mask(self, index: int, ids: np.ndarray, special: Sequence[int] | None) -> dict[str, np.ndarray]:
        never = self._never_masked(ids, special)
        generator = np.random.Generator(np.random.Philox(key=[self.seed, (int(self.epoch) << 40) + index]))
        chance = generator.random((2, len(ids)))
        asked = (chance[0] < self.mlm_probability) & ~never
        labels = np.where(asked, ids, -100)
        masked = np.where(asked & (chance[1] < 0.8), self.mask_token_id, ids)
        random_words = generator.integers(self.vocab_size, size=len(ids))
        masked = np.where(asked & (chance[1] >= 0.9), random_words, masked)
        return {"input_ids": masked, "labels": labels}

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Pads to the longest row.

        Returns:
            `input_ids`, `attention_mask` and `labels` (-100 where nothing is asked), each of shape `(batch, tokens)`.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), longest), self.pad_token_id),
            "attention_mask": torch.zeros((len(rows), longest), dtype=torch.long),
            "labels": torch.full((len(rows), longest), -100),
        }
        for position, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][position, :length] = torch.from_numpy(row["input_ids"])
            batch["attention_mask"][position, :length] = 1
            batch["labels"][position, :length] = torch.from_numpy(row["labels"])
        return batch


class SetEpochCallback(TrainerCallback):
    """Tells a [`MaskedLanguageModelingDataset`] which epoch begins, also after a resume."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_mask_epoch(int(state.epoch or 0))


class MaskedLMTrainer(PublishingMixin, OrderedEvaluationMixin, StagedCheckpointMixin, Trainer):
    """
    A `Trainer` for a [`MaskedLanguageModelingDataset`]: its own padding, new masks every epoch, and evaluations whose
    loss and perplexity are weighted by predicted tokens on masks that never change. Trains any masked language model;
    with other data sets it is a plain `Trainer` whose checkpoints are written beside and renamed when whole.
    """

    def __init__(self, model=None, args=None, **kwargs):
        train_dataset, eval_dataset = kwargs.get("train_dataset"), kwargs.get("eval_dataset")
        if train_dataset is not None and model is not None and args is not None:
            check_precision(model, args)
        evaluated = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        for dataset in (train_dataset, *evaluated):
            if isinstance(dataset, MaskedLanguageModelingDataset):
                kwargs.setdefault("data_collator", dataset.collate)
        masked = all(isinstance(dataset, MaskedLanguageModelingDataset) for dataset in evaluated)
        if masked and kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = token_weighted_metrics
        super().__init__(model=model, args=args, **kwargs)
        if not hasattr(self.accelerator.unwrap_model(self.model), "accepts_loss_kwargs"):
            # Stock models take keyword arguments, so Trainer thinks that they divide by `num_items_in_batch`; BERT and
            # RoBERTa ignore it, and gradients would grow with the number of micro-batches and processes.
            self.model_accepts_loss_kwargs = False
        if isinstance(train_dataset, MaskedLanguageModelingDataset):
            self.add_callback(SetEpochCallback(train_dataset))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if self.compute_metrics is not token_weighted_metrics or "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        asked = (labels != -100).nonzero(as_tuple=True)
        with torch.no_grad(), self.compute_loss_context_manager():
            unwrapped = self.accelerator.unwrap_model(model)
            if isinstance(unwrapped, MaskedLMHeadMixin):
                # Our own models: vocabulary scores of the labelled positions only. Mixed precision is a wrapper of
                # the model's forward pass, which this goes around.
                with self.accelerator.autocast():
                    scores = unwrapped.scores_of(asked, **inputs)
            else:
                scores = model(**inputs).logits[asked]
            losses = F.cross_entropy(scores.float(), labels[asked], reduction="none")
        # A row's loss and count travel through Trainer's gathering, which drops the rows that pad the last batch.
        summed = torch.zeros(len(labels), device=losses.device).index_add_(0, asked[0], losses)
        counts = (labels != -100).sum(dim=1)
        return summed.sum() / counts.sum().clamp(min=1), summed, counts


def token_weighted_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Loss in nats and perplexity from the summed losses and the numbers of predicted tokens of the rows."""
    loss = float(prediction.predictions.sum(dtype="float64") / max(prediction.label_ids.sum(), 1))
    return {"loss": loss, "perplexity": float(np.exp(loss))}
