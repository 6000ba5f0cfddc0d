# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""Question answering in the SQuAD format: reading, cutting contexts into windows, putting answers together again."""

import csv
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from datasets import Dataset, DatasetDict, load_dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase
from transformers.utils import logging


__all__ = [
    "QuestionAnsweringDataArguments",
    "find_answers",
    "load_questions",
    "make_windows",
    "question_answering_metrics",
]

logger = logging.get_logger(__name__)

METRIC_SCRIPT = Path(__file__).resolve().parents[1] / "metrics" / "elastic_squad.py"
COLUMNS = ("id", "question", "context")


@dataclass
class QuestionAnsweringDataArguments:
    """Questions, and how their contexts are cut."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set in the SQuAD format on the Hub, such as rajpurkar/squad."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Questions to train on: SQuAD's own .json, or .json/.jsonl/.csv rows with id, question, context "
            "and answers (in csv: answer_text and answer_start; empty for none)."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Questions to evaluate on, in the same forms."}
    )
    max_seq_length: int = field(default=384, metadata={"help": "Tokens of a window, the question included."})
    doc_stride: int = field(default=128, metadata={"help": "Tokens that neighbouring windows share."})
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer, in tokens."})
    n_best_size: int = field(default=20, metadata={"help": "Starts and ends to combine in a window."})
    version_2_with_negative: bool = field(
        default=False, metadata={"help": "Some questions have no answer (SQuAD 2.0)."}
    )
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={"help": "Questions are left unanswered where that scores higher than the best span by more."},
    )
    calibration_split_percentage: float | None = field(
        default=None,
        metadata={
            "help": "With --sharcs: the share of the training contexts, in percent, whose questions are held out to "
            "calibrate compute budgets on, which meets them more exactly than training questions do."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first questions to train."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only the first questions to evaluate."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "How many processes tokenize."})

    def __post_init__(self):
        files = [name for name in ("train_file", "validation_file") if getattr(self, name) is not None]
        if self.dataset_name is None and not files:
            raise ValueError("Name the data: dataset_name, or train_file and validation_file; none of them was given.")
        if self.dataset_name is not None and files:
            raise ValueError(f"dataset_name and {files[0]} name the data twice; give only one of them.")
        if not 0 <= self.doc_stride < self.max_seq_length:
            raise ValueError(
                f"doc_stride={self.doc_stride} must be at least 0 and less than max_seq_length={self.max_seq_length}."
            )
        percentage = self.calibration_split_percentage
        if percentage is not None and not 0 < percentage < 100:
            raise ValueError(
                f"calibration_split_percentage={percentage} must lie between 0 and 100, both excluded; 5 holds out "
                "one context in twenty."
            )
        for name in ("max_answer_length", "n_best_size", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")


def load_questions(arguments: QuestionAnsweringDataArguments, seed: int = 0) -> DatasetDict:
    """
    Splits `train` and `validation`, and `calibration` if a part of the training contexts is to be held out, with the
    columns id, question, context and answers (lists `text`, `answer_start`).

    Raises:
        ValueError: for a file that is empty, no JSON or lacks a column; for answers that are not in their context,
            questions of the same id, or questions without an answer where all should have one.
        FileNotFoundError: if there is no such file.
    """
    if arguments.dataset_name is not None:
        try:
            found = load_dataset(arguments.dataset_name, arguments.dataset_config_name)
        except OSError as error:  # no such data set, no network
            raise ValueError(f"The data set {arguments.dataset_name!r} could not be loaded: {error}") from error
        splits = {name: found[name] for name in ("train", "validation") if name in found}
    else:
        files = {"train": arguments.train_file, "validation": arguments.validation_file}
        splits = {name: Dataset.from_list(_read(path)) for name, path in files.items() if path is not None}
    for name, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if name in splits and limit is not None:
            splits[name] = splits[name].select(range(min(limit, len(splits[name]))))
    for name, rows in splits.items():
        missing = [column for column in (*COLUMNS, "answers") if column not in rows.column_names]
        if missing:
            raise ValueError(f"The {name} questions have no column {missing[0]!r}; they have {rows.column_names}.")
        unanswered = sum(not answers["text"] for answers in rows["answers"])
        if unanswered and not arguments.version_2_with_negative:
            raise ValueError(
                f"{unanswered} of {len(rows)} {name} questions have no answer; add --version_2_with_negative, or "
                "leave them out."
            )
        repeated, count = Counter(map(str, rows["id"])).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} {name} questions have the id {repeated!r}; give each an id of its own.")
        _check_answers(name, rows)
    if "train" in splits and arguments.calibration_split_percentage is not None:
        splits |= _hold_out_contexts(splits["train"], arguments.calibration_split_percentage, seed)
    return DatasetDict(splits)


def _hold_out_contexts(rows: Dataset, percentage: float, seed: int) -> dict[str, Dataset]:
    """Questions about the same context stay together: a router knows a context that it was trained on."""
    contexts = list(dict.fromkeys(rows["context"]))
    if len(contexts) < 2:
        raise ValueError("All training questions are about one context, of which no part can be held out.")
    count = min(max(1, round(len(contexts) * percentage / 100)), len(contexts) - 1)
    chosen = set(random.Random(seed).sample(contexts, count))
    places = {"train": [], "calibration": []}
    for index, context in enumerate(rows["context"]):
        places["calibration" if context in chosen else "train"].append(index)
    return {name: rows.select(indices) for name, indices in places.items()}


def _check_answers(split: str, rows: Dataset) -> None:
    moved = 0
    for row in rows:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            if not 0 <= start <= len(row["context"]) - len(text):
                raise ValueError(
                    f"The answer {text!r} of the {split} question {row['id']!r} begins at character {start}, but its "
                    f"context has {len(row['context'])}; correct answer_start."
                )
            moved += row["context"][start : start + len(text)] != text
    if moved:
        logger.warning(f"{moved} {split} answers are not what stands at answer_start in their contexts.")


def _read(path: str) -> list[dict[str, Any]]:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"The file of questions {path!r} does not exist.")
    try:
        # Not read_text, which changes ends of lines within contexts, and with that where answers start.
        text = file.read_bytes().decode("utf-8-sig")
        if file.suffix == ".csv":
            csv.field_size_limit(2**31 - 1)  # The default of 131,072 characters is less than a long article.
            rows = [_from_csv(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
        elif file.suffix == ".jsonl":
            # Not splitlines, to which separators that JSON texts may hold are ends of lines, too.
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = json.loads(text) if text.strip() else []
            if isinstance(rows, dict):
                rows = rows.get("data")
            if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "paragraphs" in rows[0]:
                rows = _from_squad(rows)
    except UnicodeDecodeError as error:
        raise ValueError(f"The file of questions {path!r} is not UTF-8 (byte {error.start}); convert it.") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"The file of questions {path!r} is no JSON: {error}. Rows, one on each line, want the suffix .jsonl."
        ) from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"The file of questions {path!r} is not in SQuAD's form: {error!r}.") from error
    except csv.Error as error:
        raise ValueError(f"The file of questions {path!r} is not valid CSV: {error}.") from error
    if not isinstance(rows, list):
        raise ValueError(f"The file of questions {path!r} holds no list of questions.")
    if not rows:
        raise ValueError(f"The file of questions {path!r} is empty; it needs at least one question.")
    return [_check_row(row, f"Question {number} of {path!r}") for number, row in enumerate(rows, start=1)]


def _check_row(row: Any, place: str) -> dict[str, Any]:
    """The columns of a question, each of its kind."""
    if not isinstance(row, dict):
        raise ValueError(f"{place} is a {type(row).__name__}, not an object with id, question, context and answers.")
    missing = [name for name in (*COLUMNS, "answers") if row.get(name) is None]
    if missing:
        raise ValueError(f"{place} has no {missing[0]!r}; it has {sorted(map(str, row))}.")
    answers = row["answers"]
    kinds = {"text": str, "answer_start": int}
    lists = {name: answers.get(name) if isinstance(answers, dict) else None for name in kinds}
    for name, kind in kinds.items():
        if not isinstance(lists[name], list) or not all(isinstance(value, kind) for value in lists[name]):
            raise ValueError(f"{place} has the answers {answers!r}; they need a list of {kind.__name__} {name!r}.")
    if len(lists["text"]) != len(lists["answer_start"]):
        raise ValueError(f"{place} has {len(lists['text'])} answers with {len(lists['answer_start'])} starts.")
    return {**{name: str(row[name]) for name in COLUMNS}, "answers": lists}


def _from_csv(row: dict[str, str]) -> dict[str, Any]:
    if "answer_text" not in row or "answer_start" not in row:
        return row  # the missing column is reported by name
    if not row["answer_text"]:
        return {**row, "answers": {"text": [], "answer_start": []}}
    try:
        start = int(row["answer_start"] or "")
    except ValueError:
        raise ValueError(
            f"The answer_start of the question {row.get('id')!r} is {row['answer_start']!r}, not a whole number."
        ) from None
    return {**row, "answers": {"text": [row["answer_text"]], "answer_start": [start]}}


def _from_squad(articles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers", [])
                rows.append(
                    {
                        "id": str(question["id"]),
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": {
                            "text": [answer["text"] for answer in answers],
                            "answer_start": [answer["answer_start"] for answer in answers],
                        },
                    }
                )
    return rows


def make_windows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: QuestionAnsweringDataArguments, longest: int
) -> Dataset:
    """
    Cuts every context into windows that overlap, labelled with the first answer where it lies inside.

    Args:
        rows (`Dataset`): Of [`load_questions`].
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        longest (`int`): Longest input of the model, in tokens.

    Returns:
        `Dataset`: Model inputs, `start_positions`, `end_positions` (the first token where there is no answer), and for
        [`find_answers`] `question_index` and `offsets` (`[-1, -1]` outside the context).

    Raises:
        ValueError: if the tokenizer gives no offsets, or a question leaves no room for its context.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets of tokens; use a fast tokenizer.")
    length = min(arguments.max_seq_length, longest)

    def cut(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        questions = [question.lstrip() for question in batch["question"]]
        asked = max(len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"])
        room = length - asked - tokenizer.num_special_tokens_to_add(pair=True)
        if room < 1:
            raise ValueError(
                f"A question of {asked} tokens leaves no room for its context in windows of {length}; raise "
                f"max_seq_length (the model takes {longest}) or leave the question out."
            )
        encoded = tokenizer(
            questions,
            batch["context"],
            truncation="only_second",
            max_length=length,
            stride=min(arguments.doc_stride, room - 1),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        origin, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        columns = defaultdict(list, {name: list(values) for name, values in encoded.items()})
        for window, row in enumerate(origin):
            inside = [part == 1 for part in encoded.sequence_ids(window)]
            places = [pair if keep else (-1, -1) for pair, keep in zip(offsets[window], inside, strict=True)]
            start, end = _locate(batch["answers"][row], places)
            columns["start_positions"].append(start)
            columns["end_positions"].append(end)
            columns["question_index"].append(indices[row])
            columns["offsets"].append([list(pair) for pair in places])
        return dict(columns)

    windows = rows.map(
        cut,
        with_indices=True,
        batched=True,
        remove_columns=rows.column_names,
        num_proc=arguments.preprocessing_num_workers,
        desc="Cutting contexts into windows",
    )
    tokenizer.backend_tokenizer.no_truncation()  # left behind by the last call, it would be saved with the tokenizer
    return windows


def _locate(answers: dict[str, list], offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and last token of the first answer; the first token of all where it is not wholly inside the window."""
    if not answers["text"]:
        return 0, 0
    begin = answers["answer_start"][0]
    finish = begin + len(answers["text"][0])
    inside = [index for index, (start, _) in enumerate(offsets) if start >= 0]
    if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < finish:
        return 0, 0
    first = max(index for index in inside if offsets[index][0] <= begin)
    last = min(index for index in inside if offsets[index][1] >= finish)
    return first, max(first, last)


def find_answers(
    rows: Dataset,
    windows: Dataset,
    predictions: tuple[np.ndarray, np.ndarray],
    arguments: QuestionAnsweringDataArguments,
) -> list[dict[str, Any]]:
    """
    The best answer of each question over all windows of its context.

    Args:
        rows, windows (`Dataset`): Of [`load_questions`] and [`make_windows`].
        predictions (`tuple` of two `np.ndarray` of shape `(windows, tokens)`): Start and end logits.

    Returns:
        `list[dict]`: `id`, `prediction_text` and, with questions that may have none, `no_answer_probability`.

    Raises:
        ValueError: if there are not as many predictions as windows.
    """
    starts, ends = predictions
    if len(starts) != len(windows):
        raise ValueError(f"There are {len(starts)} predictions for {len(windows)} windows.")
    best: dict[int, tuple[float, int, int]] = {}
    nothing: dict[int, float] = {}
    for window, (row, offsets) in enumerate(zip(windows["question_index"], windows["offsets"], strict=True)):
        start_scores, end_scores = starts[window, : len(offsets)], ends[window, : len(offsets)]
        null = float(start_scores[0] + end_scores[0])
        nothing[row] = min(nothing.get(row, null), null)
        inside = np.array([start >= 0 for start, _ in offsets])
        best_starts = _best(start_scores, inside, arguments.n_best_size)
        best_ends = _best(end_scores, inside, arguments.n_best_size)
        lengths = best_ends[None, :] - best_starts[:, None] + 1
        allowed = (lengths >= 1) & (lengths <= arguments.max_answer_length)
        if not allowed.any():
            continue
        scores = np.where(allowed, start_scores[best_starts][:, None] + end_scores[best_ends][None, :], -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        score = float(scores[first, last])
        if row not in best or score > best[row][0]:
            best[row] = (score, offsets[best_starts[first]][0], offsets[best_ends[last]][1])
    answers = []
    for row, (name, context) in enumerate(zip(rows["id"], rows["context"], strict=True)):
        score, begin, finish = best.get(row, (-np.inf, 0, 0))
        answer = {"id": str(name), "prediction_text": context[begin:finish]}
        if arguments.version_2_with_negative:
            difference = nothing.get(row, 0.0) - score
            if difference > arguments.null_score_diff_threshold:
                answer["prediction_text"] = ""
            answer["no_answer_probability"] = float(1 / (1 + np.exp(-np.clip(difference, -500, 500))))
        answers.append(answer)
    return answers


def _best(scores: np.ndarray, inside: np.ndarray, count: int) -> np.ndarray:
    places = inside.nonzero()[0]
    return places[np.argsort(-scores[places], kind="stable")[:count]]


def question_answering_metrics(rows: Dataset, windows: Dataset, arguments: QuestionAnsweringDataArguments):
    """`compute_metrics` for a Trainer: exact match and F1 in percent, from start and end logits of the windows."""
    name = "squad_v2" if arguments.version_2_with_negative else "squad"
    metric = evaluate.load(str(METRIC_SCRIPT), name, keep_in_memory=True)
    references = [
        {"id": str(name), "answers": answers} for name, answers in zip(rows["id"], rows["answers"], strict=True)
    ]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers = find_answers(rows, windows, prediction.predictions[:2], arguments)
        return metric.compute(predictions=answers, references=references)

    return compute_metrics
