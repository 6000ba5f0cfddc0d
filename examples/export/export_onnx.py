#!/usr/bin/env python
# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Exports a subnet or a routed encoder (SHARCS) to ONNX, for any batch size and length.

    python export_onnx.py --model_name_or_path mos-bert-60m --output_dir onnx/mos-bert-60m
    python export_onnx.py --model_name_or_path runs/sharcs-sst2 --compute_budget 0.5 --output_dir onnx/sharcs-sst2
    python export_onnx.py --model_name_or_path runs/sharcs-sst2 --width 0.25 --quantize dynamic --output_dir onnx/int8

A subnet, or a routed encoder at a forced width, is one graph, model.onnx. A routed encoder is a graph up to the router
(front.onnx), a graph for each width after it, and routing.json with the price and what each width costs;
routed_runner.py runs them. Model and graphs are compared, and timed in turns, on random rows or on texts, 8-bit graphs
also with the same ones in float32. With labelled rows (--task_name, --data_dir or --validation_file, as run_glue.py
reads them) each gets its score. Needs the extra `onnx`: pip install -c constraints.txt -e '.[onnx]'.
"""

import copy
import importlib.util
import json
import math
import os
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, logging


# The helpers are one folder up and in another one, the runner is beside; example scripts are run from anywhere and are
# not installed.
EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "export"), str(EXAMPLES / "text-classification")]
import modeling_mos  # noqa: E402, F401 - registers its models with the auto classes
from example_utils import (  # noqa: E402
    parse_arguments,
    require_new_folder,
    run_script,
    show_progress_messages,
    write_folder_atomically,
    write_text_atomically,
)
from glue_utils import (  # noqa: E402
    DataArguments,
    get_label_names,
    glue_compute_metrics,
    load_task_datasets,
    load_tokenizer,
    make_collator,
    preprocess,
)
from modeling_mos.conversion import BACKBONE_MODEL_TYPES as STOCK_SUBNETS  # noqa: E402
from modeling_sharcs import SharcsPreTrainedModel  # noqa: E402
from modeling_sharcs.modeling_sharcs import SlicedLinear  # noqa: E402
from sharcs_utils import longest_input  # noqa: E402


logger = logging.get_logger("export_onnx")

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# By what follows "For" in the name of a model's class; anything else is a model without a head.
HEADS = {
    "MaskedLM": (AutoModelForMaskedLM, ["logits"]),
    "SequenceClassification": (AutoModelForSequenceClassification, ["logits"]),
    "TokenClassification": (AutoModelForTokenClassification, ["logits"]),
    "QuestionAnswering": (AutoModelForQuestionAnswering, ["start_logits", "end_logits"]),
}
NO_HEAD = (AutoModel, ["last_hidden_state"])
MOST_TEXTS = 64
ROUNDS = 7
SCORED_BATCH = 32
# Options that are run_glue.py's own.
DATA_OPTIONS = ("task_name", "data_dir", "validation_file", "text_columns", "label_column", "max_eval_samples")
# Graphs before they are quantized, until they have been compared.
FLOAT32 = "float32"


@dataclass
class ExportArguments:
    """What to export, and how."""

    model_name_or_path: str = field(metadata={"help": "A subnet or a SHARCS model: a Hub name or a folder."})
    output_dir: str = field(metadata={"help": "Folder to write, new or empty."})
    width: float | None = field(
        default=None, metadata={"help": "SHARCS: export this width alone, as one graph without a router."}
    )
    compute_budget: float | None = field(
        default=None,
        metadata={"help": "SHARCS: share of full FLOPs to spend, instead of what the model is set to."},
    )
    quantize: str | None = field(
        default=None,
        metadata={"help": "'dynamic': 8-bit weights, activations scaled as they come.", "choices": ["dynamic"]},
    )
    text_file: str | None = field(
        default=None,
        metadata={"help": f"One text a line, of which the first {MOST_TEXTS} are compared instead of random rows."},
    )
    task_name: str | None = field(
        default=None, metadata={"help": "A GLUE task, whose validation rows model and graphs are scored on."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "A folder with the task's classic TSV files."})
    validation_file: str | None = field(
        default=None, metadata={"help": "Labelled rows to score on: a .csv, .tsv, .json or .jsonl file."}
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "Its column of text, or two for pairs; those of run_glue.py if not given."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Its column of labels, likewise."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Score on so many rows at most."})

    @property
    def data(self) -> DataArguments | None:
        """Labelled rows, where some are named."""
        names = {name: getattr(self, name) for name in DATA_OPTIONS}
        return DataArguments(**names) if any(value is not None for value in names.values()) else None

    def __post_init__(self):
        self.data  # noqa: B018 - refuses what contradicts itself
        if self.width is not None and self.compute_budget is not None:
            raise ValueError(
                f"--width {self.width} runs every row at one width, so that --compute_budget {self.compute_budget} "
                "has no effect; give one of them."
            )


def require_packages(names: Sequence[str] = PACKAGES) -> None:
    """
    Raises:
        ValueError: One of the packages is not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"The export needs {', '.join(missing)}: pip install -c constraints.txt -e '.[onnx]'.")


