# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/question-answering: reading questions, windows, answers, and run_qa.py from its flags to what it writes."""

import csv
import json
import random
import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import trainers as tokenizer_trainers
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForQuestionAnswering,
    PreTrainedTokenizerFast,
)

import trainers.model_cards
import trainers.width_predictions
from modeling_mos import MosSubnetForQuestionAnswering
from modeling_sharcs import SharcsForQuestionAnswering
from script_utils import (
    NARROW,
    TRAINING,
    contents,
    make_tokenizer,
    read_json,
    read_table,
    save_backbone,
    saved_weights,
    to_flags,
)
from synthetic_data import generate_classification
from testing_utils import table_of, tiny_supernet, training_of
from training_utils import folders, largest_change


METRIC = Path(__file__).resolve().parents[1] / "examples" / "metrics" / "elastic_squad.py"
SENTENCES = [row["sentence"] for row in generate_classification(80, seed=2)]
CUTS = {"max_seq_length": 32, "doc_stride": 8}


def make_questions(count: int, seed: int = 0, unanswerable: float = 0.0) -> list[dict]:
    """Questions whose answers are a few words of contexts of one to eight sentences."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        context = " ".join(generator.sample(SENTENCES, generator.randint(1, 8)))
        words = list(re.finditer(r"\S+", context))
        first = generator.randrange(len(words))
        last = min(first + generator.randrange(3), len(words) - 1)
        begin, finish = words[first].start(), words[last].end()
        answers = {"text": [context[begin:finish]], "answer_start": [begin]}
        if generator.random() < unanswerable:
            answers = {"text": [], "answer_start": []}
        question = f" what about {generator.choice(words).group()}?"
        rows.append({"id": f"q{seed}-{index}", "question": question, "context": context, "answers": answers})
    return rows


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def nested(rows: list[dict]) -> dict:
    """SQuAD's own form, in which a context may have several questions."""
    paragraphs = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": row["id"],
                    "question": row["question"],
                    "is_impossible": not row["answers"]["text"],
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
                    ],
                }
            ],
        }
        for row in rows
    ]
    return {"version": "x", "data": [{"title": "a", "paragraphs": paragraphs[:2]}, {"paragraphs": paragraphs[2:]}]}


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("question-answering/run_qa.py")


@pytest.fixture(scope="module")
def qa(script, load_example):
    return load_example("question-answering/qa_utils.py")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([*SENTENCES, "what about?"])


