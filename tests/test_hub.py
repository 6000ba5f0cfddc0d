# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Saved folders: what they hold, that they open without this package, and compilation."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import modeling_mos
import modeling_sharcs
from testing_utils import (
    AUTO_CLASSES,
    HEADS,
    LAYOUTS,
    SHARCS_CLASSES,
    SPACES,
    assert_close,
    main_outputs,
    make_batch,
    no_complaints,
    tiny_sharcs,
    tiny_supernet,
)


PACKAGE = Path(modeling_mos.__file__).parent
SHARCS_PACKAGE = Path(modeling_sharcs.__file__).parent
# What a folder needs to be opened elsewhere. (A supernet needs the subnet's files to take one out.)
TRAVELLERS = {
    "supernet": {
        "architecture.py",
        "attention.py",
        "configuration_mos.py",
        "configuration_mos_subnet.py",
        "conversion.py",
        "modeling_mos.py",
        "gradients.py",
        "kept_tokens.py",
        "modeling_mos_subnet.py",
    },
    "subnet": {
        "architecture.py",
        "attention.py",
        "configuration_mos_subnet.py",
        "gradients.py",
        "kept_tokens.py",
        "modeling_mos_subnet.py",
    },
    "sharcs": {
        "attention.py",
        "calibration.py",
        "configuration_sharcs.py",
        "conversion.py",
        "gradients.py",
        "kept_tokens.py",
        "modeling_sharcs.py",
        "packing.py",
    },
}


def some_architecture(model):
    return model.search_space.sample(seed=3)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["supernet", "subnet", "stock"])
def test_files_of_a_saved_model(head, kind, tmp_path):
    model = tiny_supernet(head, search_space=SPACES["uniform" if kind == "stock" else "bottleneck"])
    if kind != "supernet":
        model = model.extract_subnet(some_architecture(model))
    with no_complaints():
        model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files - {"generation_config.json"} == {"config.json", "model.safetensors"} | TRAVELLERS.get(kind, set())
    config = json.loads((tmp_path / "config.json").read_text())
    if kind == "stock":
        assert "auto_map" not in config and config["model_type"] == "bert"
    else:
        stem = "Mos" if kind == "supernet" else "MosSubnet"
        assert set(config["auto_map"]) == {"AutoConfig"} | {auto.__name__ for auto in AUTO_CLASSES.values()}
        for reference in config["auto_map"].values():
            module, name = reference.split(".")
            assert name.startswith(stem) and f"class {name}(" in (tmp_path / f"{module}.py").read_text()
    for path in tmp_path.glob("*.py"):
        assert path.read_text() == (PACKAGE / path.name).read_text()


