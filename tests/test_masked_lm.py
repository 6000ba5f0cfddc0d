# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Masks that are a function of (seed, epoch, sample), and evaluations weighted by predicted tokens."""

import math
import random

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from modeling_mos import MaskedLMObjective
from testing_utils import assert_close, no_complaints
from trainers import MaskedLanguageModelingDataset, MaskedLMTrainer, SetEpochCallback
from training_utils import (
    largest_change,
    make_arguments,
    make_bert,
    make_masked,
    make_rows,
    make_subnet,
    train_masked_lm,
    weights_of,
)


MODELS = {"bert": make_bert, "subnet": make_subnet}


@pytest.fixture(scope="module")
def long_rows(tiny_tokenizer):
    """400 rows of 152 tokens: enough to tell shares apart."""
    return make_rows(tiny_tokenizer, 400, shortest=150, longest=150)


def as_lists(rows) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in rows]


def by_text(batches, pad: int = 0) -> dict[tuple[int, ...], tuple]:
    """What each original row became, whatever batch it was in."""
    found = {}
    for batch in batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            assert (ids[length:] == pad).all() and (labels[length:] == -100).all() and (mask[length:] == 0).all()
            ids, labels = ids[:length], labels[:length]
            text = tuple(torch.where(labels == -100, ids, labels).tolist())
            assert text not in found
            found[text] = (ids.tolist(), labels.tolist())
    return found


# ---- masks ----------------------------------------------------------------------------------------------------------


def test_masks_do_not_depend_on_order_batches_or_workers(tiny_tokenizer):
    dataset = make_masked(tiny_tokenizer, 23)
    dataset.set_mask_epoch(2)
    expected = dict(enumerate(as_lists(dataset[index] for index in range(23))))
    assert as_lists(dataset.__getitems__([7, 3, 22, 3])) == [expected[index] for index in (7, 3, 22, 3)]
    assert as_lists([dataset[3]]) == [expected[3]]
    again = make_masked(tiny_tokenizer, 23)
    again.set_mask_epoch(2)
    assert as_lists(again[index] for index in reversed(range(23))) == [expected[i] for i in reversed(range(23))]

    whole = by_text(DataLoader(dataset, batch_size=23, collate_fn=dataset.collate))
    assert len(whole) == 23
    for options in ({"batch_size": 4}, {"batch_size": 5, "shuffle": True}, {"batch_size": 3, "num_workers": 2}):
        assert by_text(DataLoader(dataset, collate_fn=dataset.collate, **options)) == whole


