# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
What the text-classification scripts share: reading GLUE tasks and own files, tokenizing them, metrics, submissions.

    datasets = load_task_datasets(arguments, seed=42)  # DatasetDict: sentence1, sentence2 (pairs), label
    names = get_label_names(datasets)  # None: the labels are numbers to be regressed
    tokenized = preprocess(datasets, tokenizer, arguments, names, config=model.config)
    compute_metrics = glue_compute_metrics(arguments.task_name, is_regression=names is None)
"""

import csv
import difflib
import hashlib
import json
import math
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets as hf_datasets
import evaluate
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.fingerprint import Hasher
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    default_data_collator,
)
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from example_utils import describe_dataset, read_lines, write_text_atomically  # noqa: E402


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
    "main_metric",
    "make_collator",
    "match_labels",
    "preprocess",
    "set_model_labels",
    "write_glue_submission",
    "write_test_predictions",
]

logger = logging.get_logger(__name__)

# Raise it when the same file gives other rows than before: what was cached earlier is then not taken for it.
FORMAT_VERSION = 1
METRIC_SCRIPT = Path(__file__).resolve().parents[1] / "metrics" / "elastic_glue.py"
GLUE_ON_THE_HUB = "nyu-mll/glue"
SUPPORTED_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
LABEL_COLUMNS = ("label", "labels", "gold_label", "score")
INDEX_COLUMNS = ("idx", "index", "id", "guid")
NO_LABEL = "-1"  # How data sets on the Hub mark the rows of a test split.


@dataclass(frozen=True)
class GlueTask:
    """
    A GLUE task.

    Args:
        name (`str`): The usual capitalisation: of folders, and of the file names of a submission.
        text_columns (`tuple[str, ...]`): The column or columns of text in the classic TSV files.
        hub_text_columns (`tuple[str, ...]`): The same in the data set on the Hub.
        label_column (`str`): The column of the labels in the classic TSV files.
        label_names (`tuple[str, ...]`): The classes in the official order; none for regression.
        file_labels (`tuple[str, ...]`): How the classic files and submissions write the same classes.
        metric_names (`tuple[str, ...]`): The official metrics.
        main_metric (`str`): The one that models are selected by.
        columns (`tuple[str, ...]`, *optional*): The columns of files without a header.
    """

    name: str
    text_columns: tuple[str, ...]
    hub_text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...]
    file_labels: tuple[str, ...]
    metric_names: tuple[str, ...] = ("accuracy",)
    main_metric: str = "accuracy"
    columns: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        return not self.label_names

    def submission_file(self, split: str = "test") -> str:
        """The file name that the GLUE server expects for a test split."""
        if self.name == "MNLI":
            return "MNLI-mm.tsv" if split.endswith("mismatched") else "MNLI-m.tsv"
        return f"{self.name}.tsv"


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_F1_METRICS = ("accuracy", "f1", "combined_score")
TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA",
        ("sentence",),
        ("sentence",),
        "label",
        ("unacceptable", "acceptable"),
        ("0", "1"),
        ("matthews_correlation",),
        "matthews_correlation",
        columns=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask("SST-2", ("sentence",), ("sentence",), "label", ("negative", "positive"), ("0", "1")),
    "mrpc": GlueTask(
        "MRPC", ("#1 String", "#2 String"), _PAIR, "Quality", ("not_equivalent", "equivalent"), ("0", "1"), _F1_METRICS
    ),
    "stsb": GlueTask(
        "STS-B", _PAIR, _PAIR, "score", (), (), ("pearson", "spearmanr", "combined_score"), main_metric="pearson"
    ),
    "qqp": GlueTask(
        "QQP",
        ("question1", "question2"),
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        ("0", "1"),
        _F1_METRICS,
    ),
    "mnli": GlueTask(
        "MNLI",
        _PAIR,
        ("premise", "hypothesis"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT, _ENTAILMENT),
    "rte": GlueTask("RTE", _PAIR, _PAIR, "label", _ENTAILMENT, _ENTAILMENT),
    "wnli": GlueTask("WNLI", _PAIR, _PAIR, "label", ("not_entailment", "entailment"), ("0", "1")),
}


def _plain(name: str) -> str:
    """Brings the spellings of a task to one: SST-2, sst_2 and sst2."""
    return re.sub(r"[-_\s]", "", name).lower()


@dataclass
class DataArguments:
    """What to train and evaluate on: a GLUE task from the Hub or from a folder, own files, or a data set by name."""

    task_name: str | None = field(
        default=None,
        metadata={"help": "A GLUE task: " + ", ".join(TASKS) + ". From the Hub, unless data_dir or files are given."},
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "A folder with the classic TSV files of task_name (train.tsv, dev.tsv, test.tsv; for MNLI "
            "dev_matched.tsv and dev_mismatched.tsv), or with one folder a task (CoLA, SST-2, …)."
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Rows to train on: a .csv, .tsv, .json or .jsonl file."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Rows to validate on, in the same forms."})
    test_file: str | None = field(
        default=None, metadata={"help": "Rows to predict, in the same forms; they need no labels."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, or a local folder with one, instead of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that data set."})
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "The column of the text, or the two columns of a pair. If not given: the task's, else sentence1 "
            "and sentence2, else sentence or text, else the one or two columns beside the label."
        },
    )
    label_column: str | None = field(
        default=None, metadata={"help": "The column of the label. If not given: the task's, else 'label'."}
    )
    regression: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the labels of own data are numbers to be regressed. If not given, they are where all are "
            "numbers and one has a decimal point."
        },
    )
    validation_split_percentage: float | None = field(
        default=None,
        metadata={"help": "The share of the training rows, in percent, to hold out as the validation split."},
    )
    calibration_split_percentage: float | None = field(
        default=None,
        metadata={
            "help": "The share of the training rows, in percent, to hold out as a split 'calibration', for what must "
            "be fitted neither on training nor on validation rows, such as the budgets of a SHARCS router."
        },
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "The longest input in tokens, special tokens included; the rest is cut off."}
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata={"help": "Pad every input to max_seq_length, instead of each batch to its longest input."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first training rows."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only the first rows of each validation split and of a calibration split."}
    )
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use only the first rows to predict."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "How many processes tokenize."})
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where rows and tokens are kept for the next run; the cache of `datasets` if not given."},
    )

    def __post_init__(self) -> None:
        if self.task_name is not None:
            name = _plain(self.task_name)
            if name not in TASKS:
                near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
                raise ValueError(
                    f"task_name={self.task_name!r} is no GLUE task"
                    + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ".")
                    + f" The tasks are {', '.join(TASKS)}; for other data leave task_name out and give train_file and "
                    "validation_file, or dataset_name."
                )
            self.task_name = name
        files = [name for name in ("train_file", "validation_file", "test_file") if getattr(self, name) is not None]
        sources = [name for name in ("data_dir", "dataset_name") if getattr(self, name) is not None] + files[:1]
        if not sources and self.task_name is None:
            raise ValueError(
                f"Name the data: a GLUE task with task_name ({', '.join(TASKS)}), train_file and validation_file, or "
                "dataset_name; none of them was given."
            )
        if len(sources) > 1:
            raise ValueError(
                f"{' and '.join(sources)} name the data twice; give only one of data_dir, dataset_name and files."
            )
        if files == ["test_file"]:
            raise ValueError(
                f"test_file={self.test_file!r} alone does not say what the labels are; give the train_file or "
                "validation_file that belongs to it as well."
            )
        if self.data_dir is not None and self.task_name is None:
            raise ValueError(
                f"data_dir={self.data_dir!r} needs a task_name, one of {', '.join(TASKS)}; for own files give "
                "train_file and validation_file."
            )
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise ValueError(
                f"dataset_config_name={self.dataset_config_name!r} needs a dataset_name that it belongs to."
            )
        for name in files:
            path = getattr(self, name)
            if Path(path).suffix not in SUPPORTED_SUFFIXES:
                raise ValueError(
                    f"{name}={path!r} ends in {Path(path).suffix!r}; only {', '.join(SUPPORTED_SUFFIXES)} files can "
                    "be read."
                )
        if self.text_columns is not None and len(self.text_columns) not in (1, 2):
            raise ValueError(
                f"text_columns={self.text_columns} names {len(self.text_columns)} columns; give one, or two for pairs."
            )
        if self.regression is not None and self.task_name is not None:
            if self.regression != TASKS[self.task_name].is_regression:
                kind = "a regression" if TASKS[self.task_name].is_regression else "a classification"
                raise ValueError(
                    f"regression={self.regression}, but {self.task_name} is {kind} task; leave regression out."
                )
        held_out = 0.0
        for name in ("validation_split_percentage", "calibration_split_percentage"):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 < value < 100:
                raise ValueError(
                    f"{name}={value} must lie between 0 and 100, both excluded; 5 holds out one row in twenty."
                )
            held_out += value
        if held_out >= 100:
            raise ValueError(
                f"validation_split_percentage and calibration_split_percentage add up to {held_out:g}; they must stay "
                "below 100, so that rows to train on are left."
            )
        if self.max_seq_length < 4:
            raise ValueError(f"max_seq_length={self.max_seq_length} leaves no room for text; use at least 4.")
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples", "preprocessing_num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    @property
    def task(self) -> GlueTask | None:
        return None if self.task_name is None else TASKS[self.task_name]


# ---------------------------------------------------------------------------------------------------------------------
# Reading rows
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """The rows of a file: its columns by name, and where each row stands in it."""

    place: str
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    unit: str = "line"
    warning: str = ""

    def where(self, row: int) -> str:
        return f"{self.unit} {self.numbers[row]} of {self.place}"


def find_task_files(data_dir: str | os.PathLike, task_name: str) -> dict[str, Path]:
    """
    Finds the classic TSV files of a GLUE task.

    Args:
        data_dir (`str` or `os.PathLike`): The folder of the task, or one that has it as a sub-folder in any usual
            spelling.
        task_name (`str`): A key of `TASKS`.

    Returns:
        `dict[str, Path]`: The files by split: `train`, `validation`, `validation_mismatched`, `test` and
        `test_mismatched`, those of them that are there.

    Raises:
        FileNotFoundError: There is no such folder, or neither train.tsv nor dev.tsv in it.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} is no folder.")
    names = {
        "train": ("train.tsv",),
        "validation": ("dev_matched.tsv", "dev.tsv") if task_name == "mnli" else ("dev.tsv",),
        "validation_mismatched": ("dev_mismatched.tsv",) if task_name == "mnli" else (),
        "test": ("test_matched.tsv", "test.tsv") if task_name == "mnli" else ("test.tsv",),
        "test_mismatched": ("test_mismatched.tsv",) if task_name == "mnli" else (),
    }
    below = sorted(child for child in folder.iterdir() if child.is_dir() and _plain(child.name) == task_name)
    for candidate in [folder, *below]:
        files = {
            split: next(candidate / name for name in options if (candidate / name).is_file())
            for split, options in names.items()
            if any((candidate / name).is_file() for name in options)
        }
        if "train" in files or "validation" in files:
            return files
    raise FileNotFoundError(
        f"There is neither train.tsv nor {names['validation'][0]} in {str(folder)!r}, nor in a folder "
        f"{TASKS[task_name].name!r} below it. Choose with data_dir the folder that holds them."
    )