@pytest.mark.parametrize("head", SHARCS_CLASSES)
def test_files_of_a_saved_routed_encoder(head, tmp_path):
    with no_complaints():
        tiny_sharcs(head).save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "model.safetensors"} | TRAVELLERS["sharcs"]
    for reference in json.loads((tmp_path / "config.json").read_text())["auto_map"].values():
        module, name = reference.split(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()
    for path in tmp_path.glob("*.py"):
        assert path.read_text() == (SHARCS_PACKAGE / path.name).read_text()


SOURCES = sorted([*PACKAGE.glob("[!_]*.py"), *SHARCS_PACKAGE.glob("[!_]*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_imports_are_flat(path):
    """Folders are copied flat: only `from .name import X` survives that, and only what everyone has installed."""
    # transformers itself requires safetensors and huggingface_hub.
    allowed = {"torch", "transformers", "huggingface_hub", "safetensors", *sys.stdlib_module_names}
    # No model reaches these files, so that they do not travel.
    own = {
        "objectives.py": {"numpy"},
        "published.py": {"xlrd"},
        "search.py": {"numpy", "tqdm"},
    }
    allowed |= own.get(path.name, set())
    # search.py and the like may be added to the package; what travels is what a model reaches.
    siblings = {sibling.stem for sibling in path.parent.glob("*.py")} - {"__init__"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level == 1 and node.module in siblings, ast.unparse(node)
            else:
                assert node.module.split(".")[0] in allowed, ast.unparse(node)
    # transformers looks for imports with a regular expression, in docstrings too.
    relative = re.findall(r"^\s*from\s+\.(\S*)\s+import", path.read_text(), flags=re.MULTILINE)
    assert set(relative) <= siblings


def test_public_names():
    assert modeling_mos.__all__ == sorted(modeling_mos.__all__)
    for name in modeling_mos.__all__:
        assert hasattr(modeling_mos, name)
    for head, auto_class in AUTO_CLASSES.items():
        for config in (modeling_mos.MosConfig(), modeling_mos.MosSubnetConfig()):
            name = config.auto_map[auto_class.__name__].split(".")[1]
            assert name in modeling_mos.__all__, head
            assert auto_class._model_mapping[type(config)] is getattr(modeling_mos, name)


# ---- without the package --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """Every head of every family, saved here and opened by one process that has none of our packages."""
    folder = tmp_path_factory.mktemp("remote")
    tasks, expected = [], {}

    def add(name: str, model, head: str, layout: str, auto_head: str | None = None, **more):
        auto_head = auto_head or head
        if not (folder / name.split("@")[0]).exists():
            model.save_pretrained(folder / name.split("@")[0])
        auto_class = AUTO_CLASSES[auto_head].__name__
        tasks.append({"name": name, "folder": name.split("@")[0], "auto_class": auto_class, "layout": layout, **more})
        expected[name] = {"head": head, "model": model, **more}

    batches = {}
    for layout in LAYOUTS:
        for head in HEADS:
            supernet = tiny_supernet(head, layout)
            batches[layout] = make_batch(supernet.config)
            architecture = some_architecture(supernet)
            full = layout == "bert" or head in ("masked-lm", "sequence-classification")
            more = {"architecture": architecture.to_dict()} if full else {}
            add(f"supernet-{layout}-{head}", supernet, head, layout, **more, save_again=head == "masked-lm")
            subnet = supernet.extract_subnet(architecture)
            add(f"subnet-{layout}-{head}", subnet, head, layout, save_again=head == "masked-lm")
            if head == "masked-lm":
                for kind, model in (("supernet", supernet), ("subnet", subnet)):
                    for other in HEADS:
                        if other not in ("masked-lm", "base"):
                            add(f"{kind}-{layout}-{head}@{other}", model, head, layout, other)
    uniform = tiny_supernet("sequence-classification", search_space=SPACES["uniform"], routing="layer")
    architecture = some_architecture(uniform).to_dict()
    add("supernet-uniform", uniform, "sequence-classification", "bert", architecture=architecture)
    for layout in LAYOUTS:
        for head in SHARCS_CLASSES:
            routed = tiny_sharcs(head, layout)
            # The smallest budget in reach is the narrowest path's.
            routed.calibrate([batches[layout]])
            budget = min(row["share"] for row in routed.config.calibration["table"])
            routed.config.calibration = None
            more = {"forced": [{"width": 0.25}, {"width": 0.5}], "budget": budget}
            add(f"sharcs-{layout}-{head}", routed, head, layout, **more, save_again=True)
    for layout, batch in batches.items():
        torch.save(batch, folder / f"inputs-{layout}.pt")
    (folder / "tasks.json").write_text(json.dumps(tasks))

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere / "home"), "OMP_NUM_THREADS": "1"}
    for name in ("HF_MODULES_CACHE", "TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    script = elsewhere / "script.py"
    script.write_text((Path(__file__).parent / "remote_code_script.py").read_text())
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6_000:]
    answers = torch.load(folder / "answers.pt")
    assert set(answers) == set(expected)
    return folder, batches, expected, answers


def assert_all_close(found, expected, **tolerance):
    assert len(found) == len(expected)
    for first, second in zip(found, expected, strict=True):
        assert_close(first, second, **tolerance)


REMOTE = [f"{kind}-{layout}-{head}" for kind in ("supernet", "subnet") for layout in LAYOUTS for head in HEADS]
REMOTE_SHARCS = [f"sharcs-{layout}-{head}" for layout in LAYOUTS for head in SHARCS_CLASSES]


@pytest.mark.parametrize("name", [*REMOTE, "supernet-uniform", *REMOTE_SHARCS])
def test_remote_code_gives_the_same_model(remote, name):
    _, batches, expected, answers = remote
    answer, model = answers[name], expected[name]["model"]
    batch = batches["roberta" if "roberta" in name else "bert"]
    assert answer["class"] == type(model).__name__
    assert answer["module"].startswith("transformers_modules.")
    assert not answer["missing"] and not answer["unexpected"]
    with torch.no_grad():
        assert_all_close(answer["outputs"], main_outputs(model(**batch)))
    if "again" in answer:
        # A budget that was set is saved, too.
        assert_all_close(answer["again"], answer.get("routed", answer["outputs"]), atol=0, rtol=0)


@pytest.mark.parametrize(
    "name",
    [name for name in REMOTE if name.startswith("supernet-bert")] + ["supernet-roberta-masked-lm", "supernet-uniform"],
)
def test_remote_code_takes_subnets_out(remote, name):
    folder, batches, expected, answers = remote
    answer, model = answers[name], expected[name]["model"]
    batch = batches["roberta" if "roberta" in name else "bert"]
    architecture = modeling_mos.Architecture.from_dict(expected[name]["architecture"])
    with torch.no_grad():
        sliced = main_outputs(model(**batch, architecture=architecture))
    assert answer["contained"] and answer["parameters"] == model.count_parameters(architecture)
    assert answer["sampled"] == model.sample_architecture(seed=1).to_dict()
    assert_all_close(answer["sliced"], sliced)
    assert_all_close(answer["subnet"], sliced)
    assert_all_close(answer["reloaded"], answer["subnet"], atol=0, rtol=0)
    # What was saved there opens here.
    local = AUTO_CLASSES[expected[name]["head"]].from_pretrained(folder / f"{name}-subnet")
    assert type(local) is type(model.extract_subnet(architecture))
    assert type(local).__name__ == answer["subnet_class"]
    with torch.no_grad():
        assert_all_close(main_outputs(local(**batch)), answer["subnet"])


@pytest.mark.parametrize("name", REMOTE_SHARCS)
def test_remote_code_routes(remote, name):
    _, batches, expected, answers = remote
    answer, model = answers[name], expected[name]["model"]
    batch = batches["roberta" if "roberta" in name else "bert"]
    with torch.no_grad():
        for found, forced in zip(answer["forced"], expected[name]["forced"], strict=True):
            assert_all_close(found, main_outputs(model(**batch, **forced)))
        routed = model(**batch, router_price=answer["price"])
        assert routed.width_indices.tolist() == [0, 0, 0]
        assert_all_close(answer["routed"], main_outputs(routed))


@pytest.mark.parametrize("kind", ["supernet", "subnet"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["sequence-classification", "token-classification", "question-answering"])
def test_remote_code_opens_a_masked_lm_with_another_head(remote, kind, layout, head):
    _, _, _, answers = remote
    answer = answers[f"{kind}-{layout}-masked-lm@{head}"]
    assert all(key.startswith(("classifier.", "qa_outputs.")) for key in answer["missing"]) and answer["missing"]
    assert all(key.startswith("lm_head.") for key in answer["unexpected"])
    assert all(output.isfinite().all() for output in answer["outputs"])


# ---- compilation ----------------------------------------------------------------------------------------------------


COMPILED = [
    # One graph, without a break. The default backend writes C++ and takes half a minute where nothing is cached.
    *[(head, space, "aot_eager") for head in ("masked-lm", "sequence-classification") for space in SPACES],
    ("sequence-classification", "bottleneck", "inductor"),
    pytest.param("masked-lm", "bottleneck", "inductor", marks=pytest.mark.slow),
    pytest.param("masked-lm", "uniform", "inductor", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("head, space, backend", COMPILED)
def test_a_subnet_compiles_whole(head, space, backend):
    supernet = tiny_supernet(head, search_space=SPACES[space])
    subnet = supernet.extract_subnet(some_architecture(supernet))
    batch = make_batch(subnet.config)
    torch._dynamo.reset()
    compiled = torch.compile(subnet, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert_close(compiled(**batch).logits, subnet(**batch).logits, atol=1e-4)
