# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer, BertConfig, EvalPrediction

from example_utils import parse_arguments, publish


REAL_DATA_VARIABLE = "ELASTIC_ENCODERS_GLUE_DIR"

# The layouts of the classic GLUE download: header (None: there is none), rows, and what they are.
COLA_ROWS = [("gj04", "1", "", "The sailors rode."), ("gj04", "0", "*", "Sailors the rode.")]
MNLI_HEADER = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1"
).split()
STSB_HEADER = "index genre filename year old_index source1 source2 sentence1 sentence2".split()
CLASSIC = {
    "cola": (None, COLA_ROWS, [("The sailors rode.", 1), ("Sailors the rode.", 0)]),
    "sst2": (("sentence", "label"), [("a treat ", "1"), ('no " wit ', "0")], [("a treat ", 1), ('no " wit ', 0)]),
    "mrpc": (
        ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        [("1", "7", "8", '" He said', "He said ."), ("0", "9", "10", "One", "Two")],
        [('" He said', "He said .", 1), ("One", "Two", 0)],
    ),
    "stsb": (
        (*STSB_HEADER, "score"),
        [("0", *"bcdefg", "A plane.", "A jet.", "4.750"), ("1", *"bcdefg", "A cat.", "A bus.", "0")],
        [("A plane.", "A jet.", 4.75), ("A cat.", "A bus.", 0.0)],
    ),
    "qqp": (
        ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        [("0", "1", "2", "Who?", "Who is it?", "1"), ("1", "3", "4", "Why?", "When?", "0")],
        [("Who?", "Who is it?", 1), ("Why?", "When?", 0)],
    ),
    "mnli": (
        (*MNLI_HEADER, "gold_label"),
        [
            ("0", *"bcdefgh", "It rains.", "It is wet.", "neutral", "entailment"),
            ("1", *"bcdefgh", "A", "B", "x", "contradiction"),
        ],
        [("It rains.", "It is wet.", 0), ("A", "B", 2)],
    ),
    "qnli": (
        ("index", "question", "sentence", "label"),
        [("0", "Who?", "He.", "not_entailment"), ("1", "Who did?", "He did.", "entailment")],
        [("Who?", "He.", 1), ("Who did?", "He did.", 0)],
    ),
    "rte": (
        ("index", "sentence1", "sentence2", "label"),
        [("0", "A", "B", "not_entailment"), ("1", "C", "C", "entailment")],
        [("A", "B", 1), ("C", "C", 0)],
    ),
    "wnli": (
        ("index", "sentence1", "sentence2", "label"),
        [("0", "A", "B", "0"), ("1", "C", "C", "1")],
        [("A", "B", 0), ("C", "C", 1)],
    ),
}
TEST_LAYOUTS = {
    "cola": ("index", "sentence"),
    "sst2": ("index", "sentence"),
    "mrpc": ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    "stsb": STSB_HEADER,
    "qqp": ("id", "question1", "question2"),
    "mnli": MNLI_HEADER[:-1],
    "qnli": ("index", "question", "sentence"),
    "rte": ("index", "sentence1", "sentence2"),
    "wnli": ("index", "sentence1", "sentence2"),
}


@pytest.fixture(scope="module")
def glue(load_example):
    return load_example("text-classification/glue_utils.py")


@pytest.fixture
def load(glue, tmp_path):
    """Loads data with its cache in the test's own folder."""

    def run(seed=42, **options):
        options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        return glue.load_task_datasets(glue.DataArguments(cache_dir=str(tmp_path / "cache"), **options), seed=seed)

    return run


@pytest.fixture
def own_files(tmp_path):
    """Writes a .jsonl file of rows and gives its path."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def warnings_of(caplog):
    """The warnings that were logged so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def write_tsv(path, header, rows, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in ([header] if header else []) + list(rows)]
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def contents(rows):
    """The rows as tuples."""
    return [tuple(row.values()) for row in rows]


def sentences(*labels):
    return [{"sentence": f"text {number}", "label": label} for number, label in enumerate(labels)]


# ---------------------------------------------------------------------------------------------------------------------
# GLUE from folders
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", CLASSIC)
def test_classic_folder(glue, load, tmp_path, task):
    header, rows, expected = CLASSIC[task]
    dev = "dev_matched.tsv" if task == "mnli" else "dev.tsv"
    test = "test_matched.tsv" if task == "mnli" else "test.tsv"
    write_tsv(tmp_path / "data" / "train.tsv", header, rows)
    write_tsv(tmp_path / "data" / dev, header, rows[:1], end="\r\n")
    test_header = TEST_LAYOUTS[task]
    write_tsv(tmp_path / "data" / test, test_header, [[f"{column} 0" for column in test_header]])
    if task == "mnli":
        mismatched = (*MNLI_HEADER, "label2", "label3", "label4", "label5", "gold_label")
        row = [*rows[0][:-1], *"abcd", "neutral"]
        write_tsv(tmp_path / "data" / "dev_mismatched.tsv", mismatched, [row])
        write_tsv(tmp_path / "data" / "test_mismatched.tsv", test_header, [test_header])

    splits = load(task_name=task, data_dir=tmp_path / "data")
    assert contents(splits["train"]) == [pytest.approx(row) if task == "stsb" else row for row in expected]
    assert contents(splits["validation"]) == expected[:1]
    columns = [f"{column} 0" for column in glue.TASKS[task].text_columns]
    assert contents(splits["test"]) == [tuple(columns)]
    assert list(splits["train"].features) == [*("sentence1", "sentence2")[: len(columns)], "label"]
    if task == "stsb":
        assert splits["train"].features["label"] == Value("float32")
        assert glue.get_label_names(splits) is None
        assert glue.is_regression(splits)
    else:
        assert glue.get_label_names(splits) == list(glue.TASKS[task].label_names)
        assert not glue.is_regression(splits)
    assert set(splits) == {"train", "validation", "test"} | (
        {"validation_mismatched", "test_mismatched"} if task == "mnli" else set()
    )
    if task == "mnli":
        assert contents(splits["validation_mismatched"]) == [("It rains.", "It is wet.", 1)]


