# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
What the published code left behind: search results and checkpoints.

`fixtures/evo_results_1.xls` has the layout that the published search writes. It was made with xlwt 1.3:

    genes = [[480, 240, 360, 240, 540, 480, 360, 360, 360, 360, 540, 480], [360] * 12, [240] * 6 + [600] * 6]
    texts = ["BertConfig " + json.dumps({"hidden_size": 768, "sample_hidden_size": gene}, indent=2) for gene in genes]
    sizes, scores = [64585248, 59250768, 68382288], [7.25, 7.5, 8.125]
    choices = str([[120, 240, 360, 480, 540, 600, 768]] * 12)
    book = xlwt.Workbook()
    sheet = book.add_sheet("best_config")
    sheet.write(3, 0, "perplexity")
    column = [str(genes[0]), sizes[0], scores[0], texts[0], "", "None", "['sample_hidden_size']", choices,
              str(["sample_hidden_size"] * 12), "{'sample_hidden_size': [0, 12]}"]
    for row, value in enumerate(column, start=1):
        sheet.write(row, 1, value)
    for iteration, order in enumerate([(1, 2), (0, 1, 2)]):
        sheet = book.add_sheet(f"iter_{iteration}")
        rows = [[rank, str(genes[i]), sizes[i], scores[i], texts[i]] for rank, i in enumerate(order)]
        for row, values in enumerate([["rank", "gene", "model size", "perplexity", "config.json"], *rows]):
            for column, value in enumerate(values):
                sheet.write(row, column, value)
