# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""Preparing rows for a model: labels in its order, tokens, and the collator that pads them."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from datasets.fingerprint import Hasher
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.utils import logging

from glue_arguments import TASKS, TEXT_COLUMNS, DataArguments
from glue_data import FORMAT_VERSION, get_label_names


logger = logging.get_logger(__name__)


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


def load_tokenizer(name: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """
    Loads the tokenizer of a model.

    Args:
        name (`str`): A Hub name or a folder.
        vocab_size (`int`): How many entries the model's embeddings have.

    Raises:
        ValueError: There is none, or it has more entries than the model.
    """
    advice = (
        "Save the one that the model was pre-trained with there, AutoTokenizer.from_pretrained(…).save_pretrained(…), "
        "or, for the model to be trained, name it with tokenizer_name."
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no tokenizer in {name!r}. {advice}") from error
    # Of some families, a folder without files gives a tokenizer that knows nothing.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"There is no tokenizer in {name!r}, or one without words. {advice}")
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer in {name!r} has {len(tokenizer):,} entries, the model only {vocab_size:,}: it is another "
            f"model's. {advice}"
        )
    return tokenizer


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
    texts = [rows[name] for name in TEXT_COLUMNS if name in rows]
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


def make_collator(tokenizer: PreTrainedTokenizerBase, data: DataArguments, half_precision: bool):
    """Pads each batch to its longest row, unless the rows are padded already."""
    if data.pad_to_max_length:
        return default_data_collator
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if half_precision else None)
