# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Paths of routed encoders whose weights are packed: the same results, as long as the weights are the same."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_sharcs import modeling_sharcs
from modeling_sharcs.packing import PackedLayer
from testing_utils import (
    LAYOUTS,
    SHARCS_CLASSES,
    assert_close,
    main_outputs,
    make_batch,
    no_complaints,
    randomise_,
    scalar,
    splitting_price,
    tiny_sharcs,
)
from training_utils import make_sharcs, make_sharcs_trainer


each_head = pytest.mark.parametrize("head", SHARCS_CLASSES)


@pytest.fixture
def packed_calls(monkeypatch):
    """Layers that packed paths have run."""
    calls, call = [], PackedLayer.__call__
    monkeypatch.setattr(PackedLayer, "__call__", lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs))
    return calls


def random_model(head: str = "sequence-classification", layout: str = "bert", **overrides):
    return randomise_(tiny_sharcs(head, layout, **overrides)).eval()


@each_head
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("widest", [True, False])
@torch.no_grad()
def test_the_same_results(head, layout, attention, widest, packed_calls):
    model = random_model(head, layout, entry="projection")
    model.set_attn_implementation(attention)
    batch = make_batch(model.config)
    paths = [{"width": width} for width in model.config.width_multipliers]
    paths.append({"router_price": splitting_price(model, batch)})
    expected = [main_outputs(model(**batch, **path)) for path in paths]
    assert not packed_calls
    keys = model.state_dict().keys()
    with no_complaints():
        assert model.pack_paths(widest) is model
        found = [main_outputs(model(**batch, **path)) for path in paths]
    config = model.config
    narrow, layers = len(paths) - 2, config.num_hidden_layers - config.router_layer
    if widest:  # forced, and routed in two groups at least
        assert len(packed_calls) >= (narrow + 1) * config.num_hidden_layers + config.router_layer + 2 * layers
    else:
        assert (narrow + 1) * layers <= len(packed_calls) <= 2 * narrow * layers
    for first, second in zip(found, expected, strict=True):
        for values, others in zip(first, second, strict=True):
            assert_close(values, others, atol=1e-5)
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize("width", [0.25, 1.0])
@torch.no_grad()
def test_hidden_states_and_attentions(width, packed_calls):
    model = random_model()
    model.set_attn_implementation("eager")
    batch = make_batch(model.config)
    asked = {"width": width, "output_hidden_states": True, "output_attentions": True}
    expected = model(**batch, **asked)
    found = model.pack_paths()(**batch, **asked)
    assert len(packed_calls) == model.config.num_hidden_layers
    for name in ("hidden_states", "attentions"):
        assert len(found[name]) == len(expected[name]) > 1
        for first, second in zip(found[name], expected[name], strict=True):
            assert_close(first, second, atol=1e-5)


@pytest.mark.parametrize("variant", [{"width": 0.25}, {"width": 1.0}, {"router_price": 0.3}])
@torch.no_grad()
def test_tokens_to_keep(variant, packed_calls):
    model = random_model("base")
    batch = make_batch(model.config)
    some = (batch["input_ids"] % 3 == 0).nonzero(as_tuple=True)
    expected, counted = model(**batch, **variant).last_hidden_state[some], []
    for packed in (False, True):
        model = model.pack_paths() if packed else model
        with FlopCounterMode(display=False) as counter:
            found = model(**batch, **variant, tokens_to_keep=some).last_hidden_state
        assert len(found) > 3
        assert_close(found, expected, atol=1e-5)
        counted.append(counter.get_total_flops())
    assert packed_calls and counted[0] == counted[1]


def take_fused_steps(model) -> None:
    # Trainer's default, which changes weights without counting it in their versions.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        scalar(model(**make_batch(model.config), labels=torch.tensor([0, 1, 1]), width=0.5)).backward()
        optimizer.step()


@pytest.mark.parametrize("training", [False, True])
def test_training_drops_the_copies(training, packed_calls, caplog):
    model = random_model().pack_paths()
    take_fused_steps(model.train(training))
    model.eval()
    assert model.sharcs.layers[-1].output.weight.grad.abs().max() > 0
    # That training ends it is expected; that recorded gradients do is said.
    said = [] if training else ["Gradients are recorded (`with torch.no_grad():` records none)"]
    assert [record.message.split(": what")[0] for record in caplog.records] == said
    batch = make_batch(model.config)
    with torch.no_grad():
        expected = model(**batch, width=0.5).logits
        assert not packed_calls
        assert_close(model.pack_paths()(**batch, width=0.5).logits, expected, atol=1e-5)
    assert packed_calls


