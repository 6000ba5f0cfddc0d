# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Importance of a backbone's parts, and the permutation by it."""

import copy
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from modeling_sharcs import Importance, compute_importance, reorder_backbone
from testing_utils import (
    AUTO_CLASSES,
    HEADS,
    LAYOUTS,
    SENTENCES,
    SHARCS_CLASSES,
    assert_close,
    main_outputs,
    make_batch,
    make_targets,
    no_complaints,
    randomise_,
    tiny_sharcs,
    tiny_tokenizer,
)


SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "text-classification" / "reorder_backbone.py"
LAYERS, NUM_HEADS, HEAD_SIZE, NEURONS = 3, 4, 5, 28
HIDDEN = NUM_HEADS * HEAD_SIZE
SIZES = {
    "vocab_size": 53,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": NUM_HEADS,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 31,
}
FAMILIES = {
    "bert": ("bert", LAYOUTS["bert"]),
    "roberta": ("roberta", LAYOUTS["roberta"]),
    "xlm-roberta": ("xlm-roberta", LAYOUTS["roberta"]),
    "camembert": ("camembert", LAYOUTS["roberta"]),
    "distilbert": ("distilbert", {}),
    "electra": ("electra", {"embedding_size": 13}),
    "electra, no projection": ("electra", {"embedding_size": HIDDEN}),
}
PARTS = ("heads", "neurons", "channels")
LOSS_HEADS = [head for head in HEADS if head != "base"]
each_family = pytest.mark.parametrize("family", FAMILIES)
each_head = pytest.mark.parametrize("head", HEADS)
each_loss_head = pytest.mark.parametrize("head", LOSS_HEADS)
each_choice = pytest.mark.parametrize("parts", [PARTS, *((part,) for part in PARTS)], ids="-".join)


def tiny_backbone(family: str = "bert", head: str = "sequence-classification", attention: str = "sdpa", **overrides):
    """A stock model whose every weight is random, in evaluation mode."""
    model_type, layout = FAMILIES[family]
    values = {**SIZES, **layout, "num_labels": 2 if head == "question-answering" else 3, **overrides}
    if model_type == "distilbert":
        names = {
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
        }
        values = {names.get(name, name): value for name, value in values.items()}
    model = AUTO_CLASSES[head].from_config(AutoConfig.for_model(model_type, **values), attn_implementation=attention)
    return randomise_(model).eval()


def labelled_batches(model, head: str = "sequence-classification", count: int = 2, rows: int = 3):
    """Padded batches of different lengths."""
    batches = []
    for seed in range(count):
        batch = make_batch(_with_token_types(model.config), batch=rows, tokens=9 + seed, seed=seed)
        if model.config.model_type == "distilbert":
            batch.pop("token_type_ids", None)
        batches.append({**batch, **make_targets(head, model.config, tuple(batch["input_ids"].shape), seed)})
    return batches


def _with_token_types(config):
    if config.model_type == "distilbert":
        config = copy.copy(config)
        config.type_vocab_size = 0
    return config


def one_by_one(batches):
    return [{name: values[row : row + 1] for name, values in batch.items()} for batch in batches for row in range(3)]


