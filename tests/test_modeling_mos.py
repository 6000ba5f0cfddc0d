# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Supernets: published counts, slicing, experts and routers, losses. What all models share is tested elsewhere."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from modeling_mos import Architecture, MosConfig, MosForMaskedLM, MosForSequenceClassification
from modeling_mos import modeling_mos as supernet_module
from modeling_mos.modeling_mos import merge_bottlenecks, mix_experts, start_experts
from testing_utils import (
    ELASTIC,
    HEADS,
    LAYOUTS,
    ROUTINGS,
    SPACES,
    assert_close,
    main_outputs,
    make_batch,
    make_targets,
    randomise_,
    scalar,
    tiny_backbone,
    tiny_mos_config,
    tiny_supernet,
)


each_routing = pytest.mark.parametrize("routing", ROUTINGS)
each_router = pytest.mark.parametrize("routing", ["layer", "neuron"])
each_space = pytest.mark.parametrize("space", SPACES)


def options(routing: str, num_experts: int = 3) -> dict:
    return {"routing": routing, "num_experts": 1 if routing == "none" else num_experts}


def some_architectures(model) -> list[Architecture]:
    space = model.search_space
    return [space.largest(), space.smallest(), *(space.sample(seed=seed) for seed in range(3))]


# ---- published numbers ----------------------------------------------------------------------------------------------


def on_meta(model_class=MosForMaskedLM, **overrides):
    with torch.device("meta"):
        return model_class(MosConfig(**overrides))


@pytest.mark.parametrize("routing, count", [("none", 123_688_506), ("layer", 180_380_754), ("neuron", 192_286_266)])
def test_published_supernet_sizes(routing, count):
    # The published 180,399,186 and 192,304,698 hold twelve expert norms of 1,536 that nothing uses.
    assert on_meta(search_space="v1", routing=routing).num_parameters() == count


@pytest.mark.parametrize("width, size", [(360, 59_250_768), (120, 34_361_328), (768, 117_161_472)])
def test_published_subnet_sizes(width, size):
    for head in (MosForMaskedLM, MosForSequenceClassification):
        model = on_meta(head, search_space="v1", routing="none")
        assert model.published_size(model.search_space.architecture(hidden_sizes=width)) == size


def test_published_size_of_the_smallest_uniform_subnet():
    model = on_meta(search_space="v5.1", routing="none")
    assert model.published_size(model.search_space.smallest()) == 5_137_560
    assert model.search_space.smallest().layers[0] == (120, 240, 6)


@pytest.mark.parametrize(
    "widths, millions",
    [
        ([240, 120, 360, 240, 120, 480, 480, 360, 480, 360, 480, 480], 59.002),
        ([480, 240, 360, 240, 540, 480, 360, 360, 360, 360, 540, 480], 64.585),
    ],
)
def test_published_sizes_of_searched_subnets(widths, millions):
    model = on_meta(search_space="v1", routing="none")
    architecture = model.search_space.architecture(hidden_sizes=widths)
    assert round(model.published_size(architecture) / 1e6, 3) == millions
    # The published count lacks the vocabulary's bias and counts the head's norm at the last layer's width.
    exact = model.published_size(architecture) + 30_522 + 2 * (768 - widths[-1])
    assert model.count_parameters(architecture) == exact


# ---- a second implementation, from the formulas ---------------------------------------------------------------------


def naive_router(router, encoding: torch.Tensor, rows: int, num_experts: int) -> torch.Tensor:
    state = encoding
    for layer in router.hidden:
        state = (layer.weight @ state + layer.bias).relu()
    logits = router.output.weight @ state + router.output.bias
    # Neuron by neuron, experts innermost.
    return torch.stack([logits[row * num_experts : (row + 1) * num_experts].softmax(0) for row in range(rows)])


