# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What models of the heads that have no logits of a row say of a text, with our packages or without."""

from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForTokenClassification, pipeline


TEXT = "the big red dog finds a new green house and the cat , not the bird ."
OTHER_HEADS = {
    "base": (AutoModel, "feature-extraction"),
    "token-classification": (AutoModelForTokenClassification, "token-classification"),
    "question-answering": (AutoModelForQuestionAnswering, None),  # whose pipeline Transformers 5 has no more
}


def answer(head: str, model, tokenizer=None, **options) -> list[float]:
    """Numbers of the answer; `model` is a model, or for a pipeline the name of one."""
    task = OTHER_HEADS[head][1]
    if task is None:
        spans = model.predict_spans(tokenizer, "the dog finds what", TEXT, top_k=3)
        return [value for span in spans for value in (span["start"], span["end"], span["score"])]
    found = pipeline(task, model=model, tokenizer=tokenizer, **options)(TEXT)
    if task == "feature-extraction":
        return [value for row in found[0] for value in row]
    return [float(each["score"]) for each in found]
