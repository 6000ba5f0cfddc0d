# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Training a sample-routed encoder: hardness, buckets, router targets, and what each amount of compute buys."""

import functools
import math
import os
import time
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalPrediction, seed_worker, speed_metrics
from transformers.utils import is_sklearn_available, logging

from modeling_sharcs.calibration import candidate_prices, mean_flops, row_shares, share_of_full
from modeling_sharcs.gradients import add_gradients_in_place
from modeling_sharcs.modeling_sharcs import choose_widths

from .arguments import SharcsTrainingArguments, check_arguments
from .checkpoints import StagedCheckpointMixin
from .components import LossComponentsMixin
from .evaluation import OrderedEvaluationMixin, close_evaluation_bar
from .hardness import (
    HardnessHistory,
    agreement_targets,
    as_number,
    interval_targets,
    predicted_targets,
    read_intervals,
    sample_confidence,
    sample_entropy,
)
from .losses import row_distillation_losses, row_hidden_state_losses, row_losses
from .passes import check_precision, gather_parameters, run_backward_passes
from .problems import find_problem, label_of
from .publishing import PublishingMixin
from .samplers import RoutedBatchSampler, RoutedCollator, RoutedDataset, choose_bucket, plan_epoch
from .teachers import check_teacher, prepare_teacher
from .width_predictions import WidthPredictions, agreement, take_rows


logger = logging.get_logger(__name__)

HARDNESS_NAME = "hardness.safetensors"