def test_masks_change_with_epoch_seed_and_sample(tiny_tokenizer, long_rows):
    dataset = MaskedLanguageModelingDataset(long_rows, tiny_tokenizer, seed=1)

    def asked(index=0, epoch=0, data=dataset):
        data.set_mask_epoch(epoch)
        return data[index]["labels"] != -100

    first = asked()
    for other in (asked(epoch=1), asked(epoch=7), asked(index=1)):
        assert (first != other).any()
    assert (first != asked(data=MaskedLanguageModelingDataset(long_rows, tiny_tokenizer, seed=2))).any()
    # Where nothing tells the data set about epochs, nothing changes.
    fresh = MaskedLanguageModelingDataset(long_rows, tiny_tokenizer, seed=1)
    assert (fresh[0]["labels"] != -100).tolist() == first.tolist()
    assert asked().tolist() == first.tolist()
    # Different epochs are independent: both ask for the same token in 0.15 squared of the cases.
    both = np.concatenate([asked(index, epoch=0) & asked(index, epoch=1) for index in range(200)])
    assert both[both.size // 150 :].mean() == pytest.approx(0.15**2, abs=0.004)


def test_workers_that_outlive_an_epoch_see_the_next(tiny_tokenizer):
    dataset = make_masked(tiny_tokenizer, 9)
    loader = DataLoader(dataset, batch_size=4, collate_fn=dataset.collate, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 5):
        dataset.set_mask_epoch(epoch)
        expected = by_text(dataset.collate([dataset[index]]) for index in range(9))
        assert by_text(loader) == expected


def test_masking_leaves_the_global_generators_alone(tiny_tokenizer):
    dataset = make_masked(tiny_tokenizer)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    dataset.collate([dataset[index] for index in range(len(dataset))])
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize("probability", [0.15, 0.4, 1.0])
def test_shares(tiny_tokenizer, long_rows, probability):
    dataset = MaskedLanguageModelingDataset(long_rows, tiny_tokenizer, seed=4, mlm_probability=probability)
    rows = dataset.__getitems__(range(len(dataset)))
    ids = np.concatenate([row["input_ids"][1:-1] for row in rows])
    labels = np.concatenate([row["labels"][1:-1] for row in rows])
    original = np.concatenate([np.array(row)[1:-1] for row in long_rows["input_ids"]])
    asked = labels != -100

    def within(share, expected, count):
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / count)

    within(asked.mean(), probability, asked.size)
    assert (labels[asked] == original[asked]).all()
    assert (ids[~asked] == original[~asked]).all()
    count = asked.sum()
    became_mask = ids[asked] == tiny_tokenizer.mask_token_id
    stayed = ids[asked] == original[asked]
    words = len(tiny_tokenizer)
    # One random word in `words` is the mask token, and one is the word that was there.
    within(became_mask.mean(), 0.8 + 0.1 / words, count)
    within(stayed.mean(), 0.1 + 0.1 / words, count)
    within((~became_mask & ~stayed).mean(), 0.1 - 0.2 / words, count)
    random_words = ids[asked][~became_mask & ~stayed]
    assert len(set(random_words.tolist())) > 0.8 * words
    assert random_words.max() < words


def test_special_tokens_are_never_masked(tiny_tokenizer):
    rows = make_rows(tiny_tokenizer, 20)
    protected = rows.map(lambda row: {"special_tokens_mask": [1, 1] + [0] * (len(row["input_ids"]) - 3) + [1]})
    for dataset, never in ((rows, [0, -1]), (rows.remove_columns("special_tokens_mask"), [0, -1]), (protected, [1])):
        masked = MaskedLanguageModelingDataset(dataset, tiny_tokenizer, mlm_probability=1.0)
        for index in range(20):
            row, original = masked[index], rows[index]["input_ids"]
            assert (row["labels"][never] == -100).all()
            assert row["input_ids"][never].tolist() == np.array(original)[never].tolist()
            expected = len(original) - (3 if dataset is protected else 2)
            assert (row["labels"] != -100).sum() == expected


def test_padding(tiny_tokenizer):
    dataset = make_masked(tiny_tokenizer, 3)
    rows = [dataset[index] for index in range(3)]
    lengths = [len(row["input_ids"]) for row in rows]
    assert len(set(lengths)) > 1
    batch = dataset.collate(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(value.shape == (3, max(lengths)) and value.dtype == torch.long for value in batch.values())
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for position, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        assert batch["input_ids"][position, :length].tolist() == row["input_ids"].tolist()
        assert batch["labels"][position, :length].tolist() == row["labels"].tolist()
        assert (batch["input_ids"][position, length:] == tiny_tokenizer.pad_token_id).all()
        assert (batch["labels"][position, length:] == -100).all()


def test_messages(tiny_tokenizer, tiny_tokenizer_dir):
    rows = make_rows(tiny_tokenizer, 2)
    for probability in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"must lie in \(0, 1\], got {probability}"):
            MaskedLanguageModelingDataset(rows, tiny_tokenizer, mlm_probability=probability)
    with pytest.raises(ValueError, match=r"has the columns \['text'\], `input_ids` is missing"):
        MaskedLanguageModelingDataset(datasets.Dataset.from_dict({"text": ["a"]}), tiny_tokenizer)
    with pytest.raises(ValueError, match="has no rows"):
        MaskedLanguageModelingDataset(rows.select([]), tiny_tokenizer)
    with pytest.raises(TypeError, match="with a column `input_ids`, got a list; make one with"):
        MaskedLanguageModelingDataset([{"input_ids": [5]}], tiny_tokenizer)
    with pytest.raises(TypeError, match=r"got the splits \['train', 'test'\]; choose one, `dataset\[...\]`"):
        MaskedLanguageModelingDataset(datasets.DatasetDict({"train": rows, "test": rows}), tiny_tokenizer)
    for name in ("mask_token", "pad_token"):
        tokenizer = type(tiny_tokenizer).from_pretrained(tiny_tokenizer_dir)
        setattr(tokenizer, name, None)
        with pytest.raises(ValueError, match=f"has no {name}_id"):
            MaskedLanguageModelingDataset(rows, tokenizer)


