# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Fine-tuning any encoder, with or without a teacher."""

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from .arguments import DistillationTrainingArguments, check_arguments
from .checkpoints import StagedCheckpointMixin
from .components import LossComponentsMixin
from .evaluation import OrderedEvaluationMixin
from .losses import attention_loss, hidden_state_loss, row_distillation_losses, row_losses
from .passes import check_precision, gather_parameters
from .problems import find_problem
from .publishing import PublishingMixin
from .teachers import check_attentions, check_teacher, prepare_teacher


logger = logging.get_logger(__name__)

# The maps from the student's hidden states to the teacher's live in the student while it is trained, so that the
# optimizer, processes and checkpoints know them; a model that is saved afterwards holds none.
MAPS_NAME = "distillation_maps"


class DistillationTrainer(
    PublishingMixin, LossComponentsMixin, OrderedEvaluationMixin, StagedCheckpointMixin, Trainer
):
    """
    Fine-tunes a model with a head for sequence classification (also regression and multi-label), token classification
    or question answering; with a teacher, its loss is the weighted sum of

    - the labels' own loss,
    - soft cross entropy against the teacher's logits (squared difference for regression; start and end for answers),
    - squared difference of normalised hidden states, mapped to the teacher's width where that differs,
    - cross entropy of attention distributions.

    The first two are means over the rows of a batch, the others over its tokens; each is logged. Evaluations use the
    labels only. With a `hard_label_weight` of 0 the training rows need none.

    Args:
        model (`PreTrainedModel`): The student: an extracted subnet, or any Auto model.
        args ([`DistillationTrainingArguments`]): The arguments.
        teacher (`PreTrainedModel`, *optional*): A model that was fine-tuned on the same task. It is frozen.
        kwargs: Those of [`~transformers.Trainer`].

    Raises:
        TypeError: if `teacher` is not loaded, or `args` are plain `TrainingArguments` beside one.
        ValueError: if the student is a supernet or routed; if the teacher is for another task, shares weights with the
            student, or has other labels, another vocabulary, too few layers, or other attention heads; or if the
            training rows have no labels.
    """

    def __init__(
        self,
        model: PreTrainedModel | None,
        args: DistillationTrainingArguments,
        teacher: PreTrainedModel | None = None,
        **kwargs,
    ):
        super().__init__(model=model, args=args, **kwargs)
        self._check_student()
        if self.train_dataset is not None:
            check_precision(self.model, args)
        # Losses are means over rows; stock heads ignore the number of items that Trainer would divide by.
        self.model_accepts_loss_kwargs = False
        rows = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        self.problem = find_problem(self.model, self.label_names, rows)
        if self.problem in ("regression", "multi_label_classification"):
            self.label_smoother = None  # It is for classes, and fails on numbers.
        self._pairs: list[tuple[int, int]] = []
        self._maps: nn.ModuleList | None = None
        self._hook = None
        self.teacher = None
        if teacher is not None:
            self._check_teacher(teacher)
            self._pairs = self._match_layers(teacher)
            self.teacher = prepare_teacher(self, teacher)

    def _check_student(self) -> None:
        config = self.model.config
        if config.model_type == "mos":
            raise ValueError(
                f"DistillationTrainer trains single networks, and {type(self.model).__name__} is a supernet; take a "
                "subnet out with `extract_subnet`, or train all of it with SupernetTrainer."
            )
        if len(getattr(config, "width_multipliers", ())) > 1:
            raise ValueError(
                f"DistillationTrainer would train only one path of {type(self.model).__name__}, and no router; use "
                "SharcsTrainer, which takes a `teacher` too."
            )

    # ---- teacher ----------------------------------------------------------------------------------------------------

    def _check_teacher(self, teacher: PreTrainedModel) -> None:
        args = self.args
        check_arguments(args, DistillationTrainingArguments)
        if not isinstance(teacher, PreTrainedModel):
            raise TypeError(
                f"`teacher` is a loaded model, got the {type(teacher).__name__} {teacher!r}; load it with "
                "`AutoModel….from_pretrained`."
            )
        if self.compute_loss_func is not None:
            raise ValueError(
                "With a teacher, DistillationTrainer takes no `compute_loss_func`: it has its own losses."
            )
        if not (args.logits_weight or args.hidden_states_weight or args.attentions_weight):
            raise ValueError(
                "A teacher is given, but `logits_weight`, `hidden_states_weight` and `attentions_weight` are 0; set "
                "one of them."
            )
        check_teacher(self.model, teacher, with_labels=self.problem != "question_answering")
        if args.attentions_weight:
            check_attentions(self.model, teacher)

    def _match_layers(self, teacher: PreTrainedModel) -> list[tuple[int, int]]:
        """Pairs of layers, counted from 1; by default the student's layers, spread evenly over the teacher's."""
        args = self.args
        if not (args.hidden_states_weight or args.attentions_weight):
            return []
        sides = {"student": self.model.config, "teacher": teacher.config}
        if args.distillation_layers is None:
            own, given = (config.num_hidden_layers for config in sides.values())
            pairs = [(layer, max(1, round(layer * given / own))) for layer in range(1, own + 1)]
        else:
            pairs = [tuple(map(int, pair.split(":"))) for pair in args.distillation_layers]
        for pair in pairs:
            heads = []
            for (side, config), layer in zip(sides.items(), pair, strict=True):
                if layer > config.num_hidden_layers:
                    raise ValueError(
                        f"`distillation_layers` names the {side}'s layer {layer}, but it has "
                        f"{config.num_hidden_layers} layers."
                    )
                found = config.num_attention_heads
                heads.append(found[layer - 1] if isinstance(found, list) else found)
            if args.attentions_weight and heads[0] != heads[1]:
                raise ValueError(
                    f"Attentions of {heads[0]} heads (the student's layer {pair[0]}) and {heads[1]} heads (the "
                    f"teacher's layer {pair[1]}) cannot be compared; choose other `distillation_layers`, or "
                    "`hidden_states_weight` instead of `attentions_weight`."
                )
        return pairs

    # ---- maps -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _make_maps(self) -> nn.ModuleList | None:
        """A linear map for each compared layer, if widths differ; widths are read off one row."""
        widths = []
        gather_parameters(self.model)  # which no engine does yet
        for side in (self.model, self.accelerator.unwrap_model(self.teacher)):
            was_training = side.training
            ones = torch.ones((1, 2), dtype=torch.long, device=side.device)
            # In evaluation mode: dropout would draw from the generator that training goes on with.
            outputs = side.eval()(input_ids=ones, attention_mask=ones, output_hidden_states=True)
            side.train(was_training)
            widths.append([state.shape[-1] for state in outputs.hidden_states])
        needed = [(widths[0][own], widths[1][given]) for own, given in self._pairs]
        if all(own == given for own, given in needed):
            return None
        # A generator of its own: training shall not depend on whether maps were drawn.
        generator = torch.Generator().manual_seed(self.args.seed)
        maps = nn.ModuleList()
        for own, given in needed:
            linear = nn.utils.skip_init(nn.Linear, own, given, bias=False)
            linear.weight.copy_(torch.randn(given, own, generator=generator) * own**-0.5)
            maps.append(linear)
        return maps.to(self.model.device)

    def _add_maps(self) -> None:
        """A second training goes on with the maps of the first, as it does with the optimizer."""
        if self.teacher is None or not self.args.hidden_states_weight or self._hook is not None:
            return
        if self._maps is None:
            self._maps = self._make_maps()
        if self._maps is not None:
            self.model.add_module(MAPS_NAME, self._maps)
            # Part of the forward pass, outside of which several processes would miss its gradients.
            self._hook = self.model.register_forward_hook(self._map_hidden_states)

    def _remove_maps(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            delattr(self.model, MAPS_NAME)

    def _map_hidden_states(self, student: nn.Module, inputs, outputs):
        if student.training:
            states = zip(getattr(student, MAPS_NAME), self._pairs, strict=True)
            outputs["hidden_states"] = tuple(
                linear(outputs["hidden_states"][layer].to(linear.weight.dtype)) for linear, (layer, _) in states
            )
        return outputs

    def train(self, *args, **kwargs):
        if self.model_init is not None:
            self._maps = None  # They belong to the model of before.
        try:
            return super().train(*args, **kwargs)
        finally:
            self._remove_maps()

    def _load_from_checkpoint(self, *args, **kwargs):
        self._add_maps()
        super()._load_from_checkpoint(*args, **kwargs)

    def _prepare_for_training(self, *args, **kwargs):
        self._add_maps()
        config = self.model.config
        if "SequenceClassification" in type(self.model).__name__ and config.problem_type is None and self.teacher:
            # Pipelines go by it; stock heads note it where they compute the loss, as they do not here.
            config.problem_type = self.problem
        return super()._prepare_for_training(*args, **kwargs)

    # ---- training ---------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        args = self.args
        needs_labels = args.hard_label_weight or args.logits_weight and self.problem == "token_classification"
        missing = [name for name in self.label_names if name not in inputs]
        if missing and needs_labels:
            raise ValueError(
                f"The training rows have no {', '.join(missing)}; name their labels so, or set `hard_label_weight` to "
                "0 to learn from the teacher alone."
            )
        targets = {name: inputs[name] for name in self.label_names if name in inputs}
        features = {name: value for name, value in inputs.items() if name not in targets}
        extra = {f"output_{name}": True for name in ("hidden_states", "attentions") if getattr(args, f"{name}_weight")}
        outputs = model(**features, **extra)
        with torch.no_grad():
            teacher_outputs = self.teacher(**features, **extra)
        mask = inputs.get("attention_mask")
        if self.problem == "question_answering" and mask is not None:
            # An answer is no padding, of which a row has more or less by its neighbours.
            for side in (outputs, teacher_outputs):
                for name in ("start_logits", "end_logits"):
                    side[name] = side[name].masked_fill(mask == 0, -1e4)
        terms = {}
        if args.hard_label_weight:
            terms["hard_label"] = row_losses(outputs, targets, self.problem, args.label_smoothing_factor).mean()
        if args.logits_weight:
            terms["logits"] = row_distillation_losses(
                outputs, teacher_outputs, targets, self.problem, args.distillation_temperature
            ).mean()
        if args.hidden_states_weight:
            own = outputs["hidden_states"]
            if self._hook is None:
                own = [own[layer] for layer, _ in self._pairs]
            given = [teacher_outputs["hidden_states"][layer] for _, layer in self._pairs]
            terms["hidden_states"] = hidden_state_loss(own, given, mask)
        if args.attentions_weight:
            own = [outputs["attentions"][layer - 1] for layer, _ in self._pairs]
            given = [teacher_outputs["attentions"][layer - 1] for _, layer in self._pairs]
            terms["attentions"] = attention_loss(own, given, mask)
        loss = sum(getattr(args, f"{name}_weight") * value for name, value in terms.items())
        if not (args.hard_label_weight or args.logits_weight):
            # Several processes wait for gradients of all that the outputs depend on.
            scores = [value for name, value in outputs.items() if name.endswith("logits")]
            loss = loss + sum(value.sum() * 0.0 for value in scores)
        # The last step of an epoch may accumulate fewer batches.
        share = 1 / getattr(self, "current_gradient_accumulation_steps", 1)
        for name, value in terms.items():
            self._count(f"{name}_loss", value, torch.full_like(value, share))
        return (loss, outputs) if return_outputs else loss


__all__ = ["DistillationTrainer"]
