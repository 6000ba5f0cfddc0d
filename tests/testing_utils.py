# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What several test files share: tiny models of odd sizes, batches, and the table of model families."""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertTokenizer,
    RobertaConfig,
)

import modeling_mos
import modeling_sharcs
from modeling_mos import MosConfig, MosSubnetConfig
from modeling_sharcs import SharcsConfig


# ---- sizes ----------------------------------------------------------------------------------------------------------

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
LAYOUTS = {
    "bert": {"type_vocab_size": 2, "pad_token_id": 0},
    "roberta": {
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-5,
    },
}
BACKBONE_CONFIGS = {"bert": BertConfig, "roberta": RobertaConfig}

# Elastic in everything; 48 is divisible by 2 and 4 only, as are the others.
ELASTIC = {
    "hidden_sizes": [16, 36, 48],
    "intermediate_sizes": [11, 20, 37],
    "num_attention_heads": [2, 4],
    "num_hidden_layers": [2, 3],
}
UNIFORM = {**ELASTIC, "bottleneck": False}
SPACES = {"bottleneck": ELASTIC, "uniform": UNIFORM}
ROUTINGS = ("none", "layer", "neuron", "random")

# ---- heads ----------------------------------------------------------------------------------------------------------

AUTO_CLASSES = {
    "base": AutoModel,
    "masked-lm": AutoModelForMaskedLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
HEADS = tuple(AUTO_CLASSES)
MOS_CLASSES = {
    "base": modeling_mos.MosModel,
    "masked-lm": modeling_mos.MosForMaskedLM,
    "sequence-classification": modeling_mos.MosForSequenceClassification,
    "token-classification": modeling_mos.MosForTokenClassification,
    "question-answering": modeling_mos.MosForQuestionAnswering,
}
SUBNET_CLASSES = {
    "base": modeling_mos.MosSubnetModel,
    "masked-lm": modeling_mos.MosSubnetForMaskedLM,
    "sequence-classification": modeling_mos.MosSubnetForSequenceClassification,
    "token-classification": modeling_mos.MosSubnetForTokenClassification,
    "question-answering": modeling_mos.MosSubnetForQuestionAnswering,
}
SHARCS_CLASSES = {
    "base": modeling_sharcs.SharcsModel,
    "sequence-classification": modeling_sharcs.SharcsForSequenceClassification,
    "token-classification": modeling_sharcs.SharcsForTokenClassification,
    "question-answering": modeling_sharcs.SharcsForQuestionAnswering,
}


def make_targets(head: str, config, shape: tuple[int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """What a head learns from; empty for a base model."""
    generator = torch.Generator().manual_seed(seed + 1)
    batch, tokens = shape

    def integers(high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(high, size, generator=generator)

    if head == "masked-lm":
        labels = integers(config.vocab_size, shape)
        labels[torch.rand(shape, generator=generator) < 0.6] = -100
        labels[:, 1] = 7
        return {"labels": labels}
    if head == "sequence-classification":
        return {"labels": integers(config.num_labels, (batch,))}
    if head == "token-classification":
        labels = integers(config.num_labels, shape)
        labels[:, 0] = -100
        return {"labels": labels}
    if head == "question-answering":
        return {"start_positions": integers(tokens, (batch,)), "end_positions": integers(tokens, (batch,))}
    return {}


def main_outputs(outputs) -> list[torch.Tensor]:
    """The tensors that a head is asked for."""
    names = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
    return [outputs[name] for name in names if outputs.get(name) is not None]


def scalar(outputs) -> torch.Tensor:
    """
    Something to differentiate: the loss, or, of a base model, a number that depends on all of its outputs; and the
    scores of a router of samples, which learn from a loss of their own.
    """
    weights = torch.Generator().manual_seed(0)

    def weighted(output: torch.Tensor) -> torch.Tensor:
        return (output * torch.randn(output.shape, generator=weights)).sum()

    has_loss = outputs.get("loss") is not None
    total = outputs.loss if has_loss else sum(weighted(output) for output in main_outputs(outputs))
    return total if outputs.get("router_logits") is None else total + weighted(outputs.router_logits)


# ---- batches and weights --------------------------------------------------------------------------------------------


def make_batch(config, batch: int = 3, tokens: int = 11, padding: bool = True, seed: int = 0) -> dict[str, Any]:
    """Random ids; with `padding` the rows have different lengths, the first one is full."""
    generator = torch.Generator().manual_seed(seed)
    # The first ids are left to special tokens.
    input_ids = torch.randint(5, config.vocab_size, (batch, tokens), generator=generator)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if config.type_vocab_size > 1:
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, (batch, tokens), generator=generator)
    if padding:
        for row in range(1, batch):
            inputs["attention_mask"][row, tokens - 2 * row :] = 0
        input_ids[inputs["attention_mask"] == 0] = config.pad_token_id
    return inputs


@torch.no_grad()
def randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """
    Gives every parameter a value that matters: norms, biases and routers are trivial at the start, and a test of
    equality would not see them.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if "norm" in name.lower():
            parameter.copy_(noise * 0.3 + float(name.endswith("weight")))
        elif name.endswith("bias"):
            parameter.copy_(noise * 0.3)
        elif "router" in name:
            parameter.copy_(noise)
        elif "embeddings" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model


def tiny_backbone_config(layout: str = "bert", **overrides):
    return BACKBONE_CONFIGS[layout](**{**TINY, **LAYOUTS[layout], "num_labels": 3, **overrides})


def tiny_backbone(layout: str = "bert", head: str = "masked-lm", seed: int = 0, **overrides):
    """A stock BERT or RoBERTa with random weights, in evaluation mode."""
    if head == "question-answering":
        overrides = {"num_labels": 2, **overrides}  # the stock classes take their two outputs from it
    model = AUTO_CLASSES[head].from_config(tiny_backbone_config(layout, **overrides))
    return randomise_(model, seed).eval()


def tiny_mos_config(layout: str = "bert", **overrides) -> MosConfig:
    values = {**TINY, **LAYOUTS[layout], "num_labels": 3, "search_space": ELASTIC, "router_hidden_size": 9}
    return MosConfig(backbone_model_type=layout, **{**values, **overrides})


def tiny_supernet(head: str = "masked-lm", layout: str = "bert", seed: int = 0, **overrides):
    """A supernet whose every parameter is random, in evaluation mode."""
    return randomise_(MOS_CLASSES[head](tiny_mos_config(layout, **overrides)), seed).eval()


def tiny_subnet_config(layout: str = "bert", **overrides) -> MosSubnetConfig:
    values = {
        **TINY,
        **LAYOUTS[layout],
        "num_labels": 3,
        "hidden_sizes": [16, 48, 36],
        "intermediate_sizes": [11, 37, 20],
        "num_attention_heads": [2, 4, 4],
    }
    return MosSubnetConfig(backbone_model_type=layout, **{**values, **overrides})


def tiny_sharcs_config(layout: str = "bert", **overrides) -> SharcsConfig:
    values = {
        **TINY,
        **LAYOUTS[layout],
        "num_labels": 3,
        "intermediate_size": 36,  # which four heads divide
        "width_multipliers": [0.25, 0.5, 1.0],
        "router_layer": 1,
        "router_hidden_size": 9,
        "backbone_model_type": layout,
    }
    return SharcsConfig(**{**values, **overrides})


def tiny_sharcs(head: str = "sequence-classification", layout: str = "bert", seed: int = 0, **overrides):
    """A routed encoder whose every parameter is random, in evaluation mode."""
    return randomise_(SHARCS_CLASSES[head](tiny_sharcs_config(layout, **overrides)), seed).eval()


@torch.no_grad()
def splitting_price(model, batch: dict[str, Any], widths: int = 2) -> float:
    """A price that sends the rows of a batch to as many widths as it can, and no row near to where it changes."""
    was_training = model.training
    scores = model.eval().base_model(**batch, width=1.0).router_logits.double()
    model.train(was_training)
    costs = torch.tensor(model.base_model.relative_costs()).double()
    pairs = [(low, high) for high in range(len(costs)) for low in range(high)]
    changes = torch.cat([(scores[:, high] - scores[:, low]) / (costs[high] - costs[low]) for low, high in pairs])
    changes = changes.sort().values
    found = []
    for price in ((changes[1:] + changes[:-1]) / 2).tolist():
        best = (scores - price * costs).topk(2)
        margin = (best.values[:, 0] - best.values[:, 1]).min().item()
        found.append((len(best.indices[:, 0].unique()), margin, price))
    reached, margin, price = max(found)
    assert reached >= widths and margin > 1e-3, "the rows of this batch cannot be told apart"
    return price


# ---- families, for the tests that every model has to pass -----------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """
    One row of the common tests.

    Args:
        name: What the test ids say.
        models: Model class of each head that the family has.
        make_config: Tiny configuration, from a layout's name and overrides.
        variants: Further arguments of a model's forward pass, several ways to run it; the first is the default.
        hidden_widths: Widths of `hidden_states`, from a model and a variant.
        trained_by: Variants whose summed losses reach every parameter.
        end_products: Multiply-adds a token after the last layer's attention, from a model and a variant.
        has_pooler: Whether the base model has a `pooler_output`.
    """

    name: str
    models: dict[str, type]
    make_config: Callable[..., Any]
    variants: Callable[[Any], list[dict[str, Any]]] = lambda model: [{}]
    hidden_widths: Callable[[Any, dict[str, Any]], list[int]] | None = None
    trained_by: Callable[[Any], list[dict[str, Any]]] = lambda model: [{}]
    end_products: Callable[[Any, dict[str, Any]], int] | None = None
    config_overrides: dict[str, Any] = field(default_factory=dict)
    has_pooler: bool = True

    def config(self, layout: str, **overrides):
        return self.make_config(layout, **{**self.config_overrides, **overrides})

    def model(self, head: str, layout: str, attention: str = "sdpa", randomise: bool = True, **overrides):
        model = self.models[head](self.config(layout, **overrides))
        model.set_attn_implementation(attention)
        return randomise_(model).eval() if randomise else model.eval()


def _architectures(model) -> list[dict[str, Any]]:
    space = model.search_space
    return [{}, {"architecture": space.smallest()}, {"architecture": space.sample(seed=3)}]


def _supernet_widths(model, variant: dict[str, Any]) -> list[int]:
    architecture = variant.get("architecture") or model.default_architecture
    width = model.config.hidden_size if model.search_space.bottleneck else architecture.hidden_sizes[0]
    return [width] * (architecture.num_hidden_layers + 1)


def _end_of_supernet(model, variant: dict[str, Any]) -> int:
    width, intermediate, _ = (variant.get("architecture") or model.default_architecture).layers[-1]
    leaving = width * model.config.hidden_size if model.search_space.bottleneck else 0
    return width * width + 2 * width * intermediate + leaving


def _end_of_subnet(model, variant: dict[str, Any]) -> int:
    config, width = model.config, model.config.hidden_sizes[-1]
    return width * width + 2 * width * config.intermediate_sizes[-1] + width * config.hidden_size


def _end_of_path(model, variant: dict[str, Any]) -> int:
    size, heads, intermediate = model.config.width_sizes(model.width_index(variant.get("width", 1.0)))
    return heads * model.config.head_dim * size + 2 * size * intermediate


def _paths(model) -> list[dict[str, Any]]:
    """Two forced widths, and rows of one batch at different ones (in training mode: all at the widest)."""
    routed = {"router_price": splitting_price(model, make_batch(model.config))}
    return [{}, {"width": 0.25}, {"width": 0.5}, routed]


def _path_widths(model, variant: dict[str, Any]) -> list[int]:
    config = model.config
    width = round(variant.get("width", 1.0) * config.hidden_size)
    routed_layers = config.num_hidden_layers - config.router_layer
    return [config.hidden_size] * (config.router_layer + 1) + [width] * routed_layers


FAMILIES = [
    Family(
        name="mos",
        models=MOS_CLASSES,
        make_config=tiny_mos_config,
        variants=_architectures,
        hidden_widths=_supernet_widths,
        end_products=_end_of_supernet,
    ),
    Family(
        name="mos-uniform",
        models=MOS_CLASSES,
        make_config=tiny_mos_config,
        variants=_architectures,
        hidden_widths=_supernet_widths,
        end_products=_end_of_supernet,
        config_overrides={"search_space": UNIFORM, "routing": "layer", "num_experts": 3},
    ),
    Family(
        name="mos-subnet",
        models=SUBNET_CLASSES,
        make_config=tiny_subnet_config,
        hidden_widths=lambda model, variant: [model.config.hidden_size, *model.config.hidden_sizes],
        end_products=_end_of_subnet,
    ),
    Family(
        name="sharcs",
        models=SHARCS_CLASSES,
        make_config=tiny_sharcs_config,
        variants=_paths,
        hidden_widths=_path_widths,
        end_products=_end_of_path,
        trained_by=lambda model: [{"width": width} for width in model.config.width_multipliers],
        has_pooler=False,
    ),
]

# ---- further helpers ------------------------------------------------------------------------------------------------


def tiny_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","]
    words += "the a cat dog bird fish tree house sees likes finds old new big small red green and or not".split()
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


SENTENCES = [
    "the old cat sees a small bird .",
    "a dog likes the house",
    "fish and tree",
    "the big red dog finds a new green house and the cat , not the bird .",
    "a cat",
]


@contextlib.contextmanager
def no_complaints() -> Iterator[None]:
    """Fails on Python warnings and on warnings that transformers logs, wherever they come from."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
    assert not records, [record.getMessage() for record in records]


def assert_close(found, expected, atol: float = 5e-5, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


# ---- model cards ----------------------------------------------------------------------------------------------------


def code_of(card: ModelCard) -> str:
    return re.search(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[1]


def table_of(card: ModelCard, column: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has this name."""
    lines = card.text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|") and cells_of(line)[0] == column)
    names, rows = cells_of(lines[start]), []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, cells_of(line), strict=True)))
    return rows


def cells_of(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def training_of(card: ModelCard) -> dict[str, str]:
    """The table below the heading `Training`."""
    lines = card.text[card.text.index("## Training") : card.text.index("## Limits")].splitlines()
    return dict(cells_of(line) for line in lines[4:] if line.startswith("|"))