@pytest.mark.parametrize("folder", ["SST-2", "sst2", "SST2", "sst-2"])
def test_folder_of_all_tasks(load, tmp_path, folder):
    write_tsv(tmp_path / "data" / folder / "train.tsv", *CLASSIC["sst2"][:2])
    assert len(load(task_name="SST-2", data_dir=tmp_path / "data")["train"]) == 2


def test_mnli_with_an_ordinary_dev_file(load, tmp_path):
    header = ("index", "sentence1", "sentence2", "gold_label")
    write_tsv(tmp_path / "data" / "dev.tsv", header, [("7", "A", "B", "neutral")])
    splits = load(task_name="mnli", data_dir=tmp_path / "data")
    assert list(splits) == ["validation"]
    assert contents(splits["validation"]) == [("A", "B", 1)]


def test_characters_that_end_lines_elsewhere_do_not_end_rows(load, tmp_path):
    text = "one\u2028two\x85three\x0bfour\rfive"
    write_tsv(tmp_path / "train.tsv", ("sentence", "label"), [(text, "1")])
    assert load(task_name="sst2", data_dir=tmp_path)["train"]["sentence1"][:] == [text]


def test_a_tab_in_a_text_moves_no_label(load, tmp_path):
    header, rows, _ = CLASSIC["stsb"]
    write_tsv(tmp_path / "train.tsv", header, [(*rows[0][:-2], "A jet", "plane.", "4.750")])
    assert load(task_name="stsb", data_dir=tmp_path)["train"]["label"][:] == [4.75]


def test_short_rows_are_left_out_with_one_warning(glue, load, tmp_path, warnings_of):
    header, rows, expected = CLASSIC["qqp"]
    path = write_tsv(tmp_path / "train.tsv", header, [rows[0], ("5", "6"), rows[1], ("7", "8", "9", "x")])
    assert contents(load(task_name="qqp", data_dir=tmp_path)["train"]) == expected
    message = f"2 rows of {str(path)!r}, first at line 3, with too few columns: left out."
    assert warnings_of() == [message]
    load(task_name="qqp", data_dir=tmp_path)  # From the cache, and said again.
    assert warnings_of() == [message] * 2


def test_short_rows_to_predict_are_kept(load, tmp_path, warnings_of):
    write_tsv(tmp_path / "train.tsv", *CLASSIC["qqp"][:2])
    write_tsv(tmp_path / "test.tsv", TEST_LAYOUTS["qqp"], [("0", "A", "B"), ("1", "C")])
    assert contents(load(task_name="qqp", data_dir=tmp_path)["test"]) == [("A", "B"), ("C", "")]
    assert "1 row of" in warnings_of()[0] and "taken as empty text" in warnings_of()[0]


@pytest.mark.parametrize("label", ["entailment", "0"])
def test_task_with_files_of_another_layout(load, own_files, label):
    path = own_files("rte.jsonl", [{"idx": 0, "sentence1": "A", "sentence2": "B", "label": label}])
    assert contents(load(task_name="rte", validation_file=path)["validation"]) == [("A", "B", 0)]


def test_real_data(glue, tiny_tokenizer, tmp_path):
    """All tasks, as the shared data unpacks them: sst2, …, qnli_from_dev, mnli_from_dev, qqp_bimpm."""
    folder = os.environ.get(REAL_DATA_VARIABLE)
    if not folder:
        pytest.skip(f"the environment variable {REAL_DATA_VARIABLE} names no folder with GLUE data")
    rows = {"cola": 8551, "sst2": 67349, "mrpc": 3668, "rte": 2490, "stsb": 5749, "wnli": 635}
    rows |= {"qnli": 3978, "mnli": 7330, "qqp": 8910}
    for task, count in rows.items():
        name = {"qnli": "qnli_from_dev", "mnli": "mnli_from_dev", "qqp": "qqp_bimpm"}.get(task, task)
        arguments = glue.DataArguments(
            task_name=task, data_dir=str(Path(folder) / name), max_train_samples=50, cache_dir=str(tmp_path)
        )
        splits = glue.load_task_datasets(arguments)
        whole = glue.load_task_datasets(
            glue.DataArguments(task_name=task, data_dir=arguments.data_dir, cache_dir=str(tmp_path))
        )
        assert len(whole["train"]) == count
        assert set(glue.preprocess(splits, tiny_tokenizer, arguments)) == {"train", "validation"}


