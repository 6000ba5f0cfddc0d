# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Run by test_readme.py in an empty folder, in a process of its own whose Hub is the test's: executes the Python blocks
of the README in their order, in one namespace. Folders with the names of the models on the Hub stand in for them.
"""

import importlib.util
import json
import sys
from pathlib import Path

from datasets import Dataset


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "language-modeling"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "export"))

from prepare_pretraining_data import main as prepare_pretraining_data  # noqa: E402
from script_utils import make_tokenizer, save_backbone  # noqa: E402
from synthetic_data import generate_documents  # noqa: E402


# Sizes of the README, and what they are here: the backbone's 768 channels are 48, its 110 million parameters 0.3.
SMALLER = {
    "hidden_sizes=[360] * 12": "hidden_sizes=[24] * 12",
    "min_parameters=55_000_000, max_parameters=60_000_000": "min_parameters=100_000, max_parameters=130_000",
    "max_steps=125_000": "max_steps=2",
    "max_parameters=60_000_000": "max_parameters=130_000",
    'output_dir="runs/search"': 'output_dir="runs/search", population_size=4, parent_size=2, num_rounds=1',
    "num_train_epochs=10, hardness_window=3": "num_train_epochs=2, hardness_window=1",
    "range(2_000)": "range(12)",
}
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 192,
    "max_position_embeddings": 132,
}


def make_glue(folder: Path, documents: list[str]) -> None:
    """A folder that `load_dataset` reads as the data set of that name on the Hub, with two tasks of a few rows."""
    sentences = [line for document in documents for line in document.split("\n") if line]
    folder.mkdir(parents=True)
    header = ["---", "configs:"]
    for task, columns in (("sst2", ["sentence"]), ("mrpc", ["sentence1", "sentence2"])):
        header += [f"  - config_name: {task}", "    data_files:"]
        for split, start, stop in (("train", 0, 16), ("validation", 16, 24)):
            rows = {column: sentences[start + place : stop + place] for place, column in enumerate(columns)}
            rows["label"] = [index % 2 for index in range(stop - start)]
            Dataset.from_dict(rows).to_json(folder / f"{task}_{split}.jsonl")
            header += [f"      - split: {split}", f"        path: {task}_{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]), encoding="utf-8")


def make_files() -> dict[str, object]:
    """Models and data under the names that the blocks use; what the blocks expect to be there already."""
    documents = ["\n".join(document) for document in generate_documents(8, seed=1)]
    Path("text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    tokenizer = make_tokenizer(documents, length=128)
    save_backbone("google-bert/bert-base-uncased", tokenizer, "bert", "masked-lm", **SIZES)
    save_backbone("FacebookAI/roberta-base", tokenizer, "roberta", "base", **SIZES)
    options = {"train_file": "text.txt", "tokenizer_name": "google-bert/bert-base-uncased", "max_seq_length": 32}
    flags = [f"--{name}={value}" for name, value in {**options, "output_dir": "data/books"}.items()]
    prepare_pretraining_data([*flags, "--validation_split_percentage=30", "--document_unit=line"])
    make_glue(Path("nyu-mll/glue"), documents)
    return {"texts": [document.split("\n")[0] for document in documents[:3]]}


def export(namespace: dict[str, object]) -> None:
    """The folder that the block on ONNX opens; the README has the command."""
    from export_onnx import main as export_onnx

    for saved in ("model", "tokenizer"):
        namespace[saved].save_pretrained("runs/sharcs-sst2")
    export_onnx(["--model_name_or_path", "runs/sharcs-sst2", "--output_dir", "onnx/sharcs-sst2"])


def main(blocks: str, report: str) -> None:
    namespace = make_files()
    left_out, unused = [], set(SMALLER)
    for number, block in enumerate(json.loads(Path(blocks).read_text(encoding="utf-8"))):
        if "routed_runner" in block:
            if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
                left_out.append(block)
                continue
            export(namespace)
        for found, smaller in SMALLER.items():
            if found in block:
                block = block.replace(found, smaller)
                unused.discard(found)
        exec(compile(block, f"README block {number}", "exec"), namespace)
    Path(report).write_text(json.dumps({"left_out": left_out, "unused": sorted(unused)}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
