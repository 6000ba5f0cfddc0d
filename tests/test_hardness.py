# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Scores against naive formulas, intervals of scores, router targets, and the history of scores."""

import json
import math
import re

import pytest
import torch

from testing_utils import assert_close
from trainers.hardness import (
    HardnessHistory,
    agreement_targets,
    interval_targets,
    predicted_targets,
    read_intervals,
    sample_confidence,
    sample_entropy,
)


TWO, THREE, FOUR = [0.25, 1.0], [0.25, 0.5, 1.0], [0.25, 0.5, 0.75, 1.0]
PUBLISHED = "buckets:\n  confidence_threshs:\n    0.25: [0.2, 1.0]\n    1.0: [0.0, 0.2]\n"


def random_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distribution(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def entropy(probabilities: list[float]) -> float:
    return -sum(value * math.log(value) for value in probabilities if value > 0)


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_single_label_scores():
    logits, labels = random_logits(5, 3), torch.tensor([0, 2, 1, 1, 0])
    naive = [distribution(row) for row in logits.tolist()]
    expected = [row[label] for row, label in zip(naive, labels.tolist(), strict=True)]
    for shaped in (labels, labels.unsqueeze(1)):
        found = sample_confidence({"logits": logits}, {"labels": shaped}, "single_label_classification")
        assert_close(found, torch.tensor(expected))
    found = sample_entropy({"logits": logits}, {"labels": labels}, "single_label_classification")
    assert_close(found, torch.tensor([entropy(row) for row in naive]))


def test_multi_label_scores():
    logits, labels = random_logits(4, 3), torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]])
    right = [
        [sigmoid(score) if label else 1 - sigmoid(score) for score, label in zip(row, goal, strict=True)]
        for row, goal in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    for given in (labels, labels.float()):
        found = sample_confidence({"logits": logits}, {"labels": given}, "multi_label_classification")
        assert_close(found, torch.tensor(right).mean(dim=1))
    naive = [[entropy([sigmoid(score), 1 - sigmoid(score)]) for score in row] for row in logits.tolist()]
    found = sample_entropy({"logits": logits}, {"labels": labels}, "multi_label_classification")
    assert_close(found, torch.tensor(naive).mean(dim=1))


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_regression_scores(scale):
    logits, labels = random_logits(4, 1), torch.tensor([0.0, 1.0, -2.0, 3.0])
    expected = [
        math.exp(-abs(score - label) / scale) for (score,), label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    for shaped in (labels, labels.unsqueeze(1)):
        found = sample_confidence({"logits": logits}, {"labels": shaped}, "regression", scale)
        assert_close(found, torch.tensor(expected))
    several, goals = random_logits(4, 3), random_logits(4, 3, seed=1)
    found = sample_confidence({"logits": several}, {"labels": goals}, "regression", scale)
    assert_close(found, torch.exp(-(several - goals).abs().mean(dim=1) / scale))
    with pytest.raises(ValueError, match="predicts no distribution; use hardness_signal='confidence'"):
        sample_entropy({"logits": logits}, {"labels": labels}, "regression")


def test_token_scores_count_labelled_tokens_only():
    logits = random_logits(4, 5, 3)
    labels = torch.tensor([[-100, 1, 2, -100, 0], [0, 0, 0, 0, 0], [2, -100, -100, -100, -100], [-100] * 5])
    confidences, entropies = [], []
    for row, goals in zip(logits.tolist(), labels.tolist(), strict=True):
        tokens = [(distribution(scores), goal) for scores, goal in zip(row, goals, strict=True) if goal != -100]
        # A row in which nothing is asked is as easy as it gets.
        confidences.append(sum(found[goal] for found, goal in tokens) / len(tokens) if tokens else 1.0)
        entropies.append(sum(entropy(found) for found, _ in tokens) / len(tokens) if tokens else 0.0)
    found = sample_confidence({"logits": logits}, {"labels": labels}, "token_classification")
    assert_close(found, torch.tensor(confidences))
    found = sample_entropy({"logits": logits}, {"labels": labels}, "token_classification")
    assert_close(found, torch.tensor(entropies))


def test_span_scores():
    outputs = {"start_logits": random_logits(6, 7), "end_logits": random_logits(6, 7, seed=1)}
    starts, ends = torch.tensor([0, 3, 6, 2, 7, -1]), torch.tensor([4, 3, 6, 9, 7, 2])
    naive = {name: [distribution(row) for row in scores.tolist()] for name, scores in outputs.items()}
    expected = []
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        # An answer that was cut off cannot be found.
        inside = 0 <= start < 7 and 0 <= end < 7
        expected.append(naive["start_logits"][row][start] * naive["end_logits"][row][end] if inside else 0.0)
    targets = {"start_positions": starts, "end_positions": ends}
    found = sample_confidence(outputs, targets, "question_answering")
    assert_close(found, torch.tensor(expected))
    assert found[3:].tolist() == [0, 0, 0]
    mean = [
        (entropy(start) + entropy(end)) / 2
        for start, end in zip(naive["start_logits"], naive["end_logits"], strict=True)
    ]
    assert_close(sample_entropy(outputs, targets, "question_answering"), torch.tensor(mean))


EXTREMES = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0], [1e30, -1e30, 0.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certain_predictions_have_finite_scores(dtype):
    first = torch.zeros(3, dtype=torch.long)
    cases = {
        "single_label_classification": ({"logits": EXTREMES}, {"labels": first}),
        "multi_label_classification": ({"logits": EXTREMES}, {"labels": torch.tensor([[1.0, 0, 0]] * 3)}),
        "token_classification": ({"logits": EXTREMES.unsqueeze(1)}, {"labels": first.unsqueeze(1)}),
        "question_answering": (
            {"start_logits": EXTREMES, "end_logits": EXTREMES},
            {"start_positions": first, "end_positions": first},
        ),
    }
    for problem, (outputs, targets) in cases.items():
        outputs = {name: logits.to(dtype) for name, logits in outputs.items()}
        confidence = sample_confidence(outputs, targets, problem)
        assert confidence.dtype == torch.float32 and confidence.isfinite().all()
        if problem != "multi_label_classification":
            assert confidence.tolist() == [1.0, 0.0, 1.0]  # exactly one, and underflow
        uncertainty = sample_entropy(outputs, targets, problem)
        assert uncertainty.isfinite().all() and (uncertainty >= 0).all()
        if problem != "multi_label_classification":
            assert uncertainty.tolist() == [0, 0, 0]
    error = {"logits": torch.tensor([[1e30], [2.0]], dtype=dtype)}
    found = sample_confidence(error, {"labels": torch.tensor([0.0, 2.0])}, "regression")
    assert found.tolist() == [0.0, 1.0]


def test_answers_in_the_form_of_targets():
    logits = torch.tensor([[0.1, 2.0, -1.0], [3.0, -2.0, -0.5]])
    found = predicted_targets({"logits": logits}, {"labels": torch.zeros(2)}, "single_label_classification")
    assert found["labels"].tolist() == [1, 0]
    found = predicted_targets({"logits": logits}, {"labels": torch.zeros(2, 3)}, "multi_label_classification")
    assert found["labels"].tolist() == [[1, 1, 0], [1, 0, 0]]
    found = predicted_targets({"logits": logits[:, :1]}, {"labels": torch.zeros(2)}, "regression")
    assert_close(found["labels"], logits[:, 0])
    tokens = predicted_targets(
        {"logits": logits.unsqueeze(0)}, {"labels": torch.tensor([[-100, 2]])}, "token_classification"
    )
    assert tokens["labels"].tolist() == [[-100, 0]]
    spans = predicted_targets({"start_logits": logits, "end_logits": -logits}, {}, "question_answering")
    assert spans["start_positions"].tolist() == [1, 0] and spans["end_positions"].tolist() == [2, 1]


# ---- intervals ------------------------------------------------------------------------------------------------------


def read(tmp_path, text: str, widths=TWO, **options):
    path = tmp_path / "intervals.yaml"
    path.write_text(text, encoding="utf-8")
    return read_intervals(str(path), widths, **options)


def test_published_file(tmp_path):
    assert read(tmp_path, PUBLISHED) == [(0.2, 1.0), (0.0, 0.2)]
    # The order of the file does not matter, neither does the level that the map stands on.
    assert read(tmp_path, "1.0: [0, 0.2]\n0.25: [0.2, 1]\n") == [(0.2, 1.0), (0.0, 0.2)]
    assert read(tmp_path, "buckets: {0.25: [0.2, 1], 1: [0, 0.2]}") == [(0.2, 1.0), (0.0, 0.2)]


@pytest.mark.parametrize("third", ['"1/3"', "1/3", '" 1/3 "', "0.333", "0.3333333333"])
def test_fractions(tmp_path, third):
    found = read(tmp_path, f'buckets: {{confidence_threshs: {{{third}: [0.4, 1], "1.0": [0, 0.4]}}}}', [1 / 3, 1.0])
    assert found == [(0.4, 1.0), (0.0, 0.4)]


def test_json_and_mappings(tmp_path):
    # JSON writes small numbers in a way that YAML reads as text.
    given = {"buckets": {"confidence_threshs": {"0.25": [1e-5, 1.0], "1.0": [0.0, 1e-5]}}}
    assert "1e-05" in json.dumps(given)
    assert read(tmp_path, json.dumps(given)) == [(1e-5, 1.0), (0.0, 1e-5)]
    assert read(tmp_path, "0.25: [1/3, 1]\n1: [0, 1/3]") == [(pytest.approx(1 / 3), 1), (0, pytest.approx(1 / 3))]
    assert read_intervals({0.25: (0.3, 1), 1.0: (0, 0.3)}, TWO) == [(0.3, 1.0), (0.0, 0.3)]


@pytest.mark.parametrize("given", [0.3, "0.3", " 0.3"])
def test_a_number_is_shorthand(given, tmp_path):
    assert read_intervals(given, TWO) == [(0.3, 1.0), (0.0, 0.3)]
    three, four = read_intervals(given, THREE), read_intervals(given, FOUR)
    assert_close(torch.tensor(three), torch.tensor([[0.3, 1.0], [0.15, 0.3], [0.0, 0.15]]))
    assert_close(torch.tensor(four), torch.tensor([[0.3, 1.0], [0.2, 0.3], [0.1, 0.2], [0.0, 0.1]]))
    assert read(tmp_path, str(given)) == [(0.3, 1.0), (0.0, 0.3)]  # a file that holds nothing else


def test_a_number_of_entropy():
    highest = math.log(3)
    found = [read_intervals(0.5, widths, highest, high_is_hard=True) for widths in (TWO, THREE, FOUR)]
    step = highest - 0.5
    assert found[0] == [(0.0, 0.5), (0.5, highest)]
    assert_close(torch.tensor(found[1]), torch.tensor([[0, 0.5], [0.5, 0.5 + step / 2], [0.5 + step / 2, highest]]))
    assert_close(
        torch.tensor(found[2]),
        torch.tensor(
            [[0, 0.5], [0.5, 0.5 + step / 3], [0.5 + step / 3, 0.5 + 2 * step / 3], [highest - step / 3, highest]]
        ),
    )
    # The narrowest takes the certain rows.
    targets = interval_targets(torch.tensor([[0.1], [1.09]]), found[2])
    assert targets.tolist() == [[True, False, False, False], [False, False, False, True]]


def test_published_entropy_intervals_may_reach_beyond_the_highest(tmp_path):
    found = read(tmp_path, "0.25: [0, 0.5]\n1.0: [0.5, 2.0]", highest=math.log(2), high_is_hard=True)
    assert found == [(0.0, 0.5), (0.5, 2.0)]


@pytest.mark.parametrize(
    "text",
    [
        "0.25: [0.4, 1]\n1.0: [0, 0.7]",
        "0.25: [0.9, 1]\n1.0: [0, 1]",
    ],
)
def test_overlaps_are_accepted(tmp_path, text):
    assert len(read(tmp_path, text)) == 2


@pytest.mark.parametrize(
    "text, widths, message",
    [
        ("0.25: [0.5, 1]\n1.0: [0, 0.3]", TWO, "a gap: no width handles scores between 0.3 and 0.5; widen .* 0 to 1"),
        ("0.25: [0.5, 0.9]\n1.0: [0, 0.5]", TWO, "leave a gap: no width handles scores between 0.9 and 1"),
        ("0.25: [0.5, 1]\n1.0: [0.1, 0.5]", TWO, "leave a gap: no width handles scores between 0 and 0.1"),
        ("0.25: [0.5, 1]\n0.5: [0, 0.5]", TWO, r"name the width 0.5, which .* not have; its widths are \[0.25, 1.0\]"),
        ("0.25: [0, 1]", TWO, r"say nothing about the width 1; give each of the model's widths \[0.25, 1.0\] its"),
        ("0.25: [0, 1]\n1: [0, 1]", THREE, "say nothing about the width 0.5"),
        ("", TWO, r"intervals.yaml is empty; it needs a line such as `0.25: \[0.2, 1.0\]` a width"),
        ("buckets: {confidence_threshs: {}}", TWO, "is empty"),
        ("buckets: [", TWO, r"intervals.yaml is no YAML: while parsing"),
        ("- 0.25", TWO, r"must map each of the widths \[0.25, 1.0\] to \[low, high\], got \[0.25\]"),
        ("0.25: [1, 0.2]\n1.0: [0, 0.2]", TWO, r"the width 0.25 \[1, 0.2\]; it needs 0 <= low < high"),
        ("0.25: [0.2, 0.2]\n1.0: [0, 0.2]", TWO, r"the width 0.25 \[0.2, 0.2\]; it needs 0 <= low < high"),
        ("0.25: [-0.1, 1]\n1.0: [0, 0.2]", TWO, r"the width 0.25 \[-0.1, 1\]; it needs 0 <= low < high"),
        ("0.25: 0.2\n1.0: [0, 0.2]", TWO, r"give the width 0.25 0.2; write \[low, high\]"),
        ("0.25: '01'\n1.0: [0, 0.2]", TWO, r"give the width 0.25 '01'; write \[low, high\]"),
        ("0.25: [0.2]\n1.0: [0, 0.2]", TWO, r"give the width 0.25 \[0.2\]; write \[low, high\]"),
        ("0.25: [low, 1]\n1.0: [0, 0.2]", TWO, r"give the width 0.25 \['low', 1\]; write \[low, high\]"),
        ("0.25: [0.2, .nan]\n1.0: [0, 0.2]", TWO, r"give the width 0.25 \[0.2, nan\]; write \[low, high\]"),
        ("0.25: [0.2, .inf]\n1.0: [0, 0.2]", TWO, r"give the width 0.25 \[0.2, inf\]; write \[low, high\]"),
        ("narrow: [0.2, 1]\n1.0: [0, 0.2]", TWO, "name the width 'narrow', which is no number; write 0.25 or 1/3"),
        ("1/0: [0.2, 1]\n1.0: [0, 0.2]", TWO, "name the width '1/0', which is no number"),
        ("0.25: [0.2, 1]\n'0.25': [0.2, 1]\n1.0: [0, 0.2]", TWO, "give the width 0.25 twice; keep one"),
    ],
)
def test_files_that_make_no_sense_have_a_sentence(tmp_path, text, widths, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, widths)


def test_other_sources_that_make_no_sense_have_a_sentence(tmp_path):
    for given in (0, 1, "1.5", -0.1, "3/2", math.nan):
        with pytest.raises(ValueError, match="threshold of hardness must lie between 0 and 1, got"):
            read_intervals(given, TWO)
    with pytest.raises(ValueError, match="between 0 and 0.6931, got 0.7"):
        read_intervals(0.7, TWO, math.log(2), high_is_hard=True)
    for missing in ("intervals.yaml", str(tmp_path), "1/0", "nan"):
        with pytest.raises(
            ValueError, match=f"{re.escape(missing)}' is neither a number nor a file of intervals; give"
        ):
            read_intervals(missing, TWO)
    with pytest.raises(ValueError, match=r"The intervals must map each of the widths \[0.25, 1.0\]"):
        read_intervals({}, TWO)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match="is no YAML"):
        read_intervals(str(tmp_path / "binary.yaml"), TWO)


# ---- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "intervals, scores, expected",
    [
        ("0.2", (0.9, 0.3, 0.5), [1, 0]),
        ("0.2", (0.1, 0.15, 0.05), [0, 1]),
        ("0.2", (0.9, 0.1, 0.5), [0, 1]),  # no interval holds all: the widest
        ("0.2", (1.0, 1.0, 1.0), [1, 0]),  # the published rule misses probabilities of exactly one
        ("0.2", (1.0 + 1e-6, 1.0, 0.2), [1, 0]),
        ("0.2", (0.2, 0.2, 0.2), [1, 0]),
        ("0.2", (0.0, 0.0, 0.0), [0, 1]),
        ({0.25: [0.4, 1], 1: [0, 0.7]}, (0.5, 0.6, 0.45), [1, 1]),
        ({0.25: [0.4, 1], 1: [0, 0.7]}, (0.9, 0.8, 0.95), [1, 0]),
        ({0.25: [0.4, 1], 1: [0, 0.7]}, (0.9, 0.5, 0.2), [0, 1]),
        ({0.25: [0.4, 1], 1: [0, 0.7]}, (0.7, 0.7, 0.7), [1, 0]),  # upper ends are open below the highest
        ({0.25: [0.9, 1], 1: [0, 1]}, (1.0, 1.0, 1.0), [1, 1]),
    ],
)
def test_published_targets(intervals, scores, expected):
    found = interval_targets(torch.tensor([scores]), read_intervals(intervals, TWO))
    assert found.dtype == torch.bool and found.int().tolist() == [expected]


