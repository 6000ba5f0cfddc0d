# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Models, saved folders and trainings published on the Hub, each with its card."""

import itertools
import json
import os
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging

from modeling_mos import modeling_mos, modeling_mos_subnet
from modeling_sharcs import modeling_sharcs

from .model_cards import CARD_NAME, MARKER, as_list, has_custom_code, hub_name, retarget_card, write_model_card


logger = logging.get_logger(__name__)

# What Trainer leaves out, and what is in a checkpoint beside the model.
UNPUBLISHED_FILES = ("_*", f"{PREFIX_CHECKPOINT_DIR}-*", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth")


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    commit_message: str = "Upload model",
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    code_repo_id: str | None = None,
    figure: str | os.PathLike | None = None,
    **card,
) -> CommitInfo:
    """
    Publishes a model with its tokenizer and a card. (`model.push_to_hub` uploads the model with an empty card.)

    A `README.md` on the Hub that somebody wrote is left as it is. Weights and code of a model that was there before
    are replaced, and deleted where this one has none of the name; its tokenizer stays where none is given.

    Args:
        model (`PreTrainedModel`): The model.
        repo_id (`str`): Where to, such as `"me/mos-bert-60m"`; made if it does not exist.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Its tokenizer.
        commit_message (`str`, *optional*, defaults to `"Upload model"`): Of the one commit.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`bool` or `str`, *optional*): The token, if not the stored one.
        revision (`str`, *optional*): A branch to commit to, made if it does not exist.
        code_repo_id (`str`, *optional*): A repository with the model's code, such as that of a subnet's supernet, to
            which the model then points instead of carrying code of its own.
        figure (`str` or `os.PathLike`, *optional*): A picture for the card instead of the architecture's, such as one
            of [`save_curve`].
        card: More arguments of [`write_model_card`].

    Returns:
        `CommitInfo`: of the commit.

    Raises:
        ValueError: if `code_repo_id` is given for a model that needs no code, lacks that code, or is `repo_id`; if
            there is no such picture.
    """
    if code_repo_id is not None and not has_custom_code(model):
        raise ValueError(
            f"{type(model).__name__} is a class of Transformers and needs no code; leave "
            f"code_repo_id={code_repo_id!r} out."
        )
    if figure is not None and not os.path.isfile(figure):
        raise ValueError(f"There is no picture {os.fspath(figure)!r}; leave `figure` out to have one drawn.")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if figure is not None:  # under a name that uploads leave out nowhere, and links need not quote
            card["figure"] = f"figure{Path(figure).suffix}"
            shutil.copy(figure, folder / card["figure"])
        if code_repo_id is not None:
            code_revision = api.model_info(code_repo_id).sha
            _check_code(api, folder, code_repo_id, code_revision)
            _point_to_code(folder, code_repo_id)
            card |= {"code_repo_id": code_repo_id, "code_revision": code_revision}
        repo_id = _open_repository(api, repo_id, private, revision)
        if repo_id == code_repo_id:
            raise ValueError(f"code_repo_id={code_repo_id!r} is where the model goes; leave it out to bring the code.")
        written = _read_written_card(api, repo_id, revision)
        if written is not None:
            (folder / CARD_NAME).write_text(written, encoding="utf-8")
        write_model_card(model, folder, repo_id=repo_id, revision=revision, **card)
        return _upload(api, folder, repo_id, commit_message, revision)


def push_folder_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str = "Upload model",
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """
    Publishes a model that was saved before, such as a script's output folder, as [`push_to_hub`] does, with the card
    of the folder and the scores in it, whose code then opens the model on the Hub. Checkpoints stay behind.

    Args:
        folder (`str` or `os.PathLike`): Where the model, its tokenizer and its card were saved.
        repo_id, commit_message, private, token, revision: As for [`push_to_hub`].

    Returns:
        `CommitInfo`: of the commit.

    Raises:
        ValueError: if the folder lacks the model, its code or its card.
    """
    folder = Path(folder)
    _check_folder(folder)
    text = (folder / CARD_NAME).read_text(encoding="utf-8")
    api = HfApi(token=token)
    repo_id = _open_repository(api, repo_id, private, revision)
    written = _read_written_card(api, repo_id, revision)
    if written is None:
        card = retarget_card(text, repo_id, revision) if MARKER in text else text
    else:
        card = written
        if MARKER not in text and text != written:
            logger.warning(
                f"The card of {repo_id} was written by somebody and stays; that of {str(folder)!r} is not published."
            )
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "model"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(f"{PREFIX_CHECKPOINT_DIR}-*"))
        (copy / CARD_NAME).write_text(card, encoding="utf-8")
        return _upload(api, copy, repo_id, commit_message, revision)


