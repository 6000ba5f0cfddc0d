#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Puts the important heads, neurons and channels of a fine-tuned classifier first, for the narrow paths of SHARCS.

The function stays the same; the checkpoint is an ordinary one, for `run_glue_sharcs.py --model_name_or_path`:

    python reorder_backbone.py --model_name_or_path runs/roberta-mnli --task_name mnli --max_train_samples 2000 \
        --output_dir runs/roberta-mnli-reordered
    python reorder_backbone.py --model_name_or_path runs/reviews --train_file reviews.csv --reorder heads neurons \
        --output_dir runs/reviews-reordered

Importance comes from labelled training rows. With --max_train_samples they are drawn at random, by --seed.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
)
from transformers.utils import is_matplotlib_available, logging


# The helpers are here and one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from example_utils import (  # noqa: E402
    parse_arguments,
    require_new_folder,
    run_script,
    show_progress_messages,
    write_folder_atomically,
)
from glue_utils import DataArguments, get_label_names, load_task_datasets, preprocess  # noqa: E402
from modeling_sharcs import Importance, compute_importance, reorder_backbone  # noqa: E402


logger = logging.get_logger(__name__)

PARTS = ("heads", "neurons", "channels")


@dataclass
class ReorderingArguments:
    """The model, what to re-order, and where to put the result."""

    model_name_or_path: str = field(
        metadata={
            "help": "A fine-tuned classifier or regressor: BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT or ELECTRA, a "
            "Hub name or a folder."
        }
    )
    output_dir: str = field(metadata={"help": "The folder to write; it must not hold anything yet."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the model's own."})
    reorder: list[str] = field(
        default_factory=lambda: list(PARTS),
        metadata={
            "help": "What to re-order: attention heads, feed-forward neurons, channels of the residual stream.",
            "choices": PARTS,
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Rows at a time; the result does not depend on it."})
    seed: int = field(default=42, metadata={"help": "Decides which rows --max_train_samples draws."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU even if there is one."})

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}.")
        require_new_folder(self.output_dir)


def load_model(name: str) -> tuple[PreTrainedModel, torch.dtype]:
    """
    The fine-tuned model in float32, since first-order scores of half-precision gradients round to zero, and the type
    that it was stored in.

    Raises:
        ValueError: if weights are missing, as those of a head that was never trained.
    """
    model, loading = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(
            f"{name!r} has no weights for {', '.join(missing)}, so that its scores mean nothing yet; fine-tune it on "
            "the task first, for example with run_glue.py."
        )
    dtype = model.dtype
    return model.float(), dtype


def load_rows(arguments: DataArguments, tokenizer, config, seed: int):
    """
    Tokenised training rows with labels in the model's order, the longest first: batches hold little padding, and what
    is too much for the memory is so at once.

    Raises:
        ValueError: if there are no training rows, or the model knows other labels.
    """
    wanted = arguments.max_train_samples
    # Only the first rows would be one class where a file is sorted by label.
    raw = load_task_datasets(replace(arguments, max_train_samples=None), seed=seed)
    if "train" not in raw:
        raise ValueError(
            f"The data has the splits {list(raw)}, but importance is learned from labels of training rows; give a "
            "train_file."
        )
    if wanted is not None and wanted < len(raw["train"]):
        raw["train"] = raw["train"].shuffle(seed=seed).select(range(wanted))
    raw = type(raw)(train=raw["train"])
    get_label_names(raw)  # Says so where there are none.
    rows = preprocess(raw, tokenizer, arguments, config=config)["train"]
    lengths = [len(ids) for ids in rows["input_ids"]]
    return rows.select(sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)))


@torch.no_grad()
def largest_difference(first: PreTrainedModel, second: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """Between the scores of two models in evaluation mode."""
    inputs = {name: values.to(first.device) for name, values in batch.items() if name != "labels"}
    return float((first(**inputs).logits - second(**inputs).logits).abs().max())


def plot_importance(importance: Importance, path: Path) -> None:
    """The importances of every layer, largest first, as shares of the largest."""
    from matplotlib.figure import Figure  # optional; without pyplot no display is looked for

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for part, axes in zip(PARTS, figure.subplots(1, 3, sharey=True), strict=True):
        rows = torch.atleast_2d(getattr(importance, part)).sort(dim=-1, descending=True).values
        for layer, row in enumerate(rows):
            shares = torch.linspace(0, 100, len(row))
            label = f"layer {layer + 1}" if len(rows) > 1 and layer in (0, len(rows) - 1) else None
            color = (0.1, 0.3 + 0.5 * layer / max(len(rows) - 1, 1), 0.6)
            axes.plot(shares, row / row.max().clamp(min=1e-30), label=label, color=color, linewidth=1)
        axes.set(title=part, xlabel="rank, % of all", ylim=(0, None))
        if len(rows) > 1:
            axes.legend(loc="best")
    figure.axes[0].set_ylabel("importance, largest = 1")
    figure.savefig(path, dpi=120)


def write_folder(
    output: Path, model: PreTrainedModel, tokenizer, importance: Importance, record: dict[str, Any]
) -> None:
    with write_folder_atomically(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        importance.save(folder / "importance.safetensors")
        if is_matplotlib_available():
            plot_importance(importance, folder / "importance.png")
        else:
            logger.warning(
                "matplotlib is not installed, so there is no plot; pip install -c constraints.txt -e '.[plots]'."
            )
        (folder / "reordering.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options, data = parse_arguments(
        (ReorderingArguments, DataArguments), arguments, description=__doc__.split("\n")[1]
    )
    show_progress_messages(logger)
    model, dtype = load_model(options.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer_name or options.model_name_or_path)
    rows = load_rows(data, tokenizer, model.config, options.seed)
    device = "cuda" if torch.cuda.is_available() and not options.use_cpu else "cpu"
    model.to(device)
    loader = DataLoader(rows, batch_size=options.batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    logger.info(f"{type(model).__name__}: importance from {len(rows):,} training rows on {device}.")
    importance = compute_importance(model, tqdm(loader, desc="importance", unit=" batches", disable=None))
    reordered = reorder_backbone(model, importance, **{part: part in options.reorder for part in PARTS})
    difference = largest_difference(model.eval(), reordered.eval(), next(iter(loader)))
    record = {
        "model": options.model_name_or_path,
        "reordered": [part for part in PARTS if part in options.reorder],
        "rows": len(rows),
        "seed": options.seed,
        "data": {name: value for name, value in vars(data).items() if value is not None},
        "largest_difference_of_logits": difference,
    }
    write_folder(Path(options.output_dir), reordered.to("cpu", dtype), tokenizer, importance, record)
    logger.info(
        f"Re-ordered {', '.join(record['reordered'])}: {options.output_dir}; logits differ by {difference:.1e}."
    )
    return record


if __name__ == "__main__":
    run_script(main)
