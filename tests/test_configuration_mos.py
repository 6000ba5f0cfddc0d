# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Configurations of supernets and subnets: what they accept, what they say where they do not, what they store."""

import copy
import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig

from modeling_mos import Architecture, MosConfig, MosSubnetConfig, SearchSpace
from testing_utils import ELASTIC, TINY, no_complaints, tiny_mos_config, tiny_subnet_config


HEADS = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}
# The strict dataclass wraps what a validator raises; its message is kept.
REFUSED = (ValueError, StrictDataclassError)


def test_defaults_are_the_published_ones():
    config = MosConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.intermediate_size, config.vocab_size, config.layer_norm_eps) == (3072, 30522, 1e-12)
    assert (config.routing, config.num_experts, config.router_hidden_size, config.router_num_layers) == (
        "neuron",
        2,
        128,
        2,
    )
    assert config.expert_start == "deltas" and config.router_input == "scaled"
    space = config.build_search_space()
    assert space.hidden_sizes == (120, 240, 360, 480, 540, 600, 768)
    assert not config.sparse_prediction and config.default_architecture is None and config.front is None


@pytest.mark.parametrize(
    "routing, experts, start",
    [("none", 1, "copies"), ("layer", 2, "deltas"), ("neuron", 2, "deltas"), ("random", 2, "copies")],
)
def test_defaults_follow_the_routing(routing, experts, start):
    config = tiny_mos_config(routing=routing)
    assert (config.num_experts, config.expert_start) == (experts, start)


def test_search_space_is_stored_resolved():
    by_name, by_id = MosConfig(search_space="bottleneck"), MosConfig(search_space="v1")
    assert by_name.search_space == by_id.search_space
    assert by_name.search_space["hidden_sizes"] == [120, 240, 360, 480, 540, 600, 768]
    assert by_name.search_space["num_hidden_layers"] == [12]
    assert json.loads(json.dumps(by_name.search_space)) == by_name.search_space
    config = tiny_mos_config(search_space={"hidden_sizes": [16, 48]})
    assert config.search_space["intermediate_sizes"] == [37] and config.search_space["bottleneck"] is True
    assert config.build_search_space() == SearchSpace((16, 48), (4,), (3,), intermediate_sizes=(37,))


def full_config() -> MosConfig:
    """Every field away from its default."""
    space = tiny_mos_config().build_search_space()
    return tiny_mos_config(
        "roberta",
        routing="layer",
        num_experts=4,
        router_hidden_size=7,
        router_num_layers=3,
        router_input="one-hot",
        average_last_expert=True,
        expert_start="random",
        expert_delta_scale=0.25,
        default_architecture=space.smallest().to_dict(),
        front=[{"name": "small", "architecture": space.smallest().to_dict(), "parameters": 1_234, "score": 0.5}],
        sparse_prediction=True,
        hidden_act="relu",
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0.2,
        classifier_dropout=0.3,
        tie_word_embeddings=False,
        num_labels=2,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        problem_type="single_label_classification",
    )


def contents(config) -> dict:
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


@pytest.mark.parametrize("make", [full_config, tiny_mos_config, tiny_subnet_config, MosConfig, MosSubnetConfig])
def test_round_trips(make, tmp_path):
    config = make()
    with no_complaints():
        config.save_pretrained(tmp_path)
        loaded, auto = type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert type(auto) is type(config)
    for other in (loaded, auto, type(config).from_dict(config.to_dict()), copy.deepcopy(config)):
        assert contents(other) == contents(config)
    loaded.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert contents(again) == contents(config)


def test_full_config_covers_every_field():
    config, plain = full_config(), MosConfig()
    own = {name for name in MosConfig.__annotations__ if name != "search_space"}
    assert {name for name in own if getattr(config, name) == getattr(plain, name)} <= {"num_attention_heads"}


@pytest.mark.parametrize("config_class, stem", [(MosConfig, "Mos"), (MosSubnetConfig, "MosSubnet")])
def test_auto_map_is_complete(config_class, stem):
    module = "modeling_mos" if stem == "Mos" else "modeling_mos_subnet"
    auto_map = config_class().auto_map
    assert auto_map.pop("AutoConfig") == f"configuration_{module.removeprefix('modeling_')}.{stem}Config"
    assert auto_map == {auto: f"{module}.{stem}{suffix}" for auto, suffix in HEADS.items()}
    # One configuration's map is not another one's.
    config_class().auto_map["AutoModel"] = "elsewhere.Model"
    assert config_class().auto_map["AutoModel"] != "elsewhere.Model"


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_size": "48"},
        {"num_experts": 2.5},
        {"routing": "neurons"},
        {"router_input": "onehot"},
        {"expert_start": "delta"},
        {"search_space": 7},
        {"average_last_expert": "no"},
        {"expert_delta_scale": "0.5"},
        {"hidden_dropout_prob": "0.1"},
        {"front": {"name": "x"}},
        {"default_architecture": [16, 16]},
        {"backbone_model_type": "distilbert"},
        {"sparse_prediction": 1},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
def test_wrong_types_are_refused(overrides):
    name, value = next(iter(overrides.items()))
    with pytest.raises((*REFUSED, TypeError)) as caught:
        MosConfig(**{**TINY, "search_space": ELASTIC, **overrides})
    assert name in str(caught.value) or str(value) in str(caught.value) or type(value).__name__ in str(caught.value)


def test_wrong_types_are_refused_later_too():
    config = tiny_mos_config()
    with pytest.raises(StrictDataclassError):
        config.routing = "neurons"
    with pytest.raises(StrictDataclassError):
        config.num_experts = "2"


