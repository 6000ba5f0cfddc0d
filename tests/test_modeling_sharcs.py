# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Routed encoders: configuration, conversion, grouped inference, costs, calibration. See also test_modeling_common."""

import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoConfig,
    BertConfig,
)
from transformers.utils import logging

import modeling_sharcs
from modeling_sharcs import SharcsConfig, SharcsForSequenceClassification, SharcsModel
from modeling_sharcs.calibration import record
from modeling_sharcs.modeling_sharcs import choose_widths
from testing_utils import (
    AUTO_CLASSES,
    LAYOUTS,
    SHARCS_CLASSES,
    TINY,
    assert_close,
    main_outputs,
    make_batch,
    make_targets,
    no_complaints,
    randomise_,
    splitting_price,
    tiny_sharcs,
    tiny_sharcs_config,
)


# The strict dataclass wraps what a validator raises; its message is kept.
REFUSED = (ValueError, StrictDataclassError)
WIDTHS = [0.25, 0.5, 1.0]
ENTRIES = ("slice", "pooling", "projection")
OPTIONS = {"width_multipliers": WIDTHS, "router_layer": 1, "router_hidden_size": 9}
BACKBONES = {
    "bert": LAYOUTS["bert"],
    "roberta": LAYOUTS["roberta"],
    "xlm-roberta": LAYOUTS["roberta"],
    "distilbert": {},
    "electra": {"embedding_size": 20},
}
each_head = pytest.mark.parametrize("head", SHARCS_CLASSES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_entry = pytest.mark.parametrize("entry", ENTRIES)
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
each_backbone = pytest.mark.parametrize("kind", BACKBONES)


def tiny_backbone(kind: str = "bert", head: str = "sequence-classification", **overrides):
    """A stock model with random weights, in evaluation mode."""
    values = {**TINY, "intermediate_size": 36, **BACKBONES[kind]}
    if kind == "distilbert":
        values |= {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 36}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            del values[name]
    values["num_labels"] = 2 if head == "question-answering" else 3
    config = AutoConfig.for_model(kind, **{**values, **overrides})
    return randomise_(AUTO_CLASSES[head].from_config(config)).eval()


@torch.no_grad()
def balance_(model, batch):
    """A router under which the rows of a batch take every width, at a price about zero."""
    router = model.base_model.router
    router.output.weight.mul_(4)
    router.output.bias.sub_(model.base_model(**batch, width=1.0).router_logits.mean(dim=0))
    return model


def padded_batch(config, side: str = "right", batch: int = 6) -> dict[str, torch.Tensor]:
    inputs = make_batch(config, batch=batch, tokens=13)
    return {name: values.flip(1) for name, values in inputs.items()} if side == "left" else inputs


def row_of(batch: dict[str, torch.Tensor], row: int, trim: bool) -> dict[str, torch.Tensor]:
    """One row alone; trimmed, it has no padding and no mask."""
    mask = batch["attention_mask"][row].bool()
    if not trim:
        return {name: values[row : row + 1] for name, values in batch.items()}
    return {name: values[row : row + 1, mask] for name, values in batch.items() if name != "attention_mask"}


def assert_all_close(found, expected, **tolerance):
    assert len(found) == len(expected) and len(found) > 0
    for first, second in zip(found, expected, strict=True):
        assert_close(first, second, **tolerance)


# ---- configuration --------------------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones():
    config = SharcsConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.width_multipliers, config.router_layer, config.router_hidden_size) == ([0.25, 1.0], 3, 1024)
    assert (config.entry, config.norm_start, config.router_pooling) == ("slice", "copy", "masked")
    assert config.router_price is None and config.calibration is None
    assert (config.head_dim, config.embedding_size, config.model_type) == (64, 768, "sharcs")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"width_multipliers": []}, "width_multipliers is empty; give at least 1.0"),
        ({"width_multipliers": [0.5]}, r"The widths \[0.5\] do not hold 1.0, the backbone itself; add it"),
        (
            {"width_multipliers": [0.3, 1.0]},
            r"0.3 does not give whole heads \(1.2 of 4\); the nearest valid ones are 0.25 and 0.5",
        ),
        ({"width_multipliers": [0.5, 2.0]}, r"2.0 does not give whole heads \(8 of 4\)"),
        (
            {"width_multipliers": [float("nan"), 1.0]},
            "The width multiplier nan is no number; give shares",
        ),
        (
            {"width_multipliers": [float("inf"), 1.0]},
            "The width multiplier inf is no number; give shares",
        ),
        ({"width_multipliers": [0.0, 1.0]}, r"0.0 does not give whole heads \(0 of 4\)"),
        ({"width_multipliers": [0.25, 0.2501, 1.0]}, r"keep \[1, 1, 4\] heads; give each width once"),
        ({"width_multipliers": "1/3"}, "width_multipliers"),
        ({"width_multipliers": [0.25, "1.0"]}, "width_multipliers|not supported between"),
        ({"intermediate_size": 37}, "0.25 does not divide intermediate_size=37 .* the nearest valid one is 1"),
        ({"hidden_size": 50}, "0.25 does not divide hidden_size=50 .* the nearest valid one is 0.5"),
        (
            {"width_multipliers": [0.75, 1.0], "entry": "pooling"},
            r"'pooling' .* widths of the form 1/k, got 0.75; use entry='projection'",
        ),
        ({"router_layer": 0}, "router_layer=0 is outside the network of 3 layers: use 1 to 2"),
        ({"router_layer": 3}, "router_layer=3 is outside the network of 3 layers: use 1 to 2"),
        ({"router_hidden_size": 0}, "router_hidden_size must be at least 1, got 0"),
        ({"entry": "slise"}, "'entry' expected one of .*'slice', 'pooling', 'projection'.* got slise"),
        ({"norm_start": "ones"}, "'norm_start' expected one of"),
        ({"router_pooling": "cls"}, "'router_pooling' expected one of"),
        ({"backbone_model_type": "albert"}, "'backbone_model_type' expected one of .*'electra'.* got albert"),
        ({"router_price": "cheap"}, "router_price"),
        ({"router_layer": 1.5}, "router_layer"),
        ({"width_multiplier": [1.0]}, r"no field 'width_multiplier' .* did you mean 'width_multipliers'\?"),
        ({"router_layers": 2}, r"no field 'router_layers' .* did you mean 'router_layer'\?"),
    ],
)
def test_configuration_is_strict(values, message):
    with pytest.raises((*REFUSED, TypeError), match=message):
        tiny_sharcs_config(**values)


def test_assignments_are_checked():
    config = tiny_sharcs_config()
    config.router_price = 0.5
    for name, value in (("router_price", "0.5"), ("entry", "fold"), ("calibration", [1])):
        with pytest.raises(REFUSED, match=name):
            setattr(config, name, value)


