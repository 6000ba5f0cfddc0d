# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
The metrics of SQuAD 1.1 (`squad`) and 2.0 (`squad_v2`) without a network:

    metric = evaluate.load("examples/metrics/elastic_squad.py", "squad")
    metric.compute(
        predictions=[{"id": "q1", "prediction_text": "in Paris"}],
        references=[{"id": "q1", "answers": {"text": ["Paris"], "answer_start": [12]}}],
    )
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate


CONFIGURATIONS = ("squad", "squad_v2")

DESCRIPTION = """\
Exact match and F1 over words, in percent, after lower-casing and without punctuation and articles. squad_v2 also has \
questions without an answer, to which the empty text is the right prediction.
"""
CITATION = """\
@inproceedings{rajpurkar2018know,
  title={Know What You Don't Know: Unanswerable Questions for {SQuAD}},
  author={Rajpurkar, Pranav and Jia, Robin and Liang, Percy},
  booktitle={Proceedings of the 56th Annual Meeting of the Association for Computational Linguistics},
  year={2018}
}
"""
INPUTS = """\
Args:
    predictions: dictionaries with id, prediction_text and, optionally for squad_v2, no_answer_probability.
    references: dictionaries with id and answers, whose list text holds the right ones; answer_start is not looked at.
    no_answer_threshold: squad_v2 only; a question whose no_answer_probability is above it counts as answered with the
        empty text. 1.0, which changes nothing, if not given.
Returns:
    exact_match, f1 and total; for squad_v2 also HasAns_… and NoAns_… of the same where there are such questions and,
    where no_answer_probability is given, best_exact, best_exact_thresh, best_f1 and best_f1_thresh: the best score
    that any threshold would give, and the smallest such threshold.
"""


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: the normalisation of the official evaluation."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """Whether both are the same after normalisation."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1_of_words(prediction: str, answer: str) -> float:
    """The harmonic mean of precision and recall over words. No words at all match no words only."""
    predicted, right = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))


def best_threshold(
    scores: Sequence[float], has_answer: Sequence[bool], probabilities: Sequence[float]
) -> tuple[float, float]:
    """
    The best sum of scores when questions above a threshold of the no-answer probability count as unanswered, and that
    threshold. Questions of the same probability go together: no threshold tells them apart.
    """
    # Below all probabilities every question counts as unanswered, which is right for those without an answer.
    total = best = float(sum(not answerable for answerable in has_answer))
    threshold = 0.0 if min(probabilities) > 0.0 else min(probabilities) - 1.0
    order = sorted(range(len(scores)), key=lambda row: probabilities[row])
    for position, row in enumerate(order):
        total += scores[row] - (not has_answer[row])
        is_last_of_its_kind = position + 1 == len(order) or probabilities[order[position + 1]] != probabilities[row]
        if is_last_of_its_kind and total > best:
            best, threshold = total, probabilities[row]
    return best, threshold


class ElasticSquad(evaluate.Metric):
    """The metrics of SQuAD 1.1 or, with the configuration `squad_v2`, of 2.0."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGURATIONS:
            raise ValueError(
                f"There are no metrics for {self.config_name!r}; give one of {', '.join(CONFIGURATIONS)} as the "
                "second argument of evaluate.load."
            )
        text, number = datasets.Value("string"), datasets.Value("float64")
        prediction = {"id": text, "prediction_text": text, "no_answer_probability": number}
        reference = {"id": text, "answers": {"text": datasets.List(text)}}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": prediction, "references": reference}),
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/"],
        )

    def add_batch(self, *, predictions: Sequence[dict], references: Sequence[dict]) -> None:
        """Keeps what is looked at, the same for every row, because `evaluate` takes no keys that only some have."""
        for kind, rows, needed in (
            ("prediction", predictions, ("id", "prediction_text")),
            ("reference", references, ("id", "answers")),
        ):
            missing = next((name for row in rows for name in needed if name not in row), None)
            if missing is not None:
                raise ValueError(f"A {kind} has no key {missing!r}; each needs {' and '.join(map(repr, needed))}.")
        if len(predictions) != len(references):
            raise ValueError(
                f"There are {len(predictions)} predictions for {len(references)} questions; give one for each."
            )
        super().add_batch(
            predictions=[
                {
                    "id": row["id"],
                    "prediction_text": row["prediction_text"],
                    "no_answer_probability": row.get("no_answer_probability"),
                }
                for row in predictions
            ],
            references=[{"id": row["id"], "answers": {"text": list(row["answers"]["text"])}} for row in references],
        )

    def _compute(self, predictions: list, references: list, no_answer_threshold: float = 1.0) -> dict[str, float]:
        by_id = {prediction["id"]: prediction for prediction in predictions}
        if len(by_id) < len(predictions):
            repeated, _ = Counter(prediction["id"] for prediction in predictions).most_common(1)[0]
            raise ValueError(f"The question {repeated!r} has more than one prediction; give one.")
        exact_scores, f1_scores, has_answer, probabilities = [], [], [], []
        for reference in references:
            name, answers = reference["id"], reference["answers"]["text"]
            if name not in by_id:
                raise ValueError(f"The question {name!r} has no prediction; give one, which may be the empty text.")
            if not answers and self.config_name == "squad":
                raise ValueError(f"The question {name!r} has no answer, as in SQuAD 2.0; use the metric 'squad_v2'.")
            has_answer.append(bool(answers))
            # An answer of articles and punctuation only cannot be matched by words.
            answers = [answer for answer in answers if normalize_answer(answer)] or [""]
            text = by_id[name]["prediction_text"]
            exact_scores.append(max(exact_match(text, answer) for answer in answers))
            f1_scores.append(max(f1_of_words(text, answer) for answer in answers))
            probabilities.append(by_id[name]["no_answer_probability"])
        if not references:
            raise ValueError("There are no questions to compute the metrics from.")

        known = self.config_name == "squad_v2" and None not in probabilities
        final_exact, final_f1 = list(exact_scores), list(f1_scores)
        if known:
            for row, probability in enumerate(probabilities):
                if probability > no_answer_threshold:
                    final_exact[row] = final_f1[row] = float(not has_answer[row])
        result = _summarize("", final_exact, final_f1, range(len(references)))
        if self.config_name == "squad_v2":
            for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
                rows = [row for row, answerable in enumerate(has_answer) if answerable == wanted]
                if rows:
                    result.update(_summarize(prefix, final_exact, final_f1, rows))
            if known:
                for name, scores in (("exact", exact_scores), ("f1", f1_scores)):
                    best, threshold = best_threshold(scores, has_answer, probabilities)
                    result[f"best_{name}"] = 100 * best / len(references)
                    result[f"best_{name}_thresh"] = threshold
        return result


def _summarize(
    prefix: str, exact_scores: Sequence[float], f1_scores: Sequence[float], rows: Sequence[int]
) -> dict[str, float]:
    return {
        f"{prefix}exact_match": 100 * sum(exact_scores[row] for row in rows) / len(rows),
        f"{prefix}f1": 100 * sum(f1_scores[row] for row in rows) / len(rows),
        f"{prefix}total": len(rows),
    }
