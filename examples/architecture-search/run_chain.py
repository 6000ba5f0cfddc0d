# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
From text to small models that are fine-tuned with a teacher, and what each step of it is worth: one command.

A supernet is trained on text and searched, under a limit on parameters and under one on latency; its best subnets, and
others to compare them with, learn GLUE tasks from a fine-tuned teacher:

    python run_chain.py configs/chain_smoke.yaml --train_file books/ --teacher_name_or_path MiniLM \
        --data_dir glue --output_dir runs/chain

The arms: `searched` and `searched_latency`; `searched_alone`, the searched one that learns without a teacher;
`uniform`, the subnet of one width that is nearest in size; `random`, the median in validation loss of random subnets
of the window; `stand_alone`, the searched architecture trained on the same text for the same steps, but without a
supernet; and `from_scratch`, the same without any text. A command that was stopped goes on where it was. The results
are in comparison.json, with paired intervals over seeds and rows, and in networks.json.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedLM, AutoTokenizer, set_seed
from transformers.utils import logging


EXAMPLES = Path(__file__).resolve().parents[1]
MLM = EXAMPLES / "language-modeling"
GLUE = EXAMPLES / "text-classification"
sys.path[:0] = [str(EXAMPLES), str(GLUE), str(MLM), str(EXAMPLES / "architecture-search")]

import compare_glue_runs  # noqa: E402
import run_glue  # noqa: E402
import run_mlm_mos  # noqa: E402
import run_search  # noqa: E402
from example_utils import (  # noqa: E402
    check_same_command,
    check_step,
    parse_arguments,
    parse_given_arguments,
    parse_mapping,
    run_script,
    run_step,
    show_progress_messages,
    write_text_atomically,
)
from modeling_mos import Architecture, MosForMaskedLM  # noqa: E402


logger = logging.get_logger("run_chain")

ARMS = ("searched", "searched_alone", "searched_latency", "uniform", "random", "stand_alone", "from_scratch")
# May differ between the calls of one command.
MAY_CHANGE = ("arms", "seeds", "tasks", "use_cpu")


@dataclass(kw_only=True)
class ChainArguments:
    """What the chain is made of; the small sizes of the supernet are for machines without a GPU."""

    output_dir: str = field(metadata={"help": "Where everything is written, and found again."})
    train_file: list[str] = field(metadata={"help": "Text to pre-train on: files or a folder."})
    validation_split_percentage: float = field(default=5.0, metadata={"help": "Share of the text to validate on."})
    teacher_name_or_path: str = field(metadata={"help": "An encoder to be fine-tuned as the teacher; its tokenizer."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with GLUE's classic TSV files."})
    tasks: list[str] = field(default_factory=lambda: ["sst2", "mrpc"], metadata={"help": "GLUE tasks."})
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "Each is a chain of its own."})
    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "What to compare: " + ", ".join(ARMS) + "."}
    )
    mlm_config: str = field(
        default=str(MLM / "configs" / "mlm_mos_small.yaml"),
        metadata={"help": "Arguments of run_mlm_mos.py: the supernet and its training."},
    )
    max_steps: int | None = field(default=None, metadata={"help": "Training steps of supernet and stand-alone model."})
    max_seq_length: int = field(default=64, metadata={"help": "Tokens of the pre-training sequences."})
    max_eval_samples: int = field(default=1024, metadata={"help": "Validation sequences that judge architectures."})
    size_share: float = field(
        default=0.5, metadata={"help": "Most parameters, as share of the way from smallest to largest subnet."}
    )
    window: float = field(default=0.1, metadata={"help": "Width of the window of parameters, as a share of that way."})
    latency_share: float = field(
        default=0.5,
        metadata={"help": "Most milliseconds, as share of the way from fastest to slowest subnet."},
    )
    num_random: int = field(default=15, metadata={"help": "Random subnets of which the median is compared."})
    search: str = field(default="{}", metadata={"help": "More arguments of run_search.py, as JSON."})
    finetuning: str = field(
        default="{}", metadata={"help": "More arguments of run_glue.py, for teachers and students, as JSON."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})

    def __post_init__(self):
        for arm in self.arms:
            if arm not in ARMS:
                raise ValueError(f"{arm!r} is no arm; the arms are {', '.join(ARMS)}.")
        for name in ("size_share", "latency_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in (0, 1], got {getattr(self, name)}.")
        if not 0 < self.window <= self.size_share:
            raise ValueError(f"`window` must lie in (0, size_share={self.size_share}], got {self.window}.")
        for name in ("search", "finetuning"):
            setattr(self, name, parse_mapping(name, getattr(self, name)))
        if self.num_random < 1 or not self.seeds or not self.tasks:
            raise ValueError("A chain has at least one random subnet, one seed and one task.")


