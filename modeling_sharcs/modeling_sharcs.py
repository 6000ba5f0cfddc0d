# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
SHARCS: an encoder that sends each sample through a narrow or a wide path
(https://huggingface.co/papers/2310.12126).

The first `router_layer` layers run at full width for every sample. A router reads the mean of their output and picks a
width w for each row; the remaining layers then keep the leading w of heads, feed-forward neurons and residual
channels. The width is an argument of the forward pass and never state.

    h = layers 1..L (D wide)       router: mean over real tokens -> Linear -> ReLU -> Linear -> one logit a width
    x = norm_w(enter_w(h))         D -> w * D: slice, weighted pooling, or projection; nothing at w = 1
    x = layers L+1..M at width w   shared weights, sliced; norms of their own for each width
    out = x, padded with zeros to D, so that any head reads it with its own leading columns
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .attention import dropout_attention_forward, eager_attention_forward, has_costly_dropout
from .configuration_sharcs import SharcsConfig
from .gradients import WordEmbedding, leading
from .kept_tokens import FIRST_TOKEN, check_tokens_to_keep, keep_tokens, refuse_tokens_to_keep


logger = logging.get_logger(__name__)


@dataclass
class SharcsModelOutput(BaseModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, tokens, hidden_size)`):
            Rows that took a narrow path are padded with zeros to the full size. With `tokens_to_keep`, of those only.
        router_logits (`torch.Tensor` of shape `(batch, widths)`): One score a row and width.
        width_indices (`torch.Tensor` of shape `(batch,)`): Index into the sorted width multipliers of the path taken.
    """

    router_logits: torch.Tensor | None = None
    width_indices: torch.Tensor | None = None


@dataclass
class SharcsSequenceClassifierOutput(SequenceClassifierOutput):
    """[`~transformers.modeling_outputs.SequenceClassifierOutput`] with the routing, see [`SharcsModelOutput`]."""

    router_logits: torch.Tensor | None = None
    width_indices: torch.Tensor | None = None


@dataclass
class SharcsTokenClassifierOutput(TokenClassifierOutput):
    """[`~transformers.modeling_outputs.TokenClassifierOutput`] with the routing, see [`SharcsModelOutput`]."""

    router_logits: torch.Tensor | None = None
    width_indices: torch.Tensor | None = None


@dataclass
class SharcsQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """[`~transformers.modeling_outputs.QuestionAnsweringModelOutput`] with the routing, see [`SharcsModelOutput`]."""

    router_logits: torch.Tensor | None = None
    width_indices: torch.Tensor | None = None


def attention_interface(config: SharcsConfig):
    """The attention function that the configuration names."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)


def additive_mask(mask: Any, config: SharcsConfig, dtype: torch.dtype) -> Any:
    """What PyTorch's attention would make of a boolean mask, in every layer anew."""
    if config._attn_implementation != "sdpa" or not torch.is_tensor(mask) or mask.dtype != torch.bool:
        return mask
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return mask  # runtimes of exported graphs guard boolean masks only against rows of nothing but padding
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


class SlicedLinear(nn.Linear):
    """A linear layer that can act as its own top-left slice: inputs are sliced to the width they arrive at."""

    def forward(self, hidden: torch.Tensor, out_features: int | None = None) -> torch.Tensor:
        weight = leading(self.weight, out_features, hidden.shape[-1])
        return F.linear(hidden, weight, leading(self.bias, out_features))


class WidthNorm(nn.Module):
    """A layer norm with gains and biases of its own for each width, in stacked tensors of shape `(widths, size)`."""

    def __init__(self, num_widths: int, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_widths, size))
        self.bias = nn.Parameter(torch.zeros(num_widths, size))

    def forward(self, hidden: torch.Tensor, index: int) -> torch.Tensor:
        size = hidden.shape[-1]
        return F.layer_norm(hidden, (size,), self.weight[index, :size], self.bias[index, :size], self.eps)


class SharcsEmbeddings(nn.Module):
    """Embeddings of the backbone's family, projected where they are narrower than the network (ELECTRA)."""

    def __init__(self, config: SharcsConfig):
        super().__init__()
        self.padding_idx = config.pad_token_id
        self.roberta_layout = config.roberta_layout
        size = config.embedding_size
        self.word_embeddings = WordEmbedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, size, padding_idx=config.pad_token_id if config.roberta_layout else None
        )
        # DistilBERT has no token types.
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = nn.Linear(size, config.hidden_size) if size != config.hidden_size else None

    def forward(
        self,
        input_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        if position_ids is None:
            reference = inputs_embeds if input_ids is None else input_ids
            position_ids = torch.arange(reference.shape[1], device=reference.device).unsqueeze(0)
            if self.roberta_layout and input_ids is None:
                position_ids = position_ids + self.padding_idx + 1
            elif self.roberta_layout:
                real = input_ids.ne(self.padding_idx).long()
                position_ids = real.cumsum(dim=1) * real + self.padding_idx
        embedded = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        embedded = embedded + self.position_embeddings(position_ids)
        if self.token_type_embeddings is not None:
            types = self.token_type_embeddings
            embedded = embedded + (types.weight[0] if token_type_ids is None else types(token_type_ids))
        embedded = self.dropout(self.norm(embedded))
        return embedded if self.projection is None else self.projection(embedded)


class SharcsAttention(nn.Module):
    """Self-attention that can use its leading heads only; the size of a head never changes."""

    is_causal = False

    def __init__(self, config: SharcsConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim  # reading it from a configuration takes as long as a small operation
        inner = config.num_attention_heads * config.head_dim
        self.query = SlicedLinear(config.hidden_size, inner)
        self.key = SlicedLinear(config.hidden_size, inner)
        self.value = SlicedLinear(config.hidden_size, inner)
        self.output = SlicedLinear(inner, config.hidden_size)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        num_heads: int,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        **kwargs,
    ):
        batch, tokens, size = hidden.shape
        inner = num_heads * self.head_dim
        query, key, value = (
            linear(hidden, inner).view(batch, tokens, num_heads, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        interface = attention_interface(self.config)
        if has_costly_dropout(self.config, query, dropout):
            interface = dropout_attention_forward
        context, weights = interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        return self.output(keep_tokens(context.reshape(batch, tokens, inner), tokens_to_keep), size), weights


class SharcsLayer(GradientCheckpointingLayer):
    """A post-norm transformer layer that can run at any of `num_widths` widths; 1 for the full-width layers."""

    def __init__(self, config: SharcsConfig, num_widths: int):
        super().__init__()
        self.attention = SharcsAttention(config)
        self.attention_norm = WidthNorm(num_widths, config.hidden_size, config.layer_norm_eps)
        self.intermediate = SlicedLinear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = SlicedLinear(config.intermediate_size, config.hidden_size)
        self.output_norm = WidthNorm(num_widths, config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # DistilBERT drops out of feed-forward blocks only.
        self.attention_dropout = nn.Identity() if config.backbone_model_type == "distilbert" else self.dropout

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sizes: tuple[int, int, int],
        norm_index: int,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        **kwargs,
    ):
        size, heads, intermediate = sizes
        attended, weights = self.attention(hidden, attention_mask, heads, tokens_to_keep=tokens_to_keep, **kwargs)
        hidden = keep_tokens(hidden, tokens_to_keep)
        hidden = self.attention_norm(self.attention_dropout(attended) + hidden, norm_index)
        fed = self.output(self.activation(self.intermediate(hidden, intermediate)), size)
        return self.output_norm(self.dropout(fed) + hidden, norm_index), weights


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, or what its input has beyond, whatever its weights are stored in."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with maybe_autocast(hidden.device.type, enabled=False):
            return F.linear(hidden, self.weight.to(hidden.dtype), self.bias.to(hidden.dtype))


class SharcsRouter(nn.Module):
    """
    Linear, ReLU, Linear over the pooled output of the last full-width layer: one logit a width. In float32 always, as
    routers of mixtures of experts are: in half precision rows that differ by little would all be routed the same way.
    """

    def __init__(self, config: SharcsConfig):
        super().__init__()
        self.pooling = config.router_pooling
        self.hidden = Float32Linear(config.hidden_size, config.router_hidden_size)
        self.output = Float32Linear(config.router_hidden_size, len(config.width_multipliers))

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if attention_mask is None or self.pooling == "all":
            pooled = hidden.mean(dim=1)
        else:
            mask = attention_mask.to(hidden.dtype).unsqueeze(-1)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return self.output(F.relu(self.hidden(pooled)))


class SharcsEntry(nn.Module):
    """From D channels to the leading share of a width, and that width's norm; the widest path passes unchanged."""

    def __init__(self, config: SharcsConfig):
        super().__init__()
        self.config = config
        self.num_narrow = len(config.width_multipliers) - 1
        if not self.num_narrow:
            return
        widest_narrow = config.width_sizes(self.num_narrow - 1)[0]
        if config.entry == "pooling":
            largest_group = round(1 / config.width_multipliers[0])
            self.pooling = nn.Parameter(torch.empty(self.num_narrow, largest_group))
        elif config.entry == "projection":
            self.projection = SlicedLinear(config.hidden_size, widest_narrow)
        self.norm = WidthNorm(self.num_narrow, widest_narrow, config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor, index: int) -> torch.Tensor:
        if index == self.num_narrow:
            return hidden
        size = self.config.width_sizes(index)[0]
        if self.config.entry == "pooling":
            group = hidden.shape[-1] // size
            hidden = (hidden.view(*hidden.shape[:-1], size, group) * self.pooling[index, :group]).sum(dim=-1)
        elif self.config.entry == "projection":
            hidden = self.projection(hidden, size)
        else:
            hidden = hidden[..., :size]
        return self.norm(hidden, index)


class SharcsPreTrainedModel(PreTrainedModel):
    """What all routed encoders share: conversion, widths and their costs, calibration and budgets."""

    config: SharcsConfig
    base_model_prefix = "sharcs"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["SharcsLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, WidthNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SharcsEntry) and hasattr(module, "pooling"):
            groups = [round(1 / width) for width in self.config.width_multipliers[:-1]]
            start = torch.tensor([[1 / group] * groups[0] for group in groups])
            init.copy_(module.pooling, start.to(module.pooling))

    # ---- conversion, calibration ------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(cls, backbone: "str | PreTrainedModel", **kwargs) -> "SharcsPreTrainedModel":
        """
        A routed encoder whose widest path is `backbone` itself.

        Args:
            backbone (`str` or `PreTrainedModel`):
                A Hub name, a folder or a loaded model of the BERT, RoBERTa, DistilBERT or ELECTRA family. Its weights
                are copied; a head of the same kind is kept with its labels, another one starts new.
            kwargs:
                Fields of [`SharcsConfig`] (`width_multipliers`, `router_layer`, …), and, for a name or folder,
                arguments of `from_pretrained` (`num_labels`, `revision`, …).

        Raises:
            ValueError: if the backbone is of another family, or an argument is unknown or contradictory.
        """
        from .conversion import sharcs_from_backbone

        return sharcs_from_backbone(cls, backbone, **kwargs)

    def calibrate(
        self, dataloader, max_batches: int | None = None, measure_latency: bool = False, show_progress: bool = True
    ) -> dict[str, Any]:
        """
        Records the router's scores on a data loader and stores a small table of price against share of full FLOPs in
        the configuration, from which [`~SharcsPreTrainedModel.set_compute_budget`] reads.

        Args:
            dataloader (`Iterable[dict]`): Batches of model inputs; targets are ignored.
            max_batches (`int`, *optional*): Stop after this many.
            measure_latency (`bool`, *optional*, defaults to `False`):
                Also time a few of the prices on the first batches, on the device that the model is on, so that budgets
                can be shares of the widest path's latency there.
            show_progress (`bool`, *optional*, defaults to `True`): Show a bar; on one of several processes is enough.

        Returns:
            `dict`: the table, as stored in `config.calibration`.

        Raises:
            ValueError: if there are no rows, there is a single width, or scores are not finite.
        """
        from .calibration import calibrate

        return calibrate(self, dataloader, max_batches, measure_latency, show_progress)

    def set_compute_budget(self, budget: float, unit: str = "flops") -> float:
        """
        Sets `config.router_price` so that routed inference spends this share of full FLOPs (router included), or of
        the latency, on data like the calibration's. All of the FLOPs, 1, are the widest path, to which the router's
        own come on top.

        Args:
            budget (`float`): Share of what the widest path spends.
            unit (`str`, *optional*, defaults to `"flops"`):
                `"flops"`, or `"latency"` after a calibration with `measure_latency=True`: on that device, in batches
                like the calibration's.

        Returns:
            `float`: the price.

        Raises:
            TypeError: if the budget is no number.
            ValueError: without a calibration, for a unit that is unknown or was not measured, or where the budget is
                out of reach; the message says the range.
        """
        from .calibration import set_compute_budget

        return set_compute_budget(self, budget, unit)

    def pack_paths(self, widest: bool = True) -> "SharcsPreTrainedModel":
        """
        Copies the weights of each path together, for evaluation without gradients: routing leaves few tokens to a
        path, whose products with (slices of) large matrices wait for memory. Nothing of it is saved. To be called on
        the device, and in the type, that is used, and before a calibration that measures latency. Compiled and
        exported models run as if it had not been called.

        The copies are dropped when training begins, with a warning when gradients of the weights are recorded or these
        were loaded, moved, replaced or changed. Changes that PyTorch does not count (through `tensor.data`) cannot be
        seen: call it again after them. A copied model has none. Hooks of the packed layers' modules are not called.

        Args:
            widest (`bool`, *optional*, defaults to `True`):
                Pack the widest path and the layers before the router too, which takes the memory of all layers once
                more. Narrow paths take w² of the routed layers' memory (6% at a width of 0.25).

        Returns:
            The model itself.

        Raises:
            ValueError: if weights are elsewhere (several devices, offloaded), were made in inference mode, or modules
                of the layers were replaced (adapters; merge them first).
        """
        from .packing import PackedPaths

        encoder = self.base_model
        encoder.packed_paths = PackedPaths(encoder, widest)
        return self

    # ---- costs ------------------------------------------------------------------------------------------------------

    def width_index(self, width: float) -> int:
        """
        Index of a width multiplier in the sorted list.

        Raises:
            TypeError: if it is no number.
            ValueError: if the model does not have it; the message names those that it has.
        """
        number = width.item() if torch.is_tensor(width) and width.numel() == 1 else width
        if not isinstance(number, Real) or isinstance(number, bool):
            raise TypeError(
                f"`width` is one number for all rows, one of {self.config.width_multipliers}, got {width!r}; without "
                "it, rows are routed one by one."
            )
        for index, known in enumerate(self.config.width_multipliers):
            if abs(known - number) < 1e-3:
                return index
        raise ValueError(f"This model has the widths {self.config.width_multipliers}, not {width}.")

    def _layer_flops(self, sequence_length: int, sizes: tuple[int, int, int]) -> int:
        size, heads, intermediate = sizes
        inner = heads * self.config.head_dim
        per_token = 4 * size * inner + 2 * size * intermediate + 2 * sequence_length * inner
        return 2 * sequence_length * per_token

    def path_flops(self, sequence_length: int, index: int, routed: bool) -> int:
        """FLOPs of one sequence at the width of `index`, with or without the router's, see `count_flops`."""
        config = self.config
        full = config.width_sizes(len(config.width_multipliers) - 1)
        size = config.width_sizes(index)[0]
        flops = config.router_layer * self._layer_flops(sequence_length, full)
        flops += (config.num_hidden_layers - config.router_layer) * self._layer_flops(
            sequence_length, config.width_sizes(index)
        )
        if config.embedding_size != config.hidden_size:
            flops += 2 * sequence_length * config.embedding_size * config.hidden_size
        if index < len(config.width_multipliers) - 1 and config.entry == "projection":
            flops += 2 * sequence_length * config.hidden_size * size
        if routed:
            flops += 2 * config.router_hidden_size * (config.hidden_size + len(config.width_multipliers))
        return flops + self._head_flops(sequence_length)

    def _head_flops(self, sequence_length: int) -> int:
        return 0

    def count_flops(self, sequence_length: int = 128, width: float | None = None) -> float:
        """
        FLOPs of one sequence: two a multiply-add, matrix products only, attention's, the router's, the entry's and the
        head's included.

        Args:
            sequence_length (`int`, *optional*, defaults to 128): Tokens.
            width (`float`, *optional*):
                A forced width, which runs no router choice but still its scores; by default the expectation over
                widths at the current price, from the calibration.

        Raises:
            ValueError: for an unknown width, or without a width where no calibration is stored.
        """
        num_widths = len(self.config.width_multipliers)
        if width is not None:
            return self.path_flops(sequence_length, self.width_index(width), routed=num_widths > 1)
        if self.config.router_price is None:
            return self.path_flops(sequence_length, num_widths - 1, routed=num_widths > 1)
        from .calibration import shares_at_price

        shares = shares_at_price(self)
        return sum(share * self.path_flops(sequence_length, index, True) for index, share in enumerate(shares))

    def published_flops(self, sequence_length: int = 128, width: float = 1.0) -> float:
        """
        The published count: multiply-adds, layers and norms and router only, no attention products, no head.
        """
        config = self.config

        def layer(index: int) -> int:
            size, heads, intermediate = config.width_sizes(index)
            inner = heads * config.head_dim
            return sequence_length * (4 * size * inner + 2 * size * intermediate + 10 * size)

        router = config.router_hidden_size * (config.hidden_size + len(config.width_multipliers))
        full = layer(len(config.width_multipliers) - 1)
        routed = layer(self.width_index(width))
        return config.router_layer * full + router + (config.num_hidden_layers - config.router_layer) * routed

    def relative_costs(self, sequence_length: int = 128) -> list[float]:
        """Each width's share of full FLOPs, which the router's price multiplies."""
        last = len(self.config.width_multipliers) - 1
        full = self.path_flops(sequence_length, last, routed=False)
        return [self.path_flops(sequence_length, index, routed=False) / full for index in range(last + 1)]


class SharcsModel(SharcsPreTrainedModel):
    """
    The bare routed encoder. `last_hidden_state` pads rows that took a narrow path with zeros to the full size, and is
    zero at padding that was trimmed.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: SharcsConfig):
        super().__init__(config)
        num_widths = len(config.width_multipliers)
        self.embeddings = SharcsEmbeddings(config)
        self.layers = nn.ModuleList(
            [
                SharcsLayer(config, num_widths if index >= config.router_layer else 1)
                for index in range(config.num_hidden_layers)
            ]
        )
        self.router = SharcsRouter(config) if num_widths > 1 else None
        self.entry = SharcsEntry(config)
        self._costs = self.relative_costs()  # to compute them takes 0.2 ms, of 24 for a short row
        self.packed_paths = None  # a `PackedPaths`, see `pack_paths`
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        width: float | None = None,
        router_price: float | None = None,
        front_state: torch.Tensor | None = None,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> SharcsModelOutput:
        r"""
        width (`float`, *optional*):
            Forces one width for all rows. Otherwise rows are routed in evaluation mode once a price is set; in
            training mode, and without a price, they take the widest path.
        router_price (`float`, *optional*):
            Overrides `config.router_price` for this call.
        front_state (`torch.Tensor` of shape `(batch, tokens, hidden_size)`, *optional*):
            `hidden_states[config.router_layer]` of another pass over the same rows, which all widths have in common:
            the embeddings and the first layers are not run again, and returned hidden states begin with it.
        tokens_to_keep (`torch.Tensor` or `tuple`, *optional*):
            A mask of shape `(batch, tokens)`, what `mask.nonzero(as_tuple=True)` makes of it, or two slices, such as
            `(slice(None), slice(0, 1))` for first tokens: `last_hidden_state` holds those only (of shape `(count, …)`
            for a mask). Unless rows are routed, or hidden states returned, what follows the last layer's attention
            runs for them alone.

        Raises:
            TypeError: for several widths, or if `tokens_to_keep` is no such index.
            ValueError: for an unknown width, or a mask of another shape; if hidden states or attentions are asked of a
                routed batch, whose rows have different shapes; unless exactly one of `input_ids` and `inputs_embeds`
                is given, or `front_state`.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if front_state is None:
            check_inputs(input_ids, inputs_embeds)
        price = config.router_price if router_price is None else router_price
        last = len(config.width_multipliers) - 1
        routed = width is None and price is not None and last > 0 and not self.training
        forced = last if width is None else self.width_index(width)
        if self.training and width is None and last > 0 and not torch.compiler.is_compiling():  # which logs nothing
            logger.warning_once(
                "In training mode, without a `width`, all rows take the widest path: narrower ones and the router "
                "learn nothing. `trainers.SharcsTrainer` trains them all; call `.eval()` for routed inference."
            )
        if routed and (output_hidden_states or output_attentions):
            raise ValueError(
                "Hidden states and attentions of routed rows differ in shape; give a `width`, or ask for "
                "`last_hidden_state` only."
            )
        if output_attentions and config._attn_implementation != "eager":
            raise ValueError(
                f"attn_implementation={config._attn_implementation!r} does not return attention weights; call "
                '`model.set_attn_implementation("eager")` first.'
            )
        check_mask(attention_mask)

        if front_state is None:
            hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        else:
            hidden = front_state.to(self.dtype)  # mixed precision may have returned it in another type
        check_tokens_to_keep(tokens_to_keep, hidden.shape[:2])
        mask = create_bidirectional_mask(
            config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            # Whether a mask could be left out is read from the device, which would have to be waited for. Routed rows
            # wait once, for their plan, and lose superfluous masks then.
            allow_is_bidirectional_skip=attention_mask is None or not routed,
        )
        mask = additive_mask(mask, config, hidden.dtype)
        packed = self._packed_in_use()
        states, attentions = (hidden,), ()
        if front_state is None:
            hidden, states, attentions = self._run_front_layers(hidden, mask, packed, **kwargs)
        router_logits = None if self.router is None else self.router(hidden, attention_mask)

        if routed:
            width_indices = choose_widths(router_logits, price, self._costs)
            hidden = self._run_groups(hidden, attention_mask, mask, width_indices, packed, **kwargs)
            hidden = keep_tokens(hidden, tokens_to_keep)
        else:
            width_indices = torch.full((hidden.shape[0],), forced, device=hidden.device)
            kept = None if output_hidden_states else tokens_to_keep
            hidden, states_after, attentions_after = self._run_routed_layers(
                hidden, mask, forced, packed, tokens_to_keep=kept, **kwargs
            )
            states, attentions = states + states_after, attentions + attentions_after
            hidden = keep_tokens(hidden, tokens_to_keep) if output_hidden_states else hidden
            hidden = F.pad(hidden, (0, config.hidden_size - hidden.shape[-1]))
        return SharcsModelOutput(
            last_hidden_state=hidden,
            hidden_states=states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            router_logits=router_logits,
            width_indices=width_indices,
        )

    def run_front(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        The embeddings and the layers before the router only, which all widths have in common.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, hidden_size)`: the `front_state` of any pass over these rows.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given, or for a mask of another shape.
        """
        check_inputs(input_ids, inputs_embeds)
        check_mask(attention_mask)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        mask = create_bidirectional_mask(self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        mask = additive_mask(mask, self.config, hidden.dtype)
        return self._run_front_layers(hidden, mask, self._packed_in_use(), **kwargs)[0]

    def __getstate__(self):
        return {**super().__getstate__(), "packed_paths": None}  # of pickles and copies, whose weights are others

    def train(self, mode: bool = True):
        if mode:
            self.packed_paths = None  # optimizers may change weights without PyTorch's notice, as fused ones do
        return super().train(mode)

    def _packed_in_use(self) -> Any:
        """The `PackedPaths`, where they may serve."""
        packed = self.packed_paths
        if packed is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        if getattr(self, "_is_replica", False):  # of DataParallel, perhaps on another device
            return None
        reason = packed.why_unusable(self)
        if reason is None:
            return packed
        logger.warning(f"{reason}: what `pack_paths()` copied is dropped. Call it again for its speed.")
        self.packed_paths = None
        return None

    def _run_front_layers(self, hidden: torch.Tensor, mask: torch.Tensor | None, packed: Any, **kwargs):
        layers, copies = self.layers[: self.config.router_layer], None if packed is None else packed.front
        last = len(self.config.width_multipliers) - 1
        result, states, attentions = self._run_layers(hidden, mask, layers, copies, last, 0, **kwargs)
        return result, (hidden, *states), attentions

    def _run_routed_layers(self, hidden: torch.Tensor, mask: torch.Tensor | None, index: int, packed: Any, **kwargs):
        layers, copies = self.layers[self.config.router_layer :], None if packed is None else packed.routed.get(index)
        return self._run_layers(self.entry(hidden, index), mask, layers, copies, index, index, **kwargs)

    def _run_layers(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        layers: nn.ModuleList,
        copies: list | None,
        index: int,
        norm_index: int,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        **kwargs,
    ):
        """Layers at the width of `index`, or their packed copies where there are any."""
        if copies is None:
            given = {"sizes": self.config.width_sizes(index), "norm_index": norm_index}
        else:
            layers, given = copies, {"interface": attention_interface(self.config), "dropout": 0.0}
        states, attentions = (), ()
        for position, layer in enumerate(layers, start=1):
            kept = tokens_to_keep if position == len(layers) else None
            hidden, weights = layer(hidden, mask, **given, tokens_to_keep=kept, **kwargs)
            states, attentions = states + (hidden,), attentions + (weights,)
        return hidden, states, attentions

    def _run_groups(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mask: Any,
        width_indices: torch.Tensor,
        packed: Any,
        **kwargs,
    ) -> torch.Tensor:
        """
        Rows of one width together, padding trimmed to the group's longest row, results put back in order. `mask` is
        what `create_bidirectional_mask` made of `attention_mask` for the whole batch.
        """
        batch, tokens, _ = hidden.shape
        if attention_mask is None:
            ends = counts = torch.full((batch,), tokens, device=hidden.device)
        else:
            real = attention_mask.bool()
            # One past the last real token, so that padding on either side is handled.
            ends = (real * torch.arange(1, tokens + 1, device=hidden.device)).amax(dim=1)
            counts = real.sum(dim=1)
        # The one synchronisation with the device.
        plan = torch.stack([width_indices, ends, counts], dim=1).tolist()
        result = torch.zeros_like(hidden)
        # The rows of each group stay on the device: a list copied there would wait for it again.
        order = width_indices.argsort(stable=True)
        start = 0
        for index in sorted({taken for taken, _, _ in plan}):
            members = [(end, count) for taken, end, count in plan if taken == index]
            longest = max(1, *(end for end, _ in members))
            # Where all rows are of one width, as a single row is, nothing has to be gathered.
            rows = slice(None) if len(members) == batch else order[start : start + len(members)]
            start += len(members)
            group = hidden[rows, :longest]
            if attention_mask is None or all(count == longest for _, count in members):
                group_padding = None  # nothing but real tokens is left
            else:
                group_padding = attention_mask[rows, :longest]
            group_mask = self._mask_of_group(mask, rows, group, group_padding)
            group, _, _ = self._run_routed_layers(group, group_mask, index, packed, **kwargs)
            result[rows, :longest, : group.shape[-1]] = group.to(result.dtype)
        return result

    def _mask_of_group(
        self, mask: Any, rows: torch.Tensor | slice, group: torch.Tensor, group_padding: torch.Tensor | None
    ):
        """What of the batch's `mask` concerns the group of `rows`; to make it anew would wait for the device."""
        longest = group.shape[1]
        if mask is not None and not torch.is_tensor(mask):
            # The blocks of flex attention, which cannot be cut.
            return create_bidirectional_mask(self.config, inputs_embeds=group, attention_mask=group_padding)
        if mask is None or group_padding is None:
            return None
        return mask[rows, :, :longest, :longest] if mask.dim() == 4 else mask[rows, :longest]


class SharcsClassificationHead(nn.Module):
    """First token, dense, activation, output: the classification head of each family."""

    def __init__(self, config: SharcsConfig):
        super().__init__()
        kind = config.backbone_model_type
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = {"distilbert": nn.ReLU(), "electra": ACT2FN["gelu"]}.get(kind, nn.Tanh())
        self.dropout = nn.Dropout(dropout)
        self.input_dropout = nn.Identity() if kind in ("bert", "distilbert") else self.dropout
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        first = self.input_dropout(hidden[:, 0])
        return self.out_proj(self.dropout(self.activation(self.dense(first))))


class SharcsForSequenceClassification(SharcsPreTrainedModel):
    """A routed encoder with a sequence classification or regression head."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: SharcsConfig):
        super().__init__(config)
        self.sharcs = SharcsModel(config)
        self.classifier = SharcsClassificationHead(config)
        self.post_init()

    def _head_flops(self, sequence_length: int) -> int:
        return 2 * self.config.hidden_size * (self.config.hidden_size + self.config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        width: float | None = None,
        **kwargs,
    ) -> SharcsSequenceClassifierOutput:
        r"""
        labels (`torch.Tensor` of shape `(batch,)` or `(batch, num_labels)`, *optional*):
            Class indices; floats for regression; multi-hot floats for multi-label classification.
        width (`float`, *optional*):
            Forces one width for all rows, see [`SharcsModel`].

        `logits` have the shape `(batch, num_labels)`.
        """
        refuse_tokens_to_keep(kwargs)
        if self.training:  # evaluation does what `count_flops` counts
            kwargs["tokens_to_keep"] = FIRST_TOKEN
        outputs = self.sharcs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, width, return_dict=True, **kwargs
        )
        logits = self.classifier(outputs.last_hidden_state)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return SharcsSequenceClassifierOutput(loss=loss, logits=logits, **passed_on(outputs))


class SharcsForTokenClassification(SharcsPreTrainedModel):
    """A routed encoder with a token classification head."""

    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: SharcsConfig):
        super().__init__(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.sharcs = SharcsModel(config)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _head_flops(self, sequence_length: int) -> int:
        return 2 * sequence_length * self.config.hidden_size * self.config.num_labels

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        width: float | None = None,
        **kwargs,
    ) -> SharcsTokenClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch, tokens)`, *optional*):
            Class of each token, -100 to ignore it.
        width (`float`, *optional*):
            Forces one width for all rows, see [`SharcsModel`].

        `logits` have the shape `(batch, tokens, num_labels)`.
        """
        refuse_tokens_to_keep(kwargs)
        outputs = self.sharcs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, width, return_dict=True, **kwargs
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.view(-1, self.config.num_labels), labels.view(-1))
        return SharcsTokenClassifierOutput(loss=loss, logits=logits, **passed_on(outputs))