# ---------------------------------------------------------------------------------------------------------------------
# Own files and named data sets
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_formats(load, glue, tmp_path, suffix):
    rows = [("one, two", "good"), ("three", "bad")]
    text = {
        ".csv": '\ufefftext,label\n"one, two",good\nthree,bad\n',
        ".tsv": "text\tlabel\none, two\tgood\n\nthree\tbad\n",
        ".json": json.dumps([{"text": text, "label": label} for text, label in rows]),
        ".jsonl": "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows),
    }[suffix]
    path = tmp_path / f"train{suffix}"
    path.write_text(text, encoding="utf-8")
    splits = load(train_file=path, test_file=path)
    assert glue.get_label_names(splits) == ["bad", "good"]
    assert contents(splits["train"]) == [("one, two", 1), ("three", 0)]
    assert contents(splits["test"]) == contents(splits["train"])


@pytest.mark.parametrize(
    ("labels", "regression", "names"),
    [
        (["b", "a", "b"], None, ["a", "b"]),
        ([10, 9, 1], None, ["1", "9", "10"]),
        ([True, False, True], None, ["False", "True"]),
        ([1, 0.5, 2], None, None),
        (["1.0", "2", "-3e-1"], None, None),
        (["1.0", "2", "x"], None, ["1.0", "2", "x"]),
        ([1, 2, 3], True, None),
        ([1.0, 2.0, 1.0], False, ["1.0", "2.0"]),
    ],
)
def test_kind_of_labels(glue, load, own_files, labels, regression, names):
    path = own_files("train.jsonl", sentences(*labels))
    splits = load(train_file=path, validation_file=path, regression=regression)
    assert glue.get_label_names(splits) == names
    feature = splits["validation"].features["label"]
    assert feature == (Value("float32") if names is None else ClassLabel(names=names))
    if names is None:
        assert splits["train"]["label"][:] == pytest.approx([float(label) for label in labels])
    else:
        assert [names[label] for label in splits["train"]["label"][:]] == [str(label) for label in labels]


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"sentence1": "A", "sentence2": "B", "label": 0}, {}, ("A", "B")),
        ({"id": "7", "premise": "A", "hypothesis": "B", "label": 0}, {}, ("A", "B")),
        ({"idx": 7, "review": "A", "label": 0}, {}, ("A",)),
        ({"text": "A", "url": "B", "by": "C", "label": 0}, {}, ("A",)),
        ({"x": "A", "y": "B", "z": "C", "label": 0}, {"text_columns": ["z", "x"]}, ("C", "A")),
        ({"text": "A", "stars": 0}, {"label_column": "stars"}, ("A",)),
        # Columns that already have the new names, the wrong way round.
        ({"sentence2": "A", "sentence1": "B", "label": 0}, {"text_columns": ["sentence2", "sentence1"]}, ("A", "B")),
    ],
)
@pytest.mark.parametrize("as_dataset", [False, True])
def test_choice_of_columns(load, own_files, tmp_path, columns, options, expected, as_dataset):
    last = list(columns)[-1]
    rows = [columns, {**columns, last: 1}]
    if as_dataset:
        DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "saved")
        source = {"dataset_name": tmp_path / "saved"}
    else:
        source = {"train_file": own_files("train.jsonl", rows)}
    assert contents(load(**source, **options)["train"]) == [(*expected, 0), (*expected, 1)]


def test_test_file_without_labels(load, own_files):
    train = own_files("train.jsonl", sentences("a", "b"))
    test = own_files("test.jsonl", [{"sentence": "x"}])
    assert contents(load(train_file=train, test_file=test)["test"]) == [("x",)]


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_own_rows_to_predict_beside_a_task(load, own_files, tmp_path, task):
    header, rows, _ = CLASSIC[task]
    for split in ("train", "dev"):
        write_tsv(tmp_path / "data" / f"{split}.tsv", header, rows)
    write_tsv(tmp_path / "data" / "test.tsv", TEST_LAYOUTS[task], [[f"{name} 0" for name in TEST_LAYOUTS[task]]])
    test = own_files("test.jsonl", [{"sentence1": "x", "sentence2": "y"}])
    splits = load(task_name=task, data_dir=tmp_path / "data", test_file=test)
    assert set(splits) == {"train", "validation", "test"} and contents(splits["test"]) == [("x", "y")]
    with pytest.raises(ValueError, match="There is no column .* in the file '.*alone.jsonl'"):
        load(
            task_name=task, data_dir=tmp_path / "data", test_file=own_files("alone.jsonl", [{"sentence": "x", "n": 1}])
        )


def test_own_rows_to_predict_beside_a_data_set(load, own_files, tmp_path):
    saved = DatasetDict(train=hub_rows(["no", "yes"], ("A", "B", 1, 0), ("C", "D", 0, 1)))
    saved["test"] = saved["train"]
    saved.save_to_disk(tmp_path / "saved")
    test = own_files("test.jsonl", [{"sentence1": "x", "sentence2": "y", "label": "yes"}])
    splits = load(dataset_name=tmp_path / "saved", test_file=test)
    assert contents(splits["test"]) == [("x", "y", 1)] and len(splits["train"]) == 2


