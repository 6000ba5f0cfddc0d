# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Losses against second implementations in plain loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from testing_utils import assert_close
from trainers.losses import (
    attention_loss,
    hidden_state_loss,
    row_distillation_losses,
    row_hidden_state_losses,
    row_losses,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)


# Three rows of 5, 3 and 1 real tokens.
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def random_tensor(*shape: int, seed: int = 0, requires_grad: bool = False) -> torch.Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return tensor.requires_grad_(requires_grad)


def hidden_states(seed: int, layers: int = 2, width: int = 7) -> list[torch.Tensor]:
    return [3 * random_tensor(3, 5, width, seed=seed + layer) + 1 for layer in range(layers)]


def attentions(seed: int, layers: int = 2, heads: int = 4) -> list[torch.Tensor]:
    masked = (1 - MASK[:, None, None, :]) * -1e9
    return [(2 * random_tensor(3, heads, 5, 5, seed=seed + layer) + masked).softmax(-1) for layer in range(layers)]


def distribution(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


# ---- logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_soft_cross_entropy_is_that_of_a_loop(temperature):
    student, teacher = random_tensor(4, 11, seed=1), 2 * random_tensor(4, 11, seed=2)
    expected = []
    for own, given in zip(student.tolist(), teacher.tolist(), strict=True):
        targets = distribution([score / temperature for score in given])
        found = distribution([score / temperature for score in own])
        cross = -sum(target * math.log(value) for target, value in zip(targets, found, strict=True))
        expected.append(temperature**2 * cross)
    found = soft_cross_entropy(student, teacher, temperature)
    assert found.shape == (4,)
    assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_cross_entropy_is_least_where_the_distributions_agree(temperature):
    teacher = random_tensor(3, 6, seed=3)
    # Scores that differ by a constant are the same distribution.
    student = (teacher + 1.5).requires_grad_()
    least = soft_cross_entropy(student, teacher, temperature)
    least.sum().backward()
    assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6)
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy() * temperature**2
    assert_close(least.detach(), entropy)
    for seed in range(5):
        other = teacher + 0.3 * random_tensor(3, 6, seed=seed)
        assert (soft_cross_entropy(other, teacher, temperature) > least).all()


def test_temperature_keeps_the_scale_of_the_gradient():
    # The limit of a high temperature is the squared distance of centred scores, whatever the temperature.
    teacher = random_tensor(5, 9, seed=4)

    def gradient(temperature):
        student = random_tensor(5, 9, seed=5, requires_grad=True)
        soft_cross_entropy(student, teacher, temperature).sum().backward()
        return student.grad, student.detach()

    found, student = gradient(200.0)
    difference = student - teacher
    assert_close(found, (difference - difference.mean(-1, keepdim=True)) / 9, atol=3e-3, rtol=0)
    norms = [gradient(temperature)[0].norm() for temperature in (1.0, 4.0, 16.0)]
    # Without the square the last would be some hundred times smaller than the first.
    assert max(norms) < 3 * min(norms)


def test_soft_cross_entropy_of_no_rows_is_empty():
    assert soft_cross_entropy(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_soft_cross_entropy_in_half_precision_is_computed_in_single():
    student, teacher = 30 * random_tensor(2, 8, seed=1), 30 * random_tensor(2, 8, seed=2)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    found = soft_cross_entropy(student, teacher)
    assert found.dtype == torch.float32
    assert_close(found, soft_cross_entropy(student.float(), teacher.float()))


# ---- single rows ----------------------------------------------------------------------------------------------------

TOKEN_LABELS = torch.tensor([[-100, 1, 0, 2, 2], [0, -100, -100, -100, -100], [-100] * 5])
SPANS = {"start_positions": torch.tensor([2, 0, 5]), "end_positions": torch.tensor([4, -3, 9])}


def per_row(loss, *tensors: torch.Tensor, **options) -> torch.Tensor:
    """A loss of torch, applied to one row after the other."""
    return torch.stack([loss(*(tensor[row : row + 1] for tensor in tensors), **options) for row in range(3)])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_row_losses_of_single_labels(smoothing):
    logits, labels = random_tensor(3, 4), torch.tensor([3, 0, 1])
    expected = per_row(F.cross_entropy, logits, labels, label_smoothing=smoothing)
    for shaped in (labels, labels.unsqueeze(1)):
        found = row_losses({"logits": logits}, {"labels": shaped}, "single_label_classification", smoothing)
        assert_close(found, expected)


def test_row_losses_of_multi_hot_labels():
    logits, labels = random_tensor(3, 4), torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    expected = per_row(F.binary_cross_entropy_with_logits, logits, labels.float())
    for given in (labels, labels.float()):
        assert_close(row_losses({"logits": logits}, {"labels": given}, "multi_label_classification"), expected)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4)])
