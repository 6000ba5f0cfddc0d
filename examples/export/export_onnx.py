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
routed_runner.py runs them. Needs the extra `onnx`: pip install 'elastic-encoders[onnx]'.
"""

import copy
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, logging


# The helpers are one folder up, the runner is beside; example scripts are run from anywhere and are not installed.
EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "export")]
import modeling_mos  # noqa: E402, F401 - registers its models with the auto classes
from example_utils import (  # noqa: E402
    parse_arguments,
    require_new_folder,
    run_script,
    show_progress_messages,
    write_folder_atomically,
    write_text_atomically,
)
from modeling_sharcs import SharcsPreTrainedModel  # noqa: E402
from modeling_sharcs.modeling_sharcs import SlicedLinear  # noqa: E402


logger = logging.get_logger("export_onnx")

STOCK_MODELS = ("bert", "roberta", "xlm-roberta", "camembert")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# By what follows "For" in the name of a model's class; anything else is a model without a head.
HEADS = {
    "MaskedLM": (AutoModelForMaskedLM, ["logits"]),
    "SequenceClassification": (AutoModelForSequenceClassification, ["logits"]),
    "TokenClassification": (AutoModelForTokenClassification, ["logits"]),
    "QuestionAnswering": (AutoModelForQuestionAnswering, ["start_logits", "end_logits"]),
}
NO_HEAD = (AutoModel, ["last_hidden_state"])


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

    def __post_init__(self):
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
        raise ValueError(f"The export needs {', '.join(missing)}: pip install 'elastic-encoders[onnx]'.")


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
    if config.model_type not in ("mos_subnet", "sharcs", *STOCK_MODELS):
        raise ValueError(
            f"{name!r} is a {config.model_type!r} model; this script exports subnets "
            f"({', '.join(STOCK_MODELS)}, mos_subnet) and SHARCS models."
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
    """Rewrites a graph with 8-bit weights, and activations that are scaled as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path)
    # The exporter notes the shapes of weights, which quantization transposes and then finds contradicted.
    del graph.graph.value_info[:]
    smaller = path.with_suffix(".int8")
    quantize_dynamic(graph, smaller, weight_type=QuantType.QInt8, per_channel=True)
    os.replace(smaller, path)


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
    for width, cost in zip(widths, model.base_model.relative_costs(), strict=True):
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


@torch.no_grad()
def compare(model: PreTrainedModel, folder: Path, routed: bool, **arguments: Any) -> dict[str, float]:
    """
    Runs model and graphs on random rows, more and longer ones than the graphs were made with.

    Returns:
        `dict[str, float]`: The largest difference of the head's outputs at real tokens, and of a routed encoder the
        share of rows that take the same width; outputs are compared on those.
    """
    inputs = random_inputs(model.config, 8, 24, seed=1)
    arrays = {name: values.numpy() for name, values in inputs.items()}
    expected, outputs = model(**inputs, **arguments), output_names(model)
    result = {}
    same = torch.ones(8, dtype=torch.bool)
    if routed:
        from routed_runner import RoutedRunner

        found = RoutedRunner(folder)(**arrays)
        same = torch.from_numpy(found["width_indices"]) == expected.width_indices
        result["same_width"] = same.float().mean().item()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        found = dict(zip(outputs, session.run(outputs, arrays), strict=True))
    differences = [(torch.from_numpy(found[name]) - expected[name]).abs() for name in outputs]
    real = inputs["attention_mask"].bool() & same[:, None]
    result["largest_difference"] = max(
        difference[real if difference.shape[:2] == real.shape else same].max().item() if same.any() else 0.0
        for difference in differences
    )
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    (options,) = parse_arguments(ExportArguments, arguments, description=__doc__.split("\n")[1])
    show_progress_messages(logger)
    require_packages()
    require_new_folder(options.output_dir)
    model = load_model(options)
    quantize = options.quantize == "dynamic"
    forced = {} if options.width is None else {"width": options.width}
    # A single width leaves nothing to route.
    routed = isinstance(model, SharcsPreTrainedModel) and not forced and len(model.config.width_multipliers) > 1
    with write_folder_atomically(options.output_dir) as folder:
        if routed:
            size = export_routed(model, folder, quantize)
        else:
            size = export_model(model, folder, quantize, **forced)
        written = sum(file.stat().st_size for file in folder.glob("*.onnx"))
        report = {"bytes": written, "bytes_float32": size, **compare(model, folder, routed, **forced)}
    logger.info("Wrote %s: %.1f MB (%.1f MB in float32).", options.output_dir, written / 1e6, size / 1e6)
    logger.info(
        "Largest difference from PyTorch on random rows: %.2g%s.",
        report["largest_difference"],
        f"; {report['same_width']:.0%} of them take the same width" if routed else "",
    )
    return report


if __name__ == "__main__":
    run_script(main)
