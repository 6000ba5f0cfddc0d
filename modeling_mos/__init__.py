# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Mixture-of-Supernets (MoS): one BERT-like supernet, searched for its best subnet under a limit
(https://huggingface.co/papers/2306.04845). Importing this package registers its models with the Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .architecture import Architecture, CostTable, SearchSpace
from .configuration_mos import MosConfig
from .configuration_mos_subnet import MosSubnetConfig
from .latency import load_latency, measure_architectures, measure_latency, save_latency
from .modeling_mos import (
    MosForMaskedLM,
    MosForQuestionAnswering,
    MosForSequenceClassification,
    MosForTokenClassification,
    MosModel,
    MosPreTrainedModel,
)
from .modeling_mos_subnet import (
    MosSubnetForMaskedLM,
    MosSubnetForQuestionAnswering,
    MosSubnetForSequenceClassification,
    MosSubnetForTokenClassification,
    MosSubnetModel,
    MosSubnetPreTrainedModel,
)
from .objectives import MaskedLMObjective, TaskObjective
from .search import EvolutionarySearch, SearchConstraints, SearchResult, name_front


_HEADS = {
    AutoModel: (MosModel, MosSubnetModel),
    AutoModelForMaskedLM: (MosForMaskedLM, MosSubnetForMaskedLM),
    AutoModelForSequenceClassification: (MosForSequenceClassification, MosSubnetForSequenceClassification),
    AutoModelForTokenClassification: (MosForTokenClassification, MosSubnetForTokenClassification),
    AutoModelForQuestionAnswering: (MosForQuestionAnswering, MosSubnetForQuestionAnswering),
}
for _config_class in (MosConfig, MosSubnetConfig):
    AutoConfig.register(_config_class.model_type, _config_class)
for _auto_class, _model_classes in _HEADS.items():
    for _config_class, _model_class in zip((MosConfig, MosSubnetConfig), _model_classes, strict=True):
        _auto_class.register(_config_class, _model_class)


__all__ = [
    "Architecture",
    "CostTable",
    "EvolutionarySearch",
    "MaskedLMObjective",
    "MosConfig",
    "MosForMaskedLM",
    "MosForQuestionAnswering",
    "MosForSequenceClassification",
    "MosForTokenClassification",
    "MosModel",
    "MosPreTrainedModel",
    "MosSubnetConfig",
    "MosSubnetForMaskedLM",
    "MosSubnetForQuestionAnswering",
    "MosSubnetForSequenceClassification",
    "MosSubnetForTokenClassification",
    "MosSubnetModel",
    "MosSubnetPreTrainedModel",
    "SearchConstraints",
    "SearchResult",
    "SearchSpace",
    "TaskObjective",
    "load_latency",
    "measure_architectures",
    "measure_latency",
    "name_front",
    "save_latency",
]