@each_layout
def test_configuration_round_trips(layout, tmp_path):
    config = tiny_sharcs_config(
        layout,
        width_multipliers=[1.0, 0.75, 0.25],
        router_layer=2,
        router_pooling="all",
        entry="projection",
        norm_start="scratch",
        router_price=0.25,
        calibration={"rows": 2, "mean_length": 3.5, "table": [{"price": 0.25, "share": 0.5, "rows_per_width": [1.0]}]},
        embedding_size=20,
        head_dim=8,
        num_labels=2,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        problem_type="single_label_classification",
    )
    assert config.width_multipliers == [0.25, 0.75, 1.0]
    with no_complaints():
        config.save_pretrained(tmp_path)
        for loaded in (SharcsConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is SharcsConfig
            assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


def test_auto_map_is_complete():
    expected = {
        auto.__name__: f"modeling_sharcs.{SHARCS_CLASSES[head].__name__}"
        for head, auto in AUTO_CLASSES.items()
        if head in SHARCS_CLASSES
    }
    assert SharcsConfig().auto_map == {"AutoConfig": "configuration_sharcs.SharcsConfig", **expected}
    assert modeling_sharcs.__all__ == sorted(modeling_sharcs.__all__)
    for head, model_class in SHARCS_CLASSES.items():
        assert AUTO_CLASSES[head]._model_mapping[SharcsConfig] is model_class
        assert model_class.__name__ in modeling_sharcs.__all__
    assert all(hasattr(modeling_sharcs, name) for name in modeling_sharcs.__all__)


def test_another_checkpoint_is_refused(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    message = r"is a 'bert' model, SharcsConfig reads 'sharcs' checkpoints; .*from_backbone"
    for read in (SharcsConfig, SharcsForSequenceClassification):
        with pytest.raises(ValueError, match=message):
            read.from_pretrained(tmp_path)


# ---- published numbers ----------------------------------------------------------------------------------------------

ALL_WIDTHS = [0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0]


def test_published_sizes():
    config = SharcsConfig(width_multipliers=ALL_WIDTHS)
    assert [config.width_sizes(index) for index in range(6)] == [
        (192, 3, 768),
        (256, 4, 1024),
        (384, 6, 1536),
        (512, 8, 2048),
        (576, 9, 2304),
        (768, 12, 3072),
    ]


def on_meta(**overrides) -> SharcsModel:
    with torch.device("meta"):
        return SharcsModel(SharcsConfig(**overrides))


def test_published_router_size():
    assert sum(parameter.numel() for parameter in on_meta(num_hidden_layers=4).router.parameters()) == 789_506


@pytest.mark.parametrize(
    "tokens, width, layer",
    [
        (128, 1.0, 906_952_704),
        (128, 0.75, 510_345_216),
        (128, 2 / 3, 403_308_544),
        (128, 0.5, 226_983_936),
        (128, 1 / 3, 100_990_976),
        (128, 0.25, 56_868_864),
        (32, 1.0, 226_738_176),
        (32, 0.25, 14_217_216),
    ],
)
def test_published_flops(tokens, width, layer):
    model = on_meta(width_multipliers=sorted({width, 1.0}), num_hidden_layers=5)
    full = tokens * (12 * 768**2 + 10 * 768)
    router = 768 * 1024 + 1024 * len(model.config.width_multipliers)
    assert model.published_flops(tokens, width) == 3 * full + router + 2 * layer
    if len(model.config.width_multipliers) == 2:
        assert router == 788_480


def test_published_share_of_the_narrow_path():
    # Three of twelve layers full, the others at a quarter: 0.297 of the encoder, without the router.
    model = on_meta()
    router = 788_480
    share = (model.published_flops(128, 0.25) - router) / (model.published_flops(128, 1.0) - router)
    assert share == pytest.approx(0.297, abs=5e-4)


# ---- conversion -----------------------------------------------------------------------------------------------------


@each_backbone
@each_head
def test_the_widest_path_is_the_backbone(kind, head):
    backbone = tiny_backbone(kind, head)
    for entry, norm_start in itertools.product(ENTRIES, ("copy", "scratch")):
        model = SHARCS_CLASSES[head].from_backbone(backbone, **OPTIONS, entry=entry, norm_start=norm_start)
        batch = make_batch(model.config)
        with torch.no_grad():
            expected = main_outputs(backbone(**batch))
            for forced in ({}, {"width": 1.0}):
                found = main_outputs(model(**batch, **forced))
                assert_all_close(found, expected[: len(found)])  # a pooler's output is not ours
            # Routed rows that take it, too.
            routed = model(**batch, router_price=-1e9)
            assert routed.width_indices.tolist() == [2, 2, 2]
            real = batch["attention_mask"].bool()
            for first, second in zip(main_outputs(routed), expected, strict=False):
                per_token = second.shape[:2] == real.shape
                assert_close(first[real] if per_token else first, second[real] if per_token else second)
            narrow = main_outputs(model(**batch, width=0.25))[0]
            assert (narrow - expected[0]).abs().max() > 1e-3


@each_backbone
@each_head
def test_dropout_is_in_the_backbones_places(kind, head):
    """With one seed, the widest path drops what the backbone drops: the same draws in the same order. All layers are
    whole here; without hidden states, a classifier's last one would end for its first token only. And attention is
    eager: for sdpa, a CPU draws other numbers (test_dropout_attention.py)."""
    whole = {"output_hidden_states": True}
    backbone = tiny_backbone(kind, head)
    model = SHARCS_CLASSES[head].from_backbone(backbone, **OPTIONS)
    batch, found = make_batch(model.config), []
    for module, options in ((backbone, {}), (model, {"width": 1.0})):
        module.train().set_attn_implementation("eager")
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(main_outputs(module(**batch, **options, **whole)))
    assert_all_close(found[1], found[0][: len(found[1])])
    backbone.eval()
    assert (main_outputs(backbone(**batch))[0] - found[0][0]).abs().max() > 1e-3


@each_backbone
def test_from_a_folder(kind, tmp_path):
    backbone = tiny_backbone(kind, "sequence-classification")
    backbone.save_pretrained(tmp_path)
    for source in (str(tmp_path), tmp_path):
        model = SharcsForSequenceClassification.from_backbone(source, **OPTIONS)
        batch = make_batch(model.config)
        assert_close(model(**batch).logits, backbone(**batch).logits)
        assert not model.training


@each_backbone
def test_norms_start(kind):
    backbone = tiny_backbone(kind, "base")
    norms = ("attention_norm", "output_norm")
    for norm_start in ("copy", "scratch"):
        model = SharcsModel.from_backbone(backbone, **OPTIONS, norm_start=norm_start)
        assert model.layers[0].output_norm.weight.shape == (1, 48)
        for layer, name in itertools.product(model.layers[1:], norms):
            weight, bias = getattr(layer, name).weight, getattr(layer, name).bias
            assert weight.shape == bias.shape == (3, 48) and weight[2].std() > 0.1 and bias[2].std() > 0.1
            for index in range(2):
                assert_close(weight[index], weight[2] if norm_start == "copy" else torch.ones(48), atol=0, rtol=0)
                assert_close(bias[index], bias[2] if norm_start == "copy" else torch.zeros(48), atol=0, rtol=0)


def storages(model) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in itertools.chain(model.parameters(), model.buffers())}


@each_head
def test_weights_are_copied_not_shared(head):
    backbone = tiny_backbone("bert", head)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = SHARCS_CLASSES[head].from_backbone(backbone, **OPTIONS)
    assert not storages(model) & storages(backbone)
    randomise_(model, seed=3)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


@each_backbone
@pytest.mark.parametrize("from_folder", [False, True])
def test_what_the_head_knows_is_kept(kind, from_folder, tmp_path):
    labels = {0: "bad", 1: "fair", 2: "good", 3: "great"}
    names = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    backbone = tiny_backbone(kind, num_labels=4, **names, problem_type="multi_label_classification")
    backbone.save_pretrained(tmp_path)
    source = str(tmp_path) if from_folder else backbone
    for kwargs in ({}, {"num_labels": 4}):
        model = SharcsForSequenceClassification.from_backbone(source, **OPTIONS, **kwargs)
        assert model.config.id2label == labels and model.config.label2id["great"] == 3
        assert model.config.num_labels == 4 and model.config.problem_type == "multi_label_classification"
        assert model.config.backbone_model_type == kind
        batch = make_batch(model.config)
        assert_close(model(**batch).logits, backbone(**batch).logits)
    model = SharcsForSequenceClassification.from_backbone(
        source, **OPTIONS, num_labels=7, problem_type="single_label_classification"
    )
    assert model.config.num_labels == len(model.config.id2label) == model.classifier.out_proj.out_features == 7
    assert model.config.problem_type == "single_label_classification"
    # The part of the head that still fits is kept.
    stock = dict(backbone.named_parameters())
    name = {"bert": "bert.pooler.dense", "distilbert": "pre_classifier"}.get(kind, "classifier.dense")
    assert_close(model.classifier.dense.weight, stock[f"{name}.weight"], atol=0, rtol=0)


@each_backbone
@pytest.mark.parametrize("from_folder", [False, True])
def test_another_head_starts_new(kind, from_folder, tmp_path):
    backbone = tiny_backbone(kind, "masked-lm")
    backbone.save_pretrained(tmp_path)
    source = str(tmp_path) if from_folder else backbone
    for head, model_class in SHARCS_CLASSES.items():
        kwargs = {} if head in ("base", "question-answering") else {"num_labels": 5}
        model = model_class.from_backbone(source, **OPTIONS, **kwargs)
        batch = make_batch(model.config)
        found = model.base_model(**batch).last_hidden_state
        assert_close(found, backbone.base_model(**batch).last_hidden_state)
        assert all(output.isfinite().all() for output in main_outputs(model(**batch)))
        if kwargs:
            assert model(**batch).logits.shape[-1] == 5


@each_backbone
@pytest.mark.parametrize("from_folder", [False, True])
def test_dropout_can_be_overridden(kind, from_folder, tmp_path):
    backbone = tiny_backbone(kind)
    backbone.save_pretrained(tmp_path)
    values = {"hidden_dropout_prob": 0.21, "attention_probs_dropout_prob": 0.22, "classifier_dropout": 0.23}
    source = str(tmp_path) if from_folder else backbone
    model = SharcsForSequenceClassification.from_backbone(source, **OPTIONS, **values)
    assert {name: getattr(model.config, name) for name in values} == values
    assert model.classifier.dropout.p == 0.23 and model.sharcs.layers[0].dropout.p == 0.21


def test_fields_of_the_configuration_are_taken():
    fields = {
        "width_multipliers": [1.0, 0.75],
        "router_layer": 2,
        "router_hidden_size": 5,
        "router_pooling": "all",
        "entry": "projection",
        "norm_start": "scratch",
    }
    config = SharcsModel.from_backbone(tiny_backbone(head="base"), **fields).config
    assert {name: getattr(config, name) for name in fields} == {**fields, "width_multipliers": [0.75, 1.0]}


def test_a_backbone_that_is_partitioned_over_processes_is_refused():
    backbone = tiny_backbone()
    backbone.get_input_embeddings().weight.ds_id = 0  # as DeepSpeed's ZeRO-3 marks what it has partitioned
    with pytest.raises(ValueError, match="partitioned over processes .*; make the routed encoder without DeepSpeed"):
        SharcsForSequenceClassification.from_backbone(backbone, **OPTIONS)


def test_mode_type_and_attention_follow_the_backbone(tmp_path):
    backbone = tiny_backbone().train().to(torch.bfloat16)
    backbone.set_attn_implementation("eager")
    model = SharcsForSequenceClassification.from_backbone(backbone, **OPTIONS)
    assert model.training and model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    backbone.float().save_pretrained(tmp_path)
    model = SharcsForSequenceClassification.from_backbone(
        str(tmp_path), **OPTIONS, attn_implementation="eager", dtype=torch.bfloat16
    )
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"width_multiplier": [1.0]},
            r"`from_backbone` has no argument 'width_multiplier' .* it takes .*router_layer",
        ),
        ({"hidden_size": 32}, r"`from_backbone` has no argument 'hidden_size' \(given 32\)"),
        ({"revision": "main"}, r"\['revision'\] only apply when a name or folder is given"),
        ({"width_multipliers": [0.3, 1.0]}, "0.3 does not give whole heads"),
        ({"router_layer": 9}, "router_layer=9 is outside the network of 3 layers"),
    ],
)
def test_arguments_are_checked(kwargs, message):
    with pytest.raises(REFUSED, match=message):
        SharcsForSequenceClassification.from_backbone(tiny_backbone(), **{**OPTIONS, **kwargs})


