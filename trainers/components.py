# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""The parts of a loss in the log."""

import torch


class LossComponentsMixin:
    """Mixin for a `Trainer`: its log holds weighted means, over steps and processes, of the named parts of a loss."""

    def __init__(self, *args, **kwargs):
        self._components: dict[str, torch.Tensor] = {}
        super().__init__(*args, **kwargs)

    def train(self, *args, **kwargs):
        self._components.clear()  # what an earlier training has not logged
        return super().train(*args, **kwargs)

    def _count(self, name: str, values: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds to what the next log averages; no synchronisation with the device."""
        values = values.detach().float()
        found = torch.stack([(values * weights).sum(), weights.sum()])
        self._components[name] = self._components.get(name, 0) + found

    def _component_names(self) -> list[str]:
        """What is reduced over processes: the same names on all of them, though some may not have counted them."""
        return sorted(self._components)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        names = self._component_names() if "loss" in logs else []
        if names:
            nothing = torch.zeros(2, device=self.args.device)
            values = torch.stack([self._components.get(name, nothing) for name in names])
            values = self.accelerator.reduce(values, reduction="sum").tolist()
            logs.update({name: summed / count for name, (summed, count) in zip(names, values, strict=True) if count})
            self._components.clear()
        super().log(logs, start_time)


__all__ = ["LossComponentsMixin"]
