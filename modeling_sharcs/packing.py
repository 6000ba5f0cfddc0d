# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Copies of narrow paths' weights that lie together in memory, for evaluation; see `pack_narrow_paths`."""

import torch
from torch import nn
from torch.nn import functional as F

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

        def cut(linear: SlicedLinear, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
            weight = linear.weight[:rows, :columns].clone(memory_format=torch.contiguous_format)
            return weight, linear.bias[:rows].clone()

        projections = (self.attention.query, self.attention.key, self.attention.value)
        parts = zip(*(cut(linear, inner, size) for linear in projections), strict=True)
        self.projection = tuple(torch.cat(tensors) for tensors in parts)
        self.output = cut(self.attention.output, size, inner)
        self.intermediate = cut(layer.intermediate, intermediate, size)
        self.feed_forward = cut(layer.output, size, intermediate)
        self.attention_norm, self.output_norm = (
            ((size,), norm.weight[norm_index, :size].clone(), norm.bias[norm_index, :size].clone(), norm.eps)
            for norm in (layer.attention_norm, layer.output_norm)
        )

    def __call__(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, interface, **kwargs):
        batch, tokens, _ = hidden.shape
        heads, attention = self.num_heads, self.attention
        projected = F.linear(hidden, *self.projection).view(batch, tokens, 3 * heads, -1).transpose(1, 2)
        context, weights = interface(
            attention, *projected.split(heads, dim=1), attention_mask, scaling=attention.head_dim**-0.5, **kwargs
        )
        attended = F.linear(context.reshape(batch, tokens, -1), *self.output)
        hidden = torch.layer_norm(attended + hidden, *self.attention_norm)
        fed = F.linear(self.activation(F.linear(hidden, *self.intermediate)), *self.feed_forward)
        return torch.layer_norm(fed + hidden, *self.output_norm), weights


class PackedPaths:
    """The packed layers of all narrow widths (by index) of a [`SharcsModel`], and what they are copies of."""

    def __init__(self, model: SharcsModel):
        config, layers = model.config, model.layers[model.config.router_layer :]
        for module in _sources(layers):
            if type(module) not in (SlicedLinear, WidthNorm):
                raise ValueError(
                    f"A routed layer holds a {type(module).__name__}, which cannot be packed: merge adapters first "
                    "(`merge_and_unload()`)."
                )
        parameters = [parameter for module in _sources(layers) for parameter in module.parameters()]
        devices = sorted({str(parameter.device) for parameter in parameters})
        if len(devices) > 1 or devices == ["meta"]:
            raise ValueError(
                f"Paths are packed on one device, these weights are on {devices}: load without `device_map`."
            )
        if any(parameter.is_inference() for parameter in parameters):
            raise ValueError(
                "These weights were made in inference mode, whose changes PyTorch does not count: load the model "
                "outside of `torch.inference_mode()`."
            )
        self.layers = {
            index: [PackedLayer(layer, config.width_sizes(index), index) for layer in layers]
            for index in range(len(config.width_multipliers) - 1)
        }
        self._stamp = self._stamp_of(model)

    def agree_with(self, model: SharcsModel) -> bool:
        """Whether `model` still has the weights that were copied, as far as PyTorch counts changes."""
        return self._stamp_of(model) == self._stamp

    @staticmethod
    def _stamp_of(model: SharcsModel) -> list[tuple[int, int]]:
        return [
            (parameter.data_ptr(), parameter._version)
            for module in _sources(model.layers[model.config.router_layer :])
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