def test_rows_are_read_once(glue, load, own_files, monkeypatch):
    path = own_files("train.jsonl", sentences("a", "b"))
    first = load(train_file=path)
    with monkeypatch.context() as patch:
        patch.setattr("glue_data.read_json", None)
        assert contents(load(train_file=path)["train"]) == contents(first["train"])
    own_files("train.jsonl", sentences("a", "b", "a"))
    assert len(load(train_file=path)["train"]) == 3


def test_held_out_rows(load, own_files):
    path = own_files("train.jsonl", sentences(*"ab" * 20))
    options = {"train_file": path, "validation_split_percentage": 10, "calibration_split_percentage": 20}
    splits = load(**options)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 28, "validation": 4, "calibration": 8}
    texts = [text for rows in splits.values() for text in rows["sentence1"][:]]
    assert len(texts) == len(set(texts)) == 40
    held_out = splits["validation"]["sentence1"][:]
    assert load(**options)["validation"]["sentence1"][:] == held_out
    assert load(seed=1, **options)["validation"]["sentence1"][:] != held_out
    # A calibration split moves no row of the validation split, nor does one for selection.
    alone = load(train_file=path, validation_split_percentage=10)
    assert alone["validation"]["sentence1"][:] == held_out
    more = load(**options, selection_split_percentage=25)
    assert {name: len(rows) for name, rows in more.items()} == {
        "train": 18,
        "validation": 4,
        "calibration": 8,
        "selection": 10,
    }
    assert all(more[name]["sentence1"][:] == splits[name]["sentence1"][:] for name in ("validation", "calibration"))
    assert len({text for rows in more.values() for text in rows["sentence1"][:]}) == 40


def test_limits(load, own_files):
    path = own_files("rows.jsonl", sentences(*"ab" * 5))
    splits = load(
        train_file=path,
        validation_file=path,
        test_file=path,
        calibration_split_percentage=50,
        max_train_samples=3,
        max_eval_samples=2,
        max_predict_samples=1,
    )
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 3,
        "validation": 2,
        "calibration": 2,
        "test": 1,
    }
    assert splits["validation"]["sentence1"][:] == ["text 0", "text 1"]


def hub_rows(names, *rows):
    features = Features(
        {
            "premise": Value("string"),
            "hypothesis": Value("string"),
            "label": ClassLabel(names=names),
            "idx": Value("int32"),
        }
    )
    columns = dict(zip(features, zip(*rows, strict=True), strict=True))
    return Dataset.from_dict({name: list(values) for name, values in columns.items()}, features=features)


def test_task_from_the_hub(glue, load, monkeypatch):
    names = list(glue.TASKS["mnli"].label_names)
    found = DatasetDict(
        train=hub_rows(names, ("A", "B", 2, 0), ("C", "D", 0, 1)),
        validation_matched=hub_rows(names, ("E", "F", 1, 0)),
        validation_mismatched=hub_rows(names, ("G", "H", 1, 0)),
        test_matched=hub_rows(names, ("I", "J", -1, 0)),
        test_mismatched=hub_rows(names, ("K", "L", -1, 0)),
    )
    asked = []
    monkeypatch.setattr("glue_data.load_dataset", lambda *names, **_: asked.append(names) or found)
    splits = load(task_name="mnli")
    assert asked == [("nyu-mll/glue", "mnli")]
    assert {name: contents(rows) for name, rows in splits.items()} == {
        "train": [("A", "B", 2), ("C", "D", 0)],
        "validation": [("E", "F", 1)],
        "validation_mismatched": [("G", "H", 1)],
        "test": [("I", "J")],
        "test_mismatched": [("K", "L")],
    }
    assert glue.get_label_names(splits) == names


