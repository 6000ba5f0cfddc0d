# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Steps of a supernet against gradients computed by hand; distillation, evaluation panels, resumption."""

import copy
import math
import random

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import DynamoBackend
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from modeling_mos import Architecture
from testing_utils import ELASTIC, assert_close, make_batch, make_targets, tiny_supernet
from trainers import MaskedLanguageModelingDataset, SupernetTrainer, SupernetTrainingArguments
from trainers.losses import attention_loss, hidden_state_loss, soft_cross_entropy
from training_utils import (
    WIDTHS,
    largest_change,
    make_arguments,
    make_bert,
    make_masked,
    make_rows,
    make_subnet,
    make_supernet,
    record_bars,
    train_supernet,
    weights_of,
)


UNIFORM_WIDTHS = {**WIDTHS, "bottleneck": False}
TERMS = ("logits", "hidden_states", "attentions")
each_space = pytest.mark.parametrize(
    "space", [WIDTHS, ELASTIC, UNIFORM_WIDTHS], ids=["widths", "depths", "no_bottleneck"]
)


def make_trainer(tokenizer, path, model=None, teacher=None, panel=None, rows=8, **overrides) -> SupernetTrainer:
    space = overrides.pop("search_space", WIDTHS)
    model = make_supernet(tokenizer, search_space=space) if model is None else model
    return SupernetTrainer(
        model,
        make_arguments(path, **overrides),
        teacher=teacher,
        panel=panel,
        train_dataset=make_masked(tokenizer, rows),
        eval_dataset=make_masked(tokenizer, 7, seed=1),
    )


# ---- which architectures --------------------------------------------------------------------------------------------


@each_space
def test_architectures_are_a_function_of_seed_and_step(tiny_tokenizer, tmp_path, space):
    def architectures(steps, **overrides):
        trainer = make_trainer(tiny_tokenizer, tmp_path, search_space=space, **overrides)
        return [trainer.architectures_of_step(step) for step in steps]

    first = architectures(range(8), num_random_architectures=2)
    random.seed(99)
    torch.manual_seed(99)
    assert architectures([5, 2], num_random_architectures=2) == [first[5], first[2]]
    assert architectures(range(8), num_random_architectures=2, seed=6) != first
    assert len({step["random_0"] for step in first}) > 3
    assert any(step["random_0"] != step["random_1"] for step in first)
    found = make_trainer(tiny_tokenizer, tmp_path, search_space=space).search_space
    for step in first:
        assert list(step) == ["largest", "smallest", "random_0", "random_1"]
        assert step["largest"] == found.largest() and step["smallest"] == found.smallest()
        assert all(architecture in found for architecture in step.values())


def test_sampling_leaves_the_global_generators_alone(tiny_tokenizer, tmp_path):
    trainer = make_trainer(tiny_tokenizer, tmp_path)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    trainer.architectures_of_step(3)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()


def test_ways_of_sampling(tiny_tokenizer, tmp_path):
    def names(step=0, **overrides):
        return list(make_trainer(tiny_tokenizer, tmp_path, **overrides).architectures_of_step(step))

    assert names(num_random_architectures=0) == ["largest", "smallest"]
    assert names(architecture_sampling="random", num_random_architectures=3) == ["random_0", "random_1", "random_2"]
    assert names(step=2, largest_only_steps=3) == ["largest"]
    assert names(step=3, largest_only_steps=3) == ["largest", "smallest", "random_0"]


def test_fixed_sampling_is_the_default_architecture(tiny_tokenizer, tmp_path):
    model = make_supernet(tiny_tokenizer)
    chosen = model.search_space.sample(seed=4)
    assert chosen != model.search_space.largest()
    model.config.default_architecture = chosen.to_dict()
    trainer = make_trainer(tiny_tokenizer, tmp_path, model, architecture_sampling="fixed")
    assert trainer.architectures_of_step(0) == trainer.architectures_of_step(9) == {"default": chosen}
    assert trainer.panel == {"default": chosen}


def test_biased_sampling_prefers_size(tiny_tokenizer, tmp_path):
    def mean_width(**overrides):
        trainer = make_trainer(tiny_tokenizer, tmp_path, **overrides)
        drawn = [trainer.architectures_of_step(step)["random_0"] for step in range(300)]
        return sum(sum(architecture.hidden_sizes) for architecture in drawn) / 900

    assert mean_width() == pytest.approx(100 / 3, abs=1.5)
    assert mean_width(size_biased_sampling=True) == pytest.approx((16**2 + 36**2 + 48**2) / 100, abs=1.5)


def test_the_steps_run_what_they_should(tiny_tokenizer, tmp_path):
    """The architectures that the model really sees, micro-batch by micro-batch."""
    trainer = make_trainer(tiny_tokenizer, tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((trainer.state.global_step, kwargs["architecture"])), with_kwargs=True
    )
    trainer.train()
    expected = []
    for step in range(3):
        expected += [(step, found) for _ in range(2) for found in trainer.architectures_of_step(step).values()]
    assert seen == expected


# ---- gradients ------------------------------------------------------------------------------------------------------


