# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""A BERT-like model into a sample-routed encoder."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    PreTrainedConfig,
)
from transformers.modeling_utils import PreTrainedModel

from .configuration_sharcs import SharcsConfig


BACKBONE_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")

_AUTO_CLASSES = {
    "SharcsModel": AutoModel,
    "SharcsForSequenceClassification": AutoModelForSequenceClassification,
    "SharcsForTokenClassification": AutoModelForTokenClassification,
    "SharcsForQuestionAnswering": AutoModelForQuestionAnswering,
}
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_LOADING_ARGUMENTS = ("attn_implementation", "dtype", *_HUB_ARGUMENTS)
_TASK_FIELDS = ("id2label", "label2id", "problem_type")
_SHARCS_FIELDS = (
    "width_multipliers",
    "router_layer",
    "router_hidden_size",
    "router_pooling",
    "entry",
    "norm_start",
)
_BACKBONE_FIELDS = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_OVERRIDES = ("num_labels", *_TASK_FIELDS, "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")

# Stock names to ours, tried in order; the prefix of the base model ("bert.", "roberta.", …) is dropped before.
_RENAMES = (
    (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"^embeddings\.(word|position|token_type)_embeddings\.", r"embeddings.\1_embeddings."),
    (r"^embeddings_project\.", "embeddings.projection."),
    (r"^encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", r"layers.\1.attention.\2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.attention.output."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"layers.\1.attention_norm."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.intermediate."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.output."),
    (r"^encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"layers.\1.output_norm."),
    (r"^transformer\.layer\.(\d+)\.attention\.q_lin\.", r"layers.\1.attention.query."),
    (r"^transformer\.layer\.(\d+)\.attention\.k_lin\.", r"layers.\1.attention.key."),
    (r"^transformer\.layer\.(\d+)\.attention\.v_lin\.", r"layers.\1.attention.value."),
    (r"^transformer\.layer\.(\d+)\.attention\.out_lin\.", r"layers.\1.attention.output."),
    (r"^transformer\.layer\.(\d+)\.sa_layer_norm\.", r"layers.\1.attention_norm."),
    (r"^transformer\.layer\.(\d+)\.ffn\.lin1\.", r"layers.\1.intermediate."),
    (r"^transformer\.layer\.(\d+)\.ffn\.lin2\.", r"layers.\1.output."),
    (r"^transformer\.layer\.(\d+)\.output_layer_norm\.", r"layers.\1.output_norm."),
)


def sharcs_from_backbone(sharcs_class: type, backbone: str | PreTrainedModel, **kwargs) -> PreTrainedModel:
    """See [`SharcsPreTrainedModel.from_backbone`]."""
    known = [*_SHARCS_FIELDS, *_OVERRIDES, *_LOADING_ARGUMENTS]
    for name in kwargs:
        if name not in known:
            raise ValueError(f"`from_backbone` has no argument {name!r} (given {kwargs[name]!r}); it takes {known}.")
    options = {name: kwargs.pop(name) for name in list(kwargs) if name in _SHARCS_FIELDS}
    if isinstance(backbone, PreTrainedModel):
        loading = sorted(set(kwargs) & set(_LOADING_ARGUMENTS))
        if loading:
            raise ValueError(f"{loading} only apply when a name or folder is given, not a loaded model.")
        _check_whole(backbone)
        source, weights = backbone.config, backbone.state_dict()
        prefix, class_name = backbone.base_model_prefix, type(backbone).__name__
        attn_implementation, dtype = source._attn_implementation, backbone.dtype
        check_family(source)
        overrides = kwargs
    else:
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        source = _read_config(backbone, hub)
        check_family(source)
        attn_implementation, dtype = kwargs.get("attn_implementation"), None
        narrow = _read_narrow_folder(backbone, source)
        if narrow is not None:
            weights, dtype = narrow, _dtype_of(narrow, kwargs.get("dtype"))
            prefix, class_name = source.model_type, (source.architectures or [""])[0]
        else:
            # Read as it was saved: what overrides the configuration is ours, and its names are not all families'.
            loading = {name: value for name, value in kwargs.items() if name in _LOADING_ARGUMENTS}
            if _auto_class(sharcs_class) is AutoModelForQuestionAnswering:
                source.num_labels = 2  # starts and ends; DistilBERT refuses a classifier's other number
            loading["config"] = source
            loaded = _auto_class(sharcs_class).from_pretrained(backbone, **loading)
            _check_whole(loaded)
            source, weights = loaded.config, loaded.state_dict()
            prefix, class_name, dtype = loaded.base_model_prefix, type(loaded).__name__, loaded.dtype
            attn_implementation = source._attn_implementation
        overrides = {name: value for name, value in kwargs.items() if name in _OVERRIDES}
    weights = {re.sub(rf"^{prefix}\.", "", name): value for name, value in weights.items()}
    values = _config_values(source, weights, overrides)
    if source.model_type == "distilbert":
        # Its heads drop out each in their own way.
        kinds = {"TokenClassification": source.dropout, "QuestionAnswering": source.qa_dropout}
        head = sharcs_class.__name__.partition("For")[2]
        values["classifier_dropout"] = kinds.get(head, source.seq_classif_dropout)
        values = {name: value for name, value in values.items() if name not in overrides}
    config = SharcsConfig(**values, **overrides, **options)
    model = sharcs_class(config)
    if dtype is not None:
        model = model.to(dtype)
    _load(model, _rename(weights, class_name, config), config)
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    model.name_or_path = backbone.name_or_path if isinstance(backbone, PreTrainedModel) else str(backbone)
    return model.train(backbone.training) if isinstance(backbone, PreTrainedModel) else model.eval()


def _check_whole(backbone: PreTrainedModel) -> None:
    if any(hasattr(parameter, "ds_id") for parameter in backbone.parameters()):
        raise ValueError(
            "The backbone's weights are partitioned over processes (DeepSpeed ZeRO-3) and cannot be copied; make the "
            "routed encoder without DeepSpeed, save it, and train the saved folder."
        )


def _read_config(backbone: str, hub: dict[str, Any]) -> PreTrainedConfig:
    """The configuration; one from before there was a `model_type` (DynaBERT's, for one) is BERT's."""
    stored, _ = PreTrainedConfig.get_config_dict(backbone, **hub)
    if "model_type" not in stored and "type_vocab_size" in stored:
        return BertConfig.from_dict(stored)
    return AutoConfig.from_pretrained(backbone, **hub)


def check_family(config) -> None:
    if config.model_type not in BACKBONE_MODEL_TYPES:
        raise ValueError(
            f"A backbone of model type {config.model_type!r} is not supported; supported are "
            f"{list(BACKBONE_MODEL_TYPES)}. A routed encoder that was saved is loaded with `from_pretrained`."
        )
    if getattr(config, "is_decoder", False):
        raise ValueError("A backbone with is_decoder=True is not supported; load it as an encoder.")


def _auto_class(sharcs_class: type):
    return next(_AUTO_CLASSES[cls.__name__] for cls in sharcs_class.__mro__ if cls.__name__ in _AUTO_CLASSES)


def _read_narrow_folder(folder: str, config) -> dict[str, torch.Tensor] | None:
    """
    The weights of a local BERT whose heads are fewer than its width holds (DynaBERT), which no stock class can load;
    `None` for all others.
    """
    if config.model_type != "bert" or not Path(folder).is_dir():
        return None
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = Path(folder) / name
        if not path.is_file():
            continue
        if name.endswith(".safetensors"):
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        query = next(
            (value for key, value in weights.items() if key.endswith("layer.0.attention.self.query.weight")), None
        )
        if query is not None and query.shape[0] != query.shape[1]:
            return {
                re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", _beta(key)): value for key, value in weights.items()
            }
        return None
    return None


def _dtype_of(weights: dict[str, torch.Tensor], dtype: torch.dtype | str | None) -> torch.dtype:
    """What is asked for; by default the folder's own type, as in `from_pretrained`."""
    if dtype in (None, "auto"):
        return next(value.dtype for value in weights.values() if value.is_floating_point())
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _beta(key: str) -> str:
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)


