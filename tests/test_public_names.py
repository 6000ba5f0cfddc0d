# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""The packages' public names: documented, and imported without a warning."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_mos
import modeling_sharcs
import trainers


PACKAGES = (modeling_mos, modeling_sharcs, trainers)
OWN = tuple(package.__name__ for package in PACKAGES)
ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [(package, name) for package in PACKAGES for name in package.__all__]


def is_own(found) -> bool:
    return getattr(found, "__module__", "").split(".")[0] in OWN


def public_members(cls: type) -> dict[str, object]:
    """Methods and properties that a class has of our own code, its bases' among them."""
    members = {}
    for base in cls.__mro__:
        if not is_own(base):
            continue
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function) and is_own(function):
                members.setdefault(name, function)
    return members


def overrides_documented(cls: type, name: str) -> bool:
    """Whether a method replaces one of a base that is documented, Transformers' or our own."""
    return any(inspect.getdoc(vars(base)[name]) for base in cls.__mro__ if name in vars(base))


# What Transformers calls by these names, and users know from every model of it.
KNOWN_FROM_TRANSFORMERS = {
    "forward",
    "get_input_embeddings",
    "get_output_embeddings",
    "set_input_embeddings",
    "set_output_embeddings",
}


@pytest.mark.parametrize("package, name", PUBLIC, ids=[f"{package.__name__}.{name}" for package, name in PUBLIC])
def test_public_names_are_documented(package, name):
    found = getattr(package, name)
    assert (found.__doc__ or "").strip(), f"{name} has no docstring"
    if not inspect.isclass(found):
        return
    # A dataclass without a docstring has its signature for one.
    assert not found.__doc__.startswith(f"{name}("), f"{name} has no docstring"
    for member in public_members(found):
        assert member in KNOWN_FROM_TRANSFORMERS or overrides_documented(found, member), f"{name}.{member}"


@pytest.mark.parametrize("package", PACKAGES, ids=OWN)
def test_all_is_sorted_and_complete(package):
    assert package.__doc__ and len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        assert is_own(getattr(package, name)), name


def test_importing_gives_no_warning():
    command = [sys.executable, "-W", "error", "-c", "import modeling_mos, modeling_sharcs, trainers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4_000:]
    assert done.stderr == "" and done.stdout == ""
