#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
How close a routed encoder (SHARCS) comes to what its FLOPs promise, against the plain model that it is made of.

    python benchmark_routing.py --num_threads 1 --output_file routing.json
    python benchmark_routing.py --lengths 25 --batch_sizes 1 8 --rows 16 --hidden_size 192 --num_hidden_layers 4 \\
        --num_attention_heads 4 --intermediate_size 768 --vocab_size 4000 --router_layer 1

Weights and tokens are random; rows have the lengths of real data (token_lengths.json holds how many tokens
bert-base-uncased's tokenizer makes of the development rows of two GLUE tasks), or all the same. All contestants take
turns in every round; a ratio is the median over rounds of the ratio within a round. For a trained model and texts of
your own see benchmark_sharcs.py.

    --parts inference   Routed batches against the plain model on the same batches, at a price at which the wanted
                        share of rows goes narrow. `of_limit` is the speed-up as a share of what FLOPs promise at the
                        rows' own lengths. Paths are packed (`pack_paths`), and `_unpacked` not. `speedup_widest`
                        is what packing alone gains, all rows on the widest path.
    --parts training    Epochs of SharcsTrainer against epochs of the plain model on the same rows. `over_flops` is the
                        ratio of their times over that of their counted FLOPs.
"""

import copy
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    BertForSequenceClassification,
    DefaultDataCollator,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging


# Helpers are beside this file and one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from benchmark_utils import (  # noqa: E402
    FORWARD_PASSES_A_STEP,
    ModelSizes,
    Timing,
    check_positive,
    check_tokens,
    compare,
    machine_facts,
    make_batches,
    plot_speedups,
    report,
    spread,
    synchronize,
    time_in_turns,
    totals,
)
from example_utils import parse_arguments, run_script, show_progress_messages  # noqa: E402
from modeling_sharcs import SharcsForSequenceClassification  # noqa: E402
from trainers import SharcsTrainer, SharcsTrainingArguments  # noqa: E402


logger = logging.get_logger(__name__)

PARTS = ("inference", "training")
LENGTHS_FILE = Path(__file__).resolve().parent / "token_lengths.json"


@dataclass
class RoutingBenchmarkArguments:
    """What to measure, and on what rows."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Any of {', '.join(PARTS)}."})
    lengths: list[str] = field(
        default_factory=lambda: ["sst2", "mrpc"],
        metadata={"help": "Distributions of lengths, by their names in token_lengths.json, or numbers of tokens."},
    )
    rows: int = field(default=64, metadata={"help": "Rows of inference; each batch size cuts them its own way."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32, 64], metadata={"help": "Rows a call."})
    width: float = field(default=0.25, metadata={"help": "The narrow width."})
    router_layer: int = field(default=3, metadata={"help": "Layers that run at full width, before the router."})
    narrow_share: float = field(default=0.71, metadata={"help": "Share of the rows that the router sends narrow."})
    training_rows: int = field(default=32, metadata={"help": "Rows of a training epoch, of the first lengths."})
    training_batch_size: int = field(default=8, metadata={"help": "Rows of a training step."})

    def __post_init__(self):
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"--parts takes any of {', '.join(PARTS)}, got {unknown[0]!r}.")
        if not 0 < self.narrow_share < 1:
            raise ValueError(f"--narrow_share must lie in (0, 1), got {self.narrow_share}.")
        check_positive(
            rows=self.rows,
            batch_sizes=self.batch_sizes,
            training_rows=self.training_rows,
            training_batch_size=self.training_batch_size,
        )
        if max(self.batch_sizes) > self.rows:
            raise ValueError(f"--batch_sizes must be at most --rows, {self.rows}, got {max(self.batch_sizes)}.")
        if "training" in self.parts and self.training_batch_size > self.training_rows:
            raise ValueError(
                f"--training_batch_size must be at most --training_rows, {self.training_rows}, got "
                f"{self.training_batch_size}."
            )
        for lengths in self.lengths:
            draw_rows(lengths, count=1, vocab_size=2, seed=0)


