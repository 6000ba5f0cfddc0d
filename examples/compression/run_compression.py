#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Makes a model cheaper in several ways at one budget, and says what each of them keeps: one command.

    python run_compression.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --task_name mrpc \
        --compute_budget 0.5 --seeds 1 2 3 --output_dir runs/mrpc-half

`plain` is the model, fine-tuned: what the others are compared with, and their teacher. `sharcs` is a routed encoder
made of the model; `mos_subnet` the best subnet of a supernet, which is made of the model and trained on the training
rows' text, or given with --supernet_name_or_path; `fewer_layers` keeps the model's first layers. The budget is a
share of the plain model's FLOPs, on the validation rows at their own lengths; a method that cannot keep it, or is not
for this model, is left out with the reason.

All data options of run_glue.py are taken: a GLUE task, own files, or a data set by name. A command that was stopped
goes on where it was. results.json, results.csv and results.png hold scores with paired intervals over seeds and rows;
supernet and search are made once, and intervals know nothing of how other ones would do. models/ has a folder for each
method, the first seed's, with its model card: ready for `trainers.push_folder_to_hub`.
"""

import copy
import csv
import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_matplotlib_available, logging


EXAMPLES = Path(__file__).resolve().parents[1]
GLUE = EXAMPLES / "text-classification"
SCRIPT_FOLDERS = ("text-classification", "language-modeling", "architecture-search")
sys.path[:0] = [str(EXAMPLES), *(str(EXAMPLES / name) for name in SCRIPT_FOLDERS)]

import run_glue  # noqa: E402
import run_glue_sharcs  # noqa: E402
import run_mlm_mos  # noqa: E402
import run_search  # noqa: E402
from compare_glue_runs import GlueComparisonArguments, as_markdown, compare, save_plot  # noqa: E402
from example_utils import (  # noqa: E402
    argument_names,
    check_same_command,
    check_step,
    parse_arguments,
    parse_given_arguments,
    parse_mapping,
    run_script,
    run_step,
    show_progress_messages,
    to_flags,
    write_folder_atomically,
    write_text_atomically,
)
from glue_utils import DataArguments, is_regression, load_task_datasets, load_tokenizer, preprocess  # noqa: E402
from modeling_mos import MosForMaskedLM, MosForSequenceClassification  # noqa: E402
from modeling_mos.conversion import BACKBONE_MODEL_TYPES as MOS_BACKBONES  # noqa: E402
from modeling_sharcs import SharcsForSequenceClassification  # noqa: E402
from modeling_sharcs.calibration import share_of_full  # noqa: E402
from modeling_sharcs.conversion import BACKBONE_MODEL_TYPES as SHARCS_BACKBONES  # noqa: E402
from sharcs_utils import SharcsOptions, load_sharcs_model, longest_input  # noqa: E402
from trainers.model_cards import count_flops  # noqa: E402


logger = logging.get_logger("run_compression")

METHODS = ("sharcs", "mos_subnet", "fewer_layers")
# The same for all methods, unless --finetuning says otherwise.
FINETUNING = {
    "num_train_epochs": 5,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "report_to": "none",
}
SUPERNET = {
    "max_steps": 5_000,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-4,
    "warmup_steps": 0.1,
    "save_total_limit": 1,
    "report_to": "none",
}
TEXT_VALIDATION_PERCENTAGE = 10
# Half of the layers takes a little more than half of the FLOPs, for the head stays whole.
TOLERANCE = 0.005
# What a run leaves in its folder beside the model.
NOT_PUBLISHED = ("checkpoint-*", "predictions*", "*_results.json", "trainer_state.json", "training_args.bin")
# May differ between the calls of one command.
MAY_CHANGE = ("methods", "resamples", "seeds", "use_cpu")


class NotPossibleError(Exception):
    """A method cannot keep the budget, or is not for this model; the message says why."""


@dataclass(kw_only=True)
class CompressionArguments:
    """What to compress, how far, and in which ways."""

    model_name_or_path: str = field(metadata={"help": "An encoder, pre-trained or fine-tuned: Hub name or folder."})
    output_dir: str = field(metadata={"help": "Where everything is written, and found again."})
    compute_budget: float = field(metadata={"help": "Share of the model's FLOPs to spend, above 0 and below 1."})
    methods: list[str] = field(
        default_factory=lambda: list(METHODS), metadata={"help": "Ways to compress: " + ", ".join(METHODS) + "."}
    )
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "Every model is fine-tuned with each."})
    supernet_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A trained supernet with the model's tokenizer, to search instead of making one."},
    )
    finetuning: str = field(
        default="{}", metadata={"help": "Arguments of run_glue.py and run_glue_sharcs.py for every method, as JSON."}
    )
    distillation: str = field(
        default="{}", metadata={"help": "More arguments of run_glue.py for methods with a teacher, as JSON."}
    )
    sharcs: str = field(default="{}", metadata={"help": "More arguments of run_glue_sharcs.py, as JSON."})
    supernet: str = field(
        default="{}",
        metadata={
            "help": 'Arguments of run_mlm_mos.py, as JSON; {"max_steps": 0} makes no supernet. If not given, '
            f"{SUPERNET['max_steps']:,} steps of {SUPERNET['per_device_train_batch_size']} sequences."
        },
    )
    search: str = field(default="{}", metadata={"help": "Arguments of run_search.py, as JSON."})
    resamples: int = field(default=2000, metadata={"help": "Bootstrap resamples of the intervals."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})

    def __post_init__(self):
        if not 0 < self.compute_budget < 1:
            raise ValueError(
                f"--compute_budget is a share of the model's FLOPs above 0 and below 1, such as 0.5; got "
                f"{self.compute_budget}."
            )
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"{method!r} is no method; the methods are {', '.join(METHODS)}.")
        for name, defaults in (("finetuning", FINETUNING), ("supernet", SUPERNET)):
            setattr(self, name, {**defaults, **parse_mapping(name, getattr(self, name))})
        for name in ("distillation", "sharcs", "search"):
            setattr(self, name, parse_mapping(name, getattr(self, name)))
        if "sharcs" in self.methods and self.finetuning["num_train_epochs"] < 2:
            raise ValueError(
                "A routed encoder learns from the epochs before, so that num_train_epochs in --finetuning must be at "
                f"least 2, got {self.finetuning['num_train_epochs']}; or leave 'sharcs' out of --methods."
            )


# ---- rows and costs -------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """
    What a compression knows of the data.

    Args:
        lengths (`np.ndarray` of shape `(rows,)`): Tokens of the validation rows.
        texts (`list[str]`): The texts of the training rows.
        regression (`bool`): Whether labels are numbers.
    """

    lengths: np.ndarray
    texts: list[str]
    regression: bool


def read_rows(arguments: CompressionArguments, data: DataArguments) -> Rows:
    """
    Raises:
        ValueError: There is nothing to train or validate on, or seeds would validate on different rows.
    """
    if data.validation_split_percentage is not None and len(arguments.seeds) > 1:
        raise ValueError(
            "--validation_split_percentage holds out other rows for each seed, which cannot be compared row by row; "
            "give a validation_file, or a single seed."
        )
    splits = load_task_datasets(data, seed=arguments.seeds[0])
    for name in ("train", "validation"):
        if name not in splits:
            raise ValueError(f"There are no {name} rows; methods are trained on the ones and compared on the others.")
    name = arguments.model_name_or_path
    config = AutoConfig.from_pretrained(name)
    tokenizer = load_tokenizer(name, config.vocab_size)
    data = replace(data, max_seq_length=min(data.max_seq_length, longest_input(config, tokenizer)))
    tokens = preprocess(DatasetDict(validation=splits["validation"]), tokenizer, data)["validation"]
    columns = [column for column in splits["train"].column_names if column.startswith("sentence")]
    texts = [" ".join(text.split()) for column in columns for text in splits["train"][column]]
    return Rows(np.array([len(ids) for ids in tokens["input_ids"]]), texts, is_regression(splits))


def make_classifier(config: PreTrainedConfig) -> PreTrainedModel:
    """Sizes without weights."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def total_flops(model: PreTrainedModel, lengths: np.ndarray) -> float:
    """FLOPs of an ordinary encoder for rows of these lengths; of one row, they are quadratic in its length."""
    points = (2, 4, 6)
    coefficients = np.polyfit(points, [count_flops(model, length) for length in points], deg=2)
    return float(np.polyval(coefficients, lengths).sum())


