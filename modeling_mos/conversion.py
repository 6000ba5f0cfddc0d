# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""A BERT-like model into a supernet, and a supernet at an architecture into an ordinary small model."""

from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel

from .architecture import Architecture, suggestion
from .configuration_mos import MosConfig
from .configuration_mos_subnet import MosBackboneConfig, MosSubnetConfig
from .modeling_mos import merge_bottlenecks
from .modeling_mos_subnet import (
    MosSubnetForMaskedLM,
    MosSubnetForQuestionAnswering,
    MosSubnetForSequenceClassification,
    MosSubnetForTokenClassification,
    MosSubnetModel,
)


BACKBONE_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")

# By the name of the supernet's class: how to load a backbone with the same head, and what a subnet with it is.
_AUTO_CLASSES = {
    "MosModel": AutoModel,
    "MosForMaskedLM": AutoModelForMaskedLM,
    "MosForSequenceClassification": AutoModelForSequenceClassification,
    "MosForTokenClassification": AutoModelForTokenClassification,
    "MosForQuestionAnswering": AutoModelForQuestionAnswering,
}
_SUBNET_CLASSES = {
    "MosModel": MosSubnetModel,
    "MosForMaskedLM": MosSubnetForMaskedLM,
    "MosForSequenceClassification": MosSubnetForSequenceClassification,
    "MosForTokenClassification": MosSubnetForTokenClassification,
    "MosForQuestionAnswering": MosSubnetForQuestionAnswering,
}

# Fields that every configuration has and that describe what the head knows.
TASK_FIELDS = ("id2label", "label2id", "problem_type")
BACKBONE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "classifier_dropout",
    "tie_word_embeddings",
)
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_LOADING_ARGUMENTS = ("attn_implementation", "dtype", *_HUB_ARGUMENTS)
_BACKBONE_OVERRIDES = ("num_labels", "id2label", "label2id", "problem_type")


# ---- backbone to supernet -------------------------------------------------------------------------------------------


def supernet_from_backbone(supernet_class: type, backbone: str | PreTrainedModel, **kwargs) -> PreTrainedModel:
    """See [`MosPreTrainedModel.from_backbone`]."""
    mos_fields = {field.name for field in fields(MosConfig)} - {field.name for field in fields(MosBackboneConfig)}
    mos_fields |= {"sparse_prediction"}
    known = [*sorted(mos_fields), *_BACKBONE_OVERRIDES, *_LOADING_ARGUMENTS, *BACKBONE_FIELDS]
    for name in kwargs:
        if name not in known:
            raise ValueError(
                f"`from_backbone` has no argument {name!r} (given {kwargs[name]!r})."
                + (suggestion(name, known) or f" It takes {known}.")
            )
    options = {name: kwargs.pop(name) for name in list(kwargs) if name in mos_fields}
    sizes = sorted(set(kwargs) & set(BACKBONE_FIELDS[:5]))
    if sizes:
        raise ValueError(f"The sizes of a backbone are its own: {sizes} cannot be given; use `search_space`.")
    if isinstance(backbone, PreTrainedModel):
        loading = sorted(set(kwargs) & set(_LOADING_ARGUMENTS))
        if loading:
            raise ValueError(f"{loading} only apply when a name or folder is given, not a loaded model.")
        _check_family(backbone.config)
    else:
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        _check_family(AutoConfig.from_pretrained(backbone, **hub))
        backbone = _auto_class(supernet_class).from_pretrained(backbone, **kwargs)
        kwargs = {}
    if any(hasattr(parameter, "ds_id") for parameter in backbone.parameters()):
        raise ValueError(
            "The backbone's weights are partitioned over processes (DeepSpeed ZeRO-3) and cannot be copied; make the "
            "supernet without DeepSpeed, save it, and train the saved folder."
        )
    source = backbone.config
    values = {name: getattr(source, name) for name in BACKBONE_FIELDS if hasattr(source, name)}
    # `problem_type` may have been filled in by a loss that the backbone computed; it describes the head all the same.
    values |= {name: getattr(source, name) for name in TASK_FIELDS}
    if "num_labels" in kwargs:
        values.pop("id2label"), values.pop("label2id")
    values |= kwargs
    config = MosConfig(backbone_model_type=source.model_type, **values, **options)
    supernet = supernet_class(config).to(backbone.dtype)
    copy_backbone_weights(backbone, supernet)
    supernet.set_attn_implementation(source._attn_implementation)
    supernet.name_or_path = backbone.name_or_path
    return supernet.train(backbone.training)