def _check_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: if a folder lacks a model, its code or its card.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"There is no model in {str(folder)!r}, which has no config.json; give the folder of one.")
    code = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    try:
        for reference in code.values():
            if isinstance(reference, str) and "--" not in reference:  # others are of another repository
                get_relative_import_files(folder / f"{reference.partition('.')[0]}.py")
    except FileNotFoundError as error:
        raise ValueError(
            f"{str(folder)!r} has no {Path(error.filename).name}, which its model needs; save the model there again."
        ) from None
    if not (folder / CARD_NAME).is_file():
        raise ValueError(
            f"{str(folder)!r} has no card; make one with `write_model_card`, or publish the loaded model with "
            "`push_to_hub`."
        )


def _open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Makes the repository and the branch, if they do not exist; the repository's whole name."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def _upload(api: HfApi, folder: Path, repo_id: str, commit_message: str, revision: str | None) -> CommitInfo:
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=commit_message,
        revision=revision,
        ignore_patterns=list(UNPUBLISHED_FILES),
        delete_patterns=_files_of_models(),
    )


def _files_of_models() -> list[str]:
    """What another model may have left in a repository: weights, and our code; of what lies there nothing else."""
    families = [module.__file__ for module in (modeling_mos, modeling_mos_subnet, modeling_sharcs)]
    travelling = {Path(file).name for family in families for file in [family, *get_relative_import_files(family)]}
    weights = []
    for name, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        weights += [f"{name}.{ending}", f"{name}-?????-of-?????.{ending}", f"{name}.{ending}.index.json"]
    return [*sorted(travelling), *weights]


def _read_written_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """The card that is on the Hub, if somebody wrote it: it is left as it is."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision, local_dir=folder))
        except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            return None  # There is none; a Hub that does not answer is an error.
        text = path.read_text(encoding="utf-8")
    return None if MARKER in text else text


def _check_code(api: HfApi, folder: Path, repo_id: str, revision: str) -> None:
    """
    Raises:
        ValueError: if a repository lacks some of a saved model's code.
    """
    missing, different = [], []
    for file in sorted(folder.glob("*.py")):
        try:
            there = api.hf_hub_download(repo_id, file.name, revision=revision)
        except RemoteEntryNotFoundError:
            missing.append(file.name)
        else:
            if Path(there).read_bytes() != file.read_bytes():
                different.append(file.name)
    if missing:
        raise ValueError(
            f"{repo_id!r} has no {', '.join(missing)}, which this model needs; give `code_repo_id` a repository of a "
            "model of its kind, or leave it out."
        )
    if different:
        logger.warning(
            f"{', '.join(different)} of {repo_id!r} are not of the version that is installed here; whether they run "
            "this model was not tried."
        )


def _point_to_code(folder: Path, repo_id: str) -> None:
    """Takes the code out of a saved folder, whose configuration then names the repository to find it in."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {
        auto_class: f"{repo_id}--{reference.rpartition('--')[2]}"
        for auto_class, reference in config["auto_map"].items()
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.glob("*.py"):
        file.unlink()


