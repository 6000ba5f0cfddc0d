# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Gradients of parts of parameters, added in place: the same numbers, and only where nobody else waits for them."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from modeling_mos import gradients as mos_gradients
from modeling_mos.modeling_mos import MixExperts, mix_experts
from modeling_mos.modeling_mos_subnet import ElasticLinear, LinearInPlace
from modeling_sharcs import gradients as sharcs_gradients
from testing_utils import FAMILIES, assert_close, make_batch, make_targets, scalar
from trainers import SupernetTrainer, passes
from training_utils import make_arguments, make_masked, make_sharcs, make_sharcs_trainer, make_supernet


FAMILY_BY_NAME = {family.name: family for family in FAMILIES}
CODE = {"mos": mos_gradients, "mos-uniform": mos_gradients, "sharcs": sharcs_gradients}
MODELS = [(name, head) for name in CODE for head in FAMILY_BY_NAME[name].models if head != "base"]
each_code = pytest.mark.parametrize("code", [mos_gradients, sharcs_gradients])


def in_place(tensor: torch.Tensor) -> bool:
    return "InPlace" in type(tensor.grad_fn).__name__


def parameter_with_gradient(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(shape))
    parameter.grad = torch.randn(shape)
    return parameter


@pytest.mark.parametrize("name", ["attention.py", "gradients.py", "kept_tokens.py"])
def test_both_packages_have_the_same_file(name):
    first, second = (Path(code.__file__).with_name(name).read_bytes() for code in (mos_gradients, sharcs_gradients))
    assert first == second


@each_code
def test_a_part_adds_its_gradient_in_place(code):
    parameter = parameter_with_gradient(5, 7)
    before, own = parameter.grad, parameter.grad.clone()
    with code.add_gradients_in_place():
        part = code.leading(parameter, 3, 2)
    assert in_place(part) and part.data_ptr() == parameter.data_ptr()
    factor = torch.randn(3, 2)
    (part * factor).sum().backward()
    own[:3, :2] += factor
    assert parameter.grad is before
    assert_close(parameter.grad, own, atol=0, rtol=0)
    parameter.grad = None
    with code.add_gradients_in_place():
        (code.leading(parameter, 3, 2) * factor).sum().backward()
    assert_close(parameter.grad, F.pad(factor, (0, 5, 0, 2)), atol=0, rtol=0)


class Subclass(torch.Tensor):
    """Such as quantised or distributed ones."""


@each_code
def test_where_a_part_is_an_ordinary_slice(code):
    def ordinary(parameter, *sizes) -> bool:
        part = code.leading(parameter, *sizes)
        assert torch.equal(part, parameter[tuple(map(slice, sizes))])
        return not in_place(part)

    parameter = parameter_with_gradient(5, 7)
    assert ordinary(parameter, 3, 2)
    with code.add_gradients_in_place():
        assert not ordinary(parameter, 3) and not ordinary(parameter, None, 2)
        assert ordinary(parameter, 5, None) and ordinary(parameter)  # all of it
        assert ordinary(parameter * 1, 3, 2)  # no parameter
        assert ordinary(nn.Parameter(parameter.detach().as_subclass(Subclass)), 3, 2)  # who knows how it adds
        with torch.no_grad():
            assert ordinary(parameter, 3, 2)
        for register in (parameter.register_hook, parameter.register_post_accumulate_grad_hook):
            handle = register(lambda *args: None)
            assert ordinary(parameter, 3, 2)
            handle.remove()
        assert not ordinary(parameter, 3, 2)
        parameter.requires_grad_(False)
        assert ordinary(parameter, 3, 2)
    assert ordinary(parameter.requires_grad_(), 3, 2)


@each_code
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("started", [False, True])
def test_an_embedding_adds_its_gradient_in_place(code, padding, started):
    embedding = code.WordEmbedding(11, 3, padding_idx=padding)
    ids, factor = torch.tensor([[1, 4, 1], [0, 10, 0]]), torch.randn(2, 3, 3)
    start = torch.randn(11, 3) if started else None
    found = []
    for context in (contextlib.nullcontext(), code.add_gradients_in_place()):
        embedding.weight.grad = start.clone() if started else None
        with context:
            embedded = embedding(ids)
        assert torch.equal(embedded, F.embedding(ids, embedding.weight))
        assert in_place(embedded) == bool(found)
        (embedded * factor).sum().backward()
        found.append(embedding.weight.grad)
    assert_close(found[1], found[0], atol=1e-6)
    assert torch.equal(found[1][0], start[0] if started else torch.zeros(3)) == (padding == 0)


