# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Trainer subclasses for elastic encoders."""

from .arguments import SupernetTrainingArguments
from .masked_lm import MaskedLanguageModelingDataset, MaskedLMTrainer, SetEpochCallback
from .supernet import SupernetTrainer


__all__ = [
    "MaskedLMTrainer",
    "MaskedLanguageModelingDataset",
    "SetEpochCallback",
    "SupernetTrainer",
    "SupernetTrainingArguments",
]
