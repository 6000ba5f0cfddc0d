# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/architecture-search/study_search.py: a table of all architectures, and what searches in it cost."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_search import MadeUpObjective, middle, search, supernet

from script_utils import read_json, to_flags


@pytest.fixture
def study(load_example):
    return load_example("architecture-search/study_search.py")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The supernet, and the results of a search that looked at all of it."""
    folder = tmp_path_factory.mktemp("everything")
    supernet().save_pretrained(folder / "supernet")
    search(exhaustive=True, racing=False, output_dir=folder / "all", rows=256).run()
    return folder


def pack(study, folder, output, **options):
    flags = {"pack": folder / "all", "supernet": folder / "supernet", "table": output, "show_progress": False}
    study.main(to_flags({**flags, **options}))


def test_a_table_is_packed_and_studied(study, everything, tmp_path):
    table = tmp_path / "table.safetensors"
    pack(study, everything, table, block_size=4)
    tensors = load_file(table)
    assert tensors["differences"].shape == (625, 64) and tensors["differences"].dtype == np.float16
    objective = MadeUpObjective(256)
    for index, architecture in enumerate(supernet().search_space):
        if index % 100 == 7:
            losses = objective.contributions(architecture.hidden_sizes)[:, 0].reshape(64, 4).mean(axis=1)
            np.testing.assert_allclose(tensors["common"] + tensors["differences"][index], losses, atol=2e-3)
    flags = {"table": table, "seeds": 3, "num_rounds": 4, "limits": 0.5, "output": tmp_path / "out.json"}
    results = study.main(to_flags({**flags, "first_slice": 16, "show_progress": False}))
    assert read_json(tmp_path / "out.json") == results
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    (found,) = results["limits"]
    assert found["max_parameters"] in (middle(), middle() + 1)
    inside = [x for x in supernet().search_space if supernet().count_parameters(x) <= found["max_parameters"]]
    assert found["architectures"] == len(inside)
    assert found["best"] == pytest.approx(min(objective.truth(x.hidden_sizes) for x in inside), abs=2e-3)
    assert found["published"]["mean_sequences"] == 256 * found["published"]["mean_candidates"]
    share = found["share_of_published_sequences"]
    assert 0 < share["mean"] <= share["largest"] < 1
    assert 0 <= found["racing"]["mean_regret"] <= found["racing"]["largest_regret"] < found["median_minus_best"]


def test_a_table_of_an_unfinished_search_is_refused(study, everything, tmp_path):
    (tmp_path / "all").mkdir()
    lines = (everything / "all" / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "all" / "results.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="does not hold all 256 rows of .*--racing false, or let that search finish"):
        pack(study, everything, tmp_path / "table", pack=tmp_path / "all")
    with pytest.raises(ValueError, match="--pack needs --supernet"):
        study.main(["--pack", str(tmp_path / "all")])


def test_results_that_were_altered_are_refused(study, everything, tmp_path):
    (tmp_path / "all").mkdir()
    lines = (everything / "all" / "results.jsonl").read_text().splitlines(keepends=True)
    record = json.loads(lines[5])
    record["contributions"][7][0] += 1e-6
    lines[5] = json.dumps(record) + "\n"
    (tmp_path / "all" / "results.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match="Line 6 of .*results.jsonl' is not a result .*its checksum is"):
        pack(study, everything, tmp_path / "table", pack=tmp_path / "all")
    (tmp_path / "all" / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="results.jsonl' holds no results; start its search again"):
        pack(study, everything, tmp_path / "table", pack=tmp_path / "all")


def test_the_table_that_is_shipped(study):
    """Four layers of seven widths, and the claims that the README makes of the search."""
    table, model, block_size = study.load_table(str(study.TABLE))
    assert len(table["differences"]) == model.search_space.num_architectures == 7**4
    assert len(table["counts"]) * block_size == 1024
    arguments = study.StudyArguments(seeds=2, limits=[0.5], show_progress=False)
    low, high = (model.count_parameters(getattr(model.search_space, name)()) for name in ("smallest", "largest"))
    found = study.study_limit(arguments, table, model, block_size, (low + high) // 2)
    assert found["share_of_published_sequences"]["largest"] < 0.1
    assert found["share_of_published_count"]["largest"] < 0.05
    assert found["racing"]["largest_regret"] < 0.2 * found["median_minus_best"]
    assert json.dumps(found)
