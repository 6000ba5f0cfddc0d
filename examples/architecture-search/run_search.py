# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Searches the best subnet of a Mixture-of-Supernets model under limits, and takes it out.

The best subnet with at most 50 million parameters, on masked-LM loss:

    python run_search.py --model_name_or_path runs/supernet --dataset_path data --max_parameters 50000000 \
        --output_dir runs/search-50m

The best for a GLUE task, on its metric, out of a supernet that was fine-tuned on the task (with SupernetTrainer):

    python run_search.py --model_name_or_path runs/supernet-mnli --task_name mnli --data_dir glue \
        --max_parameters 50000000 --output_dir runs/search-mnli

The whole front of loss against latency measured on this machine:

    python run_search.py --model_name_or_path runs/supernet --dataset_path data --trade_off latency \
        --latency_batch_size 8 --output_dir runs/search-front

Several processes divide the candidates: torchrun --nproc_per_node 2 run_search.py … A search that was killed continues
when the command is given again. The output folder then holds every evaluation (results.jsonl), the front (front.json,
front.png), the best subnet (subnet/) and the supernet with the front in its configuration (supernet/), from which
`extract_subnet(max_parameters=…)` takes any of it.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import DatasetDict, load_from_disk
from transformers import AutoConfig, AutoTokenizer, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_matplotlib_available, logging


EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "text-classification")]

from example_utils import (  # noqa: E402
    parse_arguments,
    run_script,
    show_progress_messages,
    write_text_atomically,
)
from glue_utils import (  # noqa: E402
    DataArguments,
    get_label_names,
    glue_compute_metrics,
    load_task_datasets,
    main_metric,
    make_collator,
    preprocess,
)
from modeling_mos import (  # noqa: E402
    Architecture,
    CostTable,
    EvolutionarySearch,
    MaskedLMObjective,
    MosForMaskedLM,
    MosForSequenceClassification,
    MosPreTrainedModel,
    SearchConstraints,
    SearchResult,
    TaskObjective,
    load_latency,
    measure_architectures,
    measure_latency,
    name_front,
    save_latency,
)
from sharcs_utils import longest_input  # noqa: E402
from teacher_utils import load_trained  # noqa: E402
from trainers import MaskedLanguageModelingDataset, write_model_card  # noqa: E402


logger = logging.get_logger("run_search")


