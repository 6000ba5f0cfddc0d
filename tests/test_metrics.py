# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.

import math
import socket
import warnings
from pathlib import Path

import pytest


pytest.importorskip("sklearn", reason="the metrics need scikit-learn")
pytest.importorskip("scipy", reason="the metrics need scipy")

import evaluate  # noqa: E402


METRICS = Path(__file__).resolve().parents[1] / "examples" / "metrics"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Metrics are loaded as on a machine without a network."""

    def refuse(*_):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(name, configuration=None):
    return evaluate.load(str(METRICS / f"{name}.py"), configuration, keep_in_memory=True)


def compute(configuration, predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load("elastic_glue", configuration).compute(predictions=predictions, references=references)


# ---------------------------------------------------------------------------------------------------------------------
# GLUE
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sst2", "mnli", "qnli", "rte", "wnli", "accuracy", "SST-2"])
def test_accuracy(task):
    assert compute(task, [1, 0, 2, 1], [1, 0, 0, 1]) == {"accuracy": 0.75}


def test_matthews_correlation():
    # 1 true positive, 1 false positive, 2 true negatives: (1 * 2 - 1 * 0) / sqrt(2 * 1 * 3 * 2).
    assert compute("cola", [1, 1, 0, 0], [1, 0, 0, 0]) == {"matthews_correlation": pytest.approx(2 / math.sqrt(12))}


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1(task):
    # 2 true positives, 1 false positive, 1 false negative.
    assert compute(task, [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]) == {
        "accuracy": pytest.approx(0.6),
        "f1": pytest.approx(2 / 3),
        "combined_score": pytest.approx((0.6 + 2 / 3) / 2),
    }


def test_f1_of_a_model_with_more_classes():
    # Class 2 is neither right nor a positive: 1 true positive, 1 false negative.
    assert compute("mrpc", [1, 2, 0], [1, 1, 0])["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("task", ["stsb", "regression"])
def test_correlations(task):
    scores = compute(task, [1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 4.0])
    # By hand: 5.5 / sqrt(8.75 * 5); ranks differ by 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15).
    pearson = 5.5 / math.sqrt(8.75 * 5)
    assert scores["pearson"] == pytest.approx(pearson)
    assert scores["spearmanr"] == pytest.approx(0.8)
    assert scores["combined_score"] == pytest.approx((pearson + 0.8) / 2)
    if task == "regression":
        assert scores["mean_squared_error"] == scores["mean_absolute_error"] == 0.75
    else:
        assert len(scores) == 3


@pytest.mark.parametrize(
    ("task", "predictions", "references", "expected"),
    [
        ("cola", [1, 1, 1], [0, 1, 1], {"matthews_correlation": 0.0}),
        ("cola", [0, 0], [0, 0], {"matthews_correlation": 0.0}),
        ("mrpc", [0, 0], [0, 0], {"accuracy": 1.0, "f1": 0.0, "combined_score": 0.5}),
        ("qqp", [0, 0], [1, 1], {"accuracy": 0.0, "f1": 0.0, "combined_score": 0.0}),
        ("stsb", [2.5, 2.5, 2.5], [1.0, 2.0, 3.0], {"pearson": 0.0, "spearmanr": 0.0, "combined_score": 0.0}),
        ("stsb", [2.5], [1.0], {"pearson": 0.0, "spearmanr": 0.0, "combined_score": 0.0}),
    ],
)
def test_undefined_metrics_are_zero_without_a_warning(task, predictions, references, expected):
    assert compute(task, predictions, references) == expected


def test_almost_constant_predictions_give_no_warning():
    assert math.isfinite(compute("stsb", [1.0, 1.0, 1.0 + 1e-15], [1.0, 2.0, 3.0])["pearson"])


def test_a_model_that_diverged_is_not_scored_like_chance():
    assert math.isnan(compute("stsb", [1.0, float("nan")], [1.0, 2.0])["pearson"])


def test_glue_errors():
    with pytest.raises(ValueError, match="no metrics for 'snli'; give one of cola, accuracy, sst2"):
        load("elastic_glue", "snli")
    with pytest.raises(ValueError, match="no metrics for 'default'"):
        load("elastic_glue")
    with pytest.raises(ValueError, match="no predictions to compute the metrics of sst2"):
        compute("sst2", [], [])


# ---------------------------------------------------------------------------------------------------------------------
# SQuAD
# ---------------------------------------------------------------------------------------------------------------------


def squad(configuration, rows, **options):
    """Rows are: predicted text, right texts and, if it is known, the probability that there is no answer."""
    predictions, references = [], []
    for number, (text, answers, *probability) in enumerate(rows):
        predictions.append({"id": f"q{number}", "prediction_text": text})
        if probability:
            predictions[-1]["no_answer_probability"] = probability[0]
        references.append({"id": f"q{number}", "answers": {"text": answers, "answer_start": [0] * len(answers)}})
    metric = load("elastic_squad", configuration)
    # The order of the predictions does not matter.
    return metric.compute(predictions=predictions[::-1], references=references, **options)


@pytest.mark.parametrize("configuration", ["squad", "squad_v2"])
@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The Eiffel  tower!", ["eiffel tower"], 1, 1),
        ("in Paris", ["Paris", "Paris, France"], 0, 2 / 3),  # 2 * 1 / (2 + 1) beats 2 * 1 / (2 + 2).
        ("a cat and a cat", ["cat"], 0, 0.5),  # The second cat has nothing left to match: 2 * 1 / (3 + 1).
        ("U.S.", ["US"], 1, 1),
        ("theory", ["the ory"], 0, 0),  # Articles are whole words.
        ("", ["Paris"], 0, 0),
        ("Rome", ["Paris"], 0, 0),
    ],
)
def test_one_question(configuration, prediction, answers, exact, f1):
    scores = squad(configuration, [(prediction, answers)])
    assert scores["exact_match"] == pytest.approx(100 * exact)
    assert scores["f1"] == pytest.approx(100 * f1)


def test_squad_averages():
    assert squad("squad", [("in Paris", ["Paris"]), ("tower", ["the tower"])]) == {
        "exact_match": 50.0,
        "f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        "total": 2,
    }


QUESTIONS = [
    ("in Paris", ["Paris"], 0.1),
    ("tower", ["the tower"], 0.6),
    ("", [], 0.2),
    ("Rome", [], 0.7),
]


def test_squad_v2_by_kind_of_question():
    scores = squad("squad_v2", [row[:2] for row in QUESTIONS])
    assert scores == {
        "exact_match": 50.0,
        "f1": pytest.approx(100 * (2 / 3 + 1 + 1) / 4),
        "total": 4,
        "HasAns_exact_match": 50.0,
        "HasAns_f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        "HasAns_total": 2,
        "NoAns_exact_match": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }


def test_squad_v2_thresholds():
    scores = squad("squad_v2", QUESTIONS)
    # Answering up to 0.6 is best: all but the last are answered, and the last is right as unanswered.
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (75.0, 0.6)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (pytest.approx(100 * (2 / 3 + 3) / 4), 0.6)
    assert scores["exact_match"] == 50.0
    chosen = squad("squad_v2", QUESTIONS, no_answer_threshold=0.6)
    assert (chosen["exact_match"], chosen["f1"]) == (75.0, scores["best_f1"])
    assert squad("squad_v2", QUESTIONS, no_answer_threshold=0.5)["HasAns_f1"] == pytest.approx(100 / 3)


def test_best_threshold_is_one_that_gives_that_score():
    # The two questions cannot be told apart, and with a probability of 0 both are answered at the threshold 0.
    rows = [("x", ["Paris"], 0.0), ("x", [], 0.0)]
    scores = squad("squad_v2", rows)
    assert scores["best_exact"] == 50.0
    again = squad("squad_v2", rows, no_answer_threshold=scores["best_exact_thresh"])
    assert again["exact_match"] == 50.0


def test_squad_errors():
    with pytest.raises(ValueError, match="no metrics for 'squad_v3'; give one of squad, squad_v2"):
        load("elastic_squad", "squad_v3")
    with pytest.raises(ValueError, match="'q0' has no answer, as in SQuAD 2.0; use the metric 'squad_v2'"):
        squad("squad", [("x", [])])
    metric = load("elastic_squad", "squad")
    right = {"id": "a", "answers": {"text": ["x"]}}
    with pytest.raises(ValueError, match="'a' has no prediction; give one"):
        metric.compute(predictions=[{"id": "b", "prediction_text": "x"}], references=[right])
    with pytest.raises(ValueError, match="'a' has more than one prediction"):
        metric.compute(predictions=[{"id": "a", "prediction_text": "x"}] * 2, references=[right] * 2)
    with pytest.raises(ValueError, match="2 predictions for 1 questions"):
        metric.compute(predictions=[{"id": "a", "prediction_text": "x"}] * 2, references=[right])
    with pytest.raises(ValueError, match="prediction has no key 'prediction_text'; each needs 'id' and"):
        metric.compute(predictions=[{"id": "a"}], references=[right])
    with pytest.raises(ValueError, match="no questions"):
        metric.compute(predictions=[], references=[])