# ---- the model ------------------------------------------------------------------------------------------------------


def find_head(class_name: str) -> tuple[type, list[str]]:
    """The auto class that opens a class of models, and the outputs of its head."""
    return HEADS.get(class_name.partition("For")[2], NO_HEAD)


def output_names(model: PreTrainedModel) -> list[str]:
    return find_head(type(model).__name__)[1]


def load_model(options: ExportArguments) -> PreTrainedModel:
    """
    The model in evaluation mode, a routed one with the price that it is to run at.

    Raises:
        ValueError: The model is a supernet or of another kind; an option that it does not have; a routed encoder
            whose router nobody has set.
    """
    name = options.model_name_or_path
    config = AutoConfig.from_pretrained(name)
    if config.model_type == "mos":
        raise ValueError(
            f"{name!r} is a supernet, whose weights depend on the architecture; take a subnet out first: "
            "`extract_subnet(…).save_pretrained(folder)`."
        )
    if config.model_type not in ("mos_subnet", "sharcs", *STOCK_SUBNETS):
        raise ValueError(
            f"{name!r} is a {config.model_type!r} model; this script exports subnets "
            f"({', '.join(STOCK_SUBNETS)}, mos_subnet) and SHARCS models."
        )
    auto_class, _ = find_head((config.architectures or [""])[0])
    model = auto_class.from_pretrained(name, dtype=torch.float32).eval()
    if not isinstance(model, SharcsPreTrainedModel):
        for option in ("width", "compute_budget"):
            if getattr(options, option) is not None:
                raise ValueError(f"--{option} is for SHARCS models; {name!r} is a {config.model_type!r} model.")
        return model
    if options.width is not None:
        model.width_index(options.width)  # refuses a width that the model does not have
    elif options.compute_budget is not None:
        model.set_compute_budget(options.compute_budget)
    elif config.router_price is None and len(config.width_multipliers) > 1:
        raise ValueError(
            f"{name!r} has no router price, so that every row would take the widest path. Set one with "
            "`calibrate(…)` and `set_compute_budget(…)`, then save it; or export that path alone: --width 1."
        )
    return model


def input_names(config: PreTrainedConfig) -> list[str]:
    """What the model reads; a single token type, or none, is nothing to tell it."""
    types = ["token_type_ids"] if config.type_vocab_size > 1 else []
    return ["input_ids", "attention_mask", *types]


def random_inputs(config: PreTrainedConfig, rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of random tokens and different lengths."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, tokens)
    real = torch.arange(tokens) < tokens - torch.arange(rows)[:, None] % (tokens // 2)
    input_ids = torch.randint(config.vocab_size, shape, generator=generator)
    values = {
        "input_ids": torch.where(real, input_ids, config.pad_token_id or 0),
        "attention_mask": real.long(),
        "token_type_ids": torch.randint(max(1, config.type_vocab_size), shape, generator=generator),
    }
    return {name: values[name] for name in input_names(config)}


# ---- graphs ---------------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """A model as exporters want it: tensors in by position, tensors out."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[str],
        select: Callable[[ModelOutput], Sequence[torch.Tensor]],
        **arguments: Any,
    ):
        super().__init__()
        self.model, self.inputs, self.select, self.arguments = model, inputs, select, arguments
        self.eval()

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.select(self.model(**dict(zip(self.inputs, values, strict=True)), **self.arguments)))


