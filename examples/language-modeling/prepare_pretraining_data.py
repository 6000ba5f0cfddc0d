# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
# /// script
# requires-python = ">=3.10"
# dependencies = ["datasets>=4.8", "filelock", "pyarrow", "PyYAML", "transformers>=5.17,<6"]
# ///
"""
Turns text into packed sequences of a fixed length, on disk, for masked language model pre-training.

Sentences of one document follow each other up to the length wanted; one that does not fit is continued in the next
sequence, so that no text is lost. What is written loads with `datasets.load_from_disk(output_dir)`: the splits `train`
and `validation` with the columns `input_ids` and `special_tokens_mask`, not padded, for
`DataCollatorForLanguageModeling`. `tokenizer/` and `statistics.json` lie beside them.

    python prepare_pretraining_data.py configs/prepare_small.yaml --train_file my_text.txt --output_dir data/small
    python prepare_pretraining_data.py --train_file books/ --document_unit file --tokenizer_name bert-base-uncased \
        --max_seq_length 128 --preprocessing_num_workers 8 --output_dir data/books-128

A run that was stopped goes on where it was when it is started again with the same arguments.
"""

import csv
import glob
import hashlib
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from datasets.utils import tqdm
from filelock import FileLock, Timeout
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging


# The helpers are one folder up; example scripts are run from anywhere and are not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from example_utils import (
    parse_arguments,
    read_lines,
    run_script,  # noqa: E402
    show_progress_messages,
    train_wordpiece_tokenizer,
    write_text_atomically,
)


__all__ = ["PreparationArguments", "main", "pack_sentences", "prepare", "split_sentences"]

logger = logging.get_logger(__name__)

# Raise it when the same settings give other data than before: what was prepared earlier is then not taken for it.
FORMAT_VERSION = 1
STATISTICS_FILE = "statistics.json"
SUPPORTED_SUFFIXES = (".txt", ".csv", ".json", ".jsonl")
MIN_SEQUENCE_LENGTH = 8
DEFAULT_VALIDATION_PERCENTAGE = 5.0
# Longer documents are packed in pieces of this many characters, which bounds memory. At 128 tokens a sequence, the
# unfilled ends of the pieces cost about a quarter of a percent.
MAX_PIECE_CHARACTERS = 100_000
PACKING_BATCH_SIZE = 64


