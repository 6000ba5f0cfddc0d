# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Architectures of subnets, the spaces they are drawn from, and what they cost. Plain Python, no torch."""

import bisect
import difflib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any, Literal


# Published ids (SuperShaper and MoS papers) of the presets below.
PRESET_ALIASES = {
    "v1": "bottleneck",
    "v1.1": "bottleneck-ffn-4x",
    "v1.2": "bottleneck-elastic-ffn",
    "attn_elastic": "bottleneck-elastic-heads",
    "hidden_layer_elastic": "bottleneck-elastic-depth",
    "ffn_intermediate_elastic": "bottleneck-ffn-sizes",
    "ffn_intermediate_ratio_elastic": "bottleneck-ffn-ratios",
    "v2": "bottleneck-ffn-ratios-depth",
    "v5.1": "uniform",
    "v5.2": "uniform-depth",
}

# Sizes are those of BERT-base (12 layers, 768 wide, 12 heads, feed-forward 3072); a backbone of another size keeps
# their fractions. "full" is the backbone's own value.
_SEVEN_WIDTHS = (120, 240, 360, 480, 540, 600, 768)
PRESETS: dict[str, dict[str, Any]] = {
    "bottleneck": {"hidden_sizes": _SEVEN_WIDTHS},
    "bottleneck-ffn-4x": {"hidden_sizes": _SEVEN_WIDTHS, "intermediate_ratios": (4,)},
    "bottleneck-elastic-ffn": {
        "hidden_sizes": _SEVEN_WIDTHS,
        "intermediate_sizes": (256, 512, 1024, 2048, 3072),
        "minimum_intermediate_ratio": 2,
    },
    "bottleneck-elastic-heads": {"hidden_sizes": _SEVEN_WIDTHS, "num_attention_heads": (2, 4, 6, 8, 10, 12)},
    "bottleneck-elastic-depth": {"hidden_sizes": _SEVEN_WIDTHS, "num_hidden_layers": (6, 8, 10, 12)},
    "bottleneck-ffn-sizes": {"hidden_sizes": _SEVEN_WIDTHS, "intermediate_sizes": (512, 1024, 2048, 3072)},
    "bottleneck-ffn-ratios": {"hidden_sizes": _SEVEN_WIDTHS, "intermediate_ratios": (2, 3, 4)},
    "bottleneck-ffn-ratios-depth": {
        "hidden_sizes": (120, 360, 540, 768),
        "intermediate_ratios": (2, 3, 4),
        "num_hidden_layers": (6, 9, 12),
    },
    "uniform": {
        "hidden_sizes": tuple(range(120, 769, 12)),
        "intermediate_ratios": (2, 2.5, 3, 3.5, 4),
        "num_attention_heads": (6, 12),
        "bottleneck": False,
    },
    "uniform-depth": {
        "hidden_sizes": tuple(range(120, 769, 24)),
        "intermediate_ratios": (2, 2.5, 3, 3.5, 4),
        "num_attention_heads": (6, 12),
        "num_hidden_layers": (6, 9, 12),
        "bottleneck": False,
    },
}
SPACE_KEYS = (
    "hidden_sizes",
    "intermediate_sizes",
    "intermediate_ratios",
    "num_attention_heads",
    "num_hidden_layers",
    "bottleneck",
    "minimum_intermediate_ratio",
)

# Up to so many architectures are listed one by one; more are counted by their costs.
ENUMERABLE = 5_000

RouterInput = Literal["scaled", "one-hot", "constant"]


def nearest(value: float, choices: Iterable[float]) -> float:
    """The choice closest to `value` (the smaller one on a tie)."""
    return min(sorted(choices), key=lambda choice: abs(choice - value))


