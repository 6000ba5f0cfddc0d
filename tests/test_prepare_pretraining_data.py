# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.

import dataclasses
import json
import logging
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import yaml
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from synthetic_data import generate_documents


CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "language-modeling" / "configs"


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("language-modeling/prepare_pretraining_data.py")


@pytest.fixture
def text_file(tmp_path):
    """Forty documents, a blank line between them."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{document}\n\n" for document in generate_documents(40)), encoding="utf-8")
    return path


@pytest.fixture
def prepare(script, tmp_path, tiny_tokenizer_dir):
    """Runs the script on files, with small settings that keyword arguments replace, and gives the output folder."""

    def run(files, output="output", **options):
        settings = {
            "train_file": [str(path) for path in (files if isinstance(files, list) else [files])],
            "tokenizer_name": str(tiny_tokenizer_dir),
            "output_dir": str(tmp_path / output),
            "document_unit": "blank_line",
            "max_seq_length": 16,
            "validation_split_percentage": 10,
            **options,
        }
        config = tmp_path / "arguments.json"
        config.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
        script.main([str(config)])
        return Path(settings["output_dir"])

    return run


def contents(output):
    """Everything in a prepared data set, as plain lists."""
    return {
        name: {column: split[column][:] for column in split.column_names}
        for name, split in datasets.load_from_disk(str(output)).items()
    }


def statistics_of(output):
    return json.loads((output / "statistics.json").read_text())


# ---------------------------------------------------------------------------------------------------------------------
# What is written
# ---------------------------------------------------------------------------------------------------------------------


def test_output(prepare, text_file, tiny_tokenizer):
    output = prepare(text_file)
    data = datasets.load_from_disk(str(output))
    assert set(data) == {"train", "validation"}
    assert data["train"].features == {
        "input_ids": datasets.List(datasets.Value("int32")),
        "special_tokens_mask": datasets.List(datasets.Value("int8")),
    }
    for row in data["train"]:
        ids, mask = row["input_ids"], row["special_tokens_mask"]
        assert 3 <= len(ids) <= 16
        assert (ids[0], ids[-1]) == (tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id)
        assert mask == [1] + [0] * (len(ids) - 2) + [1]
    assert sorted(path.name for path in output.iterdir()) == [
        "dataset_dict.json",
        "statistics.json",
        "tokenizer",
        "train",
        "validation",
    ]
    assert AutoTokenizer.from_pretrained(output / "tokenizer").get_vocab() == tiny_tokenizer.get_vocab()
    assert not output.with_name("output.partial").exists()


def test_no_text_is_lost(prepare, script, text_file, tiny_tokenizer):
    """The sequences one after the other are the tokens of the documents one after the other."""
    output = prepare(text_file, **_held_out(text_file))
    documents = text_file.read_text().strip().split("\n\n")
    expected = [id for document in documents for id in tiny_tokenizer(document, add_special_tokens=False)["input_ids"]]
    train = datasets.load_from_disk(str(output))["train"]
    assert [id for row in train for id in row["input_ids"][1:-1]] == expected


def _held_out(text_file):
    """Options for a validation file, so that the training split is the whole of `text_file`."""
    path = text_file.with_name("held_out.txt")
    path.write_text("She saw the sailor.\n\nThe dogs ran.\n")
    return {"validation_file": [str(path)], "validation_split_percentage": None}


def test_no_sequence_crosses_documents(prepare, text_file, tiny_tokenizer):
    output = prepare(text_file, **_held_out(text_file))
    sequences = iter(contents(output)["train"]["input_ids"])
    for document in text_file.read_text().strip().split("\n\n"):
        remaining = tiny_tokenizer(document, add_special_tokens=False)["input_ids"]
        while remaining:
            taken = next(sequences)[1:-1]
            assert remaining[: len(taken)] == taken
            assert len(taken) == min(14, len(remaining))
            remaining = remaining[len(taken) :]
    assert next(sequences, None) is None


def _byte_level_tokenizer(folder):
    """A RoBERTa-like tokenizer, to which a leading space matters and whose special tokens are others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: id for id, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "Ġt", "he"])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "t"), ("h", "e")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    backend.enable_truncation(4)  # Saved with the tokenizer; must not cut sentences.
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=64,
    ).save_pretrained(folder)


