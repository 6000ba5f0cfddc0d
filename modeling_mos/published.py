# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
What the published MoS and SuperShaper code left behind, read into this project: search results
(`evo_results_<n>.xls`) and checkpoints. Nothing that a file holds is evaluated or unpickled into code.
"""

import ast
import io
import json
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .architecture import PRESET_ALIASES, Architecture, SearchSpace
from .configuration_mos import MosConfig
from .conversion import BACKBONE_FIELDS, TASK_FIELDS
from .modeling_mos import (
    MosFeedForward,
    MosForMaskedLM,
    MosForSequenceClassification,
    MosModel,
    MosPreTrainedModel,
    MosRouter,
)


# The only sizes that the published search spaces are made for.
BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


# ---- architectures --------------------------------------------------------------------------------------------------


def architecture_from_published(config: Mapping[str, Any]) -> Architecture:
    """
    The subnet that a published configuration describes.

    Args:
        config (`dict`):
            A BERT configuration with any of `sample_hidden_size`, `sample_intermediate_size` and
            `sample_num_attention_heads` (one number, or one a layer; a feed-forward size of at most 10 is a multiple
            of the width) and `sample_num_hidden_layers`; what is missing is the backbone's. `depth_features`, one
            number a layer, is 1 for a layer that is dropped.

    Raises:
        ValueError: if a size is not a number or there are too few of them, or a layer is dropped that another follows.
    """
    full_depth = config.get("num_hidden_layers", BERT_BASE["num_hidden_layers"])
    depth = config.get("sample_num_hidden_layers")
    depth = full_depth if depth is None else depth
    if not (isinstance(depth, int) and isinstance(full_depth, int) and 1 <= depth <= full_depth):
        raise ValueError(f"The number of layers must be 1 to that of the backbone, {full_depth!r}, got {depth!r}.")
    dropped = config.get("depth_features")
    if dropped is not None:
        kept = [not drop for drop in _each_layer("depth_features", dropped, depth)]
        if kept != sorted(kept, reverse=True):
            raise ValueError(
                f"`depth_features` {dropped} drops a layer that another one follows; an architecture of this project "
                "keeps the first layers."
            )
        depth = sum(kept)

    def sizes(sampled: str, full: str) -> list[int | float]:
        values = config.get(sampled)
        return _each_layer(sampled, config.get(full, BERT_BASE[full]) if values is None else values, depth)

    widths = sizes("sample_hidden_size", "hidden_size")
    intermediates = sizes("sample_intermediate_size", "intermediate_size")
    return Architecture(
        widths,
        [int(size * width) if size <= 10 else size for size, width in zip(intermediates, widths, strict=True)],
        sizes("sample_num_attention_heads", "num_attention_heads"),
    )


def _each_layer(name: str, values: Any, depth: int) -> list[int | float]:
    """What is given for the first `depth` layers; one number stands for all."""
    if not isinstance(values, list):
        values = [values] * depth
    if len(values) < depth:
        raise ValueError(f"`{name}` has {len(values)} entries for {depth} layers: {values}.")
    if not all(_is_number(value) for value in values):
        raise ValueError(f"`{name}` must hold numbers, got {values}.")
    return values[:depth]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value)


# ---- search results -------------------------------------------------------------------------------------------------

# Rows of the sheet "best_config" that hold Python literals.
_GENE_ROWS = {
    "elastic_keys": (7, list),
    "gene_choices": (8, list),
    "gene_names": (9, list),
    "elastickey2ranges": (10, dict),
}


@dataclass(frozen=True)
class PublishedCandidate:
    """
    An architecture that a published search scored.

    Args:
        architecture ([`Architecture`]): The subnet.
        gene (`tuple`): Its elastic sizes, one after another.
        size (`int`): Its size in the published metric, see [`~MosPreTrainedModel.published_size`].
        metric (`float`): Its score.
    """

    architecture: Architecture
    gene: tuple[int | float, ...]
    size: int
    metric: float


@dataclass(frozen=True)
class PublishedResults:
    """
    What an `evo_results_<n>.xls` says.

    Args:
        best ([`PublishedCandidate`]): The best architecture of the last iteration.
        metric_name (`str`): What the scores are, such as `"perplexity"`.
        parents (`tuple[tuple[PublishedCandidate, ...], ...]`): The parents of each iteration, best first.
        search_space_id (`str`, *optional*): The published id of the search space; `None` stands for `"v1"`.
        genes (`dict`):
            What the genes are: those of `elastic_keys`, `gene_choices`, `gene_names` and `elastickey2ranges` that the
            file has.
    """

    best: PublishedCandidate
    metric_name: str
    parents: tuple[tuple[PublishedCandidate, ...], ...]
    search_space_id: str | None
    genes: dict[str, Any]


def read_published_results(path: str | os.PathLike) -> PublishedResults:
    """
    Reads the results of a published evolutionary search. Needs `xlrd`.

    Args:
        path (`str` or `os.PathLike`): An `evo_results_<n>.xls`; the one with the largest number is the last.

    Raises:
        ImportError: if `xlrd` is not installed.
        ValueError: if the file is not a whole workbook of that kind; the message names the file and the cell.
        OSError: if it cannot be read.
    """
    try:
        import xlrd
    except ImportError as error:
        raise ImportError(
            "Published search results need xlrd: pip install -c constraints.txt -e '.[published]'."
        ) from error
    content = Path(path).read_bytes()
    try:
        book = xlrd.open_workbook(file_contents=content, logfile=io.StringIO())
    except Exception as error:  # whatever xlrd stumbles upon in a broken file
        raise ValueError(
            f"{str(path)!r} is not a whole .xls workbook ({type(error).__name__}: {error}); copy it again from where "
            "the search ran, and do not convert it to another format."
        ) from error
    sheets = {sheet.name: _Sheet(sheet, path) for sheet in book.sheets()}
    if "best_config" not in sheets:
        raise ValueError(f"{str(path)!r} has no sheet 'best_config', its sheets are {list(sheets)}.")
    best = sheets["best_config"]
    # A file may lack what says where the genes come from.
    search_space_id = None if best.value(6, 1) is None else best.name(6, 1)
    genes = {
        name: best.literal(row, 1, kind) for name, (row, kind) in _GENE_ROWS.items() if best.value(row, 1) is not None
    }
    keys = genes.get("elastic_keys", [])
    if not all(isinstance(key, str) for key in keys):
        raise best.complaint(7, 1, f"must hold a list of names, got {_shorten(keys)}")
    return PublishedResults(
        best=best.candidate(keys, gene=(1, 1), size=(2, 1), metric=(3, 1), config=(4, 1)),
        metric_name=best.name(3, 0),
        parents=tuple(sheet.parents(keys) for sheet in _iterations(sheets, path)),
        search_space_id=None if search_space_id == "None" else search_space_id,
        genes=genes,
    )


def _iterations(sheets: "dict[str, _Sheet]", path: str | os.PathLike) -> "list[_Sheet]":
    count = sum(re.fullmatch(r"iter_\d+", name) is not None for name in sheets)
    names = [f"iter_{index}" for index in range(count)]
    missing = [name for name in names if name not in sheets]
    if missing:
        raise ValueError(f"{str(path)!r} has {count} sheets of iterations, but not {missing[0]!r}.")
    return [sheets[name] for name in names]


class _Sheet:
    """One sheet of a workbook. Cells are `(row, column)`, both from 0; complaints call them A1, B5, …"""

    def __init__(self, sheet, path: str | os.PathLike):
        self.sheet, self.path = sheet, path

    def complaint(self, row: int, column: int, problem: str) -> ValueError:
        cell = f"{chr(ord('A') + column)}{row + 1}"
        return ValueError(f"The cell {cell} of sheet {self.sheet.name!r} in {str(self.path)!r} {problem}.")

    def value(self, row: int, column: int) -> str | float | None:
        """Text, or a number, or `None` where there is nothing."""
        if row >= self.sheet.nrows or column >= self.sheet.ncols:
            return None
        value = self.sheet.cell_value(row, column)
        if isinstance(value, int):  # xlrd's codes for truth values and errors; numbers are floats
            raise self.complaint(row, column, "holds neither text nor a number")
        return value.strip() or None if isinstance(value, str) else value

    def text(self, row: int, column: int) -> str:
        value = self.value(row, column)
        if not isinstance(value, str):
            raise self.complaint(row, column, f"must hold text, got {'nothing' if value is None else value}")
        return value

    def name(self, row: int, column: int) -> str:
        text = self.text(row, column)
        if not re.fullmatch(r"[\w.\- ]+", text):
            raise self.complaint(row, column, f"must hold a name, got {_shorten(text)}")
        return text

    def number(self, row: int, column: int) -> float:
        value = self.value(row, column)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            found = "nothing" if value is None else _shorten(value)
            raise self.complaint(row, column, f"must hold a number, got {found}") from error

    def literal(self, row: int, column: int, kind: type) -> Any:
        """The list or dictionary whose Python notation the cell holds."""
        text = self.text(row, column)
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise self.complaint(row, column, f"must hold a plain {kind.__name__}, got {_shorten(text)}") from error
        if not isinstance(value, kind):
            raise self.complaint(row, column, f"must hold a plain {kind.__name__}, got {_shorten(text)}")
        return value

    def config(self, row: int, column: int) -> dict[str, Any]:
        """The JSON after "BertConfig "."""
        text = self.text(row, column)
        try:
            config = json.loads(text.removeprefix("BertConfig"))
        except (ValueError, RecursionError) as error:
            raise self.complaint(row, column, f"must hold a configuration as JSON, got {_shorten(text)}") from error
        if not isinstance(config, dict):
            raise self.complaint(row, column, f"must hold a configuration as JSON, got {_shorten(text)}")
        return config

    def candidate(self, elastic_keys: Sequence[str], **cells: tuple[int, int]) -> PublishedCandidate:
        """The candidate whose `gene`, `size`, `metric` and `config` are in these cells."""
        gene = self.literal(*cells["gene"], list)
        if not all(_is_number(value) for value in gene):
            raise self.complaint(*cells["gene"], f"must hold a list of numbers, got {_shorten(gene)}")
        size = self.number(*cells["size"])
        if not (size >= 1 and size.is_integer()):
            raise self.complaint(*cells["size"], f"must hold a number of parameters, got {size}")
        metric = self.number(*cells["metric"])
        config = self.config(*cells["config"])
        missing = [key for key in elastic_keys if key not in config]
        if missing:
            raise self.complaint(*cells["config"], f"lacks {missing}, which the search varied")
        try:
            architecture = architecture_from_published(config)
        except ValueError as error:
            raise self.complaint(*cells["config"], f"describes no architecture: {str(error).rstrip('.')}") from error
        return PublishedCandidate(architecture, tuple(gene), int(size), metric)

    def parents(self, elastic_keys: Sequence[str]) -> tuple[PublishedCandidate, ...]:
        """Of one iteration: below a header, a row each with rank, gene, size, metric and configuration."""
        columns = {"gene": 1, "size": 2, "metric": 3, "config": 4}
        return tuple(
            self.candidate(elastic_keys, **{name: (row, column) for name, column in columns.items()})
            for row in range(1, self.sheet.nrows)
        )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- checkpoints ----------------------------------------------------------------------------------------------------

# Published routing: the kind of router, and its linear layers.
_ROUTINGS = {
    "archrouting_jack_1L": ("layer", 1),
    "archrouting_jack_2L": ("layer", 2),
    "neuronrouting_jack_2L": ("neuron", 2),
}
_REFUSED_OPTIONS = {
    "last_expert_averaging_expert": "its averaging expert leaves out one expert and the activation",
    "use_hypernet_w_low_rank": "its bottlenecks change with the architecture",
    "rewire": "it permutes channels by buffers of its own",
}
# What a published layer calls the modules of ours.
_LAYER_MODULES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "output.LayerNorm": "output_norm",
}
_ROUTERS = {
    "none": {},
    "layer": {"arch_expert": "router"},
    "neuron": {"arch_expert_fc1": "input_router", "arch_expert_fc2": "output_router"},
}
_BOTTLENECKS = ("input_bottleneck", "output_bottleneck")
# Patterns of the names of tensors that a supernet does without.
_UNUSED = (
    r"bert\.embeddings\.position_ids",
    r"(.*\.)?active_arch_embed",  # the architecture that ran last
    r".*\.other_output_experts\.\d+\.LayerNorm\.(weight|bias)",  # norms that no forward pass reads
    r"(.*\.)?fit_dense\.(weight|bias)",  # a map that a distillation trained
)
_MASKED_LM_HEAD = (r"cls\.predictions\..*",)


@torch.no_grad()
def supernet_from_published(
    checkpoint: "str | os.PathLike | Mapping[str, torch.Tensor]",
    config: Mapping[str, Any] | None = None,
    model_class: type[MosPreTrainedModel] = MosForMaskedLM,
    search_space: str | dict[str, Any] | None = None,
) -> MosPreTrainedModel:
    """
    A supernet with the weights of a published MoS or SuperShaper checkpoint: the same function at every architecture.

    Args:
        checkpoint (`str`, `os.PathLike` or `dict`):
            A folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, or a state dict.
        config (`dict`, *optional*):
            The checkpoint's `config.json`; read from the folder if not given.
        model_class (`type`, *optional*, defaults to [`MosForMaskedLM`]):
            [`MosForMaskedLM`] or [`MosForSequenceClassification`], whose head starts new where the checkpoint has a
            masked-LM head. One with a classifier was fine-tuned at the architecture in its configuration, which
            becomes the default architecture.
        search_space (`str` or `dict`, *optional*):
            The architectures, as in [`MosConfig`]; those of the published `search_space_id` if not given.

    Returns:
        `model_class`: In float32 and evaluation mode.

    Raises:
        ValueError: if the checkpoint cannot be represented exactly, or a tensor is missing, unknown or of another
            shape; the message names it.
        OSError: if a file is missing.
    """
    if model_class not in (MosForMaskedLM, MosForSequenceClassification):
        raise ValueError(
            "Published checkpoints become MosForMaskedLM or MosForSequenceClassification, not "
            f"{model_class.__name__}; save one of those and load the folder with the class you want, whose head then "
            "starts new."
        )
    if isinstance(checkpoint, Mapping):
        source = "The state dict"
        if config is None:
            raise ValueError("A state dict needs its configuration: give `config`, the content of its config.json.")
        tensors = checkpoint
    else:
        source = f"The checkpoint {str(checkpoint)!r}"
        config = _read_config(Path(checkpoint)) if config is None else config
        tensors = _read_tensors(Path(checkpoint))
    model = model_class(config_from_published(config, search_space))
    weights = _PublishedWeights(tensors, source)
    _copy_encoder(weights, model.base_model)
    if model_class is MosForMaskedLM:
        _copy_masked_lm_head(weights, model)
    elif "classifier.weight" in weights:
        weights.copy("bert.pooler.dense", model.classifier.dense)
        weights.copy("classifier", model.classifier.out_proj)
        architecture = architecture_from_published(config)
        model.search_space.validate(architecture)
        model.config.default_architecture = architecture.to_dict()
    weights.refuse_unknown(_UNUSED if model_class is MosForMaskedLM else _UNUSED + _MASKED_LM_HEAD)
    return model.eval()


def config_from_published(config: Mapping[str, Any], search_space: str | dict[str, Any] | None = None) -> MosConfig:
    """
    The configuration of the supernet that [`supernet_from_published`] makes.

    Args:
        config (`dict`): The content of a published `config.json`.
        search_space (`str` or `dict`, *optional*): As in [`supernet_from_published`].

    Raises:
        ValueError: if the checkpoint is of a kind that this project does not have.
    """
    mixing = config.get("mixing")
    if mixing not in ("bert-bottleneck", "attention"):
        raise ValueError(
            f"The configuration has mixing={mixing!r}; checkpoints of the published code that can be read have "
            "'bert-bottleneck' or 'attention'. A plain BERT becomes a supernet with `MosForMaskedLM.from_backbone`."
        )
    for name, reason in _REFUSED_OPTIONS.items():
        if _is_on(config.get(name)):
            raise ValueError(f"A checkpoint with {name}={config[name]!r} has no counterpart here: {reason}.")
    if config.get("normalization_type") == "no_norm":
        raise ValueError("A checkpoint with normalization_type='no_norm' has no counterpart here: it has no norms.")
    if config.get("tie_word_embeddings", True) is not True:
        raise ValueError(
            "A checkpoint with tie_word_embeddings=False has no counterpart here; published heads are tied."
        )
    space = _resolve_space(config, search_space)
    if space.bottleneck != (mixing == "bert-bottleneck"):
        raise ValueError(
            f"The configuration has mixing={mixing!r}, but the search space has bottleneck={space.bottleneck}; give "
            "the `search_space` that the checkpoint was trained for."
        )
    values = {name: config[name] for name in (*BACKBONE_FIELDS, *TASK_FIELDS) if name in config}
    return MosConfig(**values, search_space=space.to_dict(), **_routing_options(config))


def _routing_options(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = config.get("max_experts", -1)
    if experts == -1:
        return {"routing": "none"}
    kind = config.get("expert_routing_type")
    if kind not in _ROUTINGS:
        raise ValueError(
            f"The configuration has max_experts={experts} and expert_routing_type={kind!r}, which the published code "
            f"could not run; what can be read is {list(_ROUTINGS)}."
        )
    routing, num_layers = _ROUTINGS[kind]
    router_input = "scaled"
    if _is_on(config.get("fixed_hypernet_input")):
        router_input = "constant"
    if config.get("hypernet_input_format") == "onehot":
        if router_input == "constant" or num_layers == 1:
            raise ValueError(
                "A checkpoint with hypernet_input_format='onehot' can be read where routers have two layers and "
                f"see the architecture, got expert_routing_type={kind!r} and "
                f"fixed_hypernet_input={config.get('fixed_hypernet_input')!r}."
            )
        router_input = "one-hot"
    return {
        "routing": routing,
        "num_experts": experts,
        "router_num_layers": num_layers,
        "router_hidden_size": config.get("hypernet_hidden_size", 64),  # the published default
        "router_input": router_input,
        "expert_start": "copies",
    }


def _resolve_space(config: Mapping[str, Any], search_space: str | dict[str, Any] | None) -> SearchSpace:
    sizes = {name: config.get(name, size) for name, size in BERT_BASE.items()}
    if search_space is None:
        search_space = config.get("search_space_id")
        if search_space in (None, "None"):
            search_space = "v1"
        if search_space not in PRESET_ALIASES:
            raise ValueError(
                f"The search space of search_space_id={search_space!r} has no counterpart here, as "
                f"{list(PRESET_ALIASES)} have; give a `search_space` that holds the architectures you need."
            )
        if sizes != BERT_BASE:
            raise ValueError(
                f"The published search spaces are those of BERT-base, {BERT_BASE}, this checkpoint has {sizes}; give "
                "the `search_space` that it was trained for."
            )
    return SearchSpace.resolve(search_space, **sizes)


def _is_on(option: Any) -> bool:
    """Published options are 0 and 1, booleans, or "no" and "yes"."""
    return option in (1, "1", "yes", "True")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {str(path)!r}: a published checkpoint is a folder with config.json and pytorch_model.bin or "
            "model.safetensors, such as best_model."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{str(path)!r} must hold a mapping, got a {type(config).__name__}.")
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    readers = {
        "model.safetensors": load_file,
        "pytorch_model.bin": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    }
    found = [name for name in readers if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{str(folder)!r} has none of the files {list(readers)}.")
    path = folder / found[0]
    try:
        tensors = readers[found[0]](path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        problem = str(error).split("\n")[0]
        raise ValueError(f"{str(path)!r} is not a whole file of plain tensors ({problem}).") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(value) for value in tensors.values()):
        raise ValueError(f"{str(path)!r} must hold a dictionary of tensors, as save_pretrained wrote it.")
    return tensors


class _PublishedWeights:
    """Published tensors by name. Each is taken once; what nobody took is unused or unknown."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], source: str):
        self.tensors, self.source = dict(tensors), source

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        if name not in self.tensors:
            raise ValueError(f"{self.source} lacks {name!r}, which its configuration calls for.")
        tensor = self.tensors.pop(name)
        if tensor.shape != torch.Size(shape):
            raise ValueError(
                f"{self.source} has {name!r} with the shape {list(tensor.shape)}; its configuration calls for "
                f"{list(shape)}."
            )
        return tensor

    def fill(self, name: str, target: torch.Tensor) -> None:
        target.copy_(self.take(name, target.shape))

    def copy(self, name: str, module: nn.Module) -> None:
        self.fill(f"{name}.weight", module.weight)
        self.fill(f"{name}.bias", module.bias)

    def refuse_unknown(self, unused: Sequence[str]) -> None:
        unknown = [name for name in self.tensors if not any(re.fullmatch(pattern, name) for pattern in unused)]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ValueError(
                f"{self.source} has tensors that its configuration does not call for: {unknown[:5]}{more}. The "
                "supernet would not be the same without them; drop them if you know that they do nothing."
            )