def suggestion(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, or nothing where no known word is close."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Architecture:
    """
    One subnet: the sizes of each of its layers. Hashable, so it can key a cache.

    Args:
        hidden_sizes (`tuple[int, ...]`):
            Width at which each layer works (the paper's bottleneck dimension, section 4.2). One entry a layer.
        intermediate_sizes (`tuple[int, ...]`):
            Feed-forward width of each layer.
        num_attention_heads (`tuple[int, ...]`):
            Heads of each layer; they must divide the layer's width.

    Raises:
        ValueError: if the three lists differ in length or are empty, a size is not a positive integer, or a width is
            not divisible by its heads.
    """

    hidden_sizes: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]
    num_attention_heads: tuple[int, ...]

    def __post_init__(self):
        for name in ("hidden_sizes", "intermediate_sizes", "num_attention_heads"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or not all(
                isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values
            ):
                raise ValueError(f"`{name}` must hold one positive integer a layer, got {values!r}.")
            object.__setattr__(self, name, tuple(values))
        lengths = {len(self.hidden_sizes), len(self.intermediate_sizes), len(self.num_attention_heads)}
        if lengths == {0} or len(lengths) > 1:
            raise ValueError(
                "`hidden_sizes`, `intermediate_sizes` and `num_attention_heads` must have one entry a layer, got "
                f"{len(self.hidden_sizes)}, {len(self.intermediate_sizes)} and {len(self.num_attention_heads)}."
            )
        for index, (width, heads) in enumerate(zip(self.hidden_sizes, self.num_attention_heads, strict=True)):
            if width % heads:
                raise ValueError(
                    f"Layer {index}: the hidden size {width} is not divisible by its {heads} attention heads; the "
                    f"nearest widths that are: {width // heads * heads} and {(width // heads + 1) * heads}."
                )

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers."""
        return len(self.hidden_sizes)

    @property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """`(hidden_size, intermediate_size, num_attention_heads)` of each layer."""
        return tuple(zip(self.hidden_sizes, self.intermediate_sizes, self.num_attention_heads, strict=True))

    def to_dict(self) -> dict[str, list[int]]:
        """Plain lists, for JSON; the inverse of `from_dict`."""
        return {
            "hidden_sizes": list(self.hidden_sizes),
            "intermediate_sizes": list(self.intermediate_sizes),
            "num_attention_heads": list(self.num_attention_heads),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Sequence[int]]) -> "Architecture":
        """
        Raises:
            ValueError: on a missing or an unknown key.
        """
        keys = {"hidden_sizes", "intermediate_sizes", "num_attention_heads"}
        if set(data) != keys:
            raise ValueError(f"An architecture has the keys {sorted(keys)}, got {sorted(data)}.")
        return cls(**data)

    def __str__(self) -> str:
        """Hidden sizes|feed-forward sizes|heads of the layers, equal neighbours together: `60x2,76|384x3|4x3`."""

        def short(values: tuple[int, ...]) -> str:
            runs = [(value, len(list(group))) for value, group in itertools.groupby(values)]
            return ",".join(str(value) if count == 1 else f"{value}x{count}" for value, count in runs)

        return f"{short(self.hidden_sizes)}|{short(self.intermediate_sizes)}|{short(self.num_attention_heads)}"


@dataclass(frozen=True)
class CostTable:
    """
    A cost that adds up along the layers: entry + layers + transitions between neighbours + exit.

    Parameters, FLOPs and measured latencies have this form, which is what makes sampling under limits fast.

    Args:
        name (`str`): What is counted, as the messages name it (`"parameters"`).
        entry (`tuple`): `(hidden_size, cost)` of all that comes before a first layer of that width.
        layer (`tuple`): `((hidden_size, intermediate_size, heads), cost)` of a layer.
        transition (`tuple`): `((hidden_size, next_hidden_size), cost)` between two layers.
        exit (`tuple`): `(hidden_size, cost)` of all that follows a last layer of that width.
    """

    name: str
    entry: tuple[tuple[int, float], ...]
    layer: tuple[tuple[tuple[int, int, int], float], ...]
    transition: tuple[tuple[tuple[int, int], float], ...]
    exit: tuple[tuple[int, float], ...]

    @classmethod
    def tabulate(
        cls,
        name: str,
        space: "SearchSpace",
        entry: Callable[[int], float],
        layer: Callable[[int, int, int], float],
        transition: Callable[[int, int], float],
        exit: Callable[[int], float],
    ) -> "CostTable":
        """Evaluates the four functions on every choice of `space`."""
        widths = sorted({choice[0] for choice in space.layer_choices})
        pairs = itertools.product(widths, widths) if space.bottleneck else ((width, width) for width in widths)
        return cls(
            name=name,
            entry=tuple((width, entry(width)) for width in widths),
            layer=tuple((choice, layer(*choice)) for choice in space.layer_choices),
            transition=tuple((pair, transition(*pair)) for pair in pairs),
            exit=tuple((width, exit(width)) for width in widths),
        )

    @cached_property
    def _tables(self) -> tuple[dict, dict, dict, dict]:
        return dict(self.entry), dict(self.layer), dict(self.transition), dict(self.exit)

    def __call__(self, architecture: Architecture) -> float:
        entry, layer, transition, exit = self._tables
        widths = architecture.hidden_sizes
        return (
            entry[widths[0]]
            + sum(layer[choice] for choice in architecture.layers)
            + sum(transition[pair] for pair in itertools.pairwise(widths))
            + exit[widths[-1]]
        )


def check_bound(name: str, bound: Any) -> None:
    """
    Raises:
        TypeError: if a bound is neither a number nor `None`.
    """
    if bound is not None and (isinstance(bound, bool) or not isinstance(bound, Real)):
        raise TypeError(f"A limit is a number, got {bound!r} for {name}.")


@dataclass(frozen=True)
class Limit:
    """`minimum <= cost(architecture) <= maximum`; either bound may be `None`."""

    cost: CostTable
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self):
        check_bound(f"the least {self.cost.name}", self.minimum)
        check_bound(f"the most {self.cost.name}", self.maximum)
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"The window of {self.cost.name} is upside down: the minimum {self.minimum:,} exceeds the maximum "
                f"{self.maximum:,}; swap them."
            )

    @property
    def bounds(self) -> tuple[float, float]:
        low = -float("inf") if self.minimum is None else self.minimum
        return low, float("inf") if self.maximum is None else self.maximum

    def holds(self, architecture: Architecture) -> bool:
        low, high = self.bounds
        return low <= self.cost(architecture) <= high

    def __str__(self) -> str:
        name = self.cost.name
        if self.minimum is None:
            return f"{name} up to {self.maximum:,}"
        return f"{name} from {self.minimum:,} " + ("up" if self.maximum is None else f"to {self.maximum:,}")


@dataclass(frozen=True)
class SearchSpace:
    """
    The set of architectures that a supernet contains.

    Args:
        hidden_sizes (`Sequence[int]`):
            Choices for the width of a layer: of each layer on its own with `bottleneck`, else one width for all.
        num_attention_heads (`Sequence[int]`):
            Choices for the heads of a layer.
        num_hidden_layers (`Sequence[int]`):
            Choices for the depth; a subnet of depth n keeps the first n layers.
        intermediate_sizes (`Sequence[int]`, *optional*):
            Choices for the feed-forward width of a layer, or
        intermediate_ratios (`Sequence[float]`, *optional*):
            choices for the feed-forward width as a multiple of the layer's own width. Exactly one of the two.
        bottleneck (`bool`, *optional*, defaults to `True`):
            With bottlenecks every layer has its own width (paper section 4.2); without, the whole network, its
            embeddings included, is uniform (the published v5), and a subnet is a stock BERT.
        minimum_intermediate_ratio (`float`, *optional*, defaults to 0):
            Drops choices whose feed-forward width is below this multiple of the layer's width (2 in published v1.2).

    Raises:
        ValueError: on empty, unsorted-out or contradictory choices; the message names them.
    """

    hidden_sizes: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    num_hidden_layers: tuple[int, ...]
    intermediate_sizes: tuple[int, ...] | None = None
    intermediate_ratios: tuple[float, ...] | None = None
    bottleneck: bool = True
    minimum_intermediate_ratio: float = 0

    def __post_init__(self):
        if not isinstance(self.bottleneck, bool):
            raise ValueError(f"`bottleneck` is true or false, got {self.bottleneck!r}.")
        minimum = self.minimum_intermediate_ratio
        if isinstance(minimum, bool) or not isinstance(minimum, (int, float)) or minimum < 0:
            raise ValueError(f"`minimum_intermediate_ratio` must be a number of at least 0, got {minimum!r}.")
        if (self.intermediate_sizes is None) == (self.intermediate_ratios is None):
            raise ValueError(
                "A search space has either `intermediate_sizes` or `intermediate_ratios`, got "
                f"{self.intermediate_sizes!r} and {self.intermediate_ratios!r}."
            )
        for name in (
            "hidden_sizes",
            "num_attention_heads",
            "num_hidden_layers",
            "intermediate_sizes",
            "intermediate_ratios",
        ):
            values = getattr(self, name)
            if values is None:
                continue
            if isinstance(values, (int, float)) and not isinstance(values, bool):
                values = (values,)
            if isinstance(values, str) or not values or not all(_is_positive(value, name) for value in values):
                kind = "positive numbers" if name == "intermediate_ratios" else "positive integers"
                raise ValueError(f"`{name}` of a search space must be a non-empty list of {kind}, got {values!r}.")
            object.__setattr__(self, name, tuple(sorted(set(values))))
        lonely = [width for width in self.hidden_sizes if all(choice[0] != width for choice in self.layer_choices)]
        if lonely:
            undivided = [width for width in lonely if all(width % heads for heads in self.num_attention_heads)]
            if undivided:
                heads = self.num_attention_heads
                near = sorted({max(1, round(width / count)) * count for width in undivided for count in heads})
                raise ValueError(
                    f"The hidden sizes {undivided} are divisible by none of the head counts {list(heads)}; use "
                    f"multiples, such as {near}, or give other `num_attention_heads`."
                )
            raise ValueError(
                f"The hidden sizes {lonely} allow no layer: none of the feed-forward choices reaches "
                f"{minimum} times that width; add larger ones, or lower `minimum_intermediate_ratio`."
            )

    @classmethod
    def resolve(
        cls,
        spec: "str | dict[str, Any] | SearchSpace",
        hidden_size: int,
        intermediate_size: int,
        num_attention_heads: int,
        num_hidden_layers: int,
    ) -> "SearchSpace":
        """
        The space that `spec` means for a backbone of these sizes.

        Args:
            spec (`str`, `dict` or [`SearchSpace`]):
                A preset's name or published id, whose sizes are kept as fractions of the backbone's and rounded to
                whole heads; or choices of one's own, taken as they are, where what is not named is not elastic.
            hidden_size, intermediate_size, num_attention_heads, num_hidden_layers (`int`):
                Sizes of the backbone, which must be the space's largest.

        Raises:
            ValueError: on an unknown preset or key, or where the largest architecture is not the backbone.
        """
        full = {
            "hidden_sizes": hidden_size,
            "intermediate_sizes": intermediate_size,
            "num_attention_heads": num_attention_heads,
            "num_hidden_layers": num_hidden_layers,
        }
        if isinstance(spec, SearchSpace):
            space = spec
        else:
            if isinstance(spec, str):
                choices = _scale_preset(spec, full)
            elif isinstance(spec, dict):
                choices = {key: value for key, value in spec.items() if value is not None}
            else:
                raise ValueError(f"A search space is a preset's name or a dictionary, got {type(spec).__name__}.")
            unknown = sorted(set(choices) - set(SPACE_KEYS))
            if unknown:
                raise ValueError(
                    f"Unknown search space key {unknown[0]!r}; the keys are {list(SPACE_KEYS)}."
                    + suggestion(unknown[0], SPACE_KEYS)
                )
            for key, value in full.items():
                if key != "intermediate_sizes" or "intermediate_ratios" not in choices:
                    choices.setdefault(key, (value,))
            space = cls(**choices)
        largest = space.largest()
        for key, value in full.items():
            found = largest.num_hidden_layers if key == "num_hidden_layers" else max(getattr(largest, key))
            if found != value:
                raise ValueError(
                    f"The largest architecture of a search space must be the backbone itself: {key} reaches {found}, "
                    f"the backbone has {value}; add {value} to the choices or choose another backbone."
                )
        return space

    @cached_property
    def layer_choices(self) -> tuple[tuple[int, int, int], ...]:
        """Every valid `(hidden_size, intermediate_size, num_attention_heads)` of a layer, sorted."""
        choices = set()
        for width in self.hidden_sizes:
            for intermediate in self._intermediate_choices(width):
                for heads in self.num_attention_heads:
                    if width % heads == 0 and intermediate >= self.minimum_intermediate_ratio * width:
                        choices.add((width, intermediate, heads))
        return tuple(sorted(choices))

    def _intermediate_choices(self, width: int) -> tuple[int, ...]:
        if self.intermediate_sizes is not None:
            return self.intermediate_sizes
        return tuple(_ratio_of(width, ratio) for ratio in self.intermediate_ratios)

    @property
    def num_architectures(self) -> int:
        """How many different architectures the space holds."""
        per_layer = len(self.layer_choices)
        if self.bottleneck:
            return sum(per_layer**depth for depth in self.num_hidden_layers)
        return per_layer * len(self.num_hidden_layers)

    def to_dict(self) -> dict[str, Any]:
        """The choices as plain lists and numbers, for JSON."""
        data = {key: getattr(self, key) for key in SPACE_KEYS}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    def largest(self) -> Architecture:
        """The architecture of the largest choices: the backbone itself."""
        return self._extreme(max)

    def smallest(self) -> Architecture:
        """The architecture of the smallest choices."""
        return self._extreme(min)

    def _extreme(self, pick: Callable) -> Architecture:
        # Widest first, then feed-forward, then heads: layer_choices is sorted in that order.
        return _repeat(pick(self.layer_choices), pick(self.num_hidden_layers))

    def uniform_architectures(self) -> list[Architecture]:
        """The deepest architecture of each width, all layers alike and otherwise largest; narrowest first."""
        depth = max(self.num_hidden_layers)
        return [
            _repeat(max(choice for choice in self.layer_choices if choice[0] == width), depth)
            for width in self.hidden_sizes
        ]

    def architecture(
        self,
        hidden_sizes: Sequence[int] | int | None = None,
        intermediate_sizes: Sequence[int] | int | None = None,
        num_attention_heads: Sequence[int] | int | None = None,
        num_hidden_layers: int | None = None,
    ) -> Architecture:
        """
        The architecture with these sizes; what is fixed in the space is filled in, and one number stands for all
        layers.

        Raises:
            ValueError: where an elastic size is left out, or the result is not in the space.
        """
        given = {
            "hidden_sizes": hidden_sizes,
            "intermediate_sizes": intermediate_sizes,
            "num_attention_heads": num_attention_heads,
        }
        lengths = {len(values) for values in given.values() if isinstance(values, Sequence)}
        if num_hidden_layers is not None:
            lengths.add(num_hidden_layers)
        if not lengths:
            if len(self.num_hidden_layers) > 1:
                raise ValueError(f"The depth is elastic: name `num_hidden_layers`, one of {self.num_hidden_layers}.")
            lengths = set(self.num_hidden_layers)
        if len(lengths) > 1:
            raise ValueError(f"The sizes are given for different numbers of layers: {sorted(lengths)}.")
        depth = lengths.pop()

        def each_layer(name: str, fixed: Callable[[int], Sequence[int]]) -> tuple[int, ...]:
            values = given[name]
            if isinstance(values, Sequence):
                return tuple(values)
            if values is not None:
                return (values,) * depth
            filled = []
            for index in range(depth):
                choices = fixed(index)
                if len(choices) != 1:
                    raise ValueError(
                        f"`{name}` is elastic in this search space: name it, layer {index} may have {list(choices)}."
                    )
                filled.append(choices[0])
            return tuple(filled)

        def fitting(index: int, part: int) -> list[int]:
            # A width that is not in the space has none; `validate` says so below.
            choices = sorted({choice[part] for choice in self.layer_choices if choice[0] == widths[index]})
            return choices or [max(choice[part] for choice in self.layer_choices)]

        widths = each_layer("hidden_sizes", lambda index: self.hidden_sizes)
        architecture = Architecture(
            widths,
            each_layer("intermediate_sizes", lambda index: fitting(index, 1)),
            each_layer("num_attention_heads", lambda index: fitting(index, 2)),
        )
        self.validate(architecture)
        return architecture

    def validate(self, architecture: Architecture) -> None:
        """
        Raises:
            ValueError: if `architecture` is not in the space; the message names the first size that is not, and the
                nearest one that is.
        """
        if not _is_architecture(architecture):
            raise ValueError(
                f"Expected an Architecture, got {architecture!r}; make one with `search_space.architecture(...)`, or "
                "with `Architecture.from_dict(...)`."
            )
        problem = self._problem(architecture)
        if problem:
            raise ValueError(f"The architecture {architecture} is not in the search space: {problem}")

    def __contains__(self, architecture: object) -> bool:
        return _is_architecture(architecture) and self._problem(architecture) is None

    def _problem(self, architecture: Architecture) -> str | None:
        depth = architecture.num_hidden_layers
        if depth not in self.num_hidden_layers:
            return f"it has {depth} layers, the space has {list(self.num_hidden_layers)}."
        for index, (width, intermediate, heads) in enumerate(architecture.layers):
            if (width, intermediate, heads) in self._choice_set:
                continue
            if width not in self.hidden_sizes:
                near = nearest(width, self.hidden_sizes)
                return f"layer {index} is {width} wide, the choices are {list(self.hidden_sizes)}, {near} the nearest."
            fitting = sorted({choice[1] for choice in self.layer_choices if choice[0] == width})
            if intermediate not in fitting:
                near = nearest(intermediate, fitting)
                return (
                    f"layer {index} has feed-forward size {intermediate}, at width {width} the choices are {fitting}, "
                    f"{near} the nearest."
                )
            fitting = sorted({choice[2] for choice in self.layer_choices if choice[0] == width})
            return f"layer {index} has {heads} heads, at width {width} the choices are {fitting}."
        if not self.bottleneck and len(set(architecture.layers)) > 1:
            return "without bottlenecks all layers must be alike."
        return None

    @cached_property
    def _choice_set(self) -> frozenset[tuple[int, int, int]]:
        return frozenset(self.layer_choices)

    def __iter__(self) -> Iterator[Architecture]:
        """Every architecture, shallow ones first. Check `num_architectures` before you loop."""
        for depth in self.num_hidden_layers:
            if self.bottleneck:
                for layers in itertools.product(self.layer_choices, repeat=depth):
                    yield _stack(layers)
            else:
                for choice in self.layer_choices:
                    yield _repeat(choice, depth)

    # ---- sampling ---------------------------------------------------------------------------------------------------

    def sample(self, seed: int | str | random.Random = 0, size_biased: bool = False) -> Architecture:
        """
        One architecture: depth, then each layer's width, feed-forward size and heads, drawn independently.

        Args:
            seed (`int`, `str` or `random.Random`, *optional*, defaults to 0):
                The same seed gives the same architecture everywhere.
            size_biased (`bool`, *optional*, defaults to `False`):
                Draws each value with a probability proportional to itself instead of uniformly (published
                `biased_params`).
        """
        generator = seed if isinstance(seed, random.Random) else random.Random(seed)

        def draw(values: Sequence[int]) -> int:
            return generator.choices(values, weights=values if size_biased else None)[0]

        def draw_layer() -> tuple[int, int, int]:
            width = draw(self.hidden_sizes)
            intermediate = draw(sorted({choice[1] for choice in self.layer_choices if choice[0] == width}))
            heads = draw([choice[2] for choice in self.layer_choices if choice[:2] == (width, intermediate)])
            return width, intermediate, heads

        depth = draw(self.num_hidden_layers)
        if not self.bottleneck:
            return _repeat(draw_layer(), depth)
        return _stack([draw_layer() for _ in range(depth)])

    def sample_within(
        self,
        limits: Sequence[Limit],
        count: int = 1,
        seed: int | str | random.Random = 0,
        size_biased: bool = False,
    ) -> list[Architecture]:
        """
        Different architectures that meet every limit, (nearly) uniformly among all that do.

        Counts architectures per binned cost layer by layer (dynamic programming), draws from those counts and keeps
        what meets the limits exactly, so that a window of probability 0.001 costs no more than a wide one.

        Args:
            limits (`Sequence[Limit]`): Windows on costs of this space.
            count (`int`, *optional*, defaults to 1): How many; fewer come back only where the window holds no more.
            seed (`int`, `str` or `random.Random`, *optional*, defaults to 0): Same seed, same list.
            size_biased (`bool`, *optional*, defaults to `False`): Weights each layer choice by its sizes.

        Returns:
            `list[Architecture]`: at most `count` architectures, in the order drawn.

        Raises:
            ValueError: where nothing meets the limits; the message names the nearest reachable costs.
        """
        generator = seed if isinstance(seed, random.Random) else random.Random(seed)
        if not self.bottleneck or self.num_architectures <= ENUMERABLE:
            feasible = [found for found in self if all(limit.holds(found) for limit in limits)]
            if not feasible:
                self._raise_unreachable(limits, list(self))
            return self._draw_different(feasible, count, generator, size_biased)

        chain = _chain_counts(self, tuple(limit.cost for limit in limits), size_biased)
        ends = chain.ends([limit.bounds for limit in limits])
        if chain.weight(ends) <= ENUMERABLE and not size_biased:
            feasible = [found for found in chain.walk_all(ends) if all(limit.holds(found) for limit in limits)]
            if feasible:
                return self._draw_different(feasible, count, generator, size_biased)
        found: dict[Architecture, None] = {}
        # Whole draws meet all but very narrow windows, for which the first layers are looked up by their exact cost.
        for make, tries in ((chain.drawer, 200 * count + 2_000), (chain.completer, 20 * count + 2_000)):
            if not ends or found:
                break
            draw = make(ends, limits) if make == chain.completer else make(ends)
            for _ in range(tries):
                candidate = draw(generator)
                if candidate and candidate not in found and all(limit.holds(candidate) for limit in limits):
                    found[candidate] = None
                    if len(found) == count:
                        break
        if not found:
            around = chain.around([limit.bounds for limit in limits], generator)
            if len(limits) == 1:
                around += chain.beside(limits[0], generator)
            self._raise_unreachable(limits, [self.smallest(), self.largest(), *around])
        return list(found)

    def _draw_different(
        self, feasible: list[Architecture], count: int, generator: random.Random, size_biased: bool
    ) -> list[Architecture]:
        if not size_biased:
            return generator.sample(feasible, min(count, len(feasible)))
        # Weighted draw without replacement (Efraimidis and Spirakis): the smallest -log(u) / weight win. Logarithms,
        # since a product of weights over many layers is tiny.
        keyed = []
        for index, found in enumerate(feasible):
            log_weight = sum(math.log(self.size_weight(choice)) for choice in found.layers)
            keyed.append((math.log(max(generator.expovariate(1), 1e-300)) - log_weight, index))
        return [feasible[index] for _, index in sorted(keyed)[:count]]

    def size_weight(self, choice: tuple[int, int, int]) -> float:
        """Weight of a layer choice where sampling is biased by size: the product of its shares of the largest."""
        largest = self.layer_choices[-1]
        return choice[0] / largest[0] * choice[1] / largest[1] * choice[2] / largest[2]

    def _raise_unreachable(self, limits: Sequence[Limit], candidates: Sequence[Architecture]) -> None:
        parts = []
        for position, limit in enumerate(limits):
            others = [other for index, other in enumerate(limits) if index != position]
            allowed = [found for found in candidates if all(other.holds(found) for other in others)]
            costs = sorted({limit.cost(found) for found in allowed or candidates})
            low, high = limit.bounds
            below = [cost for cost in costs if cost < low]
            above = [cost for cost in costs if cost > high]
            inside = len(below) + len(above) < len(costs)
            near = ["inside the window"] if inside else [f"{cost:,}" for cost in below[-1:] + above[:1]]
            parts.append(f"{limit} (nearest reachable: {' and '.join(near)}, range {costs[0]:,} to {costs[-1]:,})")
        raise ValueError(
            f"No architecture of the search space has {' and '.join(parts)}; widen the window or choose another "
            "search space."
        )

    # ---- what the router sees ---------------------------------------------------------------------------------------

    @cached_property
    def _elastic_keys(self) -> tuple[str, ...]:
        # What the rules of the space leave: a size that follows from the width is not elastic.
        blocks = {choice[:2] for choice in self.layer_choices}
        flags = {
            "hidden_sizes": len(self.hidden_sizes) > 1,
            "num_attention_heads": len({choice[2] for choice in self.layer_choices}) > 1,
            "intermediate_sizes": len(blocks) > len(self.hidden_sizes),
            "num_hidden_layers": len(self.num_hidden_layers) > 1,
        }
        return tuple(key for key, flag in flags.items() if flag)

    def encoding_size(self, router_input: RouterInput = "scaled") -> int:
        """Length of [`~SearchSpace.encode`]'s answer; 0 where nothing is elastic."""
        return len(self.encode(self.largest(), router_input))

    def encode(self, architecture: Architecture, router_input: RouterInput = "scaled") -> list[float]:
        """
        The architecture as the routers see it: every elastic dimension, of a fixed length (paper section 4.1).

        Args:
            architecture ([`Architecture`]): An architecture of this space.
            router_input (`str`, *optional*, defaults to `"scaled"`):
                `"scaled"`: with bottlenecks one number a layer and dimension, 0.01 for the smallest choice to 1.01
                for the largest, and 0 for a layer that is absent; without bottlenecks one number a dimension, its
                share of the largest. An elastic depth adds its share of the largest depth.
                `"one-hot"`: one entry a choice instead of a number. `"constant"`: 0.5 everywhere, as long as
                `"scaled"` (the control in which the routers cannot see the architecture).
        """
        if router_input == "constant":
            return [0.5] * self.encoding_size("scaled")
        if router_input not in ("scaled", "one-hot"):
            raise ValueError(f"`router_input` is 'scaled', 'one-hot' or 'constant', got {router_input!r}.")
        encoded: list[float] = []
        slots = max(self.num_hidden_layers) if self.bottleneck else 1
        for key in self._elastic_keys:
            if key == "num_hidden_layers":
                encoded += self._encode_value(key, architecture.num_hidden_layers, None, router_input)
                continue
            values = getattr(architecture, key)
            for slot in range(slots):
                if slot < len(values):
                    encoded += self._encode_value(key, values[slot], architecture.hidden_sizes[slot], router_input)
                else:
                    size = 1 if router_input == "scaled" else len(self._encoded_choices(key))
                    encoded += [0.0] * size
        return encoded

    def _encoded_choices(self, key: str) -> tuple[float, ...]:
        if key == "intermediate_sizes" and self.intermediate_ratios is not None:
            return self.intermediate_ratios
        return getattr(self, key)

    def _encode_value(self, key: str, value: int, width: int | None, router_input: str) -> list[float]:
        choices = self._encoded_choices(key)
        if router_input == "one-hot":
            if key == "intermediate_sizes" and self.intermediate_ratios is not None:
                return [float(_ratio_of(width, ratio) == value) for ratio in choices]
            return [float(choice == value) for choice in choices]
        if key == "intermediate_sizes":
            sizes = [choice[1] for choice in self.layer_choices]
        else:
            sizes = list(choices)
        if key == "num_hidden_layers" or not self.bottleneck:
            return [value / max(sizes)]
        # The offset keeps the smallest choice apart from an absent layer.
        return [0.01 + (value - min(sizes)) / (max(sizes) - min(sizes))]


def _is_architecture(value: Any) -> bool:
    # By name: remote code imports this file once for the configuration and once for the model.
    return type(value).__name__ == Architecture.__name__


def _is_positive(value: Any, name: str) -> bool:
    kinds = (int, float) if name == "intermediate_ratios" else (int,)
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _ratio_of(width: int, ratio: float) -> int:
    # 61 / 28 * 28 is a little less than 61 in floating point.
    return int(round(width * ratio, 6))


def _stack(layers: Sequence[tuple[int, int, int]]) -> Architecture:
    widths, intermediates, heads = zip(*layers, strict=True)
    return Architecture(widths, intermediates, heads)


def _repeat(layer: tuple[int, int, int], depth: int) -> Architecture:
    return _stack([layer] * depth)


def _scale_preset(name: str, full: dict[str, int]) -> dict[str, Any]:
    """A preset's choices for a backbone of the sizes `full`: the same fractions, widths in whole heads."""
    plain = PRESET_ALIASES.get(name, name)
    if plain not in PRESETS:
        known = [*PRESETS, *PRESET_ALIASES]
        raise ValueError(f"Unknown search space preset {name!r}; the presets are {known}." + suggestion(name, known))
    preset = PRESETS[plain]
    heads = full["num_attention_heads"]
    scaled: dict[str, Any] = dict(preset)
    scaled["hidden_sizes"] = tuple(
        max(1, round(size / 768 * full["hidden_sizes"] / heads)) * heads for size in preset["hidden_sizes"]
    )
    for key, base in (("intermediate_sizes", 3072), ("num_attention_heads", 12), ("num_hidden_layers", 12)):
        if key in preset:
            scaled[key] = tuple(max(1, round(size / base * full[key])) for size in preset[key])
    if "intermediate_ratios" in preset:
        # The published ratios end at 4, BERT's own; a backbone with another ratio keeps the fractions of its own.
        own = full["intermediate_sizes"] / full["hidden_sizes"]
        scaled["intermediate_ratios"] = tuple(ratio / 4 * own for ratio in preset["intermediate_ratios"])
    return scaled


class _ChainCounts:
    """
    Numbers (or weights) of partial architectures by depth, last width and binned cost.

    The bins of several costs are packed in one integer, cost by cost, since packed bins add up like the costs do.
    """

    BINS = 2_048  # of one cost's range; rounding errors of a few bins are undone by exact rejection
    PACK = 1 << 24

    def __init__(self, space: SearchSpace, costs: tuple[CostTable, ...], size_biased: bool):
        self.space, self.costs, self.size_biased = space, costs, size_biased
        depth = max(space.num_hidden_layers)
        bins = self.BINS if len(costs) == 1 else self.BINS // 8
        self.resolution = [max(cost(space.largest()) / bins, 1e-12) for cost in costs]
        # One rounding for entry, exit, each layer and each transition.
        self.slack = [step * (2 * depth + 1) / 2 for step in self.resolution]
        tables = [cost._tables for cost in costs]
        self.entry = {width: self._pack([table[0][width] for table in tables]) for width in space.hidden_sizes}
        self.layer = {choice: self._pack([table[1][choice] for table in tables]) for choice in space.layer_choices}
        self.transition = {
            pair: self._pack([table[2][pair] for table in tables])
            for pair in itertools.product(space.hidden_sizes, repeat=2)
        }
        self.exit = {width: self._pack([table[3][width] for table in tables]) for width in space.hidden_sizes}
        self.choices = {
            width: [choice for choice in space.layer_choices if choice[0] == width] for width in space.hidden_sizes
        }
        # partial[n][width][bin]: weight of all chains of n + 1 layers that end at this width with this cost
        self.partial: list[dict[int, dict[int, float]]] = []
        for index in range(depth):
            row: dict[int, dict[int, float]] = {}
            for width in space.hidden_sizes:
                arriving: dict[int, float] = {}
                if index == 0:
                    arriving[self.entry[width]] = 1
                else:
                    for before, counts in self.partial[-1].items():
                        shift = self.transition[before, width]
                        for packed, weight in counts.items():
                            key = packed + shift
                            arriving[key] = arriving.get(key, 0) + weight
                leaving: dict[int, float] = {}
                for choice in self.choices[width]:
                    shift, factor = self.layer[choice], self._factor(choice)
                    for packed, weight in arriving.items():
                        key = packed + shift
                        leaving[key] = leaving.get(key, 0) + weight * factor
                row[width] = leaving
            self.partial.append(row)

    def _factor(self, choice: tuple[int, int, int]) -> float:
        return self.space.size_weight(choice) if self.size_biased else 1

    def _pack(self, values: Sequence[float]) -> int:
        packed = 0
        for value, step in zip(reversed(values), reversed(self.resolution), strict=True):
            packed = packed * self.PACK + round(value / step)
        return packed

    def _unpack(self, packed: int) -> list[float]:
        values = []
        for step in self.resolution:
            packed, position = divmod(packed, self.PACK)
            values.append(position * step)
        return values

    def ends(self, windows: Sequence[tuple[float, float]]) -> list[tuple[int, int, int, float]]:
        """`(depth index, last width, packed cost before the exit, weight)` of all ends that may lie in the windows."""
        found = []
        for depth in self.space.num_hidden_layers:
            for width, counts in self.partial[depth - 1].items():
                for packed, weight in counts.items():
                    values = self._unpack(packed + self.exit[width])
                    if all(
                        low - slack <= value <= high + slack
                        for value, (low, high), slack in zip(values, windows, self.slack, strict=True)
                    ):
                        found.append((depth - 1, width, packed, weight))
        return found

    @staticmethod
    def weight(ends: list[tuple[int, int, int, float]]) -> float:
        return sum(end[3] for end in ends)

    def _steps(self, index: int, width: int, packed: int) -> list[tuple[tuple[int, int, int], int, int, float]]:
        """The last layer's choices with the widths and packed costs they may come from."""
        steps = []
        for choice in self.choices[width]:
            rest = packed - self.layer[choice]
            if index == 0:
                if rest == self.entry[width]:
                    steps.append((choice, 0, 0, self._factor(choice)))
                continue
            for before, counts in self.partial[index - 1].items():
                origin = rest - self.transition[before, width]
                weight = counts.get(origin)
                if weight:
                    steps.append((choice, before, origin, weight * self._factor(choice)))
        return steps

    def drawer(self, ends: list[tuple[int, int, int, float]]) -> Callable[[random.Random], Architecture]:
        cumulative = list(itertools.accumulate(end[3] for end in ends))

        def draw(generator: random.Random) -> Architecture:
            index, width, packed, _ = generator.choices(ends, cum_weights=cumulative)[0]
            layers = []
            for position in range(index, -1, -1):
                steps = self._steps(position, width, packed)
                choice, width, packed, _ = generator.choices(steps, weights=[step[3] for step in steps])[0]
                layers.append(choice)
            return _stack(layers[::-1])

        return draw

    @cached_property
    def _exact_starts(self) -> tuple[int, dict[int, list[tuple[float, tuple]]]]:
        """A number of first layers, and all chains of that many by their last width, sorted by exact (first) cost."""
        entry, layer, transition, _ = self.costs[0]._tables
        shallowest = min(self.space.num_hidden_layers)
        known = 1
        while known < shallowest - 1 and len(self.space.layer_choices) ** (known + 1) <= 20_000:
            known += 1
        starts: dict[int, list[tuple[float, tuple]]] = {width: [] for width in self.space.hidden_sizes}
        for layers in itertools.product(self.space.layer_choices, repeat=known):
            cost = entry[layers[0][0]] + sum(layer[choice] for choice in layers)
            cost += sum(transition[before[0], after[0]] for before, after in itertools.pairwise(layers))
            starts[layers[-1][0]].append((cost, layers))
        for chains in starts.values():
            chains.sort()
        return known, starts

    def beside(self, limit: Limit, generator: random.Random) -> list[Architecture]:
        """Architectures close below and close above a window that holds none, looked for ever further away."""
        low, high = limit.bounds
        found = []
        for side in (-1, 1):
            edge = low if side < 0 else high
            for power in range(40):
                if abs(edge) == float("inf"):
                    break
                window = Limit(limit.cost, *sorted((edge, edge + side * 2**power)))
                ends = self.ends([window.bounds])
                if not ends:
                    continue
                draw = self.completer(ends, [window])
                hits = [candidate for candidate in (draw(generator) for _ in range(200)) if candidate]
                found += hits
                if hits:
                    break
        return found

    def completer(
        self, ends: list[tuple[int, int, int, float]], limits: Sequence[Limit]
    ) -> Callable[[random.Random], Architecture | None]:
        """
        Draws the later layers from the counts, and the first ones among all that bring the first limit's exact cost
        into its window; `None` where there are none.
        """
        cumulative = list(itertools.accumulate(end[3] for end in ends))
        _, layer, transition, exit = limits[0].cost._tables
        low, high = limits[0].bounds
        known, starts = self._exact_starts

        def draw(generator: random.Random) -> Architecture | None:
            index, width, packed, _ = generator.choices(ends, cum_weights=cumulative)[0]
            rest, cost = [], exit[width]
            for position in range(index, known - 1, -1):
                steps = self._steps(position, width, packed)
                choice, width, packed, _ = generator.choices(steps, weights=[step[3] for step in steps])[0]
                rest.append(choice)
                cost += layer[choice] + transition[width, choice[0]]
            chains = starts[width]
            first = bisect.bisect_left(chains, low - cost, key=lambda chain: chain[0])
            last = bisect.bisect_right(chains, high - cost, key=lambda chain: chain[0])
            if first == last:
                return None
            return _stack([*chains[generator.randrange(first, last)][1], *rest[::-1]])

        return draw

    def walk_all(self, ends: list[tuple[int, int, int, float]]) -> Iterator[Architecture]:
        def walk(index: int, width: int, packed: int) -> Iterator[list[tuple[int, int, int]]]:
            for choice, before, origin, _ in self._steps(index, width, packed):
                if index == 0:
                    yield [choice]
                else:
                    for start in walk(index - 1, before, origin):
                        yield [*start, choice]

        for index, width, packed, _ in ends:
            for layers in walk(index, width, packed):
                yield _stack(layers)

    def around(self, windows: Sequence[tuple[float, float]], generator: random.Random) -> list[Architecture]:
        """Architectures nearest to each window on either side, inside the others if possible, for an error message."""
        anything = (-float("inf"), float("inf"))
        found: list[Architecture] = []
        for position, (low, high) in enumerate(windows):
            opened = [anything if index == position else window for index, window in enumerate(windows)]
            ends = self.ends(opened) or self.ends([anything] * len(windows))
            values = [self._unpack(packed + self.exit[width])[position] for _, width, packed, _ in ends]
            slack = self.slack[position]
            edges = (
                max((value for value in values if value < low + slack), default=None),
                min((value for value in values if value > high - slack), default=None),
            )
            for edge in edges:
                if edge is None:
                    continue
                near = [end for end, value in zip(ends, values, strict=True) if abs(value - edge) <= 2 * slack]
                if self.weight(near) <= ENUMERABLE and not self.size_biased:
                    found += self.walk_all(near)
                else:
                    draw = self.drawer(near)
                    found += [draw(generator) for _ in range(1_000)]
        return found


@lru_cache(maxsize=8)
def _chain_counts(space: SearchSpace, costs: tuple[CostTable, ...], size_biased: bool) -> _ChainCounts:
    return _ChainCounts(space, costs, size_biased)