@dataclass
class PreparationArguments:
    """What to read, how to cut it, and where to write it."""

    output_dir: str = field(metadata={"help": "The folder to write. It appears when it is whole."})
    train_file: list[str] | None = field(
        default=None,
        metadata={"help": "Text to train on: .txt, .csv, .json or .jsonl files, folders of them, or glob patterns."},
    )
    validation_file: list[str] | None = field(
        default=None,
        metadata={"help": "Text to validate on, in the same forms. What is also in train_file is taken out of there."},
    )
    validation_split_percentage: float | None = field(
        default=None,
        metadata={
            "help": "The share of the training documents, in percent, to hold out for validation where there is no "
            "validation text of its own (5 if not given)."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, or a local folder, instead of train_file."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that data set."})
    text_column: str = field(
        default="text",
        metadata={"help": "The column that holds the text in .csv, .json and .jsonl files and data sets."},
    )
    document_unit: Literal["line", "blank_line", "file"] = field(
        default="line",
        metadata={
            "help": "What a document is in .txt files: a line, what stands between blank lines, or a whole file. No "
            "sequence crosses documents. A row of a table is always one document."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "The tokenizer: a name on the Hub or a local folder."}
    )
    train_tokenizer_vocab_size: int | None = field(
        default=None,
        metadata={"help": "Train a lower-cased WordPiece tokenizer of this size on the training text instead."},
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "The length of a full sequence in tokens, special tokens included."}
    )
    short_seq_probability: float = field(
        default=0.0,
        metadata={
            "help": "The share of sequences, drawn one by one, that get a random shorter length instead, so that a "
            "model also sees short inputs. The published recipe uses 0.1."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Keep at most this many training sequences (for a quick trial)."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Keep at most this many validation sequences."}
    )
    preprocessing_num_workers: int = field(
        default=1, metadata={"help": "How many processes tokenize. The result does not depend on it."}
    )
    seed: int = field(default=42, metadata={"help": "Decides the validation split and the short sequences."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an output_dir that was prepared before with other settings."}
    )

    def __post_init__(self) -> None:
        if (self.train_file is None) == (self.dataset_name is None):
            given = "neither was" if self.train_file is None else "both were"
            raise ValueError(f"Give the text either as train_file or as dataset_name; {given} given.")
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise ValueError(
                f"dataset_config_name={self.dataset_config_name!r} needs a dataset_name that it belongs to."
            )
        if (self.tokenizer_name is None) == (self.train_tokenizer_vocab_size is None):
            given = "neither was" if self.tokenizer_name is None else "both were"
            raise ValueError(f"Give either tokenizer_name or train_tokenizer_vocab_size; {given} given.")
        if self.validation_split_percentage is not None:
            if self.validation_file is not None:
                raise ValueError(
                    "validation_file and validation_split_percentage were both given; leave one of them out."
                )
            if not 0 < self.validation_split_percentage < 100:
                raise ValueError(
                    f"validation_split_percentage={self.validation_split_percentage} must lie between 0 and 100, both "
                    "excluded; 5 holds out one document in twenty."
                )
        if not 0 <= self.short_seq_probability <= 1:
            raise ValueError(f"short_seq_probability={self.short_seq_probability} must lie between 0 and 1.")
        if self.max_seq_length < MIN_SEQUENCE_LENGTH:
            raise ValueError(
                f"max_seq_length={self.max_seq_length} is too small to learn from; use at least {MIN_SEQUENCE_LENGTH}."
            )
        for name in ("max_train_samples", "max_eval_samples", "preprocessing_num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")


# ---------------------------------------------------------------------------------------------------------------------
# Reading documents
# ---------------------------------------------------------------------------------------------------------------------


def find_files(patterns: Sequence[str]) -> list[Path]:
    """
    Finds the text files that files, folders (searched in depth) and glob patterns stand for.

    Returns:
        `list[Path]`: In the order given, sorted within a folder or pattern, each file once.

    Raises:
        FileNotFoundError: A pattern stands for no supported file.
        ValueError: A file has another suffix, or is empty.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUPPORTED_SUFFIXES)
        else:
            files = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
        if not files:
            raise FileNotFoundError(
                f"{pattern!r} is no file, no folder with {', '.join(SUPPORTED_SUFFIXES)} files, and no pattern that "
                "matches any file."
            )
        for file in files:
            if file.suffix not in SUPPORTED_SUFFIXES:
                raise ValueError(
                    f"The file {str(file)!r} ends in {file.suffix!r}; only {', '.join(SUPPORTED_SUFFIXES)} files can "
                    "be read."
                )
            if file.stat().st_size == 0:
                raise ValueError(f"The file {str(file)!r} is empty; remove it from the input.")
            found[file.resolve()] = None
    return list(found)


def read_documents(path: Path, document_unit: str, text_column: str) -> Iterator[Iterable[str]]:
    """
    Yields the documents of a file, each as its paragraphs in order. Blank ones are left out.

    Raises:
        ValueError: The file is not UTF-8, has no such column, is not valid, or holds no text.
    """
    if path.suffix == ".txt":
        documents = _read_text(path, document_unit)
    else:
        rows = _read_csv(path, text_column) if path.suffix == ".csv" else _read_json(path, text_column)
        documents = ([text] for text in rows if text.strip())
    first = next(documents, None)
    if first is None:
        raise ValueError(f"The file {str(path)!r} holds no text, only blank lines or rows; remove it from the input.")
    yield first
    yield from documents


def _read_text(path: Path, document_unit: str) -> Iterator[Iterable[str]]:
    lines = read_lines(path)
    if document_unit == "line":
        yield from ([line] for line in lines if line.strip())
    elif document_unit == "file":
        # A book need not be in memory as a whole: its lines are handed on as they are read.
        filled = (line for line in lines if line.strip())
        first = next(filled, None)
        if first is not None:
            yield chain([first], filled)
    else:
        paragraphs: list[str] = []
        for line in chain(lines, [""]):
            if line.strip():
                paragraphs.append(line)
            elif paragraphs:
                yield paragraphs
                paragraphs = []


def _read_csv(path: Path, text_column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # The default of 131,072 characters is less than a long article.
    rows = csv.reader(read_lines(path))
    header = next(rows, [])
    if text_column not in header:
        raise ValueError(_missing_column(text_column, f"the file {str(path)!r}", header))
    column = header.index(text_column)
    try:
        for row in rows:
            if row and len(row) <= column:
                raise ValueError(
                    f"Line {rows.line_num} of {str(path)!r} has {len(row)} columns, the header has {len(header)}."
                )
            if row:
                yield row[column]
    except csv.Error as error:
        raise ValueError(f"Line {rows.line_num} of {str(path)!r} is not valid CSV: {error}.") from error


def _read_json(path: Path, text_column: str) -> Iterator[str]:
    """Reads one JSON object a line, or one array of objects."""
    lines = ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    try:
        if first[1].lstrip().startswith("["):
            number = first[0]
            rows = enumerate(json.loads("".join(line for _, line in chain([first], lines))), start=1)
            for number, row in rows:
                yield _json_text(row, text_column, f"row {number} of {str(path)!r}")
        else:
            for number, line in chain([first], lines):
                yield _json_text(json.loads(line), text_column, f"line {number} of {str(path)!r}")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"Line {number} of {str(path)!r} is not valid JSON ({error}); a file holds one object a line, or one "
            "array of objects."
        ) from error


def _json_text(row: object, text_column: str, place: str) -> str:
    if not isinstance(row, dict):
        raise ValueError(f"A JSON object was expected in {place}, not a {type(row).__name__}.")
    if text_column not in row:
        raise ValueError(_missing_column(text_column, place, list(row)))
    text = row[text_column]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"The column {text_column!r} in {place} holds a {type(text).__name__}, not text.")
    return text or ""


def _missing_column(text_column: str, place: str, columns: Sequence[str]) -> str:
    names = ", ".join(map(repr, columns)) or "none"
    return f"There is no column {text_column!r} in {place}; its columns are {names}. Choose one with text_column."


def cut_document(paragraphs: Iterable[str], max_characters: int = MAX_PIECE_CHARACTERS) -> Iterator[str]:
    """
    Yields a document in pieces of at most `max_characters`, cut between paragraphs, or else words, or else anywhere.

    Joining the pieces gives the document; a piece that begins a word anew begins with white space.
    """
    piece = ""
    for number, paragraph in enumerate(paragraphs):
        paragraph = paragraph.rstrip("\r\n")
        if number:
            paragraph = "\n" + paragraph
        if piece and len(piece) + len(paragraph) > max_characters:
            yield piece
            piece = ""
        while len(paragraph) > max_characters:
            cut = next((i for i in range(max_characters, 0, -1) if paragraph[i].isspace()), max_characters)
            yield paragraph[:cut]
            paragraph = paragraph[cut:]
        piece += paragraph
    if piece:
        yield piece


def write_documents(documents: Iterable[Iterable[str]], path: Path) -> None:
    """Writes documents as an Arrow file of pieces, with the columns `document` (its number) and `text`."""
    schema = pa.schema([("document", pa.int64()), ("text", pa.large_string())])
    temporary = path.with_suffix(".partial")
    numbers: list[int] = []
    texts: list[str] = []
    characters = 0
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for number, document in enumerate(tqdm(documents, desc=f"Reading {path.stem}", unit=" documents")):
            for piece in cut_document(document):
                numbers.append(number)
                texts.append(piece)
                characters += len(piece)
            if characters > 16 * MAX_PIECE_CHARACTERS:
                writer.write_batch(pa.record_batch([numbers, texts], schema=schema))
                numbers, texts, characters = [], [], 0
        if texts:
            writer.write_batch(pa.record_batch([numbers, texts], schema=schema))
    os.replace(temporary, path)


def split_validation(pieces: Dataset, percentage: float, seed: int) -> tuple[Dataset, Dataset]:
    """
    Holds out whole documents.

    Returns:
        `tuple[Dataset, Dataset]`: The pieces of the training and of the validation documents, in their order.

    Raises:
        ValueError: One of the two would be empty.
    """
    documents = pieces.with_format("numpy")["document"][:]
    count = int(documents[-1]) + 1
    held_out = round(count * percentage / 100)
    if not 0 < held_out < count:
        part, need = ("validation", 50 / count) if held_out == 0 else ("training", 100 - 50 / count)
        raise ValueError(
            f"validation_split_percentage={percentage:g} of {count} documents leaves no {part} document. Give more "
            f"documents, a percentage {'above' if held_out == 0 else 'below'} {need:.3g}, another document_unit, or a "
            "validation_file."
        )
    chosen = set(random.Random(f"validation split {seed}").sample(range(count), held_out))
    validation = [row for row, document in enumerate(documents.tolist()) if document in chosen]
    train = [row for row, document in enumerate(documents.tolist()) if document not in chosen]
    return pieces.select(train), pieces.select(validation)


# ---------------------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------------------

# A sentence ends at a stop, closing quotes and white space, or at a line break, which keeps headings and verses apart.
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*\s+|\s*\n\s*""")
OPENING_MARKS = "\"'“‘«([—-"
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr messrs mme mlle capt col gen lt sgt maj gov sen rep no vol pp fig vs cf viz "
    "al esq inc ltd co corp dept univ jan feb mar apr jun jul aug sept sep oct nov dec i.e e.g".split()
)