def _copy_encoder(weights: _PublishedWeights, model: MosModel) -> None:
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        weights.fill(f"bert.embeddings.{name}.weight", getattr(model.embeddings, name).weight)
    weights.copy("bert.embeddings.LayerNorm", model.embeddings.norm)
    names = dict(_LAYER_MODULES)
    if model.space.bottleneck:
        names |= {name: name for name in _BOTTLENECKS}
    for index, layer in enumerate(model.layers):
        prefix = f"bert.encoder.layer.{index}"
        for name, own in names.items():
            weights.copy(f"{prefix}.{name}", layer.get_submodule(own))
        _copy_feed_forward(weights, prefix, layer.feed_forward, model.space)


def _copy_feed_forward(
    weights: _PublishedWeights, prefix: str, feed_forward: MosFeedForward, space: SearchSpace
) -> None:
    config = feed_forward.config
    for expert in range(config.num_experts):
        first, second = f"{prefix}.intermediate", f"{prefix}.output"
        if expert:
            first = f"{prefix}.other_intermediate_experts.{expert - 1}"
            second = f"{prefix}.other_output_experts.{expert - 1}"
        weights.fill(f"{first}.dense.weight", feed_forward.input_weight[expert])
        weights.fill(f"{first}.dense.bias", feed_forward.input_bias[expert])
        weights.fill(f"{second}.dense.weight", feed_forward.output_weight[expert])
        weights.fill(f"{second}.dense.bias", feed_forward.output_bias[expert])
    for name, own in _ROUTERS[config.routing].items():
        _copy_router(weights, f"{prefix}.{name}", getattr(feed_forward, own), space, config.router_input)


