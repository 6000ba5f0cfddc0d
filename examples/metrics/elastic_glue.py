# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
The metrics of the GLUE tasks, and of own classification and regression data, without a network:

    evaluate.load("examples/metrics/elastic_glue.py", "mrpc").compute(predictions=[0, 1], references=[0, 1])
"""

import re
import warnings

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


ACCURACY_TASKS = ("accuracy", "sst2", "mnli", "qnli", "rte", "wnli")
F1_TASKS = ("mrpc", "qqp")
REGRESSION_TASKS = ("regression", "stsb")
CONFIGURATIONS = ("cola", *ACCURACY_TASKS, *F1_TASKS, *REGRESSION_TASKS)

DESCRIPTION = """\
The official metrics of the GLUE tasks, and plain accuracy and regression for other data. Where a metric is \
undefined, because all predictions are the same or there are no positives, it is 0.
"""
CITATION = """\
@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle={International Conference on Learning Representations},
  year={2019}
}
"""
INPUTS = """\
Args:
    predictions: class numbers, or for stsb and regression numbers, one a row.
    references: the labels, in the same form.
Returns, by configuration:
    cola: matthews_correlation.
    sst2, mnli, qnli, rte, wnli, accuracy: accuracy.
    mrpc, qqp: accuracy, f1 of class 1, and their mean, combined_score.
    stsb: pearson, spearmanr, and their mean, combined_score.
    regression: the same, mean_squared_error and mean_absolute_error.
"""


def f1_of_class_one(predictions: np.ndarray, references: np.ndarray) -> float:
    """Without positives among predictions and references, 0. A model may know more classes than the two."""
    return float(f1_score(references == 1, predictions == 1, zero_division=0.0))


def correlation(predictions: np.ndarray, references: np.ndarray, rank: bool) -> float:
    """
    Pearson's correlation, or Spearman's for `rank`. It is 0 where one side is constant, so that a model that predicts
    one number for all rows scores like chance; it is not a number where a prediction is not one.
    """
    if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
        return float("nan")
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    with warnings.catch_warnings():
        # Of nearly constant input, where rounding may decide.
        warnings.simplefilter("ignore")
        value = float((spearmanr if rank else pearsonr)(predictions, references)[0])
    return value if np.isfinite(value) else 0.0


def task_scores(task: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """
    The metrics of one task, one of `CONFIGURATIONS`.

    Args:
        task (`str`): The task.
        predictions (`np.ndarray` of shape `(rows,)`): Class numbers, or for stsb and regression numbers.
        references (`np.ndarray` of shape `(rows,)`): The labels, in the same form.
    """
    if task == "cola":
        # Of one class only, it is undefined, and scikit-learn warns in some of these cases.
        constant = np.ptp(predictions) == 0 or np.ptp(references) == 0
        return {"matthews_correlation": 0.0 if constant else float(matthews_corrcoef(references, predictions))}
    if task in REGRESSION_TASKS:
        pearson, spearman = (correlation(predictions, references, rank) for rank in (False, True))
        scores = {"pearson": pearson, "spearmanr": spearman, "combined_score": (pearson + spearman) / 2}
        if task == "regression":
            errors = predictions - references
            scores["mean_squared_error"] = float(np.mean(errors**2))
            scores["mean_absolute_error"] = float(np.mean(np.abs(errors)))
        return scores
    scores = {"accuracy": float(accuracy_score(references, predictions))}
    if task in F1_TASKS:
        scores["f1"] = f1_of_class_one(predictions, references)
        scores["combined_score"] = (scores["accuracy"] + scores["f1"]) / 2
    return scores


class ElasticGlue(evaluate.Metric):
    """The metrics of one task; its name is the configuration."""

    def _info(self) -> evaluate.MetricInfo:
        self.task = re.sub(r"[-_\s]", "", self.config_name).lower()
        if self.task not in CONFIGURATIONS:
            raise ValueError(
                f"There are no metrics for {self.config_name!r}; give one of {', '.join(CONFIGURATIONS)} as the "
                "second argument of evaluate.load."
            )
        kind = "float64" if self.task in REGRESSION_TASKS else "int64"
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
            reference_urls=["https://gluebenchmark.com"],
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        if len(predictions) == 0:
            raise ValueError(f"There are no predictions to compute the metrics of {self.config_name} from.")
        return task_scores(self.task, np.asarray(predictions), np.asarray(references))