def test_rows_of_a_data_set_without_a_label(load, tmp_path, warnings_of):
    names = ["no", "yes"]
    DatasetDict(
        train=hub_rows(names, ("A", "B", 1, 0), ("C", "D", -1, 1)),
        # The same classes in another order.
        validation=hub_rows(names[::-1], ("E", "F", 0, 0)),
    ).save_to_disk(tmp_path / "saved")
    splits = load(dataset_name=tmp_path / "saved")
    assert contents(splits["train"]) == [("A", "B", 1)]
    assert contents(splits["validation"]) == [("E", "F", 1)]
    assert splits["validation"].features["label"].names == names
    assert "1 row of" in warnings_of()[0] and "without a label: left out" in warnings_of()[0]


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Name the data: a GLUE task with task_name .cola, .*none of them was given"),
        ({"task_name": "mrcp"}, "task_name='mrcp' is no GLUE task; did you mean 'mrpc'.*The tasks are cola, sst2"),
        ({"task_name": "imagenet"}, "task_name='imagenet' is no GLUE task. The tasks are"),
        ({"data_dir": "x"}, "data_dir='x' needs a task_name, one of cola"),
        ({"task_name": "cola", "data_dir": "x", "train_file": "y.csv"}, "data_dir and train_file name the data twice"),
        ({"dataset_name": "x", "train_file": "y.csv"}, "dataset_name and train_file name the data twice"),
        ({"test_file": "y.csv"}, "test_file='y.csv' alone does not say what the labels are"),
        ({"train_file": "y.xlsx"}, "train_file='y.xlsx' ends in '.xlsx'; only .csv, .tsv, .json, .jsonl"),
        ({"task_name": "cola", "dataset_config_name": "x"}, "dataset_config_name='x' needs a dataset_name"),
        ({"dataset_name": "x", "text_columns": ["a", "b", "c"]}, "names 3 columns; give one, or two"),
        ({"task_name": "cola", "regression": True}, "regression=True, but cola is a classification task"),
        ({"task_name": "stsb", "regression": False}, "regression=False, but stsb is a regression task"),
        (
            {"task_name": "cola", "validation_split_percentage": 100},
            "validation_split_percentage=100 must lie between",
        ),
        (
            {"task_name": "cola", "validation_split_percentage": 60, "calibration_split_percentage": 40},
            "add up to 100; they must stay below 100",
        ),
        ({"task_name": "cola", "max_seq_length": 3}, "max_seq_length=3 leaves no room for text; use at least 4"),
        ({"task_name": "cola", "max_train_samples": 0}, "max_train_samples=0 must be at least 1"),
    ],
)
def test_argument_errors(glue, options, message):
    with pytest.raises(ValueError, match=message):
        glue.DataArguments(**options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "The file '.*a.csv' is empty"),
        ("a.json", b"\n", "The file '.*a.json' is empty"),
        ("a.json", b"[]", "holds no rows"),
        ("a.tsv", b"text\tlabel\n", "holds no rows: only a header"),
        ("a.tsv", b"text\tlabel\ncaf\xe9\t1\n", "not UTF-8 text: the byte 0xe9 at offset 14 .*iconv"),
        ("a.tsv", b"text\tlabel\nx\n", "Line 2 of .* has 1 columns, the header has 2: 'text', 'label'"),
        ("a.csv", b"text,text,label\nx,y,1\n", "has the column 'text' twice; rename one"),
        (
            "a.csv",
            b"text,stars\nx,1\n",
            "no column 'label' with labels in .*columns are 'text', 'stars'.*label_column",
        ),
        (
            "a.csv",
            b"a,b,c,label\nx,y,z,1\n",
            "Which columns of .* hold the text is not clear; .*'c', 'label'.*text_col",
        ),
        ("a.json", b"{'text': 1}", "Line 1 of .* is not valid JSON"),
        ("a.json", b"[1]", "object was expected in row 1 of .*, not a int"),
        ("a.jsonl", b'{"text": ["x"], "label": 1}', "column 'text' in line 1 of .* holds a list, not text"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "y"}', "no label in the column 'label' in line 2 of"),
        ("a.csv", b"text,label\nx,1\ny,\n", "no label in the column 'label' in line 3 of"),
        ("a.jsonl", b'{"text": "x", "label": [1]}', r"label \[1\], which is no word"),
        ("a.csv", b"text,label\nx,1\ny,1\n", "All 2 rows of .* have the same label, '1'; there is nothing to learn"),
    ],
)
def test_file_errors(load, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(train_file=tmp_path / name)


def test_missing_files(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="The file '.*x.csv' does not exist"):
        load(train_file=tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="data_dir='.*x' is no folder"):
        load(task_name="cola", data_dir=tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="neither train.tsv nor dev.tsv in .* a folder 'CoLA' below it"):
        load(task_name="cola", data_dir=tmp_path)


def test_errors_of_a_task(load, tmp_path):
    write_tsv(tmp_path / "train.tsv", ("index", "sentence1", "sentence2", "label"), [("0", "A", "B", "maybe")])
    with pytest.raises(ValueError, match="label 'maybe' in line 2 of .* labels of the task RTE, .*'not_entailment'"):
        load(task_name="rte", data_dir=tmp_path)
    with pytest.raises(
        ValueError, match="no column 'question1' in the file .* 'index', 'sentence1', 'sentence2', 'la"
    ):
        load(task_name="qqp", data_dir=tmp_path, label_column="label", text_columns=["question1", "question2"])
    with pytest.raises(ValueError, match="no column 'sentence' in the file"):
        load(task_name="sst2", data_dir=tmp_path, text_columns=["sentence"])
    write_tsv(tmp_path / "train.tsv", CLASSIC["qqp"][0], [("1", "2")])
    with pytest.raises(ValueError, match="holds no rows: all 1 have fewer than its 6 columns"):
        load(task_name="qqp", data_dir=tmp_path)
    write_tsv(tmp_path / "train.tsv", CLASSIC["stsb"][0], [(*CLASSIC["stsb"][1][0][:-1], "nan")])
    with pytest.raises(ValueError, match="label 'nan' in line 2 of .* is no finite number"):
        load(task_name="stsb", data_dir=tmp_path)


def test_labels_that_only_validation_rows_have(load, own_files):
    train = own_files("train.jsonl", sentences("a", "b"))
    message = "label 'c' in line 2 of .*validation.jsonl' and 1 more is not among the labels of the rows to train on, "
    with pytest.raises(ValueError, match=message + "which are 'a', 'b'"):
        load(train_file=train, validation_file=own_files("validation.jsonl", sentences("a", "c", "d", "c")))


def test_splits_that_do_not_fit(load, own_files):
    single = own_files("single.jsonl", sentences("a", "b"))
    pairs = own_files("pairs.jsonl", [{"sentence1": "x", "sentence2": "y", "label": label} for label in "ab"])
    with pytest.raises(ValueError, match="split 'validation' holds pairs, but 'train' single texts"):
        load(train_file=single, validation_file=pairs)
    with pytest.raises(ValueError, match="validation_split_percentage=10 asks .* the data has one of 2 rows"):
        load(train_file=single, validation_file=single, validation_split_percentage=10)
    with pytest.raises(ValueError, match="calibration_split_percentage=10 needs training rows, but there are none"):
        load(validation_file=single, calibration_split_percentage=10)
    with pytest.raises(ValueError, match="=10 of 2 training rows leaves no row to hold out; choose a larger"):
        load(train_file=single, validation_split_percentage=10)
    with pytest.raises(ValueError, match="=90 of 2 training rows leaves no row to train on; choose a smaller"):
        load(train_file=single, validation_split_percentage=90)


def test_data_set_errors(load, tmp_path):
    with pytest.raises(ValueError, match="'nyu-mll/glue' .cola. could not be loaded: .*as files: data_dir"):
        load(task_name="cola")
    DatasetDict(other=Dataset.from_list(sentences("a", "b"))).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="neither a split 'train' nor 'validation'; its splits are 'other'"):
        load(dataset_name=tmp_path / "saved")
    DatasetDict(train=Dataset.from_list([{"text": 1, "label": 0}])).save_to_disk(tmp_path / "numbers")
    with pytest.raises(ValueError, match="column 'text' of .* holds no text but int64"):
        load(dataset_name=tmp_path / "numbers")


