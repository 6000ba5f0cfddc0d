# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of a subnet taken out of a Mixture-of-Supernets model."""

import difflib
from dataclasses import fields
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .architecture import Architecture


@strict
class MosBackboneConfig(PreTrainedConfig):
    """What a supernet and its subnets keep of the BERT-like backbone they come from. Not used on its own."""

    # With an auto class, here and in the models, a saved folder carries its code and opens with trust_remote_code
    # where this package is missing. Set in the files that travel, so that it also holds for what is saved there.
    _auto_class = "AutoConfig"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int | list[int] = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True
    backbone_model_type: Literal["bert", "roberta", "xlm-roberta", "camembert"] = "bert"
    sparse_prediction: bool = False

    @property
    def roberta_layout(self) -> bool:
        """RoBERTa counts positions from `pad_token_id + 1` and drops out before the classifier's dense layer."""
        return self.backbone_model_type != "bert"

    def __post_init__(self, **kwargs):
        known = {field.name for field in fields(self)}
        for name in kwargs:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if close and name not in dir(type(self)):
                raise ValueError(
                    f"{type(self).__name__} has no field {name!r} (given {kwargs[name]!r}); did you mean {close[0]!r}?"
                )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            probability = getattr(self, name)
            if probability is not None and not 0 <= probability <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {probability}.")
        if getattr(self, "auto_map", None) is None and "auto_map" not in kwargs:
            kwargs["auto_map"] = dict(self.AUTO_MAP)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        found = config_dict.get("model_type")
        if found is not None and cls.model_type and found != cls.model_type:
            raise ValueError(
                f"This checkpoint is a {found!r} model, {cls.__name__} reads {cls.model_type!r} checkpoints; load it "
                "with its own class or `AutoModel`, or, for a BERT or RoBERTa model, make a supernet of it with "
                "`MosForMaskedLM.from_backbone(...)`."
            )
        return super().from_dict(config_dict, **kwargs)


MosBackboneConfig.AUTO_MAP = {}


@strict
class MosSubnetConfig(MosBackboneConfig):
    """
    Configuration of a subnet: a small encoder whose layers have sizes of their own, with no routing left in it.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the embeddings and of `last_hidden_state`.
        hidden_sizes, intermediate_sizes, num_attention_heads (`list[int]`, *optional*):
            Sizes of each layer; by default `num_hidden_layers` layers like the backbone's.
        backbone_model_type (`str`, *optional*, defaults to `"bert"`):
            Family of the backbone, which decides how positions are counted.
        sparse_prediction (`bool`, *optional*, defaults to `False`):
            In training mode with `labels`, computes masked-LM logits, and what follows the last layer's attention, at
            labelled positions only.

    The other arguments are those of [`~transformers.BertConfig`].

    Raises:
        StrictDataclassClassValidationError: if the three lists differ in length, or a width is not divisible by its
            heads.
    """

    model_type = "mos_subnet"

    hidden_sizes: list[int] | None = None
    intermediate_sizes: list[int] | None = None
    num_attention_heads: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.hidden_sizes is None:
            self.hidden_sizes = [self.hidden_size] * self.num_hidden_layers
        depth = len(self.hidden_sizes)
        if self.intermediate_sizes is None:
            self.intermediate_sizes = [self.intermediate_size] * depth
        if self.num_attention_heads is None:
            self.num_attention_heads = 12
        if isinstance(self.num_attention_heads, int):
            self.num_attention_heads = [self.num_attention_heads] * depth
        self.num_hidden_layers = depth
        super().__post_init__(**kwargs)

    def validate_layer_sizes(self):
        """Refuses sizes that make no architecture; called on construction."""
        _ = self.architecture

    @property
    def architecture(self) -> Architecture:
        """The sizes of all layers."""
        return Architecture(tuple(self.hidden_sizes), tuple(self.intermediate_sizes), tuple(self.num_attention_heads))


MosSubnetConfig.AUTO_MAP = {
    "AutoConfig": "configuration_mos_subnet.MosSubnetConfig",
    "AutoModel": "modeling_mos_subnet.MosSubnetModel",
    "AutoModelForMaskedLM": "modeling_mos_subnet.MosSubnetForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_mos_subnet.MosSubnetForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_mos_subnet.MosSubnetForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_mos_subnet.MosSubnetForQuestionAnswering",
}


__all__ = ["MosSubnetConfig"]