def test_row_losses_of_a_regression(shape):
    logits, labels = random_tensor(3, 4 if shape == (3, 4) else 1), random_tensor(*shape, seed=1)
    expected = per_row(F.mse_loss, logits.reshape(shape), labels)
    assert_close(row_losses({"logits": logits}, {"labels": labels}, "regression"), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_row_losses_of_tokens(smoothing):
    logits = random_tensor(3, 5, 4)
    found = row_losses({"logits": logits}, {"labels": TOKEN_LABELS}, "token_classification", smoothing)
    expected = per_row(F.cross_entropy, logits.transpose(1, 2), TOKEN_LABELS, label_smoothing=smoothing)
    assert_close(found, expected.nan_to_num(0.0))  # nothing is asked of the last row
    assert found[2] == 0


def test_row_losses_of_spans():
    outputs = {"start_logits": random_tensor(3, 5), "end_logits": random_tensor(3, 5, seed=1)}
    starts = F.cross_entropy(outputs["start_logits"], torch.tensor([2, 0, 0]), reduction="none")
    ends = F.cross_entropy(outputs["end_logits"], torch.tensor([4, 0, 0]), reduction="none")
    # Positions after the end are left out, those before the beginning count as the first token, as in the model.
    expected = torch.stack([starts[0] + ends[0], starts[1] + ends[1], torch.zeros(())]) / 2
    assert_close(row_losses(outputs, SPANS, "question_answering"), expected)


def problem_outputs(problem: str, seed: int, requires_grad: bool = False) -> dict[str, torch.Tensor]:
    shapes = {"regression": (3, 1), "token_classification": (3, 5, 4), "question_answering": (3, 5)}
    names = ("start_logits", "end_logits") if problem == "question_answering" else ("logits",)
    return {
        name: random_tensor(*shapes.get(problem, (3, 4)), seed=seed + place, requires_grad=requires_grad)
        for place, name in enumerate(names)
    }


PROBLEMS = {
    "single_label_classification": {"labels": torch.tensor([3, 0, 1])},
    "multi_label_classification": {"labels": torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])},
    "regression": {"labels": torch.tensor([0.3, -1.0, 2.0])},
    "token_classification": {"labels": TOKEN_LABELS},
    "question_answering": SPANS,
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_row_distillation_losses_are_those_of_torch(problem, temperature):
    own, given = problem_outputs(problem, 3), problem_outputs(problem, 9)
    found = row_distillation_losses(own, given, PROBLEMS[problem], problem, temperature)
    assert found.shape == (3,)

    def soft(name):
        targets = (given[name] / temperature).softmax(-1)
        student = own[name] / temperature
        if problem != "token_classification":
            return temperature**2 * F.cross_entropy(student, targets, reduction="none")
        losses = temperature**2 * F.cross_entropy(student.flatten(0, 1), targets.flatten(0, 1), reduction="none")
        return losses.view(3, 5)

    if problem == "regression":
        expected = per_row(F.mse_loss, own["logits"], given["logits"])
    elif problem == "multi_label_classification":
        expected = per_row(F.binary_cross_entropy_with_logits, own["logits"], given["logits"].sigmoid())
        assert_close(found, soft_binary_cross_entropy(own["logits"], given["logits"]))
    elif problem == "question_answering":
        expected = (soft("start_logits") + soft("end_logits")) / 2
    elif problem == "token_classification":
        tokens = soft("logits")
        expected = torch.stack([tokens[0, 1:].mean(), tokens[1, 0], torch.zeros(())])
    else:
        expected = soft("logits")
    assert_close(found, expected)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradients_of_row_losses(problem):
    """None to the teacher; to the student zero where it says what the teacher says."""
    own, given = problem_outputs(problem, 3, True), problem_outputs(problem, 9, True)
    losses = row_losses(own, PROBLEMS[problem], problem)
    taught = row_distillation_losses(own, given, PROBLEMS[problem], problem)
    (losses + taught).sum().backward()
    assert all(tensor.grad is None for tensor in given.values())
    assert all(tensor.grad.abs().max() > 0 for tensor in own.values())
    same = problem_outputs(problem, 9, True)
    row_distillation_losses(same, given, PROBLEMS[problem], problem).sum().backward()
    assert all(tensor.grad.abs().max() < 1e-6 for tensor in same.values())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_row_losses_in_half_precision_are_computed_in_single(problem):
    own, given = ({n: t.bfloat16() for n, t in problem_outputs(problem, seed).items()} for seed in (3, 9))
    single_own, single_given = ({n: t.float() for n, t in outputs.items()} for outputs in (own, given))
    targets = PROBLEMS[problem]
    found = row_losses(own, targets, problem)
    assert found.dtype == torch.float32
    assert_close(found, row_losses(single_own, targets, problem))
    assert_close(
        row_distillation_losses(own, given, targets, problem),
        row_distillation_losses(single_own, single_given, targets, problem),
    )