def _read_table(path: Path, task: GlueTask | None, is_test: bool) -> _Rows:
    """
    Reads a .tsv file, in which quotes are ordinary characters, or a .csv file.

    Rows with too few columns are left out of a GLUE task's files, with one warning (QQP is published with three), but
    not out of a test split, where every row wants a prediction: there the missing texts are empty.
    """
    place = repr(str(path))
    if path.suffix == ".csv":
        csv.field_size_limit(2**31 - 1)  # The default of 131,072 characters is less than a long article.
        reader = csv.reader(read_lines(path))
        numbered: Iterator[tuple[int, list[str]]] = ((reader.line_num, row) for row in reader)
    else:
        numbered = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(read_lines(path), start=1))
    header: list[str] | None = None
    numbers: list[int] = []
    rows: list[list[str]] = []
    short: list[int] = []
    try:
        for number, row in numbered:
            if not row or row == [""]:
                continue
            if header is None:
                if task is not None and len(row) == len(task.columns) and not set(row) & set(task.text_columns):
                    header = list(task.columns)
                else:
                    header = [name.strip() for name in row]
                    continue
            if len(row) < len(header):
                if task is None:
                    raise ValueError(
                        f"Line {number} of {place} has {len(row)} columns, the header has {len(header)}: "
                        f"{', '.join(map(repr, header))}. Correct that line."
                    )
                short.append(number)
                if not is_test:
                    continue
                row = row + [""] * (len(header) - len(row))
            numbers.append(number)
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} of {place} is not valid CSV: {error}.") from error
    if header is None:
        raise ValueError(f"The file {place} is empty.")
    duplicates = [name for name, count in Counter(header).items() if count > 1]
    if duplicates:
        raise ValueError(f"The header of {place} has the column {duplicates[0]!r} twice; rename one of them.")
    if not rows:
        reason = f"all {len(short)} have fewer than its {len(header)} columns" if short else "only a header"
        raise ValueError(f"The file {place} holds no rows: {reason}.")
    warning = ""
    if short:
        what = "what is missing is taken as empty text" if is_test else "left out"
        warning = f"{_count_rows(len(short))} of {place}, first at line {short[0]}, with too few columns: {what}."
    # The last column is counted from the end, as the published scripts do: a stray tab in a text moves no label.
    last = len(header) - 1
    columns = {name: [row[-1 if i == last else i] for row in rows] for i, name in enumerate(header)}
    return _Rows(place, columns, numbers, warning=warning)


