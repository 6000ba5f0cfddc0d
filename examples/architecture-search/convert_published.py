#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Makes a supernet of this project out of a checkpoint of the published MoS or SuperShaper code.

The best architectures of published searches, one file for each size that was searched, become the front:

    python convert_published.py --checkpoint best_model --results 60m/evo_results_29.xls 50m/evo_results_29.xls \
        --output_dir supernet

`AutoModelForMaskedLM.from_pretrained("supernet").extract_subnet("60m")` then takes one out.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import modeling_mos  # noqa: E402
from example_utils import (  # noqa: E402
    parse_arguments,
    parse_search_space,
    require_new_folder,
    run_script,
    show_progress_messages,
    write_folder_atomically,
)
from modeling_mos import MosPreTrainedModel  # noqa: E402
from modeling_mos.published import (  # noqa: E402
    PublishedResults,
    read_published_results,
    supernet_from_published,
)


logger = logging.get_logger("convert_published")


@dataclass
class ConversionArguments:
    """What to convert, and where to put the result."""

    checkpoint: str = field(
        metadata={"help": "A folder with config.json and pytorch_model.bin or model.safetensors, such as best_model."}
    )
    output_dir: str = field(metadata={"help": "The folder to write; it must not hold anything yet."})
    results: list[str] | None = field(
        default=None,
        metadata={"help": "evo_results_<n>.xls files, whose best architectures are stored as the front. Needs xlrd."},
    )
    model_class: str = field(
        default="MosForMaskedLM",
        metadata={
            "help": "The supernet's class; a sequence classification head starts new if the checkpoint has none.",
            "choices": ["MosForMaskedLM", "MosForSequenceClassification"],
        },
    )
    search_space: str | None = field(
        default=None,
        metadata={"help": "A preset, or choices as JSON, where the checkpoint does not name a space that there is."},
    )

    def __post_init__(self):
        require_new_folder(self.output_dir)


def make_front(supernet: MosPreTrainedModel, results: Sequence[PublishedResults]) -> list[dict[str, Any]]:
    """
    The best architecture of each search as an entry of `config.front`, the smallest first.

    Raises:
        ValueError: if one is not in the search space, or two of different architectures have the same name.
    """
    front: dict[str, dict[str, Any]] = {}
    for found in results:
        architecture = found.best.architecture
        parameters = supernet.count_parameters(architecture)
        name = f"{parameters / 1e6:.0f}m"
        entry = {"name": name, "architecture": architecture.to_dict(), "parameters": parameters}
        if front.setdefault(name, entry) != entry:
            raise ValueError(
                f"Two results have an architecture of {name}: {architecture} and another; convert with one of them."
            )
    return sorted(front.values(), key=lambda entry: entry["parameters"])


def main(arguments: Sequence[str] | None = None) -> MosPreTrainedModel:
    (options,) = parse_arguments(ConversionArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    # First what is read in no time.
    results = [read_published_results(path) for path in options.results or []]
    supernet = supernet_from_published(
        options.checkpoint,
        model_class=getattr(modeling_mos, options.model_class),
        search_space=None if options.search_space is None else parse_search_space(options.search_space),
    )
    if results:
        supernet.config.front = make_front(supernet, results)
    with write_folder_atomically(options.output_dir) as folder:
        supernet.save_pretrained(folder)
    for path, found in zip(options.results or [], results, strict=True):
        best = found.best
        logger.info(
            f"{path}: {best.architecture}, {found.metric_name} {best.metric:g}; published size {best.size:,}, "
            f"{supernet.count_parameters(best.architecture):,} parameters."
        )
    names = [entry["name"] for entry in supernet.config.front or []]
    logger.info(f"Wrote {options.output_dir}" + (f" with the front {names}." if names else "."))
    return supernet


if __name__ == "__main__":
    run_script(main)