# ---------------------------------------------------------------------------------------------------------------------
# Preparing rows for a model
# ---------------------------------------------------------------------------------------------------------------------

PAIRS = [{"sentence1": "The old sailor", "sentence2": "the wind", "label": label} for label in "abc"]


def test_preprocess(glue, load, own_files, tiny_tokenizer):
    splits = load(train_file=own_files("train.jsonl", PAIRS), test_file=own_files("t.jsonl", [PAIRS[0], PAIRS[1]]))
    arguments = glue.DataArguments(task_name="cola", max_seq_length=6)
    tokens = glue.preprocess(splits, tiny_tokenizer, arguments, ["a", "b", "c"])
    expected = tiny_tokenizer("The old sailor", "the wind", truncation=True, max_length=6)
    assert tokens["train"].column_names == ["label", "input_ids", "token_type_ids", "attention_mask"]
    assert tokens["train"][0] == {"label": 0, **expected}
    assert len(tokens["train"][0]["input_ids"]) == 6
    padded = glue.preprocess(
        splits, tiny_tokenizer, glue.DataArguments(task_name="cola", pad_to_max_length=True, max_seq_length=40)
    )
    assert {len(row["input_ids"]) for row in padded["test"]} == {40}
    assert len(tokens["train"]) == 3 and len(padded["test"]) == 2


def test_single_texts_of_different_length_are_not_padded(glue, load, own_files, tiny_tokenizer, warnings_of):
    path = own_files("train.jsonl", [{"text": "cat", "label": "a"}, {"text": "The cat ran over", "label": "b"}])
    arguments = glue.DataArguments(task_name="cola", max_seq_length=100)
    rows = glue.preprocess(load(train_file=path), tiny_tokenizer, arguments)["train"]
    assert len(rows[0]["input_ids"]) < len(rows[1]["input_ids"])
    assert warnings_of() == ["max_seq_length=100 is more than the 64 tokens that the tokenizer allows; 64 is used."]


def test_tokens_are_kept(glue, load, own_files, tiny_tokenizer_dir, monkeypatch):
    path = own_files("train.jsonl", PAIRS)
    arguments = glue.DataArguments(task_name="cola")
    first = glue.preprocess(load(train_file=path), AutoTokenizer.from_pretrained(tiny_tokenizer_dir), arguments)

    def refuse(*_, **__):
        raise AssertionError("tokenized again")

    used = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    used(["a", "b c"], padding=True, truncation=True, max_length=5)
    with monkeypatch.context() as patch:
        patch.setattr("glue_preprocessing._encode", refuse)
        again = glue.preprocess(load(train_file=path), used, arguments)
        assert contents(again["train"]) == contents(first["train"])
        with pytest.raises(AssertionError, match="tokenized again"):
            glue.preprocess(load(train_file=path), used, glue.DataArguments(task_name="cola", max_seq_length=8))


def config_with(*names, **options):
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **options)


