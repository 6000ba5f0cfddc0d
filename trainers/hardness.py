# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
How hard a training sample is, and which widths may handle it (SHARCS, https://huggingface.co/papers/2310.12126).

Every epoch gives each sample a score; the scores of the last few epochs, compared with an interval for each width,
give the router's targets. Scores and targets are never called labels: those are the task's.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


Interval = tuple[float, float]


# ---- scores ---------------------------------------------------------------------------------------------------------


def sample_confidence(
    outputs: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    problem: str,
    error_scale: float = 1.0,
) -> torch.Tensor:
    """
    The probability that a model gives to a sample's targets; for regression `exp(-|error| / error_scale)`.

    Args:
        outputs (`Mapping`): `logits`, or `start_logits` and `end_logits`.
        targets (`Mapping`): `labels`, or `start_positions` and `end_positions`.
        problem (`str`):
            `"single_label_classification"`, `"multi_label_classification"` (mean probability of the right answers),
            `"regression"`, `"token_classification"` (mean over labelled tokens) or `"question_answering"` (probability
            of the span: start's times end's).
        error_scale (`float`, *optional*, defaults to 1.0): Unit of the error of a regression.

    Returns:
        `torch.Tensor` of shape `(rows,)` in [0, 1].
    """
    if problem == "question_answering":
        log_probability = 0
        for name in ("start", "end"):
            scores, positions = (
                outputs[f"{name}_logits"].float().log_softmax(-1),
                targets[f"{name}_positions"].view(-1),
            )
            inside = (positions >= 0) & (positions < scores.shape[1])
            picked = scores.gather(1, positions.clamp(0, scores.shape[1] - 1).unsqueeze(1)).squeeze(1)
            # An answer that was cut off cannot be found: as hard as it gets.
            log_probability = log_probability + picked.masked_fill(~inside, -math.inf)
        return log_probability.exp()
    logits, labels = outputs["logits"].float(), targets["labels"]
    if problem == "regression":
        error = (logits.reshape(labels.shape) - labels.float()).abs()
        return torch.exp(-error.reshape(len(error), -1).mean(dim=-1) / error_scale)
    if problem == "multi_label_classification":
        right = torch.where(labels > 0.5, logits, -logits)
        return right.sigmoid().mean(dim=-1)
    if problem == "token_classification":
        labelled = labels != -100
        right = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return _mean_over(right, labelled, nothing=1.0)
    return logits.softmax(-1).gather(-1, labels.view(-1, 1)).squeeze(-1)


def sample_entropy(
    outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], problem: str
) -> torch.Tensor:
    """
    The entropy of a model's prediction in nats (the mean over labels, tokens, or start and end), of shape `(rows,)`.

    Raises:
        ValueError: for a regression, which predicts no distribution.
    """
    if problem == "regression":
        raise ValueError("A regression predicts no distribution; use hardness_signal='confidence'.")
    if problem == "question_answering":
        both = (outputs[f"{name}_logits"].float().softmax(-1) for name in ("start", "end"))
        return sum(torch.special.entr(probability).sum(-1) for probability in both) / 2
    logits = outputs["logits"].float()
    if problem == "multi_label_classification":
        probability = logits.sigmoid()
        return (torch.special.entr(probability) + torch.special.entr(1 - probability)).mean(-1)
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    if problem == "token_classification":
        return _mean_over(entropy, targets["labels"] != -100, nothing=0.0)
    return entropy


def predicted_targets(
    outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], problem: str
) -> dict[str, torch.Tensor]:
    """What a model predicts, in the form of its targets: the wide path's answer, with which a narrow one may agree."""
    if problem == "question_answering":
        return {f"{name}_positions": outputs[f"{name}_logits"].argmax(-1) for name in ("start", "end")}
    logits = outputs["logits"]
    if problem == "regression":
        return {"labels": logits.reshape(targets["labels"].shape)}
    if problem == "multi_label_classification":
        return {"labels": (logits > 0).float()}
    if problem == "token_classification":
        return {"labels": logits.argmax(-1).masked_fill(targets["labels"] == -100, -100)}
    return {"labels": logits.argmax(-1)}


