# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Saved models in `pipeline(…)`: what comes out is what the model says of each text alone, in any batch."""

import re

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from testing_utils import (
    AUTO_CLASSES,
    SENTENCES,
    assert_close,
    splitting_price,
    tiny_sharcs,
    tiny_supernet,
    tiny_tokenizer,
)


HEADS = {
    "text-classification": "sequence-classification",
    "token-classification": "token-classification",
    "fill-mask": "masked-lm",
    "feature-extraction": "base",
}
TASKS = [(kind, task) for kind in ("supernet", "subnet", "sharcs") for task in HEADS]
TASKS.remove(("sharcs", "fill-mask"))  # routed encoders have no such head
LABELS = {0: "bad", 1: "fair", 2: "good"}


def make_model(kind: str, head: str, tokenizer):
    names = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    if kind == "sharcs":
        model = tiny_sharcs(head, vocab_size=len(tokenizer), **names)
        # Rows of one batch take different widths.
        model.config.router_price = splitting_price(model, tokenizer(SENTENCES, return_tensors="pt", padding=True))
        return model
    supernet = tiny_supernet(head, vocab_size=len(tokenizer), **names)
    return supernet if kind == "supernet" else supernet.extract_subnet(supernet.search_space.sample(seed=3))


@torch.no_grad()
def answer_alone(task: str, model, tokenizer, text: str):
    """What a pipeline should say of a text, from the model itself: words or tokens, and tensors."""
    inputs = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
    special = inputs.pop("special_tokens_mask")[0].bool()
    outputs = model(**inputs)
    if task == "feature-extraction":
        return [], outputs.last_hidden_state[0]
    if task == "text-classification":
        scores = outputs.logits.softmax(dim=-1)[0]
        return [LABELS[int(scores.argmax())]], scores.max()[None]
    if task == "token-classification":
        scores = outputs.logits.softmax(dim=-1)[0][~special]
        words = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0][~special])
        entities = [LABELS[index] for index in scores.argmax(dim=-1).tolist()]
        return list(zip(words, entities, strict=True)), scores.max(dim=-1).values
    best = outputs.logits[inputs["input_ids"] == tokenizer.mask_token_id][0].softmax(dim=-1).topk(3)
    return best.indices.tolist(), best.values


def answer_of_pipeline(task: str, found, length: int):
    """The same from what the pipeline gave."""
    if task == "feature-extraction":
        # The pipeline hands out padding, too.
        return [], torch.tensor(found)[0, :length]
    found = found if isinstance(found, list) else [found]
    scores = torch.tensor([float(each["score"]) for each in found])
    if task == "text-classification":
        return [each["label"] for each in found], scores
    if task == "token-classification":
        return [(each["word"], each["entity"]) for each in found], scores
    return [each["token"] for each in found], scores


@pytest.mark.parametrize("kind, task", TASKS)
def test_pipeline(kind, task, tmp_path):
    tokenizer, folder = tiny_tokenizer(), str(tmp_path)
    make_model(kind, HEADS[task], tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = SENTENCES
    if task == "fill-mask":
        texts = [re.sub(r"\bcat|fish|dog\b", "[MASK]", text, count=1) for text in texts]
    predict = pipeline(task, model=folder, tokenizer=folder, **({"top_k": 3} if task == "fill-mask" else {}))
    model, tokenizer = AUTO_CLASSES[HEADS[task]].from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if kind == "sharcs":
        together = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            assert len(model(**together).width_indices.unique()) > 1
    expected = [answer_alone(task, model, tokenizer, text) for text in texts]
    for batch_size in (1, 8):
        answers = predict(texts, batch_size=batch_size)
        for text, found, (words, values) in zip(texts, answers, expected, strict=True):
            found_words, found_values = answer_of_pipeline(task, found, len(tokenizer(text)["input_ids"]))
            assert found_words == words
            assert_close(found_values, values)
