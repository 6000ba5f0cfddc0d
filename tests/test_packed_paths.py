# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Narrow paths of routed encoders whose weights are packed: the same results, as long as the weights are the same."""

import copy

import pytest
import torch
from torch import nn

from modeling_sharcs.modeling_sharcs import PackedLayer
from testing_utils import (
    LAYOUTS,
    SHARCS_CLASSES,
    assert_close,
    main_outputs,
    make_batch,
    make_targets,
    no_complaints,
    randomise_,
    scalar,
    splitting_price,
    tiny_sharcs,
)


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
@torch.no_grad()
def test_the_same_results(head, layout, attention, packed_calls):
    model = random_model(head, layout, entry="projection")
    model.set_attn_implementation(attention)
    batch = make_batch(model.config)
    paths = [{"width": width} for width in model.config.width_multipliers]
    paths.append({"router_price": splitting_price(model, batch)})
    expected = [main_outputs(model(**batch, **path)) for path in paths]
    assert not packed_calls
    keys = model.state_dict().keys()
    with no_complaints():
        assert model.pack_narrow_paths() is model
        found = [main_outputs(model(**batch, **path)) for path in paths]
    narrow, layers = len(paths) - 2, model.config.num_hidden_layers - model.config.router_layer
    assert len(packed_calls) >= (narrow + 1) * layers  # forced, and routed
    for first, second in zip(found, expected, strict=True):
        for values, others in zip(first, second, strict=True):
            assert_close(values, others, atol=1e-5)
    assert model.state_dict().keys() == keys


@torch.no_grad()
def test_hidden_states_and_attentions():
    model = random_model()
    model.set_attn_implementation("eager")
    batch = make_batch(model.config)
    asked = {"width": 0.25, "output_hidden_states": True, "output_attentions": True}
    expected = model(**batch, **asked)
    found = model.pack_narrow_paths()(**batch, **asked)
    for name in ("hidden_states", "attentions"):
        assert len(found[name]) == len(expected[name]) > 1
        for first, second in zip(found[name], expected[name], strict=True):
            assert_close(first, second, atol=1e-5)


def test_gradients_and_training_take_the_ordinary_way(packed_calls):
    model = random_model().pack_narrow_paths()
    batch = make_batch(model.config)
    targets = make_targets("sequence-classification", model.config, (3, 11))
    scalar(model(**batch, **targets, width=0.25)).backward()
    assert model.sharcs.layers[-1].output.weight.grad.abs().max() > 0
    model.train()
    with torch.no_grad():
        model(**batch, width=0.25)
    assert not packed_calls
    model.eval()
    with torch.no_grad():
        model(**batch, width=0.25)
    assert packed_calls


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scalar(model(**make_batch(model.config), labels=torch.tensor([0, 1, 1]), width=0.5)).backward()
    optimizer.step()
    return model


@torch.no_grad()
def change_norm(model):
    model.sharcs.layers[-1].output_norm.weight.mul_(2)
    return model


def replace_parameter(model):
    layer = model.sharcs.layers[-1].output
    layer.weight = nn.Parameter(layer.weight.detach() * 2)
    return model


def load(model, **options):
    state = {name: values * 1.5 for name, values in model.state_dict().items()}
    model.load_state_dict(state, **options)
    return model


CHANGES = {
    "trained": step,
    "changed in place": change_norm,
    "loaded": load,
    "loaded by assignment": lambda model: load(model, assign=True),
    "replaced": replace_parameter,
    "moved": lambda model: model.double(),
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_other_weights_are_dropped(change, packed_calls, caplog):
    model = random_model().pack_narrow_paths()
    batch = make_batch(model.config)
    changed = CHANGES[change](model)
    caplog.clear()
    with torch.no_grad():
        found = [main_outputs(changed(**batch, width=width)) for width in (0.25, 0.5)]
        assert not packed_calls
        assert [record.message.split(":")[0] for record in caplog.records] == [
            "The weights are no longer those that `pack_narrow_paths()` copied (they were trained, loaded, moved, or "
            "the model was copied)"
        ]
        changed.pack_narrow_paths()
        again = [main_outputs(changed(**batch, width=width)) for width in (0.25, 0.5)]
    assert packed_calls
    for first, second in zip(again, found, strict=True):
        assert_close(first[0], second[0], atol=1e-5)


@torch.no_grad()
def test_weights_of_inference_mode(packed_calls):
    with torch.inference_mode():
        model = random_model().pack_narrow_paths()
        model(**make_batch(model.config), width=0.25)
    assert packed_calls


@torch.no_grad()
def test_half_precision_and_autocast():
    model = random_model().to(torch.bfloat16)
    batch = make_batch(model.config)
    expected = model(**batch, width=0.25).logits
    assert_close(model.pack_narrow_paths()(**batch, width=0.25).logits.float(), expected.float(), atol=3e-2, rtol=3e-2)
    model = random_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**batch, width=0.25).logits
        found = model.pack_narrow_paths()(**batch, width=0.25).logits
    assert found.dtype == expected.dtype
    assert_close(found.float(), expected.float(), atol=3e-2, rtol=3e-2)


def test_nothing_is_saved(tmp_path):
    model = random_model().pack_narrow_paths()
    model.save_pretrained(tmp_path)
    with no_complaints():
        loaded = type(model).from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys() and not loaded.sharcs._packed


def test_one_width_has_nothing_to_pack():
    model = random_model(width_multipliers=[1.0]).pack_narrow_paths()
    batch = make_batch(model.config)
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def test_layers_on_several_devices():
    model = random_model()
    model.sharcs.layers[-1].to("meta")
    with pytest.raises(ValueError, match=r"the layers are on 2: \['cpu', 'meta'\]; load the model without"):
        model.pack_narrow_paths()
