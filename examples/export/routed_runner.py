# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
Runs a routed encoder (SHARCS) that `export_onnx.py` wrote, with numpy and onnxruntime only: copy this file beside it.

    runner = RoutedRunner("onnx/sharcs-sst2")
    outputs = runner(**tokenizer(texts, padding=True, return_tensors="np"))
    outputs["logits"], outputs["width_indices"]
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime


class RoutedRunner:
    """
    One graph up to the router, and one a width after it. Rows of one width run together, their padding trimmed to the
    longest of them, and results are put back in order.

    Args:
        folder (`str` or `os.PathLike`): What `export_onnx.py` wrote: the graphs and `routing.json`.
        providers (sequence of `str`, *optional*, defaults to the CPU): Execution providers of onnxruntime.

    Raises:
        FileNotFoundError: The folder holds no routed encoder.
    """

    def __init__(self, folder: str | os.PathLike, providers: Sequence[str] = ("CPUExecutionProvider",)):
        folder = Path(folder)
        if not (folder / "routing.json").is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no routing.json; give a folder that export_onnx.py wrote.")
        routing = json.loads((folder / "routing.json").read_text(encoding="utf-8"))
        self.inputs: list[str] = routing["inputs"]
        self.outputs: list[str] = routing["outputs"]
        self.outputs_per_token: bool = routing["outputs_per_token"]
        self.price: float = routing["price"]
        self.costs = np.array([width["cost"] for width in routing["widths"]])

        def load(name: str) -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(folder / name, providers=list(providers))

        self.front = load(routing["front"])
        self.paths = [load(width["graph"]) for width in routing["widths"]]

    def __call__(self, price: float | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """
        Args:
            price (`float`, *optional*): What compute costs; the exported model's own if not given.
            inputs (`np.ndarray` of shape `(batch, tokens)`): `input_ids`, `attention_mask` and what else the model
                reads, as the tokenizer makes them.

        Returns:
            `dict[str, np.ndarray]`: The head's outputs, `router_logits` of shape `(batch, widths)` and `width_indices`
            of shape `(batch,)`. Outputs for each token are zero at padding that was trimmed.

        Raises:
            ValueError: An input is missing, is not known, or has another shape than the others.
        """
        if sorted(inputs) != sorted(self.inputs):
            raise ValueError(f"The inputs are {', '.join(self.inputs)}, not {', '.join(inputs) or 'none'}.")
        inputs = {name: np.asarray(values, dtype=np.int64) for name, values in inputs.items()}
        shapes = {name: values.shape for name, values in inputs.items()}
        if len(set(shapes.values())) > 1 or inputs["input_ids"].ndim != 2:
            raise ValueError(f"All inputs must have one shape, (batch, tokens), got {shapes}.")
        hidden, router_logits = self.front.run(["hidden", "router_logits"], inputs)
        width_indices = choose_widths(router_logits, self.price if price is None else price, self.costs)
        results = self._run_groups(hidden, inputs["attention_mask"], width_indices)
        return {**results, "router_logits": router_logits, "width_indices": width_indices}

    def _run_groups(
        self, hidden: np.ndarray, attention_mask: np.ndarray, width_indices: np.ndarray
    ) -> dict[str, np.ndarray]:
        batch, tokens = attention_mask.shape
        # One past the last real token, so that padding on either side is handled.
        ends = ((attention_mask != 0) * np.arange(1, tokens + 1)).max(axis=1)
        results: dict[str, np.ndarray] = {}
        for index in np.unique(width_indices):
            rows = np.flatnonzero(width_indices == index)
            longest = max(1, ends[rows].max())
            group = {"hidden": hidden[rows, :longest], "attention_mask": attention_mask[rows, :longest]}
            for name, values in zip(self.outputs, self.paths[index].run(self.outputs, group), strict=True):
                if self.outputs_per_token:
                    shape, place = (batch, tokens, *values.shape[2:]), (rows, slice(longest))
                else:
                    shape, place = (batch, *values.shape[1:]), rows
                results.setdefault(name, np.zeros(shape, values.dtype))[place] = values
        return results


def choose_widths(router_logits: np.ndarray, price: float, costs: np.ndarray) -> np.ndarray:
    """Index of the width with the largest `router_logit - price * cost`, of shape `(rows,)`."""
    return (router_logits - (price * costs).astype(router_logits.dtype)).argmax(axis=-1)