def split_sentences(text: str) -> list[str]:
    """
    Splits English-like text into sentences by punctuation.

    White space is reduced to single spaces. A sentence keeps the space before it, so that `"".join(sentences)` is the
    whole text, and tokenizers to which a leading space matters see what they would see in the text.
    """
    sentences = []
    start = 0
    for match in SENTENCE_END.finditer(text):
        if "\n" not in match.group() and not _is_sentence_end(text, start, match):
            continue
        sentences.append(text[start : match.end()])
        start = match.end()
    sentences.append(text[start:])
    leading_space = text[:1].isspace()
    result = []
    for sentence in sentences:
        words = " ".join(sentence.split())
        if words:
            result.append(" " + words if leading_space or result else words)
    return result


def _is_sentence_end(text: str, start: int, match: re.Match) -> bool:
    following = text[match.end() : match.end() + 3].lstrip(OPENING_MARKS)
    if not following or not (following[0].isupper() or following[0].isdigit()):
        return False
    if not match.group().startswith(".") or match.group()[1] == ".":
        return True
    word = text[max(start, match.start() - 12) : match.start()].rpartition(" ")[2].lstrip(OPENING_MARKS)
    initial = len(word) == 1 and word.isupper() and word != "I"
    return not initial and word.lower() not in ABBREVIATIONS


