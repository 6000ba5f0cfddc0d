# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""What the trainers of elastic models share: weights fit to train, and several backward passes in one step."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

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
    trainer: Trainer,
    model: nn.Module,
    passes: Sequence[Callable[[], torch.Tensor]],
    local_gradients: Callable[[], AbstractContextManager],
) -> torch.Tensor:
    """
    Runs each pass and back-propagates its loss. Gradients are reduced across processes once an optimizer step; the
    last pass must give every parameter a gradient, be it zero.

    Args:
        trainer (`Trainer`): Whose step it is.
        model (`nn.Module`): The wrapped model.
        passes (`Sequence[Callable]`): Each runs the model and returns its share of the step's loss.
        local_gradients (`Callable`):
            Makes the context of passes whose gradients nobody waits for: the `add_gradients_in_place` of the family.

    Returns:
        `torch.Tensor`: the summed loss, detached.
    """
    accelerator = trainer.accelerator
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return _run_in_engine(trainer, model, passes)
    total = torch.zeros((), device=trainer.args.device)
    for position, run in enumerate(passes):
        last = position == len(passes) - 1
        wrapped = isinstance(model, DistributedDataParallel)
        local = not last if wrapped else accelerator.distributed_type == DistributedType.NO
        with contextlib.ExitStack() as contexts:
            if not last:
                contexts.enter_context(_no_sync(accelerator, model))
            if local:
                contexts.enter_context(local_gradients())
            loss = run()
            accelerator.backward(loss)
        total += loss.detach()
    return total


def _run_in_engine(trainer: Trainer, engine: nn.Module, passes: Sequence[Callable[[], torch.Tensor]]) -> torch.Tensor:
    """`run_backward_passes` of a DeepSpeed engine, whose optimizer step is part of its last pass."""
    complete = trainer.accelerator.sync_gradients
    if getattr(trainer, "_open_reduction", None) is None:
        trainer._open_reduction = _open_reduction(engine)
    total = torch.zeros((), device=trainer.args.device)
    for position, run in enumerate(passes):
        engine.set_gradient_accumulation_boundary(complete and position == len(passes) - 1)
        loss = run()
        engine.backward(loss, scale_wrt_gas=False)
        total += loss.detach()
    if complete:
        trainer._open_reduction.close()
        trainer._open_reduction = None
        engine.set_gradient_accumulation_boundary(True)
        engine.step()
    return total


def _open_reduction(engine: nn.Module) -> contextlib.ExitStack:
    """Opened before the first pass of an optimizer step; gradients are reduced when it is closed."""
    reduction = contextlib.ExitStack()
    # Without ZeRO, and with DeepSpeed's wrappers of half-precision optimizers, only the last pass reduces anyhow.
    with contextlib.suppress(NotImplementedError):
        reduction.enter_context(engine.coalesce_grad_reduction())
    return reduction


def gather_parameters(*modules: nn.Module) -> None:
    """
    Makes parameters whole on every process until the next optimizer step, where ZeRO-3 has partitioned them. It
    gathers them module by module: processes that run different passes would wait for each other for ever, and
    parameters that are read outside of their module would be gone when gradients are computed.
    """
    parameters = [value for module in modules for value in module.parameters() if hasattr(value, "ds_id")]
    for parameter in parameters:
        parameter.is_external_param = True  # which no module's forward or backward pass releases
    if parameters:
        parameters[0].all_gather(param_list=parameters)
