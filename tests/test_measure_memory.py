# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/benchmarks/measure_memory.py, and that taking a subnet out needs no second copy of the supernet."""

import sys

import pytest

from script_utils import read_json, to_flags


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_extraction_needs_memory_for_the_subnet_only(load_example, tmp_path):
    module = load_example("benchmarks/measure_memory.py")
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 2048}
    flags = {**sizes, "num_experts": 4, "vocab_size": 1000, "use_cpu": True, "parts": ["extraction"]}
    found = module.main(to_flags({**flags, "output_file": tmp_path / "memory.json"}))
    assert read_json(tmp_path / "memory.json") == found
    extraction = found["extraction"]
    # Four experts to one: a copy of the supernet would be more than twice the bound.
    assert extraction["supernet"] > 2.5 * extraction["subnet"] > 60e6
    assert extraction["subnet"] * 0.5 < extraction["peak_beside_supernet"] < 1.4 * extraction["subnet"]


def test_unknown_parts_have_a_sentence(load_example):
    module = load_example("benchmarks/measure_memory.py")
    with pytest.raises(ValueError, match=r"`parts` may hold \['extraction', 'training'\], got \['inference'\]"):
        module.MemoryArguments(parts=["inference"])