def test_targets_of_three_widths():
    intervals = read_intervals({0.25: [0.7, 1], 0.5: [0.4, 0.9], 1.0: [0, 0.5]}, THREE)
    scores = torch.tensor([[0.8, 0.85], [0.95, 0.9], [0.45, 0.42], [0.5, 0.65], [0.1, 0.9], [0.3, 0.2]])
    found = interval_targets(scores, intervals).int().tolist()
    assert found == [[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_targets_of_random_scores_follow_the_published_rule():
    intervals = read_intervals({0.25: [0.7, 1], 0.5: [0.4, 0.9], 0.75: [0.2, 0.7], 1.0: [0, 0.5]}, FOUR)
    scores = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    for row, found in zip(scores.tolist(), interval_targets(scores, intervals).int().tolist(), strict=True):
        expected = [int(all(low <= score < high for score in row)) for low, high in intervals]
        assert found == (expected if any(expected) else [0, 0, 0, 1])


def test_agreement():
    intervals = read_intervals("0.6", THREE)  # lower ends 0.6, 0.3 and 0
    scores = torch.tensor(
        [
            [[0.9, 0.9, 0.9], [0.7, 0.8, 0.9]],
            [[0.9, 0.9, 0.9], [0.5, 0.8, 0.9]],
            [[0.1, 0.2, 0.9], [0.9, 0.9, 0.9]],
            [[0.9, 0.2, 0.9], [0.9, 0.9, 0.9]],  # widths are judged one by one
        ]
    )
    found = agreement_targets(scores, intervals)
    assert found.dtype == torch.bool
    assert found.int().tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 1]]
    # The widest may always answer, whatever its interval.
    overlap = [(0.3, 1.0), (0.3, 1.0), (0.95, 1.0)]
    assert agreement_targets(scores, overlap)[:, -1].all()