def test_byte_level_tokenizer(prepare, text_file, tmp_path):
    _byte_level_tokenizer(tmp_path / "byte_level")
    output = prepare(
        text_file,
        tokenizer_name=str(tmp_path / "byte_level"),
        max_seq_length=32,
        document_unit="file",
        **_held_out(text_file),
    )
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    sequences = contents(output)["train"]["input_ids"]
    assert {(ids[0], ids[-1]) for ids in sequences} == {(0, 2)}
    # Spaces between sentences and between lines are there; line breaks have become spaces.
    content = [id for ids in sequences for id in ids[1:-1]]
    assert tokenizer.decode(content) == " ".join(text_file.read_text().split())
    assert content == tokenizer(" ".join(text_file.read_text().split()), add_special_tokens=False)["input_ids"]


def test_collator_takes_the_rows(prepare, text_file, tiny_tokenizer):
    train = datasets.load_from_disk(str(prepare(text_file)))["train"]
    rows = sorted(train, key=lambda row: len(row["input_ids"]))
    batch = DataCollatorForLanguageModeling(tiny_tokenizer, mlm_probability=0.99)([rows[0], rows[-1]])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 16)
    assert batch["attention_mask"].sum().item() == len(rows[0]["input_ids"]) + 16
    # Special tokens and padding are never predicted.
    assert (batch["labels"][:, 0] == -100).all() and batch["labels"][1, -1] == -100
    assert (batch["labels"][0, len(rows[0]["input_ids"]) - 1 :] == -100).all()