def pack_sentences(
    sentences: Iterable[Sequence[int]], next_length: Callable[[], int]
) -> Iterator[tuple[list[int], int, bool]]:
    """
    Packs the sentences of one document into sequences. Nothing is left out: a sentence that reaches over the end of a
    sequence is continued in the next one.

    Args:
        sentences (iterable of sequences of `int`): Token ids without special tokens.
        next_length (callable): Gives the number of tokens that the next sequence may hold, at least 1.

    Yields:
        `tuple`: The token ids of a sequence, the number of sentences that begin in it, and whether its last sentence
        is continued in the next sequence.
    """
    content: list[int] = []
    beginning = 0
    length = next_length()
    for sentence in sentences:
        position = 0
        beginning += len(sentence) > 0
        while position < len(sentence):
            taken = sentence[position : position + length - len(content)]
            content.extend(taken)
            position += len(taken)
            if len(content) == length:
                yield content, beginning, position < len(sentence)
                content, beginning, length = [], 0, next_length()
    if content:
        yield content, beginning, False


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Returns the ids that the tokenizer puts before and after a single text."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["special_tokens_mask"]
    first = mask.index(0)
    last = len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]


def encode(sentences: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Returns the token ids of sentences of any length, without special tokens."""
    if not sentences:
        return []
    if tokenizer.is_fast:
        # Takes two thirds of the time of tokenizer(...), which also works out where in the text each token stands.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
    return tokenizer(sentences, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def pack_documents(
    batch: dict[str, list],
    rows: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    short_seq_probability: float,
    seed: str,
) -> dict[str, list]:
    """
    Tokenizes and packs some pieces of documents; a `datasets.map` function.

    What comes out for a piece depends on the piece, its row number and the seed alone, not on batches or processes.
    """
    before, after = special_tokens_around(tokenizer)
    capacity = max_seq_length - len(before) - len(after)
    texts = [split_sentences(text) for text in batch["text"]]
    flat = [sentence for sentences in texts for sentence in sentences]
    encoded = iter(encode(flat, tokenizer))
    result: dict[str, list] = {name: [] for name in PACKED_FEATURES}
    for row, sentences in zip(rows, texts, strict=True):
        generator = random.Random(f"short sequences {seed} {row}")

        def next_length(generator: random.Random = generator) -> int:
            if short_seq_probability and generator.random() < short_seq_probability:
                return generator.randint(min(2, capacity), capacity)
            return capacity

        own = [next(encoded) for _ in sentences]
        for content, beginning, continued in pack_sentences(own, next_length):
            result["input_ids"].append(before + content + after)
            result["special_tokens_mask"].append([1] * len(before) + [0] * len(content) + [1] * len(after))
            result["sentences"].append(beginning)
            result["continued"].append(continued)
            result["unknown"].append(content.count(tokenizer.unk_token_id))
    return result


PACKED_FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        # Stored, because the collator would otherwise work it out again for each sequence in each epoch.
        "special_tokens_mask": datasets.List(datasets.Value("int8")),
        "sentences": datasets.Value("int32"),
        "continued": datasets.Value("bool"),
        "unknown": datasets.Value("int32"),
    }
)
STATISTICS_COLUMNS = ["sentences", "continued", "unknown"]


def measure(packed: Dataset, documents: int, special_tokens: int, max_seq_length: int) -> dict[str, int | float]:
    """Sums up a split. Tokens are counted without special tokens, the fill of a sequence with them."""
    totals = dict.fromkeys(("tokens", *STATISTICS_COLUMNS), 0)
    for batch in packed.with_format("arrow").iter(batch_size=10_000):
        totals["tokens"] += pc.sum(pc.list_value_length(batch["input_ids"])).as_py() - special_tokens * len(batch)
        for column in STATISTICS_COLUMNS:
            totals[column] += pc.sum(batch[column]).as_py()
    sequences = len(packed)
    return {
        "documents": documents,
        "sentences": totals["sentences"],
        "sequences": sequences,
        "tokens": totals["tokens"],
        "mean_fill": (totals["tokens"] / sequences + special_tokens) / max_seq_length,
        "continued_sentences": totals["continued"],
        "unknown_token_share": totals["unknown"] / totals["tokens"],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Sources:
    """Where the text of the splits comes from. `validation` is `None` where it is to be split off."""

    train: list[Path] | Dataset
    validation: list[Path] | Dataset | None


def find_sources(arguments: PreparationArguments) -> Sources:
    """Finds the files, or loads the data set, that the arguments name."""
    validation = None if arguments.validation_file is None else find_files(arguments.validation_file)
    if arguments.dataset_name is not None:
        try:
            splits = datasets.load_dataset(arguments.dataset_name, arguments.dataset_config_name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The data set {arguments.dataset_name!r} could not be loaded: {error} Check its name, "
                "dataset_config_name and the network, or give text files with train_file."
            ) from error
        if "train" not in splits:
            raise ValueError(
                f"The data set {arguments.dataset_name!r} has no split 'train', only {', '.join(splits)}."
            )
        for name, split in splits.items():
            if name in ("train", "validation") and arguments.text_column not in split.column_names:
                place = f"the split {name!r} of {arguments.dataset_name!r}"
                raise ValueError(_missing_column(arguments.text_column, place, split.column_names))
        if validation is None and arguments.validation_split_percentage is None:
            validation = splits.get("validation")
        return Sources(splits["train"], validation)
    train = find_files(arguments.train_file)
    if validation is not None:
        shared = set(train) & set(validation)
        if shared:
            logger.warning(f"{len(shared)} files of validation_file are taken out of train_file, where they also are.")
            train = [path for path in train if path not in shared]
        if not train:
            raise ValueError("Every file of train_file is also in validation_file, so that no training text is left.")
    return Sources(train, validation)


def _iterate_documents(source: list[Path] | Dataset, arguments: PreparationArguments) -> Iterator[Iterable[str]]:
    if isinstance(source, Dataset):
        for row in source.select_columns([arguments.text_column]):
            text = row[arguments.text_column]
            if text and text.strip():
                yield text.splitlines()
    else:
        for path in source:
            yield from read_documents(path, arguments.document_unit, arguments.text_column)


def load_tokenizer(arguments: PreparationArguments) -> PreTrainedTokenizerBase:
    """
    Loads the tokenizer that the arguments name.

    Raises:
        ValueError: It cannot be loaded, has no mask token, or takes no sequences of `max_seq_length`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer_name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The tokenizer {arguments.tokenizer_name!r} could not be loaded: {error} Check its name and the network, "
            "or train one with train_tokenizer_vocab_size."
        ) from error
    if tokenizer.mask_token is None:
        raise ValueError(
            f"The tokenizer {arguments.tokenizer_name!r} has no mask token, so that it cannot serve a masked language "
            "model; use that of an encoder such as bert-base-uncased."
        )
    if arguments.max_seq_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_seq_length={arguments.max_seq_length} is more than the {tokenizer.model_max_length} tokens that the "
            f"tokenizer {arguments.tokenizer_name!r} and its model take. Use at most that."
        )
    return tokenizer