def test_frozen_weights_serve_where_gradients_are_recorded(packed_calls):
    model = random_model().requires_grad_(False).pack_paths()
    batch = make_batch(model.config)
    embedded = model.get_input_embeddings()(batch.pop("input_ids")).requires_grad_()
    with no_complaints():
        found = model(inputs_embeds=embedded, **batch, width=0.5).logits
    assert packed_calls
    (gradient,) = torch.autograd.grad(found.sum(), embedded)
    model.sharcs.packed_paths = None
    (expected,) = torch.autograd.grad(model(inputs_embeds=embedded, **batch, width=0.5).logits.sum(), embedded)
    assert_close(gradient, expected, atol=1e-5)


def test_a_trainer_drops_the_copies(tiny_tokenizer, tmp_path, packed_calls):
    model = make_sharcs(tiny_tokenizer).pack_paths()
    trainer = make_sharcs_trainer(tiny_tokenizer, tmp_path, model, rows=10, optim="adamw_torch_fused")
    trainer.train()
    trainer.evaluate()
    assert not packed_calls and model.sharcs.packed_paths is None


@torch.no_grad()
def test_exported_and_compiled_models_run_without(packed_calls):
    model = random_model().requires_grad_(False).pack_paths()
    batch = make_batch(model.config)
    expected = model(**batch, width=0.25).logits
    count = len(packed_calls)
    program = torch.export.export(model, (), {**batch, "width": 0.25})
    assert_close(program.module()(**batch, width=0.25).logits, expected, atol=1e-5)
    traced = torch.jit.trace(
        lambda ids: model(input_ids=ids, width=0.25).logits, batch["input_ids"], check_trace=False
    )
    assert torch.isfinite(traced(batch["input_ids"])).all()
    compiled = torch.compile(model, backend="eager")
    assert_close(compiled(**batch, width=0.25).logits, expected, atol=1e-5)
    assert len(packed_calls) == count > 0
    # Neither changes the model.
    assert_close(model(**batch, width=0.25).logits, expected, atol=0, rtol=0)
    assert len(packed_calls) == 2 * count


def test_replicas_run_without(caplog):
    model = random_model().pack_paths()
    replica = model.sharcs._replicate_for_data_parallel()
    with torch.no_grad():
        assert replica._packed_in_use() is None and not caplog.records
        assert model.sharcs._packed_in_use() is model.sharcs.packed_paths


@torch.no_grad()
def change_norm(model):
    model.sharcs.layers[-1].output_norm.weight.mul_(2)
    return model


def replace_parameter(model):
    layer = model.sharcs.layers[-1].output
    layer.weight = nn.Parameter(layer.weight.detach() * 2)
    return model


@torch.no_grad()
def change_the_front(model):
    model.sharcs.layers[0].attention.key.weight.mul_(2)
    return model


def replace_layer(model):
    model.sharcs.layers[-1] = randomise_(copy.deepcopy(model.sharcs.layers[-1]), seed=5)
    return model


def remove_layer(model):
    model.sharcs.layers = model.sharcs.layers[:-1]
    return model


def load(model, **options):
    state = {name: values * 1.5 for name, values in model.state_dict().items()}
    model.load_state_dict(state, **options)
    return model


