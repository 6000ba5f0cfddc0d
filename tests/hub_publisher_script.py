# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Run by test_publishing.py in a process of its own, whose Hub is the test's: publishes models in every way, and writes
what they compute to the folder that it is given.
"""

import shutil
import sys
from pathlib import Path

import torch
from hub_answers import OTHER_HEADS, answer
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import DataCollatorWithPadding

from testing_utils import UNIFORM, make_batch, tiny_sharcs, tiny_supernet, tiny_tokenizer
from trainers import (
    DistillationTrainer,
    DistillationTrainingArguments,
    MaskedLMTrainer,
    SupernetTrainer,
    push_folder_to_hub,
    push_to_hub,
    write_model_card,
)
from trainers.model_cards import FIGURE_NAME
from training_utils import (
    make_arguments,
    make_bert,
    make_labelled,
    make_masked,
    make_sharcs_trainer,
    make_subnet,
    make_supernet,
)


TOKENIZER = tiny_tokenizer()
# Somebody's own, in a repository of a model; names like those of modules that never travel.
OWN_FILES = ("handler.py", "search.py", "model_onnx/model.safetensors")
FACTS = {"base_model": "me/backbone", "datasets": "me/books", "metrics": {"perplexity": 5.5}}


def make_models() -> dict[str, torch.nn.Module]:
    sizes = {"vocab_size": len(TOKENIZER)}
    supernet = tiny_supernet("masked-lm", **sizes)
    found = supernet.search_space.smallest()
    supernet.config.front = [
        {"name": "small", "architecture": found.to_dict(), "parameters": supernet.count_parameters(found)}
    ]
    uniform = tiny_supernet("sequence-classification", search_space=UNIFORM, **sizes)
    routed = tiny_sharcs(**sizes)
    routed.calibrate([make_batch(routed.config, batch=12)])
    routed.set_compute_budget(0.7)
    return {
        "supernet": supernet,
        "subnet": supernet.extract_subnet(supernet.search_space.sample(seed=3)),
        "stock": uniform.extract_subnet(uniform.search_space.sample(seed=3)),
        "sharcs": routed,
    }


def publish_other_heads() -> dict[str, list[float]]:
    """Of every kind, the heads that `make_models` leaves out; what they say of a text."""
    answers = {}
    for head in OTHER_HEADS:
        sizes = {"vocab_size": len(TOKENIZER)}
        supernet = tiny_supernet(head, **sizes)
        kinds = {"supernet": supernet, "subnet": supernet.extract_subnet(supernet.search_space.sample(seed=3))}
        for kind, model in {**kinds, "sharcs": tiny_sharcs(head, **sizes)}.items():
            push_to_hub(model, f"me/{kind}-{head}", TOKENIZER)
            answers[f"{kind}-{head}"] = answer(head, model.eval(), TOKENIZER)
    return answers


def make_trainer(folder: Path, **options) -> MaskedLMTrainer:
    return MaskedLMTrainer(
        make_subnet(TOKENIZER),
        make_arguments(folder, **{"max_steps": 1, **options}),
        train_dataset=make_masked(TOKENIZER),
        eval_dataset=make_masked(TOKENIZER, 7, seed=1),
        processing_class=TOKENIZER,
    )


def upload_card(name: str, text: bytes, branch: str | None = None) -> None:
    HfApi().upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=name, revision=branch)


def refuse_wrong_code(model) -> dict[str, str]:
    """What is said where the code of another repository would not do."""
    refusals = {}
    for name, code in (("refused", "me/nobody"), ("me/refused", "me/sharcs"), ("supernet", "me/supernet")):
        try:
            push_to_hub(model, name, TOKENIZER, code_repo_id=code)
        except (ValueError, RepositoryNotFoundError) as error:
            refusals[code] = str(error)
    return refusals


def train_and_publish(folder: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "push_to_hub": True}
    trainer = make_trainer(folder / "trained", **saving, hub_model_id="me/trained", hub_strategy="checkpoint")
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub(dataset_tags="me/books")
    # A card that was edited on the web since.
    edited = make_trainer(folder / "edited", push_to_hub=True, hub_model_id="me/edited")
    edited.push_to_hub()
    upload_card("me/edited", b"# Edited\n")
    edited.push_to_hub()
    # While a training publishes its checkpoints beside an old card of its own.
    folder_of_old = Path(shutil.copytree(folder / "edited", folder / "going on"))
    write_model_card(edited.model, folder_of_old)
    upload_card("me/edited", b"# Edited again\n")
    make_trainer(folder_of_old, **saving, hub_model_id="me/edited").train()
    # By a trainer that was not told to publish.
    make_trainer(folder / "by hand", hub_model_id="me/edited").push_to_hub()
    # On a branch, which the trainer's arguments do not name.
    make_trainer(folder / "branched", hub_model_id="me/branched").push_to_hub()
    HfApi().create_branch("me/branched", branch="draft")
    upload_card("me/branched", b"# Draft\n", branch="draft")
    trainer = make_trainer(folder / "branched", hub_model_id="me/branched")
    trainer.push_to_hub(revision="draft")
    (folder / "branched" / "README.md").unlink()
    HfApi().create_branch("me/branched", branch="other")
    trainer.push_to_hub(revision="other")
    publishing = {"push_to_hub": True, "max_steps": 1}
    supernet = SupernetTrainer(
        make_supernet(TOKENIZER),
        make_arguments(folder / "elastic", **publishing, hub_model_id="me/elastic"),
        train_dataset=make_masked(TOKENIZER),
        processing_class=TOKENIZER,
    )
    student = DistillationTrainer(
        make_bert(TOKENIZER, "sequence-classification"),
        make_arguments(folder / "taught", DistillationTrainingArguments, **publishing, hub_model_id="me/taught"),
        teacher=make_bert(TOKENIZER, "sequence-classification", seed=1),
        train_dataset=make_labelled(TOKENIZER),
        data_collator=DataCollatorWithPadding(TOKENIZER),
        processing_class=TOKENIZER,
    )
    options = {"push_to_hub": True, "hub_model_id": "me/routed", "num_train_epochs": 2}
    routed = make_sharcs_trainer(TOKENIZER, folder / "routed", **options)
    for trainer in (supernet, student, routed):
        trainer.train()
        trainer.push_to_hub()


@torch.no_grad()
def record(model, batch) -> dict[str, object]:
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"logits": model(**batch).logits, "weights": weights}


def main(folder: Path) -> None:
    models = make_models()
    batch = make_batch(models["supernet"].config)
    commits, expected = {}, {}
    for name, model in models.items():
        commits[name] = push_to_hub(model, f"me/{name}", TOKENIZER, **FACTS).oid
        expected[name] = record(model, batch)
    # A subnet of the stored front, and one without code of its own.
    small = models["supernet"].extract_subnet("small")
    expected["small"] = record(small, batch)
    # Nothing is left of the code of an earlier push; what is none of ours stays.
    push_to_hub(small, "me/small", TOKENIZER, **FACTS)
    api = HfApi()
    for path in (*OWN_FILES, "pytorch_model.bin"):
        api.upload_file(path_or_fileobj=b"pass\n", path_in_repo=path, repo_id="me/small")
    push_to_hub(small, "me/small", TOKENIZER, code_repo_id="me/supernet", **FACTS)
    commits["code"] = api.model_info("me/supernet").sha
    # Code that changes later is not what the card runs.
    push_to_hub(models["subnet"], "me/code", TOKENIZER)
    push_to_hub(small, "me/pointing", TOKENIZER, code_repo_id="me/code")
    later = b"raise RuntimeError('later code')\n"
    api.upload_file(path_or_fileobj=later, path_in_repo="modeling_mos_subnet.py", repo_id="me/code")
    commits["pinned"] = push_to_hub(models["subnet"], "me/moved", TOKENIZER).oid
    expected["pinned"] = expected["subnet"]
    # A branch holds other weights, and leaves the others as they are.
    subnet = models["subnet"]
    for parameter in subnet.parameters():
        parameter.data.mul_(0.5)
    push_to_hub(subnet, "me/subnet", TOKENIZER, revision="halves")
    push_to_hub(subnet, "me/moved", TOKENIZER)  # the main branch goes on after the commit that is pinned
    expected["halves"] = record(subnet, batch)

    api.create_repo("me/written")
    api.upload_file(path_or_fileobj=b"# Mine\n", path_in_repo="README.md", repo_id="me/written")
    push_to_hub(subnet, "me/written", TOKENIZER, private=True)
    # transformers' own: an empty card where there is none, and the one that is there.
    models["stock"].push_to_hub("me/bare")
    models["stock"].push_to_hub("me/stock")
    # A folder that was saved before, with its card; and a picture.
    models["supernet"].save_pretrained(folder / "local")
    TOKENIZER.save_pretrained(folder / "local")
    write_model_card(models["supernet"], folder / "local", metrics={"perplexity": 5.5}, datasets="me/books")
    (folder / "local" / "checkpoint-3").mkdir()
    for path in ("checkpoint-3/model.safetensors", "optimizer.pt", "_notes.txt"):
        (folder / "local" / path).touch()
    push_folder_to_hub(folder / "local", "me/kept", revision="trial")
    expected["kept"] = expected["supernet"]
    api.create_branch("me/kept", branch="written")
    upload_card("me/kept", b"# Written\n", branch="written")
    push_folder_to_hub(folder / "local", "me/kept", revision="written")
    push_to_hub(models["stock"], "me/pictured", figure=folder / "local" / FIGURE_NAME)
    train_and_publish(folder)
    published = {
        "batch": batch,
        "commits": commits,
        "expected": expected,
        "answers": publish_other_heads(),
        "refusals": refuse_wrong_code(small),
    }
    torch.save(published, folder / "published.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