def make_fingerprint(
    arguments: PreparationArguments, sources: Sources, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, dict]:
    """
    Describes everything that the result depends on.

    Returns:
        `tuple[str, dict]`: A hash, and the settings and inputs that went into it.
    """
    settings = asdict(arguments)
    # The result does not depend on these; files count by content, not by place, and so does the tokenizer.
    for name in ("output_dir", "overwrite", "preprocessing_num_workers", "train_file", "validation_file"):
        del settings[name]
    inputs = {
        split: source._fingerprint
        if isinstance(source, Dataset)
        else [{"name": path.name, "bytes": path.stat().st_size, "sha256": _hash_file(path)} for path in source or []]
        for split, source in (("train", sources.train), ("validation", sources.validation))
    }
    description = {
        "format_version": FORMAT_VERSION,
        "settings": settings,
        "inputs": inputs,
        "tokenizer_sha256": None if tokenizer is None else _hash_tokenizer(tokenizer),
    }
    content = {**description, "settings": {**settings, "tokenizer_name": None}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), description


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    content = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    return hashlib.sha256(content.encode()).hexdigest()


def read_statistics(folder: Path) -> dict | None:
    """Reads what an earlier run said about its result; `None` if the folder is not the result of one."""
    path = folder / STATISTICS_FILE
    if not path.is_file():
        return None
    try:
        statistics = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    return statistics if isinstance(statistics, dict) and "fingerprint" in statistics else None


