# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.

import json
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

import synthetic_data
from synthetic_data import generate_classification, generate_documents, train_tokenizer


SCRIPT = Path(synthetic_data.__file__)


def words_of(documents):
    return [word for document in documents for word in re.findall(r"[a-z-]+", document.lower())]


def test_documents_depend_on_seed_and_index_alone():
    ten = list(generate_documents(10, seed=3))
    assert list(generate_documents(4, seed=3)) == ten[:4]
    assert list(generate_documents(10, seed=4)) != ten
    assert len(set(generate_documents(300))) == 300


def test_no_global_random_state_is_used():
    random.seed(5)
    before = random.getstate()
    first = list(generate_documents(3)), generate_classification(3)
    assert random.getstate() == before
    random.seed(6)
    assert (list(generate_documents(3)), generate_classification(3)) == first


def test_another_process_makes_the_same_text():
    """String hashes differ between processes; nothing may depend on them."""
    code = "from synthetic_data import *; print(list(generate_documents(3, 7)), generate_classification(3, 7))"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == f"{list(generate_documents(3, 7))} {generate_classification(3, 7)}"


def test_vocabulary_is_small_and_each_word_comes_back():
    counts = Counter(words_of(generate_documents(2000)))
    assert 800 <= len(counts) <= 1500
    assert min(counts.values()) >= 3


def test_documents_read_like_english():
    for document in generate_documents(300, seed=1):
        paragraphs = document.split("\n")
        assert 2 <= len(paragraphs) <= 4
        for paragraph in paragraphs:
            assert paragraph[0].isupper() or paragraph[0] == '"'
            assert paragraph[-1] in ".?"
            assert paragraph.count('"') % 2 == 0
            assert "  " not in paragraph and " ," not in paragraph and " ?" not in paragraph


def test_verbs_agree_with_their_subjects():
    text = " ".join(generate_documents(600)).lower()
    plurals = {synthetic_data._plural(noun) for topic in synthetic_data.TOPICS.values() for noun in topic.nouns}
    singulars = {noun for topic in synthetic_data.TOPICS.values() for noun in topic.nouns}
    checked = 0
    for subject, verb in re.findall(r"\. the (\S+) (?:near|behind|beside|under|above|opposite) the \S+ (\w+) ", text):
        if subject in plurals - singulars:
            assert verb in ("were", "are"), (subject, verb)
        elif subject in singulars - plurals:
            assert verb in ("was", "is"), (subject, verb)
        checked += 1
    assert checked > 300
    assert not re.search(r"\b(he|she) (were|are)\b", text)


def test_pronouns_fit_the_people_of_the_document():
    for document in generate_documents(300):
        words = {word.strip(',.?"').lower() for word in document.split()}
        if words & {"she", "her"}:
            assert words & set(synthetic_data.FEMALE_NAMES)
        if words & {"he", "his"}:
            assert words & set(synthetic_data.MALE_NAMES)


def test_paragraphs_keep_to_a_topic():
    """Nouns of one topic are together far more often than chance has it."""
    topics = {
        noun: name
        for name, topic in synthetic_data.TOPICS.items()
        for noun in topic.nouns
        if sum(noun in other.nouns for other in synthetic_data.TOPICS.values()) == 1
    }
    same = total = 0
    for document in generate_documents(300):
        for paragraph in document.split("\n"):
            found = [topics[word] for word in words_of([paragraph]) if word in topics]
            same += Counter(found).most_common(1)[0][1] if found else 0
            total += len(found)
    assert same / total > 0.8


@pytest.mark.parametrize(
    "word, form, expected",
    [
        ("mend", synthetic_data._past, "mended"),
        ("stir", synthetic_data._past, "stirred"),
        ("carry", synthetic_data._past, "carried"),
        ("lower", synthetic_data._past, "lowered"),
        ("write", synthetic_data._past, "wrote"),
        ("wash", synthetic_data._third_person, "washes"),
        ("carry", synthetic_data._third_person, "carries"),
        ("play", synthetic_data._third_person, "plays"),
        ("loaf", synthetic_data._plural, "loaves"),
        ("story", synthetic_data._plural, "stories"),
        ("bench", synthetic_data._plural, "benches"),
        ("old boat", synthetic_data._article, "an old boat"),
    ],
)
def test_word_forms(word, form, expected):
    assert form(word) == expected