def _config_values(source, weights: dict[str, torch.Tensor], overrides: dict) -> dict:
    values = {name: getattr(source, name) for name in _BACKBONE_FIELDS if getattr(source, name, None) is not None}
    if source.model_type == "distilbert":
        values |= {
            "intermediate_size": source.hidden_dim,
            "hidden_act": source.activation,
            "hidden_dropout_prob": source.dropout,
            "attention_probs_dropout_prob": source.attention_dropout,
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-12,
        }
    values |= {name: getattr(source, name) for name in _TASK_FIELDS}
    if overrides.get("num_labels", source.num_labels) != source.num_labels:
        values.pop("id2label"), values.pop("label2id")
    for name in overrides:
        values.pop(name, None)
    query = weights.get("encoder.layer.0.attention.self.query.weight")
    if query is not None and query.shape[0] != query.shape[1]:
        # Fewer heads of the full size: the configuration may say either number of heads.
        inner, hidden = query.shape
        intermediate = weights["encoder.layer.0.intermediate.dense.weight"].shape[0]
        head_dim = getattr(source, "attention_head_size", None) or _head_dim_of(inner, hidden, intermediate, source)
        values["head_dim"] = head_dim
        values["num_attention_heads"] = inner // head_dim
        values["intermediate_size"] = intermediate
    values["backbone_model_type"] = source.model_type
    return values