@pytest.mark.parametrize(
    "config_class, name, meant",
    [
        (MosConfig, "router_hiden_size", "router_hidden_size"),
        (MosConfig, "num_expert", "num_experts"),
        (MosConfig, "search_spaces", "search_space"),
        (MosConfig, "hidden_sizes", "hidden_size"),
        (MosConfig, "num_hidden_layer", "num_hidden_layers"),
        (MosSubnetConfig, "intermediate_size_", "intermediate_size"),
        (MosSubnetConfig, "hidden_dropout_probability", None),
        (MosSubnetConfig, "vocabulary_size", None),
    ],
)
def test_misspelt_fields_are_refused(config_class, name, meant):
    if meant is None:
        # Far from every field: transformers keeps such attributes, and so do we.
        assert getattr(config_class(**{name: 3}), name) == 3
        return
    with pytest.raises(
        ValueError, match=rf"{config_class.__name__} has no field '{name}' \(given 3\); did you mean '"
    ):
        config_class(**{name: 3})


@pytest.mark.parametrize("config_class", [MosConfig, MosSubnetConfig])
def test_fields_of_transformers_are_kept(config_class):
    config = config_class(num_labels=5, output_hidden_states=True, architectures=["X"], finetuning_task="sst2")
    assert config.num_labels == 5 and len(config.id2label) == 5
    assert config.output_hidden_states and config.finetuning_task == "sst2"


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"routing": "none", "num_experts": 2}, "routing='none' has one expert a layer, got num_experts=2; choose"),
        ({"routing": "layer", "num_experts": 1}, "routing='layer' needs at least 2 experts, got num_experts=1; use"),
        ({"num_experts": 0}, "needs at least 2 experts, got num_experts=0"),
        ({"average_last_expert": True}, "average_last_expert .* at least 3 experts, got .* num_experts=2"),
        (
            {"average_last_expert": True, "routing": "random", "num_experts": 3},
            "average_last_expert .* got routing='random'",
        ),
        ({"router_num_layers": 0}, "A router has at least one layer and one hidden unit, got router_num_layers=0"),
        ({"router_hidden_size": 0}, "got router_num_layers=2 and router_hidden_size=0"),
        (
            {"routing": "random", "expert_start": "deltas"},
            "routing='random' takes one expert .* use expert_start='cop",
        ),
        ({"expert_delta_scale": -1}, "expert_delta_scale must not be negative, got -1"),
        ({"search_space": {}}, "routing='neuron' needs something elastic to route on"),
        ({"search_space": {"hidden_sizes": [16, 32]}}, "must be the backbone itself: hidden_sizes reaches 32"),
        ({"search_space": "v77"}, "Unknown search space preset 'v77'"),
        (
            {"default_architecture": Architecture((17,) * 3, (37,) * 3, (1,) * 3).to_dict()},
            "is not in the search space: layer 0 is 17 wide, .* 16 the nearest",
        ),
        ({"default_architecture": {"hidden_sizes": [16]}}, "An architecture has the keys"),
        ({"front": [{"name": "60m"}]}, r"An entry of `front` lacks \['architecture', 'parameters'\]"),
        (
            {
                "front": [
                    {
                        "name": "x",
                        "parameters": 3,
                        "architecture": Architecture((16,) * 4, (37,) * 4, (4,) * 4).to_dict(),
                    }
                ]
            },
            r"it has 4 layers, the space has \[2, 3\]",
        ),
        ({"hidden_size": 52}, "hidden_sizes reaches 48, the backbone has 52"),
    ],
)
def test_contradictions_are_refused(overrides, message):
    with pytest.raises(REFUSED, match=message):
        tiny_mos_config(**overrides)


def test_a_search_space_that_holds_one_architecture_needs_no_routing():
    config = tiny_mos_config(search_space={}, routing="none")
    assert config.build_search_space().num_architectures == 1


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"hidden_sizes": [16, 48]}, "must have one entry a layer, got 2, 3 and 3"),
        ({"num_attention_heads": [3, 4, 4]}, "Layer 0: the hidden size 16 is not divisible by its 3 attention heads"),
        ({"intermediate_sizes": [0, 1, 2]}, "`intermediate_sizes` must hold one positive integer a layer"),
        ({"hidden_sizes": "16"}, "hidden_sizes"),
    ],
)
def test_subnet_contradictions_are_refused(overrides, message):
    with pytest.raises((*REFUSED, TypeError), match=message):
        tiny_subnet_config(**overrides)


def test_subnet_defaults_are_the_backbone():
    config = MosSubnetConfig(hidden_size=48, num_hidden_layers=3, intermediate_size=37, num_attention_heads=4)
    assert config.architecture == Architecture((48,) * 3, (37,) * 3, (4,) * 3)
    assert tiny_subnet_config(num_attention_heads=2).num_attention_heads == [2, 2, 2]
    # The lists decide the depth.
    assert tiny_subnet_config(num_hidden_layers=12).num_hidden_layers == 3


@pytest.mark.parametrize("config_class", [MosConfig, MosSubnetConfig])
def test_another_model_type_is_refused(config_class, tmp_path):
    BertConfig(**TINY).save_pretrained(tmp_path)
    message = f"a 'bert' model, {config_class.__name__} reads '{config_class.model_type}' checkpoints; .*from_backbone"
    with pytest.raises(ValueError, match=message):
        config_class.from_pretrained(tmp_path)


def test_supernet_and_subnet_are_not_confused(tmp_path):
    tiny_mos_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a 'mos' model, MosSubnetConfig reads 'mos_subnet' checkpoints"):
        MosSubnetConfig.from_pretrained(tmp_path)