def _count_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _read_json(path: Path) -> _Rows:
    """Reads one JSON object a line, or one array of objects."""
    place = repr(str(path))
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"The file {place} is empty.")
    unit, number = "line", lines[0][0]
    try:
        if lines[0][1].lstrip().startswith("["):
            unit = "row"
            numbered = list(enumerate(json.loads("".join(line for _, line in lines)), start=1))
        else:
            numbered = []
            for number, line in lines:
                numbered.append((number, json.loads(line)))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"Line {number} of {place} is not valid JSON ({error}); a file holds one object a line, or one array of "
            "objects."
        ) from error
    if not numbered:
        raise ValueError(f"The file {place} holds no rows.")
    names: dict[str, None] = {}
    for number, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(f"A JSON object was expected in {unit} {number} of {place}, not a {type(row).__name__}.")
        names.update(dict.fromkeys(row))
    columns = {name: [row.get(name) for _, row in numbered] for name in names}
    return _Rows(place, columns, [number for number, _ in numbered], unit=unit)


def _resolve_columns(
    names: Sequence[str], place: str, arguments: DataArguments, is_test: bool
) -> tuple[list[str], str | None]:
    """
    Finds the text columns and the label column among those there; `None` for a test split without labels.

    Raises:
        ValueError: They are not there, or which they are is not clear.
    """
    task = arguments.task
    there = f"its columns are {', '.join(map(repr, names)) or 'none'}"

    labels = (task.label_column, *LABEL_COLUMNS) if task is not None else LABEL_COLUMNS[:2]
    if arguments.label_column is not None:
        labels = (arguments.label_column,)
    label = next((name for name in labels if name in names), None)
    if label is None and not is_test:
        raise ValueError(
            f"There is no column {labels[0]!r} with labels in {place}; {there}. Choose one with label_column."
        )

    if arguments.text_columns is not None:
        candidates = [tuple(arguments.text_columns)]
    else:
        candidates = [] if task is None else [task.text_columns, task.hub_text_columns]
        pair = task is None or len(task.text_columns) == 2
        candidates += [_PAIR] if pair else []
        candidates += [("sentence",), ("text",), ("sentence1",)] if task is None or not pair else []
    for candidate in candidates:
        if all(name in names for name in candidate):
            if label in candidate:
                raise ValueError(f"The column {label!r} of {place} cannot be both text and label.")
            return list(candidate), label
    if arguments.text_columns is None and task is None:
        rest = [name for name in names if name != label and name.lower() not in (*INDEX_COLUMNS, *LABEL_COLUMNS)]
        if len(rest) in (1, 2):
            return rest, label
        raise ValueError(
            f"Which columns of {place} hold the text is not clear; {there}. Choose one, or two for pairs, with "
            "text_columns."
        )
    missing = next(name for name in candidates[0] if name not in names)
    raise ValueError(f"There is no column {missing!r} in {place}; {there}. Choose the text with text_columns.")


