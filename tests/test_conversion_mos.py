# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""From BERT and RoBERTa to a supernet, and from a supernet to an ordinary small model."""

import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

from modeling_mos import (
    Architecture,
    MosForMaskedLM,
    MosForQuestionAnswering,
    MosForSequenceClassification,
    MosForTokenClassification,
    MosModel,
    MosSubnetForMaskedLM,
    MosSubnetForSequenceClassification,
)
from testing_utils import (
    AUTO_CLASSES,
    ELASTIC,
    HEADS,
    LAYOUTS,
    MOS_CLASSES,
    ROUTINGS,
    SPACES,
    SUBNET_CLASSES,
    UNIFORM,
    assert_close,
    main_outputs,
    make_batch,
    make_targets,
    randomise_,
    tiny_backbone,
    tiny_mos_config,
    tiny_supernet,
)


each_head = pytest.mark.parametrize("head", HEADS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_space = pytest.mark.parametrize("space", SPACES)


def storages(model) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in itertools.chain(model.parameters(), model.buffers())}


def experts_of(routing: str) -> int:
    return 1 if routing == "none" else 3


# ---- backbone to supernet -------------------------------------------------------------------------------------------


@each_head
@each_layout
@each_space
@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_largest_architecture_is_the_backbone(head, layout, space, routing):
    backbone = tiny_backbone(layout, head)
    model = MOS_CLASSES[head].from_backbone(
        backbone, search_space=SPACES[space], routing=routing, num_experts=experts_of(routing)
    )
    if routing == "random" or model.config.expert_start == "copies":
        # Copies make the mixture equal to the backbone whatever the routers say.
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "router" in name:
                    value.normal_()
    batch = make_batch(model.config)
    with torch.no_grad():
        found, expected = main_outputs(model(**batch)), main_outputs(backbone(**batch))
    assert len(found) == len(expected)
    for first, second in zip(found, expected, strict=True):
        assert_close(first, second)


@pytest.mark.parametrize("routing", ["layer", "neuron"])
def test_copies_are_the_backbone_for_any_router(routing):
    backbone = tiny_backbone()
    model = MosForMaskedLM.from_backbone(backbone, search_space=ELASTIC, routing=routing, expert_start="copies")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "router" in name:
                value.normal_()
    batch = make_batch(model.config)
    assert_close(model(**batch).logits, backbone(**batch).logits)


@each_head
@each_layout
def test_from_a_folder(head, layout, tmp_path):
    backbone = tiny_backbone(layout, head)
    backbone.save_pretrained(tmp_path)
    model = MOS_CLASSES[head].from_backbone(str(tmp_path), search_space=ELASTIC)
    batch = make_batch(model.config)
    for first, second in zip(main_outputs(model(**batch)), main_outputs(backbone(**batch)), strict=True):
        assert_close(first, second)
    assert not model.training
    path = MOS_CLASSES[head].from_backbone(tmp_path, search_space=ELASTIC)
    assert path.config.search_space == model.config.search_space


def test_weights_are_copied_not_shared():
    backbone = tiny_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = MosForMaskedLM.from_backbone(backbone, search_space=ELASTIC)
    assert not storages(model) & storages(backbone)
    randomise_(model, seed=3)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_the_head_knows_is_kept(tmp_path):
    labels = {0: "bad", 1: "fair", 2: "good", 3: "great"}
    backbone = tiny_backbone(
        "roberta",
        "sequence-classification",
        num_labels=4,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
        problem_type="multi_label_classification",
        classifier_dropout=0.25,
        hidden_dropout_prob=0.15,
        hidden_act="relu",
    )
    backbone.save_pretrained(tmp_path)
    for source in (backbone, str(tmp_path)):
        model = MosForSequenceClassification.from_backbone(source, search_space=ELASTIC)
        for config in (model.config, model.extract_subnet().config):
            assert config.id2label == labels and config.label2id["great"] == 3 and config.num_labels == 4
            assert config.problem_type == "multi_label_classification"
            assert (config.classifier_dropout, config.hidden_dropout_prob) == (0.25, 0.15)
            assert config.hidden_act == "relu" and config.layer_norm_eps == backbone.config.layer_norm_eps
            assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 0, 2)
        assert model.config.backbone_model_type == "roberta"