def test_statistics(prepare, script, tmp_path, tiny_tokenizer):
    text = tmp_path / "known.txt"
    text.write_text("The cats ran. She saw the dogs.\nΨ ran.\n")
    validation = tmp_path / "validation.txt"
    validation.write_text("The dogs ran.")
    output = prepare(
        text,
        validation_file=[str(validation)],
        validation_split_percentage=None,
        document_unit="line",
        max_seq_length=8,
    )
    numbers = statistics_of(output)
    lines = text.read_text().splitlines()
    lengths = [len(tiny_tokenizer(line, add_special_tokens=False)["input_ids"]) for line in lines]
    first_sentence = len(tiny_tokenizer("The cats ran.", add_special_tokens=False)["input_ids"])
    sequences = [-(-length // 6) for length in lengths]
    cuts = [range(6, length, 6) for length in lengths]
    assert numbers["splits"]["train"] == {
        "documents": 2,
        "sentences": 3,
        "sequences": sum(sequences),
        "tokens": sum(lengths),
        "mean_fill": pytest.approx((sum(lengths) / sum(sequences) + 2) / 8),
        "continued_sentences": sum(cut != first_sentence for cut in cuts[0]) + len(cuts[1]),
        "unknown_token_share": pytest.approx(1 / sum(lengths)),
    }
    assert numbers["splits"]["validation"]["documents"] == 1
    assert numbers["vocabulary_size"] == len(tiny_tokenizer)
    assert numbers["settings"]["max_seq_length"] == 8
    assert [file["name"] for file in numbers["inputs"]["train"]] == ["known.txt"]
    assert str(tmp_path) not in json.dumps(numbers["inputs"])


def test_validation_holds_out_whole_documents(prepare, text_file, tiny_tokenizer):
    output = prepare(text_file)
    numbers = statistics_of(output)["splits"]
    assert (numbers["train"]["documents"], numbers["validation"]["documents"]) == (36, 4)
    documents = [
        tiny_tokenizer(document, add_special_tokens=False)["input_ids"]
        for document in text_file.read_text().strip().split("\n\n")
    ]
    data = contents(output)
    tokens = {name: [id for ids in split["input_ids"] for id in ids[1:-1]] for name, split in data.items()}
    assert len(tokens["train"]) + len(tokens["validation"]) == sum(map(len, documents))
    position = 0
    kept = list(documents)
    while position < len(tokens["validation"]):
        document = next(ids for ids in kept if tokens["validation"][position : position + len(ids)] == ids)
        kept.remove(document)
        position += len(document)
    assert tokens["train"] == [id for ids in kept for id in ids]
    other = prepare(text_file, "other", seed=1)
    assert contents(other)["validation"] != data["validation"]


def test_files_in_both_splits_are_taken_out_of_training(prepare, tmp_path, caplog):
    folder = tmp_path / "books"
    folder.mkdir()
    for number, document in enumerate(generate_documents(3)):
        (folder / f"book{number}.txt").write_text(document)
    with caplog.at_level(logging.WARNING):
        output = prepare(
            folder,
            validation_file=[str(folder / "book1.txt")],
            validation_split_percentage=None,
            document_unit="file",
        )
    assert "1 files of validation_file are taken out of train_file" in caplog.text
    numbers = statistics_of(output)
    assert [file["name"] for file in numbers["inputs"]["train"]] == ["book0.txt", "book2.txt"]
    assert numbers["splits"]["train"]["documents"] == 2


@pytest.mark.parametrize("unit, documents", [("line", 5), ("blank_line", 3), ("file", 2)])
def test_document_units(prepare, tmp_path, unit, documents):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_bytes(b"\xef\xbb\xbfThe old sailor.\r\nThe boats.\r\n\r\n\r\nA net.\r\n")
    second.write_text("\n\nThe cats ran.\nShe saw the dogs.")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("It was long.")
    output = prepare(
        [first, second], validation_file=[str(held_out)], validation_split_percentage=None, document_unit=unit
    )
    numbers = statistics_of(output)["splits"]["train"]
    assert numbers["documents"] == documents
    assert numbers["sentences"] == 5
    assert numbers["unknown_token_share"] == 0  # The byte order mark is no text.


def test_tables(prepare, tmp_path, tiny_tokenizer):
    texts = ['The old sailor, "cold".\nThe boats.', "A net.", "The cats ran."]
    rows = [{"id": number, "body": text} for number, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"id": 3, "body": None}])))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    quoted = [text.replace('"', '""') for text in texts]
    (tmp_path / "rows.csv").write_text("id,body\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(quoted)))
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("It was long.")
    expected = [tiny_tokenizer(text)["input_ids"] for text in texts]
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        output = prepare(
            tmp_path / name,
            f"output of {name}",
            validation_file=[str(held_out)],
            validation_split_percentage=None,
            text_column="body",
            max_seq_length=32,
        )
        assert contents(output)["train"]["input_ids"] == expected


def test_data_set_by_name(prepare, tmp_path, monkeypatch, tiny_tokenizer):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data_set"
    folder.mkdir()
    for split, texts in (("train", ["The cats ran.", "", "A net."]), ("validation", ["She saw the dogs."])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"train_file": None, "dataset_name": str(folder)}
    data = contents(prepare(folder, validation_split_percentage=None, **options))
    assert data["train"]["input_ids"] == [tiny_tokenizer(text)["input_ids"] for text in ("The cats ran.", "A net.")]
    assert data["validation"]["input_ids"] == [tiny_tokenizer("She saw the dogs.")["input_ids"]]
    # A percentage asks for a split of the training documents even so.
    split = contents(prepare(folder, "split", validation_split_percentage=50, **options))
    assert len(split["train"]["input_ids"]) == len(split["validation"]["input_ids"]) == 1
    with pytest.raises(ValueError, match="no column 'body' in the split 'train' of .*; its columns are 'text'"):
        prepare(folder, "failing", validation_split_percentage=None, text_column="body", **options)


def test_data_set_that_cannot_be_loaded(prepare, tmp_path):
    with pytest.raises(ValueError, match="The data set 'nobody/nothing' could not be loaded: .* or give text files"):
        prepare(tmp_path, train_file=None, dataset_name="nobody/nothing")


def test_maximum_numbers_of_samples(prepare, text_file):
    everything = contents(prepare(text_file))
    few = contents(prepare(text_file, "few", max_train_samples=7, max_eval_samples=2))
    assert few["train"]["input_ids"] == everything["train"]["input_ids"][:7]
    assert few["validation"]["input_ids"] == everything["validation"]["input_ids"][:2]


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_output_depends_on_neither_processes_nor_batches(prepare, script, text_file, monkeypatch, probability):
    one = contents(prepare(text_file, short_seq_probability=probability))
    two = contents(prepare(text_file, "two", short_seq_probability=probability, preprocessing_num_workers=2))
    assert one == two
    monkeypatch.setattr(script, "PACKING_BATCH_SIZE", 3)
    assert contents(prepare(text_file, "batches", short_seq_probability=probability)) == one


def test_short_sequences_are_drawn_one_by_one(prepare, text_file):
    full, short = (
        contents(prepare(text_file, f"short{probability}", short_seq_probability=probability))["train"]["input_ids"]
        for probability in (0.0, 0.3)
    )
    assert [id for ids in full for id in ids[1:-1]] == [id for ids in short for id in ids[1:-1]]
    share = sum(len(ids) < 16 for ids in short) / len(short) - sum(len(ids) < 16 for ids in full) / len(full)
    assert 0.15 < share < 0.35
    assert min(map(len, short)) >= 3


def test_trained_tokenizer(prepare, text_file):
    output = prepare(text_file, tokenizer_name=None, train_tokenizer_vocab_size=200)
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    assert len(tokenizer) == 200 == statistics_of(output)["vocabulary_size"]
    assert tokenizer.model_max_length == 512
    again = prepare(text_file, "again", tokenizer_name=None, train_tokenizer_vocab_size=200)
    assert contents(again) == contents(output)


def test_long_documents_are_packed_in_pieces(prepare, script, text_file, monkeypatch):
    options = {**_held_out(text_file), "document_unit": "file"}
    whole = contents(prepare(text_file, **options))
    monkeypatch.setattr(script, "MAX_PIECE_CHARACTERS", 2000)
    monkeypatch.setattr(script.cut_document, "__defaults__", (2000,))
    output = prepare(text_file, "pieces", **options)
    pieces = contents(output)
    tokens = [[id for ids in data["train"]["input_ids"] for id in ids[1:-1]] for data in (whole, pieces)]
    assert tokens[0] == tokens[1]
    assert statistics_of(output)["splits"]["train"]["documents"] == 1
    short = [sum(len(ids) < 16 for ids in data["train"]["input_ids"]) for data in (whole, pieces)]
    assert short[0] <= 1 < short[1]


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One is. Two are! Three? Four.", ["One is.", " Two are!", " Three?", " Four."]),
        ("Mr. Smith met Dr. A. B. Jones. They spoke.", ["Mr. Smith met Dr. A. B. Jones.", " They spoke."]),
        ('"Stop!" she said. "Why?" It rained.', ['"Stop!" she said.', ' "Why?"', " It rained."]),
        ("It cost 3.50 pounds, i.e. little. 7 men paid.", ["It cost 3.50 pounds, i.e. little.", " 7 men paid."]),
        ("Then I. You too.", ["Then I.", " You too."]),
        ("Wait... What? no.", ["Wait...", " What? no."]),
        ("CHAPTER ONE\n\nIt was  late.", ["CHAPTER ONE", " It was late."]),
        (" Continued. Here.", [" Continued.", " Here."]),
        ("Élan vital. Été comes.", ["Élan vital.", " Été comes."]),
        ("no end at all", ["no end at all"]),
        (" \n ", []),
    ],
)
def test_split_sentences(script, text, expected):
    assert script.split_sentences(text) == expected


