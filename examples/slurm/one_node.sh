#!/usr/bin/env bash
# Trains on the GPUs of one node, by default the published MoS recipe; arguments are the training script's:
#
#   sbatch examples/slurm/one_node.sh --dataset_path data/books
#   SCRIPT=examples/text-classification/run_glue.py CONFIG= OUTPUT_DIR=runs/mrpc sbatch --gpus-per-node=1 \
#       examples/slurm/one_node.sh --model_name_or_path google-bert/bert-base-uncased --task_name mrpc
#
# The recipe's 2048 sequences an update are those of 8 GPUs; with others, give --gradient_accumulation_steps. A job that
# is submitted again continues from its last checkpoint. More variables: common.sh.
#SBATCH --job-name=elastic
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
cd "${PROJECT_DIR:-${SLURM_SUBMIT_DIR:-$PWD}}"
# shellcheck source=examples/slurm/common.sh
source examples/slurm/common.sh

script="${SCRIPT:-examples/language-modeling/run_mlm_mos.py}"
config="${CONFIG-examples/language-modeling/configs/mlm_mos_bert_base.yaml}"
output_dir="${OUTPUT_DIR:-runs/supernet}"

"${in_container[@]}" torchrun --standalone --nproc_per_node "$processes_per_node" \
    "$script" ${config:+"$config"} --output_dir "$output_dir" "$@"