def test_labels_follow_the_order_of_the_model(glue, load, tmp_path, tiny_tokenizer):
    write_tsv(tmp_path / "train.tsv", *CLASSIC["mnli"][:2])
    write_tsv(tmp_path / "test.tsv", TEST_LAYOUTS["mnli"], [TEST_LAYOUTS["mnli"]])
    arguments = glue.DataArguments(task_name="mnli")
    splits = load(task_name="mnli", data_dir=tmp_path)
    roberta = config_with("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    tokens = glue.preprocess(splits, tiny_tokenizer, arguments, config=roberta)
    assert splits["train"]["label"][:] == [0, 2]
    assert tokens["train"]["label"][:] == [2, 0]
    assert glue.get_label_names(tokens) == ["contradiction", "neutral", "entailment"]
    assert "label" not in tokens["test"].column_names
    # The same as an order that is given.
    by_hand = glue.preprocess(splits, tiny_tokenizer, arguments, ["contradiction", "neutral", "entailment"])
    assert by_hand["train"]["label"][:] == [2, 0]
    with pytest.raises(
        ValueError, match=r"label_names=\['a', 'b'\] are not the labels of the data, which are \['entai"
    ):
        glue.preprocess(splits, tiny_tokenizer, arguments, ["a", "b"])


@pytest.mark.parametrize(
    ("of_model", "names", "task", "expected"),
    [
        (("LABEL_0", "LABEL_1"), ["b", "a"], None, ["b", "a"]),
        (("positive", "negative"), ["negative", "positive"], "sst2", ["positive", "negative"]),
        (("1", "0"), ["negative", "positive"], "sst2", ["positive", "negative"]),
        (("Not Entailment", "entailment"), ["entailment", "not_entailment"], "rte", ["not_entailment", "entailment"]),
        (("x", "b", "a"), ["a", "b"], None, ["x", "b", "a"]),
    ],
)
def test_match_labels(glue, of_model, names, task, expected):
    assert glue.match_labels(names, config_with(*of_model), task_name=task) == expected


def test_labels_that_the_model_does_not_know(glue, warnings_of):
    names = ["entailment", "not_entailment"]
    mnli = config_with("contradiction", "neutral", "entailment", name_or_path="me/mnli")
    message = (
        "'me/mnli' knows the labels 'contradiction', 'neutral', 'entailment', but the data has 'entailment', 'not_e"
    )
    with pytest.raises(ValueError, match=message + ".*Train it on this data first"):
        glue.match_labels(names, mnli)
    assert glue.match_labels(names, mnli, new_labels=True) == names
    assert len(warnings_of()) == 1 and "its classes are replaced by the data's" in warnings_of()[0]
    with pytest.raises(ValueError, match="The model has 2 outputs, but the data has 3 labels: 'a', 'b', 'c'"):
        glue.match_labels(["a", "b", "c"], BertConfig())
    with pytest.raises(ValueError, match="'me/mnli' has 3 outputs, but the labels are numbers"):
        glue.match_labels(None, mnli)
    assert glue.match_labels(None, mnli, new_labels=True) is None
    assert glue.match_labels(None, None) is None
    # When it is trained anyway, a head with a class too many is made anew.
    assert glue.match_labels(["neutral", "entailment"], mnli, new_labels=True) == ["neutral", "entailment"]


def test_set_model_labels(glue):
    config = BertConfig()
    glue.set_model_labels(config, ["x", "y", "z"])
    assert config.num_labels == 3
    assert config.label2id == {"x": 0, "y": 1, "z": 2}
    assert config.problem_type == "single_label_classification"
    glue.set_model_labels(config, None)
    assert (config.num_labels, config.problem_type) == (1, "regression")


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            {"task_name": "mrpc"},
            {"language": "en", "dataset_tags": "nyu-mll/glue", "dataset": "GLUE MRPC", "dataset_args": "mrpc"},
        ),
        (
            {"task_name": "mrpc", "max_eval_samples": 8},
            {"language": "en", "dataset_tags": "nyu-mll/glue", "dataset": "GLUE MRPC", "dataset_args": "mrpc"},
        ),
        (
            {"task_name": "mrpc", "max_eval_samples": 7},
            {
                "language": "en",
                "dataset_tags": "nyu-mll/glue",
                "dataset": "GLUE MRPC (the first 7 rows)",
                "dataset_args": "mrpc",
            },
        ),
        ({"task_name": "mrpc", "train_file": "mine.tsv"}, {}),
        ({"train_file": "mine.csv"}, {}),
        ({"dataset_name": "me/reviews"}, {"dataset_tags": "me/reviews", "dataset_args": None}),
        ({"dataset_name": str(Path(__file__).parent)}, {}),
    ],
)
def test_what_a_model_card_says_of_the_data(glue, options, expected):
    for columns, text_pair in ((["sentence1", "label"], False), (["sentence1", "sentence2", "label"], True)):
        rows = DatasetDict(validation=Dataset.from_dict({name: [""] * 7 for name in columns}))
        described = glue.describe_task(glue.DataArguments(**options), rows)
        assert described == {**expected, "text_pair": text_pair}


def test_a_card_is_written_or_published(tmp_path):
    calls = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(push_to_hub=False, output_dir=str(tmp_path)),
        state=SimpleNamespace(log_history=[]),
        is_world_process_zero=lambda: True,
        create_model_card=lambda **card: calls.append(("written", card)),
        push_to_hub=lambda **card: calls.append(("published", card)),
    )
    publish(trainer, metrics={"f1": 1.0})
    trainer.args.push_to_hub = True
    publish(trainer, metrics={"f1": 0.5})
    assert calls == [("written", {"metrics": {"f1": 1.0}}), ("published", {"metrics": {"f1": 0.5}})]


def test_data_without_labels(glue):
    with pytest.raises(ValueError, match="No split of the data has labels"):
        glue.get_label_names(DatasetDict(test=Dataset.from_list([{"sentence1": "x"}])))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics, submissions, the command line
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def needs_metrics():
    pytest.importorskip("sklearn", reason="the metrics need scikit-learn")
    pytest.importorskip("scipy", reason="the metrics need scipy")