@pytest.mark.parametrize("protected", [None, "specials", "all"])
def test_nothing_to_predict(tiny_tokenizer, protected):
    cls, unknown, sep = tiny_tokenizer.cls_token_id, tiny_tokenizer.unk_token_id, tiny_tokenizer.sep_token_id
    columns = {"input_ids": [[cls, unknown, sep], [cls, unknown, unknown, sep]]}
    if protected:  # as prepare_pretraining_data.py writes them, with unknown words among what is predicted
        inner = int(protected == "all")
        columns["special_tokens_mask"] = [[1, *[inner] * (len(row) - 2), 1] for row in columns["input_ids"]]
    found = rf"2 rows of 2, evenly spaced, hold special tokens only \(ids \[{unknown}, {cls}, {sep}\]\)"
    for kind in (None, "torch"):
        rows = datasets.Dataset.from_dict(columns).with_format(kind)
        with pytest.raises(ValueError, match=rf"There is nothing to predict: {found}.*a tokenizer of its language"):
            MaskedLanguageModelingDataset(rows, tiny_tokenizer)
    # Rows that tell nothing at the beginning, and words that are known later.
    known = [cls, *range(len(tiny_tokenizer) - 5, len(tiny_tokenizer)), sep]
    columns = {"input_ids": [[cls, sep]] * 300 + [known] * 300}
    if protected:
        columns["special_tokens_mask"] = [[1, *[0] * (len(row) - 2), 1] for row in columns["input_ids"]]
    with no_complaints():
        assert len(MaskedLanguageModelingDataset(datasets.Dataset.from_dict(columns), tiny_tokenizer)) == 600


@pytest.mark.parametrize("unknown, complains", [(2, False), (4, True)])
def test_unknown_words(tiny_tokenizer, unknown, complains, caplog):
    row = [tiny_tokenizer.cls_token_id, *[tiny_tokenizer.unk_token_id] * unknown, *range(10, 16)]
    MaskedLanguageModelingDataset(datasets.Dataset.from_dict({"input_ids": [row] * 3}), tiny_tokenizer)
    said = [record.message for record in caplog.records if "unknown to the tokenizer" in record.message]
    assert [message[:20] for message in said] == (["40% of the words are"] if complains else [])


# ---- training -------------------------------------------------------------------------------------------------------