def _copy_router(
    weights: _PublishedWeights, name: str, router: MosRouter, space: SearchSpace, router_input: str
) -> None:
    """Published routers are an `nn.Sequential`, whose indices count activations too."""
    scale, offset = torch.tensor(published_router_input(space, router_input), dtype=torch.double)
    first = router.hidden[0] if router.hidden else router.output
    rows = first.out_features
    weight = weights.take(f"{name}.0.weight", (rows, len(scale))).double()
    bias = weights.take(f"{name}.0.bias", (rows,)).double()
    if router_input == "one-hot":
        # One more linear layer follows without an activation between: together they are one.
        following = weights.take(f"{name}.1.weight", (rows, rows)).double()
        weight, bias = following @ weight, following @ bias + weights.take(f"{name}.1.bias", (rows,))
    # The rest of our input are dimensions that published routers do not see.
    first.weight.zero_()
    first.weight[:, : len(scale)] = weight * scale
    first.bias.copy_(bias + weight @ offset)
    if router.hidden:
        weights.copy(f"{name}.{3 if router_input == 'one-hot' else 2}", router.output)


def published_router_input(space: SearchSpace, router_input: str) -> tuple[list[float], list[float]]:
    """
    How the input of published routers follows from ours.

    Args:
        space ([`SearchSpace`]): The architectures.
        router_input (`str`): `"scaled"`, `"one-hot"` or `"constant"`.

    Returns:
        `scale` and `offset`, one number each for every published input: published[i] = scale[i] * ours[i] + offset[i].
        Ours may be longer, since published routers of spaces with bottlenecks see widths only.

    Raises:
        ValueError: if published routers see something else than ours.
    """
    widths, depths = space.hidden_sizes, space.num_hidden_layers
    if space.bottleneck:
        if len(depths) > 1:
            raise ValueError(
                "Published routers see what ran before in place of absent layers, so that the depths "
                f"{list(depths)} cannot be represented; give a `search_space` with num_hidden_layers=[{depths[-1]}]."
            )
        if len(widths) == 1:
            raise ValueError(
                f"Published routers see widths, but the search space has only {widths[0]}; give a `search_space` with "
                "more of them."
            )
        inputs = depths[0] * (len(widths) if router_input == "one-hot" else 1)
        if router_input != "scaled":
            return [1.0] * inputs, [0.0] * inputs
        # 0.01 + (width - 120) / (768 - 120); ours is 0.01 to 1.01 from the smallest to the largest of this space.
        scale = (widths[-1] - widths[0]) / (768 - 120)
        offset = 0.01 + (widths[0] - 120) / (768 - 120) - 0.01 * scale
        return [scale] * inputs, [offset] * inputs
    elastic_depth = len(depths) > 1
    if router_input == "one-hot":
        raise ValueError(
            "A checkpoint with hypernet_input_format='onehot' can be read in spaces with bottlenecks only."
        )
    if space.encoding_size("scaled") != 3 + elastic_depth:
        raise ValueError(
            "Without bottlenecks published routers see width, heads and feed-forward size; give a `search_space` with "
            "several of each."
        )
    if router_input == "constant":
        return [1.0] * (3 + elastic_depth), [0.0] * (3 + elastic_depth)
    largest = space.largest()
    scale = [widths[-1] / 768, space.num_attention_heads[-1] / 12, largest.intermediate_sizes[0] / 3072]
    # Where there is a fourth input, it is always that of the largest depth.
    return scale + [0.0] * elastic_depth, [0.0] * 3 + [1.0] * elastic_depth


def _copy_masked_lm_head(weights: _PublishedWeights, model: MosForMaskedLM) -> None:
    head = model.lm_head
    weights.copy("cls.predictions.transform.dense", head.dense)
    weights.copy("cls.predictions.transform.LayerNorm", head.norm)
    weights.fill("cls.predictions.bias", head.decoder.bias)
    for part in ("weight", "bias"):
        name, tied = f"cls.predictions.decoder.{part}", getattr(head.decoder, part)
        # Some files hold the decoder a second time.
        if name in weights and not torch.equal(weights.take(name, tied.shape).to(tied), tied):
            raise ValueError(
                f"{weights.source} has a decoder of its own: {name!r} differs from what it is tied to, the word "
                "embeddings and 'cls.predictions.bias'."
            )


__all__ = [
    "PublishedCandidate",
    "PublishedResults",
    "architecture_from_published",
    "config_from_published",
    "read_published_results",
    "supernet_from_published",
]
