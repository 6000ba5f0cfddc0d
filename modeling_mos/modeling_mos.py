# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Mixture-of-Supernets (MoS): a BERT-like supernet whose feed-forward weights are mixed from experts by a router that
looks at the architecture (https://huggingface.co/papers/2306.04845).

The architecture is an argument of every forward pass and never state: weights are sliced to it, then experts are
combined. One layer at width d, feed-forward f (D is the backbone's width):

    x = input_bottleneck(h)            D -> d        no activation, norm or residual; only with bottlenecks
    a = norm(output(attention(x)) + x)               post-norm, residual at width d
    y = norm(FFN(a) + a)                             FFN weights = sum over experts of p_e(architecture) * W_e
    h = output_bottleneck(y)           d -> D

There is no skip connection on the D-wide stream: output_bottleneck and the next input_bottleneck are one affine map.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .architecture import Architecture, CostTable, Limit, SearchSpace, check_bound
from .configuration_mos import MosConfig
from .gradients import adds_in_place, leading
from .kept_tokens import check_tokens_to_keep, keep_tokens
from .modeling_mos_subnet import (
    ElasticLayerNorm,
    ElasticLinear,
    MaskedLMHeadMixin,
    MosAttentionBase,
    MosEmbeddings,
    MosPooler,
    QuestionAnsweringHeadMixin,
    SequenceClassificationHeadMixin,
    TokenClassificationHeadMixin,
    check_inputs,
    requested_outputs,
)


class MosBottleneck(ElasticLinear):
    """A square linear layer between the D-wide stream and a layer's own width; starts as the identity."""


class MixExperts(torch.autograd.Function):
    """
    [`mix_experts`] of two or more, with a gradient of its own: autograd's would fill a tensor of zeros as large as all
    experts for every slice and every expert that is taken, and was half of what routing added to a training step.
    """

    @staticmethod
    def forward(ctx, experts: torch.Tensor, probabilities: torch.Tensor, in_place: bool, *sizes: int) -> torch.Tensor:
        ctx.taken, ctx.shape = (slice(None), *map(slice, sizes)), experts.shape
        ctx.parameter = experts if in_place else None
        taken = experts[ctx.taken]
        # The part only: whether `experts` is one already may differ when a checkpointed layer is run again.
        ctx.save_for_backward(taken, probabilities)
        weights = _by_expert(probabilities, taken)
        if len(taken) == 2:
            return torch.lerp(taken[0], taken[1], weights[1])  # one pass over both
        mixed = taken[0] * weights[0]
        for expert, weight in zip(taken[1:], weights[1:], strict=True):
            mixed.addcmul_(expert, weight)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        taken, probabilities = ctx.saved_tensors
        weights = _by_expert(probabilities, taken)
        if ctx.parameter is not None and ctx.parameter.grad is not None:
            of_experts = None
            for expert, weight in zip(ctx.parameter.grad[ctx.taken], weights, strict=True):
                expert.addcmul_(gradient, weight)
        else:
            # Every entry is written once: inside the slice by the product, outside, where there is no gradient, by
            # zeros.
            of_experts = taken.new_empty(ctx.shape)
            torch.mul(gradient, weights, out=of_experts[ctx.taken])
            for axis, size in enumerate(taken.shape):
                of_experts.narrow(axis, size, ctx.shape[axis] - size).zero_()
        rows = len(gradient)
        # As a matrix product, the scalar products of rows need no temporary as large as the experts.
        of_probabilities = torch.einsum("rc,erc->re", gradient.reshape(rows, -1), taken.reshape(len(taken), rows, -1))
        of_probabilities = of_probabilities.sum_to_size(probabilities.shape)
        return of_experts, of_probabilities, *[None] * len(ctx.taken)


def _by_expert(probabilities: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """`(rows or 1, num_experts)` as `(num_experts, rows or 1, 1, ...)`, which multiplies stacked experts."""
    return probabilities.t().reshape(len(experts), -1, *[1] * (experts.dim() - 2))


def mix_experts(experts: torch.Tensor, probabilities: torch.Tensor | None, *sizes: int) -> torch.Tensor:
    """
    The convex combination of the leading parts of expert weights (paper equations 3 and 4): slice first, then combine.

    Args:
        experts (`torch.Tensor` of shape `(num_experts, ...)`): Weights or biases.
        probabilities (`torch.Tensor` of shape `(rows or 1, num_experts)`): Mixing weights of each output neuron, or of
            the whole layer; a single expert needs none.
        sizes (`int`): How much of each further dimension to take, rows first.

    Returns:
        `torch.Tensor` of shape `sizes`.
    """
    if len(experts) == 1:
        return leading(experts, None, *sizes).squeeze(0)
    if torch.compiler.is_compiling():  # which cannot write parts of a gradient, and fuses all of it
        part = leading(experts, None, *sizes)
        return (part * _by_expert(probabilities.to(part.dtype), part)).sum(dim=0)
    return MixExperts.apply(experts, probabilities.to(experts.dtype), adds_in_place(experts), *sizes)


def start_experts(mean: torch.Tensor, num_experts: int, how: str, delta_scale: float, std: float) -> torch.Tensor:
    """
    Weights that `num_experts` experts start from.

    Args:
        mean (`torch.Tensor` of shape `(...)`): The backbone's weight.
        how (`str`): `"deltas"`, `"copies"` or `"random"`, see [`MosConfig`].
        delta_scale (`float`): Standard deviation of the differences relative to that of `mean`.
        std (`float`): Standard deviation of experts that start from noise.

    Returns:
        `torch.Tensor` of shape `(num_experts, ...)`, whose mean over the experts is `mean` except for `"random"`.
    """
    experts = mean.expand(num_experts, *mean.shape).clone()
    if num_experts == 1 or how == "copies":
        return experts
    noise = torch.randn_like(experts)
    if how == "random":
        experts[1:] = noise[1:] * std
        return experts
    noise -= noise.mean(dim=0)
    # With two experts the centred noise has half the variance; sqrt(E / (E - 1)) restores it for any number.
    unit = (num_experts / (num_experts - 1)) ** 0.5
    return experts + noise * unit * delta_scale * mean.std(correction=0)


class MosRouterLinear(ElasticLinear):
    """A linear layer of a router: PyTorch's initialisation, unless it has a standard deviation (0 is possible)."""

    starting_std: float | None = None


class MosRouter(nn.Module):
    """
    A small MLP from the encoded architecture to mixing probabilities (paper sections 3.1 and 3.2).

    Its outputs are ordered neuron by neuron with the experts innermost, so the leading ones route a slice.
    """

    def __init__(self, config: MosConfig, encoding_size: int, rows: int):
        super().__init__()
        sizes = [encoding_size] + [config.router_hidden_size] * (config.router_num_layers - 1)
        self.num_experts = config.num_experts
        self.hidden = nn.ModuleList(
            [MosRouterLinear(before, after) for before, after in zip(sizes, sizes[1:], strict=False)]
        )
        self.output = MosRouterLinear(sizes[-1], rows * config.num_experts)
        if config.expert_start == "deltas":
            self.output.starting_std = 0.0
        elif rows > 1:
            self.output.starting_std = config.initializer_range  # published: near-uniform mixing

    def forward(self, encoding: torch.Tensor, rows: int) -> torch.Tensor:
        """`encoding` of shape `(encoding_size,)` to probabilities of shape `(rows, num_experts)`."""
        for layer in self.hidden:
            encoding = F.relu(layer(encoding))
        logits = self.output(encoding, rows * self.num_experts)
        return logits.view(rows, self.num_experts).softmax(dim=-1)


class MosFeedForward(nn.Module):
    """The experts of one layer, stacked in one tensor a matrix, and their router(s)."""

    def __init__(self, config: MosConfig, encoding_size: int, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        width, intermediate = config.hidden_size, config.intermediate_size
        self.num_own = config.num_experts - int(config.average_last_expert)
        self.input_weight = nn.Parameter(torch.empty(self.num_own, intermediate, width))
        self.input_bias = nn.Parameter(torch.empty(self.num_own, intermediate))
        self.output_weight = nn.Parameter(torch.empty(self.num_own, width, intermediate))
        self.output_bias = nn.Parameter(torch.empty(self.num_own, width))
        self.activation = ACT2FN[config.hidden_act]
        if config.routing == "layer":
            self.router = MosRouter(config, encoding_size, rows=1)
        elif config.routing == "neuron":
            self.input_router = MosRouter(config, encoding_size, rows=intermediate)
            self.output_router = MosRouter(config, encoding_size, rows=width)

    @torch.no_grad()
    def start(self, input_weight, input_bias, output_weight, output_bias) -> None:
        """Sets all experts from one feed-forward block, in the way the configuration says."""
        given = {
            "input_weight": input_weight,
            "input_bias": input_bias,
            "output_weight": output_weight,
            "output_bias": output_bias,
        }
        for name, mean in given.items():
            experts = start_experts(
                mean,
                self.num_own,
                self.config.expert_start,
                self.config.expert_delta_scale,
                self.config.initializer_range,
            )
            init.copy_(getattr(self, name), experts)

    def taken(self, architecture: Architecture) -> tuple[int, int, int | None]:
        """Width, feed-forward size and, where routing is random, the expert of this layer in an architecture."""
        width, intermediate, _ = architecture.layers[self.layer_index]
        if self.config.routing != "random":
            return width, intermediate, None
        return width, intermediate, random.Random(f"{architecture}/{self.layer_index}").randrange(self.num_own)

    def probabilities(
        self, encoding: torch.Tensor | None, width: int, intermediate: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        Mixing weights of the two matrices, each of shape `(rows or 1, num_experts)`; `None` where one expert serves.
        """
        if self.config.routing == "layer":
            first = second = self._spread_average(self.router(encoding, 1))
        elif self.config.routing == "neuron":
            first = self._spread_average(self.input_router(encoding, intermediate))
            second = self._spread_average(self.output_router(encoding, width))
        else:
            first = second = None
        return first, second

    def _spread_average(self, probabilities: torch.Tensor) -> torch.Tensor:
        if not self.config.average_last_expert:
            return probabilities
        # The last expert is the mean of the others, so its share is spread evenly over them.
        return probabilities[:, :-1] + probabilities[:, -1:] / self.num_own

    def mixed_weights(
        self, encoding: torch.Tensor | None, width: int, intermediate: int, expert: int | None
    ) -> tuple[torch.Tensor, ...]:
        """
        The feed-forward block at these sizes, which [`~MosFeedForward.taken`] says: slice first, then combine.

        Returns:
            Input weight `(intermediate, width)` and bias `(intermediate,)`, output weight `(width, intermediate)` and
            bias `(width,)`.
        """
        blocks = (self.input_weight, self.input_bias, self.output_weight, self.output_bias)
        if expert is not None:
            # Only here: the gradient of a slice is a copy as large as all experts, even of one that takes them all.
            blocks = tuple(experts[expert : expert + 1] for experts in blocks)
        input_weight, input_bias, output_weight, output_bias = blocks
        first, second = self.probabilities(encoding, width, intermediate)
        return (
            mix_experts(input_weight, first, intermediate, width),
            mix_experts(input_bias, first, intermediate),
            mix_experts(output_weight, second, width, intermediate),
            mix_experts(output_bias, second, width),
        )

    def forward(
        self, hidden: torch.Tensor, encoding: torch.Tensor | None, taken: tuple[int, int, int | None]
    ) -> torch.Tensor:
        input_weight, input_bias, output_weight, output_bias = self.mixed_weights(encoding, *taken)
        hidden = self.activation(F.linear(hidden, input_weight, input_bias))
        return F.linear(hidden, output_weight, output_bias)


class MosAttention(MosAttentionBase):
    """Self-attention at the width its input arrives at; heads are formed after slicing."""

    def __init__(self, config: MosConfig):
        super().__init__(config)
        width = config.hidden_size
        self.query = ElasticLinear(width, width)
        self.key = ElasticLinear(width, width)
        self.value = ElasticLinear(width, width)
        self.output = ElasticLinear(width, width)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, num_heads: int, **kwargs):
        width = hidden.shape[-1]
        context, weights = self.attend(
            self.query(hidden, width),
            self.key(hidden, width),
            self.value(hidden, width),
            num_heads,
            attention_mask,
            **kwargs,
        )
        return self.output(context, width), weights


class MosLayer(GradientCheckpointingLayer):
    """One elastic layer between its two bottlenecks (which the model applies)."""

    def __init__(self, config: MosConfig, encoding_size: int, layer_index: int):
        super().__init__()
        width = config.hidden_size
        if config.search_space["bottleneck"]:
            self.input_bottleneck = MosBottleneck(width, width)
            self.output_bottleneck = MosBottleneck(width, width)
        self.attention = MosAttention(config)
        self.attention_norm = ElasticLayerNorm(width, eps=config.layer_norm_eps)
        self.feed_forward = MosFeedForward(config, encoding_size, layer_index)
        self.output_norm = ElasticLayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoding: torch.Tensor | None,
        num_heads: int,
        taken: tuple[int, int, int | None],
        tokens_to_keep: torch.Tensor | tuple | None = None,
        **kwargs,
    ):
        # Numbers, not the architecture: compiled, layers share graphs in which they are symbols.
        attended, weights = self.attention(hidden, attention_mask, num_heads, tokens_to_keep=tokens_to_keep, **kwargs)
        hidden = self.attention_norm(self.dropout(attended) + keep_tokens(hidden, tokens_to_keep))
        fed = self.feed_forward(hidden, encoding, taken)
        return self.output_norm(self.dropout(fed) + hidden), weights


def merge_bottlenecks(before: ElasticLinear, after: ElasticLinear, width: int, next_width: int):
    """
    The one affine map that two neighbouring bottlenecks are.

    Returns:
        Weight of shape `(next_width, width)` and bias of shape `(next_width,)`.
    """
    entering = leading(after.weight, next_width)
    return entering @ leading(before.weight, None, width), entering @ before.bias + leading(after.bias, next_width)


def cross_bottlenecks(
    hidden: torch.Tensor, before: ElasticLinear, after: ElasticLinear, next_width: int
) -> torch.Tensor:
    """From one layer's width to the next one's, in the cheaper order for this number of tokens."""
    width, stream = hidden.shape[-1], before.out_features
    tokens = hidden.numel() // width
    if tokens * width * next_width + width * stream * next_width < tokens * stream * (width + next_width):
        return F.linear(hidden, *merge_bottlenecks(before, after, width, next_width))
    return after(before(hidden), next_width)


_UNITS = {"flops": "FLOPs", "latency": "milliseconds"}


def _best_entry(front: list[dict[str, Any]], bounds: dict[str, float]) -> dict[str, Any]:
    """Of the entries whose costs keep the bounds, the one of the best rank; the largest where some have no rank."""
    for cost in bounds:
        if not any(cost in entry for entry in front):
            raise ValueError(
                f"No entry of the stored front says its {cost}, which its search neither limited nor traded off. "
                f"Search with `max_{cost}` or `trade_off`, or choose by `max_parameters` or by name."
            )
    fitting = [entry for entry in front if all(entry.get(cost, math.inf) <= bound for cost, bound in bounds.items())]
    if not fitting:
        asked = " and ".join(f"at most {bound:,} {_UNITS.get(cost, cost)}" for cost, bound in bounds.items())
        known = [entry for entry in front if all(cost in entry for cost in bounds)]
        there = ", ".join(
            f"{entry['name']}: " + " and ".join(f"{round(entry[cost], 3):,}" for cost in bounds) for entry in known
        )
        raise ValueError(f"No architecture of the stored front has {asked}; there are {there or 'none with both'}.")
    # More parameters are not better where the front trades off something else, such as latency.
    if all("rank" in entry for entry in fitting):
        return min(fitting, key=lambda entry: entry["rank"])
    return max(fitting, key=lambda entry: entry["parameters"])


class MosPreTrainedModel(PreTrainedModel):
    """What all supernets share: conversion, architectures and their costs, extraction of subnets."""

    config: MosConfig
    base_model_prefix = "mos"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["MosLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MosBottleneck):
            init.eye_(module.weight)
        elif isinstance(module, MosFeedForward):
            shape = module.input_weight.shape[1:]
            reference = module.input_weight
            module.start(
                torch.empty(shape, dtype=reference.dtype, device=reference.device).normal_(std=std),
                reference.new_zeros(shape[0]),
                torch.empty(shape[::-1], dtype=reference.dtype, device=reference.device).normal_(std=std),
                reference.new_zeros(shape[1]),
            )
        elif isinstance(module, MosRouterLinear):
            # Conditions sit on modules with parameters of their own: transformers does not initialise the others.
            if module.starting_std is None:
                bound = module.in_features**-0.5
                init.uniform_(module.weight, -bound, bound)
                init.uniform_(module.bias, -bound, bound)
            else:
                init.normal_(module.weight, std=module.starting_std)

    # ---- from and to ordinary models --------------------------------------------------------------------------------

    @classmethod
    def from_backbone(cls, backbone: "str | PreTrainedModel", **kwargs) -> "MosPreTrainedModel":
        """
        A supernet whose largest architecture is `backbone` itself.

        Args:
            backbone (`str` or `PreTrainedModel`):
                A Hub name, a folder or a loaded model of the BERT or RoBERTa family. Its weights are copied; a head of
                the same kind is kept with its labels, another one starts new.
            kwargs:
                Fields of [`MosConfig`] (`routing`, `num_experts`, `search_space`, …), and, for a name or folder,
                arguments of `from_pretrained` (`num_labels`, `revision`, `token`, …).

        Raises:
            ValueError: if the backbone is of another family, or an argument is unknown or contradictory.
        """
        from .conversion import supernet_from_backbone

        return supernet_from_backbone(cls, backbone, **kwargs)

    def extract_subnet(
        self,
        architecture: "Architecture | str | None" = None,
        *,
        max_parameters: int | None = None,
        max_flops: int | None = None,
        max_latency: float | None = None,
    ) -> PreTrainedModel:
        """
        One subnet as an ordinary small model: experts mixed in, weights sliced, bottlenecks merged.

        Args:
            architecture ([`Architecture`] or `str`, *optional*):
                The subnet to take out, or the name of an entry of the front that a search stored in the
                configuration; the default architecture if neither this nor a limit is given.
            max_parameters (`int`, *optional*):
                Takes the best entry of the stored front with at most that many parameters: by its `rank`, as
                [`~modeling_mos.search.name_front`] stores it, or else the largest. Limits may be combined.
            max_flops (`int`, *optional*):
                The same for FLOPs of one sequence, as long as the search was told (`sequence_length`).
            max_latency (`float`, *optional*):
                The same for milliseconds of one batch, as the search predicted them, on its device, for a front of a
                search that measured latency.

        Returns:
            `MosSubnetFor…` with this model's head; in a space without bottlenecks the stock class of the backbone's
            family (`BertFor…`, `RobertaFor…`).

        Raises:
            ValueError: if the architecture is not in the search space, or the front has no such entry.
        """
        from .conversion import extract_subnet

        chosen = self.resolve_architecture(
            architecture, max_parameters=max_parameters, max_flops=max_flops, max_latency=max_latency
        )
        return extract_subnet(self, chosen)

    def resolve_architecture(
        self,
        architecture: "Architecture | str | None" = None,
        *,
        max_parameters: int | None = None,
        max_flops: int | None = None,
        max_latency: float | None = None,
    ) -> Architecture:
        """The architecture that the arguments of [`~MosPreTrainedModel.extract_subnet`] mean."""
        bounds = {"parameters": max_parameters, "flops": max_flops, "latency": max_latency}
        for cost, bound in bounds.items():
            check_bound(f"`max_{cost}`", bound)
        bounds = {cost: bound for cost, bound in bounds.items() if bound is not None}
        if architecture is not None and bounds:
            raise ValueError(
                "Give either an architecture (or its name) or limits "
                f"({', '.join(f'`max_{cost}`' for cost in bounds)}), not both."
            )
        if not isinstance(architecture, str) and not bounds:
            return self._architecture(architecture)
        front = self.config.front
        if not front:
            raise ValueError(
                "This supernet's configuration stores no front of searched architectures (`config.front`), which "
                "run_search.py writes, or `name_front` of what `EvolutionarySearch` finds; without a search, give an "
                "architecture, such as `supernet.sample_architecture(max_parameters=...)`."
            )
        if bounds:
            entry = _best_entry(front, bounds)
        else:
            named = {candidate["name"]: candidate for candidate in front}
            if architecture not in named:
                raise ValueError(f"The stored front has no entry {architecture!r}; its names are {sorted(named)}.")
            entry = named[architecture]
        return Architecture.from_dict(entry["architecture"])

    # ---- architectures and their costs ------------------------------------------------------------------------------

    @property
    def search_space(self) -> SearchSpace:
        """The architectures that this supernet contains."""
        return self.base_model.space

    @property
    def default_architecture(self) -> Architecture:
        """What a forward pass without `architecture` runs: the configuration's, else the largest."""
        if self.config.default_architecture is not None:
            return Architecture.from_dict(self.config.default_architecture)
        return self.search_space.largest()

    def _architecture(self, architecture: "Architecture | dict[str, Any] | None") -> Architecture:
        if architecture is None:
            return self.default_architecture
        if isinstance(architecture, dict):
            architecture = Architecture.from_dict(architecture)
        self.search_space.validate(architecture)
        return architecture

    def parameter_cost(self) -> CostTable:
        """Parameters of the extracted subnet with this head, as a table that adds up along the layers."""
        config, space = self.config, self.search_space
        embedded = config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2
        stream = config.hidden_size

        def layer(width: int, intermediate: int, heads: int) -> int:
            attention_and_norms = 4 * (width * width + width) + 4 * width
            return attention_and_norms + 2 * width * intermediate + intermediate + width

        if not space.bottleneck:
            # Without tying, the stock classes hold a second vocabulary bias, which they do not use.
            unused = config.vocab_size if hasattr(self, "lm_head") and not config.tie_word_embeddings else 0
            return CostTable.tabulate(
                "parameters",
                space,
                entry=lambda width: embedded * width,
                layer=layer,
                transition=lambda width, following: 0,
                exit=lambda width: self._head_costs(config, width, 1)[0] + unused,
            )
        head = self._head_costs(config, stream, 1)[0]
        return CostTable.tabulate(
            "parameters",
            space,
            entry=lambda width: embedded * stream + stream * width + width,
            layer=layer,
            transition=lambda width, following: width * following + following,
            exit=lambda width: width * stream + stream + head,
        )

    def flop_cost(self, sequence_length: int = 128) -> CostTable:
        """FLOPs of the extracted subnet for one sequence: two a multiply-add, matrix products only."""
        config, space = self.config, self.search_space
        stream = config.hidden_size

        def layer(width: int, intermediate: int, heads: int) -> int:
            projections = 4 * width * width + 2 * width * intermediate
            return 2 * sequence_length * (projections + 2 * sequence_length * width)

        def linear(width: int, following: int) -> int:
            return 2 * sequence_length * width * following

        bottleneck = space.bottleneck
        return CostTable.tabulate(
            "FLOPs",
            space,
            entry=lambda width: linear(stream, width) if bottleneck else 0,
            layer=layer,
            transition=lambda width, following: linear(width, following) if bottleneck else 0,
            exit=lambda width: (
                (linear(width, stream) if bottleneck else 0)
                + self._head_costs(config, stream if bottleneck else width, sequence_length)[1]
            ),
        )

    def count_parameters(self, architecture: Architecture | None = None) -> int:
        """Equals `extract_subnet(architecture).num_parameters()`. Without an architecture: the default one."""
        return self.parameter_cost()(self._architecture(architecture))

    def count_flops(self, architecture: Architecture | None = None, sequence_length: int = 128) -> int:
        """
        FLOPs of the extracted subnet for one sequence of `sequence_length` tokens: two a multiply-add, matrix products
        only, attention's included; what torch's `FlopCounterMode` counts with eager attention.
        """
        return self.flop_cost(sequence_length)(self._architecture(architecture))

    def published_size_cost(self) -> CostTable:
        """[`~MosPreTrainedModel.published_size`] as a table that adds up along the layers."""
        config, space, stream = self.config, self.search_space, self.config.hidden_size
        embedded = config.vocab_size + config.max_position_embeddings + config.type_vocab_size

        def layer(width: int, intermediate: int, heads: int) -> int:
            return 4 * (width * width + width) + 2 * width * intermediate + intermediate + width + 4 * width

        if not space.bottleneck:
            return CostTable.tabulate(
                "published size",
                space,
                entry=lambda width: (embedded + 2) * width,
                layer=layer,
                transition=lambda width, following: 0,
                exit=lambda width: width * width + 3 * width,
            )
        return CostTable.tabulate(
            "published size",
            space,
            entry=lambda width: (embedded + 2) * stream + stream * width + width,
            layer=layer,
            transition=lambda width, following: width * following + following,
            exit=lambda width: width * stream + stream + stream * stream + stream + 2 * width,
        )

    def published_size(self, architecture: Architecture | None = None) -> int:
        """
        The size that the published constraints and tables use: no vocabulary bias, the masked-LM head's norm counted
        at the last layer's width, whatever the head of this model is.
        """
        return self.published_size_cost()(self._architecture(architecture))

    def sample_architectures(
        self,
        count: int,
        seed: int | str = 0,
        min_parameters: int | None = None,
        max_parameters: int | None = None,
        min_flops: int | None = None,
        max_flops: int | None = None,
        sequence_length: int = 128,
        size_biased: bool = False,
    ) -> list[Architecture]:
        """
        Different architectures inside the limits, (nearly) uniformly among all of them.

        Args:
            count (`int`): How many; fewer come back only where the limits admit no more.
            seed (`int` or `str`, *optional*, defaults to 0): Same seed, same architectures.
            min_parameters, max_parameters (`int`, *optional*): Window on [`~MosPreTrainedModel.count_parameters`].
            min_flops, max_flops (`int`, *optional*): Window on [`~MosPreTrainedModel.count_flops`] at
                `sequence_length` tokens.
            size_biased (`bool`, *optional*, defaults to `False`): Prefers larger sizes in proportion to them.

        Raises:
            ValueError: where nothing meets the limits; the message names the nearest reachable costs.
        """
        limits = []
        if min_parameters is not None or max_parameters is not None:
            limits.append(Limit(self.parameter_cost(), min_parameters, max_parameters))
        if min_flops is not None or max_flops is not None:
            limits.append(Limit(self.flop_cost(sequence_length), min_flops, max_flops))
        if limits:
            return self.search_space.sample_within(limits, count, seed, size_biased)
        generator = random.Random(seed)
        found: dict[Architecture, None] = {}
        wanted = min(count, self.search_space.num_architectures)
        while len(found) < wanted:
            found[self.search_space.sample(generator, size_biased)] = None
        return list(found)

    def sample_architecture(self, seed: int | str = 0, **limits) -> Architecture:
        """One architecture inside the limits of [`~MosPreTrainedModel.sample_architectures`]."""
        return self.sample_architectures(1, seed, **limits)[0]

    def floating_point_ops(self, input_dict: dict[str, Any], exclude_embeddings: bool = True) -> int:
        """Training FLOPs of a batch at the default architecture; Trainer's own estimate counts every expert."""
        tokens = input_dict.get("input_ids")
        if tokens is None:
            return 0
        return 3 * tokens.shape[0] * self.count_flops(sequence_length=tokens.shape[1])


class MosModel(MosPreTrainedModel):
    """
    The bare supernet: `last_hidden_state` of shape `(batch, tokens, hidden_size)`; in a space without bottlenecks
    `(batch, tokens, width of the architecture)`.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: MosConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.space = config.build_search_space()
        encoding_size = self.space.encoding_size(config.router_input)
        self.embeddings = MosEmbeddings(config)
        self.layers = nn.ModuleList(
            [MosLayer(config, encoding_size, index) for index in range(config.num_hidden_layers)]
        )
        self.pooler = MosPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def _head_costs(self, config: MosConfig, width: int, sequence_length: int) -> tuple[int, int]:
        if self.pooler is None:
            return 0, 0
        return width * width + width, 2 * width * width

    def encode(self, architecture: Architecture) -> torch.Tensor | None:
        """What the routers see of `architecture`, of shape `(encoding_size,)`; `None` without a router."""
        if self.config.routing not in ("layer", "neuron"):
            return None
        encoded: Sequence[float] = self.space.encode(architecture, self.config.router_input)
        return torch.tensor(encoded, device=self.device, dtype=self.dtype)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        architecture: Architecture | None = None,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        architecture ([`Architecture`], *optional*):
            The subnet to run; `config.default_architecture`, else the largest, if not given.
        tokens_to_keep (`torch.Tensor` or `tuple`, *optional*):
            A mask of shape `(batch, tokens)`, what `mask.nonzero(as_tuple=True)` makes of it, or two slices, such as
            `(slice(None), slice(0, 1))` for first tokens: `last_hidden_state` holds those only (of shape `(count, …)`
            for a mask), and unless hidden states are returned, what follows the last layer's attention runs for them
            alone. There is no `pooler_output` then.

        `hidden_states` holds the embeddings' output and the stream after each layer, all of the width of
        `last_hidden_state`.

        Raises:
            TypeError: if `tokens_to_keep` is no such index.
            ValueError: if the architecture is not in the search space, for a mask of another shape, or unless exactly
                one of `input_ids` and `inputs_embeds` is given.
        """
        output_hidden_states, output_attentions = requested_outputs(self, output_hidden_states, output_attentions)
        check_inputs(input_ids, inputs_embeds)
        architecture = self._architecture(architecture)
        bottleneck = self.space.bottleneck
        hidden = self.embeddings(
            input_ids,
            token_type_ids,
            position_ids,
            inputs_embeds,
            width=None if bottleneck else architecture.hidden_sizes[0],
        )
        check_tokens_to_keep(tokens_to_keep, hidden.shape[:2])
        mask = create_bidirectional_mask(self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        encoding = self.encode(architecture)

        all_hidden, all_weights = (hidden,), ()
        previous = None
        for layer, (width, _, num_heads) in zip(self.layers, architecture.layers, strict=False):
            if bottleneck:
                if previous is None or output_hidden_states:
                    hidden = layer.input_bottleneck(hidden, width)
                else:
                    hidden = cross_bottlenecks(hidden, previous.output_bottleneck, layer.input_bottleneck, width)
            taken = layer.feed_forward.taken(architecture)
            whole = output_hidden_states or len(all_weights) < architecture.num_hidden_layers - 1
            kept = None if whole else tokens_to_keep
            hidden, weights = layer(hidden, mask, encoding, num_heads, taken, tokens_to_keep=kept, **kwargs)
            all_weights += (weights,)
            if output_hidden_states:
                # The stream between layers exists only here: elsewhere its two bottlenecks are crossed in one step.
                hidden = layer.output_bottleneck(hidden) if bottleneck else hidden
                all_hidden += (hidden,)
            previous = layer
        if output_hidden_states:
            hidden = keep_tokens(hidden, tokens_to_keep)
        elif bottleneck:
            hidden = previous.output_bottleneck(hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None or tokens_to_keep is not None else self.pooler(hidden),
            hidden_states=all_hidden if output_hidden_states else None,
            attentions=all_weights if output_attentions else None,
        )


class MosForMaskedLM(MaskedLMHeadMixin, MosPreTrainedModel):
    """A supernet with a masked language modeling head."""

    _tied_weights_keys = {"lm_head.decoder.weight": "mos.embeddings.word_embeddings.weight"}

    def __init__(self, config: MosConfig):
        super().__init__(config)
        self.mos = MosModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


class MosForSequenceClassification(SequenceClassificationHeadMixin, MosPreTrainedModel):
    """A supernet with a sequence classification or regression head."""

    def __init__(self, config: MosConfig):
        super().__init__(config)
        self.mos = MosModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


class MosForTokenClassification(TokenClassificationHeadMixin, MosPreTrainedModel):
    """A supernet with a token classification head."""

    def __init__(self, config: MosConfig):
        super().__init__(config)
        self.mos = MosModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


class MosForQuestionAnswering(QuestionAnsweringHeadMixin, MosPreTrainedModel):
    """A supernet with a span prediction head."""

    def __init__(self, config: MosConfig):
        super().__init__(config)
        self.mos = MosModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


__all__ = [
    "MosForMaskedLM",
    "MosForQuestionAnswering",
    "MosForSequenceClassification",
    "MosForTokenClassification",
    "MosModel",
    "MosPreTrainedModel",
]