def naive_supernet(model, ids: torch.Tensor, architecture: Architecture) -> torch.Tensor:
    """`last_hidden_state` by the papers' formulas, with loops and without padding."""
    config, base = model.config, model.base_model
    bottleneck = base.space.bottleneck

    def norm(states, module):
        width = states.shape[-1]
        mean, variance = states.mean(-1, keepdim=True), states.var(-1, keepdim=True, correction=0)
        states = (states - mean) / (variance + config.layer_norm_eps).sqrt()
        return states * module.weight[:width] + module.bias[:width]

    def linear(states, module, rows):
        return states @ module.weight[:rows, : states.shape[-1]].T + module.bias[:rows]

    tables, start = base.embeddings, architecture.hidden_sizes[0] if not bottleneck else config.hidden_size
    first = config.pad_token_id + 1 if config.roberta_layout else 0
    positions = tables.position_embeddings.weight[first : first + ids.shape[1]]
    states = tables.word_embeddings.weight[ids] + positions + tables.token_type_embeddings.weight[0]
    states = norm(states[..., :start], tables.norm)
    encoding = torch.tensor(base.space.encode(architecture, config.router_input))
    experts = config.num_experts
    for index, (width, intermediate, heads) in enumerate(architecture.layers):
        layer = base.layers[index]
        if bottleneck:
            states = linear(states, layer.input_bottleneck, width)
        query, key, value = (
            linear(states, getattr(layer.attention, name), width) for name in ("query", "key", "value")
        )
        size = width // heads
        contexts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
            contexts.append(scores.softmax(-1) @ value[..., part])
        states = norm(linear(torch.cat(contexts, -1), layer.attention.output, width) + states, layer.attention_norm)
        block = layer.feed_forward
        if config.routing == "layer":
            first_share = second_share = naive_router(block.router, encoding, 1, experts)
        elif config.routing == "neuron":
            first_share = naive_router(block.input_router, encoding, intermediate, experts)
            second_share = naive_router(block.output_router, encoding, width, experts)
        else:
            first_share = second_share = torch.ones(1, 1)

        def mixed(name, share, rows, columns, block=block):
            weights, biases = getattr(block, f"{name}_weight"), getattr(block, f"{name}_bias")
            weight = torch.einsum("re,erc->rc", share.expand(rows, -1), weights[:, :rows, :columns])
            return weight, torch.einsum("re,er->r", share.expand(rows, -1), biases[:, :rows])

        weight, bias = mixed("input", first_share, intermediate, width)
        fed = F.gelu(states @ weight.T + bias)
        weight, bias = mixed("output", second_share, width, intermediate)
        states = norm(fed @ weight.T + bias + states, layer.output_norm)
        if bottleneck:
            states = linear(states, layer.output_bottleneck, config.hidden_size)
    return states


@pytest.mark.parametrize("routing", ["none", "layer", "neuron"])
@each_space
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_equals_the_formulas(routing, space, layout):
    model = tiny_supernet("base", layout, search_space=SPACES[space], **options(routing))
    ids = make_batch(model.config, padding=False)["input_ids"]
    for architecture in some_architectures(model):
        with torch.no_grad():
            found = model(ids, architecture=architecture).last_hidden_state
            assert_close(found, naive_supernet(model, ids, architecture))


# ---- the architecture as an argument --------------------------------------------------------------------------------


def test_default_architecture_is_the_largest():
    model = tiny_supernet()
    batch = make_batch(model.config)
    assert model.default_architecture == model.search_space.largest()
    assert_close(
        model(**batch).logits, model(**batch, architecture=model.search_space.largest()).logits, atol=0, rtol=0
    )


def test_default_architecture_of_the_configuration(tmp_path):
    wanted = tiny_mos_config().build_search_space().sample(seed=2)
    model = tiny_supernet(default_architecture=wanted.to_dict())
    batch = make_batch(model.config)
    assert model.default_architecture == wanted != model.search_space.largest()
    explicit = model(**batch, architecture=wanted).logits
    assert_close(model(**batch).logits, explicit, atol=0, rtol=0)
    assert not torch.allclose(model(**batch, architecture=model.search_space.largest()).logits, explicit)
    assert model.count_parameters() == model.count_parameters(wanted) == model.extract_subnet().num_parameters()
    assert model.count_flops() == model.count_flops(wanted)
    model.save_pretrained(tmp_path)
    assert MosForMaskedLM.from_pretrained(tmp_path).default_architecture == wanted


def test_architecture_as_a_dictionary():
    model = tiny_supernet()
    batch, architecture = make_batch(model.config), model.search_space.sample(seed=1)
    assert_close(
        model(**batch, architecture=architecture.to_dict()).logits,
        model(**batch, architecture=architecture).logits,
        atol=0,
        rtol=0,
    )


@pytest.mark.parametrize("method", ["__call__", "count_parameters", "count_flops", "published_size", "extract_subnet"])
def test_architectures_outside_the_space_are_refused(method):
    model = tiny_supernet()
    batch = make_batch(model.config) if method == "__call__" else {}
    outside = Architecture((16, 40), (37, 37), (4, 4))
    with pytest.raises(ValueError, match="layer 1 is 40 wide, the choices are .*, 36 the nearest"):
        getattr(model, method)(**batch, architecture=outside)