"""

import copy
import json
import math
import os
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

from example_utils import write_folder_atomically
from modeling_mos import Architecture, MosForMaskedLM, MosForSequenceClassification, MosModel, SearchSpace
from modeling_mos.published import (
    BERT_BASE,
    architecture_from_published,
    config_from_published,
    published_router_input,
    read_published_results,
    supernet_from_published,
)
from testing_utils import ELASTIC, TINY, UNIFORM, make_batch, no_complaints


FIXTURE = Path(__file__).parent / "fixtures" / "evo_results_1.xls"
SCRIPT = "architecture-search/convert_published.py"
WIDTHS = [480, 240, 360, 240, 540, 480, 360, 360, 360, 360, 540, 480]


# ---- architectures --------------------------------------------------------------------------------------------------


def sizes_of(config: dict) -> tuple:
    return architecture_from_published(config).layers


def test_any_subset_of_the_sampled_sizes():
    assert sizes_of({}) == ((768, 3072, 12),) * 12
    assert sizes_of({"sample_hidden_size": WIDTHS}) == tuple((width, 3072, 12) for width in WIDTHS)
    assert sizes_of({"sample_hidden_size": 240, "sample_num_hidden_layers": 2}) == ((240, 3072, 12),) * 2
    assert sizes_of({"sample_num_attention_heads": [6] * 12}) == ((768, 3072, 6),) * 12
    assert sizes_of({"sample_intermediate_size": [512] * 6 + [1024] * 6})[5:7] == ((768, 512, 12), (768, 1024, 12))
    # Ratios of the width; lists are as long as the supernet is deep.
    uniform = {"sample_hidden_size": [132] * 12, "sample_intermediate_size": [3.5] * 12}
    uniform |= {"sample_num_attention_heads": [6] * 12, "sample_num_hidden_layers": 9}
    assert sizes_of(uniform) == ((132, 462, 6),) * 9
    backbone = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 37}
    assert sizes_of({**backbone, "sample_hidden_size": None}) == ((48, 37, 4),) * 3


def test_dropped_layers():
    config = {"sample_hidden_size": WIDTHS, "depth_features": [0] * 9 + [1] * 3}
    assert architecture_from_published(config).hidden_sizes == tuple(WIDTHS[:9])
    assert architecture_from_published({**config, "depth_features": [0] * 12}).num_hidden_layers == 12
    with pytest.raises(ValueError, match="drops a layer that another one follows"):
        architecture_from_published({**config, "depth_features": [0, 1] + [0] * 10})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sample_hidden_size": [120] * 6}, "`sample_hidden_size` has 6 entries for 12 layers"),
        ({"sample_hidden_size": ["x"] * 12}, "`sample_hidden_size` must hold numbers"),
        ({"sample_intermediate_size": [True] * 12}, "`sample_intermediate_size` must hold numbers"),
        ({"sample_intermediate_size": float("nan")}, "`sample_intermediate_size` must hold numbers"),
        ({"sample_hidden_size": [100.5] * 12}, "must hold one positive integer a layer"),
        ({"sample_hidden_size": [100] * 12}, "not divisible by its 12 attention heads"),
        ({"sample_num_hidden_layers": "all"}, "must be 1 to that of the backbone, 12, got 'all'"),
        ({"sample_num_hidden_layers": 13}, "must be 1 to that of the backbone, 12, got 13"),
        ({"depth_features": [1] * 12}, "one entry a layer"),
    ],
)
def test_sizes_that_are_none(config, message):
    with pytest.raises(ValueError, match=message):
        architecture_from_published(config)


# ---- search results -------------------------------------------------------------------------------------------------


def write_workbook(path: Path, sheets: dict[str, dict[tuple[int, int], object]]) -> Path:
    """Writes BIFF 8 records without a container around them, which xlrd reads too."""

    def record(kind: int, content: bytes = b"") -> bytes:
        return struct.pack("<HH", kind, len(content)) + content

    def begin(kind: int) -> bytes:
        return record(0x0809, struct.pack("<HHHHII", 0x0600, kind, 0, 1997, 0, 0))

    def cell(place: tuple[int, int], value) -> bytes:
        if isinstance(value, bool):
            return record(0x0205, struct.pack("<HHHBB", *place, 0, value, 0))
        if isinstance(value, (int, float)):
            return record(0x0203, struct.pack("<HHHd", *place, 0, value))
        return record(0x0204, struct.pack("<HHHHB", *place, 0, len(value), 0) + value.encode("latin-1"))

    contents = [begin(0x10) + b"".join(map(cell, cells, cells.values())) + record(0x0A) for cells in sheets.values()]
    size = len(begin(5)) + sum(12 + len(name) for name in sheets) + len(record(0x0A))
    names = b""
    for name, content in zip(sheets, contents, strict=True):
        names += record(0x85, struct.pack("<IBBBB", size, 0, 0, len(name), 0) + name.encode())
        size += len(content)
    path.write_bytes(begin(5) + names + record(0x0A) + b"".join(contents))
    return path


def published_sheets(config: dict, gene: list, keys: list[str], space: str | None = "None") -> dict:
    """A search of one iteration with one parent."""
    text = f"BertConfig {json.dumps(config)}\n"
    best = {(1, 1): str(gene), (2, 1): 5_137_560, (3, 0): "perplexity", (3, 1): 9.5, (4, 1): text}
    best |= {(7, 1): str(keys), (8, 1): str([gene]), (9, 1): str(keys), (10, 1): str({key: [0, 1] for key in keys})}
    if space is not None:
        best[6, 1] = space
    header = ["rank", "gene", "model size", "perplexity", "config.json"]
    parents = {(0, column): title for column, title in enumerate(header)}
    parents |= {(1, 0): 0, (1, 1): str(gene), (1, 2): 5_137_560, (1, 3): 9.5, (1, 4): text}
    return {"best_config": best, "iter_0": parents}


PLAIN = ({"sample_hidden_size": [240] * 12}, [240] * 12, ["sample_hidden_size"])


@pytest.fixture(scope="module")
def xlrd():
    return pytest.importorskip("xlrd", reason="published search results are old Excel files")


@pytest.fixture
def workbook(xlrd, tmp_path):
    """Writes a search, changed where asked for; `None` takes a cell or sheet away."""

    def write(changes: dict | None = None, *search) -> Path:
        sheets = published_sheets(*search or PLAIN)
        for place, value in (changes or {}).items():
            cells, key = (sheets, place) if isinstance(place, str) else (sheets[place[0]], place[1:])
            if value is None:
                del cells[key]
            else:
                cells[key] = value
        return write_workbook(tmp_path / "evo_results_0.xls", sheets)

    return write


def test_results_of_a_search(xlrd, capsys):
    found = read_published_results(FIXTURE)
    assert found.best.architecture.layers == tuple((width, 3072, 12) for width in WIDTHS)
    assert found.best.gene == tuple(WIDTHS)
    assert (found.best.size, found.best.metric, found.metric_name) == (64_585_248, 7.25, "perplexity")
    assert found.search_space_id is None
    assert found.genes["elastic_keys"] == ["sample_hidden_size"]
    assert found.genes["elastickey2ranges"] == {"sample_hidden_size": [0, 12]}
    assert len(found.genes["gene_choices"]) == len(found.genes["gene_names"]) == 12
    assert [[parent.size for parent in parents] for parents in found.parents] == [
        [59_250_768, 68_382_288],
        [64_585_248, 59_250_768, 68_382_288],
    ]
    assert found.parents[1][0] == found.best
    assert found.parents[0][0].architecture.hidden_sizes == (360,) * 12
    # The size is our published one.
    with torch.device("meta"):
        model = MosForMaskedLM(config_from_published({"mixing": "bert-bottleneck"}))
    for parent in found.parents[1]:
        assert model.published_size(parent.architecture) == parent.size
    assert capsys.readouterr().out == ""


ALL_KEYS = [f"sample_{name}" for name in ("hidden_size", "intermediate_size", "num_attention_heads")]
LAYOUTS = {
    "v1.2": ([240] * 12 + [1024] * 12, ALL_KEYS[:2], ((240, 1024, 12),) * 12),
    "v2": ([120] * 9 + [3] * 9 + [9], [*ALL_KEYS[:2], "sample_num_hidden_layers"], ((120, 360, 12),) * 9),
    "v5.1": ([132, 3.5, 6], ALL_KEYS, ((132, 462, 6),) * 12),
    "v5.2": ([144, 2.5, 12, 6], [*ALL_KEYS, "sample_num_hidden_layers"], ((144, 360, 12),) * 6),
}


@pytest.mark.parametrize("space", LAYOUTS)
def test_layouts_of_search_spaces(workbook, space):
    gene, keys, layers = LAYOUTS[space]
    width, intermediate, heads = layers[0]
    values = dict(zip(ALL_KEYS, ([width] * 12, [intermediate] * 12, [heads] * 12), strict=True))
    values["sample_num_hidden_layers"] = len(layers)
    config = {"num_hidden_layers": 12, **{key: values[key] for key in keys}}
    found = read_published_results(workbook({}, config, gene, keys, space))
    assert found.search_space_id == space
    assert found.best.architecture.layers == layers
    assert found.parents == ((found.best,),)
    assert found.best.architecture in SearchSpace.resolve(space, **BERT_BASE)
    # What the search varied has to be said.
    del config[keys[-1]]
    with pytest.raises(ValueError, match=rf"B5 of sheet 'best_config'.* lacks \['{keys[-1]}'\]"):
        read_published_results(workbook({}, config, gene, keys, space))


def test_files_of_older_layouts(workbook):
    tail = {("best_config", row, 1): None for row in (6, 7, 8, 9, 10)}
    found = read_published_results(workbook({**tail, "iter_0": None}))
    assert (found.search_space_id, found.genes, found.parents) == (None, {}, ())
    assert found.best.architecture.hidden_sizes == (240,) * 12
    # A number that is stored as text, and a blank cell.
    found = read_published_results(workbook({("best_config", 2, 1): "5137560", ("best_config", 6, 1): " "}))
    assert found.best.size == 5_137_560 and found.search_space_id is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_config": None}, r"has no sheet 'best_config', its sheets are \['iter_0'\]"),
        ({"iter_0": None, "iter_1": {}}, "has 1 sheets of iterations, but not 'iter_0'"),
        ({("best_config", 1, 1): None}, "B2 of sheet 'best_config' .* must hold text, got nothing"),
        ({("best_config", 1, 1): "[1, 'x']"}, "B2 .* must hold a list of numbers"),
        ({("best_config", 1, 1): 7}, "B2 .* must hold text, got 7.0"),
        ({("best_config", 2, 1): None}, "B3 .* must hold a number, got nothing"),
        ({("best_config", 2, 1): -3}, "B3 .* must hold a number of parameters, got -3.0"),
        ({("best_config", 2, 1): "nan"}, "B3 .* must hold a number of parameters, got nan"),
        ({("best_config", 2, 1): True}, "B3 .* holds neither text nor a number"),
        ({("best_config", 3, 0): None}, "A4 .* must hold text, got nothing"),
        ({("best_config", 3, 1): "good"}, "B4 .* must hold a number, got 'good'"),
        ({("best_config", 4, 1): None}, "B5 .* must hold text, got nothing"),
        ({("best_config", 4, 1): "BertConfig [1]"}, "B5 .* must hold a configuration as JSON"),
        ({("best_config", 4, 1): "BertConfig " + "[" * 5_000}, "B5 .* must hold a configuration as JSON"),
        ({("best_config", 4, 1): '{"sample_hidden_size": [7]}'}, "B5 .* describes no architecture: .* 1 entries"),
        ({("best_config", 4, 1): json.dumps({"sample_hidden_size": 10**400})}, "B5 .* describes no architecture: "),
        ({("best_config", 7, 1): "{}"}, "B8 .* must hold a plain list"),
        ({("best_config", 7, 1): "[[1]]"}, "B8 .* must hold a list of names"),
        ({("best_config", 8, 1): "[" * 5_000}, "B9 .* must hold a plain list"),
        ({("best_config", 10, 1): "[]"}, "B11 .* must hold a plain dict"),
        ({("iter_0", 1, 4): None}, "E2 of sheet 'iter_0' .* must hold text, got nothing"),
        ({("iter_0", 1, 3): None}, "D2 of sheet 'iter_0' .* must hold a number, got nothing"),
    ],
)
def test_what_is_missing_or_wrong_is_named(workbook, changes, message):
    path = workbook(changes)
    with pytest.raises(ValueError, match=message) as error:
        read_published_results(path)
    assert repr(str(path)) in str(error.value)


READ_CELLS = [("best_config", row, 1) for row in (1, 2, 3, 4, 6, 7, 8, 9, 10)]
READ_CELLS += [("best_config", 3, 0), *(("iter_0", 1, column) for column in (1, 2, 3, 4))]


@pytest.mark.parametrize("prefix", ["", "BertConfig "])
@pytest.mark.parametrize("place", READ_CELLS)
def test_cells_are_not_evaluated(workbook, tmp_path, monkeypatch, place, prefix):
    run = []
    monkeypatch.setattr(os, "system", run.append)
    path = workbook({place: f"{prefix}__import__('os').system('touch {tmp_path}/harm')"})
    with pytest.raises(ValueError, match=f"The cell .* of sheet '{place[0]}'.* must hold"):
        read_published_results(path)
    assert not run and not (tmp_path / "harm").exists()


def test_files_cut_in_the_middle(xlrd, tmp_path, capsys):
    whole, expected = FIXTURE.read_bytes(), read_published_results(FIXTURE)
    path = tmp_path / "evo_results_1.xls"
    refused = 0
    for size in (0, 4, 8, 100, *range(512, len(whole), 256)):
        path.write_bytes(whole[:size])
        try:
            assert read_published_results(path) == expected
        except ValueError as error:
            assert repr(str(path)) in str(error)
            refused += 1
    assert refused > 30
    path.write_text("rank,gene,model size\n")
    with pytest.raises(ValueError, match="is not a whole .xls workbook"):
        read_published_results(path)
    with pytest.raises(FileNotFoundError):
        read_published_results(tmp_path / "missing.xls")
    assert capsys.readouterr().out == ""


def test_without_xlrd(monkeypatch):
    monkeypatch.setitem(sys.modules, "xlrd", None)
    with pytest.raises(ImportError, match=r"need xlrd: pip install -c constraints.txt -e '.\[published\]'"):
        read_published_results(FIXTURE)


# ---- checkpoints ----------------------------------------------------------------------------------------------------

LAYER_WISE = {"expert_routing_type": "archrouting_jack_2L", "max_experts": 2}
NEURON_WISE = {"expert_routing_type": "neuronrouting_jack_2L", "max_experts": 2}
ROUTINGS = {
    "none": {"max_experts": -1, "expert_routing_type": "sentence"},
    "layer 1L": {**LAYER_WISE, "expert_routing_type": "archrouting_jack_1L"},
    "layer 1L, 3 experts": {"expert_routing_type": "archrouting_jack_1L", "max_experts": 3},
    "layer 2L": LAYER_WISE,
    "layer 2L, 3 experts": {**LAYER_WISE, "max_experts": 3},
    "layer 2L, constant": {**LAYER_WISE, "fixed_hypernet_input": "yes"},
    "neuron 2L": NEURON_WISE,
    "neuron 2L, 3 experts": {**NEURON_WISE, "max_experts": 3},
}
ONE_HOT = {
    "layer 2L, one-hot": {**LAYER_WISE, "hypernet_input_format": "onehot"},
    "neuron 2L, one-hot": {**NEURON_WISE, "max_experts": 3, "hypernet_input_format": "onehot"},
}
# As the published v1, v1.2 with elastic heads, v5.1 and v5.2; and a plain supernet of elastic depth.
SPACES = {
    "widths": {"hidden_sizes": ELASTIC["hidden_sizes"]},
    "bottleneck": {key: value for key, value in ELASTIC.items() if key != "num_hidden_layers"},
    "uniform": {key: value for key, value in UNIFORM.items() if key != "num_hidden_layers"},
    "uniform depth": UNIFORM,
}
CASES = [(routing, space) for routing in ROUTINGS for space in SPACES]
CASES += [(routing, space) for routing in ONE_HOT for space in ("widths", "bottleneck")]


def published_config(routing: str = "neuron 2L", space: str = "widths", **overrides) -> dict:
    """What a published `config.json` holds, at tiny sizes."""
    config = {**TINY, "type_vocab_size": 2, "pad_token_id": 0, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    config |= {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_dropout_prob": 0}
    config |= {"mixing": "attention" if "uniform" in space else "bert-bottleneck", "hypernet_hidden_size": 9}
    config |= {"hypernet_input_format": "standard", "fixed_hypernet_input": "no", "use_hypernet_w_low_rank": 0}
    config |= {"last_expert_averaging_expert": "no", "rewire": 0, "normalization_type": "layer_norm"}
    return {**config, **(ROUTINGS | ONE_HOT)[routing], **overrides}


def router_input_size(config: dict, space: str) -> int:
    if config["mixing"] == "attention":
        return 4 if space == "uniform depth" else 3
    return config["num_hidden_layers"] * (3 if config["hypernet_input_format"] == "onehot" else 1)


def published_tensors(config: dict, space: str = "widths", head: str = "masked-lm", seed: int = 0) -> dict:
    """A published state dict, random in everything: by the names and shapes of the published layers."""
    generator = torch.Generator().manual_seed(seed)
    width, intermediate, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    tensors = {}

    def linear(name: str, rows: int, columns: int, scale: float = 1.0):
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * scale * columns**-0.5
        tensors[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.3 * scale

    def norm(name: str):
        tensors[f"{name}.weight"] = 1 + torch.randn(width, generator=generator) * 0.3
        tensors[f"{name}.bias"] = torch.randn(width, generator=generator) * 0.3

    def router(name: str, rows: int):
        inputs, hidden, experts = (
            router_input_size(config, space),
            config["hypernet_hidden_size"],
            config["max_experts"],
        )
        if "1L" in config["expert_routing_type"]:
            return linear(f"{name}.0", rows * experts, inputs, scale=4)
        linear(f"{name}.0", hidden, inputs, scale=4)
        if config["hypernet_input_format"] == "onehot":
            linear(f"{name}.1", hidden, hidden)
        linear(f"{name}.{3 if config['hypernet_input_format'] == 'onehot' else 2}", rows * experts, hidden)

    rows = {"word": vocabulary, "position": config["max_position_embeddings"], "token_type": 2}
    for name, count in rows.items():
        tensors[f"bert.embeddings.{name}_embeddings.weight"] = torch.randn(count, width, generator=generator)
    norm("bert.embeddings.LayerNorm")
    tensors["bert.embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    for index in range(config["num_hidden_layers"]):
        prefix = f"bert.encoder.layer.{index}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(f"{prefix}.{name}", width, width)
        norm(f"{prefix}.attention.output.LayerNorm")
        if config["mixing"] == "bert-bottleneck":
            linear(f"{prefix}.input_bottleneck", width, width)
            linear(f"{prefix}.output_bottleneck", width, width)
        linear(f"{prefix}.intermediate.dense", intermediate, width)
        linear(f"{prefix}.output.dense", width, intermediate)
        norm(f"{prefix}.output.LayerNorm")
        for expert in range(config["max_experts"] - 1):
            linear(f"{prefix}.other_intermediate_experts.{expert}.dense", intermediate, width)
            linear(f"{prefix}.other_output_experts.{expert}.dense", width, intermediate)
            norm(f"{prefix}.other_output_experts.{expert}.LayerNorm")
        if config["max_experts"] > 1:
            tensors[f"{prefix}.active_arch_embed"] = torch.rand(router_input_size(config, space), generator=generator)
            if config["expert_routing_type"].startswith("neuron"):
                router(f"{prefix}.arch_expert_fc1", intermediate)
                router(f"{prefix}.arch_expert_fc2", width)
            else:
                router(f"{prefix}.arch_expert", 1)
    if head == "masked-lm":
        linear("cls.predictions.transform.dense", width, width)
        norm("cls.predictions.transform.LayerNorm")
        tensors["cls.predictions.bias"] = torch.randn(vocabulary, generator=generator)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        linear("fit_dense", width, width)
    else:
        linear("bert.pooler.dense", width, width)
        linear("classifier", 3, width)
    return tensors


def reference_logits(tensors: dict, config: dict, space: str, architecture: Architecture, batch: dict) -> torch.Tensor:
    """The published formulas, in double precision."""
    one_hot, experts = config["hypernet_input_format"] == "onehot", config["max_experts"]
    bottleneck = config["mixing"] == "bert-bottleneck"

    def tensor(name: str) -> torch.Tensor:
        return tensors[name].double()

    def linear(hidden: torch.Tensor, name: str, rows: int) -> torch.Tensor:
        return hidden @ tensor(f"{name}.weight")[:rows, : hidden.shape[-1]].T + tensor(f"{name}.bias")[:rows]

    def norm(hidden: torch.Tensor, name: str) -> torch.Tensor:
        width = hidden.shape[-1]
        centred = hidden - hidden.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * tensor(f"{name}.weight")[:width] + tensor(f"{name}.bias")[:width]

    if not bottleneck:
        width, intermediate, heads = architecture.layers[0]
        seen = [width / 768, heads / 12, intermediate / 3072] + [12 / 12] * (space == "uniform depth")
    elif one_hot:
        seen = [float(width == choice) for width in architecture.hidden_sizes for choice in ELASTIC["hidden_sizes"]]
    else:
        seen = [0.01 + (width - 120) / 648 for width in architecture.hidden_sizes]
    if config["fixed_hypernet_input"] == "yes":
        seen = [0.5] * len(seen)
    seen = torch.tensor(seen).double()

    def route(name: str, rows: int) -> torch.Tensor:
        """`(rows, experts)`, from the leading outputs of a router."""

        def full(vector, layer):
            return tensor(f"{name}.{layer}.weight") @ vector + tensor(f"{name}.{layer}.bias")

        scores = full(seen, 0)
        if one_hot:
            scores = full(full(scores, 1).relu(), 3)
        elif "2L" in config["expert_routing_type"]:
            scores = full(scores.relu(), 2)
        return scores[: rows * experts].view(rows, experts).softmax(-1)

    def mix(prefix: str, kind: str, shares: torch.Tensor | None, rows: int, columns: int):
        names = [f"{prefix}.{kind}"] + [f"{prefix}.other_{kind}_experts.{index}" for index in range(experts - 1)]
        weights = [tensor(f"{name}.dense.weight")[:rows, :columns] for name in names]
        biases = [tensor(f"{name}.dense.bias")[:rows] for name in names]
        if shares is None:
            return weights[0], biases[0]
        weight = sum(shares[:, index, None] * weights[index] for index in range(experts))
        return weight, sum(shares[:, index] * biases[index] for index in range(experts))

    tokens = batch["input_ids"].shape[1]
    embedded = tensor("bert.embeddings.word_embeddings.weight")[batch["input_ids"]]
    embedded = embedded + tensor("bert.embeddings.position_embeddings.weight")[:tokens]
    embedded = embedded + tensor("bert.embeddings.token_type_embeddings.weight")[batch["token_type_ids"]]
    stream = config["hidden_size"] if bottleneck else architecture.hidden_sizes[0]
    hidden = norm(embedded[..., :stream], "bert.embeddings.LayerNorm")
    for index, (width, intermediate, heads) in enumerate(architecture.layers):
        prefix = f"bert.encoder.layer.{index}"
        if bottleneck:
            hidden = linear(hidden, f"{prefix}.input_bottleneck", width)
        query, key, value = (
            linear(hidden, f"{prefix}.attention.self.{name}", width).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(width / heads)
        scores = scores.masked_fill(batch["attention_mask"][:, None, None, :] == 0, -torch.inf)
        context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        attended = linear(context, f"{prefix}.attention.output.dense", width)
        attended = norm(attended + hidden, f"{prefix}.attention.output.LayerNorm")
        first = second = None
        if experts > 1 and config["expert_routing_type"].startswith("neuron"):
            first = route(f"{prefix}.arch_expert_fc1", intermediate)
            second = route(f"{prefix}.arch_expert_fc2", width)
        elif experts > 1:
            first = second = route(f"{prefix}.arch_expert", 1)
        weight, bias = mix(prefix, "intermediate", first, intermediate, width)
        fed = F.gelu(attended @ weight.T + bias)
        weight, bias = mix(prefix, "output", second, width, intermediate)
        hidden = norm(fed @ weight.T + bias + attended, f"{prefix}.output.LayerNorm")
        if bottleneck:
            hidden = linear(hidden, f"{prefix}.output_bottleneck", stream)
    if "classifier.weight" in tensors:
        pooled = linear(hidden[:, 0], "bert.pooler.dense", stream).tanh()
        return linear(pooled, "classifier", 3)
    hidden = F.gelu(linear(hidden, "cls.predictions.transform.dense", stream))
    hidden = norm(hidden, "cls.predictions.transform.LayerNorm")
    decoder = tensor("bert.embeddings.word_embeddings.weight")[:, :stream]
    return hidden @ decoder.T + tensor("cls.predictions.bias")


def convert(config: dict, tensors: dict, space: str = "widths", model_class=MosForMaskedLM):
    return supernet_from_published(tensors, config, model_class=model_class, search_space=SPACES.get(space, space))


def some_architectures(model) -> list[Architecture]:
    space = model.search_space
    return [space.largest(), space.smallest(), space.sample(seed=1), space.sample(seed=2)]


def assert_same_function(model, tensors: dict, config: dict, space: str) -> None:
    batch = make_batch(model.config)
    mask = batch["attention_mask"].bool()
    # In double precision, so that what differs is no rounding; the weights are those of float32.
    model = copy.deepcopy(model).double()
    found = {}
    for architecture in some_architectures(model):
        expected = reference_logits(tensors, config, space, architecture, batch)
        with torch.no_grad():
            logits = model(**batch, architecture=architecture).logits
        if logits.dim() == 3:
            # What comes out at padding is nobody's business.
            logits, expected = logits[mask], expected[mask]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        found[architecture] = logits
    largest = found.pop(model.search_space.largest())
    assert found and all((largest - other).abs().max() > 0.01 for other in found.values())


@pytest.mark.parametrize(("routing", "space"), CASES)
def test_the_same_function_at_every_architecture(routing, space):
    config = published_config(routing, space)
    tensors = published_tensors(config, space)
    with no_complaints():
        model = convert(config, tensors, space)
    assert not model.training
    assert_same_function(model, tensors, config, space)


@pytest.mark.parametrize("routing", ["none", "layer 2L", "neuron 2L"])
@pytest.mark.parametrize("space", ["bottleneck", "uniform"])
def test_a_fine_tuned_classifier(routing, space):
    labels = {str(index): name for index, name in enumerate("abc")}
    config = published_config(routing, space, id2label=labels, label2id={"a": 0, "b": 1, "c": 2})
    config |= {"sample_hidden_size": [36] * 3, "sample_intermediate_size": [20] * 3}
    config |= {"sample_num_attention_heads": [2] * 3}
    tensors = published_tensors(config, space, "sequence-classification")
    model = convert(config, tensors, space, MosForSequenceClassification)
    assert_same_function(model, tensors, config, space)
    # It was fine-tuned at one architecture.
    assert model.default_architecture.layers == ((36, 20, 2),) * 3
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(ValueError, match="lacks 'cls.predictions.transform.dense.weight'"):
        convert(config, tensors, space)


def test_a_new_classifier_on_a_pretrained_supernet():
    config = published_config()
    tensors = published_tensors(config)
    model = convert(config, tensors, model_class=MosForSequenceClassification)
    expected = convert(config, tensors)
    batch = make_batch(model.config)
    smallest = model.search_space.smallest()
    found, expected = (each.base_model(**batch, architecture=smallest).last_hidden_state for each in (model, expected))
    assert torch.equal(found, expected)
    assert model.config.default_architecture is None


def test_a_supernet_of_elastic_depth_without_routers():
    config = published_config("none")
    tensors = published_tensors(config)
    model = supernet_from_published(tensors, config, search_space=ELASTIC)
    assert_same_function(model, tensors, config, "bottleneck")


@pytest.mark.parametrize("space", SPACES)
def test_extracted_subnets_and_saved_supernets(tmp_path, space):
    config = published_config("neuron 2L, 3 experts", space)
    tensors = published_tensors(config, space)
    model = convert(config, tensors, space)
    architecture = model.search_space.sample(seed=3)
    batch = make_batch(model.config, padding=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    expected = reference_logits(tensors, config, space, architecture, batch).float()
    for found in (loaded(**batch, architecture=architecture), loaded.extract_subnet(architecture)(**batch)):
        torch.testing.assert_close(found.logits, expected, atol=5e-5, rtol=1e-4)


# ---- checkpoints: configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ["layer", "neuron"])
@pytest.mark.parametrize("space", [None, "v1", "v1.1", "v1.2", "attn_elastic", "v5.1", "v5.2"])
def test_published_sizes_need_no_other_router_input(space, routing):
    """For BERT-base our router input begins with the published one, bit by bit."""
    mixing = "attention" if str(space).startswith("v5") else "bert-bottleneck"
    options = LAYER_WISE if routing == "layer" else NEURON_WISE
    config = config_from_published(
        {"mixing": mixing, "search_space_id": space, "hypernet_hidden_size": 128, **options}
    )
    assert (config.routing, config.num_experts, config.router_hidden_size) == (routing, 2, 128)
    assert config.expert_start == "copies"
    found = config.build_search_space()
    assert found == SearchSpace.resolve(space or "v1", **BERT_BASE)
    scale, offset = published_router_input(found, config.router_input)
    if space == "v5.2":
        assert (scale, offset) == ([1, 1, 1, 0], [0, 0, 0, 1])
    else:
        assert set(scale) == {1} and set(offset) == {0}
    assert len(scale) == {"v5.1": 3, "v5.2": 4}.get(space, 12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mixing": None}, "mixing=None.*from_backbone"),
        ({"mixing": "gmlp"}, "mixing='gmlp'"),
        ({"mixing": "attention"}, "mixing='attention', but the search space has bottleneck=True"),
        ({"use_hypernet_w_low_rank": 1}, "use_hypernet_w_low_rank=1 has no counterpart here: its bottlenecks change"),
        ({"last_expert_averaging_expert": "yes"}, "last_expert_averaging_expert='yes' has no counterpart"),
        ({"rewire": True}, "rewire=True has no counterpart"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False has no counterpart"),
        ({"normalization_type": "no_norm"}, "normalization_type='no_norm' has no counterpart"),
        ({"expert_routing_type": "archrouting_2L"}, "expert_routing_type='archrouting_2L', which .* could not run"),
        ({"expert_routing_type": "sentence"}, "expert_routing_type='sentence', which .* could not run"),
        ({"hypernet_input_format": "onehot", "fixed_hypernet_input": "yes"}, "routers have two layers and see"),
        (
            {"hypernet_input_format": "onehot", "expert_routing_type": "archrouting_jack_1L"},
            "got expert_routing_type='archrouting_jack_1L'",
        ),
    ],
)
def test_configurations_without_a_counterpart(overrides, message):
    with pytest.raises(ValueError, match=message):
        config_from_published(published_config(**overrides), SPACES["widths"])


@pytest.mark.parametrize(
    ("routing", "space", "message"),
    [
        ("neuron 2L", ELASTIC, r"the depths \[2, 3\] cannot be represented; .* num_hidden_layers=\[3\]"),
        ("layer 2L", {"hidden_sizes": [48], "intermediate_sizes": [20, 37]}, "has only 48"),
        ("layer 2L", {"hidden_sizes": [16, 48], "bottleneck": False}, "width, heads and feed-forward size"),
        ("layer 2L, one-hot", UNIFORM, "in spaces with bottlenecks only"),
    ],
)
def test_router_inputs_that_cannot_be_represented(routing, space, message):
    name = "widths" if space.get("bottleneck", True) else "uniform"
    config = published_config(routing, name)
    with pytest.raises(ValueError, match=message):
        supernet_from_published(published_tensors(config, name), config, search_space=space)


def test_search_spaces_of_checkpoints():
    with pytest.raises(ValueError, match="are those of BERT-base, .* this checkpoint has .* give the `search_space`"):
        config_from_published(published_config())
    with pytest.raises(ValueError, match="search_space_id='v4.1' has no counterpart here.* give a `search_space`"):
        config_from_published({"mixing": "attention", "search_space_id": "v4.1"})
    space = {"hidden_sizes": [360, 768]}
    config = config_from_published({"mixing": "bert-bottleneck", "search_space_id": "None"}, space)
    assert config.search_space["hidden_sizes"] == [360, 768]
    assert config.routing == "none"


def test_classes_of_supernets():
    config = published_config()
    with pytest.raises(ValueError, match="become MosForMaskedLM or MosForSequenceClassification, not MosModel"):
        convert(config, published_tensors(config), model_class=MosModel)


# ---- checkpoints: tensors and files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bert.encoder.layer.1.arch_expert_fc2.2.bias", None, "lacks 'bert.encoder.layer.1.arch_expert_fc2.2.bias'"),
        ("bert.encoder.layer.0.intermediate.conv.weight", torch.ones(2), "not call for: .*intermediate.conv.weight"),
        ("bert.pooler.dense.weight", torch.ones(2), "does not call for: .'bert.pooler.dense.weight'"),
        (
            "bert.encoder.layer.0.other_output_experts.0.dense.weight",
            torch.ones(48, 36),
            r"other_output_experts.0.dense.weight' with the shape \[48, 36\]; its configuration calls for \[48, 37\]",
        ),
        ("bert.encoder.layer.0.arch_expert_fc1.0.weight", torch.ones(9, 12), r"the shape \[9, 12\]; .* \[9, 3\]"),
        ("bert.embeddings.word_embeddings.weight", torch.ones(98, 48), r"the shape \[98, 48\]; .* \[99, 48\]"),
        (
            "cls.predictions.decoder.weight",
            torch.ones(99, 48),
            "has a decoder of its own: 'cls.predictions.decoder.we",
        ),
        ("cls.predictions.decoder.bias", torch.ones(99), "has a decoder of its own: 'cls.predictions.decoder.bias'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name, value, message):
    config = published_config()
    tensors = published_tensors(config)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(ValueError, match=message):
        convert(config, tensors)


def test_many_unknown_tensors_are_counted():
    config = published_config("none")
    with pytest.raises(ValueError, match=r"other_intermediate_experts.* and \d+ more"):
        convert(config, published_tensors(published_config()))


def save_published(folder: Path, config: dict, tensors: dict, name: str = "pytorch_model.bin") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file(tensors, folder / name)
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_folders(tmp_path, name):
    config = published_config()
    tensors = published_tensors(config)
    # The decoder may be left out, being tied, and tensors may be in half precision.
    del tensors["cls.predictions.decoder.weight"], tensors["cls.predictions.decoder.bias"]
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    folder = save_published(tmp_path, config, tensors, name)
    model = supernet_from_published(folder, search_space=SPACES["widths"])
    assert model.dtype == torch.float32
    assert_same_function(model, tensors, config, "widths")
    whole = (folder / name).read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 30):
        (folder / name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{name}' is not a whole file of plain tensors"):
            supernet_from_published(folder, search_space=SPACES["widths"])


class Harm:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_run(tmp_path):
    config = published_config()
    tensors = {**published_tensors(config), "harm": Harm(tmp_path / "harm")}
    folder = save_published(tmp_path / "published", config, tensors)
    with pytest.raises(ValueError, match="is not a whole file of plain tensors"):
        supernet_from_published(folder, search_space=SPACES["widths"])
    assert not (tmp_path / "harm").exists()


def test_folders_that_are_no_checkpoints(tmp_path):
    config = published_config()
    with pytest.raises(
        FileNotFoundError, match="There is no '.*nope.config.json': a published checkpoint is a folder"
    ):
        supernet_from_published(tmp_path / "nope")
    with pytest.raises(FileNotFoundError, match="config.json"):
        supernet_from_published(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json' is not JSON"):
        supernet_from_published(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json' must hold a mapping, got a list"):
        supernet_from_published(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="has none of the files .*'pytorch_model.bin'"):
        supernet_from_published(tmp_path)
    torch.save({"model": {"weight": torch.ones(1)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors"):
        supernet_from_published(tmp_path)
    with pytest.raises(ValueError, match="A state dict needs its configuration"):
        supernet_from_published(published_tensors(config))


# ---- the script -----------------------------------------------------------------------------------------------------


def tiny_results(tmp_path: Path, name: str, width: int) -> str:
    config = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 37}
    config["sample_hidden_size"] = [width] * 3
    sheets = published_sheets(config, [width] * 3, ["sample_hidden_size"])
    return str(write_workbook(tmp_path / name, sheets))


def test_script(xlrd, tmp_path, load_example):
    script = load_example(SCRIPT)
    config = published_config(vocab_size=20_000)
    tensors = published_tensors(config)
    folder = save_published(tmp_path / "published", config, tensors)
    flags = ["--checkpoint", str(folder), "--search_space", json.dumps(SPACES["widths"])]
    results = [tiny_results(tmp_path, "large.xls", 36), tiny_results(tmp_path, "again.xls", 36)]
    output = tmp_path / "supernet"
    script.main([*flags, "--results", *results, "--output_dir", str(output)])
    model = AutoModelForMaskedLM.from_pretrained(output)
    assert_same_function(model, tensors, config, "widths")
    (entry,) = model.config.front
    assert entry["name"] == "1m" and entry["parameters"] == model.extract_subnet("1m").num_parameters()
    assert model.extract_subnet("1m").config.hidden_sizes == [36] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.xls", "large.xls", "published", "supernet"]
    # The second architecture has the same size in millions.
    results.append(tiny_results(tmp_path, "small.xls", 16))
    with pytest.raises(ValueError, match="Two results have an architecture of 1m"):
        script.main([*flags, "--results", *results, "--output_dir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_script_without_results(tmp_path, load_example):
    script = load_example(SCRIPT)
    config = published_config("layer 2L", "uniform")
    folder = save_published(tmp_path / "published", config, published_tensors(config, "uniform"))
    flags = ["--checkpoint", str(folder), "--search_space", json.dumps(SPACES["uniform"])]
    flags += ["--model_class", "MosForSequenceClassification", "--output_dir", str(tmp_path / "supernet")]
    model = script.main(flags)
    assert isinstance(model, MosForSequenceClassification) and model.config.front is None
    with pytest.raises(ValueError, match="--output_dir .* exists and is not empty"):
        script.main(flags)


def test_what_the_script_says(tmp_path, load_example, monkeypatch, capsys):
    script = load_example(SCRIPT)
    flags = ["--checkpoint", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["convert_published.py", *flags])
    with pytest.raises(SystemExit, match="^convert_published.py: .*config.json"):
        script.run_script(script.main)
    with pytest.raises(SystemExit):
        script.main(["--help"])
    assert "--results" in capsys.readouterr().out


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match="full"), write_folder_atomically(tmp_path / "runs" / "out") as folder:
        (folder / "half").write_text("")
        raise OSError("The disk is full.")
    assert not list((tmp_path / "runs").iterdir())
