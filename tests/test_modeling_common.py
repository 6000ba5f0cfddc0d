# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What every model of every family does, as one expects of a model of transformers: rows of testing_utils.FAMILIES."""

import copy
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from modeling_mos.kept_tokens import FIRST_TOKEN
from testing_utils import (
    AUTO_CLASSES,
    FAMILIES,
    HEADS,
    LAYOUTS,
    assert_close,
    main_outputs,
    make_batch,
    make_targets,
    no_complaints,
    randomise_,
    scalar,
)


FAMILY_BY_NAME = {family.name: family for family in FAMILIES}
MODELS = [(family.name, head) for family in FAMILIES for head in HEADS if head in family.models]
each_model = pytest.mark.parametrize("family, head", MODELS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
# Where a model's layout makes no difference, the first head with a loss and the second layout stand for all.
each_family = pytest.mark.parametrize("family", list(FAMILY_BY_NAME))


def build(family: str, head: str, layout: str = "bert", **kwargs):
    model = FAMILY_BY_NAME[family].model(head, layout, **kwargs)
    return model, make_batch(model.config)


def variants(family: str, model) -> list[dict]:
    return FAMILY_BY_NAME[family].variants(model)


def uniform_variants(family: str, model) -> list[dict]:
    """Without those that send the rows of a batch through paths of different shapes, which takes their values."""
    return [variant for variant in variants(family, model) if "router_price" not in variant]


@each_model
@each_layout
@each_attention
def test_forward_shapes(family, head, layout, attention):
    model, batch = build(family, head, layout, attention=attention)
    config, shape = model.config, tuple(batch["input_ids"].shape)
    for variant in variants(family, model):
        with torch.no_grad():
            outputs = model(**batch, **make_targets(head, config, shape), **variant)
        width = FAMILY_BY_NAME[family].hidden_widths(model, variant)[-1]
        if family in ("mos-subnet", "sharcs"):
            width = config.hidden_size
        pooled = [(shape[0], width)] if FAMILY_BY_NAME[family].has_pooler else []
        expected = {
            "base": [(*shape, width), *pooled],
            "masked-lm": [(*shape, config.vocab_size)],
            "sequence-classification": [(shape[0], 3)],
            "token-classification": [(*shape, 3)],
            "question-answering": [shape, shape],
        }[head]
        assert [tuple(output.shape) for output in main_outputs(outputs)] == expected
        assert all(output.isfinite().all() for output in main_outputs(outputs))
        if head != "base":
            assert outputs.loss.shape == () and outputs.loss > 0


@each_model
@each_layout
def test_eager_equals_sdpa_with_padding(family, head, layout):
    model, batch = build(family, head, layout, attention="eager")
    for variant in variants(family, model):
        found = {}
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            with torch.no_grad():
                found[attention] = main_outputs(model(**batch, **variant))
        real = batch["attention_mask"].bool()
        for eager, sdpa in zip(found["eager"], found["sdpa"], strict=True):
            per_token = eager.shape[:2] == real.shape
            assert_close(sdpa[real] if per_token else sdpa, eager[real] if per_token else eager)


@each_model
@each_layout
def test_padding_changes_nothing(family, head, layout):
    model, batch = build(family, head, layout)
    for variant in variants(family, model):
        with torch.no_grad():
            padded = main_outputs(model(**batch, **variant))
            for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
                alone = {name: values[row : row + 1, :length] for name, values in batch.items()}
                alone.pop("attention_mask")
                for whole, single in zip(padded, main_outputs(model(**alone, **variant)), strict=True):
                    per_token = whole.shape[:2] == batch["input_ids"].shape
                    assert_close(whole[row, :length] if per_token else whole[row], single[0])


@each_model
@each_layout
def test_inputs_embeds(family, head, layout):
    model, batch = build(family, head, layout)
    batch = make_batch(model.config, padding=False)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    rest = {name: values for name, values in batch.items() if name != "input_ids"}
    for variant in variants(family, model):
        with torch.no_grad():
            by_ids, by_embeds = model(**batch, **variant), model(inputs_embeds=embedded, **rest, **variant)
        for first, second in zip(main_outputs(by_ids), main_outputs(by_embeds), strict=True):
            assert_close(second, first)
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        model(**batch, inputs_embeds=embedded)
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        model(**rest)


@each_model
def test_hidden_states(family, head):
    model, batch = build(family, head)
    for variant in uniform_variants(family, model):
        with torch.no_grad():
            plain = model(**batch, **variant)
            outputs = model(**batch, **variant, output_hidden_states=True)
        assert plain.hidden_states is None
        widths = [tuple(state.shape) for state in outputs.hidden_states]
        expected = FAMILY_BY_NAME[family].hidden_widths(model, variant)
        assert widths == [(*batch["input_ids"].shape, width) for width in expected]
        for first, second in zip(main_outputs(plain), main_outputs(outputs), strict=True):
            assert_close(second, first)
        # (A subnet's states are those inside its layers, before the projection to `last_hidden_state`.)
        if head == "base" and outputs.hidden_states[-1].shape == outputs.last_hidden_state.shape:
            assert_close(outputs.hidden_states[-1], outputs.last_hidden_state, atol=0, rtol=0)


def flops(model, *args, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops()


@each_family
@each_layout
@each_attention
@torch.no_grad()
def test_tokens_to_keep(family, layout, attention):
    model, batch = build(family, "base", layout, attention=attention)
    some = batch["input_ids"] % 3 == 0
    indices = [FIRST_TOKEN, some, some.nonzero(as_tuple=True), (some & False).nonzero(as_tuple=True)]
    for variant in variants(family, model):
        whole = model(**batch, **variant).last_hidden_state
        for index in indices:
            outputs = model(**batch, **variant, tokens_to_keep=index)
            assert outputs.last_hidden_state.shape == whole[index].shape
            assert_close(outputs.last_hidden_state, whole[index], atol=1e-5)
            assert not FAMILY_BY_NAME[family].has_pooler or outputs.pooler_output is None
    model.pooler = None
    for variant in uniform_variants(family, model):
        everything = flops(model, **batch, **variant)
        end = FAMILY_BY_NAME[family].end_products(model, variant)
        for index in indices:
            left_out = some.numel() - some[index].numel()
            assert everything - flops(model, **batch, **variant, tokens_to_keep=index) == 2 * left_out * end
        # Where hidden states are asked for, they are whole.
        asked = {**batch, **variant, "output_hidden_states": True}
        expected, outputs = model(**asked), model(**asked, tokens_to_keep=FIRST_TOKEN)
        assert_close(outputs.last_hidden_state, expected.last_hidden_state[:, :1], atol=1e-5)
        for state, other in zip(outputs.hidden_states, expected.hidden_states, strict=True):
            assert_close(state, other, atol=0, rtol=0)


@each_family
def test_messages_of_tokens_to_keep(family):
    model, batch = build(family, "base")
    mask = batch["attention_mask"]
    for index, given in (
        (mask, "torch.int64 of 2 dimensions"),
        (mask.bool().nonzero(), "torch.int64 of 2 dimensions"),
        (mask.bool()[0], "torch.bool of 1 dimensions"),
        (mask.bool().numpy(), "ndarray"),
        ((0, mask), r"\(int, Tensor\)"),
        ((slice(None),) * 3, r"\(slice, slice, slice\)"),
    ):
        with pytest.raises(TypeError, match=rf"boolean mask of shape \(batch, tokens\), .* two slices, got {given}"):
            model(**batch, tokens_to_keep=index)
    with pytest.raises(ValueError, match=r"is a mask of shape \(3, 7\), the tokens' is \(3, 11\)"):
        model(**batch, tokens_to_keep=mask[:, :7].bool())
    for head in set(FAMILY_BY_NAME[family].models) - {"base"}:
        model, batch = build(family, head)
        with pytest.raises(TypeError, match="is for encoders .* heads choose the tokens that they read themselves"):
            model(**batch, tokens_to_keep=FIRST_TOKEN)


@each_family
def test_training_classifiers_run_the_last_layer_for_the_first_token(family):
    """The same scores and gradients, for fewer FLOPs; evaluation does all of them, as `count_flops` says."""
    model, batch = build(family, "sequence-classification", attention="eager")
    targets = make_targets("sequence-classification", model.config, batch["input_ids"].shape)
    for variant in uniform_variants(family, without_dropout(model)):
        found, counted = [], []
        for asked in (False, True):
            model.train().zero_grad()
            outputs = model(**batch, **targets, **variant, output_hidden_states=asked)
            outputs.loss.backward()
            found.append((outputs, {name: value.grad for name, value in model.named_parameters()}))
            counted.append(flops(model, **batch, **variant, output_hidden_states=asked))
        (outputs, gradients), (expected, expected_gradients) = found
        assert_close(outputs.logits, expected.logits, atol=1e-5)
        for name, gradient in expected_gradients.items():
            assert (gradients[name] is None) == (gradient is None)
            if gradient is not None:
                assert_close(gradients[name], gradient, atol=1e-5)
        evaluated = [flops(model.eval(), **batch, **variant, output_hidden_states=asked) for asked in (False, True)]
        left_out = batch["input_ids"].numel() - len(batch["input_ids"])
        end = FAMILY_BY_NAME[family].end_products(model.base_model, variant)
        assert evaluated[0] - counted[0] == 2 * left_out * end
        assert counted[0] < counted[1] <= evaluated[1]


@each_model
def test_hidden_states_by_configuration(family, head):
    model, batch = build(family, head, output_hidden_states=True)
    with torch.no_grad():
        assert model(**batch).hidden_states is not None
        assert model(**batch, output_hidden_states=False).hidden_states is None


@each_model
def test_attentions(family, head):
    model, batch = build(family, head, attention="eager")
    rows, tokens = batch["input_ids"].shape
    for variant in uniform_variants(family, model):
        with torch.no_grad():
            outputs = model(**batch, **variant, output_attentions=True)
        depth = len(FAMILY_BY_NAME[family].hidden_widths(model, variant)) - 1
        assert len(outputs.attentions) == depth
        for weights in outputs.attentions:
            assert weights.shape[0] == rows and weights.shape[2:] == (tokens, tokens)
            assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
            # Nothing looks at padding.
            assert weights[1][..., batch["attention_mask"][1] == 0].abs().max() < 1e-6
    assert model(**batch).attentions is None
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"'sdpa' does not return attention weights; call .*\"eager\""):
        model(**batch, output_attentions=True)


@each_model
def test_tuple_output(family, head):
    model, batch = build(family, head)
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    with torch.no_grad():
        outputs = model(**batch, **targets, output_hidden_states=True)
        values = model(**batch, **targets, output_hidden_states=True, return_dict=False)
    assert isinstance(values, tuple) and len(values) == len(outputs.to_tuple())
    for value, expected in zip(values, outputs.to_tuple(), strict=True):
        assert_close(value, expected, atol=0, rtol=0)


@each_model
@each_layout
def test_every_parameter_is_trained(family, head, layout):
    model, batch = build(family, head, layout)
    model.train()
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    for variant in FAMILY_BY_NAME[family].trained_by(model):
        scalar(model(**batch, **targets, **variant)).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    # These biases shift all scores of a softmax alike, which it does not see.
    blind = ("key.bias", "qa_outputs.bias")
    still = [name for name, value in model.named_parameters() if not value.grad.any() and not name.endswith(blind)]
    assert not still


def enable_checkpointing(model) -> None:
    # Renamed in transformers 5.23.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "config"):
            module.config.attention_probs_dropout_prob = 0.0
    return model


@each_model
def test_gradient_checkpointing(family, head):
    # All variants summed in one backward: what was recomputed must not depend on which variant ran last.
    gradients, losses = [], []
    for checkpointing in (False, True):
        model, batch = build(family, head)
        targets = make_targets(head, model.config, batch["input_ids"].shape)
        # No dropout, so that both runs are the same function; training mode, so that checkpointing is active.
        without_dropout(model).train()
        if checkpointing:
            enable_checkpointing(model)
        loss = sum(scalar(model(**batch, **targets, **variant)) for variant in variants(family, model))
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    assert_close(losses[1], losses[0], atol=0, rtol=1e-6)
    for name, expected in gradients[0].items():
        assert_close(gradients[1][name], expected, atol=1e-6)


@each_model
def test_gradient_checkpointing_recomputes(family, head):
    model, batch = build(family, head)
    calls = []
    layer = next(module for module in model.modules() if type(module).__name__ in model._no_split_modules)
    norm = next(module for module in layer.modules() if type(module).__name__.endswith("Norm"))
    norm.register_forward_pre_hook(lambda *args: calls.append(1))
    enable_checkpointing(model.train())
    scalar(model(**batch, **make_targets(head, model.config, batch["input_ids"].shape))).backward()
    assert len(calls) == 2


@each_model
@each_layout
def test_save_and_load(family, head, layout, tmp_path):
    model, batch = build(family, head, layout)
    with no_complaints():
        model.save_pretrained(tmp_path)
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        auto = AUTO_CLASSES[head].from_pretrained(tmp_path)
    assert not any(info.values()), info
    assert type(auto) is type(model) and type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert_close(state[name], value, atol=0, rtol=0)
    for variant in variants(family, model):
        with torch.no_grad():
            expected = main_outputs(model(**batch, **variant))
            for other in (loaded, auto):
                for found, wanted in zip(main_outputs(other(**batch, **variant)), expected, strict=True):
                    assert_close(found, wanted, atol=0, rtol=0)
    files = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".py")}
    assert files <= {"config.json", "generation_config.json", "model.safetensors"}
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["architectures"] == [type(model).__name__] and data["model_type"] == model.config.model_type