def test_all_architectures_give_different_answers():
    model = tiny_supernet(search_space={"hidden_sizes": [16, 48], "num_hidden_layers": [2, 3]})
    batch = make_batch(model.config)
    with torch.no_grad():
        sums = [model(**batch, architecture=found).logits.abs().sum().item() for found in model.search_space]
    assert len({round(value, 3) for value in sums}) == len(sums) == 12


# ---- slices ---------------------------------------------------------------------------------------------------------


def used(name: str, value: torch.Tensor, architecture: Architecture, config: MosConfig) -> torch.Tensor:
    """Which entries of a parameter the subnet of `architecture` is made of."""
    mask = torch.zeros(value.shape, dtype=torch.bool)
    bottleneck = config.search_space["bottleneck"]
    found = re.match(r"(?:mos\.)?layers\.(\d+)\.(.+)\.?", name)
    if not found:
        narrow = None if bottleneck else architecture.hidden_sizes[0]
        if "embeddings" in name and "norm" not in name or "decoder.weight" in name:
            mask[:, :narrow] = True
        elif name in ("classifier.weight", "qa_outputs.weight", "classifier.out_proj.weight"):
            mask[:, :narrow] = True
        elif name in ("classifier.bias", "qa_outputs.bias", "classifier.out_proj.bias", "lm_head.decoder.bias"):
            mask[:] = True
        elif value.dim() == 2:
            mask[:narrow, :narrow] = True
        else:
            mask[:narrow] = True
        return mask
    index, rest = int(found.group(1)), found.group(2)
    if index >= architecture.num_hidden_layers:
        return mask
    width, intermediate, _ = architecture.layers[index]
    rows, columns = {
        "input_bottleneck": (width, None),
        "output_bottleneck": (None, width),
        "feed_forward.input_": (intermediate, width),
        "feed_forward.output_": (width, intermediate),
    }.get(next((key for key in ("input_bottleneck", "output_bottleneck") if rest.startswith(key)), rest[:19]), (0, 0))
    if "router" in rest:
        outputs = {"input_router": intermediate, "output_router": width, "router": 1}
        if ".output." in rest:
            mask[: outputs[rest.split(".")[1]] * config.num_experts] = True
        else:
            mask[:] = True
    elif rest.startswith("feed_forward.input_"):
        mask[(slice(None), slice(intermediate), slice(width))[: value.dim()]] = True
    elif rest.startswith("feed_forward.output_"):
        mask[(slice(None), slice(width), slice(intermediate))[: value.dim()]] = True
    elif rest.startswith(("input_bottleneck", "output_bottleneck")):
        mask[(slice(rows), slice(columns))[: value.dim()]] = True
    else:
        mask[(slice(width), slice(width))[: value.dim()]] = True
    return mask


@pytest.mark.parametrize("routing", ["none", "layer", "neuron"])
@each_space
@pytest.mark.parametrize("head", HEADS)
def test_gradients_outside_the_slice_are_zero(routing, space, head):
    model = tiny_supernet(head, search_space=SPACES[space], tie_word_embeddings=False, **options(routing))
    batch = make_batch(model.config)
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    for architecture in some_architectures(model)[1:]:
        model.zero_grad()
        scalar(model(**batch, **targets, architecture=architecture)).backward()
        for name, value in model.named_parameters():
            inside = used(name, value, architecture, model.config)
            gradient = torch.zeros_like(value) if value.grad is None else value.grad
            assert not gradient[~inside].any(), name
            # (Two biases shift all scores of a softmax alike, and not every word is in the batch.)
            blind = name.endswith(("key.bias", "qa_outputs.bias")) or "embeddings" in name
            if inside.any() and not blind:
                assert gradient[inside].any(), name


@pytest.mark.parametrize("routing", ["none", "layer", "neuron"])
@each_space
def test_what_lies_outside_the_slice_is_never_read(routing, space):
    model = tiny_supernet(search_space=SPACES[space], tie_word_embeddings=False, **options(routing))
    batch = make_batch(model.config)
    for architecture in some_architectures(model)[1:]:
        model = randomise_(model)
        with torch.no_grad():
            expected = model(**batch, architecture=architecture).logits
            for name, value in model.named_parameters():
                value[~used(name, value, architecture, model.config)] = float("nan")
            assert_close(model(**batch, architecture=architecture).logits, expected, atol=0, rtol=0)