def _get_texts(rows: _Rows, column: str) -> list[str]:
    texts = rows.columns[column]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            if text is not None and not isinstance(text, (int, float)):
                raise ValueError(
                    f"The column {column!r} in {rows.where(row)} holds a {type(text).__name__}, not text. Choose "
                    "another with text_columns."
                )
            texts[row] = "" if text is None else str(text)
    return texts


# The labels of the splits read before: names in order, an empty tuple for numbers, None if this is the first split.
_Labels = tuple[str, ...] | None


def _encode_labels(
    rows: _Rows, column: str, arguments: DataArguments, known: _Labels
) -> tuple[list[int] | list[float], tuple[str, ...]]:
    """
    Turns labels into class numbers, or into numbers to be regressed.

    Returns:
        `tuple`: The labels, and the names of the classes, none for regression.

    Raises:
        ValueError: A label is missing or unknown, or all are the same.
    """
    values = rows.columns[column]
    words = []
    for row, value in enumerate(values):
        if value is None or isinstance(value, (list, dict)) or not str(value).strip():
            what = "no label" if value is None or value in ("", [], {}) else f"the label {value!r}, which is no word"
            raise ValueError(
                f"There is {what} in the column {column!r} in {rows.where(row)}; every row to train or validate on "
                "needs one. Correct it, or choose another column with label_column."
            )
        words.append(str(value).strip())
    task = arguments.task
    if task is not None and known is None:
        known = task.label_names
    numeric = known == () if known is not None else arguments.regression
    if numeric is None:
        numeric = all(map(_is_number, words)) and not all(re.fullmatch(r"[+-]?\d+", word) for word in words)
    if numeric:
        for row, word in enumerate(words):
            if not _is_number(word):
                raise ValueError(
                    f"The label {word!r} in {rows.where(row)} is no finite number, as regression needs. Correct it, "
                    "or choose another column with label_column."
                )
        return [float(word) for word in words], ()

    codes: dict[str, int] = {}
    if known is None:
        found = set(words)
        if len(found) == 1:
            raise ValueError(
                f"All {len(words):,} rows of {rows.place} have the same label, {words[0]!r}; there is nothing to "
                "learn. Choose another column with label_column, or add rows with other labels."
            )
        integers = all(re.fullmatch(r"[+-]?\d+", word) for word in found)
        known = tuple(sorted(found, key=(lambda word: (int(word), word)) if integers else None))
    elif task is not None and known == task.label_names:
        # The number of a class stands for it in exports of the Hub's data sets.
        codes.update({str(number): number for number in range(len(known))})
        codes.update({word: number for number, word in enumerate(task.file_labels)})
    codes.update({name: number for number, name in enumerate(known)})
    unknown = {word: row for row, word in reversed(list(enumerate(words))) if word not in codes}
    if unknown:
        word, row = min(unknown.items(), key=lambda item: item[1])
        names = ", ".join(repr(name) for name in codes)
        source = f"the task {task.name}" if task is not None else "the rows to train on"
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(
            f"The label {word!r} in {rows.where(row)}{more} is not among the labels of {source}, which are {names}. "
            "Correct it, or choose another column with label_column."
        )
    return [codes[word] for word in words], known


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _label_feature(names: Sequence[str]) -> ClassLabel | Value:
    return ClassLabel(names=list(names)) if names else Value("float32")


def _build_split(path: Path, arguments: DataArguments, known: _Labels, is_test: bool) -> Dataset:
    rows = _read_json(path) if path.suffix in (".json", ".jsonl") else _read_table(path, arguments.task, is_test)
    text_columns, label_column = _resolve_columns(list(rows.columns), f"the file {rows.place}", arguments, is_test)
    columns: dict[str, list[Any]] = {}
    features = Features()
    for name, column in zip(_PAIR, text_columns, strict=False):
        columns[name] = _get_texts(rows, column)
        features[name] = Value("string")
    if label_column is not None and not (is_test and _has_no_labels(rows.columns[label_column])):
        columns["label"], names = _encode_labels(rows, label_column, arguments, known)
        features["label"] = _label_feature(names)
    # What was left out is kept with the rows, so that it is said again when they come from the cache.
    info = hf_datasets.DatasetInfo(description=rows.warning, features=features)
    return Dataset.from_dict(columns, features=features, info=info)