def test_other_families_are_refused(tmp_path):
    sizes = {"vocab_size": 99, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 36}
    albert = AlbertModel(AlbertConfig(**sizes, embedding_size=8))
    albert.save_pretrained(tmp_path)
    message = r"A backbone of model type 'albert' is not supported; supported are \['bert', .*'electra'\]"
    for source in (albert, str(tmp_path)):
        with pytest.raises(ValueError, match=message):
            SharcsModel.from_backbone(source)
    with pytest.raises(ValueError, match="model type 'sharcs' is not supported; .* loaded with `from_pretrained`"):
        SharcsModel.from_backbone(tiny_sharcs("base"))
    with pytest.raises(ValueError, match="is_decoder=True is not supported"):
        SharcsModel.from_backbone(tiny_backbone(head="base", is_decoder=True))


# ---- narrow BERTs (DynaBERT): fewer heads of the full size, a smaller feed-forward ----------------------------------


def narrow_folder(folder, kept: int, config_says: str, file: str = "model.safetensors"):
    """A BERT without its last heads and neurons, and a stock one in which they reach nothing."""
    backbone = tiny_backbone()
    inner, neurons = 12 * kept, 9 * kept
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    with torch.no_grad():
        for layer in backbone.bert.encoder.layer:
            layer.attention.output.dense.weight[:, inner:] = 0
            layer.output.dense.weight[:, neurons:] = 0
    for name in state:
        if re.search(r"self\.(query|key|value)\.", name):
            state[name] = state[name][:inner]
        elif "attention.output.dense.weight" in name:
            state[name] = state[name][:, :inner]
        elif "intermediate.dense" in name:
            state[name] = state[name][:neurons]
        elif "output.dense.weight" in name:
            state[name] = state[name][:, :neurons]
        state[name] = state[name].contiguous()
    values = backbone.config.to_dict() | {"architectures": ["BertForSequenceClassification"]}
    if config_says != "full":
        values |= {"num_attention_heads": kept, "intermediate_size": neurons}
    if config_says == "head size":
        values |= {"attention_head_size": 12}
    (folder / "config.json").write_text(json.dumps(values))
    if file == "model.safetensors":
        from safetensors.torch import save_file

        save_file(state, folder / file)
    else:
        names = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for (new, old), name in itertools.product(names, list(state)):
            if name.endswith(new):
                state[name.replace(new, old)] = state.pop(name)
        state["bert.embeddings.position_ids"] = torch.arange(40).unsqueeze(0)  # in old files
        torch.save(state, folder / file)
    return backbone


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("config_says", ["full", "narrow", "head size"])
@pytest.mark.parametrize("kept", [2, 3])
def test_narrow_folder(kept, config_says, file, tmp_path):
    backbone = narrow_folder(tmp_path, kept, config_says, file)
    widths = [count / kept for count in range(1, kept + 1)]
    model = SharcsForSequenceClassification.from_backbone(
        str(tmp_path), width_multipliers=widths, router_layer=1, router_hidden_size=9
    )
    config = model.config
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (kept, 12, 9 * kept)
    assert config.hidden_size == 48 and config.width_sizes(0) == (48 // kept, 1, 9)
    assert model.sharcs.layers[0].attention.query.weight.shape == (12 * kept, 48)
    batch = make_batch(config)
    assert_close(model(**batch).logits, backbone(**batch).logits)
    # Its narrow paths run, and it is saved and opened like any other.
    balance_(model, batch)
    model.config.router_price = splitting_price(model, batch)
    model.save_pretrained(tmp_path / "again")
    again = SharcsForSequenceClassification.from_pretrained(tmp_path / "again")
    assert again.config.head_dim == 12
    with torch.no_grad():
        assert_close(again(**batch).logits, model(**batch).logits, atol=0, rtol=0)
        assert model(**batch, width=1 / kept).logits.isfinite().all()
    assert not model.training


def test_arguments_for_a_narrow_folder(tmp_path):
    narrow_folder(tmp_path, 3, "narrow")
    with pytest.raises(REFUSED, match=r"0.25 does not give whole heads \(0.75 of 3\); .* 0.333333 and 0.666667"):
        SharcsForSequenceClassification.from_backbone(str(tmp_path), **OPTIONS)
    options = {**OPTIONS, "width_multipliers": [1 / 3, 1.0]}
    model = SharcsForSequenceClassification.from_backbone(
        str(tmp_path), **options, dtype="bfloat16", attn_implementation="eager", num_labels=5, classifier_dropout=0.3
    )
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert model.config.num_labels == 5 and model.config.classifier_dropout == 0.3
    assert SharcsForSequenceClassification.from_backbone(tmp_path, **options).dtype == torch.float32


@each_head
def test_a_folder_from_before_there_was_a_model_type(head, tmp_path):
    backbone = tiny_backbone("bert", head)
    backbone.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["model_type"]
    path.write_text(json.dumps(stored))
    model = SHARCS_CLASSES[head].from_backbone(str(tmp_path), width_multipliers=[0.25, 1.0], router_layer=1)
    batch = make_batch(model.config)
    with torch.no_grad():
        assert_close(model(**batch, width=1.0)[0], backbone(**batch)[0])


@pytest.mark.parametrize(
    "head, name",
    [
        ("sequence-classification", "seq_classif_dropout"),
        ("token-classification", "dropout"),
        ("question-answering", "qa_dropout"),
    ],
)
def test_heads_of_distilbert_drop_out_as_they_do(head, name):
    rates = {"seq_classif_dropout": 0.3, "dropout": 0.2, "qa_dropout": 0.4}
    model = SHARCS_CLASSES[head].from_backbone(tiny_backbone("distilbert", head, **rates), router_layer=1)
    owner = model.classifier if head == "sequence-classification" else model
    assert owner.dropout.p == rates[name]


def test_a_folder_without_all_weights_is_refused(tmp_path):
    narrow_folder(tmp_path, 3, "narrow", "pytorch_model.bin")
    state = torch.load(tmp_path / "pytorch_model.bin")
    del state["bert.encoder.layer.2.attention.self.key.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights for '.*layers.2.attention.key.weight'; is it a whole bert\?"):
        SharcsForSequenceClassification.from_backbone(
            tmp_path, width_multipliers=[1 / 3, 1.0], router_layer=1, router_hidden_size=9
        )


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, index, group", [(0.25, 0, 4), (0.5, 1, 2)])
def test_pooling_is_a_weighted_mean_of_neighbours(width, index, group):
    model = tiny_sharcs("base", entry="pooling")
    entry, size = model.entry, round(48 * width)
    hidden = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    pooled = torch.empty(2, 3, size)
    for channel in range(size):
        neighbours = [hidden[..., channel * group + place] * entry.pooling[index, place] for place in range(group)]
        pooled[..., channel] = sum(neighbours).detach()
    expected = F.layer_norm(pooled, (size,), entry.norm.weight[index, :size], entry.norm.bias[index, :size], 1e-12)
    assert_close(entry(hidden, index), expected)
    assert entry(hidden, 2) is hidden
    fresh = SharcsModel(tiny_sharcs_config(entry="pooling")).entry.pooling
    assert_close(fresh[index, :group], torch.full((group,), 1 / group))


@pytest.mark.parametrize("norm_start", ["copy", "scratch"])
def test_projection_starts_as_the_slice(norm_start):
    backbone = tiny_backbone(head="base")
    models = [
        SharcsModel.from_backbone(backbone, **OPTIONS, norm_start=norm_start, entry=entry)
        for entry in ("slice", "projection")
    ]
    batch = make_batch(models[0].config)
    for width in WIDTHS:
        found = [model(**batch, width=width).last_hidden_state for model in models]
        assert_close(found[1], found[0])


@pytest.mark.parametrize("entry", ["slice", "projection"])
def test_the_entry_norm_leaves_the_slice(entry):
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 2, "intermediate_size": 16}
    backbone = tiny_backbone(head="base", **sizes)
    before = backbone.encoder.layer[0].output.LayerNorm
    with torch.no_grad():
        before.weight.mul_(3)
        before.bias.add_(2)
    hidden = before(torch.randn(4, 5, 512, generator=torch.Generator().manual_seed(0)))
    errors = {}
    for norm_start in ("copy", "scratch"):
        model = SharcsModel.from_backbone(backbone, **OPTIONS, entry=entry, norm_start=norm_start)
        for index, size in enumerate((128, 256)):
            found, kept = model.entry(hidden, index), hidden[..., :size]
            errors[norm_start, index] = ((found - kept).norm() / kept.norm()).item()
    for index in range(2):
        assert errors["copy", index] < 0.15 and errors["scratch", index] > 0.5


