# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What the README says can be done: its Python blocks run, and its commands name scripts and options that exist."""

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from example_utils import argument_names, parse_given_arguments
from hub_server import TOKEN, HubServer


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {path.name: path for path in EXAMPLES.rglob("*.py")}
# What the shell fills in.
VARIABLES = {
    "$SEED": "1",
    "$TASK": "rte",
    "$FLAGS": "",
    "$NOVELS": "novels.txt",
    "$HELD_OUT": "held_out.txt",
    "${ARM}": "plain",
}
# Options of programs that are not ours, and of Transformers' own arguments.
OTHER_PROGRAMS = {"nproc_per_node", "help", "array"}


# ---- Python ---------------------------------------------------------------------------------------------------------


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_blocks_run(tmp_path):
    blocks = python_blocks()
    assert len(blocks) >= 6
    (tmp_path / "blocks.json").write_text(json.dumps(blocks), encoding="utf-8")
    with HubServer() as server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, EXAMPLES, ROOT / "tests"))),
        }
        script = ROOT / "tests" / "readme_script.py"
        done = subprocess.run(
            [sys.executable, str(script), "blocks.json", "report.json"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-6_000:]
        assert "me/mos-bert-60m" in server.repositories
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["unused"] == [], "sizes that the README no longer has"
    assert len(report["left_out"]) < 2
    assert "mos-bert-60m" in {path.name for path in tmp_path.iterdir()}


# ---- commands -------------------------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The words of every indented command, its lines joined and its comment left out."""
    found = []
    text = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"(?:^ {4}.+\n)+", text, flags=re.MULTILINE):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for name, value in VARIABLES.items():
                line = line.replace(name, value)
            words = shlex.split(line, comments=True)
            # Dots stand for more of the same.
            found.append([word for word in words if "…" not in word])
    return [words for words in found if words]


def script_of(words: list[str]) -> int | None:
    """Where the command names one of our scripts."""
    return next((place for place, word in enumerate(words) if Path(word).name in SCRIPTS), None)


SCRIPT_COMMANDS = [words for words in commands() if script_of(words) is not None]


def option_types(module) -> list[type]:
    """The dataclasses that a script reads its options into."""
    seen = []

    class Seen(Exception):
        pass

    def look(types, *_, **__):
        seen.extend([types] if isinstance(types, type) else types)
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "parse_arguments", look)
        with pytest.raises(Seen):
            module.main([])
    return seen


@pytest.mark.parametrize("words", SCRIPT_COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_commands_of_our_scripts(words, load_example, monkeypatch):
    place = script_of(words)
    script = SCRIPTS[Path(words[place]).name]
    if "/" in words[place]:
        assert ROOT / words[place] == script
        monkeypatch.chdir(ROOT)
    else:
        monkeypatch.chdir(script.parent)  # in the section on results, where a script is named alone
    module = load_example(str(script.relative_to(EXAMPLES)))
    given = words[place + 1 :]
    if script.name == "run_glue_sweep.py":
        assert all(module.make_points(*module.read_sweep(given)).values())
        return
    parse_given_arguments(tuple(option_types(module)), given)


def test_commands_are_found():
    assert len(SCRIPT_COMMANDS) > 25


def test_other_commands():
    """make, pip, and jobs for a cluster."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = settings["options.extras_require"]
    programs = {"make": 0, "pip": 0, "sbatch": 0}
    for words in commands():
        program = next((word for word in words if word in programs), None)
        if program is None:
            assert script_of(words) is not None, f"nothing says that {' '.join(words)!r} works"
            continue
        programs[program] += 1
        if program == "make":
            assert words[1] in targets, words
        elif program == "pip":
            for name in re.findall(r"\[(.*?)\]", " ".join(words)):
                assert set(name.split(",")) <= set(extras), words
        else:
            job = next(word for word in words if word.endswith(".sh"))
            assert (ROOT / job).is_file(), words
    assert min(programs.values()) > 0


def test_options_in_the_text(load_example):
    """Every `--option` beside the commands is one of some script, and every path one of the project."""
    known = set(OTHER_PROGRAMS)
    for script in SCRIPTS.values():
        if "parse_arguments(" in script.read_text(encoding="utf-8") and script.name != "example_utils.py":
            known |= set(argument_names(option_types(load_example(str(script.relative_to(EXAMPLES))))))
    known |= set(argument_names([load_example("text-classification/run_glue_sweep.py").SweepArguments]))
    # Not the code, and not the names in the published code that the first column of a table holds.
    text = re.sub(r"^```.*?^```|^ {4}.+?$|^\| `--.*? \|", "", README, flags=re.DOTALL | re.MULTILINE)
    options = set(re.findall(r"--([a-z_]+)", text))
    assert len(options) > 20
    assert options <= known
    for path in re.findall(r"`((?:examples|tests|configs|modeling_\w+|trainers)/[\w./*-]*)`", text):
        places = (ROOT, EXAMPLES / "text-classification")
        assert any(list(place.glob(path.rstrip("/"))) for place in places), path


# ---- other documents and settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "examples/README.md"])
def test_links_to_files(name):
    path = ROOT / name
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", path.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        assert (path.parent / target).exists(), target


def test_every_script_has_a_row_in_the_table_of_examples():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS.values():
        runs = 'if __name__ == "__main__":' in script.read_text(encoding="utf-8")
        if runs and script.parent.name != "benchmarks":
            assert f"]({script.relative_to(EXAMPLES)})" in table, script


def test_warnings_of_every_example_are_errors():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    filters = re.findall(r"^error:::(\w+)$", settings["tool:pytest"]["filterwarnings"], flags=re.MULTILINE)
    assert [path.stem for path in SCRIPTS.values() if not path.stem.startswith(tuple(filters))] == []


def test_the_lowest_versions_are_the_floors():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = settings["options.extras_require"]
    required = [settings["options"]["install_requires"], extras["test"]]
    floors = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(required), flags=re.MULTILINE))
    pinned = dict(
        re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints-lowest.txt").read_text(), flags=re.MULTILINE)
    )
    assert pinned.keys() == floors.keys()
    for name, version in pinned.items():
        assert version.removesuffix(".0") == floors[name].removesuffix(".0"), name
