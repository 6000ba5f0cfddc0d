#!/usr/bin/env bash
# A sweep with a job a GLUE task; arguments are those of run_glue_sweep.py and run_glue.py:
#
#   MODEL=mos-bert-60m sbatch examples/slurm/sweep_array.sh
#   TASKS="mrpc rte" MODEL=mos-bert-60m sbatch --array=0-1 examples/slurm/sweep_array.sh --keep_models all
#
# The jobs share OUTPUT_DIR, with a folder a task; submitted again, they go on. Where tasks start from another one's best
# model (students.yaml), submit that one first and the others with --dependency=afterok:JOB. More variables: common.sh.
#SBATCH --job-name=sweep
#SBATCH --array=0-7
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

model="${MODEL:-google-bert/bert-base-uncased}"
config="${CONFIG:-examples/text-classification/configs/sweep_bert.yaml}"
output_dir="${OUTPUT_DIR:-runs/sweep-bert}"
read -r -a tasks <<<"${TASKS:-mnli mrpc rte stsb cola qqp sst2 qnli}"

if ((SLURM_ARRAY_TASK_ID >= ${#tasks[@]})); then
    echo "There is no task $SLURM_ARRAY_TASK_ID among the ${#tasks[@]} of TASKS; give --array=0-$((${#tasks[@]} - 1))." >&2
    exit 1
fi

"${in_container[@]}" python examples/text-classification/run_glue_sweep.py "$config" \
    --model_name_or_path "$model" --output_dir "$output_dir" --tasks "${tasks[SLURM_ARRAY_TASK_ID]}" \
    --num_processes "$processes_per_node" "$@"
