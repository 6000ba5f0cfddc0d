# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Model cards made of what a model says of itself."""

import copy
import itertools
import math
import numbers
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modelcard import (
    TASK_TAG_TO_NAME_MAPPING,
    TrainingSummary,
    make_markdown_table,
)
from transformers.utils import is_matplotlib_available, logging

from .width_predictions import save_figure


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
FIGURE_NAME = "architecture.png"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
MARKER = (
    "<!-- Made by elastic-encoders, and made anew whenever the model is published. Delete this comment if you edit "
    "the card: it is left alone then. -->"
)
UNPUBLISHED = (
    "The name is that of the folder. `trainers.push_folder_to_hub` publishes it with the name on the Hub instead; if "
    "you upload it in another way, write that name here."
)
PAPERS = {
    "mos": "[Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with Architecture-Routed "
    "Mixture-of-Experts](https://arxiv.org/abs/2306.04845)",
    "sharcs": "[SHARCS: Efficient Transformers through Routing with Dynamic Width "
    "Sub-networks](https://arxiv.org/abs/2310.12126)",
}
# By what follows "For" in the name of a model's class; the others have no head.
_TASKS = {
    "MaskedLM": "fill-mask",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
}
# How long something took is no score.
_NO_SCORES = ("runtime", "_per_second", "_time", "epoch", "step")
# Architectures of a front in the figure, and budgets in the table.
_MOST_LINES = 6
_NUM_BUDGETS = 5


# ---- what there is to say about each kind of model ------------------------------------------------------------------


@dataclass
class Description:
    """
    What a card says about a kind of model.

    Args:
        sentence (`str`): What it is.
        architecture (`list[str]`): Paragraphs and tables.
        sizes (`dict[str, Sequence[int]]`): What the figure shows: sizes, one a layer, by name.
        limits (`list[str]`): What a user should know.
        usage (`list[str]`): Lines of code that follow those which load `model` and make `inputs`.
    """

    sentence: str
    architecture: list[str]
    sizes: dict[str, Sequence[int]]
    limits: list[str]
    usage: list[str]


def describe(model: PreTrainedModel, is_subnet: bool, sequence_length: int) -> Description:
    """What a card says about `model`; whether a stock class is a subnet, it does not know itself."""
    kind = model.config.model_type
    if kind == "mos":
        return describe_supernet(model, sequence_length)
    if kind == "sharcs":
        return describe_routed_encoder(model, sequence_length)
    return describe_encoder(model, is_subnet, sequence_length)


