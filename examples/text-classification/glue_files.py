# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""Finding and reading files of rows: the classic GLUE folders, .csv, .tsv, .json and .jsonl."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from example_utils import read_lines
from glue_arguments import TASKS, GlueTask, plain_name


@dataclass
class Rows:
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
    below = sorted(child for child in folder.iterdir() if child.is_dir() and plain_name(child.name) == task_name)
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


def read_table(path: Path, task: GlueTask | None, is_test: bool) -> Rows:
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
        warning = f"{count_rows(len(short))} of {place}, first at line {short[0]}, with too few columns: {what}."
    # The last column is counted from the end, as the published scripts do: a stray tab in a text moves no label.
    last = len(header) - 1
    columns = {name: [row[-1 if i == last else i] for row in rows] for i, name in enumerate(header)}
    return Rows(place, columns, numbers, warning=warning)


def count_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def read_json(path: Path) -> Rows:
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
    return Rows(place, columns, [number for number, _ in numbered], unit=unit)