def micro_batches(tokenizer, rows: int, size: int) -> list[dict[str, torch.Tensor]]:
    dataset = make_masked(tokenizer, rows)
    items = dataset.__getitems__(range(rows))
    return [dataset.collate(items[start : start + size]) for start in range(0, rows, size)]


def plain_step(model, trainer, batches, step_loss) -> tuple[dict[str, torch.Tensor], float]:
    """Weights after one step of plain gradient descent on the mean over architectures of `step_loss`, and the loss."""
    model.train()
    model.config.sparse_prediction = False
    architectures = trainer.architectures_of_step(0)
    items = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    total, gradients = 0.0, {}
    for name, architecture in architectures.items():
        for batch in batches:
            model.zero_grad()
            loss = step_loss(model, name, architecture, batch, items) / len(architectures)
            loss.backward()
            total += loss.item()
            for key, parameter in model.named_parameters():
                if parameter.grad is not None:
                    gradients[key] = gradients.get(key, 0) + parameter.grad
    return {
        key: (parameter - 0.1 * gradients.get(key, 0)).detach() for key, parameter in model.named_parameters()
    }, total


def masked_lm_loss(model, name, architecture, batch, items):
    asked = batch["labels"] != -100
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs, architecture=architecture).logits[asked]
    return F.cross_entropy(logits, batch["labels"][asked], reduction="sum") / items


@each_space
@pytest.mark.parametrize("sparse", [False, True])
def test_step_is_the_mean_of_separate_gradients(tiny_tokenizer, tmp_path, space, sparse):
    def model():
        return make_supernet(tiny_tokenizer, search_space=space, sparse_prediction=sparse)

    options = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    trainer = make_trainer(tiny_tokenizer, tmp_path, model(), rows=6, num_random_architectures=2, **options)
    batches = micro_batches(tiny_tokenizer, 6, 2)
    assert len({int((batch["labels"] != -100).sum()) for batch in batches}) > 1
    before = weights_of(trainer.model)
    expected, loss = plain_step(model(), trainer, batches, masked_lm_loss)
    trainer.train()
    found = weights_of(trainer.model)
    assert largest_change(found, expected) < 1e-5
    assert largest_change(found, before) > 1e-2
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-5)


@each_space
def test_accumulation_does_not_matter(tiny_tokenizer, tmp_path, space):
    def train(batch_size, **overrides):
        return train_supernet(
            tiny_tokenizer,
            tmp_path,
            search_space=space,
            learning_rate=0.02,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            **overrides,
        )

    counts = [int((batch["labels"] != -100).sum()) for batch in micro_batches(tiny_tokenizer, 12, 1)]
    assert len(set(counts)) > 3
    whole = train(4)
    for batch_size in (2, 1):
        parts = train(batch_size)
        assert largest_change(weights_of(parts.model), weights_of(whole.model)) < 2e-5
        for own, given in zip(parts.state.log_history[:3], whole.state.log_history[:3], strict=True):
            for key in ("loss", "largest_loss", "smallest_loss", "random_0_loss"):
                assert own[key] == pytest.approx(given[key], rel=1e-5)
    other = train(4, seed=6)
    assert largest_change(weights_of(other.model), weights_of(whole.model)) > 1e-3


@pytest.mark.parametrize("routing", ["none", "layer", "neuron"])
def test_every_parameter_is_trained(tiny_tokenizer, tmp_path, routing):
    # From the default start, where the routers' last layers are zero: the layers before them wake one step later.
    model = make_supernet(tiny_tokenizer, routing=routing, search_space=ELASTIC)
    fresh = type(model)(model.config)
    with torch.no_grad():
        for given, own in zip(fresh.parameters(), model.parameters(), strict=True):
            own.copy_(given)
    before = weights_of(model)
    trainer = train_supernet(tiny_tokenizer, tmp_path, model, max_steps=4, learning_rate=1.0)
    assert trainer.args.weight_decay == 0
    after = weights_of(model)
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert all(value.isfinite().all() for value in after.values())