def _mean_over(values: torch.Tensor, kept: torch.Tensor, nothing: float) -> torch.Tensor:
    counts = kept.sum(dim=-1)
    means = (values * kept).sum(dim=-1) / counts.clamp(min=1)
    return torch.where(counts > 0, means, torch.full_like(means, nothing))


# ---- intervals and targets ------------------------------------------------------------------------------------------


def read_intervals(
    source: "float | str | Mapping", widths: Sequence[float], highest: float = 1.0, high_is_hard: bool = False
) -> list[Interval]:
    """
    The interval of scores that each width handles.

    Args:
        source (`float`, `str` or `Mapping`):
            A file in the published YAML form (`buckets: {confidence_threshs: {0.25: [0.2, 1.0], 1.0: [0.0, 0.2]}}`; a
            width may be written as "1/3"), a mapping of widths to `[low, high]`, or one number t (as 0.2 or "1/5")
            between 0 and `highest`: the narrowest width takes the scores on the easy side of t, the others share the
            rest in equal parts, the widest the hardest.
        widths (`Sequence[float]`): The model's width multipliers, in ascending order.
        highest (`float`, *optional*, defaults to 1.0):
            The largest possible score: 1 for a confidence, the logarithm of the number of classes for an entropy.
        high_is_hard (`bool`, *optional*, defaults to `False`): `True` for entropies; only one number t needs it.

    Returns:
        `list[tuple[float, float]]`: one `(low, high)` a width; `low` belongs to the interval, and `high` only where it
        is the largest of all.

    Raises:
        ValueError: for a file that cannot be read, an unknown or a missing width, an interval that is empty, or scores
            that no width handles.
    """
    found = source
    name = "The intervals"
    if isinstance(source, str):
        found = as_number(source)
        if found is None:
            found, name = _read_interval_file(source), f"The intervals of {source}"
    if isinstance(found, (int, float)):
        return _split_at(float(found), len(widths), highest, high_is_hard)
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{name} must map each of the widths {list(widths)} to [low, high], got {found!r}.")
    intervals: dict[int, Interval] = {}
    for given, interval in found.items():
        index = _which_width(given, widths, name)
        if index in intervals:
            raise ValueError(f"{name} give the width {widths[index]:g} twice; keep one.")
        intervals[index] = _as_interval(interval, given, name)
    missing = [width for index, width in enumerate(widths) if index not in intervals]
    if missing:
        raise ValueError(
            f"{name} say nothing about the width {missing[0]:g}; give each of the model's widths "
            f"{[float(width) for width in widths]} its [low, high]."
        )
    ordered = [intervals[index] for index in range(len(widths))]
    _check_coverage(ordered, highest, name)
    return ordered


def _read_interval_file(path: str) -> Any:
    if not os.path.isfile(path):
        raise ValueError(
            f"{path!r} is neither a number nor a file of intervals; give a number such as 0.2 or 1/5, or a path."
        )
    try:
        with open(path, encoding="utf-8") as stream:
            found = yaml.safe_load(stream)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The file of intervals {path} is no YAML: {str(error).splitlines()[0]}.") from error
    if isinstance(found, Mapping) and isinstance(found.get("buckets"), Mapping):
        found = found["buckets"]
        found = found.get("confidence_threshs", found)
    if not found:
        raise ValueError(f"The file of intervals {path} is empty; it needs a line such as `0.25: [0.2, 1.0]` a width.")
    return found


def _split_at(threshold: float, num_widths: int, highest: float, high_is_hard: bool) -> list[Interval]:
    if num_widths == 1:
        return [(0.0, highest)]
    if not 0 < threshold < highest:
        raise ValueError(f"The threshold of hardness must lie between 0 and {highest:.4g}, got {threshold:g}.")
    if high_is_hard:
        edges = [0.0] + [threshold + (highest - threshold) * step / (num_widths - 1) for step in range(num_widths)]
        return list(zip(edges, edges[1:], strict=False))
    edges = [highest] + [threshold * step / (num_widths - 1) for step in range(num_widths - 1, -1, -1)]
    return [(low, high) for high, low in zip(edges, edges[1:], strict=False)]