def _has_no_labels(values: Sequence[Any]) -> bool:
    return all(value is None or str(value).strip() in ("", NO_LABEL) for value in values)


def _load_file(path: Path, arguments: DataArguments, known: _Labels, is_test: bool) -> Dataset:
    """Reads a file once and keeps the rows, so that their tokens can be kept too. A changed file is read again."""
    if not path.is_file():
        raise FileNotFoundError(f"The file {str(path)!r} does not exist.")
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    settings = [
        FORMAT_VERSION,
        str(path),  # Errors and warnings name it.
        arguments.task_name,
        arguments.text_columns,
        arguments.label_column,
        arguments.regression,
        known,
        is_test,
    ]
    digest.update(json.dumps(settings).encode())
    root = Path(arguments.cache_dir or hf_datasets.config.HF_DATASETS_CACHE).expanduser() / "elastic_encoders"
    folder = root / digest.hexdigest()
    if not folder.is_dir():
        rows = _build_split(path, arguments, known, is_test)
        temporary = root / f".{folder.name}.{os.getpid()}.partial"
        try:
            rows.save_to_disk(temporary)
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # Else another process was faster, with the same rows.
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    split = load_from_disk(folder)
    if split.info.description:
        logger.warning(split.info.description)
    return split


def _load_files(files: dict[str, Path], arguments: DataArguments) -> DatasetDict:
    splits = DatasetDict()
    known: _Labels = None
    for name, path in files.items():
        splits[name] = _load_file(path, arguments, known, is_test=name.startswith("test"))
        if known is None and "label" in splits[name].features:
            known = tuple(getattr(splits[name].features["label"], "names", ()))
    return splits


def _load_named(arguments: DataArguments) -> DatasetDict:
    """Loads a data set of the Hub, or a folder of one, with the columns and splits that files would give."""
    name, config = arguments.dataset_name, arguments.dataset_config_name
    if name is None:
        name, config = GLUE_ON_THE_HUB, arguments.task_name
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            found = load_from_disk(name)
        else:
            found = load_dataset(name, config, cache_dir=arguments.cache_dir)
    except OSError as error:  # FileNotFoundError and ConnectionError, offline mode among them, belong to it.
        raise ValueError(
            f"The data set {name!r}{f' ({config})' if config else ''} could not be loaded: {str(error).rstrip('.')}. "
            "Check its name and the network, or give the data as files: "
            + ("data_dir." if arguments.task_name else "train_file and validation_file.")
        ) from error
    wanted = {
        "train": ("train",),
        "validation": ("validation", "validation_matched", "dev"),
        "validation_mismatched": ("validation_mismatched",),
        "test": ("test", "test_matched"),
        "test_mismatched": ("test_mismatched",),
    }
    splits = DatasetDict()
    known: _Labels = None
    for split, options in wanted.items():
        source = next((option for option in options if option in found), None)
        if source is not None:
            is_test = split.startswith("test")
            splits[split], known = _normalise_split(found[source], f"{name!r} ({source})", arguments, known, is_test)
    if "train" not in splits and "validation" not in splits:
        raise ValueError(
            f"The data set {name!r} has neither a split 'train' nor 'validation'; its splits are "
            f"{', '.join(map(repr, found))}."
        )
    return splits


def _normalise_split(
    rows: Dataset, place: str, arguments: DataArguments, known: _Labels, is_test: bool
) -> tuple[Dataset, tuple[str, ...] | None]:
    text_columns, label_column = _resolve_columns(rows.column_names, place, arguments, is_test)
    for column in text_columns:
        if rows.features[column].dtype not in ("string", "large_string"):
            raise ValueError(
                f"The column {column!r} of {place} holds no text but {rows.features[column].dtype}. Choose another "
                "with text_columns."
            )
    if is_test and label_column is not None and _has_no_labels(rows[label_column][:]):
        label_column = None
    rows = rows.select_columns(text_columns + ([label_column] if label_column is not None else []))
    new_names = dict(zip(text_columns, _PAIR, strict=False)) | ({label_column: "label"} if label_column else {})
    # In two steps, since a new name may be an old one of another column.
    rows = rows.rename_columns({old: f"_{new}" for old, new in new_names.items()})
    rows = rows.rename_columns({f"_{new}": new for new in new_names.values()})
    if label_column is None:
        return rows, known
    feature = rows.features["label"]
    if isinstance(feature, ClassLabel):
        unlabelled = np.asarray(rows.with_format("numpy")["label"][:]) < 0
        if unlabelled.any():
            logger.warning(f"{_count_rows(int(unlabelled.sum()))} of {place} without a label: left out.")
            rows = rows.select(np.flatnonzero(~unlabelled))
        if known is None or tuple(feature.names) == known:
            if known is None and len(feature.names) < 2:
                raise ValueError(f"The labels of {place} are all the same, {feature.names}; choose another column.")
            return rows, tuple(feature.names)
        values: list[Any] = feature.int2str(rows["label"][:])
    else:
        values = rows["label"][:]
    labels, names = _encode_labels(
        _Rows(place, {label_column: values}, range(len(values)), unit="row"), label_column, arguments, known
    )
    rows = rows.remove_columns("label").add_column("label", labels, feature=_label_feature(names))
    return rows, names