@pytest.mark.parametrize("from_folder", [False, True])
@each_layout
def test_another_head_starts_new(layout, from_folder, tmp_path):
    backbone = tiny_backbone(layout, "masked-lm")
    backbone.save_pretrained(tmp_path)
    source = str(tmp_path) if from_folder else backbone
    model = MosForSequenceClassification.from_backbone(source, search_space=ELASTIC, num_labels=5)
    assert model.config.num_labels == 5 and model.classifier.out_proj.out_features == 5
    batch = make_batch(model.config)
    found = model.mos(**batch).last_hidden_state
    assert_close(found, backbone.base_model(**batch).last_hidden_state)
    assert model(**batch).logits.shape == (3, 5)


@each_head
@pytest.mark.parametrize("given", HEADS)
def test_every_head_from_every_other(head, given):
    backbone = tiny_backbone("bert", given)
    model = MOS_CLASSES[head].from_backbone(backbone, search_space=ELASTIC)
    batch = make_batch(model.config)
    found = model.base_model(**batch).last_hidden_state
    assert_close(found, backbone.base_model(**batch).last_hidden_state)
    assert all(output.isfinite().all() for output in main_outputs(model(**batch)))
    for architecture in (None, model.search_space.smallest()):
        extracted = main_outputs(model.extract_subnet(architecture)(**batch))
        for first, second in zip(extracted, main_outputs(model(**batch, architecture=architecture)), strict=True):
            assert_close(first, second)


def test_a_question_answering_supernet_of_a_classifier_is_extracted():
    """The stock class would take three outputs from the classifier's three labels."""
    backbone = tiny_backbone("bert", "sequence-classification", num_labels=3)
    model = randomise_(MosForQuestionAnswering.from_backbone(backbone, search_space=UNIFORM))
    batch = make_batch(model.config)
    assert_close(model.extract_subnet()(**batch).start_logits, model(**batch).start_logits)


def test_a_classifier_with_other_labels_starts_new():
    backbone = tiny_backbone("bert", "sequence-classification", num_labels=3)
    model = MosForSequenceClassification.from_backbone(backbone, search_space=ELASTIC, num_labels=7)
    assert model.classifier.out_proj.weight.shape[0] == 7 and len(model.config.id2label) == 7
    assert_close(model.classifier.dense.weight, backbone.bert.pooler.dense.weight)


def test_untied_backbone():
    backbone = tiny_backbone("bert", "masked-lm", tie_word_embeddings=False)
    assert backbone.get_input_embeddings().weight is not backbone.get_output_embeddings().weight
    for space in SPACES.values():
        model = MosForMaskedLM.from_backbone(backbone, search_space=space)
        batch = make_batch(model.config)
        assert_close(model(**batch).logits, backbone(**batch).logits)
        randomise_(model)
        architecture = model.search_space.smallest()
        subnet = model.extract_subnet(architecture)
        assert_close(subnet(**batch).logits, model(**batch, architecture=architecture).logits)
        assert subnet.num_parameters() == model.count_parameters(architecture)


def test_a_backbone_that_is_partitioned_over_processes_is_refused():
    backbone = tiny_backbone()
    backbone.get_input_embeddings().weight.ds_id = 0  # as DeepSpeed's ZeRO-3 marks what it has partitioned
    with pytest.raises(ValueError, match="partitioned over processes .*; make the supernet without DeepSpeed"):
        MosForMaskedLM.from_backbone(backbone, search_space=ELASTIC)


def test_mode_type_and_attention_follow_the_backbone(tmp_path):
    backbone = tiny_backbone().train().to(torch.bfloat16)
    backbone.set_attn_implementation("eager")
    model = MosForMaskedLM.from_backbone(backbone, search_space=ELASTIC)
    assert model.training and model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    subnet = model.extract_subnet()
    assert subnet.training and subnet.dtype == torch.bfloat16 and subnet.config._attn_implementation == "eager"
    backbone.float().save_pretrained(tmp_path)
    model = MosForMaskedLM.from_backbone(
        str(tmp_path), search_space=ELASTIC, attn_implementation="eager", dtype=torch.bfloat16
    )
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"