def _head_dim_of(inner: int, hidden: int, intermediate: int, source) -> int:
    heads = source.num_attention_heads
    choices = (hidden // heads, inner // heads)
    # A configuration that knows the narrow feed-forward size counts the narrow heads.
    for head_dim in reversed(choices) if source.intermediate_size == intermediate else choices:
        if head_dim and inner % head_dim == 0 and hidden % head_dim == 0:
            return head_dim
    raise ValueError(
        f"The query weights have {inner} rows for a width of {hidden} and {heads} heads, from which no size of a head "
        "follows; set `attention_head_size` in the folder's config.json."
    )


def our_name(name: str) -> str | None:
    """Our name of an encoder's stock parameter, given without the base model's prefix; `None` for one of a head."""
    for pattern, replacement in _RENAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def _rename(weights: dict[str, torch.Tensor], class_name: str, config: SharcsConfig) -> dict[str, torch.Tensor]:
    """Encoder weights under our names, and the head's where it is of a kind that we have."""
    ours = {name: our_name(name) for name in weights}
    renamed = {f"sharcs.{ours[name]}": value for name, value in weights.items() if ours[name]}
    renamed |= {name: value for name, value in weights.items() if name.startswith("qa_outputs.")}
    if "TokenClassification" in class_name:
        renamed |= {name: value for name, value in weights.items() if name.startswith("classifier.")}
    else:
        # BERT: pooler and classifier; DistilBERT: pre_classifier and classifier; others: classifier.{dense,out_proj}
        dense = {"bert": "pooler.dense", "distilbert": "pre_classifier"}.get(config.backbone_model_type)
        output = "classifier.out_proj" if dense is None else "classifier"
        dense = dense or "classifier.dense"
        for part in ("weight", "bias"):
            if f"{dense}.{part}" in weights:
                renamed[f"classifier.dense.{part}"] = weights[f"{dense}.{part}"]
            if "SequenceClassification" in class_name and f"{output}.{part}" in weights:
                renamed[f"classifier.out_proj.{part}"] = weights[f"{output}.{part}"]
    return renamed


@torch.no_grad()
def _load(model: PreTrainedModel, weights: dict[str, torch.Tensor], config: SharcsConfig) -> None:
    if model.base_model is model:
        weights = {name.removeprefix("sharcs."): value for name, value in weights.items()}
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own:
            continue
        target = own[name]
        if target.dim() == value.dim() + 1:
            # Norms of a layer: the widest path keeps the backbone's; narrow ones copy it or stay at one and zero.
            rows = slice(None) if config.norm_start == "copy" else slice(-1, None)
            target[rows] = value
        elif target.shape == value.shape:
            target.copy_(value)
    missing = [name for name in own if name not in weights and ("embeddings" in name or ".attention." in name)]
    if missing:
        raise ValueError(
            f"The backbone has no weights for {missing[0]!r}; is it a whole {config.backbone_model_type}?"
        )
    _start_entry(model.base_model, config)


def _start_entry(model: PreTrainedModel, config: SharcsConfig) -> None:
    """The entry's norm starts so that it leaves the sliced, already normalised channels about as they are."""
    entry = model.entry
    if not entry.num_narrow:
        return
    if config.entry == "projection":
        entry.projection.weight.copy_(torch.eye(*entry.projection.weight.shape))
        entry.projection.bias.zero_()
    if config.norm_start == "copy":
        before = model.layers[config.router_layer - 1].output_norm
        gain, bias = before.weight[0], before.bias[0]
        for index in range(entry.num_narrow):
            size = config.width_sizes(index)[0]
            # A channel is gain * n + bias with n about standard normal over positions and channels.
            spread = (gain[:size].square().mean() + bias[:size].var(correction=0)).sqrt()
            entry.norm.weight[index, :size] = spread
            entry.norm.bias[index, :size] = bias[:size].mean()


__all__ = ["BACKBONE_MODEL_TYPES", "sharcs_from_backbone"]
