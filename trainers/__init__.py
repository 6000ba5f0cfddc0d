# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Trainer subclasses for elastic encoders."""

from .arguments import DistillationTrainingArguments, SharcsTrainingArguments, SupernetTrainingArguments
from .distillation import DistillationTrainer
from .masked_lm import MaskedLanguageModelingDataset, MaskedLMTrainer, SetEpochCallback
from .model_cards import write_model_card
from .publishing import push_folder_to_hub, push_to_hub
from .sharcs import SharcsTrainer
from .supernet import SupernetTrainer
from .width_predictions import WidthPredictions, save_curve


__all__ = [
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "MaskedLMTrainer",
    "MaskedLanguageModelingDataset",
    "SetEpochCallback",
    "SharcsTrainer",
    "SharcsTrainingArguments",
    "SupernetTrainer",
    "SupernetTrainingArguments",
    "WidthPredictions",
    "push_folder_to_hub",
    "push_to_hub",
    "save_curve",
    "write_model_card",
]