class SharcsForQuestionAnswering(SharcsPreTrainedModel):
    """A routed encoder with a span prediction head."""

    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: SharcsConfig):
        super().__init__(config)
        self.sharcs = SharcsModel(config)
        # Of the families, only DistilBERT's drops out before this head.
        dropout = config.classifier_dropout if config.backbone_model_type == "distilbert" else None
        self.dropout = nn.Dropout(dropout or 0.0)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def _head_flops(self, sequence_length: int) -> int:
        return 2 * sequence_length * self.config.hidden_size * 2

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        width: float | None = None,
        **kwargs,
    ) -> SharcsQuestionAnsweringOutput:
        r"""
        start_positions, end_positions (`torch.LongTensor` of shape `(batch,)`, *optional*):
            First and last token of the answer; positions beyond the sequence are ignored, negative ones mean the
            first token.
        width (`float`, *optional*):
            Forces one width for all rows, see [`SharcsModel`].

        `start_logits` and `end_logits` have the shape `(batch, tokens)`.
        """
        refuse_tokens_to_keep(kwargs)
        outputs = self.sharcs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, width, return_dict=True, **kwargs
        )
        start_logits, end_logits = self.qa_outputs(self.dropout(outputs.last_hidden_state)).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[1]
            starts, ends = (positions.view(-1).clamp(0, length) for positions in (start_positions, end_positions))
            loss = F.cross_entropy(start_logits, starts, ignore_index=length)
            loss = (loss + F.cross_entropy(end_logits, ends, ignore_index=length)) / 2
        return SharcsQuestionAnsweringOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, **passed_on(outputs)
        )

    @torch.no_grad()
    def predict_spans(
        self,
        tokenizer,
        question: str,
        context: str,
        top_k: int = 1,
        max_length: int = 384,
        stride: int = 128,
        max_answer_length: int = 30,
        batch_size: int = 8,
        **kwargs,
    ) -> list[dict[str, Any]]:
        """
        Answers a question from a context of any length, which a window slides over (transformers 5 has no
        question answering pipeline).

        Args:
            tokenizer: The model's (fast) tokenizer.
            question, context (`str`): The texts.
            top_k (`int`, *optional*, defaults to 1): How many different answers to return, best first.
            max_length, stride (`int`, *optional*, defaults to 384 and 128): Tokens of a window, the question included,
                and how many of them neighbouring windows share; both shrink to what the model can take.
            max_answer_length (`int`, *optional*, defaults to 30): Longest answer in tokens.
            batch_size (`int`, *optional*, defaults to 8): Windows evaluated at once.
            kwargs: Passed to the model, such as `width`.

        Returns:
            `list[dict]` with `answer`, `start` and `end` (characters of the context) and `score` (probability among
            the spans considered). Fewer than `top_k` where the context has fewer spans.

        Raises:
            ValueError: if the context is empty or the question leaves no room for it, or they are no strings.
        """
        if not isinstance(question, str) or not isinstance(context, str):
            raise ValueError(
                f"`predict_spans` takes one question and one context, got a {type(question).__name__} and a "
                f"{type(context).__name__}; call it once for each pair."
            )
        if not context.strip():
            raise ValueError("The context is empty; there is nothing to answer from.")
        config = self.config
        positions = config.max_position_embeddings - (config.pad_token_id + 1 if config.roberta_layout else 0)
        max_length = min(max_length, positions)
        asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        room = max_length - asked - tokenizer.num_special_tokens_to_add(pair=True)
        if room < 1:
            raise ValueError(
                f"The question takes {max_length - room} of {max_length} tokens, which leaves no room for the "
                "context; shorten it or raise max_length."
            )
        windows = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=min(stride, room - 1),
            padding=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        names = [name for name in tokenizer.model_input_names if name in windows]
        was_training = self.training
        self.eval()
        try:
            outputs = [
                self(**{name: windows[name][first : first + batch_size].to(self.device) for name in names}, **kwargs)
                for first in range(0, len(windows["input_ids"]), batch_size)
            ]
        finally:
            self.train(was_training)
        every_start, every_end = (
            torch.cat([output[name].float().cpu() for output in outputs]) for name in ("start_logits", "end_logits")
        )
        best: dict[tuple[int, int], float] = {}
        for index, (starts, ends) in enumerate(zip(every_start, every_end, strict=True)):
            inside = torch.tensor([part == 1 for part in windows.sequence_ids(index)])
            scores = starts[:, None] + ends[None, :]
            allowed = inside[:, None] & inside[None, :]
            allowed = allowed.triu() & ~allowed.triu(diagonal=max_answer_length)
            scores = scores.masked_fill(~allowed, -torch.inf).flatten()
            kept = min(20 * top_k, int(allowed.sum()))
            for score, position in zip(*(found.tolist() for found in scores.topk(kept)), strict=True):
                start, end = divmod(position, len(starts))
                offsets = windows["offset_mapping"][index]
                span = (int(offsets[start][0]), int(offsets[end][1]))
                best[span] = max(score, best.get(span, -torch.inf))
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
        probabilities = torch.tensor([score for _, score in ranked]).softmax(dim=0).tolist()
        return [
            {"answer": context[start:end], "start": start, "end": end, "score": probability}
            for ((start, end), _), probability in zip(ranked[:top_k], probabilities, strict=False)
        ]