def test_the_router_ignores_padding():
    hidden = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    mask[2, :3] = 0
    for pooling in ("masked", "all"):
        router = tiny_sharcs("base", router_pooling=pooling).router
        found = router(hidden, mask)
        for row in range(3):
            rows = hidden[row, mask[row].bool()] if pooling == "masked" else hidden[row]
            inner = torch.relu(router.hidden.weight @ rows.mean(dim=0) + router.hidden.bias)
            assert_close(found[row], router.output.weight @ inner + router.output.bias)
        spoilt = torch.where(mask.bool().unsqueeze(-1), hidden, torch.full_like(hidden, 9.0))
        change = (router(spoilt, mask) - found).abs().amax(dim=-1)
        assert change[0] == 0
        assert (change[1:] < 1e-4).all() if pooling == "masked" else (change[1:] > 1e-2).all()
        assert_close(router(hidden, None), router(hidden, torch.ones_like(mask)))


def test_the_router_scores_in_float32():
    """In bfloat16, scores that are 0.001 apart would be equal, and all such rows take one width at any price."""
    router = tiny_sharcs("base").router
    hidden = torch.randn(5, 7, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.ones(5, 7, dtype=torch.long)
    expected = router(hidden.float(), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = router(hidden, mask)
    assert found.dtype == torch.float32
    assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert router.bfloat16()(hidden, mask).dtype == torch.float32
    # Not less than it is given, either, and through modules, which hooks and adapters see.
    called = []
    for module in (router.hidden, router.output):
        module.register_forward_hook(lambda module, given, made: called.append(made.dtype))
    router.double()(hidden.double(), mask)
    assert called == [torch.float64, torch.float64]


@each_entry
@each_head
def test_a_narrow_pass_trains_its_slice_only(head, entry):
    model = tiny_sharcs(head, entry=entry).train()
    batch = make_batch(model.config)
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    outputs = model(**batch, **targets, width=0.25)
    (outputs.last_hidden_state.pow(3).sum() if head == "base" else outputs.loss).backward()
    size, inner, neurons = 12, 12, 9

    def check(gradient: torch.Tensor, *leading, expected: bool = True):
        """`gradient` is exactly zero outside the leading block, and not inside."""
        inside = gradient.clone()
        gradient[tuple(slice(0, count) for count in leading)] = 0
        assert not gradient.any()
        assert inside.any() or not expected

    for index, layer in enumerate(model.base_model.layers):
        if index < 1:
            assert (layer.output.weight.grad.abs().amax(dim=0) > 0).all()
            assert layer.intermediate.weight.grad.shape == (36, 48) and layer.intermediate.weight.grad[-1].any()
            continue
        for name in ("query", "key", "value"):
            linear = getattr(layer.attention, name)
            check(linear.weight.grad, inner, size)
            check(linear.bias.grad, inner, expected=name != "key")
        check(layer.attention.output.weight.grad, size, inner)
        check(layer.intermediate.weight.grad, neurons, size)
        check(layer.output.weight.grad, size, neurons)
        for norm in (layer.attention_norm, layer.output_norm):
            check(norm.weight.grad, 1, size)
            check(norm.bias.grad, 1, size)
    check(model.base_model.entry.norm.weight.grad, 1, size)
    if entry == "pooling":
        check(model.base_model.entry.pooling.grad, 1, 4)
    elif entry == "projection":
        check(model.base_model.entry.projection.weight.grad, size, 48)
    heads = {"sequence-classification": "classifier.dense", "token-classification": "classifier"}
    if head != "base":
        first = model.get_submodule(heads.get(head, "qa_outputs")).weight.grad
        check(first, first.shape[0], size)
    assert all(parameter.grad is None for parameter in model.base_model.router.parameters())


@pytest.mark.parametrize("problem", ["regression", "single_label_classification", "multi_label_classification", None])
def test_classification_loss_is_the_stock_one(problem):
    count = 1 if problem == "regression" else 3
    backbone = tiny_backbone(num_labels=count, problem_type=problem)
    model = SharcsForSequenceClassification.from_backbone(backbone, **OPTIONS)
    batch = make_batch(model.config)
    labels = torch.tensor([0, 2, 1])
    if problem == "regression":
        labels = torch.tensor([0.5, -1.0, 2.0])
    elif problem == "multi_label_classification":
        labels = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 0]])
    expected = backbone(**batch, labels=labels).loss
    assert_close(model(**batch, labels=labels).loss, expected)
    if problem == "regression":
        assert_close(model(**batch, labels=labels.unsqueeze(1)).loss, expected)


