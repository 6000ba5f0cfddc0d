# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Importance of a backbone's heads, feed-forward neurons and residual channels, and the permutation that puts the
important ones first without changing the function.

A narrow path of SHARCS keeps leading slices of all three, so that what comes first should matter most.
"""

import copy
import inspect
import itertools
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .conversion import check_family, our_name


# What the axes of a weight run over, by names after `our_name`; a bias or a norm has the first axis only. "embedding"
# is the residual stream too, unless a projection stands between (ELECTRA). `None` is left as it is.
_ENCODER_AXES = (
    (r"embeddings\.\w+_embeddings\.", (None, "embedding")),
    (r"embeddings\.norm\.", ("embedding",)),
    (r"embeddings\.projection\.", ("channels", None)),
    (r"layers\.\d+\.attention\.(query|key|value)\.", ("heads", "channels")),
    (r"layers\.\d+\.attention\.output\.", ("channels", "heads")),
    (r"layers\.\d+\.(attention|output)_norm\.", ("channels",)),
    (r"layers\.\d+\.intermediate\.", ("neurons", "channels")),
    (r"layers\.\d+\.output\.", ("channels", "neurons")),
    (r"pooler\.dense\.", (None, "channels")),
)
# The same of the heads, by the end of their class's name. A head's own hidden channels stay in their order, but those
# that meet the word embeddings again in a tied output layer follow them.
_HEAD_AXES = {
    "Model": (),
    "ForSequenceClassification": (
        (r"(pre_classifier|classifier\.dense)\.", (None, "channels")),
        (r"classifier\.(out_proj\.)?(weight|bias)$", (None, None)),
    ),
    "ForTokenClassification": ((r"classifier\.", (None, "channels")),),
    "ForQuestionAnswering": ((r"qa_outputs\.", (None, "channels")),),
    "ForMaskedLM": (
        (
            r"(cls\.predictions\.transform\.dense|lm_head\.dense|vocab_transform|generator_predictions\.dense)\.",
            ("embedding", "channels"),
        ),
        (
            r"(cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm|vocab_layer_norm"
            r"|generator_predictions\.LayerNorm)\.",
            ("embedding",),
        ),
        (
            r"(cls\.predictions\.decoder|lm_head\.decoder|vocab_projector|generator_lm_head)\.weight$",
            (None, "embedding"),
        ),
        (r"(cls\.predictions(\.decoder)?|lm_head(\.decoder)?|vocab_projector|generator_lm_head)\.bias$", (None,)),
    ),
}


@dataclass(frozen=True, eq=False)
class Importance:
    """
    How much the loss depends on each part of a backbone; larger is more important. Only comparisons inside a row mean
    something.

    Args:
        heads (`torch.Tensor` of shape `(layers, heads)`): Attention heads of each layer.
        neurons (`torch.Tensor` of shape `(layers, intermediate_size)`): Feed-forward neurons of each layer.
        channels (`torch.Tensor` of shape `(hidden_size,)`): Channels of the residual stream.
    """

    heads: torch.Tensor
    neurons: torch.Tensor
    channels: torch.Tensor

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes the three tensors as a safetensors file, whole or not at all.

        Args:
            path (`str` or `os.PathLike`): The file; its folder exists.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in ("heads", "neurons", "channels")}
        try:
            save_file(tensors, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Importance":
        """
        Reads what [`Importance.save`] wrote.

        Args:
            path (`str` or `os.PathLike`): The file.

        Returns:
            `Importance`: On the CPU.

        Raises:
            ValueError: The file is not one of an importance.
            FileNotFoundError: There is no such file.
        """
        names = ["channels", "heads", "neurons"]
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} is not a safetensors file ({error}); write one with `Importance.save`."
            ) from error
        if sorted(tensors) != names:
            raise ValueError(
                f"{str(path)!r} holds the tensors {sorted(tensors)}, an importance has {names}; write one with "
                "`Importance.save`."
            )
        return cls(**tensors)


def compute_importance(
    model: PreTrainedModel,
    dataloader: Iterable[dict[str, Any]],
    max_batches: int | None = None,
    per_row: bool = True,
) -> Importance:
    """
    First-order importance of heads, neurons and residual channels for the loss of a fine-tuned model.

    Each score is the absolute derivative of the loss with respect to a multiplier, equal to one, of the part in
    question, which is `sum(x * dL/dx)` over its activations `x`; so no mask is needed, nor any weight's gradient:

    - head: a multiplier of its attention probabilities, that is, of its context vectors;
    - neuron: one of what goes into it (its weights and bias) and one of what comes out of it, two absolute values;
    - channel: one multiplier of that channel at every place of the residual stream, all layers at once: the
      embeddings (behind the projection of ELECTRA) and the output of both norms of each layer.

    Scores are summed over rows. Nothing carries over from one batch to the next. The model runs in evaluation mode,
    and is left as it was: parameters, their gradients, modes and configuration.

    Args:
        model ([`~transformers.PreTrainedModel`]): A BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT or ELECTRA with a head
            for sequence classification (also regression and multi-label), token classification, question answering or
            masked language modeling. Its head should be trained: importance is for a task.
        dataloader (iterable of dictionaries of tensors): Labelled batches, `input_ids` of shape `(batch, tokens)` and
            what the model's loss needs. Use training rows: the order is learned from their labels. What the forward
            pass does not take is ignored.
        max_batches (`int`, *optional*): Stop after so many batches.
        per_row (`bool`, *optional*, defaults to `True`): Take the absolute value for each row, scaled as if the row
            were alone in its batch. Then rows do not cancel each other and, where the loss is a mean over rows, the
            batch size does not matter; it is what batches of one row give, the published setting. With `False`, the
            absolute value of the derivative of each batch's mean loss.

    Returns:
        [`Importance`]: In float32, on the CPU.

    Raises:
        ValueError: The family or head is not supported, there are no batches, a batch has no labels, or a loss is not
            finite.
    """
    _axes_of_parameters(model)
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1, got {max_batches}; leave it out to use every batch.")
    if type(model).__name__.endswith("Model"):
        raise ValueError(
            f"Importance is a derivative of a loss, and {type(model).__name__} has none; load the fine-tuned model "
            "with its head, for example with AutoModelForSequenceClassification."
        )
    layers, num_heads, _, _ = _sizes(model)
    accepted = inspect.signature(model.forward).parameters
    totals: dict[tuple[str, int], torch.Tensor] = {}
    with _left_as_it_was(model), torch.enable_grad():
        for position, batch in enumerate(itertools.islice(dataloader, max_batches)):
            inputs = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
                if name in accepted
            }
            with _recorded_activations(model) as activations:
                loss = model(**inputs, return_dict=True).loss
            _check_loss(loss, position, batch)
            for key, score in _derivatives(loss, activations).items():
                if key[0] == "context":
                    score = score.unflatten(1, (num_heads, -1)).sum(dim=2)
                score = score.abs().sum(dim=0) * len(score) if per_row else score.sum(dim=0).abs()
                totals[key] = totals[key] + score if key in totals else score
    if not totals:
        raise ValueError("The data loader gave no batches; importance needs labelled rows.")
    totals = {key: total.cpu() for key, total in totals.items()}
    return Importance(
        heads=torch.stack([totals["context", layer] for layer in range(layers)]),
        neurons=torch.stack(
            [totals["into neuron", layer] + totals["out of neuron", layer] for layer in range(layers)]
        ),
        channels=totals["stream", 0],
    )


@torch.no_grad()
def reorder_backbone(
    model: PreTrainedModel,
    importance: Importance,
    heads: bool = True,
    neurons: bool = True,
    channels: bool = True,
) -> PreTrainedModel:
    """
    The same function with its important parts first: heads and neurons of each layer, and the channels of the residual
    stream everywhere at once. Parts of equal importance keep their order.

    Args:
        model ([`~transformers.PreTrainedModel`]): As for [`compute_importance`], or a base model. It is not changed.
        importance ([`Importance`]): Scores of this model.
        heads (`bool`, *optional*, defaults to `True`): Whether to permute the heads of each layer.
        neurons (`bool`, *optional*, defaults to `True`): Whether to permute the feed-forward neurons of each layer.
        channels (`bool`, *optional*, defaults to `True`): Whether to permute the channels of the residual stream.

    Returns:
        [`~transformers.PreTrainedModel`]: A copy of the same class with the same outputs, up to rounding, apart from
        the order of the channels of `hidden_states` and of the heads of `attentions`.

    Raises:
        ValueError: The family or head is not supported, the scores are of another shape or not finite, or there is
            nothing to permute.
    """
    axes = _axes_of_parameters(model)
    chosen = {"heads": heads, "neurons": neurons, "channels": channels}
    if not any(chosen.values()):
        raise ValueError("Nothing to re-order: heads, neurons and channels are all False; set at least one to True.")
    _check_importance(model, importance)
    _, num_heads, head_size, _ = _sizes(model)
    orders = {
        name: getattr(importance, name).argsort(dim=-1, descending=True, stable=True)
        for name, wanted in chosen.items()
        if wanted
    }
    if heads:
        # The order of heads as one of rows: each head's rows stay together.
        within = torch.arange(head_size, device=orders["heads"].device)
        orders["heads"] = (orders["heads"].unsqueeze(-1) * head_size + within).flatten(1)
    reordered = copy.deepcopy(model)
    for name, parameter in reordered.named_parameters():
        layer = re.match(r"layers\.(\d+)\.", _conversion_name(name, model))
        for axis, kind in enumerate(axes[name]):
            if kind in orders:
                order = orders[kind] if kind == "channels" else orders[kind][int(layer[1])]
                parameter.copy_(parameter.index_select(axis, order.to(parameter.device)))
    return reordered


def _conversion_name(name: str, model: PreTrainedModel) -> str:
    """A stock name of a module or parameter as the conversion has it, the same for every family."""
    # The conversion renames parameters, whose names go on after their module's.
    name = f"{name.removeprefix(f'{model.base_model_prefix}.')}."
    return (our_name(name) or name).removesuffix(".")


def _axes_of_parameters(model: PreTrainedModel) -> dict[str, tuple[str | None, ...]]:
    """What each axis of each parameter runs over: "heads", "neurons" or "channels" of which the order can change."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"Re-ordering takes a loaded Transformers model, got {type(model).__name__}; load a name or a folder with "
            "an Auto class, and merge adapters into the model first."
        )
    check_family(model.config)
    class_name = type(model).__name__
    head_axes = next((rules for ending, rules in _HEAD_AXES.items() if class_name.endswith(ending)), None)
    if head_axes is None:
        raise ValueError(
            f"Re-ordering does not know the head of {class_name}; supported are base models and the heads "
            f"{list(_HEAD_AXES)[1:]}."
        )
    projected = "embeddings.projection" in {_conversion_name(name, model) for name, _ in model.named_modules()}
    axes = {}
    for name, parameter in model.named_parameters():
        ours = _conversion_name(name, model)
        kinds = next((kinds for pattern, kinds in (*_ENCODER_AXES, *head_axes) if re.match(pattern, ours)), None)
        if kinds is None:
            raise ValueError(
                f"{class_name} has the parameter {name!r}, which no stock model with this head has; re-order the "
                "plain model, before anything is added to it."
            )
        stream = None if projected else "channels"
        axes[name] = tuple(stream if kind == "embedding" else kind for kind in kinds[: parameter.dim()])
    return axes


