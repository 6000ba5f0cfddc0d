# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Attention functions that an encoder may use instead of, or beside, those of transformers' interface. The same file
stands in both families, as each is pushed with its models and imports no other package.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig


def eager_attention_forward(*args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's, which is imported when it is needed: that takes as long as the import of this whole package."""
    from transformers.models.bert.modeling_bert import eager_attention_forward

    return eager_attention_forward(*args, **kwargs)


def has_costly_dropout(config: PreTrainedConfig, states: torch.Tensor, dropout: float) -> bool:
    """Whether [`dropout_attention_forward`] serves better; it is less exact in half precision, and breaks graphs."""
    if not 0 < dropout < 1 or config._attn_implementation != "sdpa":
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return states.device.type == "cpu" and states.dtype == torch.float32


def dropout_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Scaled dot product attention with dropout for CPUs, where PyTorch has no fused kernel with it either: its random
    numbers, one after the other, were a sixth of a training pass of the smallest subnet. 16 bits for each entry do. A
    query that may see no key gets the mean of all values here, zeros there.
    """
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:  # a row of -inf alone would have no softmax
        scores = scores + attention_mask.clamp(min=torch.finfo(attention_mask.dtype).min)
    dropped = min(round(dropout * 2**16), 2**16 - 1)
    bits = scores.new_empty(-(-scores.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    # 0 or 1 as floats, which hold 16 bits, without a comparison: making booleans and converting them took six times as
    # long.
    kept = bits.view(torch.int16)[: scores.numel()].float().sub_(dropped - 2**15 - 1).clamp_(0, 1)
    context = (scores.softmax(dim=-1) * kept.view_as(scores).to(scores.dtype)) @ (value / (1 - dropped / 2**16))
    return context.transpose(1, 2), None
