# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Copies of the weights of paths, laid out for products of few tokens, for evaluation; see `pack_paths`."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .kept_tokens import keep_tokens
from .modeling_sharcs import SharcsLayer, SharcsModel, SlicedLinear, WidthNorm


class PackedLayer:
    """
    A layer at one width, for evaluation: its weights without gaps in memory, those of queries, keys and values in one,
    and without calls of modules: these and the gaps take a third of the time of a narrow layer for one row.
    """

    @torch.no_grad()
    def __init__(self, layer: SharcsLayer, sizes: tuple[int, int, int], norm_index: int):
        size, self.num_heads, intermediate = sizes
        self.attention, self.activation = layer.attention, layer.activation
        inner = self.num_heads * self.attention.head_dim
        attention = self.attention

        def cut(rows: int, columns: int, *linears: SlicedLinear) -> tuple[torch.Tensor, torch.Tensor]:
            weight = torch.cat([linear.weight[:rows, :columns] for linear in linears])
            if weight.device.type == "cpu":  # column by column, which products of few tokens read a tenth faster
                weight = weight.t().contiguous().t()
            return weight, torch.cat([linear.bias[:rows] for linear in linears])

        self.projection = cut(inner, size, attention.query, attention.key, attention.value)
        self.output = cut(size, inner, attention.output)
        self.intermediate = cut(intermediate, size, layer.intermediate)
        self.feed_forward = cut(size, intermediate, layer.output)
        self.attention_norm, self.output_norm = (
            ((size,), norm.weight[norm_index, :size].clone(), norm.bias[norm_index, :size].clone(), norm.eps)
            for norm in (layer.attention_norm, layer.output_norm)
        )

    def __call__(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        interface: Callable,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        **kwargs,
    ):
        batch, tokens, _ = hidden.shape
        heads, attention = self.num_heads, self.attention
        projected = F.linear(hidden, *self.projection).view(batch, tokens, 3 * heads, -1).transpose(1, 2)
        context, weights = interface(
            attention, *projected.split(heads, dim=1), attention_mask, scaling=attention.head_dim**-0.5, **kwargs
        )
        context = keep_tokens(context.reshape(batch, tokens, -1), tokens_to_keep)
        attended = F.linear(context, *self.output)
        hidden = torch.layer_norm(attended + keep_tokens(hidden, tokens_to_keep), *self.attention_norm)
        fed = F.linear(self.activation(F.linear(hidden, *self.intermediate)), *self.feed_forward)
        return torch.layer_norm(fed + hidden, *self.output_norm), weights


class PackedPaths:
    """The packed layers of a [`SharcsModel`], and what they are copies of."""

    def __init__(self, model: SharcsModel, widest: bool):
        config, last = model.config, len(model.config.width_multipliers) - 1
        self.first = 0 if widest else config.router_layer
        layers = model.layers[self.first :]
        way_out = ", or leave out what is before the router (`widest=False`)" if widest else ""
        for module in _sources(layers):
            if type(module) not in (SlicedLinear, WidthNorm):
                raise ValueError(
                    f"A layer holds a {type(module).__name__}, which cannot be packed: merge adapters first "
                    f"(`merge_and_unload()`){way_out}."
                )
        parameters = [parameter for module in _sources(layers) for parameter in module.parameters()]
        devices = sorted({str(parameter.device) for parameter in parameters})
        if len(devices) > 1 or devices == ["meta"]:
            raise ValueError(
                f"Paths are packed on one device, these weights are on {devices}: load without `device_map`{way_out}."
            )
        if any(parameter.is_inference() for parameter in parameters):
            raise ValueError(
                "These weights were made in inference mode, whose changes PyTorch does not count: load the model "
                "outside of `torch.inference_mode()`."
            )
        # Before the router, and after it by index of the width.
        full = config.width_sizes(last)
        self.front = [PackedLayer(layer, full, 0) for layer in model.layers[: config.router_layer]] if widest else None
        self.routed = {
            index: [
                PackedLayer(layer, config.width_sizes(index), index) for layer in model.layers[config.router_layer :]
            ]
            for index in range(last + int(widest))
        }
        self._stamp = self._stamp_of(model)

    def why_unusable(self, model: SharcsModel) -> str | None:
        """Why the copies do not serve (any longer), as far as PyTorch counts changes."""
        if self._stamp_of(model) != self._stamp:
            return "The weights are no longer those that were packed (loaded, moved, replaced or changed)"
        if torch.is_grad_enabled() and any(
            parameter.requires_grad for parameter in model.layers[self.first :].parameters()
        ):
            return "Gradients are recorded (`with torch.no_grad():` records none)"
        return None

    def _stamp_of(self, model: SharcsModel) -> list[tuple[int, int]]:
        return [
            (parameter.data_ptr(), parameter._version)
            for module in _sources(model.layers[self.first :])
            for parameter in module._parameters.values()
        ]


def _sources(layers: nn.ModuleList) -> list[nn.Module]:
    """The modules whose weights are packed; to look for them among all modules would take longer than a layer."""
    return [
        module
        for layer in layers
        for module in (
            *(layer.attention.query, layer.attention.key, layer.attention.value, layer.attention.output),
            *(layer.attention_norm, layer.intermediate, layer.output, layer.output_norm),
        )
    ]