def test_split_sentences_keeps_everything(script):
    generator = random.Random(0)
    for _ in range(500):
        text = "".join(
            generator.choices([".", "?", '"', ")", " ", " ", "\n", "A", "b", "I", "Mr", "7", "é", "…"], k=30)
        )
        normal = " ".join(text.split())
        expected = " " + normal if normal and text[0].isspace() else normal
        assert "".join(script.split_sentences(text)) == expected


def test_cut_document_keeps_everything(script):
    generator = random.Random(0)
    for _ in range(300):
        paragraphs = [
            "".join(generator.choices(["ab", " ", "cde", "f"], k=generator.randint(1, 40))) + "\n" for _ in range(5)
        ]
        pieces = list(script.cut_document(paragraphs, max_characters=30))
        assert "".join(pieces) == "".join(paragraphs)[:-1]
        assert max(map(len, pieces)) <= 30
        # Only a word that is longer than a piece is cut.
        for first, second in zip(pieces, pieces[1:], strict=False):
            if not second[0].isspace():
                assert len(first) == 30 and " " not in first[1:]


def test_pack_sentences(script):
    sentences = [[1, 2], [], [3, 4, 5], [6], [7, 8, 9, 10, 11, 12]]
    packed = list(script.pack_sentences(sentences, lambda: 4))
    assert packed == [([1, 2, 3, 4], 2, True), ([5, 6, 7, 8], 2, True), ([9, 10, 11, 12], 0, False)]
    assert list(script.pack_sentences([], lambda: 4)) == []
    lengths = iter([1, 3, 5])
    assert [content for content, _, _ in script.pack_sentences(sentences[:3], lambda: next(lengths))] == [
        [1],
        [2, 3, 4],
        [5],
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Stopping and going on
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", range(5))
def test_a_failed_run_goes_on_where_it_was(prepare, script, text_file, monkeypatch, failing):
    options = {"tokenizer_name": None, "train_tokenizer_vocab_size": 150}
    expected = contents(prepare(text_file, "expected", **options))
    stages = [
        (script, "write_documents"),
        (script, "train_wordpiece_tokenizer"),
        (script, "pack_documents"),
        (script.DatasetDict, "save_to_disk"),
        (script, "publish"),
    ]

    def fail(*args, **kwargs):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(*stages[failing], fail)
        with pytest.raises(RuntimeError, match="stopped"):
            prepare(text_file, **options)
    output = text_file.with_name("output")
    assert not output.exists() and output.with_name("output.partial").exists()

    # What was finished before is not done again.
    for stage in stages[:failing]:
        monkeypatch.setattr(*stage, fail)
    assert contents(prepare(text_file, **options)) == expected
    assert not output.with_name("output.partial").exists()


def test_a_killed_run_goes_on(prepare, script, tmp_path, tiny_tokenizer_dir):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{document}\n\n" for document in generate_documents(400)))
    command = [
        *(sys.executable, script.__file__, "--train_file", str(text), "--tokenizer_name", str(tiny_tokenizer_dir)),
        *("--document_unit", "blank_line", "--max_seq_length", "16", "--validation_split_percentage", "10"),
        *("--output_dir", str(tmp_path / "output")),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = tmp_path / "output.partial"
    deadline = time.monotonic() + 60
    while not (work / "train_documents.arrow").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "output").exists()
    read = (work / "train_documents.arrow").stat().st_mtime_ns

    def remember(*args):
        assert (work / "train_documents.arrow").stat().st_mtime_ns == read
        return publish(*args)

    publish, script.publish = script.publish, remember
    try:
        resumed = contents(prepare(text))
    finally:
        script.publish = publish
    assert resumed == contents(prepare(text, "whole"))


def test_a_finished_run_is_not_repeated(prepare, script, text_file, monkeypatch, caplog):
    output = prepare(text_file)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    # The text counts by its content and name, not by its folder.
    text_file.with_name("elsewhere").mkdir()
    moved = text_file.rename(text_file.with_name("elsewhere") / text_file.name)
    monkeypatch.setattr(script, "write_documents", None)
    with caplog.at_level(logging.INFO):
        prepare(moved, preprocessing_num_workers=2)
    assert "holds the data of these settings already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.parametrize("change", ["setting", "text", "tokenizer"])
def test_other_settings_are_refused_and_overwrite_replaces(prepare, text_file, tmp_path, change):
    output = prepare(text_file)
    before = contents(output)
    options = {}
    if change == "setting":
        options["max_seq_length"] = 20
    elif change == "text":
        text_file.write_text(text_file.read_text() + "\nThe cats ran.\n")
    else:
        _byte_level_tokenizer(tmp_path / "byte_level")
        options["tokenizer_name"] = str(tmp_path / "byte_level")
    with pytest.raises(
        FileExistsError, match="prepared with other settings or other text .* replace it with overwrite"
    ):
        prepare(text_file, **options)
    assert contents(output) == before
    prepare(text_file, overwrite=True, **options)
    assert contents(output) != before
    assert sorted(path.name for path in tmp_path.glob("output*")) == ["output"]


def test_a_failure_leaves_the_earlier_output(prepare, script, text_file, monkeypatch):
    output = prepare(text_file)
    before = contents(output)
    bad = text_file.with_name("bad.txt")
    bad.write_bytes(b"Good text.\n\nCaf\xe9.\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        prepare(bad, overwrite=True)
    assert contents(output) == before
    # Also when it fails between taking the old one away and putting the new one there.
    rename = script.os.rename

    def fail(source, target):
        if Path(source).name == "finished":
            raise OSError("stopped")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(script.os, "rename", fail)
        with pytest.raises(OSError, match="stopped"):
            prepare(text_file, max_seq_length=20, overwrite=True)
    assert contents(output.with_name("output.replaced")) == before
    prepare(text_file, max_seq_length=20, overwrite=True)
    assert statistics_of(output)["settings"]["max_seq_length"] == 20
    assert not output.with_name("output.replaced").exists()


def test_folders_of_others_are_left_alone(prepare, text_file, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="was not written by this script; choose another output_dir"):
            prepare(text_file, overwrite=overwrite)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is needed for intermediate files but holds others; move it away"):
        prepare(text_file, "other")
    assert len(list(tmp_path.rglob("thesis.tex"))) == 2
    (tmp_path / "empty").mkdir()
    prepare(text_file, "empty")


def test_two_runs_at_once_are_refused(prepare, text_file, tmp_path):
    (tmp_path / "output.partial").mkdir()
    with FileLock(tmp_path / "output.partial" / ".lock"):
        with pytest.raises(FileExistsError, match="Another run is at work in"):
            prepare(text_file)
    prepare(text_file)


def test_an_unfinished_run_with_other_settings_is_started_afresh(prepare, script, text_file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(script, "measure", None)
        with pytest.raises(TypeError):
            prepare(text_file, max_seq_length=20)
    assert contents(prepare(text_file)) == contents(prepare(text_file, "fresh"))


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def test_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for field in dataclasses.fields(script.PreparationArguments):
        assert f"--{field.name}" in output
        assert field.metadata["help"].strip().endswith((".", ").")), field.name


def test_runs_as_a_script(script, text_file, tiny_tokenizer_dir, tmp_path):
    command = [
        *(
            sys.executable,
            script.__file__,
            "--train_file",
            str(text_file),
            "--tokenizer_name",
            str(tiny_tokenizer_dir),
        ),
        *("--document_unit", "blank_line", "--max_seq_length", "16", "--output_dir", str(tmp_path / "output")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "sequences of 16" in result.stderr and result.stdout == ""
    assert statistics_of(tmp_path / "output")["splits"]["validation"]["documents"] == 2


def test_yaml_and_json_files_and_flags_agree(script, text_file, tiny_tokenizer_dir, tmp_path):
    settings = {
        "train_file": [str(text_file)],
        "document_unit": "blank_line",
        "validation_split_percentage": 12.5,
        "tokenizer_name": str(tiny_tokenizer_dir),
        "max_seq_length": 16,
        "max_train_samples": None,
        "overwrite": True,
        "output_dir": "somewhere",
    }
    (tmp_path / "arguments.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "arguments.json").write_text(json.dumps(settings))
    flags = ["--train_file", str(text_file), "--document_unit", "blank_line", "--validation_split_percentage", "12.5"]
    flags += ["--tokenizer_name", str(tiny_tokenizer_dir), "--max_seq_length", "16", "--overwrite"]
    flags += ["--output_dir", "somewhere"]
    parse = script.parse_arguments
    expected = script.PreparationArguments(**settings)
    for arguments in ([str(tmp_path / "arguments.yaml")], [str(tmp_path / "arguments.json")], flags):
        assert parse(script.PreparationArguments, arguments) == (expected,)
    (overridden,) = parse(script.PreparationArguments, [str(tmp_path / "arguments.yaml"), "--max_seq_length", "32"])
    assert overridden == dataclasses.replace(expected, max_seq_length=32)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("prepare_*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations(script, path):
    assert set(yaml.safe_load(path.read_text())) <= {
        field.name for field in dataclasses.fields(script.PreparationArguments)
    }
    (arguments,) = script.parse_arguments(script.PreparationArguments, [str(path)])
    assert arguments.max_seq_length in (64, 128)


def test_shipped_small_configuration_runs(script, tmp_path, monkeypatch, load_example):
    monkeypatch.chdir(tmp_path)
    load_example("synthetic_data.py").main(["--output_dir", "data/synthetic", "--num_documents", "60"])
    script.main([str(CONFIGS / "prepare_small.yaml")])
    numbers = statistics_of(tmp_path / "data" / "small")
    assert numbers["splits"]["train"]["documents"] == 57
    assert numbers["splits"]["train"]["mean_fill"] > 0.8


@pytest.mark.parametrize(
    "content, message",
    [
        ("max_seq_len: 3", "Unknown key 'max_seq_len' in the argument file .*; did you mean 'max_seq_length'"),
        ("zzz: 3", r"Unknown key 'zzz' in the argument file '.*'\. See --help"),
        ("- a\n- b", "must hold a mapping from argument names to values, not a list"),
        ("", "must hold a mapping from argument names to values, not nothing"),
        ("a: [", "The argument file .* cannot be read"),
        ("output_dir: !!python/object/apply:os.system ['true']", "The argument file .* cannot be read"),
    ],
)
def test_bad_argument_files(script, tmp_path, content, message):
    path = tmp_path / "arguments.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        script.main([str(path)])


def test_unknown_flags_and_files(script, tmp_path):
    with pytest.raises(ValueError, match="Unknown argument '--max_seq_len'; did you mean '--max_seq_length'"):
        script.main(["--output_dir", "x", "--max_seq_len=3"])
    with pytest.raises(FileNotFoundError, match="The argument file 'nowhere.yaml' does not exist"):
        script.main(["nowhere.yaml"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_file": None}, "either as train_file or as dataset_name; neither was given"),
        ({"dataset_name": "a/b"}, "either as train_file or as dataset_name; both were given"),
        ({"dataset_config_name": "en"}, "dataset_config_name='en' needs a dataset_name"),
        ({"tokenizer_name": None}, "either tokenizer_name or train_tokenizer_vocab_size; neither was given"),
        ({"train_tokenizer_vocab_size": 9}, "either tokenizer_name or train_tokenizer_vocab_size; both were given"),
        ({"validation_file": ["x"]}, "validation_file and validation_split_percentage were both given"),
        ({"validation_split_percentage": 0}, "validation_split_percentage=0.0 must lie between 0 and 100"),
        ({"validation_split_percentage": 100}, "validation_split_percentage=100.0 must lie between 0 and 100"),
        ({"short_seq_probability": 1.5}, "short_seq_probability=1.5 must lie between 0 and 1"),
        ({"max_seq_length": 7}, "max_seq_length=7 is too small to learn from; use at least 8"),
        ({"max_seq_length": 65}, "max_seq_length=65 is more than the 64 tokens that the tokenizer .* take"),
        ({"max_train_samples": 0}, "max_train_samples=0 must be at least 1"),
        ({"max_eval_samples": 0}, "max_eval_samples=0 must be at least 1"),
        ({"preprocessing_num_workers": 0}, "preprocessing_num_workers=0 must be at least 1"),
        ({"tokenizer_name": "nowhere/nothing"}, "The tokenizer 'nowhere/nothing' could not be loaded"),
        ({"tokenizer_name": None, "train_tokenizer_vocab_size": 20}, "vocab_size=20 is too small"),
        ({"validation_split_percentage": 1}, "1 of 40 documents leaves no validation document.* above 1.25"),
        ({"validation_split_percentage": 99}, "99 of 40 documents leaves no training document.* below 98.8"),
    ],
)
def test_bad_arguments(prepare, text_file, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(text_file, **options)
    assert not text_file.with_name("output").exists()


def test_tokenizer_without_mask_token(prepare, text_file, tmp_path):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path / "no_mask")
    with pytest.raises(ValueError, match="has no mask token"):
        prepare(text_file, tokenizer_name=str(tmp_path / "no_mask"))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.txt", b"", r"The file '.*empty\.txt' is empty"),
        ("blank.txt", b"\n \n", r"The file '.*blank\.txt' holds no text"),
        ("blank.jsonl", b'{"text": " "}\n', r"The file '.*blank\.jsonl' holds no text"),
        ("latin.txt", b"Good.\nCaf\xe9.\n", r"The file '.*latin\.txt' is not UTF-8 text: the byte 0xe9 at offset 9"),
        ("book.pdf", b"x", r"The file '.*book\.pdf' ends in '\.pdf'; only \.txt, \.csv, \.json, \.jsonl"),
        ("rows.csv", b"id,body\n1,x\n", r"no column 'text' in the file '.*rows\.csv'; its columns are 'id', 'body'"),
        ("rows.csv", b"id,text\n1,x\n2\n", r"Line 3 of '.*rows\.csv' has 1 columns, the header has 2"),
        ("rows.jsonl", b'{"text": "a"}\n\n{"body": "x"}', r"no column 'text' in line 3 of '.*rows\.jsonl'; .* 'body'"),
        ("rows.jsonl", b'{"text": "a"}\n{"text"', r"Line 2 of '.*rows\.jsonl' is not valid JSON"),
        ("rows.jsonl", b'"text"', r"A JSON object was expected in line 1 of '.*rows\.jsonl', not a str"),
        ("rows.json", b'[{"text": 3}]', r"The column 'text' in row 1 of '.*rows\.json' holds a int, not text"),
    ],
)
def test_bad_files(prepare, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(path)
    assert not (tmp_path / "output").exists()


def test_files_that_are_not_there(prepare, tmp_path):
    for pattern in (tmp_path / "nothing.txt", tmp_path / "*.jsonl"):
        with pytest.raises(FileNotFoundError, match="is no file, no folder with .* and no pattern that matches any"):
            prepare(pattern)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="is no file, no folder with"):
        prepare(tmp_path / "folder")


def test_every_training_file_is_held_out(prepare, text_file):
    with pytest.raises(ValueError, match="so that no training text is left"):
        prepare(text_file, validation_file=[str(text_file)], validation_split_percentage=None)


def test_files_folders_and_patterns(script, tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.jsonl", "deep/ignored.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(*patterns):
        return [path.name for path in script.find_files([str(tmp_path / pattern) for pattern in patterns])]

    assert names(".") == ["a.txt", "b.txt", "c.jsonl"]
    assert names("*.txt") == ["a.txt", "b.txt"]
    assert names("**/*.jsonl", "b.txt", ".") == ["c.jsonl", "b.txt", "a.txt"]