@pytest.mark.parametrize("head", ["token-classification", "question-answering"])
def test_losses_per_token_are_the_stock_ones(head):
    backbone = tiny_backbone(head=head)
    model = SHARCS_CLASSES[head].from_backbone(backbone, **OPTIONS)
    batch = make_batch(model.config)
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    if head == "question-answering":
        targets["end_positions"][1] = 77  # outside the sequence
    assert_close(model(**batch, **targets).loss, backbone(**batch, **targets).loss)


def test_token_embeddings_can_be_resized():
    model = tiny_sharcs()
    batch = make_batch(model.config)
    batch["input_ids"] = batch["input_ids"].clamp(max=80)
    before = model(**batch).logits
    model.resize_token_embeddings(107, mean_resizing=False)
    assert model.config.vocab_size == 107 == model.sharcs.embeddings.word_embeddings.num_embeddings
    assert_close(model(**batch).logits, before)


@each_head
def test_another_width_goes_on_from_what_all_have_in_common(head):
    model = tiny_sharcs(head, router_price=0.0)
    batch = padded_batch(model.config)
    mask = {"attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        front = model(**batch, width=1.0, output_hidden_states=True).hidden_states[model.config.router_layer]
        assert torch.equal(model.base_model.run_front(**batch), front)
        with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
            model.base_model.run_front(**mask)
        with pytest.raises(ValueError, match=r"must have the shape \(batch, tokens\), got 3 axes"):
            model.base_model.run_front(batch["input_ids"], batch["attention_mask"][:, None])
        for options in ({"width": 0.25}, {"width": 0.5}, {}):
            found, expected = model(**mask, **options, front_state=front), model(**batch, **options)
            assert_all_close(found.to_tuple(), expected.to_tuple())
        states = model(**mask, width=0.5, front_state=front, output_hidden_states=True).hidden_states
    assert states[0] is front and len(states) == 1 + model.config.num_hidden_layers - model.config.router_layer


def test_training_without_a_width_says_what_it_trains(caplog):
    model = tiny_sharcs().train()
    batch = make_batch(model.config)
    logging.warning_once.cache_clear()
    for options in ({"width": 1.0}, {"width": 0.25}):
        model(**batch, **options)
    model.eval()(**batch)
    single = tiny_sharcs(width_multipliers=[1.0]).train()
    single(**make_batch(single.config))
    assert not caplog.records
    for _ in range(2):
        model.train()(**batch)
    (record,) = caplog.records
    assert "all rows take the widest path" in record.message and "`trainers.SharcsTrainer`" in record.message


def test_messages_of_the_forward_pass():
    model = tiny_sharcs(router_price=0.0)
    batch = make_batch(model.config)
    with pytest.raises(ValueError, match=r"This model has the widths \[0.25, 0.5, 1.0\], not 0.75"):
        model(**batch, width=0.75)
    with pytest.raises(
        TypeError, match=r"one of \[0.25, 0.5, 1.0\], got \[0.25\]; without it, rows are routed one by"
    ):
        model(**batch, width=[0.25])
    for width in (True, torch.tensor(True), np.bool_(True), "0.25"):
        with pytest.raises(TypeError, match="is one number for all rows, .* got .*(True|'0.25')"):
            model(**batch, width=width)
    for width in (0.25, torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25)):
        assert model.width_index(width) == 0
    with pytest.raises(TypeError, match=r"got tensor\(\[0.2500, 0.5000\]\)"):
        model(**batch, width=torch.tensor([0.25, 0.5]))
    for wanted in ("output_hidden_states", "output_attentions"):
        with pytest.raises(ValueError, match="of routed rows differ in shape; give a `width`"):
            model(**batch, **{wanted: True})
    assert len(model(**batch, output_hidden_states=True, width=0.5).hidden_states) == 4
    batch["attention_mask"] = torch.ones(3, 11, 11)
    with pytest.raises(ValueError, match=r"must have the shape \(batch, tokens\), got 3 axes"):
        model(**batch)


# ---- routing --------------------------------------------------------------------------------------------------------


@each_head
@each_layout
@each_attention
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_grouped_batch_is_its_rows_one_by_one(head, layout, attention, side):
    model = tiny_sharcs(head, layout)
    model.set_attn_implementation(attention)
    batch = padded_batch(model.config, side)
    balance_(model, batch)
    model.config.router_price = splitting_price(model, batch, widths=3)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        together = model(**batch)
        assert sorted(set(together.width_indices.tolist())) == [0, 1, 2]
        scores = together.router_logits - model.config.router_price * torch.tensor(model.base_model.relative_costs())
        assert together.width_indices.tolist() == scores.argmax(dim=-1).tolist()
        for row in range(len(real)):
            # Positions count from the left in BERT, and classification reads the leftmost token: padding has to stay.
            trim = side == "right" or (layout == "roberta" and head != "sequence-classification")
            inputs = row_of(batch, row, trim)
            alone = model(**inputs)
            index = together.width_indices[row].item()
            assert alone.width_indices.tolist() == [index]
            assert_close(alone.router_logits[0], together.router_logits[row])
            forced = model(**inputs, width=WIDTHS[index])
            assert forced.width_indices.tolist() == [index]
            outputs = zip(main_outputs(together), main_outputs(alone), main_outputs(forced), strict=True)
            for whole, single, narrow in outputs:
                if whole.shape[:2] == real.shape:
                    single, narrow = (each[0] if trim else each[0, real[row]] for each in (single, narrow))
                    whole = whole[row, real[row]]
                else:
                    whole, single, narrow = whole[row], single[0], narrow[0]
                assert_close(single, whole)
                assert_close(narrow, whole)