@each_routing
@each_space
def test_no_parameter_is_unused(routing, space):
    """Largest, smallest and a random one, as in a training step; and the largest alone."""
    model = tiny_supernet(search_space=SPACES[space], **options(routing, num_experts=2)).train()
    batch = make_batch(model.config)
    targets = make_targets("masked-lm", model.config, batch["input_ids"].shape)
    for architectures in ([model.search_space.largest()], some_architectures(model)[:3]):
        model.zero_grad()
        sum(model(**batch, **targets, architecture=found).loss for found in architectures).backward()
        unused = [name for name, value in model.named_parameters() if value.grad is None]
        assert not unused, unused


# ---- bottlenecks ----------------------------------------------------------------------------------------------------


def test_crossing_bottlenecks_in_one_step_or_two(monkeypatch):
    model = tiny_supernet()
    batch, architecture = make_batch(model.config), model.search_space.sample(seed=2)
    found = {}

    def crossing(merged: bool):
        def cross(hidden, before, after, next_width):
            if merged:
                return F.linear(hidden, *merge_bottlenecks(before, after, hidden.shape[-1], next_width))
            return after(before(hidden), next_width)

        return cross

    targets = make_targets("masked-lm", model.config, batch["input_ids"].shape)
    for merged in (False, True):
        monkeypatch.setattr(supernet_module, "cross_bottlenecks", crossing(merged))
        model.zero_grad()
        outputs = model(**batch, **targets, architecture=architecture)
        outputs.loss.backward()
        found[merged] = (outputs.logits.detach(), {name: value.grad for name, value in model.named_parameters()})
    monkeypatch.undo()
    assert_close(found[True][0], found[False][0])
    assert_close(model(**batch, architecture=architecture).logits, found[False][0])
    for name, gradient in found[False][1].items():
        assert (gradient is None) is (found[True][1][name] is None)
        if gradient is not None:
            assert_close(found[True][1][name], gradient)


@pytest.mark.parametrize("tokens", [1, 16, 1_000])
def test_bottlenecks_are_crossed_in_the_cheaper_order(tokens):
    before, after = (randomise_(supernet_module.MosBottleneck(48, 48), seed) for seed in (0, 1))
    hidden = torch.randn(1, tokens, 16)
    with FlopCounterMode(display=False) as counter:
        found = supernet_module.cross_bottlenecks(hidden, before, after, 36)
    merged, apart = 2 * (16 * 48 * 36 + tokens * 16 * 36), 2 * tokens * (16 * 48 + 48 * 36)
    bias = 2 * 36 * 48
    assert counter.get_total_flops() in (min(merged, apart), min(merged, apart) + bias)
    assert_close(found, after(before(hidden), 36))


