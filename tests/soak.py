# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Kills runs of the three trainers and of the search at random points, over and over, and continues them: each must end
where the run that nobody disturbed ends, and no checkpoint may ever be half-written. `make soak` runs it:

    python tests/soak.py --kills 24 --seed 0

Prints counts as JSON; the exit status is 1 where something did not hold.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path


sys.path[:0] = [str(Path(__file__).resolve().parent), *map(str, Path(__file__).resolve().parents[1:2])]
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from conftest import TINY_TEXT  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import BertTokenizer  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

from deepspeed_training import make_distillation_run, make_routed_run, make_supernet_run  # noqa: E402
from example_utils import train_wordpiece_tokenizer, write_text_atomically  # noqa: E402
from modeling_mos import EvolutionarySearch, MaskedLMObjective  # noqa: E402
from trainers.checkpoints import STAGING_FOLDER, check_files  # noqa: E402
from trainers.sharcs import HARDNESS_NAME  # noqa: E402
from training_utils import largest_change, make_masked, make_supernet, weights_of  # noqa: E402


TRAINERS = {"supernet": make_supernet_run, "routed": make_routed_run, "distilled": make_distillation_run}
FINAL_WEIGHTS, ANSWER, JOURNAL = "final.safetensors", "answer.json", "results.jsonl"


# ---- what is killed -------------------------------------------------------------------------------------------------


def train(kind: str, tokenizer: BertTokenizer, folder: Path) -> None:
    """Trains from the last checkpoint on, saves after every step, and leaves the final weights."""
    options = {"num_train_epochs": 6} if kind == "routed" else {"max_steps": 16}
    trainer = TRAINERS[kind](
        tokenizer,
        folder,
        1,
        optim="adamw_torch",
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        **options,
    )
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1  # so that random states matter
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    save_file(weights_of(trainer.model), folder / f"{FINAL_WEIGHTS}.unfinished")
    os.replace(folder / f"{FINAL_WEIGHTS}.unfinished", folder / FINAL_WEIGHTS)


def search(tokenizer: BertTokenizer, folder: Path) -> None:
    """Searches, or goes on, and leaves the answer."""
    torch.manual_seed(0)
    supernet = make_supernet(tokenizer, search_space={"hidden_sizes": [16, 24, 36, 48]})
    result = EvolutionarySearch(
        supernet,
        MaskedLMObjective(make_masked(tokenizer, 96), batch_size=16),
        population_size=24,
        parent_size=6,
        mutation_size=10,
        crossover_size=10,
        num_rounds=6,
        output_dir=folder,
        show_progress=False,
    ).run()
    answer = {"best": result.best.to_dict(), "front": [found.to_dict() for found in result.front]}
    write_text_atomically(folder / ANSWER, json.dumps(answer))


def work(kind: str, tokenizer: BertTokenizer, folder: Path) -> None:
    search(tokenizer, folder) if kind == "search" else train(kind, tokenizer, folder)


# ---- killing --------------------------------------------------------------------------------------------------------


def start(run: Callable[[], None], log: Path) -> int:
    """Runs in a forked process, which has all that it imports; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill_after(child: int, seconds: float) -> bool:
    """Whether the process was killed after so many seconds; `False` if it had ended well before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if status:
                raise RuntimeError(f"A run failed by itself with status {status}.")
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def broken_files(kind: str, folder: Path) -> list[str]:
    """Files that a resumed run would read and that are not whole."""
    broken = []

    def check(file: Path, read: Callable[[Path], object]) -> None:
        try:
            read(file)
        except Exception as error:
            broken.append(f"{file}: {error}")

    if kind == "search":
        # The line that was being written is cut; the search makes that evaluation again.
        for line in (folder / JOURNAL).read_text().split("\n")[:-1] if (folder / JOURNAL).exists() else []:
            check(folder / JOURNAL, lambda file, line=line: json.loads(line))
    for checkpoint in folder.glob("checkpoint-*"):
        check(checkpoint, check_files)
        check(checkpoint / "model.safetensors", load_file)
        check(checkpoint / "trainer_state.json", lambda file: json.loads(file.read_text()))
        for name in ("optimizer.pt", "scheduler.pt"):
            check(checkpoint / name, lambda file: torch.load(file, weights_only=True))
        check(checkpoint / "rng_state.pth", lambda file: torch.load(file, weights_only=False))
        if kind == "routed":
            check(checkpoint / HARDNESS_NAME, load_file)
    return broken


def differs(kind: str, disturbed: Path, undisturbed: Path) -> bool:
    if kind == "search":
        return (disturbed / ANSWER).read_text() != (undisturbed / ANSWER).read_text()
    return largest_change(*(load_file(folder / FINAL_WEIGHTS) for folder in (disturbed, undisturbed))) != 0


def soak(kind: str, tokenizer: BertTokenizer, root: Path, kills: int, generator: random.Random) -> dict[str, object]:
    """Disturbed runs, one after the other, until there were so many kills; counts of what happened."""
    undisturbed = root / f"{kind}_undisturbed"
    began = time.monotonic()
    kill_after(start(lambda: work(kind, tokenizer, undisturbed), root / f"{kind}.log"), float("inf"))
    duration = time.monotonic() - began
    counts = {"kills": 0, "kills_while_saving": 0, "runs": 0, "runs_that_differ": 0, "broken_files": []}
    while counts["kills"] < kills:
        disturbed = root / f"{kind}_{counts['runs']}"
        alive = True
        while alive:
            wait = generator.uniform(0, duration) if counts["kills"] < kills else float("inf")
            child = start(lambda folder=disturbed: work(kind, tokenizer, folder), root / f"{kind}.log")
            alive = kill_after(child, wait)
            counts["kills"] += alive
            counts["kills_while_saving"] += alive and (disturbed / STAGING_FOLDER).is_dir()
            counts["broken_files"] += broken_files(kind, disturbed)
        counts["runs"] += 1
        counts["runs_that_differ"] += differs(kind, disturbed, undisturbed)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="in all, divided among the trainers and the search")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    kinds = [*TRAINERS, "search"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train_wordpiece_tokenizer(TINY_TEXT, vocab_size=120, output_dir=root / "tokenizer", model_max_length=64)
        tokenizer = BertTokenizer.from_pretrained(root / "tokenizer")
        try:
            counts = {
                kind: soak(kind, tokenizer, root, -(-arguments.kills // len(kinds)), generator) for kind in kinds
            }
        except RuntimeError:
            print(*(log.read_text()[-3000:] for log in root.glob("*.log")), sep="\n", file=sys.stderr)
            raise
    counts["kills"] = sum(counts[kind]["kills"] for kind in kinds)
    print(json.dumps(counts, indent=2))
    sys.exit(any(counts[kind]["broken_files"] or counts[kind]["runs_that_differ"] for kind in kinds))


if __name__ == "__main__":
    main()
