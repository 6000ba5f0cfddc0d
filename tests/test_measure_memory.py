# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/benchmarks/measure_memory.py, and that taking a subnet out needs no second copy of the supernet."""

import subprocess
import sys
from pathlib import Path

import pytest

from script_utils import read_json, to_flags


SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "benchmarks" / "measure_memory.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_extraction_needs_memory_for_the_subnet_only(tmp_path):
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 2048}
    flags = {**sizes, "num_experts": 4, "vocab_size": 1000, "use_cpu": True, "parts": ["extraction"]}
    file = tmp_path / "memory.json"
    # In a process of its own, which has no freed memory to take again.
    subprocess.run([sys.executable, str(SCRIPT), *to_flags({**flags, "output_file": file})], check=True, timeout=280)
    extraction = read_json(file)["extraction"]
    # Four experts to one: with a copy of the supernet the peak would be 1.25 times the supernet.
    assert extraction["supernet"] > 3 * extraction["subnet"]
    assert 0.5 * extraction["subnet"] < extraction["peak_beside_supernet"] < 0.75 * extraction["supernet"]


def test_unknown_parts_have_a_sentence(load_example):
    module = load_example("benchmarks/measure_memory.py")
    with pytest.raises(ValueError, match=r"`parts` may hold \['extraction', 'training'\], got \['inference'\]"):
        module.MemoryArguments(parts=["inference"])