# ---- hidden states --------------------------------------------------------------------------------------------------


def naive_hidden_state_loss(student, teacher, mask) -> float:
    per_layer = []
    for own, target in zip(student, teacher, strict=True):
        total, count = 0.0, 0
        for row in range(own.shape[0]):
            for token in range(own.shape[1]):
                if mask is not None and not mask[row, token]:
                    continue
                first, second = own[row, token], target[row, token]
                first = (first - first.mean()) / (first.var(correction=0) + 1e-5).sqrt()
                second = (second - second.mean()) / (second.var(correction=0) + 1e-5).sqrt()
                total += ((first - second) ** 2).mean().item()
                count += 1
        per_layer.append(total / count)
    return sum(per_layer) / len(per_layer)


@pytest.mark.parametrize("mask", [MASK, None])
def test_hidden_state_loss_is_that_of_a_loop(mask):
    student, teacher = hidden_states(1), hidden_states(7)
    found = hidden_state_loss(student, teacher, mask)
    assert found.dim() == 0
    assert found.item() == pytest.approx(naive_hidden_state_loss(student, teacher, mask), rel=1e-4)


def test_hidden_state_loss_of_the_same_states_is_zero_and_ignores_scale_and_shift():
    states = hidden_states(1)
    assert hidden_state_loss(states, states, MASK).item() == 0
    assert hidden_state_loss([5 * state + 2 for state in states], states, MASK).item() < 1e-5
    assert hidden_state_loss(hidden_states(9), states, MASK).item() > 0.1


def test_row_hidden_state_losses_compare_the_first_channels():
    given = hidden_states(7)
    own = [state[..., :3].clone() for state in hidden_states(1)]
    first = [state[..., :3] for state in given]
    found = row_hidden_state_losses(own, given, MASK)
    for row in range(len(MASK)):
        alone = naive_hidden_state_loss(*([x[row : row + 1] for x in states] for states in (own, first)), MASK[row:])
        assert found[row].item() == pytest.approx(alone, rel=1e-4)
    assert_close(row_hidden_state_losses(own, given, None), row_hidden_state_losses(own, given, torch.ones_like(MASK)))
    own[0].requires_grad_(), given[0].requires_grad_()
    row_hidden_state_losses(own, given, MASK).sum().backward()
    assert given[0].grad is None and own[0].grad[MASK.bool()].abs().sum() > 0 == own[0].grad[~MASK.bool()].abs().sum()


def test_hidden_states_of_other_widths_have_a_sentence():
    with pytest.raises(ValueError, match=r"widths 6 and 7 cannot be compared; distil 'logits' only"):
        hidden_state_loss(hidden_states(1, width=6), hidden_states(1), MASK)


# ---- attentions -----------------------------------------------------------------------------------------------------