@each_model
def test_load_in_bfloat16(family, head, tmp_path):
    model, batch = build(family, head)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    for variant in variants(family, model):
        with torch.no_grad():
            outputs = main_outputs(loaded(**batch, **variant))
            expected = main_outputs(model(**batch, **variant))
        for found, wanted in zip(outputs, expected, strict=True):
            assert found.dtype == torch.bfloat16
            assert (found.float() - wanted).norm() < 0.2 * wanted.norm()


@each_model
@each_attention
def test_bfloat16_autocast(family, head, attention):
    model, batch = build(family, head, attention=attention)
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    model.train()
    for variant in variants(family, model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = scalar(model(**batch, **targets, **variant))
        loss.backward()
        assert loss.isfinite()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    assert all(value.dtype == torch.float32 for value in model.parameters())


@each_model
def test_a_new_model_is_initialised(family, head, tmp_path):
    """Parameters absent from a checkpoint are built on the meta device and have to be initialised afterwards."""
    family = FAMILY_BY_NAME[family]
    torch.manual_seed(0)
    fresh = family.models[head](family.config("bert"))
    # A checkpoint of the embeddings alone leaves all the rest to initialisation.
    embeddings = {name: value for name, value in fresh.state_dict().items() if "word_embeddings" in name}
    fresh.config.save_pretrained(tmp_path)
    torch.save(embeddings, tmp_path / "pytorch_model.bin")
    torch.manual_seed(1)
    loaded = family.models[head].from_pretrained(tmp_path)
    for name, value in fresh.named_parameters():
        found = dict(loaded.named_parameters())[name]
        assert found.isfinite().all(), name
        if name in embeddings:
            assert_close(found, value, atol=0, rtol=0)
        elif value.std() == 0 or value.numel() < 30:
            # Zeros, ones: no randomness in them.
            if value.std() == 0:
                assert_close(found, value, atol=0, rtol=0)
        else:
            assert 0.5 < found.std() / value.std() < 2, name
            # Four standard errors of the difference of two means.
            assert abs(found.mean() - value.mean()) < 4 * (2 / value.numel()) ** 0.5 * value.std(), name


@each_family
@pytest.mark.parametrize("vocab_size", [90, 107])
@pytest.mark.parametrize("tied", [True, False])
def test_resize_token_embeddings(family, vocab_size, tied, tmp_path):
    if "masked-lm" not in FAMILY_BY_NAME[family].models:
        pytest.skip("no masked language modeling head")
    model, batch = build(family, "masked-lm", tie_word_embeddings=tied)
    batch["input_ids"] = batch["input_ids"].clamp(max=80)
    before = [model(**batch, **variant).logits.detach() for variant in variants(family, model)]
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    assert model.config.vocab_size == vocab_size
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert model.get_input_embeddings().weight.shape[0] == vocab_size
    kept = min(vocab_size, 99)
    for variant, expected in zip(variants(family, model), before, strict=True):
        logits = model(**batch, **variant).logits
        assert logits.shape[-1] == vocab_size
        assert_close(logits[..., :kept], expected[..., :kept])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_close(loaded(**batch).logits, model(**batch).logits, atol=0, rtol=0)


@each_family
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings(family, tied, tmp_path):
    if "masked-lm" not in FAMILY_BY_NAME[family].models:
        pytest.skip("no masked language modeling head")
    model, batch = build(family, "masked-lm", tie_word_embeddings=tied)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) is tied
    assert_close(loaded(**batch).logits, model(**batch).logits, atol=0, rtol=0)