def test_gradient_checkpointing_gives_the_same_weights(tiny_tokenizer, tmp_path):
    plain = train_supernet(tiny_tokenizer, tmp_path, search_space=ELASTIC, learning_rate=0.02)
    checkpointed = train_supernet(
        tiny_tokenizer,
        tmp_path,
        search_space=ELASTIC,
        learning_rate=0.02,
        gradient_checkpointing=True,  # the name that all supported versions know
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    assert checkpointed.model.is_gradient_checkpointing
    assert largest_change(weights_of(plain.model), weights_of(checkpointed.model)) < 1e-6


@pytest.mark.parametrize("distillation", [None, ["logits"]])
def test_sparse_prediction_gives_the_same_weights(tiny_tokenizer, tmp_path, distillation):
    def train(sparse):
        model = make_supernet(tiny_tokenizer, sparse_prediction=sparse)
        return train_supernet(tiny_tokenizer, tmp_path, model, distillation=distillation, learning_rate=0.02)

    assert largest_change(weights_of(train(True).model), weights_of(train(False).model)) < 1e-5


def test_flops_are_those_of_the_architectures_that_ran(tiny_tokenizer, tmp_path):
    trainer = make_trainer(tiny_tokenizer, tmp_path, max_steps=2)
    trainer.train()
    expected = 0
    for step, batch in enumerate(micro_batches(tiny_tokenizer, 8, 4)):
        rows, tokens = batch["input_ids"].shape
        for architecture in trainer.architectures_of_step(step).values():
            expected += 3 * rows * trainer.model.count_flops(architecture, sequence_length=tokens)
    assert trainer.state.total_flos == expected


def test_compiled_layers_serve_all_architectures(tiny_tokenizer, tmp_path):
    """Thirteen rows in batches of four, evaluated by three: batches of one row, with padding and without."""
    weights, options = [], {"max_steps": 4, "learning_rate": 0.01, "per_device_eval_batch_size": 3}
    rows = make_rows(tiny_tokenizer, 13)
    rows = datasets.concatenate_datasets([rows.select([0] * 4), rows.select(range(4, 13))])
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        if compiled:
            options |= {"torch_compile": True, "torch_compile_backend": "aot_eager"}
        supernet = make_supernet(tiny_tokenizer, sparse_prediction=True)
        trainer = SupernetTrainer(
            supernet,
            make_arguments(tmp_path / str(compiled), **options),
            train_dataset=MaskedLanguageModelingDataset(rows, tiny_tokenizer, mlm_probability=0.3),
            eval_dataset=make_masked(tiny_tokenizer, 7, seed=1),
        )
        trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"])
        assert not isinstance(trainer.model_wrapped, torch._dynamo.eval_frame.OptimizedModule)
        weights.append({name: parameter.detach().clone() for name, parameter in supernet.named_parameters()})
        counters = torch._dynamo.utils.counters
        # Six different architectures of three layers, and nothing that runs beyond a limit.
        assert (0 < counters["stats"]["unique_graphs"] <= 25) if compiled else not counters["stats"]
        assert not counters["graph_break"]
        assert not [reason for reason in counters["unimplemented"] if "limit" in reason]
    for name, expected in weights[0].items():
        assert_close(weights[1][name], expected, atol=1e-5)
    # For other trainers of this process, accelerate would still compile.
    assert trainer.accelerator.state.dynamo_plugin.backend == DynamoBackend.AOT_EAGER
    torch._dynamo.reset()
    # Nothing of it is saved, and copies run without.
    trainer.save_model(tmp_path / "saved")
    again, copied = type(supernet).from_pretrained(tmp_path / "saved").eval(), copy.deepcopy(supernet).eval()
    for model, kept in ((supernet, True), (again, False), (copied, False)):
        assert all((layer._compiled_call_impl is not None) is kept for layer in model.base_model.layers)
    batch = make_batch(supernet.config)
    with torch.no_grad():
        assert_close(copied(**batch).logits, again(**batch).logits, atol=1e-5)


def test_layers_are_not_compiled_for_several_gpus_of_one_process(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(SupernetTrainingArguments, "n_gpu", 2)
    arguments = make_arguments(tmp_path, torch_compile=True)
    with pytest.raises(ValueError, match="Compiled layers on 2 GPUs in one process .* with torchrun"):
        SupernetTrainer(make_supernet(tiny_tokenizer), arguments)


# ---- distillation ---------------------------------------------------------------------------------------------------


def distilled_loss(terms, teacher=None, layers=(-1,), temperature=1.0, weight=0.5, hard=0.5, parts=1):
    """The loss of one architecture, whose teacher is `teacher` or the largest architecture of the same model."""

    def step_loss(model, name, architecture, batch, items):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        asked = batch["labels"] != -100
        if teacher is None and name == "largest":
            return masked_lm_loss(model, name, architecture, batch, items)
        wanted = {f"output_{term}": True for term in terms if term != "logits"}
        with torch.no_grad():
            if teacher is None:
                given = model(**inputs, architecture=model.search_space.largest(), **wanted)
            else:
                given = teacher(**inputs, **wanted)
        own = model(**inputs, architecture=architecture, **wanted)
        loss = hard * F.cross_entropy(own.logits[asked], batch["labels"][asked], reduction="sum") / items
        if "logits" in terms:
            soft = soft_cross_entropy(own.logits[asked], given.logits[asked], temperature)
            loss = loss + weight * soft.sum() / items

        def chosen(states):
            return [states[layer - 1] if layer > 0 else states[layer] for layer in layers]

        mask = batch["attention_mask"]
        if "hidden_states" in terms:
            value = hidden_state_loss(chosen(own.hidden_states[1:]), chosen(given.hidden_states[1:]), mask)
            loss = loss + weight * value / parts
        if "attentions" in terms:
            loss = loss + weight * attention_loss(chosen(own.attentions), chosen(given.attentions), mask) / parts
        return loss

    return step_loss


FIXED_HEADS = {"hidden_sizes": [16, 36, 48], "intermediate_sizes": [11, 20, 37]}
FIXED_HEADS_AND_DEPTHS = {**FIXED_HEADS, "num_hidden_layers": [2, 3]}


@pytest.mark.parametrize("outside", [False, True], ids=["in-place", "outside"])
@pytest.mark.parametrize("space", [FIXED_HEADS, FIXED_HEADS_AND_DEPTHS], ids=["widths", "depths"])
@pytest.mark.parametrize(
    "terms, options",
    [
        (["logits"], {}),
        (["logits"], {"temperature": 2.0, "hard": 0.0, "weight": 0.8}),
        (["hidden_states"], {"layers": [1, -1]}),
        (["attentions"], {"hard": 1.0, "weight": 5.0}),
        (["attentions", "logits", "hidden_states"], {"layers": [2], "weight": 0.3}),
    ],
    ids=["logits", "soft_only", "hidden_states", "attentions", "all"],
)
def test_distillation_is_that_of_a_plain_loop(tiny_tokenizer, tmp_path, space, outside, terms, options):
    def model():
        found = make_supernet(tiny_tokenizer, search_space=space, sparse_prediction="logits" in terms)
        found.set_attn_implementation("eager")
        return found

    def a_teacher():
        if not outside:
            return None
        found = make_bert(tiny_tokenizer, seed=8)
        found.set_attn_implementation("eager")
        return found

    trainer = make_trainer(
        tiny_tokenizer,
        tmp_path,
        model(),
        a_teacher(),
        rows=4,
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        distillation=terms,
        distillation_layers=options.get("layers"),
        distillation_temperature=options.get("temperature", 1.0),
        distillation_weight=options.get("weight", 0.5),
        hard_label_weight=options.get("hard", 0.5),
    )
    batches = micro_batches(tiny_tokenizer, 4, 2)
    expected, loss = plain_step(model(), trainer, batches, distilled_loss(terms, a_teacher(), parts=2, **options))
    without, _ = plain_step(model(), trainer, batches, masked_lm_loss)
    trainer.train()
    assert largest_change(weights_of(trainer.model), expected) < 2e-5
    assert largest_change(expected, without) > 1e-3

    # What is logged adds up to the loss.
    log = trainer.state.log_history[0]
    names = list(trainer.architectures_of_step(0))
    taught = names if outside else [name for name in names if name != "largest"]
    total = 0.0
    for name in names:
        if name in taught:
            soft = sum(log[f"{name}_distillation_{term}"] for term in terms)
            total += options.get("hard", 0.5) * log[f"{name}_loss"] + options.get("weight", 0.5) * soft
        else:
            total += log[f"{name}_loss"]
    assert log["loss"] == pytest.approx(total / len(names), rel=1e-5)
    assert log["loss"] == pytest.approx(loss, rel=1e-5)
    components = {f"{name}_loss" for name in names}
    components |= {f"{name}_distillation_{term}" for name in taught for term in terms}
    assert {key for key in log if key.endswith("_loss") or "distillation" in key} == components


@pytest.mark.parametrize("space", [WIDTHS, ELASTIC], ids=["widths", "depths"])
def test_accumulation_does_not_matter_to_distilled_logits(tiny_tokenizer, tmp_path, space):
    def train(batch_size):
        return train_supernet(
            tiny_tokenizer,
            tmp_path,
            search_space=space,
            learning_rate=0.02,
            distillation=["logits"],
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
        )

    whole, parts = train(4), train(1)
    assert largest_change(weights_of(parts.model), weights_of(whole.model)) < 2e-5
    key = "random_0_distillation_logits"
    assert parts.state.log_history[2][key] == pytest.approx(whole.state.log_history[2][key], rel=1e-5)


def test_logged_components_are_means_over_the_steps_that_had_them(tiny_tokenizer, tmp_path):
    options = {"max_steps": 6, "largest_only_steps": 3, "gradient_accumulation_steps": 2, "distillation": ["logits"]}
    options |= {"per_device_train_batch_size": 2, "learning_rate": 0.01}
    every = train_supernet(tiny_tokenizer, tmp_path, **options).state.log_history[:6]
    once = train_supernet(tiny_tokenizer, tmp_path, **options, logging_steps=6).state.log_history[0]
    for key in ("largest_loss", "smallest_loss", "random_0_loss", "smallest_distillation_logits"):
        values = [entry[key] for entry in every if key in entry]
        assert len(values) == (6 if key == "largest_loss" else 3)
        assert once[key] == pytest.approx(sum(values) / len(values), rel=1e-5)
    for entry in every[:3]:
        assert entry["loss"] == pytest.approx(entry["largest_loss"], rel=1e-5)


@pytest.mark.parametrize("sampling", ["random", "fixed", "sandwich"])
def test_outside_teacher_is_frozen_and_teaches_all(tiny_tokenizer, tmp_path, sampling):
    teacher = make_bert(tiny_tokenizer, seed=8, hidden_dropout_prob=0.5).train()
    before = weights_of(teacher)
    trainer = train_supernet(
        tiny_tokenizer, tmp_path, teacher=teacher, distillation=["logits"], architecture_sampling=sampling
    )
    assert largest_change(before, weights_of(teacher)) == 0
    assert not teacher.training
    assert all(not value.requires_grad and value.grad is None for value in teacher.parameters())
    names = {"random": ["random_0"], "fixed": ["default"], "sandwich": ["largest", "smallest", "random_0"]}[sampling]
    for name in names:
        assert f"{name}_distillation_logits" in trainer.state.log_history[0]


def test_a_supernet_can_teach_another(tiny_tokenizer, tmp_path):
    teacher = make_supernet(tiny_tokenizer, seed=9)
    trainer = train_supernet(
        tiny_tokenizer, tmp_path, teacher=teacher, distillation=["logits", "hidden_states"], max_steps=1
    )
    assert trainer.state.log_history[0]["largest_distillation_hidden_states"] > 0


def test_distillation_brings_a_student_closer(tiny_tokenizer, tmp_path):
    teacher = make_bert(tiny_tokenizer, seed=8)
    trainer = train_supernet(
        tiny_tokenizer,
        tmp_path,
        teacher=teacher,
        distillation=["logits"],
        hard_label_weight=0,
        distillation_weight=1.0,
        optim="adamw_torch",
        learning_rate=5e-3,
        max_steps=15,
    )
    values = [entry["smallest_distillation_logits"] for entry in trainer.state.log_history if "loss" in entry]
    assert values[-1] < 0.8 * values[0]


# ---- messages -------------------------------------------------------------------------------------------------------


def test_only_supernets_are_trained(tiny_tokenizer, tmp_path):
    for model in (make_bert(tiny_tokenizer), make_subnet(tiny_tokenizer)):
        with pytest.raises(ValueError, match=f"trains `MosFor…` models, got a {type(model).__name__}"):
            SupernetTrainer(model, make_arguments(tmp_path))


def test_teachers_that_do_not_fit(tiny_tokenizer, tmp_path):
    def check(message, teacher=None, model=None, **overrides):
        with pytest.raises(ValueError, match=message):
            make_trainer(tiny_tokenizer, tmp_path, model, teacher, **overrides)

    bert = make_bert(tiny_tokenizer)
    check("A teacher is given but `distillation` names nothing", bert)
    for sampling in ("random", "fixed"):
        check(
            f"architecture_sampling='{sampling}' never runs; use 'sandwich'",
            distillation=["logits"],
            architecture_sampling=sampling,
        )
    check("attn_implementation='sdpa' does not return", distillation=["attentions"])
    eager = make_supernet(tiny_tokenizer)
    eager.set_attn_implementation("eager")
    check("attn_implementation='sdpa' does not return", bert, eager, distillation=["attentions"])
    other = make_bert(tiny_tokenizer, vocab_size=77)
    words = len(tiny_tokenizer)
    check(f"vocabulary has 77 entries, the student's {words}", other, distillation=["logits"])
    itself = make_supernet(tiny_tokenizer)
    check("Teacher and student share weights, mos.emb", itself, itself, distillation=["logits"])
    check(
        "The teacher is a BertForQuestionAnswering, the",
        make_bert(tiny_tokenizer, "question-answering"),
        distillation=["logits"],
    )
    check(
        "hidden size is 24, the student's 48; distil 'logits' only",
        make_bert(tiny_tokenizer, hidden_size=24),
        distillation=["logits", "hidden_states"],
    )
    # What does not have to agree may differ.
    make_trainer(tiny_tokenizer, tmp_path, None, make_bert(tiny_tokenizer, hidden_size=24), distillation=["logits"])


def test_teacher_with_other_labels(tiny_tokenizer, tmp_path):
    student = make_supernet(tiny_tokenizer, "sequence-classification")
    teacher = make_bert(tiny_tokenizer, "sequence-classification", num_labels=5)
    with pytest.raises(ValueError, match="teacher has 5 labels, the student 3"):
        SupernetTrainer(student, make_arguments(tmp_path, distillation=["logits"]), teacher=teacher)


@pytest.mark.parametrize("layer, space", [(4, WIDTHS), (0, WIDTHS), (-4, WIDTHS), (3, ELASTIC)])
def test_layers_that_do_not_exist(tiny_tokenizer, tmp_path, layer, space):
    depth = 2 if space is ELASTIC else 3
    with pytest.raises(ValueError, match=f"names layer {layer} of a network with {depth} layers; use 1 to {depth} or"):
        make_trainer(
            tiny_tokenizer,
            tmp_path,
            search_space=space,
            distillation=["hidden_states"],
            distillation_layers=[1, layer],
        )


def test_states_that_cannot_be_compared(tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Hidden states of widths 16 and 48 cannot be compared"):
        train_supernet(tiny_tokenizer, tmp_path, search_space=UNIFORM_WIDTHS, distillation=["hidden_states"])
    eager = make_supernet(tiny_tokenizer)
    eager.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="Attentions of 2 and 4 heads cannot be compared"):
        train_supernet(tiny_tokenizer, tmp_path, eager, distillation=["attentions"])


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"distillation": ["logits", "logit"]},
            r"takes any of \['logits', 'hidden_states', 'attentions'\], got 'logit'",
        ),
        ({"distillation": "logits"}, r"`distillation` is a list, such as \['logits'\], got the string 'logits'"),
        ({"architecture_sampling": "all"}, "is 'sandwich', 'random' or 'fixed', got 'all'"),
        ({"num_random_architectures": -1}, "`num_random_architectures` must be at least 0, got -1"),
        (
            {"num_random_architectures": 0, "architecture_sampling": "random"},
            "`num_random_architectures` must be at least 1, got 0",
        ),
        ({"largest_only_steps": -2}, "`largest_only_steps` must be at least 0, got -2"),
        ({"distillation_weight": -0.5}, "`distillation_weight` must be at least 0, got -0.5"),
        ({"hard_label_weight": -1}, "`hard_label_weight` must be at least 0, got -1"),
        ({"panel_random_architectures": -1}, "`panel_random_architectures` must be at least 0, got -1"),
        ({"distillation_temperature": 0}, "`distillation_temperature` must be positive, got 0"),
    ],
)
def test_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SupernetTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_plain_arguments(tiny_tokenizer, tmp_path):
    for arguments in (None, make_arguments(tmp_path, TrainingArguments)):
        with pytest.raises(TypeError, match="`args` are SupernetTrainingArguments, which take all .*, got"):
            SupernetTrainer(make_supernet(tiny_tokenizer), arguments)