def draw_rows(lengths: str, count: int, vocab_size: int, seed: int) -> list[list[int]]:
    """
    Rows of random tokens whose lengths follow a distribution.

    Raises:
        ValueError: if `lengths` is neither a number of tokens that models take nor the name of a known distribution.
    """
    generator = random.Random(seed)
    if lengths.isdigit():
        check_tokens("lengths", int(lengths))
        drawn = [int(lengths)] * count
    else:
        known = json.loads(LENGTHS_FILE.read_text(encoding="utf-8"))
        if lengths not in known:
            raise ValueError(f"--lengths takes numbers of tokens or any of {sorted(known)}, got {lengths!r}.")
        drawn = generator.choices([int(length) for length in known[lengths]], list(known[lengths].values()), k=count)
    return [[generator.randrange(1, vocab_size) for _ in range(length)] for length in drawn]


@torch.no_grad()
def benchmark_inference(
    plain: PreTrainedModel,
    routed: SharcsForSequenceClassification,
    rows: Sequence[Sequence[int]],
    options: RoutingBenchmarkArguments,
    timing: Timing,
) -> dict[str, Any]:
    """The same batches through the plain model and the routed one, its paths packed or not."""
    plain.eval(), routed.eval()
    packed, widest = copy.deepcopy(routed).pack_paths(), routed.config.width_multipliers[-1]
    table = routed.calibrate(make_batches(rows, 32, None, 0, routed.device))["table"]
    setting = min(table, key=lambda entry: abs(entry["rows_per_width"][0] - options.narrow_share))
    contestants = {
        "plain": lambda batch: plain(**batch),
        "routed": lambda batch: routed(**batch, router_price=setting["price"]),
        "packed": lambda batch: packed(**batch, router_price=setting["price"]),
        "widest": lambda batch: packed(**batch, width=widest),
    }
    results: dict[str, Any] = {
        "mean_length": sum(map(len, rows)) / len(rows),
        "narrow_share": setting["rows_per_width"][0],
        "flops_share": setting["share"],
        "batch_sizes": {},
    }
    for size in options.batch_sizes:
        batches = make_batches(rows, size, None, 0, routed.device)
        times = time_in_turns(contestants, batches, timing, routed.device)
        seconds = {name: totals(rounds) for name, rounds in times.items()}
        results["batch_sizes"][str(size)] = {
            "seconds": {name: spread(taken) for name, taken in seconds.items()},
            "speedup": compare(seconds["plain"], seconds["packed"]),
            "of_limit": compare([taken * setting["share"] for taken in seconds["plain"]], seconds["packed"]),
            "speedup_widest": compare(seconds["plain"], seconds["widest"]),
            "speedup_unpacked": compare(seconds["plain"], seconds["routed"]),
            "of_limit_unpacked": compare([taken * setting["share"] for taken in seconds["plain"]], seconds["routed"]),
        }
    return results


def count_training_row(routed: SharcsForSequenceClassification, tokens: int, width: float) -> int:
    """FLOPs of a row of a training step, which runs what follows the last layer's attention for the first token."""
    size, heads, intermediate = routed.config.width_sizes(routed.width_index(width))
    end = 2 * (heads * routed.config.head_dim * size + 2 * size * intermediate)
    return FORWARD_PASSES_A_STEP * (routed.count_flops(tokens, width) - (tokens - 1) * end)


class TimeEpochs(TrainerCallback):
    """Notes what each epoch of a training takes."""

    def __init__(self, timing: Timing, device: torch.device):
        self.timing, self.device = timing, device
        self.seconds: list[float] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._start = self.now()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seconds.append(self.now() - self._start)

    def now(self) -> float:
        synchronize(self.device)
        return self.timing.seconds()


