# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What the tests of the example scripts share: flags, a backbone on disk, and what is in an output folder."""

import csv
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BertTokenizer, PreTrainedConfig

from example_utils import train_wordpiece_tokenizer
from testing_utils import AUTO_CLASSES, BACKBONE_CONFIGS, randomise_


NARROW = {"width_multipliers": [0.25, 1.0], "router_layer": 1, "router_hidden_size": 8}
TRAINING = {
    "num_train_epochs": 3,
    "hardness_window": 1,
    "hardness_intervals": 0.45,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 0.002,
    "logging_steps": 1,
    "save_strategy": "epoch",
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 3,
}


def to_flags(settings: dict) -> list[str]:
    """Options as a command line; `None` leaves one out."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags += [f"--{name}", str(value)]
    return flags


def make_tokenizer(texts: list[str], vocab_size: int = 200, length: int = 64) -> BertTokenizer:
    return train_wordpiece_tokenizer(texts, vocab_size, model_max_length=length)


def save_backbone(folder, tokenizer, layout: str = "bert", head: str = "sequence-classification", **overrides) -> Path:
    """A small stock model whose every parameter is random, and its tokenizer, in a folder."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 20,
        "max_position_embeddings": 40,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config: PreTrainedConfig = BACKBONE_CONFIGS[layout](**{**sizes, **overrides})
    randomise_(AUTO_CLASSES[head].from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def write_table(path: Path, header: list[str] | None, rows: list[tuple]) -> str:
    """A .csv file, or a .tsv file, in which quotes are ordinary characters; gives its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [header, *rows] if header else rows
    if path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
    else:
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_task_folder(folder: Path, texts: list[str], task) -> Path:
    """The classic files of a `GlueTask` with a few rows of some of 84 or more texts; every class is there."""
    names = [*task.text_columns, task.label_column]
    splits = {"train": 24, "dev": 9, "test": 7}
    if task.name == "MNLI":
        splits = {"train": 24, "dev_matched": 9, "dev_mismatched": 8, "test_matched": 7, "test_mismatched": 6}
    for split, count in splits.items():
        rows, header = [], names
        for row in range(count):
            label = f"{row % 11 * 0.5:.3f}" if task.is_regression else task.file_labels[row % len(task.file_labels)]
            rows.append((*(texts[row + 30 * place] for place in range(len(task.text_columns))), label))
        if split.startswith("test"):
            header, rows = ["index", *names[:-1]], [(row, *columns[:-1]) for row, columns in enumerate(rows)]
        elif task.columns:  # no header
            header, rows = None, [("source", label, "", text) for text, label in rows]
        write_table(folder / task.name / f"{split}.tsv", header, rows)
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def saved_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def contents(folder) -> dict[str, bytes]:
    """Every file directly in a folder, but what says how long something took or when."""
    timed = ("all_results.json", "train_results.json", "training_args.bin")
    return {
        file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file() and file.name not in timed
    }