class PublishingMixin:
    """
    Mixin for a `Trainer`: `create_model_card`, and with it `push_to_hub`, write a card as [`write_model_card`] does,
    with the trainer's arguments and its last evaluation.
    """

    # What a running `push_to_hub` was called with.
    _push_options: dict[str, Any] = {}

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs,
    ):
        """
        As [`~transformers.Trainer.push_to_hub`]; a card on the Hub that somebody wrote or edited is left as it is.
        """
        # Trainer tells `create_model_card` neither, which needs both for the card that is there.
        self._push_options = {"token": token, "revision": revision}
        try:
            return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)
        finally:
            self._push_options = {}

    def _keep_written_card(self) -> None:
        """Brings a card that somebody wrote from the Hub into the output folder, which is uploaded over it."""
        options = self._push_options
        api = HfApi(token=options.get("token") or self.args.hub_token)
        written = _read_written_card(api, self.hub_model_id, options.get("revision") or self.args.hub_revision)
        here = Path(self.args.output_dir) / CARD_NAME
        own = here.read_text(encoding="utf-8") if here.is_file() else MARKER
        if written is None or own == written:
            return
        if MARKER not in own:
            # What begins with "_" is not uploaded.
            names = (here.with_name(f"_README.local-{number}.md") for number in itertools.count(1))
            aside = next(name for name in names if not name.exists())
            os.replace(here, aside)
            logger.warning(
                f"The cards of {self.hub_model_id} and of {self.args.output_dir!r} were both written by somebody; "
                f"that of the Hub is kept, the other one is {aside.name} now."
            )
        unfinished = here.with_name(f"{CARD_NAME}.unfinished")
        unfinished.write_text(written, encoding="utf-8")
        os.replace(unfinished, here)

    def _publish_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            try:
                self._keep_written_card()
            except Exception as error:  # Whatever the network does: the training goes on.
                logger.warning(f"{checkpoint_folder} is not published: the card on the Hub cannot be read ({error}).")
                return
        super()._publish_checkpoint(checkpoint_folder)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        metrics: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        **card,
    ) -> None:
        """
        Writes the card of the model that was saved to `args.output_dir`.

        Args:
            language, license, tags, model_name, finetuned_from, dataset_tags, dataset, dataset_args:
                As for [`~transformers.Trainer`].
            tasks: Taken for the sake of scripts; the model's head says what its task is.
            metrics (`dict`, *optional*): Instead of those of the last evaluation.
            training (`dict`, *optional*): More to say about the training.
            card: More arguments of [`write_model_card`].
        """
        if not self.is_world_process_zero():
            return
        logged = (entry for entry in reversed(self.state.log_history) if any(map(_is_evaluated, entry)))
        write_model_card(
            self.accelerator.unwrap_model(self.model),
            self.args.output_dir,
            repo_id=self.hub_model_id,
            revision=self._push_options.get("revision") or self.args.hub_revision,
            model_name=model_name,
            base_model=finetuned_from,
            license=license,
            language=language,
            tags=[*as_list(tags), "generated_from_trainer"],
            datasets=as_list(dataset_tags),
            dataset_name=next(iter(as_list(dataset)), None),
            dataset_config=next(iter(as_list(dataset_args)), None),
            metrics=next(logged, None) if metrics is None else metrics,
            training={**self._training_facts(), **(training or {})},
            **card,
        )
        if self.hub_model_id is not None:
            self._keep_written_card()

    def _training_facts(self) -> dict[str, Any]:
        if self.train_dataset is None:
            return {}
        teacher, args = getattr(self, "teacher", None), self.args
        facts = {"trainer": type(self).__name__, **extract_hyperparameters_from_trainer(self)}
        if "optimizer" in facts:  # which names it as Python names the member of an enumeration
            plain = getattr(args.optim, "value", args.optim)
            facts["optimizer"] = facts["optimizer"].replace(f"Use {args.optim} ", f"{plain} ")
        if hasattr(self.train_dataset, "__len__"):
            facts["samples"] = f"{len(self.train_dataset):,}"
        if teacher is not None:
            teacher = self.accelerator.unwrap_model(teacher)
            name = hub_name(teacher.name_or_path) or type(teacher).__name__  # a folder's says nothing to others
            facts["teacher"] = f"{name} ({teacher.num_parameters():,} parameters)"
        if teacher is not None or self.model.config.model_type in ("mos", "sharcs"):
            # What our arguments add; of an ordinary model without a teacher nothing depends on them.
            usual = {field.name for field in fields(TrainingArguments)}
            facts |= {field.name: getattr(args, field.name) for field in fields(args) if field.name not in usual}
        return facts


def _is_evaluated(name: str) -> bool:
    return name.startswith("eval_")


__all__ = ["PublishingMixin", "push_folder_to_hub", "push_to_hub"]
