# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""What several example scripts share: reading arguments, writing files whole, training a small tokenizer."""

import contextlib
import difflib
import io
import json
import logging
import math
import os
import re
import shutil
import string
import subprocess
import sys
import unicodedata
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from tqdm.auto import tqdm
from transformers import BertTokenizer, HfArgumentParser, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import is_matplotlib_available


__all__ = [
    "argument_names",
    "check_same_command",
    "check_step",
    "describe_dataset",
    "expand_argument_file",
    "parse_arguments",
    "parse_given_arguments",
    "parse_mapping",
    "parse_search_space",
    "pin_memory_for_accelerators",
    "publish",
    "read_lines",
    "require_new_folder",
    "run_logged",
    "run_script",
    "run_step",
    "save_training_plot",
    "show_progress_messages",
    "start_positions_as_sinusoids",
    "to_flags",
    "train_wordpiece_tokenizer",
    "without_timings",
    "write_folder_atomically",
    "write_text_atomically",
]

_logger = logging.getLogger(__name__)

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
STATUS_SECONDS = 1.0  # between two looks at what a step says
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def parse_arguments(
    dataclass_types: type | Sequence[type], arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """
    Reads the dataclasses of a script from flags, or from one `.json`, `.yaml` or `.yml` file, given first, that flags
    after it override.

    A file goes through the same parser as flags, so that both accept the same values. Nothing in it is evaluated.

    Args:
        dataclass_types (`type` or a sequence of them): What to fill, as for [`~transformers.HfArgumentParser`].
        arguments (sequence of `str`, *optional*): The command line without the program; `sys.argv[1:]` if not given.
        description (`str`, *optional*): The text above the options in `--help`.

    Returns:
        `tuple`: One instance of each dataclass, in order.

    Raises:
        ValueError: An unknown option or key, or a file that is not a flat mapping.
        FileNotFoundError: The argument file does not exist.
    """
    types = [dataclass_types] if isinstance(dataclass_types, type) else list(dataclass_types)
    parser = _make_parser(tuple(types), description)
    known = argument_names(types)
    arguments = expand_argument_file(sys.argv[1:] if arguments is None else arguments, known)
    # Asked for first, because a misspelt option is often the reason why the values are not valid together.
    _, unknown = parser.parse_known_args(arguments)
    _check_unknown(unknown, known)
    return parser.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)


def parse_given_arguments(dataclass_types: Sequence[type], arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """
    Reads what a command line, or its argument file, sets itself, in the types that the dataclasses name: defaults are
    left out, and the dataclasses are not made.

    Args:
        dataclass_types (sequence of types): As for [`parse_arguments`].
        arguments (sequence of `str`, *optional*): The command line without the program; `sys.argv[1:]` if not given.

    Returns:
        `dict[str, Any]`: The values by name.

    Raises:
        ValueError: An unknown option or key.
    """
    known = argument_names(dataclass_types)
    arguments = expand_argument_file(sys.argv[1:] if arguments is None else arguments, known)
    parser = _make_parser(tuple(dataclass_types))
    absent = object()  # What the parser finds in place, it leaves, unless the command line sets it.
    namespace, unknown = parser.parse_known_args(arguments, Namespace(**dict.fromkeys(known, absent)))
    _check_unknown(unknown, known)
    return {name: value for name, value in vars(namespace).items() if value is not absent}


@cache
def _make_parser(dataclass_types: tuple[type, ...], description: str | None = None) -> HfArgumentParser:
    """Making a parser takes ten times as long as parsing, which who reads many command lines would feel."""
    return HfArgumentParser(dataclass_types, description=description, allow_abbrev=False)


def argument_names(dataclass_types: Sequence[type]) -> list[str]:
    """The names of all options of a script."""
    return [field.name for dataclass_type in dataclass_types for field in fields(dataclass_type) if field.init]


def expand_argument_file(arguments: Sequence[str], known: Sequence[str]) -> list[str]:
    """
    Puts the content of an argument file, if the command line starts with one, in its place as flags.

    Raises:
        ValueError: A key that is not among `known`, or a file that is not a flat mapping.
        FileNotFoundError: The file does not exist.
    """
    arguments = [str(argument) for argument in arguments]
    if not (arguments and arguments[0].endswith(CONFIG_SUFFIXES)):
        return arguments
    path = Path(arguments[0])
    content = _read_mapping(path)
    for key in content:
        if key not in known:
            raise ValueError(
                f"Unknown key {key!r} in the argument file {str(path)!r}{_suggest(str(key), known)}"
                " See --help for the list."
            )
    return to_flags(content) + arguments[1:]


def _check_unknown(unknown: Sequence[str], known: Sequence[str]) -> None:
    if unknown:
        name = next((argument for argument in unknown if argument.startswith("--")), unknown[0]).partition("=")[0]
        raise ValueError(
            f"Unknown argument {name!r}{_suggest(name.lstrip('-'), known, prefix='--')} See --help for the list."
        )


def _read_mapping(path: Path) -> dict[str, Any]:
    """Reads an argument file; `yaml.safe_load` builds plain data only."""
    if not path.is_file():
        raise FileNotFoundError(f"The argument file {str(path)!r} does not exist.")
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The argument file {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"The argument file {str(path)!r} must hold a mapping from argument names to values, not "
            f"{'nothing' if content is None else 'a ' + type(content).__name__}."
        )
    return content


def to_flags(settings: Mapping[str, Any]) -> list[str]:
    """Turns options into a command line. `None` leaves an option at its default."""
    flags = []
    for name, value in settings.items():
        if value is None:
            continue
        if isinstance(value, list):
            # Separate words are how argparse takes lists; JSON is how it takes what cannot be written as words.
            flags += [f"--{name}", *(_to_word(item) for item in value)]
        else:
            flags.append(f"--{name}={_to_word(value)}")
    return flags


def _to_word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _suggest(name: str, known: Sequence[str], prefix: str = "") -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(prefix + match) for match in matches)}?" if matches else "."


