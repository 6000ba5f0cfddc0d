#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
What routing of experts, and being a supernet at all, cost; what an extracted subnet saves.

    python benchmark_mos.py --num_threads 1 --output_file mos.json
    python benchmark_mos.py --hidden_size 192 --num_hidden_layers 4 --num_attention_heads 4 --intermediate_size 768 \\
        --vocab_size 4000 --step_shapes 4x64 --inference_batch_sizes 1 8

All contestants take turns in every round; a ratio is the median over rounds of the ratio within a round.

    --parts training    A step of SupernetTrainer with its optimizer (the largest, the smallest, one random
                        architecture) for each routing against none, and its FLOP/s (counted, useful ones only) against
                        those of a step of transformers' Trainer with a stock BertForMaskedLM. Useful is what losses
                        need (`flop_rate_over_plain`); `whole_layers_flop_rate_over_plain` counts the whole last layer,
                        though training leaves out its end for tokens without a label. `useful_share` is that of the
                        matrix products that steps without routing do: at few tokens, two bottlenecks follow one
                        another where a subnet has their product. Choosing the architectures and all that a change of
                        them needs, against the step of the last routing.
    --parts inference   An extracted subnet against the supernet sliced at its architecture, and against the same
                        subnet with its bottlenecks not merged, in time and in FLOPs. Its extraction against a forward
                        pass of it.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMaskedLM, PreTrainedModel, Trainer
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
    make_masked_batch,
    make_step,
    make_trainer,
    plot_speedups,
    report,
    spread,
    time_in_turns,
    totals,
)
from example_utils import parse_arguments, run_script, show_progress_messages  # noqa: E402
from modeling_mos import Architecture, MosForMaskedLM  # noqa: E402
from trainers import SupernetTrainer  # noqa: E402


logger = logging.get_logger(__name__)

PARTS = ("training", "inference")


@dataclass
class MosBenchmarkArguments:
    """What to measure, and on what shapes."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Any of {', '.join(PARTS)}."})
    routings: list[str] = field(
        default_factory=lambda: ["layer", "neuron"], metadata={"help": "Routings to compare with 'none'."}
    )
    num_experts: int = field(default=2, metadata={"help": "Experts a layer where there is routing."})
    search_space: str = field(default="bottleneck", metadata={"help": "Preset of the search space."})
    step_shapes: list[str] = field(
        default_factory=lambda: ["4x128", "16x128"], metadata={"help": "Sequences x tokens of training steps."}
    )
    inference_batch_sizes: list[int] = field(
        default_factory=lambda: [1, 32], metadata={"help": "Sequences a call of subnets."}
    )
    sequence_length: int = field(default=128, metadata={"help": "Tokens of a sequence of subnets."})
    max_parameters: int | None = field(
        default=None,
        metadata={"help": "At most so many parameters of the subnet, with its head; any number by default."},
    )
    torch_compile: bool = field(
        default=False,
        metadata={
            "help": "Train with torch.compile: the layers of supernets, all of the plain model. New sizes compile "
            "in rounds that should not count: give more --warmup_rounds."
        },
    )

    def __post_init__(self):
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"--parts takes any of {', '.join(PARTS)}, got {unknown[0]!r}.")
        for shape in self.step_shapes:
            parse_shape(shape)
        check_positive(
            num_experts=self.num_experts,
            inference_batch_sizes=self.inference_batch_sizes,
            sequence_length=self.sequence_length,
        )
        check_tokens("sequence_length", self.sequence_length)
        if self.max_parameters is not None:
            check_positive(max_parameters=self.max_parameters)
            if "inference" not in self.parts:
                raise ValueError(
                    "--max_parameters is of the subnet that --parts inference takes out; ask for that part."
                )


def parse_shape(text: str) -> tuple[int, int]:
    """`"4x128"` as (sequences, tokens)."""
    sizes = text.split("x")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ValueError(f"--step_shapes takes SEQUENCESxTOKENS, such as 4x128, got {text!r}.")
    check_tokens("step_shapes", int(sizes[1]))
    return int(sizes[0]), int(sizes[1])


# ---- counted FLOPs --------------------------------------------------------------------------------------------------


def count_supernet_step(
    supernet: MosForMaskedLM, architectures: Iterable[Architecture], labels: torch.Tensor, whole_layers: bool = False
) -> float:
    """
    Useful FLOPs of a step: what its losses need of the subnets. Only labelled tokens have vocabulary scores, and,
    unless layers are counted as a whole, what follows the last one's attention.
    """
    sequences, tokens = labels.shape
    share = float((labels != -100).float().mean())
    stream, forward = supernet.config.hidden_size, 0.0
    for architecture in architectures:
        encoder = supernet.base_model.count_flops(architecture, tokens)
        head = supernet.count_flops(architecture, tokens) - encoder
        width, intermediate, _ = architecture.layers[-1]
        leaving = width * stream if supernet.search_space.bottleneck else 0
        end = 0 if whole_layers else 2 * tokens * (width * width + 2 * width * intermediate + leaving)
        forward += sequences * (encoder - end + share * (end + head))
    return FORWARD_PASSES_A_STEP * forward


def count_plain_step(sizes: ModelSizes, shape: tuple[int, int]) -> int:
    """FLOPs of a step of the stock model, counted by torch on tensors without data."""
    with torch.device("meta"):
        model = BertForMaskedLM(sizes.config(attn_implementation="eager"))
        ids = torch.zeros(shape, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    return FORWARD_PASSES_A_STEP * counter.get_total_flops()


def count_forward(model: PreTrainedModel, **inputs: Any) -> int:
    """FLOPs of all matrix products that a forward pass does, whoever needs them."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the counter does not know the fused kernel for CPUs
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        model(**inputs)
    model.set_attn_implementation(implementation)
    return counter.get_total_flops()