class PassOn(nn.Module):
    """Embeddings that are given ready."""

    def forward(self, input_ids, token_type_ids, position_ids, inputs_embeds):
        return inputs_embeds


def without_front(model: SharcsPreTrainedModel) -> SharcsPreTrainedModel:
    """A copy that begins after the router: its `inputs_embeds` are the output of the last full-width layer."""
    rest = copy.deepcopy(model)
    encoder = rest.base_model
    encoder.embeddings, encoder.router = PassOn(), None
    encoder.layers = encoder.layers[encoder.config.router_layer :]
    encoder.config.router_layer = 0
    return rest


@torch.no_grad()
def keep_used_slices(graph: Graph, inputs: Sequence[torch.Tensor]) -> None:
    """
    Cuts the weights of a routed encoder to what this graph uses of them, in place. Exporters would write whole weights
    and slice them at every run.
    """

    def cut(linear: SlicedLinear, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        linear.weight = nn.Parameter(linear.weight[: made.shape[-1], : given[0].shape[-1]].clone())
        linear.bias = nn.Parameter(linear.bias[: made.shape[-1]].clone())

    hooks = [module.register_forward_hook(cut) for module in graph.model.modules() if isinstance(module, SlicedLinear)]
    graph(*inputs)
    for hook in hooks:
        hook.remove()


def export_graph(
    graph: Graph, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str], path: Path, quantize: bool
) -> int:
    """
    Writes one graph, whose batch size and length are free.

    Args:
        graph (`Graph`): The model, of which only what the graph uses is left.
        inputs (mapping of `str` to `torch.Tensor` of shape `(batch, tokens, …)`): Examples, by their names in ONNX.
        outputs (sequence of `str`): Names of what comes out.
        path (`Path`): File to write.
        quantize (`bool`): Whether its weights are stored in 8 bits.

    Returns:
        `int`: Bytes of the file with 32-bit weights.
    """
    axes = {0: "batch", 1: "tokens"}
    keep_used_slices(graph, tuple(inputs.values()))
    with warnings.catch_warnings():
        # The exporter's own: of what it is built on, and that an axis of several inputs has one name.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=((axes,) * len(inputs),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    size = path.stat().st_size
    if quantize:
        quantize_weights(path)
    return size