def describe_supernet(model: PreTrainedModel, sequence_length: int) -> Description:
    """A supernet: its space, its smallest and largest subnets, and its front."""
    config, space = model.config, model.search_space
    choices = {"width": space.hidden_sizes}
    if space.intermediate_sizes is not None:
        choices["feed-forward width"] = space.intermediate_sizes
    else:
        choices["feed-forward width / width"] = space.intermediate_ratios
    choices |= {"attention heads": space.num_attention_heads, "layers": space.num_hidden_layers}
    architectures = {"smallest": space.smallest(), "largest": space.largest()}
    if config.default_architecture is not None:
        architectures["default"] = model.default_architecture
    architectures |= {entry["name"]: model.resolve_architecture(entry["name"]) for entry in config.front or []}
    parameters, flops = model.parameter_cost(), model.flop_cost(sequence_length)
    entries = {entry["name"]: entry for entry in config.front or []}
    measured = {"latency": "latency, ms", "score": "score"}  # what only a search knows
    measured = {key: column for key, column in measured.items() if any(key in entry for entry in entries.values())}
    rows = [
        {
            "subnet": name,
            **_costs(parameters(found), flops(found)),
            **{column: _short(entries.get(name, {}).get(key)) for key, column in measured.items()},
            "width, feed-forward width, heads": str(found),
        }
        for name, found in architectures.items()
    ]
    limit = (parameters(architectures["smallest"]) + parameters(architectures["largest"])) // 2
    chosen = f'"{config.front[0]["name"]}"' if config.front else "architecture"
    usage = [f"subnet = model.extract_subnet({chosen})  # an ordinary small model"]
    if not config.front:
        usage.insert(0, f"architecture = model.sample_architecture(seed=0, max_parameters={limit:_})")
    count = space.num_architectures
    experts = f", {config.num_experts} experts a layer" if config.num_experts > 1 else ""
    return Description(
        sentence=(
            f"A Mixture-of-Supernets (MoS) model{_purpose(model)}: one network that holds "
            f"{count if count < 1_000_000 else f'{count:.1e}'} smaller ones of {rows[0]['parameters']} to "
            f"{rows[1]['parameters']} parameters."
        ),
        architecture=[
            f"`{type(model).__name__}` with {model.num_parameters():,} parameters of its own; routing: "
            f"{config.routing}{experts}. "
            + ("Every layer has a width of its own." if space.bottleneck else "All layers are of one width."),
            _table([{"elastic": name, "choices": _listed(values)} for name, values in choices.items()]),
            _table(rows),
        ],
        sizes={name: found.hidden_sizes for name, found in itertools.islice(architectures.items(), _MOST_LINES)},
        limits=[
            "It is made to be searched and cut: with its experts and routers it is larger than what is taken out.",
            "All subnets share weights. One that is taken out gains from being trained further.",
        ],
        usage=usage,
    )


def describe_encoder(model: PreTrainedModel, is_subnet: bool, sequence_length: int) -> Description:
    """A subnet, or any other encoder whose layers have fixed sizes."""
    config = model.config
    if config.model_type == "mos_subnet":
        layers = config.architecture.layers
    else:
        intermediate = getattr(config, "intermediate_size", getattr(config, "hidden_dim", None))  # DistilBERT's
        layers = [(config.hidden_size, intermediate, config.num_attention_heads)] * config.num_hidden_layers
    rows, first = [], 1
    for sizes, run in itertools.groupby(layers):
        last = first + len(list(run)) - 1
        names = ("width", "feed-forward width", "attention heads")
        rows.append(
            {"layer": first if first == last else f"{first} to {last}", **dict(zip(names, sizes, strict=True))}
        )
        first = last + 1
    costs = _costs(model.num_parameters(), count_flops(model, sequence_length))
    return Description(
        sentence=(
            f"An encoder{_purpose(model)} with {costs['parameters']} parameters"
            + (", a subnet taken out of a Mixture-of-Supernets (MoS) model." if is_subnet else ".")
        ),
        architecture=[
            f"`{type(model).__name__}` with {costs['parameters']} parameters and {costs['FLOPs']} FLOPs.",
            _table(rows),
        ],
        sizes={
            "width": [width for width, _, _ in layers],
            "feed-forward width": [intermediate for _, intermediate, _ in layers],
        },
        limits=["As it was taken out, a subnet is usually worse than the same network trained alone."]
        if is_subnet
        else [],
        usage=[],
    )


