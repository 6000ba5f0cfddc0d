# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Models that go to the Hub and come back, over HTTP on this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_answers import OTHER_HEADS
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from test_hub import TRAVELLERS

from hub_server import TOKEN, HubServer
from testing_utils import (
    AUTO_CLASSES,
    HEADS,
    MOS_CLASSES,
    SHARCS_CLASSES,
    SUBNET_CLASSES,
    assert_close,
    code_of,
    table_of,
    tiny_backbone,
    tiny_supernet,
)
from trainers import publishing, push_folder_to_hub, push_to_hub
from trainers.model_cards import FIGURE_NAME, MARKER, UNPUBLISHED


TESTS = Path(__file__).resolve().parent
KINDS = ("supernet", "subnet", "stock", "sharcs", "small")  # the last one has its code in the supernet's repository
MODEL_FILES = {"config.json", "model.safetensors"}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}
CARD_FILES = {"README.md", FIGURE_NAME}


def run(script: str, *arguments, folder: Path, **variables: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    # Large files go by LFS, the older way, which is all that the server knows.
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6_000:]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A server to which everything was published, and the folder of the process that did."""
    folder = tmp_path_factory.mktemp("publisher")
    with HubServer() as server:
        paths = os.pathsep.join(map(str, (TESTS, TESTS.parent, TESTS.parent / "examples")))
        variables = {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home"),
            "PYTHONPATH": paths,
        }
        run(str(TESTS / "hub_publisher_script.py"), folder, folder=folder, **variables)
        yield server, torch.load(folder / "published.pt")


@pytest.fixture(scope="module")
def readers(hub, tmp_path_factory):
    """What a process without our packages and without a token reads, with an empty cache and then offline."""
    server, published = hub
    folder = tmp_path_factory.mktemp("reader")
    torch.save(published, folder / "published.pt")
    for name in ("hub_answers.py", "hub_reader_script.py", "remote_code_script.py"):
        shutil.copy(TESTS / name, folder)
    answers = {}
    for way, offline in (("online", "0"), ("offline", "1")):
        variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": offline}
        variables["PYTHONPATH"] = ""
        run("hub_reader_script.py", "published.pt", f"{way}.pt", folder=folder, **variables)
        answers[way] = torch.load(folder / f"{way}.pt")
    return answers


def card_on(server: HubServer, name: str) -> ModelCard:
    return ModelCard(server.files(name)["README.md"].decode())


# ---- what is there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_files_on_the_hub(hub, kind):
    server, _ = hub
    files = MODEL_FILES | TOKENIZER_FILES | CARD_FILES | TRAVELLERS.get(kind, set())
    if kind == "small":
        files |= {"handler.py", "search.py", "model_onnx/model.safetensors"}  # somebody's own
    assert set(server.files(f"me/{kind}")) == files


@pytest.mark.parametrize("kind", KINDS)
def test_cards_on_the_hub(hub, kind):
    card = card_on(hub[0], f"me/{kind}")
    assert card.data.base_model == "me/backbone" and card.data.tags == [{"sharcs": "sharcs"}.get(kind, "mos")]
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("me/books", "perplexity", 5.5)
    assert f'from_pretrained("me/{kind}"' in code_of(card)
    if kind == "small":
        revision = f'code_revision="{hub[1]["commits"]["code"]}"'
        assert revision in code_of(card) and "`revision=` does not pin them" in card.text
        assert "Python files of [me/supernet](https://huggingface.co/me/supernet)" in card.text
    else:
        assert ("are the Python files of this repository" in card.text) == (kind != "stock")


def test_a_card_that_somebody_wrote_is_left_alone(hub):
    files = hub[0].files("me/written")
    assert files["README.md"] == b"# Mine\n"
    assert set(files) == MODEL_FILES | TOKENIZER_FILES | TRAVELLERS["subnet"] | {"README.md"}


def test_a_card_that_was_edited_on_the_web_is_left_alone(hub):
    commits = [
        files["README.md"] for files in hub[0].repositories["me/edited"].commits.values() if "README.md" in files
    ]
    made, edited = commits[:1], commits[1:]
    assert MARKER.encode() in made[0]
    # What changes nothing makes no commit: the first edit; the second, checkpoints of a training, a push by hand.
    assert edited[0] == b"# Edited\n" and edited[1:] == [b"# Edited again\n"] * (len(edited) - 1)
    assert len(edited) >= 4


def test_cards_of_branches(hub):
    server, _ = hub
    assert server.files("me/branched", "draft")["README.md"] == b"# Draft\n"
    assert "revision=" not in code_of(card_on(server, "me/branched"))
    for name, branch in (("branched", "other"), ("subnet", "halves"), ("kept", "trial")):
        code = code_of(ModelCard(server.files(f"me/{name}", branch)["README.md"].decode()))
        assert code.count(f'from_pretrained("me/{name}", revision="{branch}", trust_remote_code=True)') == 2
    assert server.files("me/branched", "other") != server.files("me/branched", "draft")


def test_a_folder_that_was_saved_before(hub):
    server, _ = hub
    files = server.files("me/kept", "trial")
    assert set(files) == MODEL_FILES | TOKENIZER_FILES | CARD_FILES | TRAVELLERS["supernet"]
    card = ModelCard(files["README.md"].decode())
    assert {row["metric"]: row["value"] for row in table_of(card, "metric")} == {"perplexity": "5.5000"}
    assert UNPUBLISHED not in card.text and "me/kept" in code_of(card) and '"local"' not in code_of(card)
    assert "\n# kept\n" in card.text and card.data.model_name == "kept"
    # The card that somebody wrote there since, which the same folder does not push away.
    assert server.files("me/kept", "written")["README.md"] == b"# Written\n"
    with pytest.raises(ValueError, match="no model in '.*tests', which has no config.json; give the folder of one"):
        push_folder_to_hub(TESTS, "me/nothing")


def test_a_picture_of_ones_own(hub):
    files = hub[0].files("me/pictured")
    assert set(files) == MODEL_FILES | {"README.md", "figure.png"}
    assert b"![What each amount of compute buys](figure.png)" in files["README.md"]
    with pytest.raises(ValueError, match=r"no picture 'curve.png'; leave `figure` out"):
        push_to_hub(tiny_backbone(), "me/nothing", figure="curve.png")


def test_a_hub_that_does_not_answer_is_no_hub_without_a_card(monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setattr(HfApi, "hf_hub_download", fail)
    with pytest.raises(LocalEntryNotFoundError):
        publishing._read_written_card(HfApi(), "me/edited", None)


def test_of_two_written_cards_none_is_lost(monkeypatch, tmp_path, caplog):
    there, here = tmp_path / "README.md", tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(HfApi, "hf_hub_download", lambda *args, **kwargs: there)
    trainer = publishing.PublishingMixin()
    trainer.args = SimpleNamespace(output_dir=str(here), hub_token=None, hub_revision=None)
    trainer.hub_model_id = "me/both"

    def files() -> dict[str, str]:
        return {file.name: file.read_text() for file in here.iterdir()}

    def keep(own: str, on_the_hub: str) -> dict[str, str]:
        (here / "README.md").write_text(own)
        there.write_text(on_the_hub)
        trainer._keep_written_card()
        return files()

    assert keep("made", MARKER) == {"README.md": "made"}
    assert keep(MARKER, "first") == keep("first", "first") == {"README.md": "first"}
    assert keep("mine", "first") == {"README.md": "first", "_README.local-1.md": "mine"}
    assert "that of the Hub is kept, the other one is _README.local-1.md now" in caplog.text
    aside = {"_README.local-1.md": "mine", "_README.local-2.md": "first"}
    assert keep("first", "second") == {"README.md": "second", **aside}


@pytest.mark.parametrize(
    "missing", ["configuration_mos.py", "architecture.py"]
)  # the one is named, the other imported
def test_folders_that_cannot_be_published(tmp_path, missing):
    tiny_supernet("masked-lm").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no card; make one with `write_model_card`, or publish the loaded"):
        push_folder_to_hub(tmp_path, "me/nothing")
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"has no {missing}, which its model needs; save the model there again"):
        push_folder_to_hub(tmp_path, "me/nothing")


def test_code_of_another_version_is_named(tmp_path, monkeypatch, caplog):
    own, there = tmp_path / "own", tmp_path / "there"
    for folder, end in ((own, ""), (there, "# later\n")):
        folder.mkdir()
        (folder / "architecture.py").write_text(f"pass\n{end}")
        (folder / "conversion.py").write_text("pass\n")
    monkeypatch.setattr(HfApi, "hf_hub_download", lambda self, name, file, revision: there / file)
    publishing._check_code(HfApi(), own, "me/code", "main")
    (record,) = [record.getMessage() for record in caplog.records]
    assert record.startswith("architecture.py of 'me/code' are not of the version that is installed here")


def test_the_method_of_transformers(hub):
    """It makes an empty card, with our tag, and leaves the one that is there."""
    server, _ = hub
    assert card_on(server, "me/bare").data.tags == ["mos"] and MARKER not in card_on(server, "me/bare").text
    assert MARKER in card_on(server, "me/stock").text
    assert set(server.files("me/bare")) == MODEL_FILES | {"README.md"}


def test_what_a_trainer_publishes(hub):
    server, _ = hub
    expected = MODEL_FILES | TOKENIZER_FILES | CARD_FILES | TRAVELLERS["subnet"] | {"training_args.bin"}
    files = server.files("me/trained")
    assert {name for name in files if "/" not in name} == expected
    assert {name.split("/")[0] for name in files if "/" in name} == {"last-checkpoint"}
    assert "last-checkpoint/optimizer.pt" in files
    card = card_on(server, "me/trained")
    assert {row["metric"] for row in table_of(card, "metric")} == {"loss", "perplexity"}
    assert 'from_pretrained("me/trained"' in code_of(card) and card.data.datasets == ["me/books"]
    # At every moment the repository could be opened: weights never came without their code.
    for commit in server.repositories["me/trained"].commits.values():
        assert "model.safetensors" not in commit or TRAVELLERS["subnet"] <= set(commit)


@pytest.mark.parametrize("name, kind", [("elastic", "supernet"), ("routed", "sharcs"), ("taught", "stock")])
def test_what_the_other_trainers_publish(hub, name, kind):
    files = {path for path in hub[0].files(f"me/{name}") if "/" not in path}
    expected = MODEL_FILES | TOKENIZER_FILES | CARD_FILES | TRAVELLERS.get(kind, set()) | {"training_args.bin"}
    assert files == expected
    assert f'from_pretrained("me/{name}"' in code_of(card_on(hub[0], f"me/{name}"))


# ---- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["online", "offline"])
@pytest.mark.parametrize("label", [*KINDS, "pinned", "halves"])
def test_the_same_model_comes_back(hub, readers, way, label):
    expected, found = hub[1]["expected"][label], readers[way][label]
    assert found["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
    assert_close(found["logits"], expected["logits"])


ENCODERS = [
    *((kind, head) for kind in ("supernet", "subnet", "small") for head in HEADS),
    *(("sharcs", head) for head in SHARCS_CLASSES),
]


@pytest.mark.parametrize("way", ["online", "offline"])
@pytest.mark.parametrize("kind, head", ENCODERS)
def test_every_auto_class_finds_the_encoder(hub, readers, kind, head, way):
    found, expected = readers[way][f"{kind} {AUTO_CLASSES[head].__name__}"], hub[1]["expected"][kind]["weights"]
    classes = {"supernet": MOS_CLASSES, "sharcs": SHARCS_CLASSES}.get(kind, SUBNET_CLASSES)
    assert found["class"] == classes[head].__name__
    common = found["weights"].keys() & expected.keys()
    assert len(common) > 20 and all("pooler" in name for name in found["weights"].keys() - common)
    for name in common:
        assert torch.equal(found["weights"][name], expected[name]), name


@pytest.mark.parametrize("way", ["online", "offline"])
def test_a_subnet_of_the_front_is_taken_out(hub, readers, way):
    assert_close(readers[way]["taken out"]["logits"], hub[1]["expected"]["small"]["logits"])


@pytest.mark.parametrize("way", ["online", "offline"])
@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", ["supernet", "subnet", "sharcs"])
def test_other_heads_say_the_same(hub, readers, kind, head, way):
    expected = hub[1]["answers"][f"{kind}-{head}"]
    found = readers[way][f"{kind}-{head}"]
    assert found.keys() == ({"model"} if head == "question-answering" else {"model", "pipeline"})
    for numbers in found.values():
        assert len(numbers) == len(expected) > 2
        assert_close(torch.tensor(numbers), torch.tensor(expected))


@pytest.mark.parametrize("way", ["online", "offline"])
def test_code_of_another_repository_is_pinned(hub, readers, way):
    assert b"later code" in hub[0].files("me/code")["modeling_mos_subnet.py"]
    assert_close(readers[way]["pointing"]["logits"], hub[1]["expected"]["small"]["logits"])


@pytest.mark.parametrize("way", ["online", "offline"])
def test_the_code_of_a_branchs_card_opens_the_branch(hub, readers, way):
    expected = hub[1]["expected"]
    assert_close(readers[way]["card of halves"]["logits"], expected["halves"]["logits"])
    assert_close(readers[way]["card of trial"]["logits"], expected["kept"]["logits"])


def test_code_that_is_not_there(hub):
    refusals = hub[1]["refusals"]
    assert "me/refused" not in hub[0].repositories
    assert "Repository Not Found" in refusals["me/nobody"]
    assert "'me/sharcs' has no architecture.py, configuration_mos_subnet.py, modeling_mos_su" in refusals["me/sharcs"]
    assert "code_repo_id='me/supernet' is where the model goes; leave it out" in refusals["me/supernet"]
    assert set(hub[0].files("me/supernet")) >= TRAVELLERS["supernet"]


def test_only_code_is_looked_for_elsewhere():
    with pytest.raises(ValueError, match="BertForMaskedLM is a class of Transformers and needs no code; leave code_r"):
        push_to_hub(tiny_backbone(), "me/plain", code_repo_id="me/supernet")


@pytest.mark.parametrize("kind", KINDS)
def test_pipelines_predict_the_same_offline(readers, kind):
    assert readers["online"][kind]["prediction"]
    assert readers["offline"][kind]["prediction"] == readers["online"][kind]["prediction"]


def test_a_pipeline_of_a_branch(readers):
    main, branch = (readers["online"][label]["prediction"] for label in ("subnet", "halves"))
    assert readers["offline"]["halves"]["prediction"] == branch
    assert [row["score"] for row in branch] != [row["score"] for row in main]