@pytest.mark.usefixtures("needs_metrics")
def test_metrics_of_every_task(glue):
    for name, task in glue.TASKS.items():
        logits = np.array([[0.2], [0.9], [0.4]]) if task.is_regression else np.eye(3)[:, : len(task.label_names)]
        labels = np.array([0.1, 0.8, 0.5]) if task.is_regression else np.array([0, 1, 1])
        scores = glue.glue_compute_metrics(name)(EvalPrediction((logits, "ignored"), labels))
        assert tuple(scores) == task.metric_names
        assert task.main_metric in scores
        assert task.main_metric == glue.main_metric(name)


@pytest.mark.usefixtures("needs_metrics")
def test_metrics_of_own_data(glue):
    logits = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    assert glue.glue_compute_metrics(None, False)(EvalPrediction(logits, np.array([2, 1]))) == {"accuracy": 0.5}
    scores = glue.glue_compute_metrics(None, True)(EvalPrediction(np.array([[1.0], [2.0]]), np.array([3.0, 5.0])))
    assert scores["pearson"] == pytest.approx(1.0) and scores["mean_absolute_error"] == 2.5
    assert glue.main_metric(None) == "accuracy" and glue.main_metric(None, is_regression=True) == "pearson"


@pytest.mark.usefixtures("needs_metrics")
def test_f1_is_of_the_official_class_whatever_the_order_of_the_model(glue):
    logits, labels = np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    official = glue.glue_compute_metrics("mrpc")(EvalPrediction(logits, labels))
    turned = glue.glue_compute_metrics("mrpc", label_names=["equivalent", "not_equivalent"])
    assert turned(EvalPrediction(logits[:, ::-1], 1 - labels)) == official
    assert official["f1"] == pytest.approx(2 / 3)


def test_metrics_without_scikit_learn(glue, monkeypatch):
    def missing(*_, **__):
        raise ImportError("To be able to use elastic_glue, install scikit-learn.")

    monkeypatch.setattr("evaluate.load", missing)
    with pytest.raises(ValueError, match="Metrics need scikit-learn and scipy .*pip install scikit-learn scipy"):
        glue.glue_compute_metrics("cola")


@pytest.mark.parametrize(
    ("task", "predictions", "label_names", "expected"),
    [
        ("sst2", [0, 1], None, "01"),
        ("cola", np.array([[0.1, 0.9], [2.0, 1.0]]), None, "10"),
        ("mnli", [0, 1, 2], None, ["entailment", "neutral", "contradiction"]),
        ("mnli", [0, 1], ["contradiction", "neutral", "entailment"], ["contradiction", "neutral"]),
        ("RTE", [1, 0], None, ["not_entailment", "entailment"]),
        ("wnli", [1, 0], None, "10"),
        ("wnli", [1, 0], ["1", "0"], "01"),
        ("stsb", [[-0.2], [2.34567], [6.0]], None, ["0.000", "2.346", "5.000"]),
    ],
)
def test_submission(glue, tmp_path, task, predictions, label_names, expected):
    path = tmp_path / "new" / "predictions.tsv"
    glue.write_glue_submission(path, task, predictions, label_names)
    lines = [f"{index}\t{word}" for index, word in enumerate(expected)]
    assert path.read_text(encoding="utf-8") == "\n".join(["index\tprediction", *lines]) + "\n"
    assert [file.name for file in path.parent.iterdir()] == ["predictions.tsv"]


def test_submission_files(glue):
    assert glue.TASKS["stsb"].submission_file() == "STS-B.tsv"
    assert glue.TASKS["mnli"].submission_file("test") == "MNLI-m.tsv"
    assert glue.TASKS["mnli"].submission_file("test_mismatched") == "MNLI-mm.tsv"


@pytest.mark.parametrize(
    ("task", "predictions", "label_names", "message"),
    [
        ("snli", [0], None, "'snli' is no GLUE task; the tasks are cola"),
        ("rte", [0, 2], None, "Class numbers from 0 to 2 do not fit the 2 labels of RTE.*between 0 and 1"),
        ("rte", [0.5], None, "must be class numbers or logits, not float64"),
        ("rte", [0], ["yes", "no"], "label 'yes' is none of the labels of RTE, which are 'entailment'"),
        ("stsb", [1.0, float("nan")], None, "prediction of row 1 is nan, which is no finite number"),
    ],
)
def test_submission_errors(glue, tmp_path, task, predictions, label_names, message):
    with pytest.raises(ValueError, match=message):
        glue.write_glue_submission(tmp_path / "x.tsv", task, predictions, label_names)
    assert not list(tmp_path.iterdir())


def test_command_line(glue, tmp_path, capsys):
    flags = ["--task_name", "STS-B", "--text_columns", "a", "b", "--pad_to_max_length", "--max_eval_samples", "7"]
    (arguments,) = parse_arguments(glue.DataArguments, flags)
    assert (arguments.task_name, arguments.text_columns, arguments.pad_to_max_length) == ("stsb", ["a", "b"], True)
    assert arguments.task is glue.TASKS["stsb"]
    file = tmp_path / "arguments.yaml"
    file.write_text("train_file: rows.csv\nregression: true\ncalibration_split_percentage: 5\n", encoding="utf-8")
    (arguments,) = parse_arguments(glue.DataArguments, [str(file)])
    assert (arguments.regression, arguments.calibration_split_percentage, arguments.task) == (True, 5.0, None)
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(glue.DataArguments, ["--help"])
    assert "A GLUE task: cola, sst2" in capsys.readouterr().out