def naive_attention_loss(student, teacher, mask) -> float:
    per_layer = []
    for own, target in zip(student, teacher, strict=True):
        values = []
        for row in range(own.shape[0]):
            for query in range(own.shape[2]):
                if mask is not None and not mask[row, query]:
                    continue
                for head in range(own.shape[1]):
                    pairs = zip(target[row, head, query].tolist(), own[row, head, query].tolist(), strict=True)
                    values.append(-sum(goal * math.log(max(value, 1e-6)) for goal, value in pairs))
        per_layer.append(sum(values) / len(values))
    return sum(per_layer) / len(per_layer)


@pytest.mark.parametrize("mask", [MASK, None])
def test_attention_loss_is_that_of_a_loop(mask):
    student, teacher = attentions(1), attentions(7)
    found = attention_loss(student, teacher, mask)
    assert found.dim() == 0
    assert found.item() == pytest.approx(naive_attention_loss(student, teacher, mask), rel=1e-4)


def test_attention_loss_is_least_at_the_same_attentions():
    teacher = attentions(1)
    least = attention_loss(teacher, teacher, MASK).item()
    assert least == pytest.approx(naive_attention_loss(teacher, teacher, MASK), rel=1e-4)
    for seed in (7, 20, 30):
        assert attention_loss(attentions(seed), teacher, MASK).item() > least + 0.1


def test_other_numbers_of_heads_have_a_sentence():
    with pytest.raises(ValueError, match=r"Attentions of 2 and 4 heads cannot be compared"):
        attention_loss(attentions(1, heads=2), attentions(1), MASK)


# ---- both -----------------------------------------------------------------------------------------------------------

each_token_loss = pytest.mark.parametrize(
    "loss, make",
    [(hidden_state_loss, hidden_states), (attention_loss, attentions)],
    ids=["hidden_states", "attentions"],
)


def at_query(layers: list[torch.Tensor], row: int, token: int, change) -> list[torch.Tensor]:
    """`layers` with one position changed: hidden states have it second, attentions third."""
    changed = [layer.clone() for layer in layers]
    for layer in changed:
        place = layer[row, token] if layer.dim() == 3 else layer[row, :, token]
        place.copy_(change(place))
    return changed


@each_token_loss
def test_padding_does_not_count(loss, make):
    student, teacher = make(1), make(7)
    expected = loss(student, teacher, MASK)
    flipped = at_query(student, row=1, token=4, change=lambda values: values.flip(-1) + 0.3)
    assert loss(flipped, teacher, MASK) == expected
    assert loss(flipped, teacher, None) != loss(student, teacher, None)
    real = at_query(student, row=1, token=2, change=lambda values: values.flip(-1))
    assert loss(real, teacher, MASK) != expected


@each_token_loss
def test_a_batch_of_padding_only_gives_zero(loss, make):
    assert loss(make(1), make(7), torch.zeros_like(MASK)).item() == 0


@each_token_loss
def test_layers_count_alike(loss, make):
    student, teacher = make(1), make(7)
    parts = [loss([own], [given], MASK).item() for own, given in zip(student, teacher, strict=True)]
    assert loss(student, teacher, MASK).item() == pytest.approx(sum(parts) / 2, rel=1e-5)


@each_token_loss
def test_numbers_of_layers_must_agree(loss, make):
    with pytest.raises(ValueError, match="zip"):
        loss(make(1), make(1, layers=1), MASK)


def test_no_gradient_reaches_the_teacher():
    def leaf(tensors):
        return [tensor.clone().requires_grad_() for tensor in tensors]

    cases = [
        (lambda own, given: soft_cross_entropy(own[0], given[0], 2.0).sum(), [random_tensor(3, 6)]),
        (lambda own, given: hidden_state_loss(own, given, MASK), hidden_states(1)),
        (lambda own, given: attention_loss(own, given, MASK), attentions(1)),
    ]
    for loss, values in cases:
        student, teacher = leaf([value.flip(0) for value in values]), leaf(values)
        loss(student, teacher).backward()
        assert all(tensor.grad is None for tensor in teacher)
        assert all(tensor.grad.abs().max() > 0 for tensor in student)
