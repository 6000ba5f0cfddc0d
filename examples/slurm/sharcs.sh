#!/usr/bin/env bash
# Trains SHARCS as published, one width a process and a GPU a process; arguments are those of run_glue_sharcs.py:
#
#   TASK=sst2 sbatch examples/slurm/sharcs.sh
#   sbatch --gpus-per-node=3 examples/slurm/sharcs.sh --width_multipliers 0.25 0.5 1
#
# At least as many GPUs as widths. Processes are started with torchrun (DDP); with --deepspeed they run in DeepSpeed.
# TASK chooses the recipe, CONFIG another one; OUTPUT_DIR as usual; more variables: common.sh.
#SBATCH --job-name=sharcs
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
cd "${PROJECT_DIR:-${SLURM_SUBMIT_DIR:-$PWD}}"
# shellcheck source=examples/slurm/common.sh
source examples/slurm/common.sh

task="${TASK:-mnli}"
config="${CONFIG:-examples/text-classification/configs/sharcs_$task.yaml}"
output_dir="${OUTPUT_DIR:-runs/sharcs-$task}"

"${in_container[@]}" torchrun --standalone --nproc_per_node "$processes_per_node" \
    examples/text-classification/run_glue_sharcs.py "$config" \
    --width_batches one_per_rank --output_dir "$output_dir" "$@"