@pytest.mark.parametrize("rows, columns", [(3, 2), (5, 2), (3, 7), (5, 7)])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_a_linear_layer_adds_its_gradients_in_place(rows, columns, started, deep, monkeypatch):
    # Of whole matrices, only those of the size of vocabularies pay.
    monkeypatch.setattr(ElasticLinear, "_adds_in_place", lambda *args: mos_gradients._IN_PLACE.get())
    layer, found = ElasticLinear(7, 5), []
    # Not contiguous, as attention's context may be; of the first layer of all, nobody wants the input's gradient.
    given = torch.randn(columns, 2, 4).transpose(0, 2)
    factor, starts = torch.randn(4, 2, rows), [torch.randn_like(parameter) for parameter in layer.parameters()]
    for context in (contextlib.nullcontext(), mos_gradients.add_gradients_in_place()):
        for parameter, start in zip(layer.parameters(), starts, strict=True):
            parameter.grad = start.clone() if started else None
        hidden = given.clone().requires_grad_(deep)
        with context:
            output = layer(hidden, rows)
        assert isinstance(output.grad_fn, LinearInPlace._backward_cls) == bool(found)
        (output * factor).sum().backward()
        found.append([output, layer.weight.grad, layer.bias.grad] + [hidden.grad] * deep)
    for first, second in zip(*found, strict=True):
        assert_close(second, first, atol=1e-6)
    assert layer.weight.grad.is_contiguous()


def test_where_a_linear_layer_is_an_ordinary_one():
    def ordinary(layer, hidden, *sizes) -> bool:
        return not isinstance(layer(hidden, *sizes).grad_fn, LinearInPlace._backward_cls)

    layer, hidden = ElasticLinear(7, 5), torch.randn(2, 7)
    assert ordinary(layer, hidden, 3)
    with mos_gradients.add_gradients_in_place():
        assert not ordinary(layer, hidden, 3) and not ordinary(layer, hidden[:, :4])
        assert ordinary(layer, hidden)  # small and whole
        assert ordinary(layer, hidden[0], 3)  # one row, as routers have
        assert ordinary(ElasticLinear(7, 5, bias=False), hidden, 3)
        with torch.autocast("cpu", torch.bfloat16):
            assert ordinary(layer, hidden, 3)
        with torch.no_grad():
            assert ordinary(layer, hidden, 3)
        layer.bias.requires_grad_(False)
        assert ordinary(layer, hidden, 3)
        vocabulary = ElasticLinear(2**12, 2**12)
        assert not ordinary(vocabulary, torch.randn(1, 2**12))


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_mixed_experts(num_experts, rows, started, monkeypatch):
    returned, backward = [], MixExperts.backward
    monkeypatch.setattr(MixExperts, "backward", lambda *args: returned.append(backward(*args)) or returned[-1])
    experts, probabilities = nn.Parameter(torch.randn(num_experts, 5, 7)), torch.randn(rows, num_experts).softmax(-1)
    start, factor, found = torch.randn(num_experts, 5, 7), torch.randn(3, 2), []
    for context in (contextlib.nullcontext(), mos_gradients.add_gradients_in_place()):
        experts.grad, given = start.clone() if started else None, probabilities.clone().requires_grad_()
        with context:
            mixed = mix_experts(experts, given, 3, 2)
        (mixed * factor).sum().backward()
        found.append((mixed.detach(), experts.grad, given.grad if num_experts > 1 else start))
    for first, second in zip(*found, strict=True):
        assert_close(second, first, atol=1e-6)
    # The first gradient of experts is made whole by the function itself, later ones are added to it.
    assert [given[0] is None for given in returned] == [False, started][: len(returned)]
    assert len(returned) == (2 if num_experts > 1 else 0)


def count_backward_calls(monkeypatch, function: type[torch.autograd.Function]) -> list[int]:
    calls, backward = [], function.backward
    monkeypatch.setattr(function, "backward", lambda *args: calls.append(1) or backward(*args))
    return calls


