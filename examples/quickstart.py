# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
The whole story of Mixture-of-Supernets on text that this script makes itself: a few minutes on two cores, no network.

It trains one supernet, compares some of the subnets inside it, takes the best one under a size limit out as an
ordinary small model, loads it back with `AutoModelForMaskedLM` and fills masks with it.

    python examples/quickstart.py
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import load_from_disk
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline, set_seed
from transformers.utils import logging


EXAMPLES = Path(__file__).resolve().parent
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "language-modeling")]

from example_utils import (  # noqa: E402
    parse_arguments,
    run_script,
    start_positions_as_sinusoids,
    write_text_atomically,
)
from modeling_mos import Architecture, MosConfig, MosForMaskedLM  # noqa: E402
from prepare_pretraining_data import PreparationArguments, prepare  # noqa: E402
from synthetic_data import generate_documents  # noqa: E402
from trainers import MaskedLanguageModelingDataset, SupernetTrainer, SupernetTrainingArguments  # noqa: E402


logger = logging.get_logger("quickstart")


@dataclass
class QuickstartArguments:
    """How much to do; the defaults take a few minutes."""

    output_dir: str = field(default="quickstart_output", metadata={"help": "Where everything is written."})
    num_documents: int = field(default=3000, metadata={"help": "Documents of made-up English to train on."})
    max_steps: int = field(
        default=1000, metadata={"help": "Optimizer steps; the largest network has the first 40% for itself."}
    )
    num_candidates: int = field(default=6, metadata={"help": "Random subnets inside the limit to compare."})
    size_limit: float = field(
        default=0.6, metadata={"help": "Largest size of the subnet taken out, as a share of the largest network's."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of text, weights, masks and architectures."})


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def prepare_text(arguments: QuickstartArguments, folder: Path):
    documents = generate_documents(arguments.num_documents, seed=arguments.seed)
    write_text_atomically(folder / "text.txt", "\n".join(" ".join(text.split()) for text in documents) + "\n")
    prepare(
        PreparationArguments(
            output_dir=str(folder / "data"),
            train_file=[str(folder / "text.txt")],
            validation_split_percentage=5,
            train_tokenizer_vocab_size=1200,
            max_seq_length=64,
            seed=arguments.seed,
            overwrite=True,  # the text above was just made anew
        )
    )
    return load_from_disk(str(folder / "data")), AutoTokenizer.from_pretrained(folder / "data" / "tokenizer")


def train_supernet(arguments: QuickstartArguments, folder: Path, splits, tokenizer) -> SupernetTrainer:
    config = MosConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        search_space={"hidden_sizes": [24, 48, 72, 96]},
        routing="neuron",
        num_experts=2,
        sparse_prediction=True,
    )
    training_arguments = SupernetTrainingArguments(
        output_dir=str(folder / "training"),
        max_steps=arguments.max_steps,
        largest_only_steps=int(0.4 * arguments.max_steps),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
        warmup_steps=0.1,
        logging_steps=max(1, arguments.max_steps // 6),
        save_strategy="no",
        report_to="none",
        seed=arguments.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    supernet = MosForMaskedLM(config)
    start_positions_as_sinusoids(supernet)
    trainer = SupernetTrainer(
        supernet,
        training_arguments,
        processing_class=tokenizer,
        train_dataset=MaskedLanguageModelingDataset(splits["train"], tokenizer, seed=arguments.seed),
        eval_dataset=MaskedLanguageModelingDataset(splits["validation"], tokenizer, seed=arguments.seed),
    )
    trainer.train()
    return trainer


def compare(trainer: SupernetTrainer, architectures: dict[str, Architecture]) -> list[dict]:
    """One row an architecture: its sizes, costs and perplexity on masks that are the same for all."""
    rows = []
    for name, architecture in architectures.items():
        metrics = trainer.evaluate_architecture(architecture)
        rows.append(
            {
                "name": name,
                "architecture": architecture,
                "parameters": trainer.model.count_parameters(architecture),
                "flops": trainer.model.count_flops(architecture, sequence_length=64),
                "perplexity": metrics["eval_perplexity"],
            }
        )
    return rows


def word_frequency_perplexity(trainer: SupernetTrainer) -> float:
    """Perplexity of guessing each masked word piece by its frequency in the training text: what is to be beaten."""
    train, validation = trainer.train_dataset, trainer.eval_dataset
    counts = torch.ones(train.vocab_size)
    for ids in train.dataset["input_ids"]:
        counts += torch.bincount(torch.tensor(ids), minlength=train.vocab_size)
    losses = -(counts / counts.sum()).log()
    labels = torch.cat([torch.from_numpy(row["labels"]) for row in validation.__getitems__(range(len(validation)))])
    return losses[labels[labels != -100]].mean().exp().item()


def largest_difference(supernet: MosForMaskedLM, subnet, architecture: Architecture, tokenizer) -> float:
    """Between the logits of the slice inside the supernet and of the model taken out."""
    batch = tokenizer(["the old captain [MASK] the letter.", "a song"], padding=True, return_tensors="pt")
    batch = batch.to(supernet.device)
    with torch.no_grad():
        return (supernet(**batch, architecture=architecture).logits - subnet(**batch).logits).abs().max().item()


def plot(rows: list[dict], chosen: str, frequencies: float, path: Path) -> bool:
    """Draws parameters against perplexity; whether there is something to draw with."""
    try:
        import matplotlib
    except ImportError:
        logger.warning(
            "matplotlib is not installed, so there is no plot; pip install -c constraints.txt -e '.[plots]'."
        )
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.axhline(frequencies, color="gray", linestyle="--", label="word frequencies alone")
    for row in rows:
        is_chosen = row["name"] == chosen
        axes.scatter(row["parameters"] / 1e3, row["perplexity"], color="C1" if is_chosen else "C0", zorder=2)
        if is_chosen or row["name"] in ("largest", "smallest"):
            axes.annotate(
                row["name"], (row["parameters"] / 1e3, row["perplexity"]), xytext=(5, 5), textcoords="offset points"
            )
    axes.margins(0.12)
    axes.legend(loc="best")
    axes.set_xlabel("parameters of the subnet (thousands)")
    axes.set_ylabel("validation perplexity")
    axes.set_title("Subnets of one supernet; the one taken out is orange")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def print_table(rows: list[dict], chosen: str) -> None:
    print(f"{'':2}{'subnet':<14}{'widths of its layers':<24}{'parameters':>12}{'MFLOPs':>10}{'perplexity':>12}")
    for row in sorted(rows, key=lambda row: row["parameters"]):
        mark = "*" if row["name"] == chosen else ""
        widths = " ".join(str(width) for width in row["architecture"].hidden_sizes)
        print(
            f"{mark:2}{row['name']:<14}{widths:<24}{row['parameters']:>12,}{row['flops'] / 1e6:>10.1f}"
            f"{row['perplexity']:>12.2f}"
        )


def main(arguments: Sequence[str] | None = None) -> dict:
    (arguments,) = parse_arguments(QuickstartArguments, arguments, description="Mixture-of-Supernets in a few minutes")
    folder = Path(arguments.output_dir)
    set_seed(arguments.seed)

    heading("1. Text, tokenizer, packed sequences")
    splits, tokenizer = prepare_text(arguments, folder)
    print(f"{len(splits['train']):,} training sequences of at most 64 tokens, {len(tokenizer):,} word pieces")
    print("for example:", tokenizer.decode(splits["train"][0]["input_ids"], skip_special_tokens=True)[:150], "…")

    heading(
        "2. One supernet: first its largest network learns, then the largest, the smallest and a random one together"
    )
    trainer = train_supernet(arguments, folder, splits, tokenizer)
    supernet = trainer.model.eval()

    heading("3. Its subnets compared")
    space = supernet.search_space
    limit = int(arguments.size_limit * supernet.count_parameters(space.largest()))
    candidates = supernet.sample_architectures(
        arguments.num_candidates, seed=arguments.seed, min_parameters=int(0.85 * limit), max_parameters=limit
    )
    architectures = {"largest": space.largest(), "smallest": space.smallest()}
    architectures |= {f"candidate {index + 1}": found for index, found in enumerate(candidates)}
    rows = compare(trainer, architectures)
    best = min((row for row in rows if row["parameters"] <= limit), key=lambda row: row["perplexity"])

    heading(f"4. The best one of at most {limit:,} parameters taken out, saved, and loaded back")
    subnet = supernet.extract_subnet(best["architecture"])
    subnet_folder = folder / "subnet"
    subnet.save_pretrained(subnet_folder)
    tokenizer.save_pretrained(subnet_folder)
    loaded = AutoModelForMaskedLM.from_pretrained(subnet_folder).to(supernet.device).eval()
    difference = largest_difference(supernet, loaded, best["architecture"], tokenizer)
    print(f"{type(loaded).__name__} with {loaded.num_parameters():,} parameters in {subnet_folder}")

    fill = pipeline("fill-mask", model=loaded, tokenizer=tokenizer)
    for document in generate_documents(3, seed=arguments.seed + 1):
        words = document.split(".")[0].split()
        place = len(words) // 2
        hidden, words[place] = words[place], tokenizer.mask_token
        guesses = ", ".join(f"{guess['token_str']!r} {guess['score']:.2f}" for guess in fill(" ".join(words), top_k=3))
        print(f"  {' '.join(words)}.\n    was: {hidden!r}   guesses: {guesses}")

    frequencies = word_frequency_perplexity(trainer)
    plotted = plot(rows, best["name"], frequencies, folder / "subnets.png")
    heading("Summary")
    print_table(rows, best["name"])
    print(f"{'':2}{'word frequencies alone':<60}{frequencies:>14.2f}")
    print("* the one taken out: the best of those within the limit")
    print(f"subnet against the slice inside the supernet: largest difference of a logit {difference:.1e}")
    print(f"written: {subnet_folder} (the subnet)" + (f", {folder / 'subnets.png'} (the plot)" if plotted else ""))
    return {"rows": rows, "best": best["name"], "difference": difference}


if __name__ == "__main__":
    run_script(main)