def load_task_datasets(arguments: DataArguments, seed: int = 42) -> DatasetDict:
    """
    Loads the rows that the arguments name, with the same columns whatever they come from.

    Args:
        arguments (`DataArguments`): What to load.
        seed (`int`, *optional*, defaults to 42): Decides which training rows are held out, where that is asked for.

    Returns:
        `DatasetDict`: The splits `train`, `validation`, `validation_mismatched` (MNLI), `calibration`, `test` and
        `test_mismatched` that are there. The columns are `sentence1`, for pairs `sentence2`, and `label`: a
        `ClassLabel` that holds the names, or `float32` for regression; a test split may have none.

    Raises:
        ValueError: The data cannot be read as asked; the message says where and why.
        FileNotFoundError: A file or folder does not exist.
    """
    if arguments.data_dir is not None:
        splits = _load_files(find_task_files(arguments.data_dir, arguments.task_name), arguments)
    elif arguments.dataset_name is None and (arguments.train_file or arguments.validation_file):
        given = {
            "train": arguments.train_file,
            "validation": arguments.validation_file,
            "test": arguments.test_file,
        }
        splits = _load_files({name: Path(path) for name, path in given.items() if path is not None}, arguments)
    else:
        splits = _load_named(arguments)
    pairs = {name: "sentence2" in rows.column_names for name, rows in splits.items()}
    if len(set(pairs.values())) > 1:
        one, two = (next(name for name, pair in pairs.items() if pair is wanted) for wanted in (False, True))
        raise ValueError(
            f"The split {two!r} holds pairs, but {one!r} single texts; name the columns of both with text_columns."
        )

    for name in ("validation", "calibration"):
        percentage = getattr(arguments, f"{name}_split_percentage")
        if percentage is None:
            continue
        if name in splits:
            raise ValueError(
                f"{name}_split_percentage={percentage:g} asks for a {name} split, but the data has one of "
                f"{len(splits[name]):,} rows; leave one of them out."
            )
        if "train" not in splits:
            raise ValueError(f"{name}_split_percentage={percentage:g} needs training rows, but there are none.")
    _hold_out(splits, arguments, seed)

    limits = {
        "train": arguments.max_train_samples,
        "test": arguments.max_predict_samples,
        "test_mismatched": arguments.max_predict_samples,
    }
    for name, rows in splits.items():
        limit = limits.get(name, arguments.max_eval_samples)
        if limit is not None and limit < len(rows):
            splits[name] = rows.select(range(limit))
    return splits


def _hold_out(splits: DatasetDict, arguments: DataArguments, seed: int) -> None:
    """Moves random training rows into splits of their own. Both shares are of all training rows."""
    if "train" not in splits:
        return
    count = len(splits["train"])
    taken: set[int] = set()
    parts = {}
    for name in ("validation", "calibration"):
        percentage = getattr(arguments, f"{name}_split_percentage")
        if percentage is None:
            continue
        size = round(count * percentage / 100)
        free = [row for row in range(count) if row not in taken]
        if not 0 < size < len(free):
            raise ValueError(
                f"{name}_split_percentage={percentage:g} of {count} training rows leaves no row to "
                f"{'hold out' if size == 0 else 'train on'}; choose a {'larger' if size == 0 else 'smaller'} one, or "
                "give more rows."
            )
        chosen = sorted(random.Random(f"{name} split {seed}").sample(free, size))
        taken.update(chosen)
        parts[name] = splits["train"].select(chosen)
    if parts:
        parts["train"] = splits["train"].select([row for row in range(count) if row not in taken])
        splits.update(parts)


def describe_task(arguments: DataArguments) -> dict[str, str | None]:
    """What a model card says of the data: a GLUE task, a data set of the Hub, or nothing of own files."""
    if arguments.task is None or arguments.train_file or arguments.validation_file or arguments.dataset_name:
        return describe_dataset(arguments)
    name = f"GLUE {arguments.task.name}"
    return {
        "language": "en",
        "dataset_tags": GLUE_ON_THE_HUB,
        "dataset": name,
        "dataset_args": arguments.task_name,
    }


def get_label_names(datasets: DatasetDict) -> list[str] | None:
    """
    Gives the names of the classes in their order, or `None` where the labels are numbers to be regressed.

    Raises:
        ValueError: No split has labels.
    """
    for rows in datasets.values():
        if "label" in rows.features:
            feature = rows.features["label"]
            return list(feature.names) if isinstance(feature, ClassLabel) else None
    raise ValueError("No split of the data has labels.")


def is_regression(datasets: DatasetDict) -> bool:
    """Whether the labels are numbers to be regressed."""
    return get_label_names(datasets) is None


# ---------------------------------------------------------------------------------------------------------------------
# Preparing rows for a model
# ---------------------------------------------------------------------------------------------------------------------


