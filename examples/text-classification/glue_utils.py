# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
What the text-classification scripts share, under one name: tasks and arguments (`glue_arguments`), reading rows
(`glue_files`, `glue_data`), preparing them for a model (`glue_preprocessing`), metrics and submissions.

    datasets = load_task_datasets(arguments, seed=42)  # DatasetDict: sentence1, sentence2 (pairs), label
    names = get_label_names(datasets)  # None: the labels are numbers to be regressed
    tokenized = preprocess(datasets, tokenizer, arguments, names, config=model.config)
    compute_metrics = glue_compute_metrics(arguments.task_name, is_regression=names is None)
"""

import sys
from pathlib import Path


# The modules are beside this one and one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from glue_arguments import TASKS, DataArguments, GlueTask  # noqa: E402
from glue_data import describe_task, get_label_names, is_regression, load_task_datasets  # noqa: E402
from glue_files import find_task_files  # noqa: E402
from glue_metrics import glue_compute_metrics, main_metric, official_classes  # noqa: E402
from glue_preprocessing import (  # noqa: E402
    load_tokenizer,
    make_collator,
    match_labels,
    preprocess,
    set_model_labels,
)
from glue_submission import save_predictions, write_glue_submission, write_test_predictions  # noqa: E402


__all__ = [
    "TASKS",
    "DataArguments",
    "GlueTask",
    "describe_task",
    "find_task_files",
    "get_label_names",
    "glue_compute_metrics",
    "is_regression",
    "load_task_datasets",
    "load_tokenizer",
    "main_metric",
    "make_collator",
    "match_labels",
    "official_classes",
    "preprocess",
    "save_predictions",
    "set_model_labels",
    "write_glue_submission",
    "write_test_predictions",
]