def over_sizes(results: dict[str, Any]) -> dict[str, dict[str, dict[int, tuple[float, float, float]]]]:
    """What `plot_speedups` draws: training steps and subnets, over sequences a batch."""
    panels: dict[str, dict[str, dict[int, tuple[float, float, float]]]] = {}
    for shape, found in results.get("training", {}).items():
        sequences, tokens = parse_shape(shape)
        curves = panels.setdefault(f"Useful FLOP/s of steps over plain BERT's\n{tokens} tokens a sequence", {})
        for routing, measured in found.items():
            if "flop_rate_over_plain" in measured:
                rate = measured["flop_rate_over_plain"]
                points = curves.setdefault(f"routing {routing}", {})
                points[sequences] = (rate["median"], rate["lowest"], rate["highest"])
    others = {"the supernet": "time_over_supernet", "unmerged bottlenecks": "time_over_unmerged"}
    for size, found in results.get("inference", {}).items():
        curves = panels.setdefault("Extracted subnets", {})
        for other, key in others.items():
            time = found[key]
            curves.setdefault(f"over {other}", {})[int(size)] = tuple(
                1 / time[name] for name in ("median", "highest", "lowest")
            )
    return panels


# ---- parts ----------------------------------------------------------------------------------------------------------


def make_switch(trainer: SupernetTrainer) -> Callable[[dict], None]:
    """What a step does for its architectures beside running them: draws, checks, counts and encodes them."""

    def switch(batch: dict) -> None:
        for architecture in trainer.architectures_of_step(trainer.state.global_step).values():
            trainer.search_space.validate(architecture)
            trainer.model.base_model.encode(architecture)
        trainer.floating_point_ops(batch)

    return switch


def benchmark_training(
    trainers: dict[str, Trainer], shape: tuple[int, int], timing: Timing, sizes: ModelSizes, device: torch.device
) -> dict[str, Any]:
    """Steps of all trainers: `"plain"`, the stock model, `"none"`, and the other routings."""
    batch = make_masked_batch(shape, sizes.vocab_size, device)
    for trainer in trainers.values():
        trainer.state.global_step = 0  # the same random architectures for all
    contestants = {name: make_step(trainer) for name, trainer in trainers.items()}
    *_, last = trainers
    contestants["switching"] = make_switch(trainers[last])
    times = time_in_turns(contestants, [batch], timing, device)
    seconds = {name: totals(rounds) for name, rounds in times.items()}
    plain_flops = count_plain_step(sizes, shape)
    plain_rates = [plain_flops / taken for taken in seconds["plain"]]
    results = {"plain": {"seconds": spread(seconds["plain"]), "flops_per_second": spread(plain_rates)}}
    steps = [
        trainers[last].architectures_of_step(step).values()
        for step in range(timing.warmup_rounds, timing.warmup_rounds + timing.rounds)
    ]
    supernet = trainers["none"].model.train()
    useful = sum(count_supernet_step(supernet, architectures, batch["labels"]) for architectures in steps)
    done = Counter(architecture for architectures in steps for architecture in architectures)
    forward = sum(times * count_forward(supernet, **batch, architecture=each) for each, times in done.items())
    for name, trainer in trainers.items():
        if name == "plain":
            continue
        rates, whole_rates = (
            [
                count_supernet_step(trainer.model, architectures, batch["labels"], whole) / taken
                for architectures, taken in zip(steps, seconds[name], strict=True)
            ]
            for whole in (False, True)
        )
        results[name] = {
            "seconds": spread(seconds[name]),
            "flops_per_second": spread(rates),
            "time_over_none": compare(seconds[name], seconds["none"]),
            "flop_rate_over_plain": compare(rates, plain_rates),
            "whole_layers_flop_rate_over_plain": compare(whole_rates, plain_rates),
        }
    results["switching"] = {
        "seconds": spread(seconds["switching"]),
        "share_of_step": compare(seconds["switching"], seconds[last]),
    }
    results["products"] = {"useful_share": useful / (FORWARD_PASSES_A_STEP * forward)}
    return results