@each_model
def test_dropout_only_in_training(family, head):
    model, batch = build(family, head, hidden_dropout_prob=0.4, attention_probs_dropout_prob=0.4)
    with torch.no_grad():
        first, second = (main_outputs(model(**batch))[0] for _ in range(2))
        assert_close(first, second, atol=0, rtol=0)
        model.train()
        first, second = (main_outputs(model(**batch))[0] for _ in range(2))
    assert (first - second).abs().max() > 1e-3


@each_model
def test_order_of_variants_does_not_matter(family, head):
    """Nothing about the variant that ran stays on the model."""
    model, batch = build(family, head)
    with torch.no_grad():
        forwards = [main_outputs(model(**batch, **variant))[0] for variant in variants(family, model)]
        backwards = [main_outputs(model(**batch, **variant))[0] for variant in reversed(variants(family, model))]
    for first, second in zip(forwards, reversed(backwards), strict=True):
        assert_close(second, first, atol=0, rtol=0)


@each_model
def test_deepcopy_and_device_moves(family, head):
    model, batch = build(family, head)
    twin = copy.deepcopy(model)
    randomise_(model, seed=9)
    with torch.no_grad():
        assert not torch.equal(main_outputs(twin(**batch))[0], main_outputs(model(**batch))[0])
    # Nothing is created on a device of its own choice.
    meta = copy.deepcopy(model).to("meta")
    for variant in uniform_variants(family, model):
        outputs = meta(batch["input_ids"].to("meta"), **variant)
        assert all(output.device.type == "meta" for output in main_outputs(outputs))


@each_model
def test_no_complaints(family, head, tmp_path):
    with no_complaints():
        model, batch = build(family, head)
        targets = make_targets(head, model.config, batch["input_ids"].shape)
        model.train()
        for variant in variants(family, model):
            scalar(model(**batch, **targets, **variant)).backward()
        model.save_pretrained(tmp_path)
        type(model).from_pretrained(tmp_path)


@each_model
def test_flags(family, head):
    model, _ = build(family, head)
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= names
    assert model.supports_gradient_checkpointing and model._supports_sdpa
    # Trainer divides the loss itself unless the model takes `num_items_in_batch` into account.
    assert model.accepts_loss_kwargs is (head == "masked-lm")
    assert set(model.config.auto_map) == {"AutoConfig"} | {
        AUTO_CLASSES[name].__name__ for name in FAMILY_BY_NAME[family].models
    }
    assert all(value.is_contiguous() for value in model.state_dict().values())


@each_model
def test_positional_arguments_follow_bert(family, head):
    model, batch = build(family, head)
    with torch.no_grad():
        by_name = main_outputs(model(**batch))
        by_position = main_outputs(
            model(batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"), None)
        )
    for first, second in zip(by_name, by_position, strict=True):
        assert_close(second, first, atol=0, rtol=0)