def describe_routed_encoder(model: PreTrainedModel, sequence_length: int) -> Description:
    """A SHARCS model: its widths, what each costs, and the budgets in reach."""
    config = model.config
    widths, depth = config.width_multipliers, config.num_hidden_layers
    full = model.count_flops(sequence_length, widths[-1])
    rows, sizes = [], {}
    for index, width in enumerate(widths):
        hidden, heads, intermediate = config.width_sizes(index)
        flops = model.count_flops(sequence_length, width)
        row = {"width": f"{width:g}", "channels": hidden, "feed-forward width": intermediate, "attention heads": heads}
        rows.append({**row, "FLOPs": f"{flops:,}", "share of full FLOPs": f"{flops / full:.3f}"})
        sizes[f"width {width:g}"] = [config.hidden_size] * config.router_layer + [hidden] * (
            depth - config.router_layer
        )
    architecture = [
        f"`{type(model).__name__}` with {model.num_parameters():,} parameters. Layers up to {config.router_layer} run "
        f"whole for every sample; the router (hidden size {config.router_hidden_size}) chooses how much of the other "
        f"{depth - config.router_layer} a sample takes:",
        _table(rows),
    ]
    usage = [
        "outputs = model(**inputs)",
        "outputs.width_indices  # which width each row took",
        f"outputs = model(**inputs, width={widths[0]:g})  # every row at this one",
    ]
    limits = ["Rows of a batch run in groups of one width: narrow paths save time where a group is worth one."]
    if config.calibration is None:
        limits.append("It is not calibrated: run `model.calibrate(dataloader)` before `model.set_compute_budget`.")
    else:
        budgets = _budgets(config)
        architecture += [_calibration_sentence(config), _budget_table(config, budgets)]
        # Rounded up, for it to be in reach.
        budget = min(math.ceil(budgets[(len(budgets) - 1) // 2]["share"] * 100) / 100, budgets[-1]["share"])
        usage.insert(0, f"model.set_compute_budget({budget})  # a share of full FLOPs")
        limits.append("A budget is met on average over data like the calibration's, not by each batch.")
    return Description(
        sentence=(
            f"A SHARCS model{_purpose(model)}: after layer {config.router_layer} of {depth}, a router sends each "
            f"sample on at one of the widths {_listed(f'{width:g}' for width in widths)}."
        ),
        architecture=architecture,
        sizes=sizes,
        limits=limits,
        usage=usage,
    )


def _calibration_sentence(config) -> str:
    calibration, price = config.calibration, config.router_price
    text = (
        f"Calibrated on {calibration['rows']:,} samples of {calibration['mean_length']:.1f} tokens on average. What "
        "can be spent, as a share of full FLOPs, the router's included:"
    )
    if price is None:
        return f"No budget is set: every sample takes the widest path. {text}"
    nearest = min(calibration["table"], key=lambda row: abs(row["price"] - price))
    return f"The model is set to spend {nearest['share']:.3f} of full FLOPs. {text}"


def _budgets(config) -> list[dict[str, Any]]:
    """A few rows of the calibration, about evenly spaced between the least and the most that the model can spend."""
    table = sorted(config.calibration["table"], key=lambda row: row["share"])
    lowest, highest = table[0]["share"], table[-1]["share"]
    aims = [lowest + (highest - lowest) * step / (_NUM_BUDGETS - 1) for step in range(_NUM_BUDGETS)]
    nearest = [min(table, key=lambda row: abs(row["share"] - aim)) for aim in aims]
    return list({row["share"]: row for row in nearest}.values())


def _budget_table(config, budgets: list[dict[str, Any]]) -> str:
    rows = []
    for found in budgets:
        row = {"spent": f"{found['share']:.3f}"}
        for width, share in zip(config.width_multipliers, found["rows_per_width"], strict=True):
            row[f"samples at {width:g}"] = f"{share:.1%}"
        if "latency_share" in found:
            row["share of full latency"] = f"{found['latency_share']:.2f}"
        rows.append(row)
    return _table(rows)


def count_flops(model: PreTrainedModel, sequence_length: int) -> int:
    """FLOPs of an ordinary encoder for one sequence, as torch counts those of its matrix products."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # torch counts no attention of its own kernels
    with torch.device("meta"), no_init_weights():
        twin = type(model)(config).eval()  # sizes without weights
    if getattr(model, "pooler", twin) is None:
        twin.pooler = None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.zeros((1, sequence_length), dtype=torch.long, device="meta"))
    return counter.get_total_flops()


def _costs(parameters: float, flops: float) -> dict[str, str]:
    return {"parameters": f"{parameters:,.0f}", "FLOPs": f"{flops:,.0f}"}


def _task(model: PreTrainedModel) -> str:
    return _TASKS.get(type(model).__name__.rpartition("For")[2], "feature-extraction")


def _purpose(model: PreTrainedModel) -> str:
    family = getattr(model.config, "backbone_model_type", model.config.model_type)
    return f" of the `{family}` family for {TASK_TAG_TO_NAME_MAPPING.get(_task(model), 'feature extraction').lower()}"


def _listed(values) -> str:
    return ", ".join(map(str, values))


def _table(rows: list[dict[str, Any]]) -> str:
    # A bar would end a cell, a line break the row.
    escaped = [
        {name: re.sub(r"\s+", " ", str(value)).replace("|", r"\|") for name, value in row.items()} for row in rows
    ]
    return make_markdown_table(escaped).strip()


# ---- parts of a card ------------------------------------------------------------------------------------------------


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def usage_code(
    model: PreTrainedModel,
    name: str,
    tokenizer: str | None,
    more: Sequence[str] = (),
    text_pair: bool = False,
    revision: str | None = None,
    code_revision: str | None = None,
) -> str:
    """
    Python code that opens a published model, also where this package is missing.

    Args:
        model (`PreTrainedModel`): The model.
        name (`str`): Where it is found: a Hub name, or a folder.
        tokenizer (`str`, *optional*): Where its tokenizer is found. Without one the code only opens the model.
        more (`Sequence[str]`): Lines that follow.
        text_pair (`bool`): Whether what is classified are pairs of texts.
        revision (`str`, *optional*): The branch on which both are found, if not the main one.
        code_revision (`str`, *optional*): The commit of another repository whose code is run.
    """
    task = _task(model)
    auto_class = next((f"AutoModelFor{head}" for head, tag in _TASKS.items() if tag == task), "AutoModel")
    trust = ", trust_remote_code=True" if has_custom_code(model) else ""
    if revision is not None:
        trust = f', revision="{revision}"{trust}'
    if code_revision is not None:
        trust += f', code_revision="{code_revision}"'
    imports = [auto_class]
    lines = [f'model = {auto_class}.from_pretrained("{name}"{trust})']
    text, second = '"The house is big."', '"It is not small."'
    text_pair = text_pair and task == "text-classification"
    if tokenizer is not None:
        imports.append("AutoTokenizer")
        # Beside a configuration of ours, a tokenizer is read with our code too; Transformers stops to ask otherwise.
        own_trust = trust if tokenizer == name else ""
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}"{own_trust})')
        if task == "question-answering":
            text = f'"What is big?", {text}'
        if task == "question-answering" and hasattr(model, "predict_spans"):
            lines.append(f"model.predict_spans(tokenizer, {text})")
        elif task in ("question-answering", "feature-extraction"):
            lines.append(f'outputs = model(**tokenizer({text}, return_tensors="pt"))')
        else:
            imports.append("pipeline")
            asked = 'f"The house is {tokenizer.mask_token}."' if task == "fill-mask" else text
            if text_pair:
                asked = f'{{"text": {text}, "text_pair": {second}}}'
                text = f"{text}, {second}"
            lines += [f'predict = pipeline("{task}", model=model, tokenizer=tokenizer)', f"predict({asked})"]
        if any("inputs" in line for line in more):
            lines += ["", f'inputs = tokenizer({text}, return_tensors="pt")']
        elif more:
            lines.append("")
    # What needs a tokenizer, without which there are no inputs, is left out.
    lines += [line for line in more if tokenizer is not None or "inputs" not in line and "outputs" not in line]
    return "\n".join([f"from transformers import {', '.join(imports)}", "", *lines])


def has_custom_code(model: PreTrainedModel) -> bool:
    """Whether a model's class is ours, which Transformers alone opens with `trust_remote_code`."""
    return bool(getattr(model.config, "auto_map", None))


def clean_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without the prefix `eval_`, and without what says how long something took."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {name: value for name, value in named.items() if not name.endswith(_NO_SCORES)}


def index_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Those for the Hub's index of results: of the whole model, not of a width, a budget or a panel's member."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if not re.search(r"_\d", name)
        and not name.startswith("samples")
        and isinstance(value, numbers.Real)
        and math.isfinite(value)
    }


def draw_sizes(sizes: dict[str, Sequence[int]], path: Path) -> bool:
    """Draws sizes layer by layer, one line a name; whether matplotlib is there to do so."""
    if not is_matplotlib_available():
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, line in sizes.items():
        axes.plot(range(1, len(line) + 1), line, marker="o", label=name)
    axes.set(xlabel="layer", ylabel="size", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    save_figure(figure, path)
    return True


def hub_name(name: str) -> str | None:
    """The name of a model, if it can be one on the Hub and is no folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if os.path.isdir(name) else name


def find_origin(name: str) -> ModelCardData:
    """What is known of a checkpoint that a model is made from: its Hub name, or what the card in its folder says."""
    path = Path(name) / CARD_NAME
    if name and path.is_file():
        return ModelCard.load(path, ignore_metadata_errors=True).data
    return ModelCardData(base_model=hub_name(name))


# ---- cards ----------------------------------------------------------------------------------------------------------


def write_model_card(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    model_name: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    tags: Sequence[str] = (),
    datasets: str | list[str] | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    metrics: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    figure: str | None = None,
    sequence_length: int = 128,
    text_pair: bool = False,
    revision: str | None = None,
    code_repo_id: str | None = None,
    code_revision: str | None = None,
) -> Path:
    """
    Writes `README.md`, and where matplotlib is installed a figure of the architecture, into the folder that a model
    and its tokenizer were saved to. What the card says of the model is counted on the model.

    A `README.md` that somebody wrote, or edited and took the comment out of, is left as it is.

    Args:
        model (`PreTrainedModel`): A supernet, a subnet, a SHARCS model, or any other encoder.
        folder (`str` or `os.PathLike`): Where it was saved.
        repo_id (`str`, *optional*): Where it is published; by default the code of the card opens the folder's name.
        model_name (`str`, *optional*): The title; by default the last part of `repo_id` or of the folder.
        base_model (`str`, *optional*):
            The Hub name of what it was made from, or a folder whose card knows; by default `model.name_or_path`.
        license (`str`, *optional*): Of the weights; by default the base model's, where that is known.
        language (`str` or `list[str]`, *optional*): Codes such as `en`.
        tags (`Sequence[str]`, *optional*): More tags. With `mos`, a stock class is said to be a subnet.
        datasets (`str` or `list[str]`, *optional*): Hub names of the training data.
        dataset_name, dataset_config (`str`, *optional*): How the first of them is called, and its configuration.
        metrics (`dict`, *optional*):
            Scores by name; a prefix `eval_` and running times are taken off. They enter the Hub's index of results
            where a data set is named.
        training (`dict`, *optional*):
            How it was found or trained, by what is to be said: seed, teacher, limits of the search, arguments.
        figure (`str`, *optional*):
            A picture in the folder to show instead of the architecture's, such as one of [`save_curve`].
        sequence_length (`int`, *optional*, defaults to 128): Tokens for which FLOPs are counted.
        text_pair (`bool`, *optional*, defaults to `False`): Whether a classifier was trained on pairs of texts.
        revision (`str`, *optional*): The branch of `repo_id` that it is published on, if not the main one.
        code_repo_id, code_revision (`str`, *optional*): Another repository that has the code, and its commit to run.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: if the folder does not exist, or the picture is not in it.
    """
    folder = Path(folder)
    path = folder / CARD_NAME
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} to write a model card to; save the model there first.")
    if figure is not None and not (folder / figure).is_file():
        raise ValueError(f"There is no picture {figure!r} in {str(folder)!r}; leave `figure` out to have one drawn.")
    if path.is_file() and MARKER not in path.read_text(encoding="utf-8"):
        logger.warning(f"{path} was written by somebody and is left as it is; delete it to have one made.")
        return path
    model_name = model_name or (repo_id or folder.resolve().name).split("/")[-1]
    origin = find_origin(base_model or model.name_or_path)
    base_model = origin.base_model if origin.base_model != repo_id else None
    license = license or origin.license or TrainingSummary(model_name, finetuned_from=base_model).license
    known_tags = [*tags, *(model.model_tags or []), *(origin.tags or [])]
    method = {"mos_subnet": "mos"}.get(model.config.model_type, model.config.model_type)
    if method not in PAPERS:
        method = "mos" if "mos" in known_tags else None
    longest = getattr(model.config, "max_position_embeddings", sequence_length)
    sequence_length = min(sequence_length, longest)
    description = describe(model, method == "mos", sequence_length)

    caption = "What each amount of compute buys" if figure else "Sizes of the layers"
    if figure is None and draw_sizes(description.sizes, folder / FIGURE_NAME):
        figure = FIGURE_NAME
    metrics = clean_metrics(metrics or {})
    indexed = index_metrics(metrics)
    datasets = as_list(datasets) or None
    dataset_name = dataset_name or (datasets[0] if datasets else None)
    results = [
        EvalResult(_task(model), datasets[0], dataset_name, name, value, dataset_config=dataset_config)
        for name, value in (indexed.items() if datasets else ())
    ]
    data = ModelCardData(
        model_name=model_name,
        base_model=base_model,
        license=license,
        language=language or origin.language,
        library_name="transformers",
        pipeline_tag=_task(model),
        tags=[*([method] if method else []), *(model.model_tags or []), *tags],
        datasets=datasets,
        metrics=[name for name in indexed if name != "loss"] or None,
        eval_results=results or None,
    )
    name = repo_id or folder.resolve().name
    revision = None if repo_id is None else revision
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        marker=MARKER,
        model_name=model_name,
        sentence=description.sentence,
        figure=figure,
        caption=caption,
        usage=usage_code(
            model, name, name if has_tokenizer else base_model, description.usage, text_pair, revision, code_revision
        ),
        note=UNPUBLISHED if repo_id is None else None,
        custom_code=has_custom_code(model),
        code_repo_id=code_repo_id,
        code_revision=code_revision,
        package="modeling_sharcs" if method == "sharcs" else "modeling_mos",
        architecture=description.architecture,
        sequence_length=sequence_length,
        dataset_name=dataset_name,
        scores=_table([{"metric": name, "value": _rounded(value)} for name, value in metrics.items()]),
        training=_table([{"": name, "value": value} for name, value in (training or {}).items() if value is not None]),
        limits=[
            *description.limits,
            "What it does on other data, in other languages and to other people than those that its data stand for "
            "was not examined.",
        ],
        paper=PAPERS.get(method),
    )
    card.save(f"{path}.unfinished")
    os.replace(f"{path}.unfinished", path)
    return path


def retarget_card(text: str, repo_id: str, revision: str | None = None) -> str:
    """
    The text of a card that [`write_model_card`] made, for another repository or branch of it: with code that opens
    the model there, and its name for a title unless it had one of its own.
    """
    found = re.search(r'model = \w+\.from_pretrained\("([^"]*)"', text)
    if found is None:
        return text
    branch = f', revision="{revision}"' if revision is not None else ""
    opened = re.escape(f'from_pretrained("{found[1]}"') + r'(, revision="[^"]*")?'
    text = re.sub(opened, lambda _: f'from_pretrained("{repo_id}"{branch}', text)
    title, name = (re.escape(found[1].split("/")[-1]), repo_id.split("/")[-1])
    text = re.sub(rf"^(# |- name: ){title}$", lambda match: match[1] + name, text, flags=re.MULTILINE)
    return text.replace(f"{UNPUBLISHED}\n\n", "")


def _rounded(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4f}"


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """One name, several or none, as a list."""
    return [value] if isinstance(value, str) else list(value or [])


__all__ = ["retarget_card", "write_model_card"]