# ---- what each method makes of the budget ---------------------------------------------------------------------------


class Compression:
    """The steps of the command; each is skipped where its result is there."""

    def __init__(self, arguments: CompressionArguments, rows: Rows, data_options: dict[str, Any]):
        self.arguments, self.rows, self.data_options = arguments, rows, data_options
        self.root = Path(arguments.output_dir)
        self.config = AutoConfig.from_pretrained(arguments.model_name_or_path)
        if self.config.model_type in ("mos", "sharcs"):
            raise ValueError(
                f"{arguments.model_name_or_path!r} is a {self.config.model_type!r} model, which is elastic already; "
                "give the encoder that it was made of."
            )

    @cached_property
    def full_flops(self) -> float:
        return total_flops(make_classifier(self.config), self.rows.lengths)

    def check_options(self) -> None:
        """
        Raises:
            ValueError: A script would refuse what it is going to be told.
        """
        arguments, methods = self.arguments, self.arguments.methods
        seed, model = arguments.seeds[0], arguments.model_name_or_path
        check_step("run_glue.py", run_glue.read_arguments, **self.finetuning_options("plain", seed, model))
        if "mos_subnet" in methods or "fewer_layers" in methods:  # alike, beside what is planned
            options = self.finetuning_options("mos_subnet", seed, model)
            check_step("run_glue.py", run_glue.read_arguments, **options)
        if "sharcs" in methods and self.config.model_type in SHARCS_BACKBONES:
            options = self.finetuning_options("sharcs", seed, model, self.sharcs_options())
            check_step("run_glue_sharcs.py", partial(parse_arguments, run_glue_sharcs.ARGUMENT_TYPES), **options)
        if "mos_subnet" in methods:
            text = self.root / "text"
            options = self.supernet_options(text)
            check_step("run_mlm_mos.py", partial(parse_arguments, run_mlm_mos.ARGUMENT_TYPES), **options)
            options = self.search_options(model, text)
            check_step("run_search.py", partial(parse_arguments, run_search.SearchArguments), **options)

    def plan(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """
        For each method what its script is told; and, of those that are left out, the reason. Nothing is trained.
        """
        planned, left_out = {}, {}
        for method in self.arguments.methods:
            try:
                planned[method] = getattr(self, f"plan_{method}")()
            except NotPossibleError as error:
                left_out[method] = str(error)
                logger.warning(f"{method} is left out: {error}")
        return planned, left_out

    def plan_fewer_layers(self) -> dict[str, Any]:
        """As many layers as the budget allows."""
        if self.config.model_type == "mos_subnet":
            raise NotPossibleError("the layers of a subnet have sizes of their own, none of them can be left out")
        for count in range(self.config.num_hidden_layers - 1, 0, -1):
            smaller = copy.deepcopy(self.config)
            smaller.num_hidden_layers = count
            share = total_flops(make_classifier(smaller), self.rows.lengths) / self.full_flops
            if share <= self.arguments.compute_budget + TOLERANCE:
                return {"num_hidden_layers": count}
        raise NotPossibleError(f"a single layer takes {share:.0%} of full FLOPs")

    def plan_sharcs(self) -> dict[str, Any]:
        """The options of --sharcs, at the budget."""
        config, arguments = self.config, self.arguments
        if config.model_type not in SHARCS_BACKBONES:
            raise NotPossibleError(
                f"routed encoders are made of {', '.join(SHARCS_BACKBONES)} models, not of {config.model_type}"
            )
        options = self.sharcs_options()
        known = {name: options[name] for name in argument_names([SharcsOptions]) if name in options}
        routed = load_sharcs_model(
            SharcsForSequenceClassification, arguments.model_name_or_path, SharcsOptions(**known)
        )
        lengths = torch.from_numpy(self.rows.lengths)
        lowest = share_of_full(routed, torch.zeros_like(lengths), lengths)
        if arguments.compute_budget < lowest:
            raise NotPossibleError(
                f"with {options['router_layer']} layers before the router and the widths "
                f"{routed.config.width_multipliers}, budgets from {lowest:.0%} on are in reach; --sharcs takes "
                "others"
            )
        budget = arguments.compute_budget
        return {**options, "compute_budget": budget, "compute_budgets": [budget]}

    def sharcs_options(self) -> dict[str, Any]:
        """A quarter of the layers whole, then a quarter of the heads or all, unless --sharcs says otherwise."""
        heads, epochs = self.config.num_attention_heads, self.arguments.finetuning["num_train_epochs"]
        return {
            "width_multipliers": [max(1, heads // 4) / heads, 1.0],
            "router_layer": max(1, self.config.num_hidden_layers // 4),
            "hardness_window": max(1, min(3, int(epochs) - 1)),
            "distillation_weight": 1.0,
            # Held out for the router's prices; where the user holds rows out, those of every method.
            "calibration_split_percentage": self.data_options.get("calibration_split_percentage", 5),
            **self.arguments.sharcs,
        }

    def plan_mos_subnet(self) -> dict[str, Any]:
        """The search's limit on FLOPs, which count the supernet's masked-LM head instead of a classifier."""
        arguments, name = self.arguments, self.arguments.supernet_name_or_path
        if name is None and self.config.model_type not in MOS_BACKBONES:
            raise NotPossibleError(
                f"supernets are made of {', '.join(MOS_BACKBONES)} models, not of {self.config.model_type}"
            )
        if name is None and not arguments.supernet["max_steps"]:
            raise NotPossibleError("no supernet is given, and --supernet says to train none")
        config = self.supernet_config()
        if name is not None and config.model_type != "mos":
            raise ValueError(f"--supernet_name_or_path {name!r} is a {config.model_type!r} model, not a supernet.")
        if name is not None and config.vocab_size != self.config.vocab_size:
            raise ValueError(
                f"The supernet {name!r} has a vocabulary of {config.vocab_size:,}, the model of "
                f"{self.config.vocab_size:,}; give a supernet with the model's tokenizer."
            )
        with torch.device("meta"):
            masked_lm, classifier = MosForMaskedLM(config), MosForSequenceClassification(config)
        if not masked_lm.search_space.bottleneck:
            raise NotPossibleError("without bottlenecks, a limit on a classifier's FLOPs is none on a masked LM's")
        length, smallest = round(self.rows.lengths.mean()), masked_lm.search_space.smallest()
        least, limit = classifier.count_flops(smallest, length), arguments.compute_budget * self.mean_flops(length)
        if least > limit:
            raise NotPossibleError(
                f"the smallest subnet takes {least / self.mean_flops(length):.0%} of full FLOPs; --supernet takes "
                "another search_space"
            )
        head = masked_lm.count_flops(smallest, length) - least
        return {"max_flops": int(limit) + head, "sequence_length": length}

    def mean_flops(self, length: int) -> int:
        return count_flops(make_classifier(self.config), length)

    # ---- steps ------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> dict[str, Any]:
        return {"use_cpu": True} if self.arguments.use_cpu else {}

    def prepare_text(self) -> Path:
        """The training rows' texts as masked-LM data."""
        text, folder = self.root / "text.txt", self.root / "text"
        if not text.exists():
            write_text_atomically(text, (f"{line}\n" for line in self.rows.texts))
        run_step(
            EXAMPLES / "language-modeling" / "prepare_pretraining_data.py",
            folder / "dataset_dict.json",
            train_file=text,
            validation_split_percentage=TEXT_VALIDATION_PERCENTAGE,
            tokenizer_name=self.arguments.model_name_or_path,
            max_seq_length=min(128, longest_input(self.config, self.tokenizer)),
            output_dir=folder,
        )
        return folder

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.arguments.model_name_or_path, self.config.vocab_size)

    def find_supernet(self) -> str | Path:
        """The supernet that was given, or one that is made of the model."""
        folder = self.root / "supernet"
        if self.arguments.supernet_name_or_path is not None:
            return self.arguments.supernet_name_or_path
        script = EXAMPLES / "language-modeling" / "run_mlm_mos.py"
        run_step(script, folder / "README.md", **self.supernet_options(self.prepare_text()))
        return folder

    def supernet_config(self) -> PreTrainedConfig:
        """Of the supernet that was given, or as the one will be that is made of the model."""
        if self.arguments.supernet_name_or_path is not None:
            return AutoConfig.from_pretrained(self.arguments.supernet_name_or_path)
        flags = to_flags(self.supernet_options(self.root / "text"))
        model_arguments, *_ = parse_arguments(run_mlm_mos.ARGUMENT_TYPES, flags)
        return run_mlm_mos.load_model(model_arguments, self.tokenizer).config

    def supernet_options(self, text: Path) -> dict[str, Any]:
        options = {
            "model_name_or_path": self.arguments.model_name_or_path,
            "dataset_path": text,
            "seed": self.arguments.seeds[0],
            "output_dir": self.root / "supernet",
        }
        return {**options, **self.device, **self.arguments.supernet}

    def search(self, limits: dict[str, Any]) -> Path:
        """The best subnet inside the limits."""
        folder = self.root / "search"
        options = self.search_options(self.find_supernet(), self.prepare_text())
        script = EXAMPLES / "architecture-search" / "run_search.py"
        run_step(script, folder / "front.json", **{**options, **limits})
        return folder / "subnet"

    def search_options(self, supernet: str | Path, text: Path) -> dict[str, Any]:
        options = {
            "model_name_or_path": supernet,
            "dataset_path": text,
            "seed": self.arguments.seeds[0],
            "output_dir": self.root / "search",
        }
        return {**options, **self.device, **self.arguments.search}

    def folder(self, method: str, seed: int) -> Path:
        return self.root / f"seed_{seed}" / method

    def finetuning_options(
        self, method: str, seed: int, model: str | Path, own: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        folder = self.folder(method, seed)
        common = {"model_name_or_path": model, "save_predictions": True, "seed": seed, "output_dir": folder}
        if method != "plain":
            common["teacher_name_or_path"] = self.folder("plain", seed)
        taught = self.arguments.distillation if method in ("mos_subnet", "fewer_layers") else {}
        return {**common, **self.data_options, **self.device, **self.arguments.finetuning, **(own or {}), **taught}

    def finetune(self, method: str, seed: int, model: str | Path, own: Mapping[str, Any] | None = None) -> None:
        script = GLUE / ("run_glue_sharcs.py" if method == "sharcs" else "run_glue.py")
        # The card is what the scripts write last.
        card = self.folder(method, seed) / "README.md"
        run_step(script, card, **self.finetuning_options(method, seed, model, own))

    def run(self, planned: dict[str, dict[str, Any]]) -> None:
        """Everything that is left to do."""
        arguments, model = self.arguments, self.arguments.model_name_or_path
        subnet = self.search(planned["mos_subnet"]) if "mos_subnet" in planned else None
        for seed in arguments.seeds:
            self.finetune("plain", seed, model)
            for method, options in planned.items():
                if method == "mos_subnet":  # its options are the search's
                    self.finetune(method, seed, subnet)
                else:
                    self.finetune(method, seed, model, options)

    # ---- results ----------------------------------------------------------------------------------------------------

    def report(self, methods: Sequence[str], left_out: dict[str, str]) -> dict[str, Any]:
        """Scores with intervals, sizes and shares of FLOPs, in the form of compare_glue_runs.py."""
        arguments = self.arguments
        own = "regression" if self.rows.regression else "accuracy"
        runs = [
            f"{method}=" + ",".join(str(self.folder(method, seed)) for seed in arguments.seeds) for method in methods
        ]
        task = self.data_options.get("task_name") or own
        resamples = arguments.resamples
        results = compare(GlueComparisonArguments(runs=runs, tasks=[task], baseline="plain", resamples=resamples))
        results |= {"compute_budget": arguments.compute_budget, "left_out": left_out}
        for method, entry in results["arms"].items():
            model = AutoModelForSequenceClassification.from_pretrained(self.folder(method, arguments.seeds[0]))
            if entry["flops_share"] is None:  # routed encoders say it themselves
                entry["flops_share"] = total_flops(model, self.rows.lengths) / self.full_flops
            entry["parameters"] = model.num_parameters()
            entry["model"] = str(self.collect(method))
        return results

    def collect(self, method: str) -> Path:
        """The first seed's model with what belongs to it, and nothing else."""
        folder = self.root / "models" / method
        if not folder.exists():
            with write_folder_atomically(folder) as temporary:
                ignore = shutil.ignore_patterns(*NOT_PUBLISHED)
                run = self.folder(method, self.arguments.seeds[0])
                shutil.copytree(run, temporary, ignore=ignore, dirs_exist_ok=True)
        return folder


def as_csv(results: dict[str, Any]) -> str:
    """A line for each method, the ones that were left out with the reason."""
    table = io.StringIO(newline="")
    ends = [f"{name}{end}" for name in ("score", "minus_plain") for end in ("", "_low", "_high")]
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["method", "flops_share", "parameters", *ends, "left_out"])
    for method, entry in results["arms"].items():
        scores = [entry["score"], *entry["score_interval"]]
        differences = [entry["minus_baseline"], *entry["minus_baseline_interval"]]
        writer.writerow([method, entry["flops_share"], entry["parameters"], *scores, *differences, ""])
    for method, reason in results["left_out"].items():
        writer.writerow([method, *[""] * 8, reason])
    return table.getvalue()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    types = (CompressionArguments, DataArguments)
    parsed, data = parse_arguments(types, arguments, description=__doc__.split("\n")[1])
    of_data = {item.name for item in fields(DataArguments)}
    given = {name: value for name, value in parse_given_arguments(types, arguments).items() if name in of_data}
    show_progress_messages(logger)
    root = Path(parsed.output_dir)
    rows = read_rows(parsed, data)
    compression = Compression(parsed, rows, given)
    compression.check_options()
    deciding = {name: value for name, value in asdict(parsed).items() if name not in (*MAY_CHANGE, "output_dir")}
    check_same_command(root / "command.json", {**deciding, **asdict(data)})
    planned, left_out = compression.plan()
    if not planned:
        raise ValueError(f"No method can be run: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}.")
    compression.run(planned)
    results = compression.report(["plain", *planned], left_out)
    write_text_atomically(root / "results.json", json.dumps(results, indent=2) + "\n")
    write_text_atomically(root / "results.csv", as_csv(results))
    if is_matplotlib_available():
        save_plot(results, root / "results.png")
    else:
        logger.warning("No plot is written: matplotlib is not installed.")
    logger.info("\n" + as_markdown(results))
    logger.info(f"Models with their cards are in {str(root / 'models')!r}.")
    return results


if __name__ == "__main__":
    run_script(main)
