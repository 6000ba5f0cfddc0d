# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Training a supernet: several architectures a step, in-place distillation, evaluation of a panel."""

import contextlib
import functools
import random
import time
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import speed_metrics
from transformers.utils import logging

from modeling_mos import Architecture
from modeling_mos.gradients import add_gradients_in_place
from modeling_mos.modeling_mos import MosBottleneck

from .arguments import SupernetTrainingArguments, check_arguments
from .components import LossComponentsMixin
from .evaluation import close_evaluation_bar
from .losses import attention_loss, hidden_state_loss, soft_binary_cross_entropy, soft_cross_entropy
from .masked_lm import MaskedLMTrainer
from .passes import gather_parameters, run_backward_passes
from .teachers import check_attentions, check_teacher, prepare_teacher


logger = logging.get_logger(__name__)


class SupernetTrainer(LossComponentsMixin, MaskedLMTrainer):
    """
    Trains a Mixture-of-Supernets model (any `MosFor…`) with the sandwich rule: each micro-batch runs the largest, the
    smallest and random architectures, whose gradients are averaged and reduced across processes once
    (https://huggingface.co/papers/2306.04845, section 4.1).

    The random architectures are a function of (seed, optimizer step): the same on every process and after a resume.
    Each evaluation runs a panel of architectures, whose metrics are prefixed with their names (`eval_largest_loss`);
    `eval_loss` is their mean. For masked language modeling losses and perplexities are token-weighted.

    `torch_compile` compiles the layers, whose graphs serve all architectures; they stay compiled after the training.
    Gradients of slices are added to `parameter.grad` in place where they stay local, so that `torch.autograd.grad`
    does not find those of weights in an override of `compute_loss`.

    Args:
        model (`PreTrainedModel`): A `MosFor…` model.
        args ([`SupernetTrainingArguments`]): The arguments.
        teacher (`PreTrainedModel`, *optional*):
            Replaces the largest architecture as the teacher of `args.distillation`, and then teaches all of them.
        panel (`dict[str, Architecture]`, *optional*):
            More architectures to evaluate, by name.
        kwargs: Those of [`~transformers.Trainer`].

    Raises:
        TypeError: if `args` are plain `TrainingArguments`.
        ValueError: if the model is no supernet, the teacher does not fit the student, the panel holds an
            architecture outside the search space, or layers are to be compiled for several GPUs of one process.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SupernetTrainingArguments,
        teacher: PreTrainedModel | None = None,
        panel: dict[str, Architecture] | None = None,
        **kwargs,
    ):
        if not hasattr(model, "search_space"):
            raise ValueError(
                f"SupernetTrainer trains `MosFor…` models, got a {type(model).__name__}; make a supernet with "
                "`from_backbone`, or train an extracted subnet with transformers' Trainer."
            )
        check_arguments(args, SupernetTrainingArguments)
        self.masked_lm = hasattr(model, "lm_head")
        self.search_space = model.search_space
        if args.ddp_find_unused_parameters is None and args.architecture_sampling != "sandwich":
            # A step may leave layers out, which Trainer expects of no model that checkpoints activations.
            args.ddp_find_unused_parameters = True if len(self.search_space.num_hidden_layers) > 1 else None
        super().__init__(model=model, args=args, **kwargs)
        self._compile_layers()
        self._check_distillation(model, teacher)
        self.teacher = None
        if teacher is not None:
            self.teacher = prepare_teacher(self, teacher)
        self.panel = self._build_panel(panel or {})
        self._evaluated: Architecture | None = None

    def _compile_layers(self) -> None:
        """
        Compiles the layers where accelerate would compile the model: a graph of that is of one architecture, those of
        layers have symbols for its sizes.
        """
        plugin = self.accelerator.state.dynamo_plugin  # of `torch_compile`, or of `accelerate launch`
        layers = self.model.base_model.layers
        if plugin.backend != DynamoBackend.NO:
            options = {"dynamic": True, **plugin.to_kwargs()}
            options.pop("use_regional_compilation", None)
            for layer in layers:
                layer.compile(**options)
            # All layers share this limit (8). Masks or none, gradients or none, full or partial sizes, single rows:
            # a run with all of them needs 23 graphs or more, and what is beyond the limit is not compiled.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        if self.args.n_gpu > 1 and any(layer._compiled_call_impl is not None for layer in layers):
            raise ValueError(
                f"Compiled layers on {self.args.n_gpu} GPUs in one process (DataParallel) would all run on the first: "
                "start one process a GPU with torchrun, or show this one a single GPU (CUDA_VISIBLE_DEVICES)."
            )

    @contextlib.contextmanager
    def _no_whole_graphs(self):
        """Inside, accelerate leaves the model as it is. Its plugin is shared with other trainers of this process."""
        plugin = self.accelerator.state.dynamo_plugin
        backend, plugin.backend = plugin.backend, DynamoBackend.NO
        try:
            yield
        finally:
            plugin.backend = backend

    def train(self, *args, **kwargs):
        with self._no_whole_graphs():
            return super().train(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        with self._no_whole_graphs():
            return super().evaluation_loop(*args, **kwargs)

    # ---- which architectures ----------------------------------------------------------------------------------------

    def architectures_of_step(self, step: int) -> dict[str, Architecture]:
        """The architectures of an optimizer step by name, a function of (seed, step)."""
        args, space = self.args, self.search_space
        if args.architecture_sampling == "fixed":
            return {"default": self.accelerator.unwrap_model(self.model).default_architecture}
        if step < args.largest_only_steps:
            return {"largest": space.largest()}
        generator = random.Random(f"{args.seed}/{step}")
        drawn = {
            f"random_{index}": space.sample(generator, args.size_biased_sampling)
            for index in range(args.num_random_architectures)
        }
        if args.architecture_sampling == "random":
            return drawn
        return {"largest": space.largest(), "smallest": space.smallest(), **drawn}

    def _build_panel(self, extra: dict[str, Architecture]) -> dict[str, Architecture]:
        space, args = self.search_space, self.args
        for architecture in extra.values():
            space.validate(architecture)
        if args.architecture_sampling == "fixed":
            return {"default": self.accelerator.unwrap_model(self.model).default_architecture, **extra}
        panel = {"largest": space.largest(), "smallest": space.smallest()}
        if args.panel_uniform_widths:
            panel |= {f"width_{found.hidden_sizes[0]}": found for found in space.uniform_architectures()}
        generator = random.Random(f"panel/{args.seed}")
        for index in range(args.panel_random_architectures):
            panel[f"random_{index}"] = space.sample(generator)
        return panel | extra

    # ---- training ---------------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """
        Forward and backward of every architecture of this step on one micro-batch; returns their mean loss.

        A backward pass that is not the last of the step keeps its gradients local.
        """
        model.train()
        # Neighbouring bottlenecks are multiplied outside of their own forward passes, which ZeRO-3 does not follow.
        gather_parameters(*(module for module in model.modules() if isinstance(module, MosBottleneck)))
        inputs = self._prepare_inputs(inputs)
        architectures = self.architectures_of_step(self.state.global_step)
        taught = bool(self.args.distillation) and len(architectures) > 1 or self.teacher is not None
        teacher_outputs = self._teacher_outputs(inputs) if self.teacher is not None else None
        order = list(architectures)
        if "largest" in architectures and len(self.search_space.num_hidden_layers) > 1:
            # The last pass is the one whose gradients are reduced across processes: it must run every layer.
            order.remove("largest")
            order.append("largest")
            if taught and teacher_outputs is None:
                with torch.no_grad(), self.compute_loss_context_manager():
                    teacher_outputs = model(
                        **inputs, architecture=architectures["largest"], **self._distillation_outputs()
                    )

        def run(name: str) -> torch.Tensor:
            nonlocal teacher_outputs
            is_teacher = name == "largest" and self.teacher is None
            extra = self._distillation_outputs() if taught else {}
            with self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(
                    model,
                    {**inputs, "architecture": architectures[name], **extra},
                    return_outputs=True,
                    num_items_in_batch=num_items_in_batch,
                )
                self._count_term(f"{name}_loss", loss, num_items_in_batch)
                if taught and not is_teacher and teacher_outputs is not None:
                    loss = self._distil(name, loss, outputs, teacher_outputs, inputs, num_items_in_batch)
                elif taught and is_teacher and teacher_outputs is None:
                    teacher_outputs = _detached(outputs)
            loss = loss / len(order)
            if not self._normalised_by_items(num_items_in_batch):
                loss = loss / self.current_gradient_accumulation_steps
            return loss

        passes = [functools.partial(run, name) for name in order]
        return run_backward_passes(self, model, passes, add_gradients_in_place)

    def _normalised_by_items(self, num_items_in_batch: torch.Tensor | int | None) -> bool:
        return self.model_accepts_loss_kwargs and num_items_in_batch is not None

    def _distillation_outputs(self) -> dict[str, bool]:
        wanted = self.args.distillation or []
        return {f"output_{name}": True for name in ("hidden_states", "attentions") if name in wanted}

    def _teacher_outputs(self, inputs: dict[str, Any]):
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self.teacher(
                **{name: value for name, value in inputs.items() if name != "labels"}, **self._distillation_outputs()
            )
        return outputs

    def _distil(self, name, hard_loss, outputs, teacher_outputs, inputs, num_items_in_batch) -> torch.Tensor:
        args, mask = self.args, inputs.get("attention_mask")
        loss = args.hard_label_weight * hard_loss
        for term in args.distillation:
            if term == "logits":
                value = self._logit_distillation(outputs, teacher_outputs, inputs, num_items_in_batch)
            else:
                student, teacher = getattr(outputs, term), getattr(teacher_outputs, term)
                student, teacher = self._chosen_layers(term, student), self._chosen_layers(term, teacher)
                value = (hidden_state_loss if term == "hidden_states" else attention_loss)(student, teacher, mask)
                if self._normalised_by_items(num_items_in_batch):
                    value = value / self.current_gradient_accumulation_steps
            self._count_term(f"{name}_distillation_{term}", value, num_items_in_batch)
            loss = loss + args.distillation_weight * value
        return loss

    def _logit_distillation(self, outputs, teacher_outputs, inputs, num_items_in_batch) -> torch.Tensor:
        if "start_logits" in outputs:
            losses = [
                soft_cross_entropy(outputs[name], teacher_outputs[name], self.args.distillation_temperature)
                for name in ("start_logits", "end_logits")
            ]
            return torch.stack(losses).mean()
        student, teacher, labels = outputs.logits, teacher_outputs.logits, inputs["labels"]
        # At the labelled positions only; sparse logits hold nothing else.
        if labels.dim() == 2 and not labels.is_floating_point():
            asked = labels != -100
            student = student[asked] if student.dim() == 3 else student
            teacher = teacher[asked] if teacher.dim() == 3 else teacher
        config = self.accelerator.unwrap_model(self.model).config
        if not self.masked_lm and (config.num_labels == 1 or config.problem_type == "regression"):
            losses = (student.float() - teacher.detach().float()).square().mean(dim=-1)
        elif not self.masked_lm and labels.is_floating_point():
            losses = soft_binary_cross_entropy(student, teacher)
        else:
            losses = soft_cross_entropy(student, teacher, self.args.distillation_temperature)
        if not self._normalised_by_items(num_items_in_batch):
            return losses.mean()
        value = losses.sum() / num_items_in_batch.clamp(min=1)
        if self.args.average_tokens_across_devices:
            # As Trainer does for the hard loss: gradients are averaged over processes, items were summed.
            value = value * self.accelerator.num_processes
        return value

    def _chosen_layers(self, term: str, states: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        if term == "hidden_states":
            states = states[1:]  # the embeddings' output
        depth = len(states)
        chosen = []
        for layer in self.args.distillation_layers or [-1]:
            index = layer - 1 if layer > 0 else depth + layer
            if layer == 0 or not 0 <= index < depth:
                raise ValueError(
                    f"`distillation_layers` names layer {layer} of a network with {depth} layers; use 1 to {depth} or "
                    f"-{depth} to -1."
                )
            chosen.append(states[index])
        return chosen

    def _check_distillation(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        args = self.args
        wanted = args.distillation or []
        if teacher is not None and not wanted:
            raise ValueError("A teacher is given but `distillation` names nothing to learn from it; try ['logits'].")
        if not wanted:
            return
        if teacher is None and args.architecture_sampling != "sandwich":
            raise ValueError(
                "In-place distillation learns from the largest network, which architecture_sampling="
                f"{args.architecture_sampling!r} never runs; use 'sandwich' or give a teacher."
            )
        if "attentions" in wanted:
            check_attentions(*(side for side in (model, teacher) if side is not None))
        if wanted != ["logits"]:
            depths = [min(self.search_space.num_hidden_layers)]
            if args.architecture_sampling == "fixed":
                depths = [model.default_architecture.num_hidden_layers]
            for depth in depths + ([] if teacher is None else [teacher.config.num_hidden_layers]):
                self._chosen_layers("attentions", tuple(range(depth)))  # raises where a layer does not exist
        if teacher is None:
            return
        check_teacher(model, teacher, with_labels=not self.masked_lm and "start_positions" not in self.label_names)
        own, given = model.config, teacher.config
        if "hidden_states" in wanted and given.hidden_size != own.hidden_size:
            raise ValueError(
                f"The teacher's hidden size is {given.hidden_size}, the student's {own.hidden_size}; distil 'logits' "
                "only, or choose a teacher of that width."
            )

    # ---- logging ----------------------------------------------------------------------------------------------------

    def _count_term(self, name: str, value: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> None:
        share = 1 / self.current_gradient_accumulation_steps
        # What is a part of the step's mean already comes undiminished.
        value = value / share if self._normalised_by_items(num_items_in_batch) else value
        self._count(name, value, torch.full_like(value, share))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Whole forward passes of every architecture, with all vocabulary scores, and twice as much backward."""
        tokens = inputs.get("input_ids")
        if tokens is None:
            return 0
        cost = self.accelerator.unwrap_model(self.model).flop_cost(tokens.shape[1])
        architectures = self.architectures_of_step(self.state.global_step).values()
        return int(3 * tokens.shape[0] * sum(cost(architecture) for architecture in architectures))

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluates every architecture of the panel; metrics are prefixed with `{metric_key_prefix}_{name}`."""
        if isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dataloader = self.get_eval_dataloader(eval_dataset)
        metrics: dict[str, float] = {}
        samples, start = 0, time.time()
        for name, architecture in self.panel.items():
            with self.evaluating(architecture):
                output = self.evaluation_loop(
                    dataloader,
                    description=f"Evaluation of {name}",
                    prediction_loss_only=True if self.compute_metrics is None else None,
                    ignore_keys=ignore_keys,
                    metric_key_prefix=f"{metric_key_prefix}_{name}",
                )
            close_evaluation_bar(self)
            samples += output.num_samples
            metrics |= {key: value for key, value in output.metrics.items() if "preparation_time" not in key}
        losses = [metrics[key] for name in self.panel if (key := f"{metric_key_prefix}_{name}_loss") in metrics]
        if losses:
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=samples)
        # One record and one event for the whole panel, so that a tracker and early stopping see every member.
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluate_architecture(
        self, architecture: Architecture, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates one architecture."""
        with self.evaluating(architecture):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    @contextlib.contextmanager
    def evaluating(self, architecture: Architecture):
        """Inside, `predict` and `evaluation_loop` run `architecture`."""
        self.search_space.validate(architecture)
        previous, self._evaluated = self._evaluated, architecture
        try:
            yield
        finally:
            self._evaluated = previous

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = {**inputs, "architecture": self._evaluated or next(iter(self.panel.values()))}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


def _detached(outputs):
    def detach(value):
        if torch.is_tensor(value):
            return value.detach()
        return tuple(detach(entry) for entry in value) if isinstance(value, tuple) else value

    return type(outputs)(**{name: detach(value) for name, value in outputs.items()})