def test_fields_of_the_supernet_are_taken():
    model = MosForMaskedLM.from_backbone(
        tiny_backbone(),
        search_space={"hidden_sizes": [16, 48]},
        routing="layer",
        num_experts=4,
        average_last_expert=True,
        router_hidden_size=6,
        router_num_layers=3,
        router_input="one-hot",
        expert_start="random",
        sparse_prediction=True,
    )
    config = model.config
    assert (config.routing, config.num_experts, config.router_num_layers) == ("layer", 4, 3)
    assert config.sparse_prediction and config.average_last_expert and config.router_input == "one-hot"
    plain = MosForMaskedLM.from_backbone(tiny_backbone(), search_space="v1")
    assert plain.search_space.largest().hidden_sizes == (48, 48, 48)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_expert": 3}, r"`from_backbone` has no argument 'num_expert' \(given 3\). Did you mean 'num_experts'\?"),
        ({"xyzzy": 3}, "`from_backbone` has no argument 'xyzzy' .* It takes"),
        (
            {"hidden_size": 32},
            r"The sizes of a backbone are its own: \['hidden_size'\] cannot be given; use `search_s",
        ),
        ({"revision": "main"}, r"\['revision'\] only apply when a name or folder is given"),
        ({"search_space": {"hidden_sizes": [16, 32]}}, "must be the backbone itself: hidden_sizes reaches 32, .* 48"),
        ({"search_space": "nonsense"}, "Unknown search space preset 'nonsense'"),
        ({"routing": "layer", "num_experts": 1}, "needs at least 2 experts"),
    ],
)
def test_arguments_are_checked(kwargs, message):
    # The strict dataclass wraps what a validator raises; its message is kept.
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        MosForMaskedLM.from_backbone(tiny_backbone(), **kwargs)


def test_other_families_are_refused(tmp_path):
    sizes = {"vocab_size": 99, "dim": 48, "n_layers": 1, "n_heads": 4, "hidden_dim": 37}
    backbone = DistilBertModel(DistilBertConfig(**sizes))
    message = r"A backbone of model type 'distilbert' is not supported; supported are \['bert', 'roberta'"
    with pytest.raises(ValueError, match=message):
        MosModel.from_backbone(backbone)
    backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        MosModel.from_backbone(str(tmp_path))
    with pytest.raises(ValueError, match="A backbone of model type 'mos' is not supported; .* `from_pretrained`"):
        MosForMaskedLM.from_backbone(tiny_supernet())
    with pytest.raises(ValueError, match="is_decoder=True is not supported"):
        MosModel.from_backbone(tiny_backbone("bert", "base", is_decoder=True))


# ---- supernet to subnet ---------------------------------------------------------------------------------------------


@each_head
@each_layout
@each_space
@pytest.mark.parametrize("routing", ROUTINGS)
def test_extracting_is_slicing(head, layout, space, routing):
    model = tiny_supernet(head, layout, search_space=SPACES[space], routing=routing, num_experts=experts_of(routing))
    batch = make_batch(model.config)
    shared = storages(model)
    samples = [model.search_space.sample(seed=seed) for seed in range(3)]
    for architecture in (model.search_space.largest(), model.search_space.smallest(), *samples):
        subnet = model.extract_subnet(architecture)
        with torch.no_grad():
            found, expected = main_outputs(subnet(**batch)), main_outputs(model(**batch, architecture=architecture))
        assert len(found) == len(expected)
        for first, second in zip(found, expected, strict=True):
            assert_close(first, second)
        # As ordinary as can be: no routers, no experts, tensors of its own.
        names = [name for name, _ in subnet.named_parameters()]
        assert not [name for name in names if "router" in name or "expert" in name or "bottleneck" in name]
        assert all(value.dim() <= 2 and value.is_contiguous() for value in subnet.parameters())
        assert not storages(subnet) & shared
        assert all(value.requires_grad for value in subnet.parameters())
        assert all(value.untyped_storage().nbytes() == value.nbytes for value in subnet.parameters())
        assert subnet.num_parameters() == model.count_parameters(architecture)
        assert not subnet.training