def _check_family(config) -> None:
    if config.model_type not in BACKBONE_MODEL_TYPES:
        raise ValueError(
            f"A backbone of model type {config.model_type!r} is not supported; supported are "
            f"{list(BACKBONE_MODEL_TYPES)}. A supernet or subnet that was saved is loaded with `from_pretrained`."
        )
    if getattr(config, "is_decoder", False):
        raise ValueError("A backbone with is_decoder=True is not supported; load it as an encoder.")


def _auto_class(supernet_class: type):
    return next(_AUTO_CLASSES[cls.__name__] for cls in supernet_class.__mro__ if cls.__name__ in _AUTO_CLASSES)


@torch.no_grad()
def copy_backbone_weights(backbone: PreTrainedModel, supernet: PreTrainedModel) -> None:
    """Copies encoder and, where the heads are of one kind, head. Bottlenecks are the identity already."""
    source, target = backbone.base_model, supernet.base_model
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(target.embeddings, name).weight.copy_(getattr(source.embeddings, name).weight)
    _copy(source.embeddings.LayerNorm, target.embeddings.norm)
    for given, layer in zip(source.encoder.layer, target.layers, strict=True):
        for name in ("query", "key", "value"):
            _copy(getattr(given.attention.self, name), getattr(layer.attention, name))
        _copy(given.attention.output.dense, layer.attention.output)
        _copy(given.attention.output.LayerNorm, layer.attention_norm)
        _copy(given.output.LayerNorm, layer.output_norm)
        first, second = given.intermediate.dense, given.output.dense
        layer.feed_forward.start(first.weight, first.bias, second.weight, second.bias)
    pooler = getattr(source, "pooler", None)
    if target.pooler is not None and pooler is not None:
        _copy(pooler.dense, target.pooler.dense)
    for given, own in _head_pairs(backbone, supernet):
        if given.weight.shape == own.weight.shape:
            _copy(given, own)


def _head_pairs(model: PreTrainedModel, mos: PreTrainedModel) -> list[tuple[nn.Module, nn.Module]]:
    """Pairs of (module of a stock head, module of ours) that hold the same weights."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    if hasattr(mos, "lm_head"):
        own = mos.lm_head
        if hasattr(model, "cls"):
            head = model.cls.predictions
            pairs = [(head.transform.dense, own.dense), (head.transform.LayerNorm, own.norm)]
            pairs.append((head.decoder, own.decoder))
        elif hasattr(model, "lm_head"):
            head = model.lm_head
            pairs = [(head.dense, own.dense), (head.layer_norm, own.norm), (head.decoder, own.decoder)]
    elif hasattr(mos, "qa_outputs") and hasattr(model, "qa_outputs"):
        pairs = [(model.qa_outputs, mos.qa_outputs)]
    elif hasattr(mos, "classifier"):
        own = mos.classifier
        if isinstance(own, nn.Linear):
            if isinstance(getattr(model, "classifier", None), nn.Linear) and "TokenClass" in type(model).__name__:
                pairs = [(model.classifier, own)]
        else:
            head = getattr(model, "classifier", None)
            if hasattr(head, "out_proj"):
                pairs = [(head.dense, own.dense), (head.out_proj, own.out_proj)]
            else:
                # BERT keeps the dense layer of its classification head in the encoder, as the pooler.
                pooler = getattr(model.base_model, "pooler", None)
                if pooler is not None:
                    pairs.append((pooler.dense, own.dense))
                if isinstance(head, nn.Linear) and "SequenceClass" in type(model).__name__:
                    pairs.append((head, own.out_proj))
    return pairs


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Copies weight and bias; a target that is smaller takes the leading rows and columns."""
    for name in ("weight", "bias"):
        given, own = getattr(source, name), getattr(target, name)
        if given is not None and own is not None:
            own.copy_(given[tuple(slice(size) for size in own.shape)])


# ---- supernet to subnet ---------------------------------------------------------------------------------------------


