# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What the trainers of elastic models share: weights fit to train, and several backward passes in one step."""

import contextlib
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments


def check_precision(model: nn.Module, args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: if weights are float16, in which training diverges: `from_pretrained` keeps a checkpoint's type.
    """
    half = next((name for name, value in model.named_parameters() if value.dtype == torch.float16), None)
    if half is not None and not args.deepspeed:
        raise ValueError(
            f"The model's weights are float16 (the first one is {half}), in which training diverges; load it with "
            "`dtype=torch.float32`, and use `bf16=True` or `fp16=True` of the training arguments for mixed precision."
        )


def _no_sync(accelerator: Accelerator, model: nn.Module):
    # Accelerator's own does nothing for a single process, which torchrun wraps all the same.
    return model.no_sync() if isinstance(model, DistributedDataParallel) else accelerator.no_sync(model)


def run_backward_passes(
    trainer: Trainer, model: nn.Module, passes: Sequence[Callable[[], torch.Tensor]]
) -> torch.Tensor:
    """
    Runs each pass and back-propagates its loss. All but the last keep their gradients local, so that the last one must
    give every parameter a gradient, be it zero.

    Args:
        trainer (`Trainer`): Whose step it is.
        model (`nn.Module`): The wrapped model.
        passes (`Sequence[Callable]`): Each runs the model and returns its share of the step's loss.

    Returns:
        `torch.Tensor`: the summed loss, detached.
    """
    accelerator = trainer.accelerator
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    sync = accelerator.gradient_state.sync_gradients
    total = torch.zeros((), device=trainer.args.device)
    for position, run in enumerate(passes):
        last = position == len(passes) - 1
        if deepspeed:
            accelerator.gradient_state._set_sync_gradients(sync and last)
        with contextlib.nullcontext() if last or deepspeed else _no_sync(accelerator, model):
            loss = run()
            accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
        total += loss.detach()
    accelerator.gradient_state._set_sync_gradients(sync)
    return total
