# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""Loading rows to train, evaluate and predict on, with the same columns whatever they come from."""

import hashlib
import json
import math
import os
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets as hf_datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from transformers.utils import logging

from example_utils import describe_dataset
from glue_arguments import HELD_OUT_SPLITS, TEXT_COLUMNS, DataArguments
from glue_files import Rows, count_rows, find_task_files, read_json, read_table


logger = logging.get_logger(__name__)

# Raise it when the same file gives other rows than before: what was cached earlier is then not taken for it.
FORMAT_VERSION = 1
GLUE_ON_THE_HUB = "nyu-mll/glue"
LABEL_COLUMNS = ("label", "labels", "gold_label", "score")
INDEX_COLUMNS = ("idx", "index", "id", "guid")
NO_LABEL = "-1"  # How data sets on the Hub mark the rows of a test split.


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
        candidates += [TEXT_COLUMNS] if pair else []
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


def _get_texts(rows: Rows, column: str) -> list[str]:
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
    rows: Rows, column: str, arguments: DataArguments, known: _Labels
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
    rows = read_json(path) if path.suffix in (".json", ".jsonl") else read_table(path, arguments.task, is_test)
    text_columns, label_column = _resolve_columns(list(rows.columns), f"the file {rows.place}", arguments, is_test)
    columns: dict[str, list[Any]] = {}
    features = Features()
    for name, column in zip(TEXT_COLUMNS, text_columns, strict=False):
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
    new_names = dict(zip(text_columns, TEXT_COLUMNS, strict=False)) | ({label_column: "label"} if label_column else {})
    # In two steps, since a new name may be an old one of another column.
    rows = rows.rename_columns({old: f"_{new}" for old, new in new_names.items()})
    rows = rows.rename_columns({f"_{new}": new for new in new_names.values()})
    if label_column is None:
        return rows, known
    feature = rows.features["label"]
    if isinstance(feature, ClassLabel):
        unlabelled = np.asarray(rows.with_format("numpy")["label"][:]) < 0
        if unlabelled.any():
            logger.warning(f"{count_rows(int(unlabelled.sum()))} of {place} without a label: left out.")
            rows = rows.select(np.flatnonzero(~unlabelled))
        if known is None or tuple(feature.names) == known:
            if known is None and len(feature.names) < 2:
                raise ValueError(f"The labels of {place} are all the same, {feature.names}; choose another column.")
            return rows, tuple(feature.names)
        values: list[Any] = feature.int2str(rows["label"][:])
    else:
        values = rows["label"][:]
    labels, names = _encode_labels(
        Rows(place, {label_column: values}, range(len(values)), unit="row"), label_column, arguments, known
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
        `DatasetDict`: The splits `train`, `validation`, `validation_mismatched` (MNLI), `calibration`, `selection`,
        `test` and `test_mismatched` that are there. The columns are `sentence1`, for pairs `sentence2`, and `label`: a
        `ClassLabel` that holds the names, or `float32` for regression; a test split may have none.

    Raises:
        ValueError: The data cannot be read as asked; the message says where and why.
        FileNotFoundError: A file or folder does not exist.
    """
    if arguments.data_dir is not None:
        splits = _load_files(find_task_files(arguments.data_dir, arguments.task_name), arguments)
    elif arguments.has_own_files:
        given = {
            "train": arguments.train_file,
            "validation": arguments.validation_file,
            "test": arguments.test_file,
        }
        splits = _load_files({name: Path(path) for name, path in given.items() if path is not None}, arguments)
    else:
        splits = _load_named(arguments)
    if arguments.test_file is not None and not arguments.has_own_files:
        for name in ("test", "test_mismatched"):
            splits.pop(name, None)
        names = get_label_names(splits)
        known = tuple(names) if names is not None else ()
        splits["test"] = _load_file(Path(arguments.test_file), arguments, known, is_test=True)
    pairs = {name: "sentence2" in rows.column_names for name, rows in splits.items()}
    if len(set(pairs.values())) > 1:
        one, two = (next(name for name, pair in pairs.items() if pair is wanted) for wanted in (False, True))
        raise ValueError(
            f"The split {two!r} holds pairs, but {one!r} single texts; name the columns of both with text_columns."
        )

    for name in HELD_OUT_SPLITS:
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
    for name in HELD_OUT_SPLITS:
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


def describe_task(arguments: DataArguments, datasets: DatasetDict) -> dict[str, str | bool | None]:
    """What a model card says of the data: pairs or not; a GLUE task, one of the Hub, or nothing of own files."""
    text_pair = TEXT_COLUMNS[1] in next(iter(datasets.values())).column_names
    if arguments.task is None or arguments.has_own_files or arguments.dataset_name:
        return {**describe_dataset(arguments), "text_pair": text_pair}
    most, rows = arguments.max_eval_samples, len(datasets.get("validation", ()))
    part = f" (the first {most:,} rows)" if most is not None and rows == most else ""
    return {
        "language": "en",
        "dataset_tags": GLUE_ON_THE_HUB,
        "dataset": f"GLUE {arguments.task.name}{part}",
        "dataset_args": arguments.task_name,
        "text_pair": text_pair,
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
