# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What the scripts that train routed encoders (SHARCS) share: options, training, calibration, budgets, the curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from modeling_sharcs.calibration import share_of_full
from trainers import SharcsTrainer, WidthPredictions, save_curve


__all__ = [
    "SharcsOptions",
    "budget_prices",
    "calibrate",
    "find_curve",
    "load_sharcs_model",
    "longest_input",
    "measure",
    "routed_logits",
    "save",
    "train",
]

logger = logging.get_logger(__name__)

# What must be as in the checkpoint that a run is continued from.
_STRUCTURE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_sizes",
    "intermediate_sizes",
    "width_multipliers",
    "router_layer",
    "router_hidden_size",
    "router_pooling",
    "entry",
    "id2label",
)
# What a backbone is given when it is converted, and a SHARCS model has.
_CONVERSION = ("width_multipliers", "router_layer", "router_hidden_size", "router_pooling", "entry", "norm_start")
# Not worth a line for each budget.
_DETAILS = ("width_", "routed_to_", "router_auc_")


@dataclass
class SharcsOptions:
    """The widths of a routed encoder, its router, and its compute budgets."""

    width_multipliers: list[str] = field(
        default_factory=lambda: ["0.25", "1.0"],
        metadata={"help": "Shares of the network that its later layers may run at, as 0.25 or 1/3; 1 is one of them."},
    )
    router_layer: int = field(default=3, metadata={"help": "Layers that run at full width, before the router."})
    router_hidden_size: int = field(default=1024, metadata={"help": "Hidden size of the router."})
    router_pooling: str = field(
        default="masked",
        metadata={
            "help": "What the router reads: the mean over real tokens ('masked'), or over padding too ('all', "
            "published).",
            "choices": ["masked", "all"],
        },
    )
    entry: str = field(
        default="slice",
        metadata={
            "help": "How the stream enters a narrow path: its first channels ('slice'), a learned weighted mean of "
            "neighbouring ones ('pooling', widths 1/k only), or a learned linear map ('projection').",
            "choices": ["slice", "pooling", "projection"],
        },
    )
    norm_start: str = field(
        default="copy",
        metadata={
            "help": "Norms of narrow paths start as copies or from scratch (published recipe).",
            "choices": ["copy", "scratch"],
        },
    )
    compute_budgets: list[float] = field(
        default_factory=lambda: [0.75, 0.5],
        metadata={"help": "Shares of full FLOPs to calibrate and measure; those out of reach are reported."},
    )
    compute_budget: float | None = field(
        default=None,
        metadata={"help": "The budget that the saved model is set to; by default its router's largest score wins."},
    )
    curve_points: int = field(default=21, metadata={"help": "Points of the curve of metrics against FLOPs."})

    def __post_init__(self):
        try:
            self.width_multipliers = [float(Fraction(width)) for width in self.width_multipliers]
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"--width_multipliers takes numbers such as 0.25 or 1/3: {error}.") from None
        if self.curve_points < 2:
            raise ValueError(f"--curve_points must be at least 2, got {self.curve_points}.")


def load_sharcs_model(
    model_class: type[PreTrainedModel], name: str, options: SharcsOptions, evaluate_only: bool = False, **kwargs
) -> PreTrainedModel:
    """
    A SHARCS model as it is, or a routed encoder made of a backbone; in float32, whatever the checkpoint's type: mixed
    precision is the Trainer's affair.

    Raises:
        ValueError: if a backbone is to be evaluated only, or a SHARCS model is to have other widths or another router.
    """
    config = AutoConfig.from_pretrained(name)
    if config.model_type == "sharcs":
        usual = SharcsOptions()
        for option in _CONVERSION:
            asked, found = getattr(options, option), getattr(config, option)
            if asked not in (getattr(usual, option), found):
                raise ValueError(
                    f"--{option} is for backbones: the SHARCS model {name!r} has {found}, not {asked}. Leave it out, "
                    "or begin with the backbone."
                )
        # The head of another task is replaced.
        model = model_class.from_pretrained(
            name, dtype=torch.float32, ignore_mismatched_sizes=not evaluate_only, **kwargs
        )
        if not evaluate_only and model.config.router_price is not None:
            model.config.router_price = 0.0  # A price of before belongs to the router as it was.
        warn_of_budgets(model, options.compute_budgets)
        return model
    if evaluate_only:
        raise ValueError(
            f"--evaluate_only measures a SHARCS model, {name!r} is a {config.model_type!r} model; train it first."
        )
    model = model_class.from_backbone(
        name,
        dtype=torch.float32,
        width_multipliers=options.width_multipliers,
        router_layer=options.router_layer,
        router_hidden_size=options.router_hidden_size,
        router_pooling=options.router_pooling,
        entry=options.entry,
        norm_start=options.norm_start,
        **kwargs,
    )
    warn_of_budgets(model, options.compute_budgets)
    return model