# ---- experts and routers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4])
@pytest.mark.parametrize("per_neuron", [True, False])
@pytest.mark.parametrize("sizes", [(7, 5), (4, 5), (4, 2), (7,), (4,)])
def test_mix_experts_and_their_gradients(num_experts, per_neuron, sizes):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_()

    experts, logits = draw(num_experts, *(7, 5)[: len(sizes)]), draw(sizes[0] if per_neuron else 1, num_experts)

    def gradients(mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights = torch.arange(mixed.numel(), dtype=torch.double).view(mixed.shape)
        return torch.autograd.grad((mixed * weights).sum(), (experts, logits), materialize_grads=True)

    mixed = mix_experts(experts, logits.softmax(dim=-1), *sizes)
    taken = experts[(slice(None), *map(slice, sizes))]
    spread = logits.softmax(dim=-1).expand(sizes[0], -1)
    expected = torch.einsum("ne,en...->n...", spread, taken)
    assert_close(mixed, expected)
    for own, other in zip(gradients(mixed), gradients(expected), strict=True):
        assert_close(own, other)


@pytest.mark.parametrize("num_experts", [2, 3, 4])
def test_expert_starts(num_experts):
    torch.manual_seed(0)
    mean = torch.randn(200, 100) * 0.7
    copies = start_experts(mean, num_experts, "copies", 0.5, 0.02)
    assert all(torch.equal(expert, mean) for expert in copies)
    deltas = start_experts(mean, num_experts, "deltas", 0.5, 0.02)
    assert_close(deltas.mean(dim=0), mean)
    for expert in deltas:
        assert (expert - mean).std().item() == pytest.approx(0.5 * mean.std().item(), rel=0.05)
    noise = start_experts(mean, num_experts, "random", 0.5, 0.02)
    assert torch.equal(noise[0], mean)
    assert all(expert.std().item() == pytest.approx(0.02, rel=0.05) for expert in noise[1:])
    # A bias that is zero has no scale to differ by.
    assert not start_experts(torch.zeros(9), num_experts, "deltas", 0.5, 0.02).any()


@each_router
@pytest.mark.parametrize("average", [False, True])
def test_probabilities_sum_to_one(routing, average):
    model = tiny_supernet("base", routing=routing, num_experts=4, average_last_expert=average)
    spread = []
    for architecture in some_architectures(model):
        encoding = model.encode(architecture)
        for layer, (width, intermediate, _) in zip(model.layers, architecture.layers, strict=False):
            first, second = layer.feed_forward.probabilities(encoding, width, intermediate)
            rows = (intermediate, width) if routing == "neuron" else (1, 1)
            assert (first.shape[0], second.shape[0]) == rows
            for shares in (first, second):
                assert shares.shape[1] == 4 - average
                assert_close(shares.sum(dim=-1), torch.ones(len(shares)))
                assert (shares > 0).all()
                spread.append(shares.std(dim=-1).max())
    assert max(spread) > 0.05


def test_neuron_routing_of_a_slice_is_the_leading_part_of_the_whole():
    model = tiny_supernet("base", routing="neuron", num_experts=3)
    block, encoding = model.layers[0].feed_forward, model.encode(model.search_space.sample(seed=0))
    for router, rows in ((block.input_router, 37), (block.output_router, 48)):
        assert_close(router(encoding, 11), router(encoding, rows)[:11])


def test_neuron_routing_with_equal_rows_is_layer_routing():
    by_layer = tiny_supernet(routing="layer", num_experts=3)
    by_neuron = tiny_supernet(routing="neuron", num_experts=3)
    state = {key: value for key, value in by_layer.state_dict().items() if "router" not in key}
    by_neuron.load_state_dict(state, strict=False)
    with torch.no_grad():
        for source, target in zip(by_layer.mos.layers, by_neuron.mos.layers, strict=True):
            given = source.feed_forward.router
            for router in (target.feed_forward.input_router, target.feed_forward.output_router):
                router.hidden.load_state_dict(given.hidden.state_dict())
                rows = router.output.out_features // 3
                router.output.weight.copy_(given.output.weight.repeat(rows, 1))
                router.output.bias.copy_(given.output.bias.repeat(rows))
    batch = make_batch(by_layer.config)
    for architecture in some_architectures(by_layer):
        expected = by_layer(**batch, architecture=architecture).logits
        assert_close(by_neuron(**batch, architecture=architecture).logits, expected)


@each_router
@pytest.mark.parametrize("num_experts", [3, 4])
def test_average_last_expert_is_an_expert_that_is_the_mean(routing, num_experts):
    implicit = tiny_supernet(routing=routing, num_experts=num_experts, average_last_expert=True)
    explicit = tiny_supernet(routing=routing, num_experts=num_experts)
    state = implicit.state_dict()
    for key, value in state.items():
        if re.search(r"feed_forward\.(in|out)put_(weight|bias)$", key):
            assert value.shape[0] == num_experts - 1
            state[key] = torch.cat([value, value.mean(dim=0, keepdim=True)])
    explicit.load_state_dict(state)
    batch = make_batch(implicit.config)
    for architecture in some_architectures(implicit):
        expected = explicit(**batch, architecture=architecture).logits
        assert_close(implicit(**batch, architecture=architecture).logits, expected)


def router_gradients(model) -> list[torch.Tensor]:
    batch = make_batch(model.config)
    targets = make_targets("masked-lm", model.config, batch["input_ids"].shape)
    model.zero_grad()
    sum(model(**batch, **targets, architecture=found).loss for found in some_architectures(model)).backward()
    return [value.grad for name, value in model.named_parameters() if "router" in name]


@each_router
def test_identical_experts_leave_the_router_without_a_gradient(routing):
    model = tiny_supernet(routing=routing, num_experts=3)
    with torch.no_grad():
        for layer in model.mos.layers:
            for name in ("input_weight", "input_bias", "output_weight", "output_bias"):
                experts = getattr(layer.feed_forward, name)
                experts.copy_(experts[:1].expand_as(experts))
    assert max(gradient.abs().max() for gradient in router_gradients(model)) < 1e-5
    with torch.no_grad():
        for layer in model.mos.layers:
            layer.feed_forward.input_weight[1].mul_(1.1)
    assert min(gradient.abs().max() for gradient in router_gradients(model)) > 0
    assert max(gradient.abs().max() for gradient in router_gradients(model)) > 1e-3


@each_router
@pytest.mark.parametrize("num_experts", [2, 3])
def test_delta_start_is_the_backbone_and_awake(routing, num_experts):
    backbone = tiny_backbone()
    model = MosForMaskedLM.from_backbone(backbone, search_space=ELASTIC, routing=routing, num_experts=num_experts)
    batch = make_batch(model.config)
    assert_close(model(**batch).logits, backbone(**batch).logits)
    experts = model.mos.layers[0].feed_forward.input_weight
    assert not torch.allclose(experts[0], experts[1])
    awake = [value.grad.abs().max() for name, value in _gradients(model).items() if "router.output" in name]
    copies = MosForMaskedLM.from_backbone(
        backbone, search_space=ELASTIC, routing=routing, num_experts=num_experts, expert_start="copies"
    )
    asleep = [value.grad.abs().max() for name, value in _gradients(copies).items() if "router.output" in name]
    # (Only rounding is left of three shares that sum to one.)
    assert min(awake) > 1e-4 and max(asleep) < 1e-6, (awake, asleep)


def _gradients(model) -> dict[str, nn.Parameter]:
    router_gradients(model)
    return dict(model.named_parameters())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("router_input", ["scaled", "one-hot", "constant"])
@each_router
def test_router_options(layers, router_input, routing):
    model = tiny_supernet(routing=routing, router_num_layers=layers, router_input=router_input)
    batch = make_batch(model.config)
    size = model.search_space.encoding_size(router_input)
    router = model.mos.layers[0].feed_forward
    router = router.router if routing == "layer" else router.input_router
    assert len(router.hidden) == layers - 1
    assert (router.hidden[0] if layers > 1 else router.output).in_features == size
    # Only "constant" mixes alike for all architectures.
    first, second = model.search_space.largest(), model.search_space.smallest()
    shares = [
        model.mos.layers[0].feed_forward.probabilities(model.mos.encode(found), *found.layers[0][:2])[0][:5]
        for found in (first, second)
    ]
    assert torch.allclose(*shares) is (router_input == "constant")
    assert model(**batch, architecture=second).logits.isfinite().all()


def mixed_weights(block, architecture) -> tuple[torch.Tensor, ...]:
    return block.mixed_weights(None, *block.taken(architecture))


def test_random_routing_takes_one_expert_by_the_architecture():
    model = tiny_supernet(routing="random", num_experts=3)
    assert not [name for name, _ in model.named_parameters() if "router" in name]
    twin = tiny_supernet(routing="random", num_experts=3)
    chosen = set()
    for seed in range(30):
        architecture = model.search_space.sample(seed=seed)
        picks = []
        for index, layer in enumerate(model.mos.layers[: architecture.num_hidden_layers]):
            width, intermediate, _ = architecture.layers[index]
            weight, _, output, _ = mixed_weights(layer.feed_forward, architecture)
            again = mixed_weights(twin.mos.layers[index].feed_forward, architecture)[0]
            assert_close(again, weight, atol=0, rtol=0)
            experts = layer.feed_forward.input_weight[:, :intermediate, :width]
            (pick,) = (number for number, expert in enumerate(experts) if torch.equal(expert, weight))
            assert torch.equal(output, layer.feed_forward.output_weight[pick, :width, :intermediate])
            picks.append(pick)
        chosen.add(tuple(picks))
    assert len(chosen) > 10 and {pick for picks in chosen for pick in picks} == {0, 1, 2}
    # Recorded: the choice must be the same in every process and release.
    recorded = [layer.feed_forward for layer in model.mos.layers]
    smallest = model.search_space.smallest()
    found = [
        next(
            number
            for number in range(3)
            if torch.equal(block.input_weight[number, :11, :16], mixed_weights(block, smallest)[0])
        )
        for block in recorded[:2]
    ]
    assert found == RECORDED_RANDOM


RECORDED_RANDOM = [1, 1]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("layout", LAYOUTS)
@each_space
def test_new_supernet_mixes_experts_of_its_own(head, layout, space):
    """Without a backbone too: experts differ, routers are at zero, bottlenecks are the identity."""
    torch.manual_seed(0)
    model = type(tiny_supernet(head))(tiny_mos_config(layout, search_space=SPACES[space]))
    block = model.base_model.layers[0].feed_forward
    assert not torch.equal(block.input_weight[0], block.input_weight[1])
    assert not block.input_router.output.weight.any() and block.input_router.hidden[0].weight.any()
    assert_close(
        block.probabilities(model.base_model.encode(model.search_space.largest()), 48, 37)[0],
        torch.full((37, 2), 0.5),
    )
    if space == "bottleneck":
        assert torch.equal(model.base_model.layers[1].input_bottleneck.weight, torch.eye(48))
        assert not model.base_model.layers[1].output_bottleneck.bias.any()
    assert block.input_weight.mean(dim=0).std().item() == pytest.approx(0.2, rel=0.1)


# ---- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "num_labels, labels, problem_type",
    [
        (3, torch.tensor([0, 2, 1]), None),
        (3, torch.tensor([0, 2, 1]), "single_label_classification"),
        (1, torch.tensor([0.5, -1.0, 2.0]), None),
        (1, torch.tensor([[0.5], [-1.0], [2.0]]), None),
        (3, torch.tensor([[0.5, 1, 2], [0, 0, 1], [3, 2, 1]]), "regression"),
        (3, torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 1]]), None),
        (3, torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 1]]), "multi_label_classification"),
    ],
    ids=["auto-single", "single", "auto-regression", "column", "regression", "auto-multi", "multi"],
)
def test_classification_losses_equal_the_backbones(layout, num_labels, labels, problem_type):
    backbone = tiny_backbone(layout, "sequence-classification", num_labels=num_labels, problem_type=problem_type)
    model = MosForSequenceClassification.from_backbone(backbone, search_space=ELASTIC)
    assert model.config.problem_type == problem_type
    batch = make_batch(model.config)
    found, expected = model(**batch, labels=labels), backbone(**batch, labels=labels)
    assert_close(found.logits, expected.logits)
    assert_close(found.loss, expected.loss)
    # Unlike the stock classes, a loss leaves no trace in the configuration.
    assert model.config.problem_type == problem_type