@torch.no_grad()
def unmerge_bottlenecks(subnet: PreTrainedModel, supernet: PreTrainedModel, architecture: Architecture) -> None:
    """Gives an extracted encoder the supernet's two bottlenecks between layers again, instead of their product."""
    sizes = architecture.hidden_sizes
    for index in range(1, len(sizes)):
        before, after = supernet.layers[index - 1].output_bottleneck, supernet.layers[index].input_bottleneck
        leave = nn.Linear(sizes[index - 1], before.out_features, dtype=subnet.dtype, device=subnet.device)
        enter = nn.Linear(after.in_features, sizes[index], dtype=subnet.dtype, device=subnet.device)
        leave.weight.copy_(before.weight[:, : sizes[index - 1]])
        leave.bias.copy_(before.bias)
        enter.weight.copy_(after.weight[: sizes[index]])
        enter.bias.copy_(after.bias[: sizes[index]])
        subnet.layers[index].projection = nn.Sequential(leave, enter)


@torch.no_grad()
def benchmark_inference(
    supernet: PreTrainedModel, architecture: Architecture, shape: tuple[int, int], timing: Timing
) -> dict[str, Any]:
    """Forward passes of one subnet in three forms, and its extraction; encoders without a head."""
    subnet, unmerged = (supernet.extract_subnet(architecture) for _ in range(2))
    unmerge_bottlenecks(unmerged, supernet, architecture)
    ids = torch.randint(1, supernet.config.vocab_size, shape, device=supernet.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    contestants = {
        "subnet": lambda batch: subnet(**batch),
        "supernet": lambda batch: supernet(**batch, architecture=architecture),
        "unmerged": lambda batch: unmerged(**batch),
        "extraction": lambda batch: supernet.extract_subnet(architecture),
    }
    times = time_in_turns(contestants, [batch], timing, supernet.device)
    seconds = {name: totals(rounds) for name, rounds in times.items()}
    flops = count_forward(subnet, **batch)
    return {
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "time_over_supernet": compare(seconds["subnet"], seconds["supernet"]),
        "flops_over_supernet": flops / count_forward(supernet, **batch, architecture=architecture),
        "time_over_unmerged": compare(seconds["subnet"], seconds["unmerged"]),
        "flops_over_unmerged": flops / count_forward(unmerged, **batch),
        "extraction_over_forward": compare(seconds["extraction"], seconds["subnet"]),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options, sizes, timing = parse_arguments(
        (MosBenchmarkArguments, ModelSizes, Timing), arguments, description=__doc__.split("\n")[1]
    )
    show_progress_messages(logger)
    device = timing.prepare()
    torch.manual_seed(sizes.seed)
    backbone = BertForMaskedLM(sizes.config()).to(device)

    def make_supernet(routing: str) -> MosForMaskedLM:
        return MosForMaskedLM.from_backbone(
            backbone,
            routing=routing,
            num_experts=1 if routing == "none" else options.num_experts,
            search_space=options.search_space,
            sparse_prediction=True,  # vocabulary scores of labelled tokens only, as run_mlm_mos.py trains
        ).to(device)

    results: dict[str, Any] = {**machine_facts(device), **timing.facts(), "sizes": vars(sizes)}
    results["options"] = vars(options)
    if "inference" in options.parts:  # before the steps: a limit that no subnet meets should not cost them
        costs = make_supernet("none")
        architecture = costs.sample_architecture(seed=sizes.seed, max_parameters=options.max_parameters)
        results |= {"architecture": architecture.to_dict(), "parameters": costs.count_parameters(architecture)}
        del costs
    if "training" in options.parts:
        results["training"] = {}
        with tempfile.TemporaryDirectory() as folder:
            compiled = {"torch_compile": options.torch_compile}
            trainers = {"plain": make_trainer(backbone, folder, device, **compiled)}
            for routing in ("none", *options.routings):
                trainers[routing] = make_trainer(make_supernet(routing), folder, device, **compiled)
            for shape in options.step_shapes:
                logger.info(f"Training steps of {shape} tokens.")
                results["training"][shape] = benchmark_training(trainers, parse_shape(shape), timing, sizes, device)
    if "inference" in options.parts:
        results["inference"] = {}
        supernet = make_supernet(options.routings[-1])
        for batch_size in options.inference_batch_sizes:
            logger.info(f"Subnets on {batch_size} sequences.")
            results["inference"][str(batch_size)] = benchmark_inference(
                supernet.base_model.eval(), architecture, (batch_size, options.sequence_length), timing
            )
    plot_speedups(over_sizes(results), timing.output_file)
    report(results, timing.output_file)
    return results


if __name__ == "__main__":
    run_script(main)
