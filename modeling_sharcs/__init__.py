# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
SHARCS: an encoder that sends each sample through a narrow or a wide path
(https://huggingface.co/papers/2310.12126). Importing this package registers its models with the Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_sharcs import SharcsConfig
from .modeling_sharcs import (
    SharcsForQuestionAnswering,
    SharcsForSequenceClassification,
    SharcsForTokenClassification,
    SharcsModel,
    SharcsPreTrainedModel,
)
from .reordering import Importance, compute_importance, reorder_backbone


AutoConfig.register(SharcsConfig.model_type, SharcsConfig)
for _auto_class, _model_class in {
    AutoModel: SharcsModel,
    AutoModelForSequenceClassification: SharcsForSequenceClassification,
    AutoModelForTokenClassification: SharcsForTokenClassification,
    AutoModelForQuestionAnswering: SharcsForQuestionAnswering,
}.items():
    _auto_class.register(SharcsConfig, _model_class)


__all__ = [
    "Importance",
    "SharcsConfig",
    "SharcsForQuestionAnswering",
    "SharcsForSequenceClassification",
    "SharcsForTokenClassification",
    "SharcsModel",
    "SharcsPreTrainedModel",
    "compute_importance",
    "reorder_backbone",
]