class Chain:
    """The steps of one seed; each is skipped where its result is there."""

    def __init__(self, arguments: ChainArguments, seed: int):
        self.arguments, self.seed = arguments, seed
        self.root = Path(arguments.output_dir)
        self.folder = self.root / f"seed_{seed}"

    @property
    def device(self) -> dict[str, Any]:
        return {"use_cpu": True} if self.arguments.use_cpu else {}

    # ---- pre-training and search ------------------------------------------------------------------------------------

    def prepare(self) -> Path:
        arguments = self.arguments
        data = self.root / "data"
        run_step(
            MLM / "prepare_pretraining_data.py",
            data / "dataset_dict.json",
            train_file=arguments.train_file,
            validation_split_percentage=arguments.validation_split_percentage,
            tokenizer_name=arguments.teacher_name_or_path,
            max_seq_length=arguments.max_seq_length,
            output_dir=data,
        )
        return data

    def pretrain(self, name: str, **flags: Any) -> Path:
        folder, options = self.folder / name, self.pretraining_options(name)
        script = MLM / "run_mlm_mos.py"
        run_step(script, folder / "all_results.json", [self.arguments.mlm_config], **options, **flags)
        return folder

    def pretraining_options(self, name: str) -> dict[str, Any]:
        options = {"dataset_path": self.root / "data", "seed": self.seed, "output_dir": self.folder / name}
        return {**options, "max_steps": self.arguments.max_steps, **self.device}

    def search(self, name: str, **limits: Any) -> dict[str, Any]:
        folder = self.folder / name
        script = Path(__file__).resolve().parent / "run_search.py"
        run_step(script, folder / "front.json", **{**self.search_options(name), **limits})
        return json.loads((folder / "front.json").read_text(encoding="utf-8"))

    def search_options(self, name: str) -> dict[str, Any]:
        arguments = self.arguments
        options = {
            "model_name_or_path": self.folder / "supernet",
            "dataset_path": self.root / "data",
            "max_eval_samples": arguments.max_eval_samples,
            "sequence_length": arguments.max_seq_length,
            "seed": self.seed,
            "output_dir": self.folder / name,
        }
        return {**options, **self.device, **arguments.search}

    def supernet(self) -> MosForMaskedLM:
        return MosForMaskedLM.from_pretrained(self.folder / "supernet").eval()

    def window(self, supernet: MosForMaskedLM) -> dict[str, int]:
        space, arguments = supernet.search_space, self.arguments
        low, high = (supernet.count_parameters(found) for found in (space.smallest(), space.largest()))
        least, most = arguments.size_share - arguments.window, arguments.size_share
        return {
            "min_parameters": round(low + least * (high - low)),
            "max_parameters": round(low + most * (high - low)),
        }

    # ---- the networks that are compared -----------------------------------------------------------------------------

    def students(self) -> dict[str, Path]:
        """Folders of the arms' networks, before they are fine-tuned."""
        arguments, wanted = self.arguments, self.arguments.arms
        self.prepare()
        self.pretrain("supernet")
        supernet = self.supernet()
        window = self.window(supernet)
        best = self.search("search", **window)["best"]
        architecture = Architecture.from_dict(best["architecture"])
        found = {"searched": self.folder / "search" / "subnet", "searched_alone": self.folder / "search" / "subnet"}
        if "searched_latency" in wanted:
            found["searched_latency"] = self.search_latency(supernet)
        if "uniform" in wanted:
            nearest = min(
                supernet.search_space.uniform_architectures(),
                key=lambda other: abs(supernet.count_parameters(other) - best["parameters"]),
            )
            found["uniform"] = self.save(supernet, nearest, "uniform")
        if "random" in wanted:
            found["random"] = self.save(supernet, self.median_of_random(supernet, window), "random")
        if "stand_alone" in wanted:
            sizes = json.dumps(architecture.to_dict())
            found["stand_alone"] = self.pretrain("stand_alone", train_architecture=sizes)
        if "from_scratch" in wanted:
            set_seed(self.seed)
            found["from_scratch"] = self.save(MosForMaskedLM(supernet.config), architecture, "from_scratch")
        return {arm: found[arm] for arm in arguments.arms}

    def search_latency(self, supernet: MosForMaskedLM) -> Path:
        """The best under a limit on latency, between what the two ends of the space take."""
        folder = self.folder / "search_latency"
        # A search of a front that looks at two networks looks at the smallest and the largest.
        ends = self.search("search_latency_front", trade_off="latency", population_size=2, parent_size=1, num_rounds=0)
        fastest, slowest = sorted(entry["latency"] for entry in ends["finalists"])
        folder.mkdir(exist_ok=True)
        # One table for both: measured twice, the limit would not mean the same.
        if not (folder / "latency.json").exists():
            shutil.copy(self.folder / "search_latency_front" / "latency.json", folder / "latency.json")
        self.search("search_latency", max_latency=fastest + self.arguments.latency_share * (slowest - fastest))
        return folder / "subnet"

    def median_of_random(self, supernet: MosForMaskedLM, window: dict[str, int]) -> Architecture:
        """Of random subnets of the window, all evaluated on all validation sequences."""
        count = self.arguments.num_random
        results = self.search(
            "random_search",
            **window,
            population_size=count,
            parent_size=1,
            num_rounds=0,
            racing=False,
            num_finalists=count,
            seed=self.seed + 1_000,
        )
        ranked = results["finalists"]
        return Architecture.from_dict(ranked[len(ranked) // 2]["architecture"])

    def save(self, supernet: MosForMaskedLM, architecture: Architecture, name: str) -> Path:
        folder = self.folder / name
        if not (folder / "config.json").exists():
            temporary = self.folder / f".{name}.partial"
            supernet.extract_subnet(architecture).save_pretrained(temporary)
            AutoTokenizer.from_pretrained(self.folder / "supernet").save_pretrained(temporary)
            temporary.replace(folder)
        return folder

    # ---- fine-tuning ------------------------------------------------------------------------------------------------

    def finetune(self, name: str, task: str, model: str | Path, **flags: Any) -> Path:
        folder, options = self.finetuned(name, task), self.finetuning_options(name, task, model)
        run_step(GLUE / "run_glue.py", folder / "predictions.safetensors", **{**options, **flags})
        return folder

    def finetuned(self, name: str, task: str) -> Path:
        return self.folder / "finetuned" / f"{name}-{task}"

    def finetuning_options(self, name: str, task: str, model: str | Path) -> dict[str, Any]:
        folder, data = self.finetuned(name, task), {"task_name": task, "data_dir": self.arguments.data_dir}
        options = {"model_name_or_path": model, **data, "seed": self.seed, "output_dir": folder}
        common = {"do_train": True, "do_eval": True, "save_predictions": True, "report_to": "none"}
        return {**options, **common, **self.device, **self.arguments.finetuning}

    def check_options(self) -> None:
        """
        Raises:
            ValueError: A script would refuse what it is going to be told.
        """
        read = partial(parse_arguments, run_mlm_mos.ARGUMENT_TYPES)
        check_step("run_mlm_mos.py", read, self.arguments.mlm_config, **self.pretraining_options("supernet"))
        read = partial(parse_arguments, run_search.SearchArguments)
        check_step("run_search.py", read, **self.search_options("search"))
        for task in self.arguments.tasks:
            options = self.finetuning_options("teacher", task, self.arguments.teacher_name_or_path)
            check_step("run_glue.py", run_glue.read_arguments, **options)

    def run(self) -> dict[str, Path]:
        """All steps; returns the folders of the arms' networks, before they are fine-tuned."""
        arms = self.students()
        for task in self.arguments.tasks:
            teacher = self.finetune("teacher", task, self.arguments.teacher_name_or_path)
            for arm, model in arms.items():
                taught = {} if arm == "searched_alone" else {"teacher_name_or_path": teacher}
                self.finetune(arm, task, model, **taught)
        return arms


def report(arguments: ChainArguments, students: dict[int, dict[str, Path]]) -> None:
    """Sizes of the networks, and scores of all arms against the searched one."""
    root = Path(arguments.output_dir)
    networks = []
    for seed, folders in students.items():
        for arm, folder in folders.items():
            model = AutoModelForMaskedLM.from_pretrained(folder)
            widths = getattr(model.config, "hidden_sizes", model.config.hidden_size)
            networks.append({"arm": arm, "seed": seed, "parameters": model.num_parameters(), "hidden_sizes": widths})
    write_text_atomically(root / "networks.json", json.dumps(networks, indent=2) + "\n")
    compare_glue_runs.main([*comparison_flags(arguments), "--output", str(root / "comparison.json")])


def comparison_flags(arguments: ChainArguments) -> list[str]:
    """What compare_glue_runs.py is told."""
    root = Path(arguments.output_dir)
    runs = [
        f"{arm}=" + ",".join(str(root / f"seed_{seed}" / "finetuned" / f"{arm}-{{task}}") for seed in arguments.seeds)
        for arm in ("teacher", *arguments.arms)
    ]
    baseline = "searched" if "searched" in arguments.arms else arguments.arms[0]
    return ["--tasks", *arguments.tasks, "--runs", *runs, "--baseline", baseline]


def main(arguments: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(ChainArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    Chain(arguments, arguments.seeds[0]).check_options()
    parse_arguments(compare_glue_runs.GlueComparisonArguments, comparison_flags(arguments))
    deciding = {name: value for name, value in asdict(arguments).items() if name not in (*MAY_CHANGE, "output_dir")}
    # Of the file, what is in it: it may be edited, or move.
    recipe = parse_given_arguments(run_mlm_mos.ARGUMENT_TYPES, [deciding.pop("mlm_config")])
    deciding |= {f"mlm_config.{name}": value for name, value in recipe.items()}
    check_same_command(Path(arguments.output_dir) / "command.json", deciding)
    students = {seed: Chain(arguments, seed).run() for seed in arguments.seeds}
    report(arguments, students)


if __name__ == "__main__":
    run_script(main)
