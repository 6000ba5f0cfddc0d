# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Run by test_hub.py in a process of its own, in which none of this project's packages can be imported: opens the saved
folders that `tasks.json` names with `trust_remote_code=True` and writes what they compute to `answers.pt`.
"""

import importlib
import importlib.abc
import json
import sys
from pathlib import Path


PACKAGES = ("modeling_mos", "modeling_sharcs", "trainers")


class Blocker(importlib.abc.MetaPathFinder):
    """Refuses the project's packages even where they are installed in the environment."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


sys.meta_path.insert(0, Blocker())
for package in PACKAGES:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{package} can be imported: this process would not test remote code")

import torch  # noqa: E402
import transformers  # noqa: E402


def outputs_of(model, inputs, **kwargs) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = model.eval()(**inputs, **kwargs)
    names = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
    return [outputs[name] for name in names if outputs.get(name) is not None]


def main(folder: Path) -> None:
    tasks = json.loads((folder / "tasks.json").read_text())
    answers = {}
    for task in tasks:
        auto_class = getattr(transformers, task["auto_class"])
        model, info = auto_class.from_pretrained(
            folder / task["folder"], trust_remote_code=True, output_loading_info=True
        )
        inputs = torch.load(folder / f"inputs-{task['layout']}.pt")
        answer = {
            "class": type(model).__name__,
            "module": type(model).__module__,
            "missing": sorted(info["missing_keys"]),
            "unexpected": sorted(info["unexpected_keys"]),
            "outputs": outputs_of(model, inputs),
        }
        if "architecture" in task:
            architecture = task["architecture"]
            answer["sliced"] = outputs_of(model, inputs, architecture=architecture)
            space = model.search_space
            answer["sampled"] = model.sample_architecture(seed=1).to_dict()
            answer["contained"] = space.architecture(**architecture) in space
            answer["parameters"] = model.count_parameters(space.architecture(**architecture))
            subnet = model.extract_subnet(space.architecture(**architecture))
            answer["subnet"] = outputs_of(subnet, inputs)
            target = folder / f"{task['folder']}-subnet"
            subnet.save_pretrained(target)
            loaded = auto_class.from_pretrained(target, trust_remote_code=True)
            answer["reloaded"] = outputs_of(loaded, inputs)
            answer["subnet_class"] = type(loaded).__name__
        if "forced" in task:
            answer["forced"] = [outputs_of(model, inputs, **forced) for forced in task["forced"]]
        if "budget" in task:
            model.calibrate([inputs])
            answer["price"] = model.set_compute_budget(task["budget"])
            answer["routed"] = outputs_of(model, inputs)
        if task.get("save_again"):
            model.save_pretrained(folder / f"{task['folder']}-again")
            again = auto_class.from_pretrained(folder / f"{task['folder']}-again", trust_remote_code=True)
            answer["again"] = outputs_of(again, inputs)
        answers[task["name"]] = answer
    torch.save(answers, folder / "answers.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
