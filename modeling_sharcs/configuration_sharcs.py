# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of a sample-routed encoder (SHARCS)."""

import difflib
import math
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class SharcsConfig(PreTrainedConfig):
    """
    Configuration of an encoder whose later layers run at several widths, with a router that picks one for each sample
    (SHARCS, https://huggingface.co/papers/2310.12126).

    Args:
        width_multipliers (`list[float]`, *optional*, defaults to `[0.25, 1.0]`):
            Shares of heads, feed-forward neurons and residual channels that routed layers may keep; 1.0, the backbone
            itself, must be among them. Sorted once; `width_indices` refers to the sorted list.
        router_layer (`int`, *optional*, defaults to 3):
            Number of full-width layers; the router reads the last one's output.
        router_hidden_size (`int`, *optional*, defaults to 1024):
            Hidden width of the router.
        router_pooling (`str`, *optional*, defaults to `"masked"`):
            `"masked"`: the router reads the mean over real tokens; `"all"`: over padding too (published).
        entry (`str`, *optional*, defaults to `"slice"`):
            How the stream enters a narrow path: `"slice"` keeps the first channels (published default), `"pooling"`
            takes a learned weighted mean of neighbouring channels (published; widths 1/k only), `"projection"` is a
            learned linear map, which starts as the slice.
        norm_start (`str`, *optional*, defaults to `"copy"`):
            Narrow paths' norms start from the backbone's (`"copy"`) or from ones and zeros (`"scratch"`, published
            README). The widest path always keeps the backbone's.
        router_price (`float`, *optional*):
            A row takes the width with the largest `router_logit - router_price * cost`, cost being that width's share
            of full FLOPs. `None` (until the router has been trained or a budget set) means the widest.
        calibration (`dict`, *optional*):
            What [`~SharcsPreTrainedModel.calibrate`] stored.
        head_dim (`int`, *optional*):
            Width of a head; `hidden_size // num_attention_heads` if not given (narrow BERTs have fewer full heads).
        backbone_model_type (`str`, *optional*, defaults to `"bert"`):
            Family of the backbone, which decides embeddings and classification head.

    The other arguments are those of [`~transformers.BertConfig`] and describe the widest path.

    Raises:
        StrictDataclassClassValidationError, ValueError: on a width that does not give whole heads, a router outside
            the network, and contradictions; the message says the way out.
    """

    model_type = "sharcs"
    # With an auto class, here and in the models, a saved folder carries its code and opens with trust_remote_code
    # where this package is missing.
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "router_logits", "width_indices"]

    vocab_size: int = 30522
    embedding_size: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    head_dim: int | None = None
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    backbone_model_type: Literal["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"] = "bert"
    width_multipliers: list[float | int] | None = None
    router_layer: int = 3
    router_hidden_size: int = 1024
    router_pooling: Literal["masked", "all"] = "masked"
    entry: Literal["slice", "pooling", "projection"] = "slice"
    norm_start: Literal["copy", "scratch"] = "copy"
    router_price: float | int | None = None
    calibration: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        known = {field.name for field in fields(self)}
        for name in kwargs:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if close and name not in dir(type(self)):
                raise ValueError(
                    f"{type(self).__name__} has no field {name!r} (given {kwargs[name]!r}); did you mean {close[0]!r}?"
                )
        if self.width_multipliers is None:
            self.width_multipliers = [0.25, 1.0]
        self.width_multipliers = sorted(set(self.width_multipliers))
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if getattr(self, "auto_map", None) is None and "auto_map" not in kwargs:
            kwargs["auto_map"] = dict(AUTO_MAP)
        super().__post_init__(**kwargs)

    @property
    def roberta_layout(self) -> bool:
        """RoBERTa counts positions from `pad_token_id + 1`."""
        return self.backbone_model_type in ("roberta", "xlm-roberta", "camembert")

    def width_sizes(self, index: int) -> tuple[int, int, int]:
        """`(hidden size, heads, feed-forward size)` of the routed layers at the width with this index."""
        heads = round(self.num_attention_heads * self.width_multipliers[index])
        share = heads / self.num_attention_heads
        return round(share * self.hidden_size), heads, round(share * self.intermediate_size)

    def validate_calibration(self):
        """Refuses a table of prices that was damaged; called on construction."""
        if self.calibration is None:
            return
        try:
            rows = [(float(row["price"]), float(row["share"])) for row in self.calibration["table"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`calibration` is not what `model.calibrate(dataloader)` stored ({error!r}): run it again, or take "
                "the field out of config.json."
            ) from None
        if not rows or not all(math.isfinite(value) for row in rows for value in row):
            raise ValueError(
                "`calibration` has no rows, or numbers that are not finite: run `model.calibrate(dataloader)` again, "
                "or take the field out of config.json."
            )

    def validate_widths(self):
        """Refuses widths that do not give whole heads and channels; called on construction."""
        heads = self.num_attention_heads
        if not self.width_multipliers:
            raise ValueError("width_multipliers is empty; give at least 1.0, the backbone itself.")
        valid = [count / heads for count in range(1, heads + 1)]
        for width in self.width_multipliers:
            if not math.isfinite(width):
                raise ValueError(f"The width multiplier {width} is no number; give shares of the heads, such as 0.25.")
            exact = width * heads
            whole = abs(exact - round(exact)) < 1e-3 and 1 <= round(exact) <= heads
            if not whole:
                around = sorted(valid, key=lambda choice: abs(choice - width))[:2]
                raise ValueError(
                    f"The width multiplier {width} does not give whole heads ({exact:g} of {heads}); the nearest "
                    f"valid ones are {' and '.join(f'{choice:.6g}' for choice in sorted(around))}."
                )
            count = round(exact)
            for name in ("hidden_size", "intermediate_size"):
                if getattr(self, name) * count % heads:
                    fitting = [choice for choice in range(1, heads + 1) if not getattr(self, name) * choice % heads]
                    near = min(fitting, key=lambda choice: abs(choice - count))
                    raise ValueError(
                        f"The width multiplier {width} does not divide {name}={getattr(self, name)} into whole "
                        f"channels; the nearest valid one is {near / heads:.6g}."
                    )
            if self.entry == "pooling" and abs(1 / width - round(1 / width)) > 1e-3:
                raise ValueError(
                    f"entry='pooling' averages groups of neighbouring channels and needs widths of the form 1/k, got "
                    f"{width}; use entry='projection'."
                )
        counts = [round(width * heads) for width in self.width_multipliers]
        if len(set(counts)) < len(counts):
            raise ValueError(f"The widths {self.width_multipliers} keep {counts} heads; give each width once.")
        if abs(self.width_multipliers[-1] - 1.0) > 1e-6:
            raise ValueError(
                f"The widths {self.width_multipliers} do not hold 1.0, the backbone itself; add it to the list."
            )

    def validate_router(self):
        """Refuses a router outside the network; called on construction."""
        if not 1 <= self.router_layer < self.num_hidden_layers:
            raise ValueError(
                f"router_layer={self.router_layer} is outside the network of {self.num_hidden_layers} layers: use 1 "
                f"to {self.num_hidden_layers - 1}, so that layers remain to be routed."
            )
        if self.router_hidden_size < 1:
            raise ValueError(f"router_hidden_size must be at least 1, got {self.router_hidden_size}.")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        found = config_dict.get("model_type")
        if found is not None and found != cls.model_type:
            raise ValueError(
                f"This checkpoint is a {found!r} model, {cls.__name__} reads {cls.model_type!r} checkpoints; make a "
                "routed encoder of it with `SharcsForSequenceClassification.from_backbone(...)`."
            )
        return super().from_dict(config_dict, **kwargs)


AUTO_MAP = {
    "AutoConfig": "configuration_sharcs.SharcsConfig",
    "AutoModel": "modeling_sharcs.SharcsModel",
    "AutoModelForSequenceClassification": "modeling_sharcs.SharcsForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_sharcs.SharcsForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_sharcs.SharcsForQuestionAnswering",
}


__all__ = ["SharcsConfig"]
