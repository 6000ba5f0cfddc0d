# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""Predictions of test rows, for GLUE tasks in the form that its server takes."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from safetensors.numpy import save_file
from transformers import Trainer

from example_utils import write_text_atomically
from glue_arguments import TASKS, DataArguments, plain_name


def write_glue_submission(
    path: str | os.PathLike,
    task_name: str,
    predictions: Sequence[Any] | np.ndarray,
    label_names: Sequence[str] | None = None,
) -> None:
    """
    Writes the predictions of a test split as the GLUE server takes them: the columns `index` and `prediction`.

    Args:
        path (`str` or `os.PathLike`): The file; `TASKS[task_name].submission_file(split)` is the name that the server
            expects.
        task_name (`str`): A GLUE task.
        predictions (sequence or `np.ndarray`): Logits, class numbers, or for STS-B scores, in the order of the rows.
        label_names (sequence of `str`, *optional*): The classes in the order of the predictions; the official order
            if not given.

    Raises:
        ValueError: The task or a label is unknown, or a prediction is out of bounds.
    """
    task = TASKS.get(plain_name(task_name))
    if task is None:
        raise ValueError(f"{task_name!r} is no GLUE task; the tasks are {', '.join(TASKS)}.")
    values = np.asarray(predictions)
    if task.is_regression:
        scores = values.reshape(len(values)).astype(float)
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(f"The prediction of row {row} is {scores[row]}, which is no finite number.")
        # The scale of the annotations; the server takes nothing outside.
        words = [f"{score:.3f}" for score in np.clip(scores, 0.0, 5.0)]
    else:
        names = list(task.label_names if label_names is None else label_names)
        unknown = [name for name in names if name not in (*task.label_names, *task.file_labels)]
        if unknown:
            raise ValueError(
                f"The label {unknown[0]!r} is none of the labels of {task.name}, which are "
                f"{', '.join(map(repr, task.label_names))}."
            )
        written = dict(zip(task.label_names, task.file_labels, strict=True))
        classes = values.argmax(axis=-1) if values.ndim == 2 else values
        if not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(f"Predictions must be class numbers or logits, not {classes.dtype} of one dimension.")
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(names):
            raise ValueError(
                f"Class numbers from {classes.min()} to {classes.max()} do not fit the {len(names)} labels of "
                f"{task.name}: they must lie between 0 and {len(names) - 1}."
            )
        words = [written.get(names[number], names[number]) for number in classes.tolist()]
    write_text_atomically(path, ["index\tprediction\n", *(f"{index}\t{word}\n" for index, word in enumerate(words))])


def save_predictions(path: Path, tensors: Mapping[str, np.ndarray], label_names: Sequence[str] | None) -> None:
    """
    Writes logits, and what belongs to them, to a safetensors file; the names of the classes, in the order of the
    logits, are in its metadata under `label_names`, as JSON.
    """
    metadata = None if label_names is None else {"label_names": json.dumps(list(label_names))}
    temporary = path.with_name(f".{path.name}.partial")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary, metadata)
    temporary.replace(path)


def write_test_predictions(
    trainer: Trainer, splits: DatasetDict, data: DataArguments, names: Sequence[str] | None, output: Path
) -> None:
    """
    Predicts the test splits into `output`: those of GLUE tasks in the form and under the names that the server takes,
    own rows with the names of their labels into `predictions_test.tsv`.
    """
    for split in [name for name in splits if name.startswith("test")]:
        rows = splits[split].remove_columns([name for name in ("label",) if name in splits[split].column_names])
        logits = trainer.predict(rows, metric_key_prefix=split).predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        found = logits.squeeze(-1) if names is None else logits.argmax(-1)
        if not trainer.is_world_process_zero():
            continue
        if data.task is not None and data.test_file is None:
            write_glue_submission(output / data.task.submission_file(split), data.task_name, found, names)
        else:
            words = [f"{float(value):.4f}" if names is None else names[int(value)] for value in found]
            lines = [f"{index}\t{word}\n" for index, word in enumerate(words)]
            write_text_atomically(output / f"predictions_{split}.tsv", ["index\tprediction\n", *lines])