def match_labels(
    label_names: Sequence[str] | None,
    config: PreTrainedConfig | None,
    new_labels: bool = False,
    task_name: str | None = None,
) -> list[str] | None:
    """
    Gives the class names in the order of a model that knows them, such as RoBERTa-MNLI with its own order.

    Names are compared without regard to case, hyphens and spaces; a GLUE task's classes may also go by the names of
    its files, such as '0' and '1'. A model may know more classes than the data has. A model with the names that
    Transformers gives by default (`LABEL_0`, …) takes the data's order.

    Args:
        label_names (sequence of `str` or `None`): The data's classes; `None` for regression.
        config (`PreTrainedConfig` or `None`): The model's configuration; without one the data's order is given back.
        new_labels (`bool`, *optional*, defaults to `False`): Whether the model is to be trained on this data, so that
            classes of an earlier task may be replaced.
        task_name (`str`, *optional*): The GLUE task.

    Returns:
        `list[str]` or `None`: The names, one for each output of the model that is kept; `None` for regression.

    Raises:
        ValueError: The model knows other classes and is not to be trained.
    """
    if config is None:
        return None if label_names is None else list(label_names)
    place = f"The model {config.name_or_path!r}" if config.name_or_path else "The model"
    if label_names is None:
        if config.num_labels != 1 and not new_labels:
            raise ValueError(
                f"{place} has {config.num_labels} outputs, but the labels are numbers to be regressed, which takes "
                "one. Train it on this data first, or name data with classes."
            )
        return None
    names = list(label_names)
    of_model = [config.id2label[number] for number in range(config.num_labels)]
    if of_model == [f"LABEL_{number}" for number in range(config.num_labels)]:
        if config.num_labels != len(names) and not new_labels:
            raise ValueError(
                f"{place} has {config.num_labels} outputs, but the data has {len(names)} labels: "
                f"{', '.join(map(repr, names))}. Train it on this data first, or name the data that it was trained on."
            )
        return names

    def simple(name: object) -> str:
        return re.sub(r"[-\s]+", "_", str(name).strip().lower())

    spellings = [names]
    if task_name is not None and tuple(names) == TASKS[task_name].label_names:
        spellings.append(list(TASKS[task_name].file_labels))
    known = {simple(name): number for number, name in enumerate(of_model)}
    for spelling in spellings:
        if len(known) == len(of_model) and all(simple(name) in known for name in spelling):
            if len(names) < len(of_model) and new_labels:
                continue  # A head with outputs that are never right is better made anew.
            order = list(of_model)
            for name, written in zip(names, spelling, strict=True):
                order[known[simple(written)]] = name
            return order
    message = (
        f"{place} knows the labels {', '.join(map(repr, of_model))}, but the data has {', '.join(map(repr, names))}"
    )
    if not new_labels:
        raise ValueError(
            f"{message}. Train it on this data first, name the data that it was trained on, or give its "
            "configuration the data's names in label2id."
        )
    logger.warning(f"{message}: its classes are replaced by the data's.")
    return names


def set_model_labels(config: PreTrainedConfig, label_names: Sequence[str] | None) -> None:
    """Writes the classes (as `match_labels` orders them), or that there is one number to regress, into a config."""
    if label_names is None:
        config.num_labels = 1
        config.problem_type = "regression"
    else:
        # id2label first: it decides num_labels.
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: number for number, name in enumerate(label_names)}
        config.problem_type = "single_label_classification"


def preprocess(
    datasets: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    arguments: DataArguments,
    label_names: Sequence[str] | None = None,
    config: PreTrainedConfig | None = None,
    new_labels: bool = False,
) -> DatasetDict:
    """
    Tokenizes the splits that [`load_task_datasets`] gave. Padding is left to the collator, unless
    `pad_to_max_length` asks for it here.

    Tokens are kept beside the rows in the cache, and found again as long as rows, tokenizer and settings are the same.

    Args:
        datasets (`DatasetDict`): The splits.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        arguments (`DataArguments`): Lengths, padding and number of processes.
        label_names (sequence of `str`, *optional*): The classes in the order that the labels shall have; the data's
            own order if not given. None for regression.
        config (`PreTrainedConfig`, *optional*): The model's configuration: where it names the same classes in another
            order, the labels follow it (see [`match_labels`]).
        new_labels (`bool`, *optional*, defaults to `False`): Whether the model is to be trained on this data, so that
            classes of an earlier task may be replaced.

    Returns:
        `DatasetDict`: The model's inputs and `label`, a `ClassLabel` with the names in the model's order.

    Raises:
        ValueError: `label_names` are not the data's, or the model knows other classes and is not to be trained.
    """
    of_data = get_label_names(datasets) if any("label" in rows.features for rows in datasets.values()) else None
    if label_names is not None and (of_data is None or not set(of_data) <= set(label_names)):
        raise ValueError(
            f"label_names={list(label_names)} are not the labels of the data, which "
            + (f"are {of_data}." if of_data is not None else "are numbers to be regressed.")
        )
    order = list(label_names) if label_names is not None else of_data
    if config is not None:
        order = match_labels(order, config, new_labels, arguments.task_name)

    length = arguments.max_seq_length
    if length > tokenizer.model_max_length:
        logger.warning(
            f"max_seq_length={length} is more than the {tokenizer.model_max_length} tokens that the tokenizer allows; "
            f"{tokenizer.model_max_length} is used."
        )
        length = tokenizer.model_max_length
    encode = partial(_encode, tokenizer=tokenizer, length=length, pad=arguments.pad_to_max_length)
    key = _tokenizer_key(tokenizer)
    result = DatasetDict()
    for name, rows in datasets.items():
        if isinstance(rows.features.get("label"), ClassLabel) and rows.features["label"].names != order:
            rows = _reorder_labels(rows, order)
        fingerprint = None
        if key is not None:
            settings = [FORMAT_VERSION, rows._fingerprint, key, length, arguments.pad_to_max_length]
            fingerprint = Hasher.hash(json.dumps(settings))
        result[name] = rows.map(
            encode,
            batched=True,
            remove_columns=[column for column in rows.column_names if column != "label"],
            num_proc=arguments.preprocessing_num_workers,
            new_fingerprint=fingerprint,
            desc=f"Tokenizing {name}",
        )
    if key is not None:
        # What the last call left behind would be saved with the tokenizer, unless all tokens came from the cache.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return result