@each_layout
@each_space
def test_class_of_a_subnet(layout, space):
    stem = {"bert": "Bert", "roberta": "Roberta"}[layout]
    suffixes = ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
    for head, suffix in zip(HEADS, suffixes, strict=True):
        subnet = tiny_supernet(head, layout, search_space=SPACES[space]).extract_subnet()
        if space == "bottleneck":
            assert type(subnet) is SUBNET_CLASSES[head]
            assert subnet.config.model_type == "mos_subnet" and subnet.config.backbone_model_type == layout
        else:
            assert type(subnet).__name__ == stem + suffix and subnet.config.model_type == layout
            assert type(subnet).__module__.startswith("transformers.models.")
            assert "auto_map" not in subnet.config.to_dict() or not subnet.config.auto_map


@each_head
@each_space
@pytest.mark.parametrize("tokens", [7, 16])
def test_flops_are_those_that_torch_counts(head, space, tokens):
    model = tiny_supernet(head, search_space=SPACES[space])
    for architecture in (model.search_space.largest(), *(model.search_space.sample(seed=seed) for seed in range(3))):
        subnet = model.extract_subnet(architecture)
        subnet.set_attn_implementation("eager")
        batch = make_batch(model.config, batch=1, tokens=tokens, padding=False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet(**batch)
        assert counter.get_total_flops() == model.count_flops(architecture, sequence_length=tokens)


@each_head
@each_layout
def test_flops_and_parameters_of_roberta(head, layout):
    model = tiny_supernet(head, layout, search_space=UNIFORM, num_labels=5)
    for architecture in (model.search_space.smallest(), model.search_space.sample(seed=1)):
        subnet = model.extract_subnet(architecture)
        subnet.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet(**make_batch(model.config, batch=1, tokens=9, padding=False))
        assert counter.get_total_flops() == model.count_flops(architecture, sequence_length=9)
        assert subnet.num_parameters() == model.count_parameters(architecture)


@each_space
def test_counts_follow_the_head(space):
    """Not a constant: other labels, vocabularies and a base model without a pooler count differently."""
    for head, overrides in (
        ("sequence-classification", {"num_labels": 9}),
        ("token-classification", {"num_labels": 9}),
        ("masked-lm", {"vocab_size": 131}),
        ("masked-lm", {"tie_word_embeddings": False}),
    ):
        model = tiny_supernet(head, search_space=SPACES[space], **overrides)
        architecture = model.search_space.sample(seed=4)
        assert model.extract_subnet(architecture).num_parameters() == model.count_parameters(architecture)
    model = MosModel(tiny_mos_config(search_space=SPACES[space]), add_pooling_layer=False)
    subnet = model.extract_subnet(architecture)
    assert subnet.pooler is None and subnet.num_parameters() == model.count_parameters(architecture)


def test_counts_after_resizing():
    model = tiny_supernet()
    model.resize_token_embeddings(120, mean_resizing=False)
    architecture = model.search_space.smallest()
    subnet = model.extract_subnet(architecture)
    assert subnet.num_parameters() == model.count_parameters(architecture) and subnet.config.vocab_size == 120


@each_space
def test_a_subnet_is_an_ordinary_model(space, tmp_path):
    model = tiny_supernet(search_space=SPACES[space])
    architecture = model.search_space.sample(seed=3)
    subnet = model.extract_subnet(architecture)
    batch = make_batch(model.config)
    assert subnet.get_input_embeddings().weight is subnet.get_output_embeddings().weight
    subnet.save_pretrained(tmp_path)
    loaded, info = AUTO_CLASSES["masked-lm"].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_close(loaded(**batch).logits, model(**batch, architecture=architecture).logits)
    targets = make_targets("masked-lm", model.config, batch["input_ids"].shape)
    loaded.train()(**batch, **targets).loss.backward()
    assert all(value.grad is not None for value in loaded.parameters())


def test_gradients_do_not_reach_the_supernet():
    model = tiny_supernet()
    subnet = model.extract_subnet(model.search_space.smallest())
    batch = make_batch(model.config)
    subnet(**batch, **make_targets("masked-lm", model.config, batch["input_ids"].shape)).loss.backward()
    assert all(value.grad is None for value in model.parameters())
    before = model(**batch).logits
    randomise_(subnet, seed=8)
    assert_close(model(**batch).logits, before, atol=0, rtol=0)


def test_extraction_draws_no_random_numbers():
    model = tiny_supernet()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.extract_subnet(model.search_space.smallest())
    assert torch.equal(torch.rand(3), expected)


def test_subclasses_are_extracted_too():
    class MyClassifier(MosForSequenceClassification):
        pass

    model = randomise_(MyClassifier(tiny_mos_config()))
    assert type(model.extract_subnet()) is MosSubnetForSequenceClassification


def test_stock_subnets_of_published_spaces():
    backbone = tiny_backbone("bert", "sequence-classification", intermediate_size=192)
    for preset in ("v5.1", "v5.2"):
        model = randomise_(MosForSequenceClassification.from_backbone(backbone, search_space=preset).eval())
        assert not model.search_space.bottleneck
        subnet = model.extract_subnet(model.search_space.smallest())
        assert type(subnet) is BertForSequenceClassification
        batch = make_batch(model.config)
        expected = model(**batch, architecture=model.search_space.smallest()).logits
        assert_close(subnet(**batch).logits, expected)
    base = MosModel.from_backbone(tiny_backbone("bert", "base"), search_space=UNIFORM)
    assert type(base.extract_subnet()) is BertModel
    assert (
        type(MosForMaskedLM.from_backbone(tiny_backbone(), search_space=UNIFORM).extract_subnet()) is BertForMaskedLM
    )


# ---- the stored front -----------------------------------------------------------------------------------------------


def with_front():
    model = tiny_supernet()
    space = model.search_space
    found = [space.smallest(), space.sample(seed=2), space.largest()]
    found.sort(key=model.count_parameters)
    model.config.front = [
        {"name": name, "architecture": architecture.to_dict(), "parameters": model.count_parameters(architecture)}
        for name, architecture in zip(("small", "middle", "large"), found, strict=True)
    ]
    return model, found


def test_extraction_by_name_and_by_size(tmp_path):
    model, found = with_front()
    model.save_pretrained(tmp_path)
    for source in (model, MosForMaskedLM.from_pretrained(tmp_path)):
        for name, architecture in zip(("small", "middle", "large"), found, strict=True):
            assert source.extract_subnet(name).config.architecture == architecture
            size = source.count_parameters(architecture)
            assert source.extract_subnet(max_parameters=size).config.architecture == architecture
            assert source.extract_subnet(max_parameters=size + 1).num_parameters() == size
        assert source.extract_subnet(max_parameters=10**9).config.architecture == found[-1]


def test_of_entries_that_fit_the_best_is_taken():
    """Of a front of speed against quality, the one with the most parameters need not be the best."""
    model, found = with_front()
    for entry, rank in zip(model.config.front, (3, 1, 2), strict=True):
        entry["rank"] = rank
    assert model.extract_subnet(max_parameters=10**9).config.architecture == found[1]
    assert model.extract_subnet(max_parameters=model.count_parameters(found[0])).config.architecture == found[0]
    # Where some have no rank, ranks do not compare.
    del model.config.front[0]["rank"]
    assert model.extract_subnet(max_parameters=10**9).config.architecture == found[2]
    for rank in (0, "best"):
        with pytest.raises(Exception, match=f"rank of an entry of `front` is a whole number from 1.* got {rank!r}"):
            tiny_supernet(front=[{**model.config.front[1], "rank": rank}])


def test_extraction_by_other_costs():
    """Of a front of latency against quality; limits may be combined."""
    model, found = with_front()
    for entry, latency, flops, rank in zip(model.config.front, (3.0, 1.5, 6.25), (10, 30, 20), (2, 3, 1), strict=True):
        entry.update(latency=latency, flops=flops, rank=rank)
    for limits, expected in (
        ({"max_latency": 7}, 2),
        ({"max_latency": 5.0}, 0),
        ({"max_latency": 2.9}, 1),
        ({"max_flops": 20}, 2),
        ({"max_flops": 20, "max_latency": 6.2}, 0),
        ({"max_latency": 7, "max_parameters": model.count_parameters(found[1])}, 0),
    ):
        assert model.resolve_architecture(**limits) == found[expected]
        assert model.extract_subnet(**limits).config.architecture == found[expected]
    with pytest.raises(ValueError, match="at most 1 milliseconds; there are small: 3.0, middle: 1.5, large"):
        model.extract_subnet(max_latency=1)
    with pytest.raises(ValueError, match="at most 25 FLOPs and at most 2 milliseconds; .* small: 10 and 3.0, mid"):
        model.extract_subnet(max_flops=25, max_latency=2)
    # An entry of another search, which did not measure it, is not taken.
    del model.config.front[2]["latency"]
    assert model.resolve_architecture(max_latency=7) == found[0]
    for entry in model.config.front[:2]:
        del entry["latency"]
    with pytest.raises(ValueError, match="No entry of the stored front says its latency, .* `max_latency` or `t"):
        model.extract_subnet(max_latency=5)


def test_front_errors():
    model, found = with_front()
    smallest = f"{model.count_parameters(found[0]):,}"
    with pytest.raises(
        ValueError, match=rf"front has at most 1,000 parameters; there are small: {smallest}, middle: "
    ):
        model.extract_subnet(max_parameters=1_000)
    with pytest.raises(ValueError, match=r"no entry 'huge'; its names are \['large', 'middle', 'small'\]"):
        model.extract_subnet("huge")
    with pytest.raises(ValueError, match=r"either an architecture .* or limits \(`max_parameters`\), not both"):
        model.extract_subnet("small", max_parameters=10**9)
    empty = tiny_supernet()
    for arguments in ({"architecture": "small"}, {"max_parameters": 10**9}):
        with pytest.raises(ValueError, match=r"stores no front .* which run_search.py writes.* give an architecture"):
            empty.extract_subnet(**arguments)


# ---- one head's checkpoint into another head ------------------------------------------------------------------------

NEW_KEYS = {
    "base": {"pooler.dense.weight", "pooler.dense.bias"},
    "sequence-classification": {
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.out_proj.weight",
        "classifier.out_proj.bias",
    },
    "token-classification": {"classifier.weight", "classifier.bias"},
    "question-answering": {"qa_outputs.weight", "qa_outputs.bias"},
}


@pytest.mark.parametrize("head", list(NEW_KEYS))
@pytest.mark.parametrize("kind", ["supernet", "subnet"])
@each_layout
def test_masked_lm_checkpoint_into_another_head(head, kind, layout, tmp_path):
    model = tiny_supernet(layout=layout)
    if kind == "subnet":
        model = model.extract_subnet(model.search_space.sample(seed=2))
    model.save_pretrained(tmp_path)
    classes = MOS_CLASSES if kind == "supernet" else SUBNET_CLASSES
    for loader in (classes[head], AUTO_CLASSES[head]):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is classes[head]
        # The head, and nothing else, is new; the masked language modeling head, and nothing else, is left over.
        assert set(info["missing_keys"]) == NEW_KEYS[head]
        assert all(key.startswith("lm_head.") for key in info["unexpected_keys"])
        assert not info["mismatched_keys"]
        batch = make_batch(model.config)
        expected = model.base_model(**batch).last_hidden_state
        assert_close(loaded.base_model(**batch).last_hidden_state, expected, atol=0, rtol=0)
        assert all(output.isfinite().all() for output in main_outputs(loaded(**batch)))


def test_base_checkpoint_into_a_head_and_back(tmp_path):
    base = tiny_supernet("base")
    base.save_pretrained(tmp_path / "base")
    MosForTokenClassification.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "head")
    again = MosModel.from_pretrained(tmp_path / "head")
    batch = make_batch(base.config)
    assert_close(again(**batch).last_hidden_state, base(**batch).last_hidden_state, atol=0, rtol=0)


def test_a_subnet_can_be_fine_tuned_with_other_labels(tmp_path):
    subnet = tiny_supernet().extract_subnet(Architecture((16, 36), (11, 37), (4, 4)))
    assert type(subnet) is MosSubnetForMaskedLM
    subnet.save_pretrained(tmp_path)
    model = MosSubnetForSequenceClassification.from_pretrained(tmp_path, num_labels=7)
    batch = make_batch(model.config)
    model(**batch, labels=torch.tensor([6, 0, 3])).loss.backward()
    assert model.config.num_labels == 7 and model(**batch).logits.shape == (3, 7)
