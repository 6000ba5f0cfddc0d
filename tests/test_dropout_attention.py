# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Attention with dropout on a CPU: what scaled_dot_product_attention computes, with cheaper random numbers."""

import warnings

import pytest
import torch
from packaging.version import Version
from torch.nn import functional as F
from transformers import PreTrainedConfig

from modeling_mos import modeling_mos_subnet
from modeling_mos.attention import dropout_attention_forward, has_costly_dropout
from modeling_sharcs import modeling_sharcs
from testing_utils import FAMILIES, assert_close, main_outputs, make_batch, make_targets, scalar


HEAD = "sequence-classification"
each_family = pytest.mark.parametrize("family", ["mos", "mos-subnet", "sharcs"])


def attend(dropout: float, mask: torch.Tensor | None = None, tokens: int = 7, batch: int = 3):
    """Context and its parts where every token looks at all others alike and values are the unit vectors."""
    flat = torch.zeros(batch, 5, tokens, tokens)
    values = torch.eye(tokens).expand_as(flat)
    context, weights = dropout_attention_forward(None, flat, flat, values, mask, dropout=dropout, scaling=1.0)
    assert weights is None and context.shape == (batch, tokens, 5, tokens)
    return context


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.93])
def test_entries_are_dropped_or_scaled(dropout):
    torch.manual_seed(0)
    context = attend(dropout, tokens=31, batch=20)  # 96,100 entries
    kept = context != 0
    # Scaled by what 16 bits make of the probability.
    assert_close(context[kept] * 31, torch.full_like(context[kept], 1 / (1 - dropout)), rtol=2e-4, atol=0)
    assert (~kept).float().mean() == pytest.approx(dropout, abs=5e-3)
    # Neither rows nor neighbours share their draws: as many pairs are dropped as of independent ones.
    both = (~kept[..., 1:] & ~kept[..., :-1]).float().mean()
    assert both == pytest.approx(dropout**2, abs=1e-2)
    assert kept.float().mean(dim=(0, 2, 3)).std() < 0.05


def test_draws_follow_the_seed():
    contexts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        contexts.append(attend(0.5))
    assert torch.equal(contexts[0], contexts[1]) and not torch.equal(contexts[0], contexts[2])


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks(kind):
    kept = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    kept[1, ..., 4:] = False
    mask = kept if kind == torch.bool else torch.zeros(kept.shape).masked_fill(~kept, -torch.inf)
    context = attend(0.5, mask)
    assert (context[1, ..., 4:] == 0).all() and (context[1, ..., :4] > 0.4).any() and (context[0, ..., 4:] > 0).any()


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_queries_without_a_key_get_numbers(kind):
    kept = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    kept[1] = False  # a row of nothing but padding
    mask = kept if kind == torch.bool else torch.zeros(kept.shape).masked_fill(~kept, -torch.inf)
    context = attend(0.5, mask)
    assert torch.isfinite(context).all() and (context[1] > 0).any()


def test_without_draws_it_is_scaled_dot_product_attention():
    query, key, value = (torch.randn(3, 2, 7, 5, dtype=torch.double) for _ in range(3))
    mask = torch.rand(3, 1, 7, 7) > 0.3
    mask[..., 0] = True
    # A probability that 16 bits cannot hold drops nothing.
    context, _ = dropout_attention_forward(None, query, key, value, mask, dropout=1e-9, scaling=0.7)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.7)
    assert_close(context.transpose(1, 2), expected, atol=1e-12)


def test_every_probability_gives_numbers():
    assert torch.isfinite(attend(1 - 2**-20)).all()


def test_where_it_serves(monkeypatch):
    query, config = torch.zeros(1), PreTrainedConfig()
    config._attn_implementation = "sdpa"
    assert has_costly_dropout(config, query, 0.1)
    for states, dropout in ((query.bfloat16(), 0.1), (query.to("meta"), 0.1), (query, 0.0), (query, 1.0)):
        assert not has_costly_dropout(config, states, dropout)
    for module, name in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda: True)
            assert not has_costly_dropout(config, query, 0.1)
    config._attn_implementation = "eager"
    assert not has_costly_dropout(config, query, 0.1)


@each_family
def test_dropout_breaks_no_graphs(family):
    model = next(known for known in FAMILIES if known.name == family).model(HEAD, "bert").train()
    assert model.config.attention_probs_dropout_prob > 0
    batch = {**make_batch(model.config), **make_targets(HEAD, model.config, (3, 11))}
    explanation = torch._dynamo.explain(model)(**batch)
    if family != "mos":  # a supernet encodes its architecture between graphs
        assert explanation.graph_break_count == 0
    assert not any("random_" in str(reason.reason) for reason in explanation.break_reasons)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="vmap of torch 2.11 has no rule for views as another type"
)
def test_each_sample_may_draw_its_own_under_vmap():
    states = torch.zeros(4, 1, 5, 7, 7)
    values = torch.eye(7).expand_as(states)

    def run(query, value):
        return dropout_attention_forward(None, query, query, value, None, dropout=0.5, scaling=1.0)[0]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        contexts = torch.func.vmap(run, randomness="different")(states, values)
    assert contexts.shape == (4, 1, 7, 5, 7) and not torch.equal(contexts[0], contexts[1])


def test_half_precision_scores_count_all_bits():
    """No model comes here with them; the share that is dropped stays exact all the same."""
    torch.manual_seed(0)
    flat = torch.zeros(20, 5, 31, 31, dtype=torch.bfloat16)
    values = torch.eye(31, dtype=torch.bfloat16).expand_as(flat)
    mask = torch.zeros(20, 1, 31, 31, dtype=torch.bfloat16)
    mask[0] = -torch.inf
    context, _ = dropout_attention_forward(None, flat, flat, values, mask, dropout=0.1, scaling=1.0)
    assert torch.isfinite(context).all()
    # Of 96,100 draws one standard deviation is 0.001; the 9.75% of rounded bits would be 2.6 of them away.
    assert (context == 0).float().mean() == pytest.approx(0.1, abs=2e-3)


def test_gradients_go_through_what_is_kept():
    inputs = [torch.randn(1, 1, 3, 2, dtype=torch.double, requires_grad=True) for _ in range(3)]

    def run(*given):
        torch.manual_seed(0)
        return dropout_attention_forward(None, *given, None, dropout=0.4, scaling=0.5)[0]

    torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@each_family
def test_models_use_it_in_training_only(family, attention, monkeypatch):
    made = next(known for known in FAMILIES if known.name == family).model(HEAD, "bert", attention)
    seen = []
    for code in (modeling_mos_subnet, modeling_sharcs):
        monkeypatch.setattr(
            code,
            "dropout_attention_forward",
            lambda *args, **kwargs: seen.append(kwargs["dropout"]) or dropout_attention_forward(*args, **kwargs),
        )
    batch = {**make_batch(made.config), **make_targets(HEAD, made.config, (3, 11))}
    with torch.no_grad():
        main_outputs(made(**batch))
    assert not seen
    made.train()
    scalar(made(**batch)).backward()
    expected = [made.config.attention_probs_dropout_prob] * made.config.num_hidden_layers
    assert seen == (expected if attention == "sdpa" else [])
    seen.clear()
    for rate in (0.0, 1.0):  # nothing to draw
        made.config.attention_probs_dropout_prob = made.base_model.config.attention_probs_dropout_prob = rate
        assert torch.isfinite(scalar(made(**batch)))
    assert not seen