@dataclass
class SearchArguments:
    """What to search, within which limits, and how."""

    model_name_or_path: str = field(metadata={"help": "A trained supernet: a Hub name or a folder."})
    output_dir: str = field(metadata={"help": "Where results are written, and read from when a search continues."})
    dataset_path: str | None = field(
        default=None,
        metadata={"help": "A folder that prepare_pretraining_data.py wrote; its validation split judges candidates."},
    )
    task_name: str | None = field(
        default=None, metadata={"help": "A GLUE task whose metric judges candidates instead, on its validation rows."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the task's classic TSV files."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens of the task's rows; longer ones are cut."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer; by default the one beside the data, else the model's."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only the first validation rows."})
    mlm_probability: float = field(
        default=0.15, metadata={"help": "Share of tokens to predict; their choice is fixed."}
    )
    eval_batch_size: int = field(default=64, metadata={"help": "Sequences in a forward pass."})

    min_parameters: int | None = field(default=None, metadata={"help": "Fewest parameters of the subnet."})
    max_parameters: int | None = field(default=None, metadata={"help": "Most parameters of the subnet."})
    min_published_size: int | None = field(
        default=None, metadata={"help": "Smallest size as the published tables count it."}
    )
    max_published_size: int | None = field(
        default=None, metadata={"help": "Largest size as the published tables count it."}
    )
    min_flops: int | None = field(default=None, metadata={"help": "Fewest FLOPs of a sequence of --sequence_length."})
    max_flops: int | None = field(default=None, metadata={"help": "Most FLOPs of a sequence of --sequence_length."})
    min_latency: float | None = field(default=None, metadata={"help": "Least milliseconds a batch, on this device."})
    max_latency: float | None = field(default=None, metadata={"help": "Most milliseconds a batch, on this device."})
    sequence_length: int = field(
        default=128, metadata={"help": "Tokens of the sequences that FLOPs and latency count."}
    )
    latency_batch_size: int = field(default=1, metadata={"help": "Sequences of the batch that latency counts."})
    latency_rounds: int = field(default=5, metadata={"help": "Measurements of each layer choice."})

    trade_off: str | None = field(
        default=None,
        metadata={
            "help": "Search the front of loss against this cost instead of the single best.",
            "choices": ["parameters", "published_size", "flops", "latency"],
        },
    )
    population_size: int = field(default=125, metadata={"help": "Architectures of the first population."})
    parent_size: int = field(default=25, metadata={"help": "Architectures that a round keeps."})
    mutation_size: int = field(default=50, metadata={"help": "Mutants of a round."})
    crossover_size: int = field(default=50, metadata={"help": "Children of two parents of a round."})
    mutation_probability: float = field(default=0.3, metadata={"help": "Chance of each size to be drawn anew."})
    num_rounds: int = field(default=30, metadata={"help": "Rounds of evolution."})
    patience: int | None = field(default=None, metadata={"help": "End after so many rounds without a new parent."})
    exhaustive: bool = field(
        default=False, metadata={"help": "Race every architecture inside the limits, of a space of at most 100,000."}
    )
    racing: bool = field(
        default=True, metadata={"help": "False evaluates every candidate on all sequences, as published."}
    )
    first_slice: int | None = field(default=None, metadata={"help": "Sequences that every candidate sees."})
    confidence: float = field(
        default=2.5, metadata={"help": "Standard errors that a candidate must be behind to drop out."}
    )
    num_finalists: int | None = field(default=None, metadata={"help": "Candidates that at least see all sequences."})
    seed: int = field(default=0, metadata={"help": "Seed of population, mutants and children."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    show_progress: bool = field(default=True, metadata={"help": "Show progress bars."})

    def __post_init__(self):
        if (self.dataset_path is None) == (self.task_name is None):
            raise ValueError("Name what judges candidates: either --dataset_path (masked-LM loss) or --task_name.")
        if self.max_eval_samples is not None and self.max_eval_samples < 1:
            raise ValueError(f"`max_eval_samples` must be at least 1, got {self.max_eval_samples}.")
        self._refuse_unless(self.task_name is not None, "--task_name", "data_dir", "max_seq_length")
        self._refuse_unless(self.dataset_path is not None, "--dataset_path", "mlm_probability")
        by_latency = "a limit on latency or --trade_off latency"
        self._refuse_unless(self.counts_latency, by_latency, "latency_batch_size", "latency_rounds")

    @property
    def counts_latency(self) -> bool:
        return self.trade_off == "latency" or self.min_latency is not None or self.max_latency is not None

    def _refuse_unless(self, acts: bool, condition: str, *names: str) -> None:
        for name in names:
            given = getattr(self, name)
            if not acts and given != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"`{name}` ({given!r}) only acts with {condition}; leave it out.")


# Arguments that the search takes under the same names.
_SEARCH_OPTIONS = (
    "trade_off",
    "population_size",
    "parent_size",
    "mutation_size",
    "crossover_size",
    "mutation_probability",
    "num_rounds",
    "patience",
    "exhaustive",
    "racing",
    "first_slice",
    "confidence",
    "num_finalists",
    "seed",
    "output_dir",
    "show_progress",
)
# How far, as a share, latencies that the table predicts may be off before a warning.
LATENCY_TOLERANCE = 0.1
_BOUNDS = ("parameters", "published_size", "flops", "latency")


def load_model(arguments: SearchArguments, state: PartialState) -> MosPreTrainedModel:
    """
    The supernet, with the head that candidates are judged with.

    Raises:
        ValueError: if it is no supernet, or that head was not trained.
    """
    kind = AutoConfig.from_pretrained(arguments.model_name_or_path).model_type
    if kind != "mos":
        raise ValueError(
            f"{arguments.model_name_or_path!r} is a {kind!r} model, not a supernet; give the folder in which "
            "run_mlm_mos.py trained a supernet, not that of a subnet."
        )
    if arguments.task_name is None:
        model_class, way_out = MosForMaskedLM, "search by a task with --task_name, or give a masked-LM supernet."
    else:
        model_class = MosForSequenceClassification
        way_out = "fine-tune the supernet on the task first, with SupernetTrainer (see the README)."
    return load_trained(model_class, arguments.model_name_or_path, way_out).to(state.device).eval()


def load_objective(
    arguments: SearchArguments, supernet: MosPreTrainedModel
) -> tuple[MaskedLMObjective | TaskObjective, PreTrainedTokenizerBase]:
    """
    What judges candidates, and the tokenizer.

    Raises:
        ValueError: if the data has no validation rows, or is not the supernet's.
    """
    if arguments.task_name is not None:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer_name or arguments.model_name_or_path)
        return load_task_objective(arguments, supernet, tokenizer), tokenizer
    folder = Path(arguments.dataset_path)
    if not (folder / "dataset_dict.json").is_file():
        raise ValueError(f"{str(folder)!r} is not a prepared data folder; write one with prepare_pretraining_data.py.")
    splits = load_from_disk(str(folder))
    if "validation" not in splits:
        raise ValueError(f"The data in {str(folder)!r} has the splits {list(splits)}, none of them is 'validation'.")
    rows = splits["validation"]
    if arguments.max_eval_samples is not None:
        rows = rows.select(range(min(arguments.max_eval_samples, len(rows))))
    beside = folder / "tokenizer"
    name = arguments.tokenizer_name or (str(beside) if beside.is_dir() else arguments.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(name)
    if supernet.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"The supernet's vocabulary has {supernet.config.vocab_size} entries, the tokenizer {len(tokenizer)}; the "
            "data was prepared for another model."
        )
    longest, positions = max(map(len, rows["input_ids"]), default=0), longest_input(supernet.config, tokenizer)
    if longest > positions:
        raise ValueError(
            f"The data in {str(folder)!r} has sequences of {longest} tokens, the supernet {positions} positions; "
            f"prepare it with --max_seq_length {positions}."
        )
    # The masks are the ones that run_mlm_mos.py evaluates on.
    rows = MaskedLanguageModelingDataset(rows, tokenizer, 0, arguments.mlm_probability)
    return MaskedLMObjective(rows, batch_size=arguments.eval_batch_size), tokenizer


def load_task_objective(
    arguments: SearchArguments, supernet: MosPreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> TaskObjective:
    data = DataArguments(
        task_name=arguments.task_name,
        data_dir=arguments.data_dir,
        max_seq_length=min(arguments.max_seq_length, longest_input(supernet.config, tokenizer)),
        max_eval_samples=arguments.max_eval_samples,
    )
    raw = load_task_datasets(data)
    if "validation" not in raw:
        raise ValueError(f"The task {arguments.task_name!r} has no validation rows in {arguments.data_dir!r}.")
    names = get_label_names(raw)
    judges = DatasetDict(validation=raw["validation"])
    rows = preprocess(judges, tokenizer, data, names, config=supernet.config)["validation"]
    ordered = rows.features["label"].names if names is not None else None
    compute_metrics = glue_compute_metrics(arguments.task_name, names is None, ordered)
    name = main_metric(arguments.task_name, names is None)

    def metric(logits, labels) -> float:
        return compute_metrics(EvalPrediction(logits, labels if names is None else labels.astype(int)))[name]

    collate = make_collator(tokenizer, data, half_precision=False)
    return TaskObjective(rows.rename_column("label", "labels"), collate, metric, arguments.eval_batch_size, name=name)


def find_latency(arguments: SearchArguments, supernet: MosPreTrainedModel, state: PartialState) -> CostTable | None:
    """The measured table, if a limit or the trade-off needs one: measured once, then read from the output folder."""
    if not arguments.counts_latency:
        return None
    path = Path(arguments.output_dir) / "latency.json"
    if state.is_main_process and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        table = measure_latency(
            supernet,
            arguments.latency_batch_size,
            arguments.sequence_length,
            arguments.latency_rounds,
            arguments.show_progress,
        )
        save_latency(table, path, **_latency_facts(arguments, supernet))
    state.wait_for_everyone()
    facts = json.loads(path.read_text(encoding="utf-8"))
    for name, value in _latency_facts(arguments, supernet).items():
        if facts.get(name) != value:
            raise ValueError(
                f"{str(path)!r} was measured with {name}={facts.get(name)!r}, this search has {value!r}; delete the "
                "file to measure again, or choose another --output_dir."
            )
    return load_latency(path, supernet)


def _latency_facts(arguments: SearchArguments, supernet: MosPreTrainedModel) -> dict[str, Any]:
    return {
        "batch_size": arguments.latency_batch_size,
        "sequence_length": arguments.sequence_length,
        "device": supernet.device.type,
        "threads": torch.get_num_threads(),
    }


def check_latency(
    arguments: SearchArguments, supernet: MosPreTrainedModel, table: CostTable, architectures: Sequence[Architecture]
) -> dict[str, Any]:
    """
    How well the table predicts architectures that are measured directly. A machine that others share is faster or
    slower from one minute to the next, for all architectures alike: errors beside that common factor are told apart.
    """
    measured = measure_architectures(
        supernet,
        architectures,
        arguments.latency_batch_size,
        arguments.sequence_length,
        arguments.latency_rounds,
        arguments.show_progress,
    )
    predicted = [table(architecture) for architecture in architectures]
    ratios = [value / other for value, other in zip(predicted, measured, strict=True)]
    errors, common = [ratio - 1 for ratio in ratios], statistics.median(ratios)
    return {
        "architectures": [architecture.to_dict() for architecture in architectures],
        "predicted_milliseconds": predicted,
        "measured_milliseconds": measured,
        "largest_relative_error": max(map(abs, errors)),
        "mean_relative_error": sum(map(abs, errors)) / len(errors),
        "common_factor": common,
        "largest_relative_error_beside_it": max(abs(ratio / common - 1) for ratio in ratios),
    }


def say_latency_check(check: dict[str, Any], table: Path, max_latency: float | None) -> None:
    """
    A table that is off by more than a tenth is no ground for a limit in milliseconds; and whether the best, the first
    that is measured, keeps it.
    """
    best = check["measured_milliseconds"][0]
    if max_latency is not None and best > max_latency:
        logger.warning(
            f"The best architecture takes {best:.4g} ms, measured now; the table predicts "
            f"{check['predicted_milliseconds'][0]:.4g}, and the limit is {max_latency:.4g}."
        )
    largest, beside = check["largest_relative_error"], check["largest_relative_error_beside_it"]
    message = (
        f"Latencies that the table predicts are off by up to {largest:.1%}, measured now; by {beside:.1%} beside what "
        "is common to all."
    )
    if largest <= LATENCY_TOLERANCE:
        logger.info(message)
    else:
        logger.warning(
            f"{message} That is more than {LATENCY_TOLERANCE:.0%}: the device was busy, then or now. If milliseconds "
            f"matter, delete {str(table)!r} and search again while nothing else runs."
        )


def plot(result: SearchResult, cost: str, score: str, path: Path) -> None:
    """Finalists and front, and the widths of the front's architectures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, candidates, style in (
        ("finalists", result.finalists, {"marker": ".", "linestyle": "none", "alpha": 0.5}),
        ("front", result.front, {"marker": "o", "drawstyle": "steps-post"}),
        ("best", [result.best], {"marker": "*", "markersize": 12, "linestyle": "none"}),
    ):
        left.plot(
            [found.costs[cost] for found in candidates], [found.score for found in candidates], label=name, **style
        )
    left.set(xlabel=cost.replace("_", " "), ylabel=score, title="Candidates evaluated on all sequences")
    left.legend(loc="best")
    for entry, found in zip(name_front(result.front), result.front, strict=True):
        widths = found.architecture.hidden_sizes
        if len(result.front) <= 8 or found in (result.front[0], result.best, result.front[-1]):
            right.step(range(1, len(widths) + 1), widths, where="mid", label=f"{entry['name']}: {found.score:.4g}")
    right.set(xlabel="layer", ylabel="width", title="Architectures of the front")
    right.legend(loc="best")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    temporary = path.with_suffix(".partial")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)


def report(arguments: SearchArguments, search: EvolutionarySearch, result: SearchResult) -> dict[str, Any]:
    """What front.json holds."""
    whole = result.num_candidates * search.total_rows
    return {
        "objective": search.objective.name,
        "constraints": search.constraints.to_dict(),
        "trade_off": arguments.trade_off,
        "seed": arguments.seed,
        "best": result.best.to_dict(),
        "front": name_front(result.front),
        "finalists": [found.to_dict() for found in result.finalists],
        "cost": {
            "rounds": result.rounds,
            "candidates": result.num_candidates,
            "sequences": result.num_rows,
            "sequences_of_full_evaluation": whole,
            "share_of_full_evaluation": result.num_rows / whole,
        },
    }


def search_facts(arguments: SearchArguments, results: dict[str, Any]) -> dict[str, Any]:
    """How the search went, for model cards."""
    cost = results["cost"]
    limits = ", ".join(f"{name}={value:,}" for name, value in results["constraints"].items()) or "none"
    facts = {"found by": f"evolutionary search by {results['objective']}", "limits": limits, "seed": arguments.seed}
    if arguments.trade_off is not None:
        facts["traded off against"] = arguments.trade_off
    if "latency" in results:
        measured = results["latency"]
        facts["latency"] = (
            f"milliseconds a batch of {measured['batch_size']} x {measured['sequence_length']} tokens, predicted for "
            f"the device of the search ({measured['device']}, {measured['threads']} threads)"
        )
    return {**facts, "candidates": f"{cost['candidates']:,} in {cost['rounds']} rounds"}


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    facts: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> None:
    """A model with its tokenizer and a card that says how it was found."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_model_card(model, folder, training=facts, metrics=metrics)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    (arguments,) = parse_arguments(SearchArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    state = PartialState(cpu=arguments.use_cpu)
    supernet = load_model(arguments, state)
    objective, tokenizer = load_objective(arguments, supernet)
    bounds = {f"{end}_{what}": getattr(arguments, f"{end}_{what}") for what in _BOUNDS for end in ("min", "max")}
    constraints = SearchConstraints(
        **bounds, sequence_length=arguments.sequence_length, latency=find_latency(arguments, supernet, state)
    )
    options = {name: getattr(arguments, name) for name in _SEARCH_OPTIONS}
    search = EvolutionarySearch(supernet, objective, constraints, **options)
    result = search.run()
    results = report(arguments, search, result)
    if not state.is_main_process:
        return results
    folder = Path(arguments.output_dir)
    if constraints.latency is not None:
        sample = [found.architecture for found in (result.best, *result.front[:4])]
        sample += [search.space.sample(seed) for seed in range(4)]
        results["latency_check"] = check_latency(arguments, supernet, constraints.latency, list(dict.fromkeys(sample)))
        say_latency_check(results["latency_check"], folder / "latency.json", arguments.max_latency)
        results["latency"] = _latency_facts(arguments, supernet)
    supernet.config.front = results["front"]
    save(supernet, tokenizer, folder / "supernet", search_facts(arguments, results))
    subnet = supernet.extract_subnet(result.best.architecture)
    save(subnet, tokenizer, folder / "subnet", search_facts(arguments, results), {objective.name: result.best.score})
    write_text_atomically(folder / "front.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    if is_matplotlib_available():
        plot(result, arguments.trade_off or "parameters", objective.name, folder / "front.png")
    else:
        logger.warning("No plot is written: matplotlib is not installed.")
    best, cost = result.best, results["cost"]
    logger.info(
        f"Best: {best.architecture}, {best.costs['parameters']:,} parameters, {objective.name} {best.score:.4f}; "
        f"{cost['candidates']:,} candidates saw {cost['sequences']:,} sequences, "
        f"{cost['share_of_full_evaluation']:.1%} of what evaluating each on all takes. The front of "
        f"{len(result.front)} is in {str(folder / 'front.json')!r}."
    )
    return results


if __name__ == "__main__":
    run_script(main)