def pin_memory_for_accelerators(arguments: TrainingArguments) -> None:
    """Pinned memory speeds up copies to an accelerator; without one torch would warn of every data loader."""
    if arguments.device.type == "cpu":
        arguments.dataloader_pin_memory = False


def show_progress_messages(logger: logging.Logger) -> None:
    """Shows what a script says about its progress, and of other packages warnings only."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    for own in (logger, _logger):
        own.setLevel(logging.INFO)


def run_script(main: Callable[[], object]) -> None:
    """Runs a script's `main`; what is wrong with the user's input is said without a traceback."""
    try:
        main()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Left to the interpreter's end, its threads may abort a process that has done all its work.
            torch.distributed.destroy_process_group()
    except (ValueError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.errno is None:  # such as a model that is nowhere
            message += "".join(f" {name!r} is no folder here." for name in _absent_models(sys.argv[1:]))
        sys.exit(f"{Path(sys.argv[0]).name}: {message}")
    except StrictDataclassError as error:  # a configuration that says what it does not take, in its cause
        sys.exit(f"{Path(sys.argv[0]).name}: {error.__cause__ or error}")


def _absent_models(arguments: Sequence[str]) -> list[str]:
    """The values of options such as `--model_name_or_path` that are no folders: what the Hub was asked for."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    values = [value for name, value in pairwise(words) if re.fullmatch(r"--(\w+_name_or_path|tokenizer_name)", name)]
    return [value for value in values if not Path(value).exists()]