def check_inputs(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> None:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of `input_ids` and `inputs_embeds`.")


def check_mask(attention_mask: torch.Tensor | None) -> None:
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"`attention_mask` must have the shape (batch, tokens), got {attention_mask.dim()} axes.")


def passed_on(outputs: SharcsModelOutput) -> dict[str, Any]:
    """What a head returns of the encoder's outputs as it is."""
    return {
        "hidden_states": outputs.hidden_states,
        "attentions": outputs.attentions,
        "router_logits": outputs.router_logits,
        "width_indices": outputs.width_indices,
    }


def choose_widths(scores: torch.Tensor, price: float, costs: list[float]) -> torch.Tensor:
    """Index of the width with the largest `score - price * cost`, of shape `(rows,)`."""
    # Column by column, with numbers: a tensor of costs would have to be copied to the device, and waited for.
    columns = scores.float().unbind(dim=-1)
    return torch.stack([column - price * cost for column, cost in zip(columns, costs, strict=True)], -1).argmax(-1)


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config: SharcsConfig) -> torch.Tensor:
    """Mean squared error, cross entropy or binary cross entropy, by `config.problem_type`."""
    problem = config.problem_type
    if problem is None:
        if config.num_labels == 1:
            problem = "regression"
        else:
            problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem == "regression":
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))
    if problem == "single_label_classification":
        return F.cross_entropy(logits.view(-1, config.num_labels), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


__all__ = [
    "SharcsForQuestionAnswering",
    "SharcsForSequenceClassification",
    "SharcsForTokenClassification",
    "SharcsModel",
    "SharcsPreTrainedModel",
]
