# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""`predict_spans`: answers from contexts that are longer than the model's window."""

import pytest
import torch

from testing_utils import tiny_supernet, tiny_tokenizer


CONTEXT = " ".join(["the old cat sees a small bird .", "a dog likes the big red house", "fish and tree"] * 6)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_supernet("question-answering")


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


def test_roberta_positions_and_architecture():
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    # Positions start after the padding id: a window of all 40 would run over the end of the table.
    model = tiny_supernet("question-answering", "roberta")
    largest = model.predict_spans(tokenizer, "a fish", CONTEXT)
    smallest = model.predict_spans(tokenizer, "a fish", CONTEXT, architecture=model.search_space.smallest())
    assert largest[0]["answer"] and smallest[0]["answer"] and largest != smallest


def test_training_mode_is_restored(model, tokenizer):
    model.train()
    model.predict_spans(tokenizer, "a fish", "the cat")
    assert model.training
    model.eval()


def test_messages(model, tokenizer):
    with pytest.raises(ValueError, match="The context is empty"):
        model.predict_spans(tokenizer, "a fish", " \n")
    with pytest.raises(ValueError, match="The question takes 63 of 40 tokens, which leaves no room for the context"):
        model.predict_spans(tokenizer, " ".join(["fish"] * 60), "the cat")
