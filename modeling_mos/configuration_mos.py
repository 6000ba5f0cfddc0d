# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of a Mixture-of-Supernets (MoS) model."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .architecture import Architecture, SearchSpace
from .configuration_mos_subnet import MosBackboneConfig


@strict
class MosConfig(MosBackboneConfig):
    """
    Configuration of a supernet whose feed-forward weights are mixed from experts for each architecture
    (Mixture-of-Supernets, https://huggingface.co/papers/2306.04845). The defaults are the published ones for
    BERT-base, with neuron-wise routing.

    Args:
        search_space (`str` or `dict`, *optional*, defaults to `"bottleneck"`):
            The architectures contained: a preset's name, its published id (`"v1"`), or a dictionary of choices, see
            [`SearchSpace.resolve`]. Stored as the resolved dictionary.
        routing (`str`, *optional*, defaults to `"neuron"`):
            `"none"`: one feed-forward block (a plain supernet). `"layer"`: one mixing weight an expert and layer
            (section 3.1). `"neuron"`: one an expert and output neuron (section 3.2). `"random"`: a control in which
            each layer uses one expert, chosen by a hash of the architecture.
        num_experts (`int`, *optional*):
            Experts a layer; 1 without routing, 2 by default with it.
        router_hidden_size (`int`, *optional*, defaults to 128):
            Width of the routers' hidden layers.
        router_num_layers (`int`, *optional*, defaults to 2):
            Linear layers of a router.
        router_input (`str`, *optional*, defaults to `"scaled"`):
            How the routers see the architecture: `"scaled"`, `"one-hot"`, or `"constant"` (they cannot).
        average_last_expert (`bool`, *optional*, defaults to `False`):
            The last expert is the mean of the others and has no weights of its own.
        expert_start (`str`, *optional*):
            How experts begin. `"deltas"` (default with a router): the backbone's weights plus and minus differences
            that sum to zero, the routers' last layer at zero: the mixture is the backbone and the routers have a
            gradient. `"copies"` (published; default for random routing): identical experts, for which the routers'
            gradient is exactly zero. `"random"`: the first is the backbone's, the others start from noise.
        expert_delta_scale (`float`, *optional*, defaults to 0.5):
            Standard deviation of the starting differences, relative to the backbone weights' own.
        default_architecture (`dict`, *optional*):
            The architecture used where none is given; the largest if unset.
        front (`list[dict]`, *optional*):
            Architectures that a search found, each with `name`, `architecture` and `parameters`; with a `rank`, 1 for
            the best, where size does not tell; and with `flops` and `latency` where the search knew them.
        sparse_prediction (`bool`, *optional*, defaults to `False`):
            In training mode with `labels`, computes masked-LM logits, and what follows the last layer's attention, at
            labelled positions only.

    The other arguments are those of [`~transformers.BertConfig`] and describe the largest architecture.

    Raises:
        StrictDataclassClassValidationError, ValueError: on contradictory options or a search space that does not fit;
            the message says the way out.
    """

    model_type = "mos"
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]

    num_attention_heads: int = 12
    search_space: str | dict[str, Any] = "bottleneck"
    routing: Literal["none", "layer", "neuron", "random"] = "neuron"
    num_experts: int | None = None
    router_hidden_size: int = 128
    router_num_layers: int = 2
    router_input: Literal["scaled", "one-hot", "constant"] = "scaled"
    average_last_expert: bool = False
    expert_start: Literal["deltas", "copies", "random"] | None = None
    expert_delta_scale: float | int = 0.5
    default_architecture: dict[str, list[int]] | None = None
    front: list[dict[str, Any]] | None = None

    def __post_init__(self, **kwargs):
        # Before the search space is resolved, which computes with these.
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}."
            )
        self.search_space = SearchSpace.resolve(
            self.search_space,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_hidden_layers=self.num_hidden_layers,
        ).to_dict()
        if self.num_experts is None:
            self.num_experts = 1 if self.routing == "none" else 2
        if self.expert_start is None:
            self.expert_start = "deltas" if self.routing in ("layer", "neuron") else "copies"
        super().__post_init__(**kwargs)

    def build_search_space(self) -> SearchSpace:
        """The space that `search_space` describes."""
        return SearchSpace(**self.search_space)

    def validate_routing(self):
        """Refuses options of routing and experts that contradict each other; called on construction."""
        if self.routing == "none" and self.num_experts != 1:
            raise ValueError(
                f"routing='none' has one expert a layer, got num_experts={self.num_experts}; choose routing='layer' "
                "or 'neuron', or drop num_experts."
            )
        if self.routing != "none" and self.num_experts < 2:
            raise ValueError(
                f"routing={self.routing!r} needs at least 2 experts, got num_experts={self.num_experts}; use "
                "routing='none' for a plain supernet."
            )
        if self.average_last_expert and (self.routing not in ("layer", "neuron") or self.num_experts < 3):
            raise ValueError(
                "average_last_expert makes the last expert the mean of the others: it needs routing='layer' or "
                f"'neuron' and at least 3 experts, got routing={self.routing!r} and num_experts={self.num_experts}."
            )
        if self.router_num_layers < 1 or self.router_hidden_size < 1:
            raise ValueError(
                "A router has at least one layer and one hidden unit, got "
                f"router_num_layers={self.router_num_layers} and router_hidden_size={self.router_hidden_size}."
            )
        if self.routing == "random" and self.expert_start == "deltas":
            raise ValueError(
                "routing='random' takes one expert as it is, so expert_start='deltas' would not start from the "
                "backbone; use expert_start='copies'."
            )
        if self.expert_delta_scale < 0:
            raise ValueError(f"expert_delta_scale must not be negative, got {self.expert_delta_scale}.")
        if self.routing in ("layer", "neuron") and not self.build_search_space().encoding_size(self.router_input):
            raise ValueError(
                f"routing={self.routing!r} needs something elastic to route on, but the search space holds a single "
                "architecture; name choices in `search_space` or use routing='none'."
            )

    def validate_architectures(self):
        """Refuses a default architecture or a front outside the space; called on construction."""
        space = self.build_search_space()
        if self.default_architecture is not None:
            space.validate(Architecture.from_dict(self.default_architecture))
        for entry in self.front or []:
            missing = {"name", "architecture", "parameters"} - set(entry)
            if missing:
                raise ValueError(f"An entry of `front` lacks {sorted(missing)}: {entry}.")
            rank = entry.get("rank", 1)
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise ValueError(f"The rank of an entry of `front` is a whole number from 1, the best, got {rank!r}.")
            space.validate(Architecture.from_dict(entry["architecture"]))


MosConfig.AUTO_MAP = {
    "AutoConfig": "configuration_mos.MosConfig",
    "AutoModel": "modeling_mos.MosModel",
    "AutoModelForMaskedLM": "modeling_mos.MosForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_mos.MosForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_mos.MosForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_mos.MosForQuestionAnswering",
}


__all__ = ["MosConfig"]