class Adapter(nn.Module):
    """Around a linear layer, as adapters are, with the name of its weight."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    @property
    def weight(self):
        return self.base.weight

    def forward(self, hidden, *sizes):
        return self.base(hidden, *sizes) + 0.5


def adapt(model):
    layer = model.sharcs.layers[-1]
    layer.output = Adapter(layer.output)
    return model


CHANGES = {
    "a norm in place": change_norm,
    "before the router": change_the_front,
    "loaded": load,
    "loaded by assignment": lambda model: load(model, assign=True),
    "a parameter replaced": replace_parameter,
    "a layer replaced": replace_layer,
    "a layer removed": remove_layer,
    "moved": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_other_weights_are_dropped(change, packed_calls, caplog):
    model = random_model().pack_paths()
    batch = make_batch(model.config)
    changed = CHANGES[change](model)
    caplog.clear()
    with torch.no_grad():
        found = [main_outputs(changed(**batch, width=width)) for width in (0.25, 0.5)]
        assert not packed_calls
        assert [record.message.split(":")[0] for record in caplog.records] == [
            "The weights are no longer those that were packed (loaded, moved, replaced or changed)"
        ]
        changed.pack_paths()
        again = [main_outputs(changed(**batch, width=width)) for width in (0.25, 0.5)]
    assert packed_calls
    for first, second in zip(again, found, strict=True):
        assert_close(first[0], second[0], atol=1e-5)


def test_copies_of_a_model_have_none(packed_calls, tmp_path):
    model = random_model().pack_paths()
    batch = make_batch(model.config)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert other.sharcs.packed_paths is None and model.sharcs.packed_paths is not None
        with torch.no_grad(), no_complaints():
            found = other(**batch, width=0.5).logits
            assert not packed_calls
            assert_close(found, model(**batch, width=0.5).logits, atol=1e-5)
        assert packed_calls
        packed_calls.clear()


def test_inference_mode(packed_calls):
    model = random_model().pack_paths()
    with torch.inference_mode():
        model(**make_batch(model.config), width=0.25)
        assert packed_calls
        made_there = copy.deepcopy(model)
    with pytest.raises(ValueError, match="load the model outside of `torch.inference_mode"):
        made_there.pack_paths()


def test_adapters_are_refused_and_seen(packed_calls, caplog):
    model = adapt(random_model().pack_paths())
    with torch.no_grad():
        model(**make_batch(model.config), width=0.25)
    assert not packed_calls and len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"A layer holds a Adapter, .* \(`merge_and_unload\(\)`\), or .*widest=False"):
        model.pack_paths()


@torch.no_grad()
def test_half_precision_and_autocast(packed_calls):
    model = random_model().to(torch.bfloat16)
    batch = make_batch(model.config)
    expected = model(**batch, width=0.25).logits
    assert_close(model.pack_paths()(**batch, width=0.25).logits.float(), expected.float(), atol=3e-2, rtol=3e-2)
    model = random_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**batch, width=0.25).logits
        found = model.pack_paths()(**batch, width=0.25).logits
    assert found.dtype == expected.dtype and len(packed_calls) == 2 * model.config.num_hidden_layers
    assert_close(found.float(), expected.float(), atol=3e-2, rtol=3e-2)


def test_nothing_is_saved(tmp_path):
    model = random_model().pack_paths()
    model.save_pretrained(tmp_path)
    with no_complaints():
        loaded = type(model).from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys() and loaded.sharcs.packed_paths is None


@pytest.mark.parametrize("widest, layers", [(True, 3), (False, 0)])
def test_one_width(widest, layers, packed_calls):
    model = random_model(width_multipliers=[1.0])
    batch = make_batch(model.config)
    with torch.no_grad():
        expected = model(**batch).logits
        assert_close(model.pack_paths(widest)(**batch).logits, expected, atol=1e-5)
    assert len(packed_calls) == layers


def test_what_changes_before_the_router_concerns_packed_narrow_paths_not(packed_calls):
    model = change_the_front(random_model().pack_paths(widest=False))
    with torch.no_grad(), no_complaints():
        model(**make_batch(model.config), width=0.5)
    assert packed_calls


@pytest.mark.parametrize("attention_mask", [None, [[1] * 5, [1, 1, 1, 0, 0], [0] * 5]])
@torch.no_grad()
def test_masks_of_scores_are_what_attention_makes_of_them(attention_mask, monkeypatch):
    model = random_model()
    batch = {"input_ids": torch.randint(3, model.config.vocab_size, (3, 5))}
    if attention_mask is not None:
        batch["attention_mask"] = torch.tensor(attention_mask)
    paths = [{"width": 0.25}, {"width": 1.0}, {"router_price": splitting_price(model, batch)}]
    found = [main_outputs(model(**batch, **path)) for path in paths]
    monkeypatch.setattr(modeling_sharcs, "additive_mask", lambda mask, *_: mask)
    for path, outputs in zip(paths, found, strict=True):
        for values, others in zip(outputs, main_outputs(model(**batch, **path)), strict=True):
            assert_close(values, others, atol=0, rtol=0)


def test_exported_graphs_keep_boolean_masks(monkeypatch):
    config, mask = random_model().config, torch.ones(1, 1, 2, 2, dtype=torch.bool)
    assert modeling_sharcs.additive_mask(mask, config, torch.float32).dtype == torch.float32
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert modeling_sharcs.additive_mask(mask, config, torch.float32) is mask


@pytest.mark.parametrize("first, devices", [(2, "'cpu', 'meta'"), (0, "'meta'")])
def test_weights_elsewhere(first, devices):
    model = random_model()
    model.sharcs.layers[first:].to("meta")
    with pytest.raises(ValueError, match=rf"these weights are on \[{devices}\]: load without"):
        model.pack_paths()