def as_number(given: Any) -> float | None:
    """A number as people and JSON write it; YAML takes "1/3" and 1e-05 for text. `None` for anything else."""
    try:
        return float(Fraction(str(given).strip()))
    except (ValueError, ZeroDivisionError):
        return None


def _which_width(given: Any, widths: Sequence[float], name: str) -> int:
    value = as_number(given)
    if value is None:
        raise ValueError(f"{name} name the width {given!r}, which is no number; write 0.25 or 1/3.")
    for index, width in enumerate(widths):
        if abs(width - value) < 1e-3:
            return index
    raise ValueError(f"{name} name the width {given}, which the model does not have; its widths are {list(widths)}.")


def _as_interval(interval: Any, width: Any, name: str) -> Interval:
    pair = interval if isinstance(interval, Sequence) and not isinstance(interval, str) else []
    ends = [as_number(end) for end in pair]
    if len(ends) != 2 or None in ends:
        raise ValueError(f"{name} give the width {width} {interval!r}; write [low, high].")
    low, high = ends
    if not 0 <= low < high:
        raise ValueError(f"{name} give the width {width} [{low:g}, {high:g}]; it needs 0 <= low < high.")
    return low, high


def _check_coverage(intervals: Sequence[Interval], highest: float, name: str) -> None:
    reached = 0.0
    for low, high in sorted(intervals):
        if low > reached + 1e-9:
            break
        reached = max(reached, high)
    if reached < highest - 1e-9:
        following = min((low for low, _ in intervals if low > reached), default=highest)
        raise ValueError(
            f"{name} leave a gap: no width handles scores between {reached:g} and {following:.4g}; widen an interval "
            f"so that together they cover 0 to {highest:.4g}."
        )


def interval_targets(scores: torch.Tensor, intervals: Sequence[Interval]) -> torch.Tensor:
    """
    Which widths may handle a sample: those whose interval holds all its recent scores; the widest where none does.

    Args:
        scores (`torch.Tensor` of shape `(samples, window)`): Scores of the last epochs.
        intervals (`Sequence[tuple[float, float]]`): One a width; the uppermost is closed, the others half open.

    Returns:
        Boolean `torch.Tensor` of shape `(samples, widths)`.
    """
    top = max(high for _, high in intervals)
    least, most = scores.amin(dim=1), scores.amax(dim=1)
    # A probability of 1 may come out of single precision a little above it.
    columns = [(least >= low) & ((most <= high + 1e-5) if high == top else (most < high)) for low, high in intervals]
    found = torch.stack(columns, dim=1)
    found[:, -1] |= ~found.any(dim=1)
    return found


def agreement_targets(scores: torch.Tensor, intervals: Sequence[Interval]) -> torch.Tensor:
    """
    Which widths may handle a sample, from the probability that each gave to the widest path's answer: those that gave
    it at least the lower end of their interval in all recent epochs, and always the widest.

    Args:
        scores (`torch.Tensor` of shape `(samples, window, widths)`): Scores of the last epochs.

    Returns:
        Boolean `torch.Tensor` of shape `(samples, widths)`.
    """
    found = scores.amin(dim=1) >= torch.tensor([low for low, _ in intervals], dtype=scores.dtype)
    found[:, -1] = True
    return found


# ---- history --------------------------------------------------------------------------------------------------------