def in_a_thread(function) -> None:
    """As autograd runs backward passes on accelerators: contexts of the caller do not hold there."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def train_all(model, batches, checkpointing: str, context) -> dict[str, torch.Tensor]:
    """Gradients after a pass of each, the widest, the narrowest and others, without dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = model.base_model.config.attention_probs_dropout_prob = 0.0
    model.train()
    if checkpointing != "none":
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    for batch in batches:
        with context():
            loss = scalar(model(**batch))
            in_a_thread(loss.backward) if checkpointing == "threaded" else loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_a_checkpointed_linear_layer_of_inputs_that_learn_nothing():
    """It is run again where the context does not hold, and has to save as much as before."""
    layer, hidden, found = ElasticLinear(7, 5), torch.randn(4, 7), []
    for context in (contextlib.nullcontext, mos_gradients.add_gradients_in_place):
        layer.zero_grad()
        with context():
            output = checkpoint(layer, hidden, 3, use_reentrant=False)
            in_a_thread(output.square().sum().backward)
        found.append([parameter.grad for parameter in layer.parameters()])
    for first, second in zip(*found, strict=True):
        assert_close(second, first, atol=1e-6)


@pytest.mark.parametrize("family, head", MODELS)
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "unreentrant", "threaded"])
def test_models_get_the_same_gradients(family, head, checkpointing, monkeypatch):
    code, found = CODE[family], []
    parts = count_backward_calls(monkeypatch, LinearInPlace if code is mos_gradients else code.LeadingInPlace)
    for context in (contextlib.nullcontext, code.add_gradients_in_place):
        model = FAMILY_BY_NAME[family].model(head, "bert")
        variants = FAMILY_BY_NAME[family].variants(model)
        targets = make_targets(head, model.config, (3, 11))
        batches = [{**make_batch(model.config), **targets, **variant} for variant in variants]
        assert not parts
        found.append(train_all(model, batches, checkpointing, context))
    assert len(parts) > 10
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        assert_close(found[1][name], expected, atol=1e-6)


def test_trainers_use_the_context_of_their_family(tiny_tokenizer, tmp_path, monkeypatch):
    made = {
        mos_gradients: lambda path: SupernetTrainer(
            make_supernet(tiny_tokenizer), make_arguments(path), train_dataset=make_masked(tiny_tokenizer)
        ),
        sharcs_gradients: lambda path: make_sharcs_trainer(tiny_tokenizer, path, make_sharcs(tiny_tokenizer), rows=10),
    }
    for code, make in made.items():
        parts = count_backward_calls(monkeypatch, code.EmbedInPlace)
        make(tmp_path / code.__name__).train()
        assert parts


class FakeTrainer:
    """What `run_backward_passes` asks a trainer for."""

    class args:
        device = torch.device("cpu")

    class accelerator:
        distributed_type = DistributedType.NO

        @staticmethod
        def no_sync(model):
            return contextlib.nullcontext()

        @staticmethod
        def backward(loss):
            loss.backward()


@pytest.mark.parametrize("wrapped", [False, True, "elsewhere"])
def test_only_gradients_that_stay_local(wrapped, monkeypatch):
    layer, seen = nn.Linear(2, 1), []
    if wrapped == "elsewhere":  # a backend that we know nothing of
        monkeypatch.setattr(FakeTrainer.accelerator, "distributed_type", DistributedType.FSDP)
    if wrapped is True:
        model = DistributedDataParallel.__new__(DistributedDataParallel)
        monkeypatch.setattr(DistributedDataParallel, "no_sync", lambda self: contextlib.nullcontext())
    else:
        model = layer

    def run() -> torch.Tensor:
        seen.append(sharcs_gradients._IN_PLACE.get())
        return layer(torch.ones(1, 2)).sum()

    total = passes.run_backward_passes(FakeTrainer, model, [run] * 3, sharcs_gradients.add_gradients_in_place)
    assert seen == {False: [True, True, True], True: [True, True, False], "elsewhere": [False] * 3}[wrapped]
    assert_close(total, 3 * layer(torch.ones(1, 2)).sum())
    assert not sharcs_gradients._IN_PLACE.get()