def warn_of_budgets(model: PreTrainedModel, budgets: Sequence[float]) -> None:
    """Says before a training what no routing of it can reach; exact shares depend on the lengths of rows."""
    full = model.path_flops(128, len(model.config.width_multipliers) - 1, routed=False)
    lowest = model.path_flops(128, 0, routed=True) / full
    for budget in budgets:
        if budget < lowest:
            logger.warning(
                f"A compute budget of {budget:g} will be out of reach: at 128 tokens, the narrowest path takes "
                f"{lowest:.3f} of full FLOPs. Train narrower widths or an earlier router, or ask for more."
            )


def longest_input(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens both a model and its tokenizer take."""
    positions = config.max_position_embeddings
    backbone = getattr(config, "backbone_model_type", config.model_type)
    if getattr(config, "roberta_layout", backbone in ("roberta", "xlm-roberta", "camembert")):
        positions -= config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)


def train(trainer: Trainer) -> None:
    """
    Trains, from the last checkpoint in the output folder if there is one, and saves state and metrics.

    Raises:
        ValueError: if that checkpoint is of another model, as far as its configuration says.
    """
    output, checkpoint = Path(trainer.args.output_dir), trainer.args.resume_from_checkpoint
    if checkpoint is None and output.is_dir():
        checkpoint = get_last_checkpoint(str(output))
        if checkpoint is not None:
            logger.info(f"Continuing from {checkpoint}.")
    if isinstance(checkpoint, str):
        stored = AutoConfig.from_pretrained(checkpoint)
        for name in _STRUCTURE:
            asked, found = getattr(trainer.model.config, name, None), getattr(stored, name, None)
            if asked != found:
                raise ValueError(
                    f"The output folder holds the checkpoint {checkpoint!r} of another run: its {name} is {found!r}, "
                    f"this run's is {asked!r}. Choose another --output_dir, or delete that folder's checkpoints."
                )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if result.training_loss > 0 or checkpoint is None:
        trainer.save_state()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
    else:
        logger.info("The training was finished already; its results stay as they are.")


def calibrate(trainer: SharcsTrainer, rows, description: str) -> None:
    """Stores the router's prices in the configuration; labels are not looked at."""
    inputs = [name for name in rows.column_names if name in ("input_ids", "attention_mask", "token_type_ids")]
    loader = DataLoader(
        rows.select_columns(inputs), batch_size=trainer.args.eval_batch_size, collate_fn=trainer.data_collator
    )
    # Every process calibrates on all rows, so that all have the same prices.
    shown = trainer.is_local_process_zero() and not trainer.args.disable_tqdm
    trainer.accelerator.unwrap_model(trainer.model).calibrate(loader, show_progress=shown)
    logger.info(f"Calibrated on {len(rows):,} {description} rows.")


def save(trainer: SharcsTrainer, options: SharcsOptions) -> None:
    """
    Sets the model to the budget asked for, which is then what its evaluation and predictions show, and saves it.

    Raises:
        ValueError: if the budget is out of reach. The model is saved, at the price that it had.
    """
    try:
        if options.compute_budget is not None:
            trainer.accelerator.unwrap_model(trainer.model).set_compute_budget(options.compute_budget)
    finally:
        trainer.save_model()


def budget_prices(model: PreTrainedModel, budgets: Sequence[float]) -> dict[float, float | None]:
    """The router's price at each budget; `None` for one that is out of reach."""
    before, prices = model.config.router_price, {}
    try:
        for budget in budgets:
            try:
                prices[budget] = model.set_compute_budget(budget)
            except ValueError as error:
                logger.warning(str(error))
                prices[budget] = None
    finally:
        model.config.router_price = before
    return prices


def measure_budgets(
    trainer: SharcsTrainer, predictions: WidthPredictions, prices: Mapping[float, float | None]
) -> dict[str, float]:
    """Metrics of the evaluation rows at each budget within reach, and the share of full FLOPs that they truly took."""
    results: dict[str, float] = {}
    for budget, price in prices.items():
        if price is None:
            continue
        found = trainer.routing_metrics(predictions, price)
        results |= {
            f"budget_{budget:g}_{name}": value for name, value in found.items() if not name.startswith(_DETAILS)
        }
    return results


def routed_logits(
    trainer: SharcsTrainer, predictions: WidthPredictions, prices: Mapping[float, float | None]
) -> dict[str, np.ndarray]:
    """
    What each choice of widths answers: `logits` of shape `(rows, labels)` and the share of full FLOPs that the rows
    truly took, `flops_share`, of shape `(1,)`. Both bare for the model's own price, and with a prefix for each budget
    within reach (`budget_0.5.logits`) and each width alone (`width_1.logits`).
    """
    chosen = trainer.chosen_widths(predictions)
    routes = {"": chosen}
    for budget, price in prices.items():
        if price is not None:
            routes[f"budget_{budget:g}."] = trainer.chosen_widths(predictions, price)
    for index, width in enumerate(trainer.widths):
        routes[f"width_{width:g}."] = torch.full_like(chosen, index)
    model, lengths = trainer.accelerator.unwrap_model(trainer.model), torch.from_numpy(predictions.lengths)
    tensors = {}
    for prefix, widths in routes.items():
        tensors[f"{prefix}logits"] = predictions.select(widths.numpy())
        tensors[f"{prefix}flops_share"] = np.array([share_of_full(model, widths, lengths)])
    return tensors


def measure(
    trainer: SharcsTrainer, rows, options: SharcsOptions, metric: str, suffix: str = ""
) -> tuple[dict[str, Any], WidthPredictions, dict[float, float | None]]:
    """
    Evaluates one split: the routed model, each width, the budgets; writes metrics and the curve.

    Returns:
        Metrics with the prefix `eval_` and `suffix`, the predictions of every width, and the router's price at each
        budget, `None` for one that is out of reach.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    predictions = trainer.predict_widths(rows)
    results: dict[str, Any] = dict(trainer.routing_metrics(predictions))
    prices = {} if model.config.calibration is None else budget_prices(model, options.compute_budgets)
    results |= measure_budgets(trainer, predictions, prices)
    results["samples"] = len(rows)
    named = {f"eval_{name}{suffix}": value for name, value in results.items()}
    trainer.log_metrics(f"eval{suffix}", named)  # numbers only
    named[f"eval_budgets_out_of_reach{suffix}"] = [budget for budget, price in prices.items() if price is None]
    trainer.save_metrics(f"eval{suffix}", named)
    if trainer.is_world_process_zero():
        points = trainer.compute_curve(predictions, options.curve_points)
        marks = {
            f"width {width:g} alone": {name: results[f"width_{width:g}_{name}"] for name in ("flops_share", metric)}
            for width in model.config.width_multipliers
        }
        paths = save_curve(points, str(Path(trainer.args.output_dir) / f"curve{suffix}"), metric, marks)
        logger.info(f"What compute buys is in {', '.join(paths.values())}.")
    return named, predictions, prices


def find_curve(trainer: Trainer) -> str | None:
    """The plot that [`measure`] wrote, if it did, as a path in the output folder: a picture for the model card."""
    curve = Path("curve", "compute_curve.png")
    return str(curve) if (Path(trainer.args.output_dir) / curve).is_file() else None