class HardnessHistory:
    """
    The scores of every sample in every epoch, and those of the epoch that is under way.

    Args:
        num_samples (`int`): Size of the training set.
        num_scores (`int`, *optional*, defaults to 1): Scores a sample and epoch: the widths, for agreement.
    """

    def __init__(self, num_samples: int, num_scores: int = 1):
        self.epochs = torch.empty(num_samples, 0, num_scores)
        self._start_epoch()

    @property
    def num_epochs(self) -> int:
        """Number of finished epochs."""
        return self.epochs.shape[1]

    def _start_epoch(self) -> None:
        shape = (self.epochs.shape[0], self.epochs.shape[2])
        self.current = torch.full(shape, math.nan)
        # Place of the occurrence in the epoch's order: where a sample is trained twice, the later score counts.
        self.places = torch.full(shape[:1], -1, dtype=torch.long)

    def record(self, samples: torch.Tensor, scores: torch.Tensor, places: torch.Tensor) -> None:
        """
        Scores of some samples of the epoch under way; the one with the highest place stays.

        Args:
            samples (`torch.LongTensor` of shape `(rows,)`): Indices in the training set.
            scores (`torch.Tensor` of shape `(rows,)` or `(rows, num_scores)`): Their scores.
            places (`torch.LongTensor` of shape `(rows,)`):
                Places in the epoch's order, each once, the same on any number of processes.
        """
        before, self.places = self.places, self.places.scatter_reduce(0, samples, places, "amax")
        newest = (places == self.places[samples]) & (places > before[samples])
        self.current[samples[newest]] = scores[newest].float().reshape(-1, self.current.shape[1])

    def gathered(self, accelerator) -> tuple[torch.Tensor, torch.Tensor]:
        """The current epoch's scores and places over all processes."""
        if accelerator.num_processes == 1:
            return self.current, self.places
        every = accelerator.gather(self.places.unsqueeze(0).to(accelerator.device)).cpu()
        scores = accelerator.gather(self.current.unsqueeze(0).to(accelerator.device)).cpu()
        winner = every.argmax(dim=0)
        return scores[winner, torch.arange(len(winner))], every.amax(dim=0)

    def finish_epoch(self, accelerator=None) -> None:
        """
        Closes the epoch under way.

        Raises:
            ValueError: if a sample has no score, or a score is not finite; nothing is changed then.
        """
        scores = self.current if accelerator is None else self.gathered(accelerator)[0]
        bad = ~scores.isfinite().all(dim=1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} of {len(bad)} training samples have no finite score in epoch {self.num_epochs} "
                f"(the first one is sample {int(bad.nonzero()[0])}): their logits were not finite, so training has "
                "diverged; lower the learning rate or clip gradients, and continue from an earlier checkpoint."
            )
        self.epochs = torch.cat([self.epochs, scores.unsqueeze(1)], dim=1)
        self._start_epoch()

    def window(self, size: int) -> torch.Tensor | None:
        """The last `size` epochs, of shape `(samples, size, num_scores)`; `None` before there are that many."""
        return self.epochs[:, -size:] if self.num_epochs >= size else None

    def save(self, path: str | os.PathLike, accelerator=None) -> None:
        """Writes a safetensors file beside and renames it. With an accelerator all processes must call this."""
        current, places = (self.current, self.places) if accelerator is None else self.gathered(accelerator)
        if accelerator is not None and not accelerator.is_main_process:
            return
        tensors = {"epochs": self.epochs.contiguous(), "current": current.contiguous(), "places": places.contiguous()}
        temporary = f"{path}.unfinished"
        save_file(tensors, temporary, {"format": "pt", "about": json.dumps({"samples": len(self.epochs)})})
        os.replace(temporary, path)

    def load(self, path: str | os.PathLike) -> None:
        """
        Raises:
            ValueError: if the file is missing or broken, or is about another training set.
        """
        if not os.path.isfile(path):
            raise ValueError(
                f"There is no hardness history {path}; a checkpoint written with save_only_model has none and cannot "
                "be continued: load its weights with `from_pretrained` and start anew."
            )
        try:
            with safe_open(str(path), framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in ("epochs", "current", "places")}
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"The hardness history {path} cannot be read ({error}); continue from an earlier checkpoint."
            ) from error
        expected = (self.epochs.shape[0], self.epochs.shape[2])
        found = (tensors["epochs"].shape[0], tensors["epochs"].shape[2])
        if found != expected:
            raise ValueError(
                f"The hardness history {path} is about {found[0]} samples with {found[1]} scores each, this run has "
                f"{expected[0]} with {expected[1]}; continue with the data and options that the run was started with."
            )
        self.epochs, self.current, self.places = tensors["epochs"], tensors["current"], tensors["places"]


__all__ = [
    "HardnessHistory",
    "agreement_targets",
    "as_number",
    "interval_targets",
    "predicted_targets",
    "read_intervals",
    "sample_confidence",
    "sample_entropy",
]
