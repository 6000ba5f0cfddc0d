# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Run by test_publishing.py in a process of its own, in which none of this project's packages can be imported: opens what
was published from the Hub, or offline from the cache, and writes what it computes to a file.
"""

import sys

import remote_code_script  # refuses the project's packages  # noqa: F401
import torch
import transformers
from hub_answers import OTHER_HEADS, answer
from huggingface_hub import ModelCard, hf_hub_download
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)


AUTO_CLASSES = {
    "supernet": AutoModelForMaskedLM,
    "subnet": AutoModelForMaskedLM,
    "stock": AutoModelForSequenceClassification,
    "sharcs": AutoModelForSequenceClassification,
    "small": AutoModelForMaskedLM,
}
TASKS = {AutoModelForMaskedLM: "fill-mask", AutoModelForSequenceClassification: "text-classification"}


@torch.no_grad()
def main(published: str, answers: str) -> None:
    given = torch.load(published)
    found = {}

    def open_model(name: str, label: str, **options) -> None:
        auto_class = AUTO_CLASSES["subnet" if name == "moved" else name]
        model = auto_class.from_pretrained(f"me/{name}", trust_remote_code=name != "stock", **options)
        found[label] = {"logits": model(**given["batch"]).logits, "weights": dict(model.state_dict())}

    for name, auto_class in AUTO_CLASSES.items():
        if name != "stock":
            for opener in (AutoConfig, auto_class):
                try:
                    opener.from_pretrained(f"me/{name}", trust_remote_code=False)
                except ValueError as error:
                    assert "trust_remote_code=True" in str(error), error
                else:
                    raise AssertionError(f"{opener.__name__} ran the code of {name} without being asked to")
        open_model(name, name)
        task = TASKS[auto_class]
        tokenizer = AutoTokenizer.from_pretrained(f"me/{name}")
        text = f"the cat sees a {tokenizer.mask_token} ." if task == "fill-mask" else "the cat sees a bird ."
        predict = pipeline(task, model=f"me/{name}", trust_remote_code=name != "stock")
        found[name]["prediction"] = predict(text)
        card = ModelCard.load(f"me/{name}")
        exec(card.text.split("```python\n")[1].split("```")[0], {})
        # Every other auto class has the same encoder, with a new head.
        config = AutoConfig.from_pretrained(f"me/{name}", trust_remote_code=name != "stock")
        for auto_class in sorted(set(getattr(config, "auto_map", {})) - {"AutoConfig"}):
            model = getattr(transformers, auto_class).from_pretrained(f"me/{name}", trust_remote_code=True)
            weights = {
                f"{model.base_model_prefix}.{key}": value for key, value in model.base_model.state_dict().items()
            }
            found[f"{name} {auto_class}"] = {"class": type(model).__name__, "weights": weights}
    # The code of another repository, as it was when the card was written.
    names = {}
    exec(ModelCard.load("me/pointing").text.split("```python\n")[1].split("```")[0], names)
    found["pointing"] = {"logits": names["model"](**given["batch"]).logits}
    # Heads that answer in another way: opened as a model, and by name as a pipeline.
    for name in given["answers"]:
        head = name.partition("-")[2]
        auto_class, task = OTHER_HEADS[head]
        tokenizer = AutoTokenizer.from_pretrained(f"me/{name}", trust_remote_code=True)
        model = auto_class.from_pretrained(f"me/{name}", trust_remote_code=True)
        found[name] = {"model": answer(head, model, tokenizer)}
        if task is not None:
            found[name]["pipeline"] = answer(head, f"me/{name}", trust_remote_code=True)
    # A commit behind the branch that it was made on, and another branch.
    open_model("subnet", "halves", revision="halves")
    predict = pipeline("fill-mask", model="me/subnet", revision="halves", trust_remote_code=True)
    found["halves"]["prediction"] = predict(f"the cat sees a {predict.tokenizer.mask_token} .")
    for name, revision in (("subnet", "halves"), ("kept", "trial")):
        card = ModelCard.load(hf_hub_download(f"me/{name}", "README.md", revision=revision))
        names = {}
        exec(card.text.split("```python\n")[1].split("```")[0], names)
        found[f"card of {revision}"] = {"logits": names["model"](**given["batch"]).logits}
    open_model("moved", "pinned", revision=given["commits"]["pinned"])
    # A subnet that the search named, out of the supernet.
    supernet = AutoModelForMaskedLM.from_pretrained("me/supernet", trust_remote_code=True)
    found["taken out"] = {"logits": supernet.extract_subnet("small")(**given["batch"]).logits}
    torch.save(found, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
