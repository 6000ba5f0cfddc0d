#!/usr/bin/env bash
# A job for every line of a file of arguments, by default for run_glue.py; further arguments are for all of them:
#
#   for seed in 1 2 3; do echo "--seed $seed --output_dir runs/mrpc-s$seed"; done > runs.txt
#   ARGUMENTS_FILE=runs.txt sbatch --array=1-3 examples/slurm/runs_array.sh \
#       --model_name_or_path mos-bert-60m --task_name mrpc
#
# A line's arguments are separated by spaces, and no quotes are read. SCRIPT is another script to run; more variables:
# common.sh.
#SBATCH --job-name=runs
#SBATCH --array=1-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%A-%a.log
set -euo pipefail
cd "${PROJECT_DIR:-${SLURM_SUBMIT_DIR:-$PWD}}"
# shellcheck source=examples/slurm/common.sh
source examples/slurm/common.sh

script="${SCRIPT:-examples/text-classification/run_glue.py}"
arguments_file="${ARGUMENTS_FILE:?name the file with the arguments of each run, one run a line}"
mapfile -t lines <"$arguments_file"

if ((SLURM_ARRAY_TASK_ID < 1 || SLURM_ARRAY_TASK_ID > ${#lines[@]})); then
    echo "There is no line $SLURM_ARRAY_TASK_ID among the ${#lines[@]} of $arguments_file; give --array=1-${#lines[@]}." >&2
    exit 1
fi
read -r -a arguments <<<"${lines[SLURM_ARRAY_TASK_ID - 1]}"

"${in_container[@]}" torchrun --standalone --nproc_per_node "$processes_per_node" \
    "$script" "${arguments[@]}" "$@"