class Spy(MaskedLMTrainer):
    """Remembers what it was trained on."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), {name: value.clone() for name, value in inputs.items()}]
        return super().training_step(model, inputs, num_items_in_batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_of_a_run_has_its_own_masks(tiny_tokenizer, tmp_path, workers):
    arguments = make_arguments(
        tmp_path,
        max_steps=6,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        train_sampling_strategy="random",
    )
    trainer = Spy(make_subnet(tiny_tokenizer), arguments, train_dataset=make_masked(tiny_tokenizer, 8))
    trainer.train()
    reference = make_masked(tiny_tokenizer, 8)
    seen_texts = []
    for epoch in range(3):
        reference.set_mask_epoch(epoch)
        found = by_text(trainer.seen[2 * epoch : 2 * epoch + 2])
        assert found == by_text(reference.collate([reference[index]]) for index in range(8))
        seen_texts.append(found)
    assert seen_texts[0] != seen_texts[1] != seen_texts[2]


@pytest.mark.parametrize("kind", MODELS)
def test_step_is_the_gradient_of_a_loop(tiny_tokenizer, tmp_path, kind):
    """One update of two micro-batches of two rows each, with unequal numbers of masked tokens."""
    model = MODELS[kind](tiny_tokenizer)
    dataset = make_masked(tiny_tokenizer, 4, mask_seed=2)
    batches = [dataset.collate([dataset[0], dataset[1]]), dataset.collate([dataset[2], dataset[3]])]
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert counts[0] != counts[1] and min(counts) > 0
    reference, losses = MODELS[kind](tiny_tokenizer).train(), []
    for batch, count in zip(batches, counts, strict=True):
        asked = batch["labels"] != -100
        scores = reference(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[asked]
        total = F.cross_entropy(scores, batch["labels"][asked], reduction="sum")
        # Our own models divide by the labelled tokens of the whole update; stock ones average their micro-batches.
        loss = total / sum(counts) if kind == "subnet" else total / count / 2
        loss.backward()
        losses.append(loss.item())
    expected = {name: value.detach() - 0.1 * value.grad for name, value in reference.named_parameters()}
    before = weights_of(model)
    arguments = make_arguments(tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer = MaskedLMTrainer(model, arguments, train_dataset=dataset)
    trainer.train()
    assert largest_change(weights_of(model), expected) < 1e-5
    assert largest_change(before, expected) > 1e-3
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(losses), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_accumulation_does_not_matter_to_our_models(tiny_tokenizer, tmp_path, batch_size):
    def train(per_step):
        options = {"per_device_train_batch_size": per_step, "gradient_accumulation_steps": 8 // per_step}
        return train_masked_lm(tiny_tokenizer, tmp_path, make_subnet(tiny_tokenizer), rows=24, **options)

    found, expected = train(batch_size), train(4)
    assert largest_change(weights_of(found.model), weights_of(expected.model)) < 1e-5
    for own, given in zip(found.state.log_history[:3], expected.state.log_history[:3], strict=True):
        assert own["loss"] == pytest.approx(given["loss"], rel=1e-5)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def brute_force_loss(model, dataset) -> tuple[float, float]:
    """Rows one by one, without padding: the mean over tokens, and the mean over rows."""
    total, count, means = 0.0, 0, []
    with torch.no_grad():
        for index in range(len(dataset)):
            row = dataset[index]
            labels = torch.from_numpy(row["labels"])
            asked = labels != -100
            scores = model.eval()(torch.from_numpy(row["input_ids"])[None]).logits[0]
            for score, label in zip(scores[asked], labels[asked], strict=True):
                total -= score.log_softmax(-1)[label].item()
                count += 1
            if asked.any():
                means.append(F.cross_entropy(scores[asked], labels[asked]).item())
    return total / count, sum(means) / len(means)


def test_evaluations_by_workers_that_stay_are_identical(tiny_tokenizer, tmp_path):
    # accelerate tells data sets with a method `set_epoch` each time that a data loader starts again.
    arguments = make_arguments(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer = MaskedLMTrainer(make_subnet(tiny_tokenizer), arguments, eval_dataset=make_masked(tiny_tokenizer, 7))
    assert len({trainer.evaluate()["eval_loss"] for _ in range(3)}) == 1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 5, 11])
def test_evaluation_is_weighted_by_tokens(tiny_tokenizer, tmp_path, kind, batch_size):
    model, dataset = MODELS[kind](tiny_tokenizer), make_masked(tiny_tokenizer, 11, seed=4)
    expected, by_rows = brute_force_loss(model, dataset)
    assert abs(expected - by_rows) > 1e-3  # or the weights would not show
    arguments = make_arguments(tmp_path, per_device_eval_batch_size=batch_size)
    trainer = MaskedLMTrainer(model, arguments, eval_dataset=dataset)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    again = trainer.evaluate()
    assert [again[name] for name in ("eval_loss", "eval_perplexity")] == [
        metrics[name] for name in ("eval_loss", "eval_perplexity")
    ]


def test_prediction_gives_summed_losses_and_counts_of_the_rows(tiny_tokenizer, tmp_path):
    model, dataset = make_subnet(tiny_tokenizer), make_masked(tiny_tokenizer, 11, seed=4)
    trainer = MaskedLMTrainer(model, make_arguments(tmp_path), eval_dataset=dataset)
    output = trainer.predict(dataset)
    assert output.predictions.shape == output.label_ids.shape == (11,)
    counts = [int((dataset[index]["labels"] != -100).sum()) for index in range(11)]
    assert output.label_ids.tolist() == counts
    for index in (0, 10):
        alone, _ = brute_force_loss(model, torch.utils.data.Subset(dataset, [index]))
        assert output.predictions[index] == pytest.approx(alone * counts[index], rel=1e-4)


def test_evaluations_end_the_last_layer_early(tiny_tokenizer, tmp_path):
    """Those of a trainer and of a search, which need a loss only."""
    model, rows, widths = make_subnet(tiny_tokenizer).eval(), make_masked(tiny_tokenizer, 7, seed=1), []
    trainer = MaskedLMTrainer(model, make_arguments(tmp_path), eval_dataset=rows)
    objective = MaskedLMObjective(rows, batch_size=5)
    model.base_model.register_forward_hook(lambda *call: widths.append(tuple(call[-1].last_hidden_state.shape)))
    loss = trainer.evaluate()["eval_loss"]
    assert objective.score(objective.evaluate(model, 0, 7)) == pytest.approx(loss, rel=1e-5)
    counted = sum(int((row["labels"] != -100).sum()) for row in rows)
    assert len(widths) == 4 and all(len(shape) == 2 for shape in widths)
    assert sum(count for count, _ in widths) == 2 * counted


def test_rows_without_masked_tokens_weigh_nothing(tiny_tokenizer, tmp_path):
    rows = make_rows(tiny_tokenizer, 11, shortest=1, longest=3)
    dataset = MaskedLanguageModelingDataset(rows, tiny_tokenizer, seed=1)
    counts = [int((dataset[index]["labels"] != -100).sum()) for index in range(11)]
    assert 0 in counts and max(counts) > 0
    model = make_subnet(tiny_tokenizer)
    trainer = MaskedLMTrainer(model, make_arguments(tmp_path, per_device_eval_batch_size=1), eval_dataset=dataset)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(brute_force_loss(model, dataset)[0], rel=1e-4)


def test_steps_without_masked_tokens_do_no_harm(tiny_tokenizer, tmp_path):
    dataset = make_masked(tiny_tokenizer, 4, probability=1e-9)
    for model in MODELS.values():
        trainer = MaskedLMTrainer(model(tiny_tokenizer), make_arguments(tmp_path), train_dataset=dataset)
        trainer.train()
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_metrics_of_the_caller_see_logits(tiny_tokenizer, tmp_path):
    def accuracy(prediction):
        asked = prediction.label_ids != -100
        assert prediction.predictions.shape[-1] == len(tiny_tokenizer)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids)[asked].mean())}

    dataset = make_masked(tiny_tokenizer, 6)
    trainer = MaskedLMTrainer(
        make_bert(tiny_tokenizer), make_arguments(tmp_path), eval_dataset=dataset, compute_metrics=accuracy
    )
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1 and "eval_perplexity" not in metrics


def test_other_datasets_are_trained_on_as_they_are(tiny_tokenizer, tmp_path):
    rows = [{"input_ids": torch.arange(5, 11), "labels": torch.arange(5, 11)} for _ in range(4)]
    model = make_subnet(tiny_tokenizer)
    trainer = MaskedLMTrainer(model, make_arguments(tmp_path), train_dataset=rows, eval_dataset=rows)
    assert not any(isinstance(callback, SetEpochCallback) for callback in trainer.callback_handler.callbacks)
    before = weights_of(model)
    trainer.train()
    assert largest_change(before, weights_of(model)) > 0
    metrics = trainer.evaluate()
    with torch.no_grad():
        loss = model.eval()(rows[0]["input_ids"][None], labels=rows[0]["labels"][None]).loss
    assert_close(torch.tensor(metrics["eval_loss"]), loss)