def run_step(script: Path, result: Path, leading: Sequence[str] = (), **options: Any) -> None:
    """
    Runs a script in a process of its own, unless `result`, the last file that it writes, is there. One that was
    stopped is called again, and continues by itself. What it says goes to a log beside the folder of `result`.

    Args:
        script (`Path`): The script.
        result (`Path`): A file in its output folder.
        leading (sequence of `str`, *optional*): What stands before the options, such as an argument file.
        options: Its options, as for [`to_flags`].

    Raises:
        ValueError: The script failed; the message holds the last line that it said.
    """
    if result.exists():
        return
    log = result.parent.with_name(f"{result.parent.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    _logger.info(f"{script.name} -> {result.parent} (what it says is in {log})")
    code = run_logged([sys.executable, str(script), *map(str, leading), *to_flags(options)], log, script.name)
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        raise ValueError(f"{script.name} failed with {code}: {said[-1]} (see {log}).")


def run_logged(command: Sequence[str], log: Path, description: str, **options: Any) -> int:
    """
    Runs a command whose output goes to the end of a log. On a terminal, a line shows meanwhile how long it has run
    and what it said last, which mostly is the state of a progress bar.

    Args:
        command (sequence of `str`): The command.
        log (`Path`): The log.
        description (`str`): What the line begins with.
        options: Other arguments of `subprocess.Popen`.

    Returns:
        `int`: The command's exit status.
    """
    line = {"bar_format": "{desc} {elapsed}{postfix}", "leave": False, "disable": None}  # None: not without a terminal
    with open(log, "ab") as stream, open(log, "rb") as written, tqdm(desc=description, **line) as status:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, **options)
        try:
            while not status.disable:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=STATUS_SECONDS)
                written.seek(max(0, written.seek(0, os.SEEK_END) - 1000))
                said = written.read().decode("utf-8", errors="replace").strip().splitlines() or [""]
                room = max(20, shutil.get_terminal_size().columns - len(description) - 12)
                status.set_postfix_str(said[-1].strip()[:room])
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def check_step(script: str, read: Callable[[Sequence[str]], object], *leading: str, **options: Any) -> None:
    """
    Reads the command line of a step as its script will, so that what is wrong with it is said before the first step.

    Args:
        script (`str`): The script's name, for messages.
        read (callable): What the script reads its command line with.
        leading (`str`): What stands before the options, such as an argument file.
        options: Its options, as for [`to_flags`].

    Raises:
        ValueError: The script would refuse it; the message holds the script's own.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read([*leading, *to_flags({**options, "use_cpu": True})])  # This process takes no room on a GPU.
    except (ValueError, ImportError) as error:
        raise ValueError(f"{script} would refuse its options: {error}") from error
    except SystemExit:  # argparse's way to refuse the value of an option
        message = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ValueError(f"{script} would refuse its options: {message}") from None


def check_same_command(path: Path, asked: Mapping[str, Any]) -> None:
    """
    Remembers a command's arguments: what was made with others must not be taken for a result of these.

    Args:
        path (`Path`): Where to remember them, in the output folder.
        asked (mapping): Those that decide the results, by name.

    Raises:
        ValueError: The folder holds the results of other arguments.
    """
    asked = json.loads(json.dumps(asked))
    others = (file for file in path.parent.rglob("*") if file.is_file() and file != path)
    # A command that failed before its first result, over a wrong path for example, may be corrected.
    if not path.exists() or not any(file.suffix != ".log" and not file.name.startswith(".") for file in others):
        write_text_atomically(path, json.dumps(asked, indent=2) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for name in {**found, **asked}:
        if found.get(name) != asked.get(name):
            raise ValueError(
                f"{str(path.parent)!r} holds the results of a command with {name}={found.get(name)!r}, this one has "
                f"{asked.get(name)!r}; choose another --output_dir, or delete that folder."
            )


def parse_mapping(name: str, text: str) -> dict[str, Any]:
    """
    An option whose value is a mapping from arguments to values, as JSON.

    Raises:
        ValueError: It is no JSON, or no mapping.
    """
    try:
        mapping = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{name} is not valid JSON: {text!r} ({error}).") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"--{name} must be a mapping, as '{{\"learning_rate\": 3e-5}}', not {text!r}.")
    return mapping


def describe_dataset(arguments: Any) -> dict[str, str | None]:
    """What a model card says of the data set of the Hub that a script's arguments name, if they do."""
    name = arguments.dataset_name
    if name is None or Path(name).exists():
        return {}
    return {"dataset_tags": name, "dataset_args": arguments.dataset_config_name}


def without_timings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without how long they took: the same command on a finished run shall write the same files."""
    timed = ("_runtime", "_per_second", "_time")
    return {name: value for name, value in metrics.items() if not name.endswith(timed)}


def publish(trainer: Trainer, **card: Any) -> None:
    """
    Writes the plot of the training and the model card, and with `--push_to_hub` publishes the output folder; `card` is
    what the card says.
    """
    if trainer.is_world_process_zero() and is_matplotlib_available():
        save_training_plot(trainer.state.log_history, Path(trainer.args.output_dir) / "training.png")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def save_training_plot(history: Iterable[Mapping[str, float]], path: Path) -> None:
    """
    The training loss and every evaluation's losses over steps; no file where there are none.

    Args:
        history (iterable of mappings): A trainer's `state.log_history`.
        path (`Path`): The PNG file to write.
    """
    curves = defaultdict(list)
    for entry in history:
        for name, value in entry.items():
            if name == "loss" or (name.startswith("eval_") and name.endswith("loss")):
                curves[name].append((entry["step"], value))
    if not curves:
        _logger.info("There is no plot of the training: nothing was logged. Lower --logging_steps for one.")
        return
    from matplotlib.figure import Figure  # optional; without pyplot no display is looked for

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in sorted(curves.items(), reverse=True):  # the training's first
        axes.plot(*zip(*points, strict=True), label=name, marker="." if name.startswith("eval_") else "")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def write_text_atomically(path: str | os.PathLike, text: str | Iterable[str]) -> None:
    """
    Writes a UTF-8 text file beside its place and renames it when it is whole, so that no reader sees half of it and a
    failure leaves an earlier file as it was.

    Args:
        path (`str` or `os.PathLike`): The file to write; missing folders are created.
        text (`str` or iterable of `str`): The content, or its parts in order.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """
    Gives a folder beside `path` to write to, which takes its name when the block is through; after a failure nothing
    is left.

    Args:
        path (`str` or `os.PathLike`): The folder to write; it is missing or empty, see [`require_new_folder`].
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_new_folder(path: str | os.PathLike) -> None:
    """
    Raises:
        ValueError: The output folder is a file or holds something.
    """
    folder = Path(path)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"--output_dir {str(path)!r} exists and is not empty; choose another, or delete it.")


def parse_search_space(text: str) -> str | dict[str, Any]:
    """A preset's name, or choices as JSON."""
    if not text.lstrip().startswith("{"):
        return text
    return parse_mapping("search_space", text)