def _encode(
    rows: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, length: int, pad: bool
) -> dict[str, list[Any]]:
    texts = [rows[name] for name in _PAIR if name in rows]
    return dict(tokenizer(*texts, truncation=True, max_length=length, padding="max_length" if pad else False))


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """
    What decides the tokens, for the name of the cache. The library's own hash also covers the padding and truncation
    that the last call left behind, so that the first call of a process would never find what another has kept.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    content.update(truncation=None, padding=None)
    own = [type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.padding_side, tokenizer.truncation_side]
    return hashlib.blake2b(json.dumps([own, content]).encode(), digest_size=16).hexdigest()


def _reorder_labels(rows: Dataset, order: Sequence[str]) -> Dataset:
    old = rows.features["label"].names
    number = {name: new for new, name in enumerate(order)}
    labels = np.asarray([number[name] for name in old])[rows.with_format("numpy")["label"][:]]
    # Not add_column alone: it would keep the old place in memory, and the order of columns is part of the result.
    return rows.remove_columns("label").add_column("label", labels.tolist(), feature=ClassLabel(names=list(order)))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics and predictions
# ---------------------------------------------------------------------------------------------------------------------


def main_metric(task_name: str | None, is_regression: bool = False) -> str:
    """The metric that models are selected by: the task's, else accuracy or, for regression, Pearson's correlation."""
    if task_name is not None:
        return TASKS[_plain(task_name)].main_metric
    return "pearson" if is_regression else "accuracy"


def glue_compute_metrics(
    task_name: str | None, is_regression: bool | None = None, label_names: Sequence[str] | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    Makes the `compute_metrics` of a Trainer, from the metric module that the project carries: no network is needed.

    Args:
        task_name (`str` or `None`): A GLUE task, whose official metrics are computed; `None` for own data.
        is_regression (`bool`, *optional*): For own data, whether the labels are numbers.
        label_names (sequence of `str`, *optional*): The classes in the model's order, where it is not the official
            one: F1 is that of the official second class.

    Returns:
        `Callable`: Takes an `EvalPrediction` whose predictions are logits, alone or first in a tuple.

    Raises:
        ValueError: scikit-learn or scipy is not installed.
    """
    if task_name is not None:
        is_regression = TASKS[_plain(task_name)].is_regression
    name = _plain(task_name) if task_name is not None else "regression" if is_regression else "accuracy"
    try:
        # In memory: every process computes the metrics of all rows, and needs no files or locks to agree on.
        metric = evaluate.load(str(METRIC_SCRIPT), name, keep_in_memory=True)
    except ImportError as error:
        raise ValueError(
            f"Metrics need scikit-learn and scipy ({str(error).rstrip('.')}): pip install scikit-learn scipy."
        ) from error

    official = None
    if task_name is not None and label_names is not None and not is_regression:
        names = TASKS[_plain(task_name)].label_names
        # A class that the task does not have, but the model does, is wrong wherever it is predicted.
        official = np.asarray([names.index(name) if name in names else len(names) for name in label_names])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        logits = np.asarray(logits[0] if isinstance(logits, (tuple, list)) else logits)
        labels = np.asarray(prediction.label_ids)
        if is_regression:
            return metric.compute(predictions=logits.reshape(len(logits)), references=labels.reshape(len(labels)))
        predicted = logits.argmax(axis=-1)
        if official is not None:
            predicted, labels = official[predicted], official[labels]
        return metric.compute(predictions=predicted, references=labels)

    return compute_metrics


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
    task = TASKS.get(_plain(task_name))
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


def make_collator(tokenizer: PreTrainedTokenizerBase, data: DataArguments, half_precision: bool):
    """Pads each batch to its longest row, unless the rows are padded already."""
    if data.pad_to_max_length:
        return default_data_collator
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if half_precision else None)


def write_test_predictions(
    trainer: Trainer, splits: DatasetDict, data: DataArguments, names: Sequence[str] | None, output: Path
) -> None:
    """Predicts the test splits into `output`; GLUE tasks in the form and under the names that the server takes."""
    for split in [name for name in splits if name.startswith("test")]:
        rows = splits[split].remove_columns([name for name in ("label",) if name in splits[split].column_names])
        logits = trainer.predict(rows, metric_key_prefix=split).predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        found = logits.squeeze(-1) if names is None else logits.argmax(-1)
        if not trainer.is_world_process_zero():
            continue
        if data.task is not None:
            write_glue_submission(output / data.task.submission_file(split), data.task_name, found, names)
        else:
            words = [f"{float(value):.4f}" if names is None else names[int(value)] for value in found]
            lines = [f"{index}\t{word}\n" for index, word in enumerate(words)]
            write_text_atomically(output / f"predictions_{split}.tsv", ["index\tprediction\n", *lines])