def test_integer_targets_of_regression():
    model = tiny_supernet("sequence-classification", num_labels=1)
    batch = make_batch(model.config)
    whole, fractions = (
        model(**batch, labels=labels).loss for labels in (torch.tensor([1, 2, 3]), torch.tensor([1.0, 2, 3]))
    )
    assert_close(whole, fractions)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["masked-lm", "token-classification", "question-answering"])
def test_other_losses_equal_the_backbones(layout, head):
    backbone = tiny_backbone(layout, head)
    model = type(tiny_supernet(head)).from_backbone(backbone, search_space=ELASTIC)
    batch = make_batch(model.config)
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    assert_close(model(**batch, **targets).loss, backbone(**batch, **targets).loss)


def test_answers_outside_the_context_are_ignored():
    model = tiny_supernet("question-answering")
    batch = make_batch(model.config)
    starts, ends = torch.tensor([2, 500, 3]), torch.tensor([4, 500, 5])
    loss = model(**batch, start_positions=starts, end_positions=ends).loss
    kept = {name: values[[0, 2]] for name, values in batch.items()}
    assert_close(loss, model(**kept, start_positions=starts[[0, 2]], end_positions=ends[[0, 2]]).loss)


@each_space
def test_sparse_prediction_is_the_same_loss(space):
    dense = tiny_supernet(search_space=SPACES[space], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    sparse = tiny_supernet(
        search_space=SPACES[space], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, sparse_prediction=True
    )
    batch = make_batch(dense.config)
    targets = make_targets("masked-lm", dense.config, batch["input_ids"].shape)
    asked = int((targets["labels"] != -100).sum())
    for architecture in some_architectures(dense):
        gradients = []
        for model in (dense, sparse):
            model.train().zero_grad()
            outputs = model(**batch, **targets, architecture=architecture)
            outputs.loss.backward()
            gradients.append((outputs, {name: value.grad for name, value in model.named_parameters()}))
        (expected, wanted), (found, given) = gradients
        assert_close(found.loss, expected.loss)
        assert found.logits.shape == (asked, 99) and expected.logits.shape == (3, 11, 99)
        assert_close(found.logits, expected.logits[targets["labels"] != -100])
        for name, gradient in wanted.items():
            if gradient is not None:
                assert_close(given[name], gradient)


def test_sparse_prediction_acts_in_training_with_labels_only():
    model = tiny_supernet(sparse_prediction=True)
    batch = make_batch(model.config)
    targets = make_targets("masked-lm", model.config, batch["input_ids"].shape)
    assert model.eval()(**batch, **targets).logits.shape == (3, 11, 99)
    assert model.train()(**batch).logits.shape == (3, 11, 99)
    assert model.train()(**batch, **targets).logits.dim() == 2
    extracted = model.eval().extract_subnet()
    assert extracted.config.sparse_prediction
    assert extracted(**batch, **targets).logits.shape == (3, 11, 99)
    assert extracted.train()(**batch, **targets).logits.dim() == 2


@pytest.mark.parametrize("sparse", [False, True])
def test_no_labelled_token_gives_a_zero_loss(sparse):
    model = tiny_supernet(sparse_prediction=sparse).train()
    batch = make_batch(model.config)
    loss = model(**batch, labels=torch.full((3, 11), -100)).loss
    assert loss == 0
    loss.backward()
    assert all(value.grad is None or not value.grad.isnan().any() for value in model.parameters())


@pytest.mark.parametrize("sparse", [False, True])
def test_accumulated_micro_batches_equal_one_batch(sparse):
    model = tiny_supernet(sparse_prediction=sparse, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    batch = make_batch(model.config, batch=4, padding=False)
    labels = make_targets("masked-lm", model.config, (4, 11))["labels"]
    labels[0, 2:] = -100  # The micro-batches differ in how much they ask.
    asked = (labels != -100).sum()
    whole = model(**batch, labels=labels).loss
    whole.backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    total = 0
    for rows in (slice(0, 1), slice(1, 4)):
        part = {name: values[rows] for name, values in batch.items()}
        loss = model(**part, labels=labels[rows], num_items_in_batch=asked).loss
        loss.backward()
        total += loss.detach()
    assert_close(total, whole.detach())
    for name, value in model.named_parameters():
        assert_close(value.grad, expected[name])
    assert_close(model(**batch, labels=labels, num_items_in_batch=2 * int(asked)).loss, whole / 2)


# ---- positions ------------------------------------------------------------------------------------------------------


def test_positions_of_roberta():
    model = tiny_supernet("base", "roberta")
    ids = torch.tensor([[7, 8, 9, 1, 1], [1, 1, 7, 8, 9]])
    found = model.embeddings._position_ids(ids, None)
    assert found.tolist() == [[2, 3, 4, 1, 1], [1, 1, 2, 3, 4]]
    embedded = model.get_input_embeddings()(ids)
    assert model.embeddings._position_ids(None, embedded).tolist() == [[2, 3, 4, 5, 6]]
    assert tiny_supernet("base").embeddings._position_ids(ids, None).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_explicit_positions_are_followed(layout):
    model, backbone = tiny_supernet("base", layout), tiny_backbone(layout, "base")
    model = type(model).from_backbone(backbone, search_space=ELASTIC)
    batch = make_batch(model.config, padding=False)
    positions = torch.arange(11).flip(0).unsqueeze(0) + 4
    found = main_outputs(model(**batch, position_ids=positions))
    for first, second in zip(found, main_outputs(backbone(**batch, position_ids=positions)), strict=True):
        assert_close(first, second)
    assert not torch.allclose(found[0], main_outputs(model(**batch))[0])


def test_left_padding_of_roberta_changes_nothing():
    model = tiny_supernet("base", "roberta")
    batch = make_batch(model.config, batch=1, padding=False)
    left = {
        "input_ids": F.pad(batch["input_ids"], (4, 0), value=1),
        "attention_mask": F.pad(batch["attention_mask"], (4, 0), value=0),
    }
    assert_close(model(**left).last_hidden_state[:, 4:], model(**batch).last_hidden_state)


# ---- Trainer's questions --------------------------------------------------------------------------------------------


def test_floating_point_ops_are_those_of_the_default_architecture():
    model = tiny_supernet(default_architecture=tiny_mos_config().build_search_space().smallest().to_dict())
    batch = make_batch(model.config)
    assert model.floating_point_ops(batch) == 3 * 3 * model.count_flops(sequence_length=11)
    assert model.count_flops() < model.count_flops(model.search_space.largest())
    assert model.floating_point_ops({"inputs_embeds": torch.zeros(3, 11, 48)}) == 0


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)])
def test_a_step_without_labelled_tokens_has_a_loss_of_zero(items):
    model = tiny_supernet("masked-lm").train()
    batch = make_batch(model.config)
    loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100), num_items_in_batch=items).loss
    assert loss.item() == 0