@pytest.fixture(scope="module")
def byte_tokenizer():
    """The kind that RoBERTa has: spaces belong to tokens, characters may be cut into bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.train_from_iterator(
        SENTENCES,
        tokenizer_trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **names)


@pytest.fixture(scope="module")
def backbone(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    return save_backbone(folder, tokenizer, head="question-answering")


@pytest.fixture(scope="module")
def settings(backbone, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("data")
    return {
        **{name: value for name, value in TRAINING.items() if not name.startswith("hardness")},
        **CUTS,
        "model_name_or_path": str(backbone),
        "train_file": write_rows(folder / "train.jsonl", make_questions(12)),
        "validation_file": write_rows(folder / "validation.jsonl", make_questions(10, seed=1)),
        "n_best_size": 50,  # all of a window
    }


@pytest.fixture
def run(script, settings, tmp_path, monkeypatch):
    """Runs the script in this process, without plots, with settings that keyword arguments replace; gives metrics."""
    monkeypatch.setattr(trainers.width_predictions, "is_matplotlib_available", lambda: False)
    monkeypatch.setattr(trainers.model_cards, "is_matplotlib_available", lambda: False)

    def call(**options):
        flags = to_flags({**settings, "output_dir": str(tmp_path / "out"), **options})
        return script.main(flags)

    return call


ROUTED = {"sharcs": True, **NARROW, "hardness_window": 1, "hardness_intervals": 0.05, "curve_points": 5}


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["nested", "list", "data", "lines", "csv"])
def test_every_form_gives_the_same_rows(qa, tmp_path, form):
    rows = make_questions(6, unanswerable=0.4)
    # What tears naive readers apart: line ends within a text, of several kinds, quotes, a leading byte order mark.
    rows[1]["context"] += '\nA "new" line,\r\nand another.\u2028 And \x85 what else'
    answered = [bool(row["answers"]["text"]) for row in rows]
    assert True in answered and False in answered
    path = tmp_path / {"lines": "rows.jsonl", "csv": "rows.csv"}.get(form, "rows.json")
    if form == "csv":
        with open(path, "w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["id", "question", "context", "answer_text", "answer_start"])
            for row in rows:
                found = row["answers"]
                answer = [found["text"][0], found["answer_start"][0]] if found["text"] else ["", ""]
                writer.writerow([row["id"], row["question"], row["context"], *answer])
    elif form == "lines":
        write_rows(path, rows)
    else:
        content = {"nested": nested(rows), "list": rows, "data": {"data": rows}}[form]
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    arguments = qa.QuestionAnsweringDataArguments(
        train_file=str(path), validation_file=str(path), version_2_with_negative=True, max_eval_samples=2
    )
    found = qa.load_questions(arguments)
    assert found["train"].to_list() == rows
    assert found["validation"].to_list() == rows[:2]


def test_a_very_long_context_in_a_csv_file(qa, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"id,question,context,answer_text,answer_start\n7,Who?,{'word ' * 40_000},word,5\n")
    (row,) = qa.load_questions(qa.QuestionAnsweringDataArguments(train_file=str(path)))["train"]
    assert row["id"] == "7" and len(row["context"]) == 200_000 and row["answers"]["answer_start"] == [5]


GOOD = {"id": "a", "question": "Who?", "context": "A cat", "answers": {"text": ["cat"], "answer_start": [2]}}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("rows.json", "", "is empty; it needs at least one question"),
        ("rows.json", "[]", "is empty; it needs at least one question"),
        ("rows.csv", "id,question,context,answer_text,answer_start\n", "is empty"),
        ("rows.json", '{"rows": 1}', "holds no list of questions"),
        ("rows.json", "{", "is no JSON"),
        ("rows.json", json.dumps(GOOD) + "\n" + json.dumps(GOOD), r"is no JSON: .*one on each line, want the suffix"),
        ("rows.json", '["Who?"]', "Question 1 of .* is a str, not an object with"),
        ("rows.json", '{"data": [{"paragraphs": [{"qas": []}]}, {}]}', "not in SQuAD's form: KeyError"),
        ("rows.json", json.dumps([{**GOOD, "context": None}]), "Question 1 of .* has no 'context'; it has"),
        ("rows.csv", "id,question,answer_text,answer_start\n1,Who?,cat,2\n", "Question 1 of .* has no 'context'"),
        ("rows.csv", "id,question,context\n1,Who?,A cat\n", "Question 1 of .* has no 'answers'"),
        (
            "rows.csv",
            "id,question,context,answer_text,answer_start\n1,Who?,A cat,cat,two\n",
            "'1' is 'two', not a who",
        ),
        ("rows.jsonl", json.dumps({**GOOD, "answers": [{"text": "cat"}]}), "Question 1 .* need a list of str 'text'"),
        (
            "rows.jsonl",
            json.dumps({**GOOD, "answers": {"text": ["cat"], "answer_start": ["2"]}}),
            "Question 1 .* need a list of int 'answer_start'",
        ),
        ("rows.jsonl", json.dumps({**GOOD, "answers": {"text": ["cat"], "answer_start": []}}), "1 answers with 0 sta"),
        (
            "rows.jsonl",
            json.dumps({**GOOD, "answers": {"text": ["cat"], "answer_start": [3]}}),
            "The answer 'cat' of the train question 'a' begins at character 3, but its context has 5",
        ),
        ("rows.jsonl", json.dumps(GOOD) + "\n" + json.dumps(GOOD), "2 train questions have the id 'a'; give each"),
        (
            "rows.jsonl",
            json.dumps({**GOOD, "answers": {"text": [], "answer_start": []}}),
            "1 of 1 train questions have no answer; add --version_2_with_negative",
        ),
    ],
)
def test_files_that_cannot_be_read(qa, tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        qa.load_questions(qa.QuestionAnsweringDataArguments(train_file=str(path)))


def test_other_faults_of_files(qa, tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match="'nowhere.json' does not exist"):
        qa.load_questions(qa.QuestionAnsweringDataArguments(train_file="nowhere.json"))
    path = tmp_path / "rows.json"
    path.write_bytes("[é]".encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not UTF-8 \(byte 1\)"):
        qa.load_questions(qa.QuestionAnsweringDataArguments(train_file=str(path)))
    write_rows(tmp_path / "rows.jsonl", [{**GOOD, "answers": {"text": ["cat"], "answer_start": [0]}}])
    qa.load_questions(qa.QuestionAnsweringDataArguments(train_file=str(tmp_path / "rows.jsonl")))
    assert "1 train answers are not what stands at answer_start" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Name the data: dataset_name, or train_file and validation_file"),
        ({"dataset_name": "squad", "train_file": "a.json"}, "name the data twice"),
        ({"train_file": "a.json", "doc_stride": 384}, "doc_stride=384 must be at least 0 and less than max_seq_len"),
        ({"train_file": "a.json", "n_best_size": 0}, "n_best_size=0 must be at least 1"),
        ({"train_file": "a.json", "max_train_samples": 0}, "max_train_samples=0 must be at least 1"),
    ],
)
def test_arguments_that_cannot_be(qa, options, message):
    with pytest.raises(ValueError, match=message):
        qa.QuestionAnsweringDataArguments(**options)


# ---- windows --------------------------------------------------------------------------------------------------------


def load(qa, tmp_path, rows: list[dict], **options):
    arguments = qa.QuestionAnsweringDataArguments(
        validation_file=write_rows(tmp_path / "rows.jsonl", rows),
        version_2_with_negative=True,
        **{**CUTS, **options},
    )
    return arguments, qa.load_questions(arguments)["validation"]


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_windows(qa, tmp_path, request, kind):
    tokenizer = request.getfixturevalue("tokenizer" if kind == "words" else "byte_tokenizer")
    questions = make_questions(30, seed=3, unanswerable=0.2)
    if kind == "bytes":  # a character that takes several tokens
        context = "The ship was 🚢 \u00e9t\u00e9, and 🚢 sank."
        answers = {"text": ["🚢 sank."], "answer_start": [context.rindex("🚢")]}
        questions.append({"id": "ship", "question": "what?", "context": context, "answers": answers})
    arguments, rows = load(qa, tmp_path, questions, max_seq_length=50 if kind == "bytes" else 32)
    windows = qa.make_windows(rows, tokenizer, arguments, longest=45)
    length = min(arguments.max_seq_length, 45)
    assert len(windows) > 2 * len(rows)
    labelled, covered = set(), {index: set() for index in range(len(rows))}
    previous = None
    for window in windows:
        row = rows[window["question_index"]]
        context, offsets = row["context"], window["offsets"]
        assert len(window["input_ids"]) == len(offsets) <= length
        inside = [index for index, (start, _) in enumerate(offsets) if start >= 0]
        assert inside == list(range(inside[0], inside[-1] + 1)) and offsets[0] == [-1, -1]
        low, high = offsets[inside[0]][0], offsets[inside[-1]][1]
        covered[window["question_index"]].update(range(low, high))
        if previous is not None and previous["question_index"] == window["question_index"]:
            shared = [offset for offset in previous["offsets"] if offset in offsets and offset[0] >= 0]
            assert len({tuple(offset) for offset in shared}) >= 1
            assert len(shared) == arguments.doc_stride or kind == "bytes"  # bytes of a character are alike
        previous = window
        start, end = window["start_positions"], window["end_positions"]
        held = False
        if row["answers"]["text"]:
            begin = row["answers"]["answer_start"][0]
            held = low <= begin and begin + len(row["answers"]["text"][0]) <= high
        if held:
            assert context[offsets[start][0] : offsets[end][1]] == row["answers"]["text"][0]
            labelled.add(row["id"])
        else:
            assert start == end == 0
    for index, row in enumerate(rows):
        assert all(place in covered[index] or char.isspace() for place, char in enumerate(row["context"]))
    # Answers are shorter than what neighbours share, so that none falls between two windows.
    if kind == "words":
        assert labelled == {row["id"] for row in rows if row["answers"]["text"]}


def test_a_question_that_leaves_no_room(qa, tokenizer, tmp_path):
    rows = [{**GOOD, "question": "cat " * 40}]
    arguments, rows = load(qa, tmp_path, rows)
    with pytest.raises(
        ValueError, match=r"A question of \d+ tokens leaves no room for its context in windows of 32; "
    ):
        qa.make_windows(rows, tokenizer, arguments, longest=40)


# ---- answers --------------------------------------------------------------------------------------------------------


def by_brute_force(row: dict, windows: list[dict], starts, ends, arguments) -> tuple[str, float]:
    """Every span of every window; and how much higher than the best no answer scores."""
    best, nothing = (-np.inf, ""), np.inf
    for window, start_scores, end_scores in zip(windows, starts, ends, strict=True):
        inside = [index for index, (start, _) in enumerate(window["offsets"]) if start >= 0]
        nothing = min(nothing, start_scores[0] + end_scores[0])
        for first in sorted(inside, key=lambda index: -start_scores[index])[: arguments.n_best_size]:
            for last in sorted(inside, key=lambda index: -end_scores[index])[: arguments.n_best_size]:
                if 0 <= last - first < arguments.max_answer_length:
                    text = row["context"][window["offsets"][first][0] : window["offsets"][last][1]]
                    best = max(best, (start_scores[first] + end_scores[last], text), key=lambda found: found[0])
    return best[1], nothing - best[0]


@pytest.mark.parametrize("options", [{"n_best_size": 50}, {"n_best_size": 3}, {"max_answer_length": 2}])
@pytest.mark.parametrize("negative", [False, True])
def test_the_best_answers(qa, tokenizer, tmp_path, options, negative):
    arguments, rows = load(qa, tmp_path, make_questions(8, seed=4), **options)
    arguments.version_2_with_negative = negative
    windows = qa.make_windows(rows, tokenizer, arguments, longest=40)
    generator = np.random.default_rng(0)
    # Padding scores highest, and must not count.
    starts, ends = (generator.normal(size=(len(windows), 36)).astype(np.float32) for _ in range(2))
    starts[:, 32:] = ends[:, 32:] = 50
    expected = []
    for index, row in enumerate(rows):
        own = [place for place, origin in enumerate(windows["question_index"]) if origin == index]
        expected.append(by_brute_force(row, [windows[place] for place in own], starts[own], ends[own], arguments))
    arguments.null_score_diff_threshold = float(np.median([difference for _, difference in expected]))
    found = qa.find_answers(rows, windows, (starts, ends), arguments)
    assert [answer["id"] for answer in found] == list(rows["id"])
    for (text, difference), answer in zip(expected, found, strict=True):
        if negative:
            assert answer["no_answer_probability"] == pytest.approx(1 / (1 + np.exp(-difference)), rel=1e-4)
            text = "" if difference > arguments.null_score_diff_threshold else text
        assert answer["prediction_text"] == text
    assert sum(not answer["prediction_text"] for answer in found) == (4 if negative else 0)
    with pytest.raises(ValueError, match=f"1 predictions for {len(windows)} windows"):
        qa.find_answers(rows, windows, (starts[:1], ends[:1]), arguments)


def test_answers_without_a_span(qa, tokenizer, tmp_path):
    arguments, rows = load(qa, tmp_path, [GOOD | {"context": " ", "answers": {"text": [], "answer_start": []}}])
    windows = qa.make_windows(rows, tokenizer, arguments, longest=40)
    scores = np.zeros((len(windows), 32), dtype=np.float32)
    (answer,) = qa.find_answers(rows, windows, (scores, scores), arguments)
    assert answer == {"id": "a", "prediction_text": "", "no_answer_probability": pytest.approx(1)}


# ---- the script -----------------------------------------------------------------------------------------------------


def official(folder: Path, questions: list[dict], name: str = "squad") -> dict[str, float]:
    """What the metric says of the answers that were written."""
    answers = read_json(folder / "predictions.json")
    assert list(answers) == [row["id"] for row in questions]
    predictions = [{"id": name, "prediction_text": text} for name, text in answers.items()]
    references = [{"id": row["id"], "answers": row["answers"]} for row in questions]
    metric = evaluate.load(str(METRIC), name, keep_in_memory=True)
    return metric.compute(predictions=predictions, references=references)


def test_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--sharcs", "--doc_stride", "--version_2_with_negative", "--width_multipliers", "--evaluate_only"):
        assert flag in text


def test_a_plain_encoder(run, script, tmp_path):
    metrics = run(eval_strategy="epoch")
    output = tmp_path / "out"
    assert folders(output) and not (output / "curve").exists()
    model = AutoModelForQuestionAnswering.from_pretrained(output)
    assert type(model) is BertForQuestionAnswering
    expected = official(output, make_questions(10, seed=1))
    assert {name: metrics[f"eval_{name}"] for name in ("f1", "exact_match")} == pytest.approx(
        {name: expected[name] for name in ("f1", "exact_match")}
    )
    saved = read_json(output / "eval_results.json")
    assert not any(name.endswith(("_runtime", "_per_second")) for name in saved)  # given again, it writes the same
    assert saved["eval_f1"] == metrics["eval_f1"]
    history = read_json(output / "trainer_state.json")["log_history"]
    assert [entry["epoch"] for entry in history if "eval_f1" in entry] == [1, 2, 3]
    # The same command again trains nothing; evaluating alone gives the same, and saves no other copy.
    weights, answers = saved_weights(output), (output / "predictions.json").read_bytes()
    assert run(eval_strategy="epoch")["eval_f1"] == metrics["eval_f1"]
    assert largest_change(weights, saved_weights(output)) == 0
    assert (output / "predictions.json").read_bytes() == answers
    again = run(
        evaluate_only=True, train_file=None, model_name_or_path=str(output), output_dir=str(tmp_path / "measured")
    )
    assert again["eval_f1"] == metrics["eval_f1"] and again["eval_loss"] == pytest.approx(metrics["eval_loss"])
    assert not (tmp_path / "measured" / "model.safetensors").exists()


def test_a_mos_subnet(run, tokenizer, tmp_path):
    supernet = tiny_supernet("question-answering", vocab_size=len(tokenizer))
    subnet = supernet.extract_subnet(supernet.search_space.sample(seed=3))
    subnet.save_pretrained(tmp_path / "subnet")
    tokenizer.save_pretrained(tmp_path / "subnet")
    metrics = run(model_name_or_path=str(tmp_path / "subnet"), num_train_epochs=1)
    assert metrics["eval_f1"] == pytest.approx(official(tmp_path / "out", make_questions(10, seed=1))["f1"])
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert type(model) is MosSubnetForQuestionAnswering
    assert largest_change(model.state_dict(), subnet.state_dict()) > 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "question-answering" and f"{metrics['eval_f1']:.4f}" in card.text


@pytest.mark.parametrize("routed", [False, True])
def test_positions_of_a_roberta(run, byte_tokenizer, tmp_path, routed):
    # Of 40 positions the first two are taken, by padding and what comes before it.
    folder = save_backbone(tmp_path / "roberta", byte_tokenizer, "roberta", "question-answering")
    options = {**ROUTED, "num_train_epochs": 2} if routed else {"num_train_epochs": 1}
    metrics = run(model_name_or_path=str(folder), max_seq_length=60, **options)
    assert metrics["eval_f1"] == pytest.approx(official(tmp_path / "out", make_questions(10, seed=1))["f1"])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(byte_tokenizer)


def test_a_routed_encoder(run, tmp_path):
    options = {**ROUTED, "compute_budgets": [0.9, 0.05], "compute_budget": 0.8, "save_predictions": True}
    metrics = run(**options)
    output = tmp_path / "out"
    model = AutoModelForQuestionAnswering.from_pretrained(output).eval()
    assert type(model) is SharcsForQuestionAnswering
    assert model.config.router_price == model.set_compute_budget(0.8)
    assert metrics["eval_budgets_out_of_reach"] == [0.05] and metrics["eval_budget_0.9_f1"] >= 0
    questions = make_questions(10, seed=1)
    assert metrics["eval_f1"] == pytest.approx(official(output, questions)["f1"])
    points = read_json(output / "curve" / "compute_curve.json")
    assert points[0]["f1"] == pytest.approx(metrics["eval_width_0.25_f1"])
    assert points[-1]["f1"] == pytest.approx(metrics["eval_width_1_f1"])
    # What really routed inference answers.
    tokenizer = AutoTokenizer.from_pretrained(output)
    card = ModelCard.load(output / "README.md")
    assert training_of(card)["trainer"] == "SharcsTrainer" and table_of(card, "spent") and "![" not in card.text
    answers, table, taken = read_json(output / "predictions.json"), read_table(output / "predictions.tsv"), []
    model.sharcs.register_forward_hook(lambda encoder, inputs, outputs: taken.extend(outputs.width_indices.tolist()))
    every = set()
    for row, written in zip(questions, table, strict=True):
        taken.clear()
        (found,) = model.predict_spans(tokenizer, row["question"].lstrip(), row["context"], max_length=32, stride=8)
        assert answers[row["id"]] == found["answer"]
        assert (written["id"], written["prediction"]) == (row["id"], found["answer"])
        assert written["widths"].split() == [("0.25", "1")[index] for index in taken]
        every.update(taken)
    assert every == {0, 1}
    # Evaluating alone measures the same; the folder stays as it is.
    before = contents(output)
    again = run(
        **{**options, "compute_budget": None},
        evaluate_only=True,
        train_file=None,
        model_name_or_path=str(output),
        output_dir=str(tmp_path / "measured"),
    )
    assert again.pop("eval_budgets_out_of_reach") == metrics.pop("eval_budgets_out_of_reach")
    assert again == pytest.approx(metrics) and contents(output) == before
    assert read_json(tmp_path / "measured" / "predictions.json") == answers
    with pytest.raises(ValueError, match="is a routed encoder; add --sharcs"):
        run(model_name_or_path=str(output))


def test_calibration_on_contexts_of_their_own(run, qa, settings, tmp_path, caplog):
    run(**ROUTED, calibration_split_percentage=30, num_train_epochs=2)
    calibrated = read_json(tmp_path / "out" / "config.json")["calibration"]["rows"]
    assert f" {calibrated} calibration windows" in caplog.text
    # A quarter more questions about the same contexts: they go where their context goes.
    rows = make_questions(12)
    rows += [{**row, "id": f"again-{row['id']}"} for row in rows[:3]]
    arguments = qa.QuestionAnsweringDataArguments(
        train_file=write_rows(tmp_path / "rows.jsonl", rows), calibration_split_percentage=30
    )
    splits = qa.load_questions(arguments, seed=3)
    assert sorted([*splits["train"]["id"], *splits["calibration"]["id"]]) == sorted(row["id"] for row in rows)
    contexts = [set(splits[name]["context"]) for name in ("train", "calibration")]
    assert not contexts[0] & contexts[1] and len(contexts[1]) == 4
    again, other = (set(qa.load_questions(arguments, seed=seed)["calibration"]["context"]) for seed in (3, 4))
    assert again == contexts[1] != other
    write_rows(tmp_path / "rows.jsonl", rows[:1])
    with pytest.raises(ValueError, match="All training questions are about one context, of which no part can be"):
        qa.load_questions(arguments)
    for percentage in (0, 100):
        with pytest.raises(ValueError, match=f"calibration_split_percentage={percentage} must lie between 0 and 100"):
            qa.QuestionAnsweringDataArguments(train_file="a.json", calibration_split_percentage=percentage)


def test_plain_runs_have_ordinary_defaults(run, script, settings):
    flags = to_flags({**settings, "output_dir": "x", "num_train_epochs": None})
    *_, plain = script.read_arguments(flags)
    assert type(plain) is script.DistillationTrainingArguments and plain.num_train_epochs == 3
    *_, routed = script.read_arguments([*flags, "--sharcs"])
    assert type(routed) is script.SharcsTrainingArguments and routed.num_train_epochs == 10


def test_a_supernet_is_no_model_to_fine_tune(run, tokenizer, tmp_path):
    tiny_supernet("question-answering", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "supernet")
    tokenizer.save_pretrained(tmp_path / "supernet")
    with pytest.raises(ValueError, match="supernet' is a supernet; take a subnet out with `extract_subnet` first"):
        run(model_name_or_path=str(tmp_path / "supernet"))


def test_a_stopped_run_goes_on_with_questions_that_have_no_answer(run, script, tmp_path, monkeypatch):
    questions = make_questions(10, seed=6, unanswerable=0.4)
    options = {
        **ROUTED,
        "train_file": write_rows(tmp_path / "train.jsonl", make_questions(10, seed=5, unanswerable=0.4)),
        "validation_file": write_rows(tmp_path / "validation.jsonl", questions),
        "version_2_with_negative": True,
    }
    whole = run(**options, output_dir=str(tmp_path / "whole"))
    assert {"eval_HasAns_f1", "eval_NoAns_f1", "eval_best_f1"} <= whole.keys()
    assert whole["eval_f1"] == pytest.approx(official(tmp_path / "whole", questions, "squad_v2")["f1"])
    original, started = script.SharcsTrainer._begin_epoch, []

    def stopped(self, epoch):
        started.append(epoch)
        if len(started) == 3:
            raise KeyboardInterrupt
        original(self, epoch)

    monkeypatch.setattr(script.SharcsTrainer, "_begin_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(**options)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert run(**options) == whole
    assert started == [0, 1, 2, 2]
    assert largest_change(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "whole")) == 0


@pytest.mark.parametrize(
    "name, value",
    [
        ("router_layer", 2),
        ("hardness_window", 1),
        ("compute_budget", 0.5),
        ("calibration_split_percentage", 5),
    ],
)
def test_options_of_routed_encoders(run, name, value):
    with pytest.raises(ValueError, match=f"--{name} is an option of routed encoders; add --sharcs, or leave it out"):
        run(**{name: value})


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"logits_weight": 1.0},
            "logits_weight says how to learn from a teacher, but there is none: give one with --t",
        ),
        (
            {"save_predictions": True},
            "--save_predictions is an option of routed encoders; add --sharcs, or leave it out",
        ),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor=0.1 is for classes, and answers are places"),
        ({"train_file": None}, "no questions to train on; give train_file, or add --evaluate_only"),
        ({"validation_file": None, "evaluate_only": True}, "no questions to evaluate on; give validation_file"),
        ({"sharcs": True, "evaluate_only": True}, "--evaluate_only measures a SHARCS model, .* is a 'bert' model"),
        ({"sharcs": True, "router_layer": 1}, "hardness_window=3 needs more than 3 epochs, the run has 3"),
    ],
)
def test_messages(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_checkpoint_of_another_kind_of_run(run, tmp_path):
    run(num_train_epochs=1)
    before = contents(tmp_path / "out")
    with pytest.raises(
        ValueError, match="checkpoint-.* of another run: its model_type is 'bert', this run's is 'shar"
    ):
        run(**ROUTED)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "options, logged",
    [
        ({"hard_label_weight": 0.0, "logits_weight": 1.0}, {"logits_loss"}),
        ({"hidden_states_weight": 0.5}, {"hard_label_loss", "logits_loss", "hidden_states_loss"}),
        ({"attentions_weight": 0.5, "attn_implementation": "eager"}, {"hard_label_loss", "attentions_loss"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_plain_student_learns_from_a_teacher(run, settings, tokenizer, tmp_path, options, logged):
    teacher = save_backbone(tmp_path / "teacher", tokenizer, head="question-answering", seed=5)
    run(**options, teacher_name_or_path=str(teacher), num_train_epochs=2)
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert logged <= history[0].keys()
    run(num_train_epochs=2, output_dir=str(tmp_path / "alone"))
    assert largest_change(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "alone")) > 1e-4


@pytest.mark.parametrize("routed", [False, True])
def test_a_teacher_that_reads_other_tokens(run, tmp_path, routed):
    other = save_backbone(tmp_path / "other", make_tokenizer(["quite other words"]), head="question-answering")
    with pytest.raises(ValueError, match="have different tokenizers; choose a teacher that was fine-tuned with the"):
        run(**(ROUTED | {"distillation_weight": 1.0} if routed else {}), teacher_name_or_path=str(other))


@pytest.mark.parametrize("routed", [False, True])
def test_a_teacher_that_was_not_fine_tuned(run, tokenizer, tmp_path, routed):
    teacher = save_backbone(tmp_path / "pre-trained", tokenizer, head="masked-lm")
    with pytest.raises(ValueError, match="pre-trained' has no trained qa_outputs.bias, .*: fine-tune it on questions"):
        run(**(ROUTED | {"distillation_weight": 1.0} if routed else {}), teacher_name_or_path=str(teacher))


def test_a_teacher(run, backbone, tmp_path):
    run(**ROUTED, teacher_name_or_path=str(backbone), distillation_weight=1.0, num_train_epochs=2)
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert "width_1_distillation" in history[0]
