# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""How long subnets take on the device at hand: a short table, measured once, that adds up along the layers."""

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import logging

from .architecture import Architecture, CostTable


NAME = "milliseconds a batch"
_PARTS = ("entry", "layer", "transition", "exit")


@torch.no_grad()
def measure_latency(
    supernet: PreTrainedModel,
    batch_size: int = 1,
    sequence_length: int = 128,
    rounds: int = 5,
    show_progress: bool = False,
) -> CostTable:
    """
    Measures what every layer choice of a supernet's search space takes on the supernet's device.

    A choice is measured in an extracted network that is made of it alone, once with all of its layers and once with
    the first only, which tells what a layer takes and what all networks share; the linear maps between layers of
    unequal width are measured on their own. The least counts of rounds in which all take turns: whatever else the
    machine does only adds to what a network takes.

    Args:
        supernet (`PreTrainedModel`): A `MosFor…` model, on the device that counts; its head is measured too.
        batch_size, sequence_length (`int`, *optional*, defaults to 1 and 128): Shape of the input; no padding.
        rounds (`int`, *optional*, defaults to 5): Measurements of each choice.
        show_progress (`bool`, *optional*, defaults to `False`): Shows a progress bar.

    Returns:
        [`CostTable`]: milliseconds of one batch, for [`SearchConstraints`].

    Raises:
        ValueError: if a size is less than 1, or the sequence is longer than the model's positions.
    """
    for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    space = supernet.search_space
    inputs = _make_inputs(supernet, batch_size, sequence_length)
    depth = max(space.num_hidden_layers)
    deep, shallow, crossing = defaultdict(list), defaultdict(list), defaultdict(list)
    pairs = [(width, following) for width in space.hidden_sizes for following in space.hidden_sizes]
    total = rounds * len(space.layer_choices)
    with logging.tqdm(total=total, desc="Measuring latency", leave=False, disable=not show_progress) as progress:
        for _ in range(rounds):
            for choice in space.layer_choices:
                network = supernet.extract_subnet(Architecture(*((size,) * depth for size in choice))).eval()
                deep[choice].append(_time(lambda network=network: network(**inputs), supernet.device))
                _keep_first_layer(network)
                shallow[choice].append(_time(lambda network=network: network(**inputs), supernet.device))
                progress.update()
            if space.bottleneck:
                for width, following in pairs:
                    like = {"device": supernet.device, "dtype": supernet.dtype}
                    hidden = torch.ones(batch_size, sequence_length, width, **like)
                    weight = torch.ones(following, width, **like)
                    crossing[width, following].append(
                        _time(lambda hidden=hidden, weight=weight: F.linear(hidden, weight), supernet.device)
                    )
    crossing = {pair: min(found) for pair, found in crossing.items()}
    layers, shared = {}, defaultdict(list)
    for choice in space.layer_choices:
        both, one = min(deep[choice]), min(shallow[choice])
        each = max(both - one, 0.0) / (depth - 1) if depth > 1 else one
        shared[choice[0]].append(max(one - each, 0.0))
        # A layer of such a network includes the map from the one before it, which is as wide.
        layers[choice] = max(each - crossing.get((choice[0], choice[0]), 0.0), 0.0)
    # Of embeddings, bottlenecks at both ends and head, half is booked at either end: both know one width only.
    ends = {width: statistics.mean(found) / 2 for width, found in shared.items()}
    if space.bottleneck:
        # One transition less than layers.
        ends = {width: end + crossing[width, width] / 2 for width, end in ends.items()}
    return CostTable.tabulate(
        NAME,
        space,
        entry=lambda width: ends[width],
        layer=lambda *choice: layers[choice],
        transition=lambda width, following: crossing.get((width, following), 0.0),
        exit=lambda width: ends[width],
    )


@torch.no_grad()
def measure_architectures(
    supernet: PreTrainedModel,
    architectures: Sequence[Architecture],
    batch_size: int = 1,
    sequence_length: int = 128,
    rounds: int = 5,
    show_progress: bool = False,
) -> list[float]:
    """Milliseconds of one batch of each extracted architecture, measured directly: the least of all rounds."""
    inputs = _make_inputs(supernet, batch_size, sequence_length)
    times = defaultdict(list)
    shown = {"desc": "Measuring architectures", "leave": False, "disable": not show_progress}
    for _ in logging.tqdm(range(rounds), **shown):
        for architecture in architectures:
            network = supernet.extract_subnet(architecture).eval()
            times[architecture].append(_time(lambda network=network: network(**inputs), supernet.device))
    return [min(times[architecture]) for architecture in architectures]


def _make_inputs(supernet: PreTrainedModel, batch_size: int, sequence_length: int) -> dict[str, torch.Tensor]:
    config = supernet.config
    positions = config.max_position_embeddings
    if config.backbone_model_type != "bert":
        positions -= config.pad_token_id + 1  # RoBERTa counts positions from there
    if sequence_length > positions:
        raise ValueError(
            f"`sequence_length` is {sequence_length}, the model has {positions} positions; give fewer tokens."
        )
    ids = torch.arange(batch_size * sequence_length, device=supernet.device) % config.vocab_size
    # Padding takes no part: what a token is does not change what it costs.
    ids[ids == config.pad_token_id] += 1
    ids = ids.view(batch_size, sequence_length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _keep_first_layer(network: PreTrainedModel) -> None:
    base = network.base_model
    if hasattr(base, "encoder"):  # the stock classes of spaces without bottlenecks
        base.encoder.layer = nn.ModuleList(base.encoder.layer[:1])
    else:
        base.layers = nn.ModuleList(base.layers[:1])


def _time(run: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one call: the least of three groups of calls, each of about 10 ms, after one that warms up."""

    def group(calls: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _synchronize(device)
        return (time.perf_counter() - start) * 1e3 / calls

    run()
    calls = max(1, round(10 / max(group(1), 1e-3)))
    return min(group(calls) for _ in range(3))


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def save_latency(table: CostTable, path: str | os.PathLike, **facts: Any) -> None:
    """
    Writes a measured table as JSON, so that a search that is continued keeps to the same limits.

    Args:
        table ([`CostTable`]): What [`measure_latency`] returned.
        path (`str` or `os.PathLike`): The file.
        facts: What else to remember, such as device, batch size and sequence length.
    """
    path = Path(path)
    data = {**facts, "name": table.name}
    data |= {part: [list(item) for item in getattr(table, part)] for part in _PARTS}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_latency(path: str | os.PathLike, supernet: PreTrainedModel | None = None) -> CostTable:
    """
    Reads a table that [`save_latency`] wrote.

    Args:
        path (`str` or `os.PathLike`): The file.
        supernet (`PreTrainedModel`, *optional*): The model it is meant for, whose layer choices it must hold.

    Raises:
        ValueError: if the file is no such table, or lacks a layer of the supernet's search space.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))

        def pairs(part: str) -> tuple:
            return tuple((tuple(key) if isinstance(key, list) else key, float(value)) for key, value in data[part])

        table = CostTable(data["name"], *(pairs(part) for part in _PARTS))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not a table of latencies ({error!r}); measure it again.") from None
    if supernet is not None:
        known = {choice for choice, _ in table.layer}
        missing = [choice for choice in supernet.search_space.layer_choices if choice not in known]
        if missing:
            raise ValueError(
                f"{str(path)!r} was measured for another search space: it lacks the layer (width, feed-forward, "
                f"heads) {missing[0]} and {len(missing) - 1} more; measure it again."
            )
    return table


__all__ = ["load_latency", "measure_architectures", "measure_latency", "save_latency"]