class SharcsTrainer(PublishingMixin, LossComponentsMixin, OrderedEvaluationMixin, StagedCheckpointMixin, Trainer):
    """
    Trains a SHARCS model (any `Sharcs…For…` with more than one width; https://huggingface.co/papers/2310.12126).

    Each epoch gives every training sample a score; the last few scores say which widths may handle it. The router
    learns those targets, and each sample trains one of its widths in the next epoch. An epoch has a fixed number of
    steps, whatever the split. The history of scores is part of every checkpoint; plans and targets follow from it and
    the seed, so that a run continues exactly, and on any number of processes trains the same.

    [`~SharcsTrainer.evaluate`] runs every width on every row once and reports the metrics of the routed model
    (`eval_accuracy`), of each width alone (`eval_width_0.25_accuracy`), and the routing's.

    Gradients of slices are added to `parameter.grad` in place where they stay local, so that `torch.autograd.grad`
    does not find those of weights in an override of `compute_loss`.

    Args:
        model (`PreTrainedModel`): A SHARCS model with a head.
        args ([`SharcsTrainingArguments`]): The arguments.
        teacher (`PreTrainedModel`, *optional*): Replaces the widest path as the teacher of narrower ones.
        kwargs: Those of [`~transformers.Trainer`].

    Raises:
        TypeError: if `args` are plain `TrainingArguments`.
        ValueError: if the model has no router or no task, the intervals do not fit its widths, the window is longer
            than the run, the training set is empty or has no labels, or the teacher does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SharcsTrainingArguments,
        teacher: PreTrainedModel | None = None,
        **kwargs,
    ):
        if model is None:
            raise ValueError("SharcsTrainer needs a `model`, whose widths it checks; `model_init` is not enough.")
        widths = getattr(model.config, "width_multipliers", None)
        if widths is None or not hasattr(model, "width_index"):
            raise ValueError(
                f"SharcsTrainer trains `Sharcs…For…` models, got a {type(model).__name__}; make one with "
                "`SharcsForSequenceClassification.from_backbone(...)`."
            )
        if len(widths) < 2:
            raise ValueError(
                f"The model has the widths {widths} and so no router; give `from_backbone` at least two "
                "`width_multipliers`, or use transformers' Trainer."
            )
        check_arguments(args, SharcsTrainingArguments)
        if kwargs.get("train_dataset") is not None:
            check_precision(model, args)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("SharcsTrainer weighs the losses of single rows and takes no `compute_loss_func`.")
        if kwargs.get("preprocess_logits_for_metrics") is not None:
            raise ValueError(
                "SharcsTrainer compares the logits of every width and takes no `preprocess_logits_for_metrics`; do "
                "its work in `compute_metrics`."
            )
        super().__init__(model=model, args=args, **kwargs)
        self.widths = [float(width) for width in widths]
        if not self.label_names or model is model.base_model:
            raise ValueError(f"{type(model).__name__} has no head to train; use one of the `Sharcs…For…` classes.")
        self._check_backend()
        rows = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        self.problem = find_problem(model, self.label_names, rows)
        if "SequenceClassification" in type(model).__name__:
            model.config.problem_type = self.problem  # pipelines go by it
        if args.label_smoothing_factor and self.problem not in ("single_label_classification", "token_classification"):
            raise ValueError(
                f"label_smoothing_factor={args.label_smoothing_factor:g} is for one class of several and has no "
                f"effect on {self.problem.replace('_', ' ')}; leave it out."
            )
        self.intervals = self._read_intervals(model)
        weights = args.width_loss_weights or [1.0] * len(widths)
        if len(weights) != len(widths):
            raise ValueError(f"`width_loss_weights` has {len(weights)} entries for the {len(widths)} widths {widths}.")
        self.width_loss_weights = weights
        if self.train_dataset is not None:
            self._check_training_set()
            self._check_classes()
        self.error_scale = self._find_error_scale()
        self.teacher = None
        if teacher is not None:
            if not args.distillation_weight:
                raise ValueError("A teacher is given but `distillation_weight` is 0; set it, for example to 1.")
            check_teacher(model, teacher, with_labels=self.problem != "question_answering")
            self.teacher = prepare_teacher(self, teacher, partition=False)
        self.history: HardnessHistory | None = None
        self._sampler: RoutedBatchSampler | None = None
        self._lengths: list[int] | None = None
        self._targets: torch.Tensor | None = None
        self._buckets: torch.Tensor | None = None
        self._empty_widths: list[str] = []
        self._unrecorded: list[tuple[torch.Tensor, ...]] = []
        self._predicting_widths = False
        self._partitioned = is_deepspeed_zero3_enabled()
        self._recorded: nn.Module | None = None
        if self._partitioned:
            from deepspeed.utils import set_z3_leaf_modules

            # One module for ZeRO-3, since which of its parts run depends on the width.
            set_z3_leaf_modules(model, [type(model)])
        self.add_callback(_EpochCallback(self))

    # ---- checks -----------------------------------------------------------------------------------------------------

    def _check_backend(self) -> None:
        # Processes may have rows of different widths in a step, and so run different passes.
        found = self.accelerator.distributed_type
        if found == DistributedType.FSDP:
            raise ValueError(
                f"SharcsTrainer does not run under {found.value}, where every process must run the same passes; start "
                "it with torchrun, accelerate's multi-GPU mode (DDP) or DeepSpeed."
            )

    def _read_intervals(self, model: PreTrainedModel) -> list[tuple[float, float]]:
        highest, entropy = 1.0, self.args.hardness_signal == "entropy"
        if entropy:
            if self.problem == "regression":
                raise ValueError("A regression predicts no distribution; use hardness_signal='confidence'.")
            if self.problem == "question_answering":
                highest = math.log(model.config.max_position_embeddings)
            elif self.problem == "multi_label_classification":
                highest = math.log(2)
            else:
                highest = math.log(model.config.num_labels)
        given = self.args.hardness_intervals
        if given is None:
            given = 0.5 if self.args.hardness_source == "agreement" else 0.2
        found = read_intervals(given, self.widths, highest, high_is_hard=entropy)
        threshold = as_number(given)
        if self.args.hardness_source == "agreement" and threshold is not None:
            # What counts as agreement is the same for every narrower width.
            return [(threshold, 1.0)] * (len(self.widths) - 1) + [(0.0, 1.0)]
        return found

    def _check_training_set(self) -> None:
        dataset, args = self.train_dataset, self.args
        if not hasattr(dataset, "__len__"):
            raise ValueError("SharcsTrainer follows every sample through the epochs: the training set needs a length.")
        if len(dataset) == 0:
            raise ValueError("The training set is empty; check the file that it was read from, and max_train_samples.")
        columns = set(dataset[0])
        wanted = set(self.label_names)
        if not (wanted <= columns or wanted == {"labels"} and "label" in columns):
            raise ValueError(
                f"The training set has no labels: its columns are {sorted(columns)}, and {sorted(wanted)} "
                f"{'is' if len(wanted) == 1 else 'are'} missing; name the column of labels so."
            )
        if args.width_batches == "one_per_rank" and args.world_size < len(self.widths):
            logger.warning(
                f"width_batches='one_per_rank' gives each process one width; with {args.world_size} for "
                f"{len(self.widths)} widths a process trains several in a step. Start {len(self.widths)} processes "
                "with torchrun, or use width_batches='alternating' on one."
            )
        epochs, steps = args.num_train_epochs, self._steps_per_epoch(len(dataset))
        if args.width_batches == "alternating" and steps < len(self.widths):
            raise ValueError(
                f"An epoch of {steps} steps cannot alternate between {len(self.widths)} widths; use smaller batches, "
                "or width_batches='joint'."
            )
        if args.max_steps > 0:
            per_epoch = math.ceil(steps / args.gradient_accumulation_steps)
            epochs = args.max_steps / per_epoch
        if args.hardness_window >= epochs and not args.train_every_width:
            raise ValueError(
                f"hardness_window={args.hardness_window} needs more than {args.hardness_window} epochs, the run has "
                f"{epochs:g}: narrow paths and the router would never be trained. Use a smaller window or more epochs."
            )
        if args.hardness_window >= epochs:
            raise ValueError(
                f"hardness_window={args.hardness_window} needs more than {args.hardness_window} epochs, the run has "
                f"{epochs:g}: the router would never be trained. Use a smaller window or more epochs."
            )

    def _find_error_scale(self) -> float:
        """Standard deviation of a regression's training labels: the unit of its errors."""
        if self.problem != "regression" or self.train_dataset is None:
            return 1.0
        labels = np.asarray(self._training_labels(), dtype=np.float64)
        if not np.isfinite(labels).all():
            row = int((~np.isfinite(labels)).reshape(len(labels), -1).any(axis=1).argmax())
            raise ValueError(f"The label of training row {row} is {labels[row]}; mend or drop the row.")
        return float(np.std(labels)) or 1.0

    def _check_classes(self) -> None:
        if self.problem != "single_label_classification":
            return
        labels = np.asarray(self._training_labels()).reshape(-1)
        outside = (labels < 0) | (labels >= self.model.config.num_labels)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"The label of training row {row} is {labels[row]}, but the model has {self.model.config.num_labels} "
                f"classes, 0 to {self.model.config.num_labels - 1}; mend or drop the row, or give `num_labels`."
            )

    def _training_labels(self):
        dataset = self.train_dataset
        names = getattr(dataset, "column_names", None) or []
        name = next((name for name in ("labels", "label") if name in names), None)
        return dataset[name] if name else [label_of(dataset[index]) for index in range(len(dataset))]

    # ---- data -------------------------------------------------------------------------------------------------------

    def _steps_per_epoch(self, num_samples: int) -> int:
        return math.ceil(num_samples / (self._train_batch_size * self.args.world_size))

    def get_train_dataloader(self) -> DataLoader:
        """Batches of [`RoutedSample`]s; every process gets its part of each step of one plan."""
        if self.train_dataset is None:
            raise ValueError("Trainer: training requires a train_dataset.")
        args, dataset = self.args, self._model_columns(self.train_dataset, "training")
        self._sampler = RoutedBatchSampler(
            self._steps_per_epoch(len(dataset)),
            args.process_index,
            args.world_size,
            width_per_rank=args.width_batches == "one_per_rank",
        )
        self._lengths = self._count_tokens(dataset) if args.train_sampling_strategy == "group_by_length" else None
        scores = len(self.widths) if args.hardness_source == "agreement" else 1
        self.history = HardnessHistory(len(dataset), scores)
        self._unrecorded.clear()
        return DataLoader(
            RoutedDataset(dataset),
            batch_sampler=self._sampler,
            collate_fn=RoutedCollator(self._model_collator("training")),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=functools.partial(
                seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index
            ),
        )

    def _count_tokens(self, dataset) -> list[int]:
        """Of each sample, from the column of lengths where there is one."""
        names = getattr(self.train_dataset, "column_names", None) or []
        if self.args.length_column_name in names:
            return list(self.train_dataset[self.args.length_column_name])
        rows = dataset["input_ids"] if "input_ids" in names else (row["input_ids"] for row in dataset)
        return [len(row) for row in rows]

    def _model_columns(self, dataset, description: str):
        return self._remove_unused_columns(dataset, description) if hasattr(dataset, "column_names") else dataset

    def _model_collator(self, description: str):
        return self._get_collator_with_removed_columns(self.data_collator, description)

    # ---- epochs -----------------------------------------------------------------------------------------------------

    def router_targets(self) -> torch.Tensor | None:
        """
        Which widths may handle each training sample, from its last scores: booleans of shape `(samples, widths)`;
        `None` until there are enough epochs.
        """
        window = self.history.window(self.args.hardness_window)
        if window is None:
            return None
        if self.args.hardness_source == "agreement":
            return agreement_targets(window, self.intervals)
        return interval_targets(window[..., 0], self.intervals)

    def _begin_epoch(self, epoch: int) -> None:
        if self.history.num_epochs < epoch:
            # Continued from a checkpoint that was written between the last step of an epoch and its end, or at the
            # end of a shorter run.
            self._choose_buckets(epoch - 1)
            self._finish_epoch()
        self._choose_buckets(epoch)
        args = self.args
        members = F.one_hot(self._buckets, len(self.widths)).bool()
        self._sampler.plan = plan_epoch(
            torch.ones_like(members) if args.train_every_width else members,
            self._sampler.num_steps,
            self._data_seed,
            epoch,
            args.repeat_smaller_buckets,
            alternating=args.width_batches == "alternating",
            lengths=self._lengths,
        )
        if self._targets is not None:
            self._let_router_choose()
            shares = self._targets.double().mean(dim=0).tolist()
            self.log({f"share_of_targets_{width:g}": share for width, share in zip(self.widths, shares, strict=True)})
            empty = [f"{width:g}" for width, share in zip(self.widths, shares, strict=True) if share == 0]
            if empty and empty != self._empty_widths:
                logger.warning(
                    f"By their last scores, no training sample belongs to the widths {', '.join(empty)}: the router "
                    f"learns to leave them out. If that is not wanted, move `hardness_intervals` (now "
                    f"{[tuple(map(float, interval)) for interval in self.intervals]}, a width each), or train longer."
                )
            self._empty_widths = empty

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _choose_buckets(self, epoch: int) -> None:
        """An epoch's router targets, and the width of each sample: its score is the one at that width."""
        self._targets = self.router_targets()
        if self._targets is None or self.args.train_every_width:
            self._buckets = torch.full((len(self.history.epochs),), len(self.widths) - 1)
        else:
            self._buckets = choose_bucket(self._targets, self._data_seed, epoch)

    def _let_router_choose(self) -> None:
        if self.model.config.router_price is None and self.args.router_loss_weight > 0:
            # The router is being taught now: the largest of its logits wins, as published.
            self.model.config.router_price = 0.0

    def _finish_epoch(self) -> None:
        if self.args.hardness_source == "training":
            self._record_scores()
            self.history.finish_epoch(self.accelerator)
        else:
            self.history.current = self._score_training_set()
            self.history.finish_epoch()

    def _record_scores(self) -> None:
        """Moves scores from the device, where they wait so that no step has to."""
        if not self._unrecorded:
            return
        samples, scores, places = (torch.cat(parts).cpu() for parts in zip(*self._unrecorded, strict=True))
        self._unrecorded.clear()
        self.history.record(samples, scores, places)

    def _score_training_set(self) -> torch.Tensor:
        """Scores of every training sample in evaluation mode, of shape `(samples, num_scores)`, on every process."""
        args, agreement = self.args, self.args.hardness_source == "agreement"
        dataset = self._model_columns(self.train_dataset, "training")
        widths = range(len(self.widths)) if agreement else sorted(set(self._buckets.tolist()))
        scores = torch.full((len(dataset), self.history.epochs.shape[2]), math.nan)
        model = self.model_wrapped
        gather_parameters(model)
        was_training = model.training
        model.eval()
        groups = [None] if agreement else list(widths)
        own = {
            group: [
                index
                for position, index in enumerate(
                    range(len(dataset)) if group is None else (self._buckets == group).nonzero()[:, 0].tolist()
                )
                if position % args.world_size == args.process_index
            ]
            for group in groups
        }
        progress = tqdm(
            total=sum(map(len, own.values())),
            desc="Scoring training samples",
            leave=False,
            disable=args.disable_tqdm or not self.is_local_process_zero(),
        )
        try:
            for group, indices in own.items():
                loader = DataLoader(
                    Subset(dataset, indices),
                    batch_size=args.eval_batch_size,
                    collate_fn=self._model_collator("training"),
                    num_workers=args.dataloader_num_workers,
                    # A loader draws a seed, which must not come from the generator that a checkpoint has stored.
                    generator=torch.Generator(),
                )
                start = 0
                for batch in loader:
                    found = self._score_batch(batch, group).float().cpu()
                    scores[indices[start : start + len(found)]] = found.reshape(len(found), -1)
                    start += len(found)
                    progress.update(len(found))
        finally:
            progress.close()
            model.train(was_training)
        if args.world_size > 1:
            every = self.accelerator.gather(scores.unsqueeze(0).to(args.device)).cpu()
            scores = every.nan_to_num(-math.inf).amax(dim=0)  # a row is scored by one process
            scores[scores == -math.inf] = math.nan
        return scores

    @torch.no_grad()
    def _score_batch(self, batch: dict[str, Any], group: int | None) -> torch.Tensor:
        inputs = self._prepare_inputs(dict(batch))
        targets = {name: inputs.pop(name) for name in self.label_names}
        model = self.accelerator.unwrap_model(self.model_wrapped)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            if group is not None:
                return self._score(self._run(model, inputs, width=self.widths[group]), targets)
            outputs = self._run_widths(model, inputs)
        answer = predicted_targets(outputs[-1], targets, self.problem)
        columns = [sample_confidence(output, answer, self.problem, self.error_scale) for output in outputs]
        return torch.stack(columns, dim=1)

    def _score(self, outputs, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.args.hardness_signal == "entropy":
            return sample_entropy(outputs, targets, self.problem)
        return sample_confidence(outputs, targets, self.problem, self.error_scale)

    def _run(self, model: nn.Module, inputs: dict[str, Any], **kwargs):
        """A model's outputs, in which padding says nothing: how much of it a row has depends on its neighbours."""
        outputs = model(**inputs, **kwargs)
        mask = inputs.get("attention_mask")
        names = {"question_answering": ("start_logits", "end_logits"), "token_classification": ("logits",)}
        for name in names.get(self.problem, ()) if mask is not None else ():
            padding = (mask == 0).view(*mask.shape, *[1] * (outputs[name].dim() - 2))
            outputs[name] = outputs[name].masked_fill(padding, -1e4)
        return outputs

    def _run_widths(self, model: nn.Module, inputs: dict[str, Any]) -> list:
        """Outputs of every width on the same rows; the first layers, which all have in common, run once."""
        outputs = [self._run(model, inputs, width=self.widths[0], output_hidden_states=True)]
        front = self._front_state(outputs[0])
        return outputs + [self._run(model, inputs, width=width, front_state=front) for width in self.widths[1:]]

    def _front_state(self, outputs) -> torch.Tensor:
        return outputs["hidden_states"][self._encoder.config.router_layer]

    # ---- training ---------------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of each width on its rows; returns the step's loss on this process."""
        model.train()
        if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
            self.optimizer.train()
        gather_parameters(model)  # processes may run different passes
        routing = inputs["routing"]
        inputs = {name: value for name, value in inputs.items() if name != "routing"}
        inputs = self._take_rows(inputs, slice(None))
        # The widest first: narrower paths may learn from it, and the last pass, whose gradients are reduced across
        # processes, must reach every parameter, of which only narrow paths use the entry's.
        indices = sorted(set(routing["width_index"].tolist()), reverse=True)
        rows_of = {index: (routing["width_index"] == index).nonzero()[:, 0] for index in indices}
        samples = [routing["index"][rows].tolist() for rows in rows_of.values()]
        # Widths that train the same samples share a pass, and so the layers before the router.
        groups = [indices] if all(rows == samples[0] for rows in samples) else [[index] for index in indices]
        front = self._run_front(model, inputs) if len(groups) > 1 and self._may_share_front(model, routing) else None
        start = None if front is None else front.detach().requires_grad_(front.requires_grad)
        passes = []
        for group in groups:
            num_parts = -(-len(rows_of[group[0]]) // self._train_batch_size)
            parts = zip(*(rows_of[index].tensor_split(num_parts) for index in group), strict=True)
            passes += [
                functools.partial(self._run_rows, model, inputs, routing, dict(zip(group, part, strict=True)), start)
                for part in parts
            ]
        if self._partitioned and self._recorded is not model:
            first = self._prepare_inputs(self._take_rows(inputs, torch.tensor([0])))
            idle = functools.partial(self._run_idly, model, first)
            # ZeRO-3 follows the first passes of an engine, which have to be the same on all processes.
            passes = [idle, idle, *passes]
            self._recorded = model
        passes[-1] = functools.partial(self._reach_every_parameter, passes[-1])
        loss = run_backward_passes(self, model, passes, add_gradients_in_place)
        if start is not None and start.grad is not None:
            front.backward(start.grad)
        return loss

    def _may_share_front(self, model: nn.Module, routing: dict[str, torch.Tensor]) -> bool:
        """
        Whether the layers before the router may run once for all rows of a step, though widths train different ones:
        products of few rows, twice, were 5% of a step of 8. Wrappers of a model and hooks that may change its inputs
        must see every pass of it, and no pass may hold more rows than were asked for.
        """
        if model is not self.model or self.accelerator.distributed_type != DistributedType.NO:
            return False
        if model._forward_pre_hooks or self._encoder._forward_pre_hooks:
            return False
        return len(routing["index"]) <= self._train_batch_size

    def _run_front(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """What comes before the router, of all rows, of shape `(rows, tokens, hidden_size)`."""
        batch = {name: value for name, value in inputs.items() if name not in self.label_names}
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager(), self.accelerator.autocast(), add_gradients_in_place():
            return self._encoder.run_front(**batch)

    def _reach_every_parameter(self, run) -> torch.Tensor:
        # What a pass may leave out: the router, before it has targets, and the entry, on the widest path.
        left_out = [*self._encoder.router.parameters(), *self._encoder.entry.parameters()]
        return run() + sum(parameter.sum() * 0.0 for parameter in left_out)

    def _run_idly(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """A pass that trains nothing."""
        inputs = {name: value for name, value in batch.items() if name not in self.label_names}
        outputs = self._run(model, inputs, width=self.widths[-1])
        return sum(value.sum() * 0.0 for name, value in outputs.items() if name.endswith("logits"))

    def _forget_idle_gradients(self) -> None:
        """What nothing trains yet keeps still: with gradients of zero an optimiser would decay it, and count steps."""
        idle = []
        if not self._router_learns:
            idle += self._encoder.router.parameters()
        if self._targets is None and not self.args.train_every_width:
            idle += self._encoder.entry.parameters()
        for parameter in idle:
            parameter.grad = None

    @property
    def _router_learns(self) -> bool:
        has_targets = self._targets is not None or self.args.router_loss_before_targets
        return has_targets and self.args.router_loss_weight > 0

    def _run_rows(
        self, model, inputs, routing, rows_of: dict[int, torch.Tensor], front: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of some samples at one width, or at several, the widest first; `front` is of all rows."""
        rows = next(iter(rows_of.values()))
        batch = self._prepare_inputs(self._take_rows(inputs, rows))
        targets = {name: batch.pop(name) for name in self.label_names}
        # What all paths have in common (`front`), and whom narrower ones learn from (`widest`, `teacher`).
        shared: dict[str, Any] = {}
        if front is not None:
            tokens = batch["input_ids" if "input_ids" in batch else "inputs_embeds"].shape[1]
            shared["front"] = front[rows.to(front.device), :tokens]
        alone = len(rows_of) == 1
        return sum(
            self._run_width(model, batch, targets, routing, index, rows, shared, alone)
            for index, rows in rows_of.items()
        )

    def _run_width(
        self, model, batch, targets, routing, index: int, rows: torch.Tensor, shared: dict[str, Any], alone: bool
    ) -> torch.Tensor:
        """The loss of some rows at one width, weighted by their share of the step's rows over all processes."""
        args, widest = self.args, index == len(self.widths) - 1
        samples = routing["index"][rows]
        weights = (routing["weight"][rows] * self.width_loss_weights[index]).to(args.device)
        distil = args.distillation_weight > 0 and (self.teacher is not None or not widest)
        with self.compute_loss_context_manager():
            # Hidden states of the first width hold what others go on from; with them, the last layer runs whole.
            others = not alone or distil and self.teacher is None and not widest
            states = args.hidden_states_weight > 0 or others and "front" not in shared
            outputs = self._run(
                model, batch, width=self.widths[index], front_state=shared.get("front"), output_hidden_states=states
            )
            if states and "front" not in shared:
                shared["front"] = self._front_state(outputs)
            if widest:
                shared["widest"] = _detached(outputs)
            losses = row_losses(outputs, targets, self.problem, args.label_smoothing_factor)
            self._count(f"width_{self.widths[index]:g}_loss", losses, weights)
            if distil:
                taught = row_distillation_losses(
                    outputs,
                    self._teacher_outputs(model, batch, shared),
                    targets,
                    self.problem,
                    args.distillation_temperature,
                )
                self._count(f"width_{self.widths[index]:g}_distillation", taught, weights)
                losses = args.hard_label_weight * losses + args.distillation_weight * taught
            losses = args.task_loss_weight * losses
            if args.hidden_states_weight > 0 and not widest:
                taught = self._hidden_state_losses(model, batch, shared, outputs)
                self._count(f"width_{self.widths[index]:g}_hidden_states", taught, weights)
                losses = losses + args.hidden_states_weight * taught
            router_targets = self._router_targets_of(samples)
            if router_targets is not None and args.router_loss_weight > 0:
                scores = outputs["router_logits"].float()
                router_losses = F.binary_cross_entropy_with_logits(
                    scores, router_targets.to(scores), reduction="none"
                ).mean(dim=-1)
                self._count("router_loss", router_losses, weights)
                losses = losses + args.router_loss_weight * router_losses
        if args.hardness_source == "training":
            with torch.no_grad():
                self._unrecorded.append(
                    (samples, self._score(outputs, targets).detach().float(), routing["place"][rows])
                )
        # Gradients are averaged over processes and summed over accumulated batches.
        return (losses * weights).sum() * args.world_size / self.current_gradient_accumulation_steps

    def _take_rows(self, inputs: dict[str, Any], rows: torch.Tensor | slice) -> dict[str, torch.Tensor]:
        """Some rows of a batch, with the padding at their right end trimmed."""
        taken = {name: value[rows] for name, value in inputs.items()}
        mask = taken.get("attention_mask")
        # A router that reads padding too must see as much of it as its data collator put there.
        if mask is None or self.accelerator.unwrap_model(self.model).config.router_pooling == "all":
            return taken
        tokens = mask.shape[1]
        end = int((mask != 0).any(dim=0).nonzero().max()) + 1 if mask.any() else tokens
        # Labels that are no tokens may be as many by chance.
        kept = () if self.problem == "token_classification" else self.label_names
        return {
            name: value[:, :end] if value.dim() > 1 and value.shape[1] == tokens and name not in kept else value
            for name, value in taken.items()
        }

    @torch.no_grad()
    def _teacher_outputs(self, model, batch: dict[str, Any], shared: dict[str, Any]):
        if self.teacher is None:
            return self._widest_outputs(model, batch, shared)
        if "teacher" not in shared:
            shared["teacher"] = self._run(self.teacher, batch)
        return shared["teacher"]

    @torch.no_grad()
    def _widest_outputs(self, model, batch: dict[str, Any], shared: dict[str, Any]):
        if "widest" not in shared:  # the widest path trains other rows in this step
            states = self.args.hidden_states_weight > 0
            shared["widest"] = self._run(
                model, batch, width=self.widths[-1], front_state=shared["front"], output_hidden_states=states
            )
        return shared["widest"]

    def _hidden_state_losses(self, model, batch: dict[str, Any], shared: dict[str, Any], outputs) -> torch.Tensor:
        """Of each row, after the routed layers: what is before them, both paths share."""
        given = self._widest_outputs(model, batch, shared)["hidden_states"]
        routed = self._encoder.config.num_hidden_layers - self._encoder.config.router_layer
        return row_hidden_state_losses(
            outputs["hidden_states"][-routed:], given[-routed:], batch.get("attention_mask")
        )

    def _router_targets_of(self, samples: torch.Tensor) -> torch.Tensor | None:
        if self._targets is not None:
            return self._targets[samples].to(self.args.device)
        if not self.args.router_loss_before_targets:
            return None
        widest = torch.zeros(len(samples), len(self.widths), dtype=torch.bool, device=self.args.device)
        widest[:, -1] = True
        return widest

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Whole forward passes of every row at its width, and twice as much backward; padding counts."""
        reference = inputs.get("input_ids", inputs.get("inputs_embeds"))
        if reference is None or "routing" not in inputs:
            return 0
        model, tokens = self.accelerator.unwrap_model(self.model), reference.shape[1]
        widths = [self.widths[index] for index in inputs["routing"]["width_index"].tolist()]
        return int(3 * sum(model.count_flops(tokens, width) for width in widths))

    # ---- logging, checkpoints ---------------------------------------------------------------------------------------

    def _component_names(self) -> list[str]:
        # All of them: a process that has no rows of a width must not wait for the others.
        kinds = ("loss", "distillation", "hidden_states")
        names = [f"width_{width:g}_{kind}" for width in self.widths for kind in kinds]
        return [*names, "router_loss"]

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        # Until there are targets every row takes the widest path: no measure for what is routed, as published.
        if self._targets is None and self.args.router_loss_weight > 0:
            return False
        return super()._determine_best_metric(metrics, trial)

    def _save_run_state(self, folder: str) -> None:
        self._record_scores()
        self.history.save(os.path.join(folder, HARDNESS_NAME), self.accelerator)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.history.load(os.path.join(checkpoint, HARDNESS_NAME))
            if self.router_targets() is not None:
                self._let_router_choose()  # also where the run had ended, and no epoch begins

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def predict_widths(self, dataset=None, metric_key_prefix: str = "eval") -> WidthPredictions:
        """Runs every width on every row of a data set (the evaluation set by default), once."""
        dataloader = self.get_eval_dataloader(dataset)
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        self._predicting_widths = True
        try:
            output = self.evaluation_loop(
                dataloader,
                description="Evaluation of every width",
                prediction_loss_only=False,
                metric_key_prefix=metric_key_prefix,
            )
        finally:
            self._predicting_widths = False
            self.compute_metrics = compute_metrics
            close_evaluation_bar(self)
        *predictions, router_logits, lengths, losses = output.predictions
        return WidthPredictions(
            predictions=[tuple(entry) if isinstance(entry, list) else entry for entry in predictions],
            router_logits=router_logits,
            lengths=lengths,
            losses=None if np.isnan(losses).all() else losses,
            label_ids=output.label_ids,
        )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if not self._predicting_widths:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        targets = {name: inputs.pop(name) for name in self.label_names if name in inputs}
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._run_widths(model, inputs)
        if len(targets) == len(self.label_names):
            losses = torch.stack([row_losses(output, targets, self.problem) for output in outputs], dim=1)
        else:
            losses = torch.full((len(outputs[0]["router_logits"]), len(self.widths)), math.nan)
            losses = losses.to(self.args.device)
        reference = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
        mask = inputs.get("attention_mask")
        lengths = torch.full((len(reference),), reference.shape[1], device=reference.device)
        lengths = lengths if mask is None else mask.sum(dim=1)
        if self.problem == "question_answering":
            predictions = [(output["start_logits"].float(), output["end_logits"].float()) for output in outputs]
        else:
            predictions = [output["logits"].float() for output in outputs]
        labels = tuple(targets.values()) if len(targets) == len(self.label_names) else None
        if labels is not None and len(labels) == 1:
            labels = labels[0]
        return None, (*predictions, outputs[-1]["router_logits"].float(), lengths, losses), labels

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Metrics of the routed model at its current price (none of a prefix of their own), of each width alone
        (`width_0.25_…`), and of the routing: `flops_share` of full FLOPs and `mean_flops` a row, `rows_at_0.25`,
        metrics on the rows sent to a width (`routed_to_0.25_…`), and `router_auc_0.25`: how well the router's score
        ranks the rows on which the narrow path agrees with the widest above those on which it does not.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        start = time.time()
        predictions = self.predict_widths(eval_dataset, metric_key_prefix)
        found = self.routing_metrics(predictions)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(predictions.lengths))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def routing_metrics(self, predictions: WidthPredictions, price: float | None = None) -> dict[str, float]:
        """
        The metrics of [`~SharcsTrainer.evaluate`] without a prefix, from predictions that are already there; at
        another price than the model's, if one is given.
        """
        chosen = self.chosen_widths(predictions, price)
        metrics = self._metrics_at(predictions, chosen)
        for index, width in enumerate(self.widths):
            alone = self._metrics_at(predictions, torch.full_like(chosen, index))
            metrics |= {f"width_{width:g}_{name}": value for name, value in alone.items()}
            there = (chosen == index).numpy()
            metrics[f"rows_at_{width:g}"] = float(there.mean())
            if there.any() and self.problem != "question_answering":
                metrics |= {
                    f"routed_to_{width:g}_{name}": value
                    for name, value in self._metrics_at(predictions, chosen, there).items()
                    if name not in ("flops_share", "mean_flops")
                }
        for index, width in enumerate(self.widths[:-1]):
            area = self._router_auc(predictions, index)
            if area is not None:
                metrics[f"router_auc_{width:g}"] = area
        return metrics

    def chosen_widths(self, predictions: WidthPredictions, price: float | None = None) -> torch.Tensor:
        """
        Index of the width that routed inference takes for each row at the model's price, or at another one, of shape
        `(rows,)`.
        """
        price = self._encoder.config.router_price if price is None else price
        scores = torch.from_numpy(predictions.router_logits)
        if price is None:  # nobody has taught the router yet
            return torch.full((len(scores),), len(self.widths) - 1)
        return choose_widths(scores, price, self._encoder.relative_costs())

    @property
    def _encoder(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model).base_model

    def _metrics_at(
        self, predictions: WidthPredictions, chosen: torch.Tensor, rows: np.ndarray | None = None
    ) -> dict[str, float]:
        indices = chosen.numpy()
        rows = np.ones(len(indices), dtype=bool) if rows is None else rows
        routed, lengths = chosen[rows], torch.from_numpy(predictions.lengths)[rows]
        metrics = {
            "flops_share": share_of_full(self.model, routed, lengths),
            "mean_flops": mean_flops(self.model, routed, lengths),
        }
        if predictions.losses is not None:
            metrics["loss"] = float(predictions.losses[np.arange(len(indices)), indices][rows].mean())
        if self.compute_metrics is not None and (predictions.label_ids is not None or self._spans):
            given = EvalPrediction(
                predictions=take_rows(predictions.select(indices), rows),
                label_ids=take_rows(predictions.label_ids, rows),
            )
            metrics |= self.compute_metrics(given)
        return metrics

    @property
    def _spans(self) -> bool:
        # Metrics of answers know the right ones from elsewhere.
        return self.problem == "question_answering"

    def _router_auc(self, predictions: WidthPredictions, index: int) -> float | None:
        agrees = agreement(
            predictions.predictions[index], predictions.predictions[-1], self.problem, predictions.label_ids
        )
        if agrees.all() or not agrees.any() or not is_sklearn_available():
            return None
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(agrees, predictions.router_logits[:, index] - predictions.router_logits[:, -1]))

    def compute_curve(self, predictions: WidthPredictions, num_points: int = 21) -> list[dict[str, Any]]:
        """
        What each amount of compute buys: metrics at prices whose shares of full FLOPs are about evenly spaced between
        the least and the most that the model can spend.

        Args:
            predictions ([`WidthPredictions`]): Of [`~SharcsTrainer.predict_widths`].
            num_points (`int`, *optional*, defaults to 21): At most so many points.

        Returns:
            `list[dict]`: `price`, `flops_share`, `mean_flops`, `rows_per_width` and the metrics, by ascending share.
        """
        costs, spent = self._encoder.relative_costs(), row_shares(self.model, torch.from_numpy(predictions.lengths))
        scores = torch.from_numpy(predictions.router_logits)
        found = {}
        for price in candidate_prices(scores, costs).tolist():
            chosen = choose_widths(scores, price, costs)
            found[float(spent.gather(1, chosen.unsqueeze(1)).sum())] = (price, chosen)
        shares = sorted(found)
        wanted = np.linspace(shares[0], shares[-1], num_points)
        nearest = sorted({min(shares, key=lambda share: abs(share - aim)) for aim in wanted})
        points = []
        for share in nearest:
            price, chosen = found[share]
            rows = torch.bincount(chosen, minlength=len(costs)).double() / len(chosen)
            metrics = self._metrics_at(predictions, chosen)
            points.append({"price": price, **metrics, "rows_per_width": rows.tolist()})
        return points


class _EpochCallback(TrainerCallback):
    """Tells the trainer where epochs begin and end, also after a resume."""

    def __init__(self, trainer: SharcsTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps:
            self.trainer._begin_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._forget_idle_gradients()

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.hardness_source != "training":
            return  # a pass over the training set whose scores no epoch would use
        complete = state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-6
        if complete and self.trainer.history.num_epochs < round(state.epoch):
            self.trainer._finish_epoch()


def _detached(outputs) -> dict[str, torch.Tensor]:
    kept = {name: value.detach() for name, value in outputs.items() if name.endswith("logits")}
    if outputs.get("hidden_states") is not None:
        kept["hidden_states"] = tuple(state.detach() for state in outputs["hidden_states"])
    return kept