def read_lines(path: Path) -> Iterator[str]:
    """
    Yields the lines of a UTF-8 file, line ends included, a byte order mark excluded.

    Raises:
        ValueError: The file is not UTF-8; the message holds the place of the first byte that is not.
    """
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                place = offset + error.start
                raise ValueError(
                    f"The file {str(path)!r} is not UTF-8 text: the byte 0x{line[error.start]:02x} at offset {place} "
                    "cannot be decoded. Convert it first, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
                ) from error
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)


def _count_characters(texts: Iterable[str], normalizer: BertNormalizer, limit: int) -> tuple[list[str], list[str]]:
    """Returns the most frequent characters, sorted, and those of them that occur inside a word, after its first."""
    words = Counter(word for text in texts for word in normalizer.normalize_str(text).split())
    counts: Counter[str] = Counter()
    inside = set()
    for word, count in words.items():
        counts.update(dict.fromkeys(word, count))
        for previous, character in pairwise(word):
            if not (_is_punctuation(previous) or _is_punctuation(character)):
                inside.add(character)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:limit]
    return sorted(frequent), sorted(inside.intersection(frequent))


def _is_punctuation(character: str) -> bool:
    """Whether BERT's pre-tokenizer makes the character a word of its own."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


@torch.no_grad()
def start_positions_as_sinusoids(model: PreTrainedModel) -> None:
    """
    Sets the learned position embeddings of a new BERT-like model to sinusoids of about its initial scale.

    Attention to neighbours is then one rotation away instead of something to discover, so that small networks leave
    the plateau of word frequencies, where masked language modeling begins, several times earlier.
    """
    weight = model.base_model.embeddings.position_embeddings.weight
    positions, width = weight.shape
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))
    angles = torch.arange(positions)[:, None] * rates
    weight[:, 0::2] = torch.sin(angles) * 2 * model.config.initializer_range
    weight[:, 1::2] = torch.cos(angles[:, : width // 2]) * 2 * model.config.initializer_range


def train_wordpiece_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    output_dir: str | os.PathLike | None = None,
    model_max_length: int = 512,
    show_progress: bool = False,
) -> BertTokenizer:
    """
    Trains a small lower-cased WordPiece tokenizer of the kind that `bert-base-uncased` has. The same text gives the
    same tokenizer.

    Args:
        texts (iterable of `str`): The training text, in parts of any length. It is gone through twice; an iterator is
            held in memory for that.
        vocab_size (`int`): The largest number of entries, special tokens included. Text with few word types may give
            fewer.
        output_dir (`str` or `os.PathLike`, *optional*): Where to save the tokenizer, for `from_pretrained`.
        model_max_length (`int`, *optional*, defaults to 512): The longest sequence, in tokens, that the tokenizer
            announces.
        show_progress (`bool`, *optional*, defaults to `False`): Whether to show the trainer's progress bars.

    Returns:
        `BertTokenizer`: `[PAD]` is 0, followed by `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]`.

    Raises:
        ValueError: `vocab_size` does not hold the special tokens and the characters of the text, or there is no text.
    """
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    # The same steps as BertTokenizer takes, so that the vocabulary is trained on what it will meet.
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    if iter(texts) is texts:
        texts = list(texts)  # An iterator would be used up by the first of the two passes.
    # Left to itself, the trainer numbers characters in the random order of a hash table and breaks ties between merges
    # by those numbers: the same text would give another vocabulary each time. Given ahead, they have a fixed order.
    # Rare characters become [UNK] rather than crowd words out of a small vocabulary.
    alphabet, continuations = _count_characters(texts, tokenizer.normalizer, limit=max(64, vocab_size // 20))
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in continuations)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(SPECIAL_TOKENS):
        raise ValueError("There is no text to train a tokenizer on; every text given is empty.")
    if len(vocabulary) > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: the special tokens and the characters of the text take "
            f"{len(vocabulary)} entries. Use at least {len(vocabulary)}; a few thousand are usual."
        )
    vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    wordpiece = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=model_max_length)
    if output_dir is not None:
        wordpiece.save_pretrained(output_dir)
    return wordpiece