def random_importance(seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    return Importance(
        heads=torch.rand(LAYERS, NUM_HEADS, generator=generator),
        neurons=torch.rand(LAYERS, NEURONS, generator=generator),
        channels=torch.rand(HIDDEN, generator=generator),
    )


def reorder(model, importance: Importance, parts=PARTS):
    return reorder_backbone(model, importance, **{part: part in parts for part in PARTS})


def assert_same_importance(found: Importance, expected: Importance, rtol: float = 1e-3):
    for part in PARTS:
        first, second = getattr(found, part), getattr(expected, part)
        assert second.max() > 1e-6, "nothing to compare"
        assert_close(first, second, atol=1e-5 * float(second.max()), rtol=rtol)


def layers_of(model) -> nn.ModuleList:
    base = model.base_model
    return base.transformer.layer if model.config.model_type == "distilbert" else base.encoder.layer


def feed_forward_of(model, layer: int) -> tuple[nn.Linear, nn.Linear]:
    block = layers_of(model)[layer]
    if model.config.model_type == "distilbert":
        return block.ffn.lin1, block.ffn.lin2
    return block.intermediate.dense, block.output.dense


# ---- the permutation ------------------------------------------------------------------------------------------------


@each_choice
@each_head
@each_family
def test_reordering_keeps_the_function(family, head, parts):
    model = tiny_backbone(family, head)
    importance = random_importance()
    reordered = reorder(model, importance, parts)
    assert type(reordered) is type(model)
    batch = labelled_batches(model, head, count=1)[0]
    with torch.no_grad():
        expected, found = model(**batch), reordered(**batch)
    if head == "base" and "channels" in parts:
        expected.last_hidden_state = expected.last_hidden_state[..., importance.channels.argsort(descending=True)]
    for first, second in zip(main_outputs(found), main_outputs(expected), strict=True):
        assert_close(first, second)


@each_choice
@each_family
def test_reordering_moves_what_it_should_and_nothing_else(family, parts):
    model = tiny_backbone(family, attention="eager")
    importance = random_importance()
    reordered = reorder(model, importance, parts)
    batch = labelled_batches(model, count=1)[0]

    def observe(network):
        neurons = []
        handles = [
            feed_forward_of(network, layer)[0].register_forward_hook(lambda *call: neurons.append(call[2]))
            for layer in range(LAYERS)
        ]
        with torch.no_grad():
            outputs = network(**batch, output_hidden_states=True, output_attentions=True)
        for handle in handles:
            handle.remove()
        return {"channels": outputs.hidden_states, "heads": outputs.attentions, "neurons": neurons}

    before, after = observe(model), observe(reordered)
    axes = {"channels": -1, "heads": 1, "neurons": -1}
    for part in PARTS:
        assert len(before[part]) in (LAYERS, LAYERS + 1)
        for layer, (first, second) in enumerate(zip(before[part], after[part], strict=True)):
            if part in parts:
                scores = getattr(importance, part)
                order = (scores if part == "channels" else scores[layer]).argsort(descending=True)
                first = first.index_select(axes[part], order)
            assert_close(second, first)


@each_loss_head
@each_family
def test_after_reordering_importance_falls(family, head):
    model = tiny_backbone(family, head)
    batches = labelled_batches(model, head)
    importance = compute_importance(model, batches)
    assert importance.heads.shape == (LAYERS, NUM_HEADS)
    assert importance.neurons.shape == (LAYERS, NEURONS)
    assert importance.channels.shape == (HIDDEN,)
    again = compute_importance(reorder_backbone(model, importance), batches)
    for part in PARTS:
        before, after = getattr(importance, part), getattr(again, part)
        assert (before.diff(dim=-1) > 0.01 * before.max()).any(), "sorted already; the test would see nothing"
        assert_close(after, before.sort(dim=-1, descending=True).values, atol=1e-4 * float(before.max()), rtol=1e-3)


def test_equal_importance_keeps_the_order():
    model = tiny_backbone()
    importance = Importance(torch.ones(LAYERS, NUM_HEADS), torch.zeros(LAYERS, NEURONS), torch.ones(HIDDEN))
    reordered = reorder_backbone(model, importance)
    for name, value in reordered.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_reordering_returns_a_copy():
    model = tiny_backbone().train()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    model.bert.embeddings.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reordered = reorder_backbone(model, random_importance())
    storages = {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(parameter.data_ptr() in storages for parameter in reordered.parameters())
    assert reordered.config is not model.config and reordered.training
    assert all(parameter.grad is None for parameter in reordered.parameters())
    assert [parameter.requires_grad for parameter in reordered.parameters()] == [
        parameter.requires_grad for parameter in model.parameters()
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))


@pytest.mark.parametrize("tied", [True, False])
@each_family
def test_output_embeddings_stay_tied_or_untied(family, tied):
    model = tiny_backbone(family, "masked-lm", tie_word_embeddings=tied)
    reordered = reorder_backbone(model, random_importance())
    for network in (model, reordered):
        assert (network.get_output_embeddings().weight is network.get_input_embeddings().weight) is tied
    batch = labelled_batches(model, "masked-lm", count=1)[0]
    with torch.no_grad():
        assert_close(reordered(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("head", SHARCS_CLASSES)
@each_family
def test_saved_checkpoint_is_an_ordinary_one(family, head, tmp_path):
    model = tiny_backbone(family, head)
    importance = random_importance()
    reorder_backbone(model, importance).save_pretrained(tmp_path)
    batch = labelled_batches(model, head, count=1)[0]
    with no_complaints():
        loaded = AUTO_CLASSES[head].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    sharcs = SHARCS_CLASSES[head].from_backbone(tmp_path, width_multipliers=[0.25, 1.0], router_layer=1)
    with torch.no_grad():
        expected = model(**batch)
        if head == "base":
            order = importance.channels.argsort(descending=True)
            assert_close(loaded(**batch).last_hidden_state, expected.last_hidden_state[..., order])
            batch.pop("pooler_output", None)
            assert_close(sharcs(**batch).last_hidden_state, expected.last_hidden_state[..., order])
            return
        for outputs in (loaded(**batch), sharcs(**batch)):
            for first, second in zip(main_outputs(outputs), main_outputs(expected), strict=True):
                assert_close(first, second)


def test_the_narrow_path_gets_what_matters_most():
    model = tiny_backbone("roberta")
    importance = compute_importance(model, labelled_batches(model))
    sharcs = SHARCS_CLASSES["sequence-classification"].from_backbone(
        reorder_backbone(model, importance), width_multipliers=[0.25, 1.0], router_layer=1
    )
    channels = importance.channels.topk(HIDDEN // 4).indices
    for layer in (1, 2):
        head = int(importance.heads[layer].argmax())
        rows = torch.arange(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        neurons = importance.neurons[layer].topk(NEURONS // 4).indices
        stock, ours = model.roberta.encoder.layer[layer], sharcs.sharcs.layers[layer]
        query = stock.attention.self.query.weight[rows][:, channels]
        assert torch.equal(ours.attention.query.weight[:HEAD_SIZE, : HIDDEN // 4], query)
        down = stock.output.dense.weight[channels][:, neurons]
        assert torch.equal(ours.output.weight[: HIDDEN // 4, : NEURONS // 4], down)


# ---- importance -----------------------------------------------------------------------------------------------------


def naive_importance(model, batches, monkeypatch) -> Importance:
    """
    The definition: masks on attention probabilities and on every place of the residual stream, gradients of weights
    for neurons, one backward pass a batch.
    """
    layers = list(layers_of(model))
    attentions = {}
    for number, layer in enumerate(layers):
        for module in layer.modules():
            attentions[id(module)] = number
    head_mask = torch.ones(LAYERS, NUM_HEADS, requires_grad=True)
    channel_mask = torch.ones(HIDDEN, requires_grad=True)

    def masked_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(dim=-1) * head_mask[attentions[id(module)]].view(1, -1, 1, 1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(importlib.import_module(type(model).__module__), "eager_attention_forward", masked_attention)
    base = model.base_model
    places = [base.embeddings_project if hasattr(base, "embeddings_project") else base.embeddings]
    places += [module for layer in layers for module in layer.modules() if isinstance(module, nn.LayerNorm)]
    assert len(places) == 1 + 2 * LAYERS
    handles = [place.register_forward_hook(lambda *call: call[2] * channel_mask) for place in places]
    totals = Importance(torch.zeros(LAYERS, NUM_HEADS), torch.zeros(LAYERS, NEURONS), torch.zeros(HIDDEN))
    for batch in batches:
        model.zero_grad()
        head_mask.grad = channel_mask.grad = None
        model(**batch).loss.backward()
        totals.heads.add_(head_mask.grad.abs())
        totals.channels.add_(channel_mask.grad.abs())
        for layer in range(LAYERS):
            up, down = feed_forward_of(model, layer)
            incoming = (up.weight * up.weight.grad).sum(dim=1) + up.bias * up.bias.grad
            outgoing = (down.weight * down.weight.grad).sum(dim=0)
            totals.neurons[layer].add_((incoming.abs() + outgoing.abs()).detach())
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return totals


@each_loss_head
@each_family
def test_importance_is_its_definition(family, head, monkeypatch):
    model = tiny_backbone(family, head, attention="eager")
    batches = labelled_batches(model, head)
    found = {per_row: compute_importance(model, batches, per_row=per_row) for per_row in (True, False)}
    of_single_rows = compute_importance(model, one_by_one(batches))
    assert_same_importance(found[False], naive_importance(model, batches, monkeypatch))
    assert_same_importance(of_single_rows, naive_importance(model, one_by_one(batches), monkeypatch))
    if head in ("sequence-classification", "question-answering"):  # whose loss is a mean over rows
        assert_same_importance(found[True], of_single_rows)
        assert (found[True].heads > 3.01 * found[False].heads).any(), "no row cancels another; nothing was tested"


@each_family
def test_attention_implementations_agree(family):
    model = tiny_backbone(family, attention="sdpa")
    batches = labelled_batches(model)
    found = compute_importance(model, batches)
    model.set_attn_implementation("eager")
    assert_same_importance(found, compute_importance(model, batches))


@pytest.mark.parametrize("per_row", [True, False])
def test_batches_do_not_leak_into_each_other(per_row):
    model = tiny_backbone()
    batches = labelled_batches(model, count=3)
    together = compute_importance(model, batches, per_row=per_row)
    alone = [compute_importance(model, [batch], per_row=per_row) for batch in batches]
    total = Importance(*(sum(getattr(scores, part) for scores in alone) for part in PARTS))
    assert_same_importance(together, total)


def test_order_of_batches_does_not_matter():
    model = tiny_backbone()
    batches = labelled_batches(model, count=3)
    assert_same_importance(compute_importance(model, batches), compute_importance(model, batches[::-1]))


def test_padding_does_not_matter():
    model = tiny_backbone()
    batch = labelled_batches(model, count=1)[0]
    longer = {
        name: values if name == "labels" else nn.functional.pad(values, (0, 4)) for name, values in batch.items()
    }
    assert_same_importance(compute_importance(model, [longer]), compute_importance(model, [batch]))


def test_max_batches_stops_without_drawing_more():
    model = tiny_backbone()
    batches = labelled_batches(model, count=3)
    drawn = iter(batches)
    found = compute_importance(model, drawn, max_batches=2)
    assert_same_importance(found, compute_importance(model, batches[:2]))
    assert len(list(drawn)) == 1


@pytest.mark.parametrize(
    "overrides, labels",
    [
        ({"num_labels": 1}, torch.tensor([0.3, -1.2, 2.0])),
        ({"problem_type": "multi_label_classification"}, torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])),
    ],
    ids=["regression", "multi-label"],
)
@each_family
def test_other_losses_of_classifiers(family, overrides, labels, monkeypatch):
    model = tiny_backbone(family, attention="eager", **overrides)
    batches = [{**batch, "labels": labels} for batch in labelled_batches(model)]
    found = compute_importance(model, batches)
    assert_same_importance(found, naive_importance(model, one_by_one(batches), monkeypatch))


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_chunked_feed_forward_layers_count_once(family):
    model = tiny_backbone(family)
    batches = [{name: v[:, :8] if v.dim() == 2 else v for name, v in b.items()} for b in labelled_batches(model)]
    expected = compute_importance(model, batches)
    for layer in layers_of(model):
        (layer.ffn if family == "distilbert" else layer).chunk_size_feed_forward = 4
    assert_same_importance(compute_importance(model, batches), expected)


@each_family
def test_frozen_weights_and_no_grad_change_nothing(family):
    model = tiny_backbone(family)
    batches = labelled_batches(model)
    expected = compute_importance(model, batches)
    model.requires_grad_(False)
    with torch.no_grad():
        assert_same_importance(compute_importance(model, batches), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_the_model_does_not_take_is_ignored():
    model = tiny_backbone("distilbert")
    batches = labelled_batches(model)
    more = [
        {**batch, "token_type_ids": batch["input_ids"] * 0, "sample_index": torch.arange(3), "text": ["a", "b", "c"]}
        for batch in batches
    ]
    assert_same_importance(compute_importance(model, more), compute_importance(model, batches))


@each_family
def test_importance_leaves_the_model_as_it_was(family):
    model = tiny_backbone(family).train()
    model.base_model.embeddings.eval()
    model.classifier.bias.requires_grad_(False) if hasattr(model.classifier, "bias") else None
    first = next(model.parameters())
    first.grad = torch.full_like(first, 3.0)
    before = copy.deepcopy(model)
    batches = labelled_batches(model)
    with no_complaints():
        compute_importance(model, batches)
    with pytest.raises(ValueError, match="has no labels"):
        compute_importance(model, [*batches, {"input_ids": batches[0]["input_ids"]}])
    assert model.config.problem_type is None
    assert model.config.to_dict() == before.config.to_dict()
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then) and now.requires_grad == then.requires_grad, name
        assert (now.grad is None) == (name != "never" and now is not first), name
    assert torch.equal(first.grad, torch.full_like(first, 3.0))


def test_evaluation_mode_and_repeatability():
    """Dropout would make two runs differ."""
    model = tiny_backbone().train()
    batches = labelled_batches(model)
    first, second = compute_importance(model, batches), compute_importance(model, batches)
    for part in PARTS:
        assert torch.equal(getattr(first, part), getattr(second, part))


def test_half_precision_model():
    model = tiny_backbone().to(torch.bfloat16)
    importance = compute_importance(model, labelled_batches(model))
    assert all(getattr(importance, part).dtype == torch.float32 for part in PARTS)
    reordered = reorder_backbone(model, importance)
    assert reordered.dtype == torch.bfloat16


# ---- files ----------------------------------------------------------------------------------------------------------


def test_importance_file(tmp_path):
    importance = random_importance()
    importance.save(tmp_path / "importance.safetensors")
    loaded = Importance.load(tmp_path / "importance.safetensors")
    for part in PARTS:
        assert torch.equal(getattr(loaded, part), getattr(importance, part))
    assert [path.name for path in tmp_path.iterdir()] == ["importance.safetensors"]


def test_importance_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "importance.safetensors"
    random_importance().save(path)
    before = path.read_bytes()

    def fail(tensors, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("modeling_sharcs.reordering.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        random_importance(1).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_importance_file_errors(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"heads": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"holds the tensors \['heads'\], .*\['channels', 'heads', 'neurons'\].*save"):
        Importance.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a safetensors file .*Importance.save"):
        Importance.load(path)
    with pytest.raises(FileNotFoundError):
        Importance.load(tmp_path / "missing.safetensors")


# ---- errors ---------------------------------------------------------------------------------------------------------


def refuses(message: str):
    return pytest.raises(ValueError, match=message)


def test_data_errors():
    model = tiny_backbone()
    batches = labelled_batches(model)
    with refuses("The data loader gave no batches; importance needs labelled rows"):
        compute_importance(model, [])
    with refuses("max_batches must be at least 1, got 0; leave it out"):
        compute_importance(model, batches, max_batches=0)
    unlabelled = {name: values for name, values in batches[1].items() if name != "labels"}
    with refuses(r"Batch 1 .* has no labels, its keys are \['attention_mask', 'input_ids', 'token_type_ids'\]"):
        compute_importance(model, [batches[0], unlabelled])
    with refuses("'label'.* needs 'labels', or 'start_positions'"):
        compute_importance(model, [{**unlabelled, "label": batches[1]["labels"]}])


def test_loss_errors():
    model = tiny_backbone(head="token-classification")
    batches = labelled_batches(model, "token-classification")
    batches[1]["labels"].fill_(-100)
    with refuses(r"The loss of batch 1 .* is nan, .* labels other than -100"):
        compute_importance(model, batches)
    model.classifier.bias.data[0] = torch.inf
    with refuses("The loss of batch 0 .* is (nan|inf)"):
        compute_importance(model, batches)


def test_question_answering_needs_both_positions():
    model = tiny_backbone(head="question-answering")
    batch = labelled_batches(model, "question-answering")[0]
    del batch["end_positions"]
    with refuses("has no labels, .*'start_positions' and 'end_positions'"):
        compute_importance(model, [batch])


def test_model_errors():
    importance, batches = random_importance(), labelled_batches(tiny_backbone())
    albert = AutoModelForSequenceClassification.from_config(
        AlbertConfig(**{**SIZES, "embedding_size": 8, "num_hidden_layers": 1})
    )
    choice = AutoModelForMultipleChoice.from_config(tiny_backbone().config)
    extended = tiny_backbone()
    extended.bert.encoder.layer[0].adapter = nn.Linear(2, 2)
    decoder = tiny_backbone(is_decoder=True)
    for model, message in (
        (albert, r"model type 'albert' is not supported; supported are \['bert'"),
        (tiny_sharcs(), "model type 'sharcs' is not supported"),
        (choice, r"does not know the head of BertForMultipleChoice; supported are .*'ForSequenceClassification'"),
        (extended, "BertForSequenceClassification has the parameter 'bert.encoder.layer.0.adapter.weight', which"),
        (decoder, "is_decoder=True is not supported"),
        ("bert-base-uncased", "takes a loaded Transformers model, got str; load a name or a folder"),
    ):
        with refuses(message):
            reorder_backbone(model, importance)
        with refuses(message):
            compute_importance(model, batches)
    with refuses("Importance is a derivative of a loss, and BertModel has none; load the fine-tuned model"):
        compute_importance(tiny_backbone(head="base"), batches)


@pytest.mark.parametrize("part", PARTS)
def test_importance_errors(part):
    model, importance = tiny_backbone(), random_importance()
    scores = getattr(importance, part)
    for wrong in (scores[..., 1:], scores.unsqueeze(0)):
        values = {name: wrong if name == part else getattr(importance, name) for name in PARTS}
        shapes = f"{tuple(wrong.shape)}, this BertForSequenceClassification needs {tuple(scores.shape)}"
        with refuses(f"The importance of {part} has the shape {re.escape(shapes)}; compute it with this model"):
            reorder_backbone(model, Importance(**values))
    scores.view(-1)[:2] = torch.nan
    with refuses(f"2 of {scores.numel()} importances of {part} are not finite, .* in float32"):
        reorder_backbone(model, importance)


def test_nothing_to_reorder():
    with refuses("Nothing to re-order: heads, neurons and channels are all False; set at least one"):
        reorder(tiny_backbone(), random_importance(), parts=())


# ---- the script -----------------------------------------------------------------------------------------------------

REVIEWS = [(sentence, ("good", "bad")[number % 3 == 0]) for number, sentence in enumerate(SENTENCES * 4)]


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("text-classification/reorder_backbone.py")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A folder with a model that knows the classes in an order of its own, in half precision, and its tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    labels = ["good", "bad"]
    model = tiny_backbone(
        num_labels=2, id2label=dict(enumerate(labels)), label2id={name: index for index, name in enumerate(labels)}
    )
    model.half().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    """Rows of a file in which the first ones are of one class."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.tsv"
    lines = [f"{sentence}\t{label}" for sentence, label in sorted(REVIEWS, key=lambda row: row[1])]
    path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    return path


def flags(tmp_path, classifier, reviews, *more):
    output = tmp_path / "reordered"
    common = ["--model_name_or_path", classifier, "--train_file", reviews, "--output_dir", output]
    return [str(flag) for flag in (*common, "--cache_dir", tmp_path / "cache", "--batch_size", 7, "--use_cpu", *more)]


def expected_importance(classifier, rows=None) -> Importance:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).float()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    batches = [
        {**tokenizer(sentence, return_tensors="pt"), "labels": torch.tensor([model.config.label2id[label]])}
        for sentence, label in (REVIEWS if rows is None else rows)
    ]
    return compute_importance(model, batches)


def test_script_writes_an_ordinary_checkpoint(classifier, reviews, tmp_path):
    """As a user runs it, with the rows of the file and labels in the model's order."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags(tmp_path, classifier, reviews)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "Re-ordered heads, neurons, channels" in done.stderr and "Traceback" not in done.stderr
    output = tmp_path / "reordered"
    found = Importance.load(output / "importance.safetensors")
    assert_same_importance(found, expected_importance(classifier))
    record = json.loads((output / "reordering.json").read_text())
    assert record["rows"] == len(REVIEWS) and record["reordered"] == list(PARTS)
    assert 0 < record["largest_difference_of_logits"] < 1e-4
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    reordered = AutoModelForSequenceClassification.from_pretrained(output)
    assert reordered.dtype == torch.float16 and reordered.config.label2id == model.config.label2id
    expected = reorder_backbone(model, found)
    for name, value in expected.state_dict().items():
        assert torch.equal(reordered.state_dict()[name], value), name
    assert AutoTokenizer.from_pretrained(output).get_vocab() == tiny_tokenizer().get_vocab()
    if importlib.util.find_spec("matplotlib") is not None:
        assert (output / "importance.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "reordered"]


def test_script_options(script, classifier, reviews, tmp_path):
    """Rows drawn by the seed, and two of three parts."""
    more = ["--max_train_samples", 6, "--seed", 3, "--reorder", "heads", "channels"]
    record = script.main(flags(tmp_path, classifier, reviews, *more))
    assert record["rows"] == 6 and record["reordered"] == ["heads", "channels"]
    found = Importance.load(tmp_path / "reordered" / "importance.safetensors")
    first = sorted(REVIEWS, key=lambda row: row[1])[:6]
    assert not torch.allclose(found.channels, expected_importance(classifier, first).channels)
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    reordered = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reordered")
    expected = reorder(model, found, ("heads", "channels")).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in reordered.state_dict().items())
    with pytest.raises(ValueError, match="--output_dir .* exists and is not empty; choose another"):
        script.main(flags(tmp_path, classifier, reviews))


def test_script_reads_glue_folders(script, classifier, tmp_path):
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    lines = [f"{sentence}\t{int(label == 'good')}" for sentence, label in REVIEWS]
    (folder / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    options = ["--task_name", "sst2", "--data_dir", tmp_path / "glue", "--cache_dir", tmp_path / "cache", "--use_cpu"]
    names = ["--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "reordered"]
    record = script.main([str(flag) for flag in (*names, *options)])
    assert record["rows"] == len(REVIEWS)
    # In GLUE's order the positive class is the second, in the model's it was the first.
    swapped = [(sentence, "bad" if label == "good" else "good") for sentence, label in REVIEWS]
    found = Importance.load(tmp_path / "reordered" / "importance.safetensors")
    assert_same_importance(found, expected_importance(classifier, swapped))


def test_script_leaves_nothing_behind_when_it_fails(script, classifier, reviews, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(script, "plot_importance", fail)
    monkeypatch.setattr(script, "is_matplotlib_available", lambda: True)
    with pytest.raises(OSError, match="disk full"):
        script.main(flags(tmp_path, classifier, reviews))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_script_needs_no_matplotlib(script, classifier, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "is_matplotlib_available", lambda: False)
    script.main(flags(tmp_path, classifier, reviews))
    assert not (tmp_path / "reordered" / "importance.png").exists()


def test_script_errors(script, classifier, reviews, tmp_path):
    tiny_backbone(head="base").save_pretrained(tmp_path / "headless")
    tiny_tokenizer().save_pretrained(tmp_path / "headless")
    with refuses("has no weights for classifier.bias, classifier.weight, .* fine-tune it on the task first"):
        script.main(flags(tmp_path, tmp_path / "headless", reviews))
    with refuses("--batch_size must be at least 1, got 0"):
        script.main(flags(tmp_path, classifier, reviews, "--batch_size", 0))
    words = flags(tmp_path, classifier, reviews)
    words[words.index("--train_file")] = "--validation_file"
    with refuses(r"has the splits \['validation'\], .* give a train_file"):
        script.main(words)
    with pytest.raises(SystemExit):
        script.main(flags(tmp_path, classifier, reviews, "--reorder", "layers"))
    assert not (tmp_path / "reordered").exists()
