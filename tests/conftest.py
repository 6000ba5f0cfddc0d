# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What every test shares: no network, few threads, tiny things to work on."""

import os


# Read when the libraries are imported, so set before that.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib  # noqa: E402
import importlib.util  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType  # noqa: E402
from warnings import catch_warnings, simplefilter  # noqa: E402

import pytest  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from example_utils import train_wordpiece_tokenizer  # noqa: E402


# An old matplotlib warns of a newer pyparsing as it is imported, which would stop half-way in a test that allows none.
with contextlib.suppress(ImportError), catch_warnings():
    simplefilter("ignore")
    import matplotlib.figure  # noqa: F401

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY_TEXT = [
    "The old sailor mended a net near the harbour. The boats were small, and the wind was cold!",
    "She said that the teacher had read the letter. Was it long? No, it was short.",
    "Three cats and two dogs ran over the green field; nobody saw them go.",
]


@pytest.fixture(scope="session")
def load_example() -> Callable[[str], ModuleType]:
    """Imports an example script by its path below examples/; such folders are no packages."""

    def load(path: str) -> ModuleType:
        file = EXAMPLES / path
        if file.stem not in sys.modules:
            specification = importlib.util.spec_from_file_location(file.stem, file)
            module = importlib.util.module_from_spec(specification)
            sys.modules[file.stem] = module
            specification.loader.exec_module(module)
        return sys.modules[file.stem]

    return load


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a WordPiece tokenizer of about a hundred entries, for `from_pretrained`."""
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    train_wordpiece_tokenizer(TINY_TEXT, vocab_size=120, output_dir=folder, model_max_length=64)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir: Path) -> BertTokenizer:
    """The same tokenizer, loaded."""
    return BertTokenizer.from_pretrained(tiny_tokenizer_dir)