def test_panel_outside_the_space(tiny_tokenizer, tmp_path):
    strange = Architecture(hidden_sizes=[17] * 3, intermediate_sizes=[11] * 3, num_attention_heads=[1] * 3)
    with pytest.raises(ValueError, match="17"):
        make_trainer(tiny_tokenizer, tmp_path, panel={"strange": strange})
    with pytest.raises(ValueError, match="17"):
        make_trainer(tiny_tokenizer, tmp_path).evaluate_architecture(strange)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def brute_force_loss(model, dataset, architecture) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for row in (dataset[index] for index in range(len(dataset))):
            labels = torch.from_numpy(row["labels"])
            logits = model.eval()(torch.from_numpy(row["input_ids"])[None], architecture=architecture).logits[0]
            asked = labels != -100
            total += F.cross_entropy(logits[asked], labels[asked], reduction="sum").item()
            count += int(asked.sum())
    return total / count


@each_space
def test_panel(tiny_tokenizer, tmp_path, space):
    model = make_supernet(tiny_tokenizer, search_space=space)
    extra = model.search_space.sample(seed=11)
    trainer = make_trainer(
        tiny_tokenizer,
        tmp_path,
        model,
        panel={"mine": extra},
        panel_random_architectures=2,
        panel_uniform_widths=True,
    )
    names = ["largest", "smallest", "width_16", "width_36", "width_48", "random_0", "random_1", "mine"]
    assert list(trainer.panel) == names
    metrics = trainer.evaluate()
    for name, architecture in trainer.panel.items():
        expected = brute_force_loss(model, trainer.eval_dataset, architecture)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics[f"eval_{name}_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    losses = [metrics[f"eval_{name}_loss"] for name in names]
    assert len(set(losses)) >= 5
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    again = make_trainer(tiny_tokenizer, tmp_path, model, panel_random_architectures=2)
    assert [again.panel[name] for name in ("random_0", "random_1")] == [
        trainer.panel[name] for name in ("random_0", "random_1")
    ]
    uniform = [architecture for name, architecture in trainer.panel.items() if name.startswith("width_")]
    assert all(len(set(architecture.hidden_sizes)) == 1 for architecture in uniform)


def test_evaluations_are_bit_identical_whatever_happened_between(tiny_tokenizer, tmp_path):
    trainer = make_trainer(tiny_tokenizer, tmp_path, max_steps=7, panel_random_architectures=1)
    start = weights_of(trainer.model)

    def losses():
        return {name: value for name, value in trainer.evaluate().items() if name.endswith(("loss", "perplexity"))}

    first = losses()
    assert losses() == first
    trainer.train()
    assert losses() != first
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.copy_(start[name])
    # The masks do not know that there have been epochs of training since.
    assert losses() == first


def test_one_architecture_alone(tiny_tokenizer, tmp_path):
    trainer = make_trainer(tiny_tokenizer, tmp_path)
    whole = trainer.evaluate()
    smallest = trainer.evaluate_architecture(trainer.search_space.smallest())
    assert smallest["eval_loss"] == whole["eval_smallest_loss"]
    named = trainer.evaluate_architecture(trainer.search_space.smallest(), metric_key_prefix="test_small")
    assert named["test_small_perplexity"] == whole["eval_smallest_perplexity"]
    with trainer.evaluating(trainer.search_space.smallest()):
        inside = trainer.predict(trainer.eval_dataset)
    outside = trainer.predict(trainer.eval_dataset)
    assert inside.metrics["test_loss"] == whole["eval_smallest_loss"]
    assert outside.metrics["test_loss"] == whole["eval_largest_loss"]
    assert inside.predictions.sum() / inside.label_ids.sum() == pytest.approx(whole["eval_smallest_loss"], rel=1e-6)


def test_several_evaluation_sets(tiny_tokenizer, tmp_path):
    sets = {"a": make_masked(tiny_tokenizer, 5, seed=1), "b": make_masked(tiny_tokenizer, 6, seed=2)}
    trainer = SupernetTrainer(make_supernet(tiny_tokenizer), make_arguments(tmp_path), eval_dataset=sets)
    metrics = trainer.evaluate()
    for name, dataset in sets.items():
        expected = brute_force_loss(trainer.model, dataset, trainer.search_space.smallest())
        assert metrics[f"eval_{name}_smallest_loss"] == pytest.approx(expected, rel=1e-5)


def test_best_checkpoint_by_the_smallest_network(tiny_tokenizer, tmp_path):
    trainer = train_supernet(
        tiny_tokenizer,
        tmp_path,
        max_steps=4,
        optim="adamw_torch",
        learning_rate=0.05,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_smallest_loss",
        greater_is_better=False,
    )
    losses = {
        entry["step"]: entry["eval_smallest_loss"]
        for entry in trainer.state.log_history
        if "eval_smallest_loss" in entry
    }
    assert sorted(losses) == [1, 2, 3, 4]
    best = min(losses, key=losses.get)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_smallest_loss"] == pytest.approx(losses[best], rel=1e-6)


# ---- other tasks ----------------------------------------------------------------------------------------------------


def classification_rows(tokenizer, count=20, seed=0):
    rows = make_rows(tokenizer, count, seed).remove_columns("special_tokens_mask")
    generator = random.Random(seed)
    labels = [generator.randrange(3) for _ in range(count)]
    return rows.add_column("labels", labels)


def accuracy(prediction):
    assert prediction.predictions.shape == (len(prediction.label_ids), 3)
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_classifier(tokenizer, path, teacher=None, **overrides):
    return SupernetTrainer(
        make_supernet(tokenizer, "sequence-classification"),
        make_arguments(path, **overrides),
        teacher=teacher,
        train_dataset=classification_rows(tokenizer),
        eval_dataset=classification_rows(tokenizer, 7, seed=1),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )


def test_classification(tiny_tokenizer, tmp_path):
    trainer = make_classifier(tiny_tokenizer, tmp_path, learning_rate=0.01)
    before = weights_of(trainer.model)
    trainer.train()
    assert largest_change(before, weights_of(trainer.model)) > 0
    metrics = trainer.evaluate()
    rows = trainer.eval_dataset
    for name, architecture in trainer.panel.items():
        with torch.no_grad():
            logits = torch.cat(
                [
                    trainer.model.eval()(torch.tensor([ids]), architecture=architecture).logits
                    for ids in rows["input_ids"]
                ]
            )
        labels = torch.tensor(rows["labels"])
        assert metrics[f"eval_{name}_accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
        assert f"eval_{name}_loss" in metrics
    assert metrics["eval_loss"] == pytest.approx(
        (metrics["eval_largest_loss"] + metrics["eval_smallest_loss"]) / 2, rel=1e-9
    )


@pytest.mark.parametrize("distillation", [None, ["logits"], ["logits", "hidden_states"]])
def test_accumulation_does_not_matter_to_classification(tiny_tokenizer, tmp_path, distillation):
    # Rows of one length, so that the mean over tokens of the hidden states' term does not depend on the batches.
    def train(batch_size):
        trainer = make_classifier(
            tiny_tokenizer,
            tmp_path,
            learning_rate=0.01,
            distillation=distillation,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
        )
        rows = make_rows(tiny_tokenizer, 12, shortest=9, longest=9).remove_columns("special_tokens_mask")
        trainer.train_dataset = rows.add_column("labels", [row % 3 for row in range(12)])
        trainer.train()
        return trainer

    whole, parts = train(4), train(1)
    assert largest_change(weights_of(whole.model), weights_of(parts.model)) < 1e-5
    for own, given in zip(parts.state.log_history[:3], whole.state.log_history[:3], strict=True):
        for key in (key for key in given if "loss" in key or "distillation" in key):
            assert own[key] == pytest.approx(given[key], rel=1e-4)


def test_distilled_classification(tiny_tokenizer, tmp_path):
    teacher = make_bert(tiny_tokenizer, "sequence-classification", seed=8)
    trainer = make_classifier(
        tiny_tokenizer, tmp_path, teacher, max_steps=1, distillation=["logits"], distillation_temperature=2.0
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    labels = batch.pop("labels")
    trainer.model.eval()
    with torch.no_grad():
        given = teacher(**batch).logits
        own = {
            name: trainer.model(**batch, architecture=found).logits
            for name, found in trainer.architectures_of_step(0).items()
        }
    trainer.train()
    log = trainer.state.log_history[0]
    for name, logits in own.items():
        assert log[f"{name}_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
        soft = soft_cross_entropy(logits, given, 2.0).mean().item()
        assert log[f"{name}_distillation_logits"] == pytest.approx(soft, rel=1e-4)


@pytest.mark.parametrize("head", ["token-classification", "question-answering"])
def test_other_heads(tiny_tokenizer, tmp_path, head):
    generator = random.Random(0)
    rows = make_rows(tiny_tokenizer, 8, shortest=9, longest=9).remove_columns("special_tokens_mask")
    if head == "token-classification":
        rows = rows.add_column("labels", [[generator.randrange(3) for _ in range(11)] for _ in range(8)])
    else:
        for name in ("start_positions", "end_positions"):
            rows = rows.add_column(name, [generator.randrange(11) for _ in range(8)])
    trainer = SupernetTrainer(
        make_supernet(tiny_tokenizer, head), make_arguments(tmp_path), train_dataset=rows, eval_dataset=rows
    )
    before = weights_of(trainer.model)
    trainer.train()
    assert largest_change(before, weights_of(trainer.model)) > 0
    metrics = trainer.evaluate()
    assert metrics["eval_largest_loss"] != metrics["eval_smallest_loss"]


# ---- resumption -----------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class KillAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("killed_at, space", [(3, WIDTHS), (4, ELASTIC), (5, WIDTHS)])
def test_killed_run_continues_as_if_it_had_not_been(tiny_tokenizer, tmp_path, killed_at, space):
    """Three steps an epoch: resumption from step 2 (inside an epoch), 3 (between two) and 4 (inside the second)."""

    def trainer(folder):
        # Dropout as well: its generator is part of a checkpoint.
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        model = make_supernet(tiny_tokenizer, search_space=space, **dropout)
        return make_trainer(
            tiny_tokenizer,
            tmp_path / folder,
            model,
            rows=12,
            max_steps=7,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            optim="adamw_torch",
            lr_scheduler_type="linear",
            learning_rate=1e-3,
            warmup_steps=2,
            max_grad_norm=1.0,
            train_sampling_strategy="random",
            save_strategy="steps",
            save_steps=1,
            distillation=["logits"],
        )

    straight = trainer("straight")
    straight.train()
    killed = trainer("killed")
    killed.add_callback(KillAfter(killed_at))
    with pytest.raises(Killed):
        killed.train()
    checkpoint = get_last_checkpoint(tmp_path / "killed")
    assert checkpoint.endswith(f"checkpoint-{killed_at - 1}")
    resumed = trainer("killed")
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 7
    assert largest_change(weights_of(straight.model), weights_of(resumed.model)) == 0
    for own, given in zip(resumed.state.log_history[:7], straight.state.log_history[:7], strict=True):
        assert own == given


class RecordedEvents(TrainerCallback):
    def __init__(self):
        self.metrics = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.metrics.append(metrics)


def test_every_member_of_a_panel_has_a_bar_of_its_own(tiny_tokenizer, tmp_path, monkeypatch):
    bars = record_bars(monkeypatch)
    trainer = make_trainer(tiny_tokenizer, tmp_path, disable_tqdm=False)
    trainer.evaluate()
    assert len(bars) == len(trainer.panel) > 1 and all(bar.count == bar.total for bar in bars)


def test_a_panel_is_one_record_and_one_event(tiny_tokenizer, tmp_path):
    trainer = make_trainer(tiny_tokenizer, tmp_path)
    events = RecordedEvents()
    trainer.add_callback(events)
    metrics = trainer.evaluate()
    assert events.metrics == [metrics]
    (record,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert {"eval_largest_loss", "eval_smallest_loss", "eval_largest_perplexity"} <= record.keys()


@pytest.mark.parametrize(
    "head, options",
    [
        ("sequence-classification", {"num_labels": 1}),
        ("sequence-classification", {"problem_type": "multi_label_classification"}),
        ("token-classification", {}),
        ("question-answering", {}),
    ],
)
def test_logits_are_distilled_by_the_kind_of_the_task(tmp_path, head, options):
    """The term vanishes in its gradient where the student is the teacher, and otherwise teaches."""
    model = tiny_supernet(head, **options)
    batch = make_batch(model.config)
    targets = make_targets(head, model.config, batch["input_ids"].shape)
    if options:
        shape = (len(batch["input_ids"]),) if "num_labels" in options else (len(batch["input_ids"]), 3)
        targets = {"labels": torch.rand(shape).round()}
    arguments = make_arguments(tmp_path, distillation=["logits"])
    trainer = SupernetTrainer(model, arguments, train_dataset=[{"input_ids": [5]}])
    trainer.current_gradient_accumulation_steps = 1
    space = model.search_space
    inputs = {**batch, **targets}
    teacher = model(**inputs, architecture=space.largest())
    model.zero_grad()
    trainer._logit_distillation(model(**inputs, architecture=space.largest()), teacher, inputs, None).backward()
    assert max(value.grad.abs().max() for value in model.parameters() if value.grad is not None) < 1e-4
    model.zero_grad()
    student = model(**inputs, architecture=space.smallest())
    loss = trainer._logit_distillation(student, teacher, inputs, None)
    loss.backward()
    assert loss > 0 and max(value.grad.abs().max() for value in model.parameters() if value.grad is not None) > 1e-3