# ---- history --------------------------------------------------------------------------------------------------------


def places(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def test_history_keeps_the_score_of_the_last_place():
    history = HardnessHistory(4)
    # Twice in one call, in any order.
    history.record(places(0, 1, 0), torch.tensor([0.9, 0.5, 0.1]), places(5, 1, 3))
    assert_close(history.current[:2, 0], torch.tensor([0.9, 0.5]))
    # In later calls a higher place wins, a lower one does not.
    history.record(places(1, 0), torch.tensor([0.6, 0.2]), places(2, 4))
    assert_close(history.current[:2, 0], torch.tensor([0.9, 0.6]))
    # Nothing new at all, and no rows at all.
    history.record(places(1, 0), torch.tensor([0.0, 0.0]), places(0, 0))
    history.record(places(), torch.zeros(0), places())
    assert_close(history.current[:2, 0], torch.tensor([0.9, 0.6]))
    # Of a row that counts for nothing no score is kept.
    history.record(places(2), torch.tensor([0.3]), places(-1))
    assert history.current[2:].isnan().all() and history.places.tolist() == [5, 2, -1, -1]


def test_places_begin_anew_with_every_epoch():
    history = HardnessHistory(1)
    for score, place in ((0.5, 9), (0.25, 0)):
        history.record(places(0), torch.tensor([score]), places(place))
        history.finish_epoch()
    assert history.epochs[:, :, 0].tolist() == [[0.5, 0.25]]


def fill(history: HardnessHistory, values) -> None:
    values = torch.tensor(values)
    history.record(torch.arange(len(values)), values, torch.arange(len(values)))
    history.finish_epoch()


def test_window():
    history = HardnessHistory(2)
    assert history.num_epochs == 0 and history.window(1) is None
    for epoch in range(4):
        fill(history, [epoch / 10, epoch / 5])
        assert history.num_epochs == epoch + 1
        assert history.window(epoch + 2) is None
    assert_close(history.window(2)[..., 0], torch.tensor([[0.2, 0.3], [0.4, 0.6]]))
    assert history.window(4).shape == (2, 4, 1)


def test_several_scores():
    history = HardnessHistory(2, num_scores=3)
    fill(history, [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    assert_close(history.window(1), torch.tensor([[[0.1, 0.2, 0.3]], [[0.4, 0.5, 0.6]]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_an_epoch_without_finite_scores_is_an_error_and_changes_nothing(bad):
    history = HardnessHistory(3)
    fill(history, [0.1, 0.2, 0.3])
    history.record(places(0, 2), torch.tensor([0.5, 0.6]), places(0, 1))
    if bad is not None:
        history.record(places(1), torch.tensor([bad]), places(2))
    before = history.epochs.clone(), history.current.clone(), history.places.clone()
    message = (
        r"1 of 3 training samples have no finite score in epoch 1 \(the first one is sample 1\).*lower the learning"
    )
    with pytest.raises(ValueError, match=message):
        history.finish_epoch()
    for now, then in zip((history.epochs, history.current, history.places), before, strict=True):
        assert torch.equal(now.nan_to_num(-1), then.nan_to_num(-1))


@pytest.mark.parametrize("epochs", [0, 2])
def test_history_is_saved_in_the_middle_of_an_epoch(tmp_path, epochs):
    history = HardnessHistory(3, num_scores=2)
    for epoch in range(epochs):
        fill(history, [[epoch / 10, 0.2], [0.3, 0.4], [0.5, 0.6]])
    history.record(places(2, 0), torch.tensor([[0.5, 0.6], [0.7, 0.8]]), places(4, 1))
    path = tmp_path / "hardness.safetensors"
    history.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = HardnessHistory(3, num_scores=2)
    loaded.load(path)
    assert loaded.num_epochs == epochs and torch.equal(loaded.epochs, history.epochs)
    assert torch.equal(loaded.current.nan_to_num(-1), history.current.nan_to_num(-1))
    # Earlier places still do not win.
    loaded.record(places(2, 1), torch.tensor([[0.0, 0.0], [0.9, 0.9]]), places(3, 5))
    loaded.finish_epoch()
    assert_close(loaded.window(1)[:, 0], torch.tensor([[0.7, 0.8], [0.9, 0.9], [0.5, 0.6]]))


def test_histories_that_do_not_fit_have_a_sentence(tmp_path):
    path = tmp_path / "hardness.safetensors"
    history = HardnessHistory(3)
    message = "cannot be read .*; continue from an earlier checkpoint"
    with pytest.raises(ValueError, match="There is no hardness history .*; a checkpoint written with save_only_model"):
        history.load(path)
    fill(history, [0.1, 0.2, 0.3])
    history.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=message):
        history.load(path)
    assert history.num_epochs == 1
    path.write_bytes(whole)
    for other, numbers in ((HardnessHistory(4), "4 with 1"), (HardnessHistory(3, 2), "3 with 2")):
        with pytest.raises(
            ValueError, match=f"is about 3 samples with 1 scores each, this run has {numbers}; continue"
        ):
            other.load(path)
        assert other.num_epochs == 0