def test_classification_rows():
    rows = generate_classification(2000, seed=1)
    assert rows[:50] == generate_classification(50, seed=1)
    assert all(set(row) == {"sentence", "label", "difficulty"} for row in rows)
    kinds = Counter((row["label"], row["difficulty"]) for row in rows)
    assert set(kinds) == {(label, difficulty) for label in (0, 1) for difficulty in ("easy", "hard")}
    assert all(400 < count < 600 for count in kinds.values())
    assert {row["difficulty"] for row in generate_classification(50, hard_fraction=0.0)} == {"easy"}
    assert {row["difficulty"] for row in generate_classification(50, hard_fraction=1.0)} == {"hard"}


def test_word_counts_solve_easy_samples_and_not_hard_ones():
    sklearn_text = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, validation = generate_classification(2000), generate_classification(1000, seed=1)
    counter = sklearn_text.CountVectorizer(token_pattern=r"\S+")
    model = linear_model.LogisticRegression(max_iter=1000)
    model.fit(counter.fit_transform([row["sentence"] for row in train]), [row["label"] for row in train])
    scores = {}
    for difficulty in ("easy", "hard"):
        rows = [row for row in validation if row["difficulty"] == difficulty]
        scores[difficulty] = model.score(
            counter.transform([row["sentence"] for row in rows]), [row["label"] for row in rows]
        )
    assert scores["easy"] > 0.97
    assert scores["hard"] < 0.75


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_documents=-1 must not be negative"):
        generate_documents(-1)
    with pytest.raises(ValueError, match="num_samples=-2 must not be negative"):
        generate_classification(-2)
    with pytest.raises(ValueError, match=r"hard_fraction=1\.5 must lie between 0 and 1"):
        generate_classification(1, hard_fraction=1.5)


def test_tokenizer_round_trip(tmp_path):
    documents = list(generate_documents(60))
    tokenizer = train_tokenizer(documents, 300, tmp_path)
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert len(tokenizer) == 300
    assert tokenizer.model_max_length == 512
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, BertTokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == 512
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    text = "The sailor mended a net."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == "[CLS] the sailor mended a net. [SEP]"
    assert loaded("THE")["input_ids"] == loaded("the")["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer(documents)["input_ids"][0]


def test_tokenizer_depends_on_the_text_alone():
    """The trainer of the tokenizers library, left to itself, gives another vocabulary in each run."""
    documents = list(generate_documents(40))
    first = train_tokenizer(documents, 250).get_vocab()
    assert train_tokenizer(iter(documents), 250).get_vocab() == first
    code = (
        "from synthetic_data import *; import json; "
        "print(json.dumps(train_tokenizer(generate_documents(40), 250).get_vocab()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == first


def test_tokenizer_errors():
    with pytest.raises(ValueError, match="There is no text to train a tokenizer on"):
        train_tokenizer(["", "  "], 100)
    with pytest.raises(ValueError, match=r"vocab_size=10 is too small: .* take \d+ entries. Use at least \d+"):
        train_tokenizer(generate_documents(5), 10)


def test_script_writes_files(tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--num_documents", "5", "--num_validation_documents", "2"]
    synthetic_data.main([*arguments, "--num_classification_samples", "4", "--seed", "9"])
    documents = list(generate_documents(7, seed=9))
    assert (tmp_path / "train.txt").read_text().strip().split("\n\n") == documents[:5]
    assert (tmp_path / "validation.txt").read_text().strip().split("\n\n") == documents[5:]
    rows = [json.loads(line) for line in (tmp_path / "classification_train.jsonl").read_text().splitlines()]
    assert rows == generate_classification(4, seed=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classification_train.jsonl",
        "train.txt",
        "validation.txt",
    ]


def test_script_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("earlier")

    def failing(count, seed):
        yield from islice(generate_documents(count, seed), 2)
        raise RuntimeError("stopped")

    monkeypatch.setattr(synthetic_data, "generate_documents", failing)
    with pytest.raises(RuntimeError, match="stopped"):
        synthetic_data.main(["--output_dir", str(tmp_path), "--num_documents", "5"])
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]
    assert (tmp_path / "train.txt").read_text() == "earlier"


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        synthetic_data.main(["--help"])
    assert stop.value.code == 0
    assert "--num_documents" in capsys.readouterr().out