@each_attention
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_grouped_batch_under_autocast(attention, side):
    model = tiny_sharcs("base")
    model.set_attn_implementation(attention)
    batch = padded_batch(model.config, side)
    balance_(model, batch)
    real = batch["attention_mask"].bool()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        price = splitting_price(model, batch)
        together = model(**batch, router_price=price)
        assert len(set(together.width_indices.tolist())) > 1
        for row, index in enumerate(together.width_indices.tolist()):
            alone = model(**row_of(batch, row, trim=False), router_price=price)
            assert alone.width_indices.tolist() == [index]
            found, expected = alone.last_hidden_state[0, real[row]], together.last_hidden_state[row, real[row]]
            assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_of_one_width(side):
    model = tiny_sharcs("base")
    batch = padded_batch(model.config, side, batch=4)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        for price, index in ((1e9, 0), (-1e9, 2)):
            routed, forced = model(**batch, router_price=price), model(**batch, width=WIDTHS[index])
            assert routed.width_indices.tolist() == [index] * 4 == forced.width_indices.tolist()
            assert_close(routed.last_hidden_state[real], forced.last_hidden_state[real])
        # The same without a mask, and for a batch of nothing but padding in one row.
        batch["attention_mask"][1] = 0
        assert model(**batch, router_price=0.0).last_hidden_state.isfinite().all()
        del batch["attention_mask"]
        routed, forced = model(**batch, router_price=1e9), model(**batch, width=0.25)
        assert_close(routed.last_hidden_state, forced.last_hidden_state)


def test_narrow_rows_and_trimmed_padding_are_zero():
    model = tiny_sharcs("base")
    batch = padded_batch(model.config)
    balance_(model, batch)
    with torch.no_grad():
        outputs = model(**batch, router_price=splitting_price(model, batch, widths=3))
    lengths = batch["attention_mask"].sum(dim=1)
    for index, size in enumerate((12, 24, 48)):
        rows = outputs.width_indices == index
        states = outputs.last_hidden_state[rows]
        assert states[..., :size].any() and not states[..., size:].any()
        assert not states[:, lengths[rows].max() :].any()
        # Nothing but the group's own padding is left.
        assert states[:, lengths[rows].max() - 1].any()