def quantize_weights(path: Path) -> None:
    """Rewrites a graph with 8-bit weights, and activations that are scaled as they come; keeps the one it was."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path)
    # The exporter notes the shapes of weights, which quantization transposes and then finds contradicted.
    del graph.graph.value_info[:]
    before = path.parent / FLOAT32 / path.name
    before.parent.mkdir(exist_ok=True)
    os.replace(path, before)
    quantize_dynamic(graph, path, weight_type=QuantType.QInt8, per_channel=True)


def export_model(model: PreTrainedModel, folder: Path, quantize: bool = False, **arguments: Any) -> int:
    """
    Writes a model, called with `arguments`, as one graph, `model.onnx`.

    Returns:
        `int`: Bytes of the file with 32-bit weights.
    """
    inputs, outputs = random_inputs(model.config, 2, 8), output_names(model)
    graph = Graph(copy.deepcopy(model), list(inputs), lambda found: [found[name] for name in outputs], **arguments)
    return export_graph(graph, inputs, outputs, folder / "model.onnx", quantize)


def export_routed(model: SharcsPreTrainedModel, folder: Path, quantize: bool = False) -> int:
    """
    Writes a routed encoder as a graph up to the router, one a width, and `routing.json`.

    Returns:
        `int`: Bytes of the graphs with 32-bit weights.
    """
    config = model.config
    inputs, outputs = random_inputs(config, 2, 8), output_names(model)
    widths = config.width_multipliers
    # What comes after the router is not part of what is selected, so that the exporter leaves it out.
    front = Graph(
        copy.deepcopy(model),
        list(inputs),
        lambda found: [found.hidden_states[config.router_layer], found.router_logits],
        width=widths[0],
        output_hidden_states=True,
    )
    size = export_graph(front, inputs, ["hidden", "router_logits"], folder / "front.onnx", quantize)
    hidden = torch.zeros(*inputs["input_ids"].shape, config.hidden_size)
    rows = []
    costs = zip(widths, model.base_model.relative_costs(), strict=True)
    for width, cost in tqdm(costs, desc="Exporting widths", total=len(widths)):
        path = Graph(
            without_front(model),
            ["inputs_embeds", "attention_mask"],
            lambda found: [found[name] for name in outputs],
            width=width,
        )
        name = f"width_{width:.4g}.onnx"
        values = {"hidden": hidden, "attention_mask": inputs["attention_mask"]}
        size += export_graph(path, values, outputs, folder / name, quantize)
        rows.append({"width": width, "cost": cost, "graph": name})
    routing = {
        "inputs": list(inputs),
        "outputs": outputs,
        "outputs_per_token": type(model).__name__.partition("For")[2] != "SequenceClassification",
        "price": config.router_price,
        "front": "front.onnx",
        "widths": rows,
    }
    write_text_atomically(folder / "routing.json", json.dumps(routing, indent=2) + "\n")
    return size


# ---- comparison -----------------------------------------------------------------------------------------------------

Run = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


def read_rows(options: ExportArguments, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """
    What is compared: texts, or random rows, more and longer ones than the graphs were made with.

    Raises:
        ValueError: The text file has no lines with text.
    """
    if options.text_file is None:
        return random_inputs(config, 8, 24, seed=1)
    lines = Path(options.text_file).read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()][:MOST_TEXTS]
    if not texts:
        raise ValueError(f"The text file {options.text_file!r} has no lines with text.")
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    longest = longest_input(config, tokenizer)
    rows = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {name: rows[name] for name in input_names(config)}


def open_graphs(folder: Path, routed: bool, outputs: Sequence[str]) -> Run:
    """What a user of the folder calls."""
    if routed:
        from routed_runner import RoutedRunner

        runner = RoutedRunner(folder)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        arrays = {name: values.numpy() for name, values in inputs.items()}
        found = runner(**arrays) if routed else dict(zip(outputs, session.run(outputs, arrays), strict=True))
        return {name: torch.from_numpy(values) for name, values in found.items()}

    return run


def time_in_turns(contestants: Mapping[str, Run], inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Milliseconds of a call, medians over rounds in which all take turns, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in tqdm(range(ROUNDS + 1), desc="Timing"):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(inputs)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def compare(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], mask: torch.Tensor, outputs: Sequence[str]
) -> dict[str, float]:
    """
    Outputs of the graphs against the model's, at real tokens.

    Returns:
        `dict[str, float]`: The largest difference; the share of rows, or tokens, with the same best answer where the
        outputs are scores; and of a routed encoder the share of rows that take the same width, on which alone outputs
        are compared.
    """
    result = {}
    same = torch.ones(len(mask), dtype=torch.bool)
    if "width_indices" in found:
        same = found["width_indices"] == expected["width_indices"]
        result["same_width"] = same.float().mean().item()
    real = mask.bool() & same[:, None]
    differences, answers = [0.0], []
    for name in outputs:
        own, other = found[name], expected[name]
        kept = real if own.shape[:2] == real.shape else same
        if not kept.any():
            continue
        differences.append((own[kept] - other[kept]).abs().max().item())
        if name.endswith("_logits"):  # scores of places, among which padding is none
            kept, own, other = same, own.masked_fill(~real, -math.inf), other.masked_fill(~real, -math.inf)
        if name.endswith("logits"):
            answers.append((own[kept].argmax(dim=-1) == other[kept].argmax(dim=-1)).float())
    result["largest_difference"] = max(differences)
    if answers:
        result["same_answer"] = torch.cat(answers).mean().item()
    return result


def read_labelled_rows(data: DataArguments, model: PreTrainedModel, name: str):
    """
    Validation rows in batches, with labels in the model's order, and the metrics that score them.

    Raises:
        ValueError: The model is no sequence classifier, or knows other labels; there are no validation rows.
    """
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise ValueError(f"{type(model).__name__} is not scored on labelled rows, only sequence classifiers are.")
    raw = load_task_datasets(data)
    if "validation" not in raw:
        raise ValueError("There are no rows to score on; give validation_file, or a task with a validation split.")
    tokenizer = load_tokenizer(name, model.config.vocab_size)
    data.max_seq_length = min(data.max_seq_length, longest_input(model.config, tokenizer))
    rows = preprocess(DatasetDict(validation=raw["validation"]), tokenizer, data, config=model.config)["validation"]
    names = get_label_names(DatasetDict(validation=rows))
    rows = rows.select_columns([*input_names(model.config), "label"])
    loader = DataLoader(rows, SCORED_BATCH, collate_fn=make_collator(tokenizer, data, half_precision=False))
    return loader, glue_compute_metrics(data.task_name, names is None, names)


def score(
    contestants: Mapping[str, Run], loader: DataLoader, compute_metrics: Callable[[EvalPrediction], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Metrics of every contestant on the same batches."""
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in contestants}
    labels = []
    for batch in tqdm(loader, desc="Scoring"):
        labels.append(batch.pop("labels"))
        for name, run in contestants.items():
            logits[name].append(run(batch)["logits"])
    references = torch.cat(labels).numpy()
    return {
        name: compute_metrics(EvalPrediction(torch.cat(found).numpy(), references)) for name, found in logits.items()
    }


