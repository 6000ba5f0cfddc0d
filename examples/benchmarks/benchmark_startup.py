#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
How long the packages take to import, and an extracted subnet to load, against plain Transformers.

    python benchmark_startup.py --output_file startup.json

Every measurement is made in a Python process of its own; contestants take turns. Importing the three packages is
measured beyond `from transformers import Trainer`; `from_pretrained` of a subnet against that of a stock BERT with
about as many parameters, after the imports.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import BertModel
from transformers.utils import logging


# Helpers are beside this file and one folder up; example scripts are run from anywhere and are not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from benchmark_utils import ModelSizes, Timing, compare, machine_facts, report, spread  # noqa: E402
from example_utils import parse_arguments, run_script, show_progress_messages  # noqa: E402
from modeling_mos import MosModel  # noqa: E402


logger = logging.get_logger(__name__)

CLOCKS = {"wall": "perf_counter", "cpu": "process_time"}
# The steps of a process: what comes before the clock starts, and what it measures.
IMPORT_TRANSFORMERS = ("import time", "from transformers import Trainer")
IMPORT_PACKAGES = ("import time; from transformers import Trainer", "import modeling_mos, modeling_sharcs, trainers")
# A full garbage collection is due at the end of the first import, and whatever comes next pays for it.
IMPORT_COLLECTED = ("import gc, time; from transformers import Trainer; gc.collect()", IMPORT_PACKAGES[1])
# The code of the stock model is loaded on its first use, which is not what is compared.
LOAD = (
    "import time; import modeling_mos; from transformers import AutoModel; from transformers.utils import logging; "
    "import transformers.models.bert.modeling_bert; logging.disable_progress_bar()",
    "AutoModel.from_pretrained({folder!r})",
)


def time_process(before: str, measured: str, clock: str) -> float:
    """Seconds of some code in a new Python process, after other code."""
    now = f"time.{CLOCKS[clock]}()"
    script = f"{before}\nstart = {now}\n{measured}\nprint({now} - start)"
    # Compiled modules are kept, so that rounds after the first do not compile them again, as on users' machines.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    return float(found.stdout.split()[-1])


def time_processes(contestants: Mapping[str, tuple[str, str]], timing: Timing) -> dict[str, list[float]]:
    """Seconds of each round; all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for position in tqdm(range(timing.warmup_rounds + timing.rounds), desc="Rounds", leave=False, disable=None):
        for name, (before, measured) in contestants.items():
            taken = time_process(before, measured, timing.clock)
            if position >= timing.warmup_rounds:
                seconds[name].append(taken)
    return seconds


def save_models(folder: Path, sizes: ModelSizes) -> dict[str, int]:
    """
    Saves an extracted subnet, and a stock BERT of its depth and of the width that brings it nearest in size.

    Returns:
        `dict[str, int]`: the numbers of their parameters.
    """
    torch.manual_seed(sizes.seed)
    backbone = BertModel(sizes.config())
    supernet = MosModel.from_backbone(backbone, routing="neuron", num_experts=2)
    subnet = supernet.extract_subnet(supernet.sample_architecture(seed=sizes.seed))
    wanted = subnet.num_parameters()

    def stock(intermediate_size: int) -> BertModel:
        return BertModel(sizes.config(intermediate_size=intermediate_size))

    with torch.device("meta"):
        smallest, step = stock(1).num_parameters(), stock(2).num_parameters() - stock(1).num_parameters()
    plain = stock(max(1, 1 + round((wanted - smallest) / step)))
    subnet.save_pretrained(folder / "subnet")
    plain.save_pretrained(folder / "stock")
    return {"subnet": wanted, "stock": plain.num_parameters()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    sizes, timing = parse_arguments((ModelSizes, Timing), arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    device = timing.prepare()
    logger.info("Imports.")
    imports = time_processes(
        {
            "transformers": IMPORT_TRANSFORMERS,
            "packages": IMPORT_PACKAGES,
            "packages_after_collection": IMPORT_COLLECTED,
        },
        timing,
    )
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_models(Path(folder), sizes)
        logger.info("Loading.")
        loading = time_processes(
            {name: (LOAD[0], LOAD[1].format(folder=str(Path(folder, name)))) for name in parameters}, timing
        )
    results = {
        **machine_facts(device),
        **timing.facts(),
        "sizes": vars(sizes),
        "import": {f"seconds_of_{name}": spread(seconds) for name, seconds in imports.items()},
        "from_pretrained": {
            "parameters": parameters,
            "seconds": {name: spread(seconds) for name, seconds in loading.items()},
            "subnet_over_stock": compare(loading["subnet"], loading["stock"]),
        },
    }
    report(results, timing.output_file)
    return results


if __name__ == "__main__":
    run_script(main)