@torch.no_grad()
def extract_subnet(supernet: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """See [`MosPreTrainedModel.extract_subnet`]. Needs memory for the subnet only, beside the supernet."""
    supernet.search_space.validate(architecture)
    kind = next(cls.__name__ for cls in type(supernet).__mro__ if cls.__name__ in _SUBNET_CLASSES)
    config = supernet.config
    common = {name: getattr(config, name) for name in (*BACKBONE_FIELDS, *TASK_FIELDS)}
    extract = _extract_with_bottlenecks if supernet.search_space.bottleneck else _extract_stock
    subnet = extract(supernet, architecture, kind, common)
    subnet.tie_weights()
    subnet.config._attn_implementation = config._attn_implementation
    subnet.name_or_path = supernet.name_or_path
    subnet.add_model_tags("mos")  # for a model card: a stock class cannot know where it comes from
    return subnet.to(supernet.device).train(supernet.training)


def _build(model_class, config, supernet: PreTrainedModel, **kwargs) -> PreTrainedModel:
    """An instance with uninitialised weights, all of which are about to be copied."""
    with no_init_weights():
        return model_class(config, **kwargs).to(supernet.dtype)


def _extract_with_bottlenecks(
    supernet: PreTrainedModel, architecture: Architecture, kind: str, common: dict[str, Any]
) -> PreTrainedModel:
    common.update(
        hidden_sizes=list(architecture.hidden_sizes),
        intermediate_sizes=list(architecture.intermediate_sizes),
        num_attention_heads=list(architecture.num_attention_heads),
    )
    config = MosSubnetConfig(
        **common,
        backbone_model_type=supernet.config.backbone_model_type,
        sparse_prediction=supernet.config.sparse_prediction,
    )
    source = supernet.base_model
    pooling = {"add_pooling_layer": source.pooler is not None} if kind == "MosModel" else {}
    subnet = _build(_SUBNET_CLASSES[kind], config, supernet, **pooling)
    target = subnet.base_model
    target.embeddings.load_state_dict(source.embeddings.state_dict())
    encoding = source.encode(architecture)
    for index, (layer, given) in enumerate(zip(target.layers, source.layers, strict=False)):
        width = architecture.hidden_sizes[index]
        if index == 0:
            _copy(given.input_bottleneck, layer.projection)
        else:
            before, previous = source.layers[index - 1], architecture.hidden_sizes[index - 1]
            merged = merge_bottlenecks(before.output_bottleneck, given.input_bottleneck, previous, width)
            _assign(layer.projection, *merged)
        for name in ("query", "key", "value", "output"):
            _copy(getattr(given.attention, name), getattr(layer.attention, name))
        _copy(given.attention_norm, layer.attention_norm)
        _copy(given.output_norm, layer.output_norm)
        mixed = given.feed_forward.mixed_weights(encoding, *given.feed_forward.taken(architecture))
        _assign(layer.intermediate, *mixed[:2])
        _assign(layer.output, *mixed[2:])
    _copy(source.layers[architecture.num_hidden_layers - 1].output_bottleneck, target.projection)
    if source.pooler is not None:
        _copy(source.pooler.dense, target.pooler.dense)
    for name in ("lm_head", "classifier", "qa_outputs"):
        if hasattr(supernet, name):
            getattr(subnet, name).load_state_dict(getattr(supernet, name).state_dict())
    return subnet


def _extract_stock(
    supernet: PreTrainedModel, architecture: Architecture, kind: str, common: dict[str, Any]
) -> PreTrainedModel:
    width, intermediate, heads = architecture.layers[0]
    common.update(
        hidden_size=width,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_hidden_layers=architecture.num_hidden_layers,
    )
    if kind == "MosForQuestionAnswering":
        # The stock classes take the two outputs of this head from `num_labels`.
        common.pop("id2label"), common.pop("label2id")
    config = AutoConfig.for_model(supernet.config.backbone_model_type, **common)
    # The mapping knows the stock class of the family (BertForMaskedLM, RobertaForMaskedLM, …).
    model_class = _AUTO_CLASSES[kind]._model_mapping[type(config)]
    source = supernet.base_model
    pooling = {"add_pooling_layer": source.pooler is not None} if kind == "MosModel" else {}
    subnet = _build(model_class, config, supernet, **pooling)
    target = subnet.base_model
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(target.embeddings, name).weight.copy_(getattr(source.embeddings, name).weight[:, :width])
    encoding = source.encode(architecture)
    _copy(source.embeddings.norm, target.embeddings.LayerNorm)
    for given, layer in zip(source.layers, target.encoder.layer, strict=False):
        for name in ("query", "key", "value"):
            _copy(getattr(given.attention, name), getattr(layer.attention.self, name))
        _copy(given.attention.output, layer.attention.output.dense)
        _copy(given.attention_norm, layer.attention.output.LayerNorm)
        _copy(given.output_norm, layer.output.LayerNorm)
        mixed = given.feed_forward.mixed_weights(encoding, *given.feed_forward.taken(architecture))
        _assign(layer.intermediate.dense, *mixed[:2])
        _assign(layer.output.dense, *mixed[2:])
    if source.pooler is not None:
        _copy(source.pooler.dense, target.pooler.dense)
    for stock, own in _head_pairs(subnet, supernet):
        _copy(own, stock)
    if kind == "MosForMaskedLM":
        # Stock heads keep the vocabulary bias beside the decoder, whose own bias is tied to it.
        head = subnet.cls.predictions if hasattr(subnet, "cls") else subnet.lm_head
        head.bias.copy_(supernet.lm_head.decoder.bias)
    return subnet


def _assign(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


__all__ = ["BACKBONE_MODEL_TYPES", "copy_backbone_weights", "extract_subnet", "supernet_from_backbone"]