def test_when_rows_are_routed():
    model = tiny_sharcs(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = padded_batch(model.config)
    balance_(model, batch)
    price = splitting_price(model, batch, widths=3)
    with torch.no_grad():
        widest = model(**batch, width=1.0)
        assert widest.width_indices.tolist() == [2] * 6

        def is_widest(outputs) -> bool:
            same = torch.equal(outputs.logits, widest.logits)
            assert same == (outputs.width_indices.tolist() == [2] * 6)
            return same

        assert model.config.router_price is None and is_widest(model(**batch))
        routed = model(**batch, router_price=price)
        assert not is_widest(routed)
        model.config.router_price = price
        assert torch.equal(model(**batch).logits, routed.logits)
        # The call's price goes before the configuration's, zero included; a width before either.
        assert model(**batch, router_price=1e9).width_indices.tolist() == [0] * 6
        model.config.router_price = 1e9
        at_zero = model(**batch, router_price=0.0)
        assert (
            2 in at_zero.width_indices
            and at_zero.width_indices.tolist() == at_zero.router_logits.argmax(dim=-1).tolist()
        )
        assert is_widest(model(**batch, width=1.0, router_price=1e9))
        assert model.config.router_price == 1e9
        model.train()
        assert is_widest(model(**batch)) and is_widest(model(**batch, router_price=1e9))
        assert model(**batch, width=0.5).width_indices.tolist() == [1] * 6


def test_texts_are_no_batches():
    with pytest.raises(ValueError, match="reads batches of model inputs by name, got a str; tokenize texts first"):
        tiny_sharcs().calibrate(["a text"])
    with pytest.raises(ValueError, match="got a row without tensors; tokenize texts first, and give a DataLoader"):
        tiny_sharcs().calibrate([{"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1]}])


def test_a_single_width_has_no_router():
    model = tiny_sharcs(width_multipliers=[1.0])
    batch = make_batch(model.config)
    outputs = model(**batch, router_price=1.0)
    assert outputs.router_logits is None and outputs.width_indices.tolist() == [0, 0, 0]
    assert not [name for name, _ in model.named_parameters() if "router" in name or "entry" in name]
    with pytest.raises(ValueError, match="a single width has no router to calibrate"):
        model.calibrate([batch])


class Waits(TorchDispatchMode):
    """
    Lists operations for whose result the host has to wait where they run on an accelerator. What torch does for
    `bool(tensor)`, `x[booleans]` and the like comes to light here whoever calls it; reading a tensor that is on the
    CPU already, as `tolist` does here, does not.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, target = operation.overloadpacket.__name__, (kwargs or {}).get("device")
        indexed_by = args[1] if name in ("index", "index_put", "index_put_") else ()
        if (
            name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")
            or any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indexed_by)
            or (name == "_to_copy" and target is not None and torch.device(target) != args[0].device)
        ):
            self.seen.append(name)
        return operation(*args, **(kwargs or {}))


def test_what_waits_is_seen():
    values = torch.arange(3)
    with Waits() as waits:
        assert bool(values.any()) and values[values > 0].sum() == 3 and values.sum().item() == 3
        values.to("meta")
        values[torch.tensor([1, 0])].to(torch.float)
    assert waits.seen == ["_local_scalar_dense", "index", *["_local_scalar_dense"] * 2, "_to_copy"]


MASKS = {
    "right": lambda config: padded_batch(config),
    "left": lambda config: padded_batch(config, "left"),
    "full": lambda config: make_batch(config, batch=6, padding=False),
    "none": lambda config: {"input_ids": make_batch(config, batch=6, padding=False)["input_ids"]},
}


@each_attention
@pytest.mark.parametrize("padding", MASKS)
def test_one_synchronisation_with_the_device(attention, padding, monkeypatch):
    model = tiny_sharcs()
    model.set_attn_implementation(attention)
    batch = MASKS[padding](model.config)
    balance_(model, batch)
    price = splitting_price(model, batch, widths=3)
    calls = []

    def watch(owner, name: str):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            # The eager mask of transformers 5.17 copies a zero.
            if not (name == "tensor" and sys._getframe(1).f_code.co_filename.endswith("masking_utils.py")):
                calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    with monkeypatch.context() as monkeypatch, torch.no_grad():
        for name in ("tolist", "item", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            watch(torch.Tensor, name)
        # What is made of a list is copied to the device, which is waited for as well.
        for name in ("tensor", "as_tensor", "nonzero", "masked_select"):
            watch(torch, name)
        with Waits() as waits:
            outputs = model(**batch, router_price=price)
        assert calls == ["tolist"] and not waits.seen
        calls.clear()
        with Waits() as waits:
            model(**batch, width=0.25)
        # transformers looks whether a mask masks anything, in stock models too.
        looks = int("attention_mask" in batch)
        assert calls == ["__bool__"] * looks and waits.seen == ["_local_scalar_dense"] * looks
    assert len(outputs.width_indices.unique()) == 3


def masks_of_routed_layers(model, batch, price) -> list[torch.Tensor | None]:
    """What the last layer got as its mask, group after group."""
    masks = []
    handle = model.base_model.layers[-1].register_forward_pre_hook(lambda layer, inputs: masks.append(inputs[1]))
    with torch.no_grad():
        model(**batch, router_price=price)
    handle.remove()
    return masks


@each_attention
@pytest.mark.parametrize("padding", MASKS)
def test_groups_without_padding_have_no_mask(attention, padding):
    model = tiny_sharcs("base")
    model.set_attn_implementation(attention)
    batch = MASKS[padding](model.config)
    masks = masks_of_routed_layers(model, batch, -1e9)
    assert len(masks) == 1 and (masks[0] is not None) == (padding in ("right", "left"))
    # Six rows of the same five tokens among thirteen: on the right they are trimmed, on the left they have to stay.
    if padding in ("right", "left"):
        real = torch.arange(13) < 5
        batch["attention_mask"][:] = (real if padding == "right" else real.flip(0)).long()
        (mask,) = masks_of_routed_layers(model, batch, -1e9)
        assert (mask is None) == (padding == "right")
        if mask is not None:
            assert mask.shape == (6, 1, 13, 13)
            assert torch.equal(mask == 0, real.flip(0).expand(6, 1, 13, 13))


def test_masks_of_other_kinds_are_cut_or_made_anew(monkeypatch):
    class Blocks:
        """Stands for the blocks of flex attention."""

    model = tiny_sharcs("base")
    rows, group = torch.tensor([2, 0]), torch.zeros(2, 3, 48)
    padding = torch.tensor([[1, 1, 1], [1, 1, 0]])
    flat = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    assert torch.equal(model._mask_of_group(flat, rows, group, padding), padding.bool())
    blocks, made = Blocks(), []
    monkeypatch.setattr(
        modeling_sharcs.modeling_sharcs,
        "create_bidirectional_mask",
        lambda config, inputs_embeds, attention_mask: made.append((inputs_embeds, attention_mask)) or blocks,
    )
    for given in (padding, None):
        assert model._mask_of_group(Blocks(), rows, group, given) is blocks
        assert made.pop()[1] is given
    # An attention that takes no mask at all gets none.
    assert model._mask_of_group(None, rows, group, padding) is None and not made


# ---- costs ----------------------------------------------------------------------------------------------------------


@each_entry
@each_head
@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra"])
def test_counted_flops_are_those_of_the_forward_pass(kind, head, entry):
    extra = {"distilbert": {"type_vocab_size": 0}, "electra": {"embedding_size": 20}}.get(kind, {})
    model = tiny_sharcs(head, entry=entry, backbone_model_type=kind, **extra)
    model.set_attn_implementation("eager")
    ids = make_batch(model.config, batch=4, padding=False)["input_ids"]
    with torch.no_grad():
        for width in WIDTHS:
            with FlopCounterMode(display=False) as counter:
                model(ids[:1], width=width)
            assert counter.get_total_flops() == model.count_flops(ids.shape[1], width)
        balance_(model, {"input_ids": ids})
        price = splitting_price(model, {"input_ids": ids})
        with FlopCounterMode(display=False) as counter:
            indices = model(ids, router_price=price).width_indices.tolist()
    assert len(set(indices)) > 1
    assert counter.get_total_flops() == sum(model.count_flops(ids.shape[1], WIDTHS[index]) for index in indices)


def test_flops_without_a_router():
    model = tiny_sharcs(width_multipliers=[1.0])
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.full((1, 7), 6))
    assert counter.get_total_flops() == model.count_flops(7, 1.0) == model.count_flops(7)


def test_costs_are_shares_of_full_flops():
    model = on_meta(width_multipliers=ALL_WIDTHS)
    costs = model.relative_costs()
    assert costs == sorted(costs) and costs[-1] == 1.0
    router = 2 * (768 * 1024 + 1024 * 6)
    for cost, width in zip(costs, ALL_WIDTHS, strict=True):
        full = model.count_flops(128, 1.0) - router
        assert cost == pytest.approx((model.count_flops(128, width) - router) / full)
    with pytest.raises(ValueError, match="This model has the widths"):
        model.count_flops(128, 0.4)


# ---- calibration ----------------------------------------------------------------------------------------------------


def loader(config, rows: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Batches of 20 rows of 3 to 13 tokens, and targets that calibration has to leave alone."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(rows // 20):
        lengths = torch.randint(3, 14, (20,), generator=generator)
        ids = torch.randint(5, config.vocab_size, (20, 13), generator=generator)
        mask = (torch.arange(13) < lengths.unsqueeze(1)).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.zeros(20, dtype=torch.long)})
    return batches


def calibrated(widths=(0.25, 0.5, 1.0), head: str = "sequence-classification", rows: int = 400, **overrides):
    model = tiny_sharcs(head, width_multipliers=list(widths), **overrides)
    batches = loader(model.config, rows, seed=1)
    balance_(model, {name: batches[0][name] for name in ("input_ids", "attention_mask")})
    model.calibrate(batches)
    return model, batches


@torch.no_grad()
def shares_of_rows(model, batches, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """FLOPs spent on each row and those of its widest path without a router, from what the model did."""
    config, spent, full = model.config, [], []
    router = 2 * config.router_hidden_size * (config.hidden_size + len(config.width_multipliers))
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        indices = model(**inputs, **kwargs).width_indices.tolist()
        for index, length in zip(indices, batch["attention_mask"].sum(dim=1).tolist(), strict=True):
            spent.append(model.count_flops(length, config.width_multipliers[index]))
            full.append(model.count_flops(length, 1.0) - router)
    return torch.tensor(spent).double(), torch.tensor(full).double()


@pytest.mark.parametrize("widths", [(0.25, 1.0), (0.25, 0.5, 1.0), (0.25, 0.5, 0.75, 1.0)])
def test_a_compute_budget_is_kept(widths):
    model, batches = calibrated(widths)
    unseen = loader(model.config, 400, seed=2)
    table = model.config.calibration["table"]
    lowest, highest = min(row["share"] for row in table), max(row["share"] for row in table)
    for part in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        budget = lowest + part * (highest - lowest)
        price = model.set_compute_budget(budget)
        assert price == model.config.router_price == model.sharcs.config.router_price
        spent, full = shares_of_rows(model, batches)
        share = (spent.sum() / full.sum()).item()
        assert share <= budget + 1e-6 and share > budget - 0.02
        spent, full = shares_of_rows(model, unseen)
        error = ((spent / full).std() * (2 / len(spent)) ** 0.5).item()
        assert abs((spent.sum() / full.sum()).item() - budget) < 0.02 + 2 * error


def test_both_ends_are_reached():
    model, batches = calibrated()
    table = model.config.calibration["table"]
    lowest, highest = min(row["share"] for row in table), max(row["share"] for row in table)
    assert highest > 1  # the router's own FLOPs come on top; a budget of one is the widest path all the same
    for budget, width, share in ((lowest, 0.25, lowest), (highest, 1.0, highest), (1.0, 1.0, highest)):
        model.set_compute_budget(budget)
        spent, full = shares_of_rows(model, batches)
        expected, _ = shares_of_rows(model, batches, width=width)
        assert torch.equal(spent, expected)
        assert (spent.sum() / full.sum()).item() == pytest.approx(share, rel=1e-9)


@each_head
def test_the_table_is_what_the_model_does(head):
    # A head as dear as the encoder, which the choice of a width does not see.
    extra = {"num_labels": 3000} if head != "question-answering" else {}
    model, batches = calibrated(head=head, rows=200, **extra)
    calibration = model.config.calibration
    assert calibration["rows"] == 200
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches])
    assert calibration["mean_length"] == pytest.approx(lengths.double().mean().item())
    table = calibration["table"]
    assert len({tuple(row["rows_per_width"]) for row in table}) > 50
    for row in table[:: len(table) // 8]:
        counts = torch.zeros(3)
        with torch.no_grad():
            for batch in batches:
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                indices = model.base_model(**inputs, router_price=row["price"]).width_indices
                counts += torch.bincount(indices, minlength=3)
        # A price may lie on the very score at which a row changes.
        assert (counts / 200 - torch.tensor(row["rows_per_width"])).abs().max() <= 1.01 / 200


def test_a_calibrated_model_needs_no_data(tmp_path):
    model, batches = calibrated()
    json.dumps(model.config.calibration)
    model.save_pretrained(tmp_path)
    loaded = SharcsForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.calibration == model.config.calibration
    assert loaded.set_compute_budget(0.7) == model.set_compute_budget(0.7)
    spent, _ = shares_of_rows(model, batches[:3])
    found, _ = shares_of_rows(loaded, batches[:3])
    assert torch.equal(found, spent) and len(spent.unique()) > 2
    loaded.save_pretrained(tmp_path / "budget")
    again = SharcsForSequenceClassification.from_pretrained(tmp_path / "budget")
    assert again.config.router_price == model.config.router_price
    assert torch.equal(shares_of_rows(again, batches[:3])[0], spent)


@pytest.mark.parametrize("widths", [(0.25, 1.0), (0.25, 0.5, 1.0), (0.25, 0.5, 0.75, 1.0)])
def test_dearer_compute_never_costs_more(widths):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(300, len(widths), generator=generator)
    model = tiny_sharcs("base", width_multipliers=list(widths))
    costs = model.relative_costs()
    spent = []
    for price in torch.linspace(-60, 60, 481).tolist():
        indices = choose_widths(scores, price, costs)
        assert_close(indices, (scores - price * torch.tensor(costs)).argmax(dim=-1), atol=0, rtol=0)
        spent.append(torch.tensor(costs)[indices])
    for cheap, dear in itertools.pairwise(spent):
        assert (dear <= cheap).all()  # for every row
    assert (spent[0] == costs[-1]).all() and (spent[-1] == costs[0]).all()
    assert len({each.sum().item() for each in spent}) > 40


def test_expected_flops():
    model, _ = calibrated()
    assert model.count_flops(13) == model.count_flops(13, 1.0)  # no price yet: the widest
    for budget in (0.6, 0.8):
        price = model.set_compute_budget(budget)
        row = next(row for row in model.config.calibration["table"] if row["price"] == price)
        expected = sum(
            share * model.count_flops(13, width) for share, width in zip(row["rows_per_width"], WIDTHS, strict=True)
        )
        assert model.count_flops(13) == pytest.approx(expected)
        assert model.count_flops(13, 0.25) < model.count_flops(13) < model.count_flops(13, 1.0)
    model.config.calibration = None
    with pytest.raises(ValueError, match=r"depend on the data: run `model.calibrate\(dataloader\)` first, or give a"):
        model.count_flops(13)


def test_record():
    model = tiny_sharcs()
    batches = loader(model.config, 60, seed=3)
    model.train()
    scores, lengths = record(model, batches, max_batches=2)
    assert model.training and scores.shape == (40, 3) and lengths.shape == (40,)
    model.eval()
    with torch.no_grad():
        whole = model(**{**batches[1], "labels": None}, width=1.0).router_logits
    assert_close(scores[20:], whole)
    assert_close(lengths[20:], batches[1]["attention_mask"].sum(dim=1))
    embedded = model.get_input_embeddings()(batches[0]["input_ids"])
    for inputs in ({"input_ids": batches[0]["input_ids"]}, {"inputs_embeds": embedded}):
        _, lengths = record(model, [inputs])
        assert lengths.tolist() == [13] * 20


@pytest.mark.parametrize(
    "damage, message",
    [
        ({"rows": 3}, r"not what `model.calibrate\(dataloader\)` stored \(KeyError\('table'\)\): run it again"),
        ({"table": [{"price": "cheap", "share": 0.5}]}, "could not convert .*: run it again"),
        ({"table": [{"price": 0.0, "share": float("nan")}]}, "numbers that are not finite: run"),
        ({"table": []}, "`calibration` has no rows"),
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path, damage, message):
    tiny_sharcs().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "calibration": damage}))
    with pytest.raises(Exception, match=message):
        SharcsConfig.from_pretrained(tmp_path)
    file.write_text(file.read_text()[:-30])
    with pytest.raises(OSError, match="config.json"):
        SharcsConfig.from_pretrained(tmp_path)


def test_messages_of_the_calibration():
    model = tiny_sharcs()
    with pytest.raises(ValueError, match=r"no calibration; run `model.calibrate\(dataloader\)` on a few hundred"):
        model.set_compute_budget(0.5)
    with pytest.raises(ValueError, match="gave no batches; calibration needs rows"):
        model.calibrate([])
    batches = loader(model.config, 40, seed=1)
    model.calibrate(batches)
    shares = [row["share"] for row in model.config.calibration["table"]]
    reach = rf"can spend {min(shares):.3f} to {max(shares):.3f}"
    too_much = {1.5: "1 already sends every row through the widest path"}
    for budget in (min(shares) - 0.01, 0.0, 1.5, float("nan")):
        way_out = too_much.get(budget, "for less, train narrower")
        with pytest.raises(
            ValueError,
            match=rf"{budget:g} of full FLOPs is out of reach: this model {reach}, the router included; {way_out}",
        ):
            model.set_compute_budget(budget)
    for budget in ("0.5", None, [0.5], True):
        with pytest.raises(TypeError, match=f"is a number, the share of full FLOPs .* got {re.escape(repr(budget))}"):
            model.set_compute_budget(budget)
    assert model.config.router_price is None
    for told in (f"{min(shares):.3f}", f"{max(shares):.3f}"):  # the range in the message is in reach
        model.set_compute_budget(float(told))
    assert model.set_compute_budget(torch.tensor(1.0)) == model.set_compute_budget(1)
    with torch.no_grad():
        model.sharcs.router.output.bias[1] = float("nan")
    with pytest.raises(ValueError, match="of 40 of 40 rows are not finite; the model is broken"):
        model.calibrate(batches)


def test_a_router_that_cannot_tell_rows_apart_reaches_both_ends():
    model = tiny_sharcs()
    nn.init.zeros_(model.sharcs.router.output.weight)
    batches = loader(model.config, 40, seed=1)
    model.calibrate(batches)
    shares = [row["share"] for row in model.config.calibration["table"]]
    for budget, width in ((min(shares), 0.25), (max(shares), 1.0)):
        model.set_compute_budget(budget)
        assert torch.equal(shares_of_rows(model, batches)[0], shares_of_rows(model, batches, width=width)[0])


# ---- compilation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("width", [0.25, 1.0])
def test_a_forced_width_compiles_whole(width, training):
    model = tiny_sharcs(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(training)
    batch = make_batch(model.config)
    inputs = {**batch, **make_targets("sequence-classification", model.config, (3, 11)), "width": width}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (compiled, model):
        model.zero_grad()
        outputs = run(**inputs)
        (outputs.loss + outputs.router_logits.square().sum()).backward()
        gradients.append(
            [outputs.logits.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]
        )
    assert_all_close(*gradients)


def test_a_compiled_model_routes():
    model = tiny_sharcs(num_hidden_layers=2)
    batch = padded_batch(model.config)
    balance_(model, batch)
    model.config.router_price = splitting_price(model, batch)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")  # the plan breaks the graph
    with torch.no_grad():
        found, expected = compiled(**batch), model(**batch)
    assert found.width_indices.tolist() == expected.width_indices.tolist()
    assert_close(found.logits, expected.logits)


def test_a_stock_configuration_is_not_changed():
    backbone = tiny_backbone()
    before = backbone.config.to_dict()
    SharcsForSequenceClassification.from_backbone(backbone, **OPTIONS, num_labels=5)
    assert backbone.config.to_dict() == before and type(backbone.config) is BertConfig