def check_output(output: Path, fingerprint: str, overwrite: bool) -> dict | None:
    """
    Says whether there is anything to do.

    Returns:
        `dict` or `None`: The statistics of a finished run with the same settings; `None` if there is work to do.

    Raises:
        FileExistsError: There is something that must not be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    statistics = read_statistics(output)
    if statistics is None:
        raise FileExistsError(f"{str(output)!r} exists and was not written by this script; choose another output_dir.")
    if overwrite:
        return None
    if statistics["fingerprint"] != fingerprint:
        raise FileExistsError(
            f"{str(output)!r} was prepared with other settings or other text (see {STATISTICS_FILE} in it). Choose "
            "another output_dir, or replace it with overwrite."
        )
    return statistics


@contextmanager
def work_folder(path: Path, fingerprint: str) -> Iterator[Path]:
    """
    Opens the folder in which a run keeps its stages, with what an interrupted run of the same settings left in it.

    Raises:
        FileExistsError: The folder is not one of ours, or another run is at work in it.
    """
    marker = path / "fingerprint"
    if path.exists() and any(path.iterdir()) and not (marker.exists() or (path / ".lock").exists()):
        raise FileExistsError(f"{str(path)!r} is needed for intermediate files but holds others; move it away.")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileExistsError(f"Another run is at work in {str(path)!r}; wait for it, or stop it.") from error
    try:
        if not marker.exists() or marker.read_text(encoding="utf-8") != fingerprint:
            for entry in path.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != ".lock":
                    entry.unlink()
            write_text_atomically(marker, fingerprint)
        else:
            logger.info(f"Going on with what an interrupted run left in {path}.")
        yield path
    finally:
        lock.release()


def read_splits(sources: Sources, arguments: PreparationArguments, work: Path) -> dict[str, Dataset]:
    """First stage: the documents as pieces in Arrow files, split. What is there already is not read again."""
    pieces = {}
    for split, source in (("train", sources.train), ("validation", sources.validation)):
        if source is None:
            continue
        path = work / f"{split}_documents.arrow"
        if not path.exists():
            write_documents(_iterate_documents(source, arguments), path)
        pieces[split] = Dataset.from_file(str(path))
        if len(pieces[split]) == 0:
            raise ValueError(f"The {split} split holds no text, only blank rows.")
    if "validation" not in pieces:
        percentage = arguments.validation_split_percentage
        percentage = DEFAULT_VALIDATION_PERCENTAGE if percentage is None else percentage
        pieces["train"], pieces["validation"] = split_validation(pieces["train"], percentage, arguments.seed)
    # A piece gives at least one sequence, so that these are enough.
    for split, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if limit is not None:
            pieces[split] = pieces[split].select(range(min(limit, len(pieces[split]))))
    return pieces


def train_or_load_tokenizer(pieces: Dataset, arguments: PreparationArguments, work: Path) -> PreTrainedTokenizerBase:
    """Second stage, where the tokenizer is trained here."""
    folder = work / "tokenizer"
    if not folder.exists():
        logger.info(f"Training a tokenizer of {arguments.train_tokenizer_vocab_size} entries.")
        temporary = work / "tokenizer.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        train_wordpiece_tokenizer(
            pieces["text"],
            arguments.train_tokenizer_vocab_size,
            temporary,
            model_max_length=max(512, arguments.max_seq_length),
        )
        os.rename(temporary, folder)
    # Loaded in either case, so that an interrupted run and a whole one use the very same tokenizer.
    return AutoTokenizer.from_pretrained(folder)


def pack_split(
    split: str, pieces: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: PreparationArguments, work: Path
) -> Dataset:
    """Third stage: packed sequences. `datasets` keeps what each process has finished and takes it from there."""
    packed = pieces.map(
        pack_documents,
        batched=True,
        batch_size=PACKING_BATCH_SIZE,
        with_indices=True,
        fn_kwargs={
            "tokenizer": tokenizer,
            "max_seq_length": arguments.max_seq_length,
            "short_seq_probability": arguments.short_seq_probability,
            "seed": f"{arguments.seed} {split}",
        },
        features=PACKED_FEATURES,
        remove_columns=pieces.column_names,
        num_proc=arguments.preprocessing_num_workers if arguments.preprocessing_num_workers > 1 else None,
        load_from_cache_file=True,
        cache_file_name=str(work / f"{split}_packed.arrow"),
        # The folder belongs to one fingerprint, so that its files need no other.
        new_fingerprint=f"{split}-packed",
        desc=f"Packing {split}",
    )
    limit = arguments.max_train_samples if split == "train" else arguments.max_eval_samples
    if limit is not None:
        packed = packed.select(range(min(limit, len(packed))))
    if len(packed) == 0:
        raise ValueError(f"The {split} text gives no tokens; nothing in it is known to the tokenizer.")
    return packed


def publish(finished: Path, output: Path) -> None:
    """Puts a whole result in its place. What was there goes only when the new one is there."""
    replaced = output.with_name(output.name + ".replaced")
    if output.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        os.rename(output, replaced)
    os.rename(finished, output)
    if replaced.exists():
        shutil.rmtree(replaced)


def prepare(arguments: PreparationArguments) -> dict:
    """
    Prepares the data that the arguments describe.

    Args:
        arguments (`PreparationArguments`): See there.

    Returns:
        `dict`: What `statistics.json` in `output_dir` holds.

    Raises:
        ValueError: The text, the tokenizer or the split cannot be used as asked.
        FileNotFoundError: An input does not exist.
        FileExistsError: `output_dir` holds something else, or another run is at work on it.
    """
    output = Path(arguments.output_dir).resolve()
    sources = find_sources(arguments)
    tokenizer = None if arguments.tokenizer_name is None else load_tokenizer(arguments)
    fingerprint, description = make_fingerprint(arguments, sources, tokenizer)
    statistics = check_output(output, fingerprint, arguments.overwrite)
    if statistics is not None:
        logger.info(f"{output} holds the data of these settings already; nothing is left to do.")
        return statistics

    work = output.with_name(output.name + ".partial")
    with work_folder(work, fingerprint):
        finished = work / "finished"
        if not finished.exists():
            pieces = read_splits(sources, arguments, work)
            if tokenizer is None:
                tokenizer = train_or_load_tokenizer(pieces["train"], arguments, work)
            special_tokens = sum(map(len, special_tokens_around(tokenizer)))
            splits, measures = DatasetDict(), {}
            for split, documents in pieces.items():
                packed = pack_split(split, documents, tokenizer, arguments, work)
                count = len(set(documents.with_format("numpy")["document"][:].tolist()))
                measures[split] = measure(packed, count, special_tokens, arguments.max_seq_length)
                splits[split] = packed.remove_columns(STATISTICS_COLUMNS)
            statistics = {
                "fingerprint": fingerprint,
                "vocabulary_size": len(tokenizer),
                "splits": measures,
                **description,
            }
            temporary = work / "finished.partial"
            shutil.rmtree(temporary, ignore_errors=True)
            splits.save_to_disk(temporary)
            tokenizer.save_pretrained(temporary / "tokenizer")
            write_text_atomically(temporary / STATISTICS_FILE, json.dumps(statistics, indent=2) + "\n")
            os.rename(temporary, finished)
        statistics = read_statistics(finished)
        publish(finished, output)
    shutil.rmtree(work)
    for split, numbers in statistics["splits"].items():
        logger.info(
            f"{split}: {numbers['sequences']:,} sequences of {arguments.max_seq_length}, {numbers['mean_fill']:.1%} "
            f"full; {numbers['tokens']:,} tokens ({numbers['unknown_token_share']:.2%} unknown) from "
            f"{numbers['documents']:,} documents, {numbers['sentences']:,} sentences; "
            f"{numbers['continued_sentences']:,} times a sentence was continued in the next sequence."
        )
    logger.info(f"Wrote {output}.")
    return statistics


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the arguments and prepares the data."""
    (parsed,) = parse_arguments(PreparationArguments, arguments, description=__doc__.partition("\n\n")[0])
    show_progress_messages(logger)
    prepare(parsed)


if __name__ == "__main__":
    run_script(main)