class TimePlainEpochs(TrainerCallback):
    """Before each epoch of a routed training, trains the plain model for one, and notes what either takes."""

    def __init__(self, plain: Trainer, clock: TimeEpochs):
        self.plain, self.clock = plain, clock
        self.seconds: dict[str, list[float]] = {"plain": clock.seconds, "routed": []}
        self.flops: list[float] = []
        self.trainer: SharcsTrainer | None = None
        self._started: tuple[float, float] | None = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        # An epoch lasts until the next one begins: scoring the rows and planning the next epoch belong to it.
        self._finish_epoch(state)
        self.plain.train()
        self._started = self.clock.now(), self._counted(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._finish_epoch(state)

    def _finish_epoch(self, state) -> None:
        if self._started is not None:
            start, counted = self._started
            self.seconds["routed"].append(self.clock.now() - start)
            self.flops.append(self._counted(state) - counted)

    def _counted(self, state) -> float:
        return state.total_flos + float(self.trainer.current_flos)


def benchmark_training(
    plain: PreTrainedModel,
    routed: SharcsForSequenceClassification,
    rows: Sequence[Sequence[int]],
    options: RoutingBenchmarkArguments,
    timing: Timing,
) -> dict[str, Any]:
    """Epochs in turns; those before the router has targets, which run at full width, are not counted."""
    device, window = routed.device, 1
    longest = max(map(len, rows))
    batch = make_batches(rows, len(rows), longest, 0, device)[0]
    # Padded to one length, so that both models have the same FLOPs to do for the same rows in batches of any order.
    columns = {name: values.tolist() for name, values in batch.items()}
    dataset = Dataset.from_dict({**columns, "labels": [index % 2 for index in range(len(rows))]})
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "per_device_train_batch_size": options.training_batch_size,
            "learning_rate": 1e-6,
            "max_grad_norm": 0.0,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": device.type == "cpu",
            "dataloader_pin_memory": device.type != "cpu",
            "seed": 0,
        }
        collator = DefaultDataCollator()
        clock = TimeEpochs(timing, device)
        plain_trainer = Trainer(
            plain,
            TrainingArguments(folder, num_train_epochs=1, **common),
            collator,
            train_dataset=dataset,
            callbacks=[clock],
        )
        callback = TimePlainEpochs(plain_trainer, clock)
        arguments = SharcsTrainingArguments(
            folder,
            num_train_epochs=window + timing.warmup_rounds + timing.rounds,
            hardness_window=window,
            hardness_intervals=0.5,
            **common,
        )
        trainer = SharcsTrainer(routed, arguments, data_collator=collator, train_dataset=dataset, callbacks=[callback])
        for each in (plain_trainer, trainer):
            each.remove_callback(PrinterCallback)  # standard output is for the results
        callback.trainer = trainer

        def count_step(inputs: dict[str, Any]) -> int:
            indices = inputs["routing"]["width_index"].tolist()
            return sum(count_training_row(routed, longest, trainer.widths[index]) for index in indices)

        trainer.floating_point_ops = count_step  # its own counts whole layers
        trainer.train()
    seconds = {name: taken[-timing.rounds :] for name, taken in callback.seconds.items()}
    plain_flops = FORWARD_PASSES_A_STEP * len(rows) * routed.count_flops(longest, width=1.0)
    shares = [counted / plain_flops for counted in callback.flops[-timing.rounds :]]
    return {
        "tokens": longest,
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "flops_share": spread(shares),
        "time_over_plain": compare(seconds["routed"], seconds["plain"]),
        "over_flops": compare(
            seconds["routed"], [share * taken for share, taken in zip(shares, seconds["plain"], strict=True)]
        ),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options, sizes, timing = parse_arguments(
        (RoutingBenchmarkArguments, ModelSizes, Timing), arguments, description=__doc__.split("\n")[1]
    )
    show_progress_messages(logger)
    device = timing.prepare()
    torch.manual_seed(sizes.seed)
    plain = BertForSequenceClassification(sizes.config(num_labels=2)).to(device)
    routed = SharcsForSequenceClassification.from_backbone(
        plain, width_multipliers=[options.width, 1.0], router_layer=options.router_layer
    ).to(device)
    results: dict[str, Any] = {**machine_facts(device), **timing.facts(), "sizes": vars(sizes)}
    results["options"] = vars(options)
    if "inference" in options.parts:
        results["inference"] = {}
        for lengths in options.lengths:
            logger.info(f"Inference on rows of the lengths {lengths}.")
            rows = draw_rows(lengths, options.rows, sizes.vocab_size, sizes.seed)
            results["inference"][lengths] = benchmark_inference(plain, routed, rows, options, timing)
        plot_speedups(
            {
                f"{lengths} lengths; FLOPs promise {1 / found['flops_share']:.2f}": {
                    name: {
                        int(size): tuple(entry[key][bound] for bound in ("median", "lowest", "highest"))
                        for size, entry in found["batch_sizes"].items()
                    }
                    for name, key in (("packed", "speedup"), ("not packed", "speedup_unpacked"))
                }
                for lengths, found in results["inference"].items()
            },
            timing.output_file,
        )
    if "training" in options.parts:
        logger.info("Training epochs.")
        rows = draw_rows(options.lengths[0], options.training_rows, sizes.vocab_size, sizes.seed)
        results["training"] = benchmark_training(plain, routed, rows, options, timing)
    report(results, timing.output_file)
    return results


if __name__ == "__main__":
    run_script(main)
