# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""`predict_spans`: answers from contexts that are longer than the model's window."""

import inspect

import pytest
import torch

from modeling_mos import MosForQuestionAnswering
from modeling_sharcs import SharcsForQuestionAnswering
from testing_utils import randomise_, splitting_price, tiny_sharcs, tiny_supernet, tiny_tokenizer


CONTEXT = " ".join(["the old cat sees a small bird .", "a dog likes the big red house", "fish and tree"] * 6)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def make_model(family: str, layout: str = "bert"):
    if family == "sharcs":
        return tiny_sharcs("question-answering", layout)
    supernet = tiny_supernet("question-answering", layout)
    if family == "mos":
        return supernet
    return randomise_(supernet.extract_subnet(supernet.search_space.sample(seed=3))).eval()


@pytest.fixture(scope="module", params=["mos", "mos-subnet", "sharcs"])
def model(request):
    return make_model(request.param)


def by_hand(model, tokenizer, question, context, max_answer_length):
    """The best span of a context that fits into one window."""
    encoded = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = model(**encoded)
    inside = [index for index, part in enumerate(encoded.sequence_ids(0)) if part == 1]
    score, start, end = max(
        (float(outputs.start_logits[0, start] + outputs.end_logits[0, end]), start, end)
        for start in inside
        for end in inside
        if start <= end < start + max_answer_length
    )
    return offsets[start][0], offsets[end][1]


@pytest.mark.parametrize("max_answer_length", [1, 3, 30])
def test_one_window(model, tokenizer, max_answer_length):
    context = "the old cat sees a small bird . a dog"
    (answer,) = model.predict_spans(tokenizer, "a fish", context, max_answer_length=max_answer_length)
    start, end = by_hand(model, tokenizer, "a fish", context, max_answer_length)
    assert (answer["start"], answer["end"], answer["answer"]) == (start, end, context[start:end])
    assert len(answer["answer"].split()) <= max_answer_length
    assert 0 < answer["score"] <= 1


def test_long_contexts_are_covered(model, tokenizer):
    answers = model.predict_spans(tokenizer, "a fish", CONTEXT, top_k=50, stride=5)
    assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)
    assert len({(answer["start"], answer["end"]) for answer in answers}) == len(answers) == 50
    assert all(CONTEXT[answer["start"] : answer["end"]] == answer["answer"] for answer in answers)
    # The window holds 40 tokens; answers come from beyond it.
    assert max(answer["end"] for answer in answers) > len(CONTEXT) * 0.8
    one_by_one = model.predict_spans(tokenizer, "a fish", CONTEXT, top_k=50, stride=5, batch_size=1)
    assert [(a["start"], a["end"]) for a in one_by_one[:5]] == [(a["start"], a["end"]) for a in answers[:5]]


@pytest.mark.parametrize("family", ["mos", "mos-subnet", "sharcs"])
def test_roberta_positions_and_arguments_of_the_model(family):
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    # Positions start after the padding id: a window of all 40 would run over the end of the table.
    model = make_model(family, "roberta")
    largest = model.predict_spans(tokenizer, "a fish", CONTEXT)
    assert largest[0]["answer"]
    if family == "mos-subnet":
        return  # a single size
    smaller = {"width": 0.25} if family == "sharcs" else {"architecture": model.search_space.smallest()}
    smallest = model.predict_spans(tokenizer, "a fish", CONTEXT, **smaller)
    assert smallest[0]["answer"] and largest != smallest


def test_windows_are_routed(tokenizer):
    model = tiny_sharcs("question-answering")
    windows = tokenizer(
        "a fish", CONTEXT, truncation="only_second", max_length=40, stride=5, padding=True,
        return_overflowing_tokens=True, return_tensors="pt",
    )  # fmt: skip
    del windows["overflow_to_sample_mapping"]
    price = splitting_price(model, windows)
    with torch.no_grad():
        expected = model(**windows, router_price=price).width_indices.tolist()
    assert len(set(expected)) > 1
    taken = []
    model.sharcs.register_forward_hook(lambda encoder, inputs, outputs: taken.extend(outputs.width_indices.tolist()))

    def predict(**kwargs):
        taken.clear()
        return model.predict_spans(tokenizer, "a fish", CONTEXT, top_k=20, stride=5, **kwargs)

    widest = predict()
    assert taken == [2] * len(expected)
    by_argument = predict(router_price=price)
    assert taken == expected and by_argument != widest
    # In training mode, too: answering is inference. A forced width goes before the price.
    model.config.router_price = price
    model.train()
    assert predict() == by_argument and taken == expected
    assert [answer["answer"] for answer in predict(batch_size=1)] == [answer["answer"] for answer in by_argument]
    assert taken == expected
    assert predict(width=1.0) == widest and taken == [2] * len(expected)


def test_the_two_texts_are_alike():
    """The modeling packages do not import each other; what is mended in one has to be mended in the other."""
    mos, sharcs = (
        inspect.getsource(each.predict_spans) for each in (MosForQuestionAnswering, SharcsForQuestionAnswering)
    )
    assert mos.replace("such as `architecture`", "such as `width`") == sharcs


def test_training_mode_is_restored(model, tokenizer):
    model.train()
    model.predict_spans(tokenizer, "a fish", "the cat")
    assert model.training
    model.eval()


def test_messages(model, tokenizer):
    with pytest.raises(ValueError, match="The context is empty"):
        model.predict_spans(tokenizer, "a fish", " \n")
    with pytest.raises(ValueError, match="takes one question and one context, got a list and a str; call it once"):
        model.predict_spans(tokenizer, ["a fish"], "the cat")
    with pytest.raises(ValueError, match="The question takes 63 of 40 tokens, which leaves no room for the context"):
        model.predict_spans(tokenizer, " ".join(["fish"] * 60), "the cat")