def save_tokenizer(name: str, model: PreTrainedModel, folder: Path) -> None:
    """Puts the model's tokenizer beside its graphs, which are then opened without the model's folder."""
    try:
        tokenizer = load_tokenizer(name, model.config.vocab_size)
    except ValueError as error:  # a model that was saved alone
        logger.warning(f"No tokenizer is put beside the graphs: {str(error).split('. ')[0]}.")
    else:
        tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    (options,) = parse_arguments(ExportArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    require_packages()
    require_new_folder(options.output_dir)
    model = load_model(options)
    rows = read_rows(options, model.config)
    labelled = None if options.data is None else read_labelled_rows(options.data, model, options.model_name_or_path)
    quantize = options.quantize == "dynamic"
    forced = {} if options.width is None else {"width": options.width}
    # A single width leaves nothing to route.
    routed = isinstance(model, SharcsPreTrainedModel) and not forced and len(model.config.width_multipliers) > 1
    with write_folder_atomically(options.output_dir) as folder:
        if routed:
            size = export_routed(model, folder, quantize)
        else:
            size = export_model(model, folder, quantize, **forced)
        save_tokenizer(options.model_name_or_path, model, folder)
        written = sum(file.stat().st_size for file in folder.glob("*.onnx"))
        outputs = output_names(model)

        @torch.no_grad()
        def run_model(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
            return model(**inputs, **forced)

        contestants: dict[str, Run] = {"pytorch": run_model, "onnx": open_graphs(folder, routed, outputs)}
        if quantize:
            if routed:
                shutil.copy(folder / "routing.json", folder / FLOAT32)
            contestants["onnx_float32"] = open_graphs(folder / FLOAT32, routed, outputs)
            shutil.rmtree(folder / FLOAT32)
        found = compare(run_model(rows), contestants["onnx"](rows), rows["attention_mask"], outputs)
        milliseconds = time_in_turns(contestants, rows)
        scores = {} if labelled is None else {"scores": score(contestants, *labelled)}
    report = {"bytes": written, "bytes_float32": size, **found, **scores, "milliseconds": milliseconds}
    logger.info("Wrote %s: %.1f MB (%.1f MB in float32).", options.output_dir, written / 1e6, size / 1e6)
    what = "random rows" if options.text_file is None else f"rows of {options.text_file}"
    logger.info("Largest difference from PyTorch on %s: %.2g.", what, report["largest_difference"])
    for name, meaning in (("same_answer", "have the same best answer"), ("same_width", "take the same width")):
        if name in report:
            logger.info("%.1f%% of them %s.", 100 * report[name], meaning)
    for name, metrics in report.get("scores", {}).items():
        logger.info("%s: %s.", name, ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items()))
    logger.info(
        "A batch of %d rows, in turns: %s.",
        len(rows["attention_mask"]),
        ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items()),
    )
    return report


if __name__ == "__main__":
    run_script(main)