def _sizes(model: PreTrainedModel) -> tuple[int, int, int, int]:
    """Layers, heads, channels of a head, neurons: families name them differently, so the weights are asked."""
    linears = {
        _conversion_name(name, model): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    heads = model.config.num_attention_heads
    return (
        model.config.num_hidden_layers,
        heads,
        linears["layers.0.attention.output"].in_features // heads,
        linears["layers.0.intermediate"].out_features,
    )


def _check_importance(model: PreTrainedModel, importance: Importance) -> None:
    layers, heads, _, neurons = _sizes(model)
    expected = {"heads": (layers, heads), "neurons": (layers, neurons), "channels": (model.config.hidden_size,)}
    for name, shape in expected.items():
        scores = getattr(importance, name)
        if tuple(scores.shape) != shape:
            raise ValueError(
                f"The importance of {name} has the shape {tuple(scores.shape)}, this {type(model).__name__} needs "
                f"{shape}; compute it with this model."
            )
        if not scores.isfinite().all():
            bad = int((~scores.isfinite()).sum())
            raise ValueError(
                f"{bad} of {scores.numel()} importances of {name} are not finite, so that they have no order; compute "
                "them again, in float32."
            )


def _check_loss(loss: torch.Tensor | None, position: int, batch: dict[str, Any]) -> None:
    if loss is None:
        raise ValueError(
            f"Batch {position} (counted from 0) has no labels, its keys are {sorted(batch)}; importance needs "
            "'labels', or 'start_positions' and 'end_positions' for question answering."
        )
    if not math.isfinite(loss.item()):
        raise ValueError(
            f"The loss of batch {position} (counted from 0) is {loss.item()}, and so would be every importance; check "
            "that its rows have labels other than -100, that the weights are finite, and use float32."
        )


@contextmanager
def _left_as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's own mode, and what a forward pass writes into the config."""
    modes = [(module, module.training) for module in model.modules()]
    problem_type = model.config.problem_type  # Stock classifiers guess it from the labels and keep it.
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        model.config.problem_type = problem_type


@contextmanager
def _recorded_activations(model: PreTrainedModel) -> Iterator[dict[tuple[str, int], list[torch.Tensor]]]:
    """
    The activations, by kind and layer, of what runs inside; each of shape `(batch, tokens, size)`. The graph starts at
    the embeddings, so that a backbone with frozen weights has one too.
    """
    activations = defaultdict(list)

    def input_hook(key: tuple[str, int]):
        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            activations[key].append(inputs[0])

        return record

    def output_hook(key: tuple[str, int]):
        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            activations[key].append(output)

        return record

    def start_graph(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        start = output.detach().requires_grad_()
        activations["stream", 0].append(start)
        return start

    modules = {_conversion_name(name, model): module for name, module in model.named_modules()}
    start = modules.get("embeddings.projection", modules["embeddings"])
    handles = [start.register_forward_hook(start_graph)]
    for layer in range(model.config.num_hidden_layers):
        ours = f"layers.{layer}"
        handles += [
            modules[f"{ours}.attention.output"].register_forward_pre_hook(input_hook(("context", layer))),
            modules[f"{ours}.intermediate"].register_forward_hook(output_hook(("into neuron", layer))),
            modules[f"{ours}.output"].register_forward_pre_hook(input_hook(("out of neuron", layer))),
            modules[f"{ours}.attention_norm"].register_forward_hook(output_hook(("stream", 0))),
            modules[f"{ours}.output_norm"].register_forward_hook(output_hook(("stream", 0))),
        ]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def _derivatives(
    loss: torch.Tensor, activations: dict[tuple[str, int], list[torch.Tensor]]
) -> dict[tuple[str, int], torch.Tensor]:
    """
    Derivatives of the loss with respect to a multiplier of each row's activations, of shape `(batch, size)`; where a
    key has several activations, they share the multiplier.
    """
    keys = [key for key, recorded in activations.items() for _ in recorded]
    tensors = [tensor for recorded in activations.values() for tensor in recorded]
    derivatives: dict[tuple[str, int], torch.Tensor] = {}
    for key, tensor, gradient in zip(keys, tensors, torch.autograd.grad(loss, tensors), strict=True):
        derivative = (tensor.detach().float() * gradient.float()).sum(dim=1)
        derivatives[key] = derivatives[key] + derivative if key in derivatives else derivative
    return derivatives


__all__ = ["Importance", "compute_importance", "reorder_backbone"]
