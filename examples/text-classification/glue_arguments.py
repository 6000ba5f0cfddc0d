# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""The GLUE tasks, and the arguments that choose data: a task, own files, or a data set by name."""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path


SUPPORTED_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
# Splits that may be taken out of the training rows, in this order: asking for a later one changes no earlier one.
HELD_OUT_SPLITS = ("validation", "calibration", "selection")
# What the columns of text are called once the rows are loaded.
TEXT_COLUMNS = ("sentence1", "sentence2")


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
        "MRPC",
        ("#1 String", "#2 String"),
        TEXT_COLUMNS,
        "Quality",
        ("not_equivalent", "equivalent"),
        ("0", "1"),
        _F1_METRICS,
    ),
    "stsb": GlueTask(
        "STS-B",
        TEXT_COLUMNS,
        TEXT_COLUMNS,
        "score",
        (),
        (),
        ("pearson", "spearmanr", "combined_score"),
        main_metric="pearson",
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
        TEXT_COLUMNS,
        ("premise", "hypothesis"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT, _ENTAILMENT),
    "rte": GlueTask("RTE", TEXT_COLUMNS, TEXT_COLUMNS, "label", _ENTAILMENT, _ENTAILMENT),
    "wnli": GlueTask("WNLI", TEXT_COLUMNS, TEXT_COLUMNS, "label", ("not_entailment", "entailment"), ("0", "1")),
}


def plain_name(name: str) -> str:
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
        default=None,
        metadata={
            "help": "Rows to predict, in the same forms; they need no labels. Beside a task or data set they replace "
            "its test rows."
        },
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
    selection_split_percentage: float | None = field(
        default=None,
        metadata={
            "help": "The share of the training rows, in percent, to hold out as a split 'selection', by which epochs "
            "and configurations are chosen, so that the validation rows have no part in the choice."
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
        default=None,
        metadata={"help": "Use only the first rows of each split that is neither for training nor for predictions."},
    )
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use only the first rows to predict."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "How many processes tokenize."})
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where rows and tokens are kept for the next run; the cache of `datasets` if not given."},
    )

    def __post_init__(self) -> None:
        if self.task_name is not None:
            name = plain_name(self.task_name)
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
        sources = [name for name in ("data_dir", "dataset_name") if getattr(self, name) is not None]
        sources += [name for name in files if name != "test_file"][:1]
        if not sources and not files and self.task_name is None:
            raise ValueError(
                f"Name the data: a GLUE task with task_name ({', '.join(TASKS)}), train_file and validation_file, or "
                "dataset_name; none of them was given."
            )
        if len(sources) > 1:
            raise ValueError(
                f"{' and '.join(sources)} name the data twice; give only one of data_dir, dataset_name and files."
            )
        if not sources and self.task_name is None:
            raise ValueError(
                f"test_file={self.test_file!r} alone does not say what the labels are; give the train_file or "
                "validation_file that belongs to it, task_name or dataset_name as well."
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
        for name in HELD_OUT_SPLITS:
            name = f"{name}_split_percentage"
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
                f"The split percentages add up to {held_out:g}; they must stay below 100, so that rows to train on "
                "are left."
            )
        if self.max_seq_length < 4:
            raise ValueError(f"max_seq_length={self.max_seq_length} leaves no room for text; use at least 4.")
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples", "preprocessing_num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    @property
    def has_own_files(self) -> bool:
        """Whether rows to train on or to validate on come from files."""
        return self.train_file is not None or self.validation_file is not None

    @property
    def task(self) -> GlueTask | None:
        return None if self.task_name is None else TASKS[self.task_name]
