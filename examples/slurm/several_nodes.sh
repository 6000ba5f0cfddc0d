#!/usr/bin/env bash
# Trains on several nodes, one torchrun a node, by default the published MoS recipe; arguments are the training script's:
#
#   sbatch examples/slurm/several_nodes.sh --dataset_path data/books
#   sbatch --nodes=4 examples/slurm/several_nodes.sh --gradient_accumulation_steps 1
#
# The recipe's 2048 sequences an update are those of 8 GPUs. The checkout, the data and the output must be on a file
# system that all nodes share. SCRIPT, CONFIG and OUTPUT_DIR are as in one_node.sh, PORT is where the nodes meet; more
# variables: common.sh.
#SBATCH --job-name=elastic-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=24
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
cd "${PROJECT_DIR:-${SLURM_SUBMIT_DIR:-$PWD}}"
# shellcheck source=examples/slurm/common.sh
source examples/slurm/common.sh

script="${SCRIPT:-examples/language-modeling/run_mlm_mos.py}"
config="${CONFIG-examples/language-modeling/configs/mlm_mos_bert_base.yaml}"
output_dir="${OUTPUT_DIR:-runs/supernet}"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Jobs that share a node need ports of their own, below those that the system gives out.
port="${PORT:-$((10000 + SLURM_JOB_ID % 20000))}"

# srun does not take over the job's --cpus-per-task by itself.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${in_container[@]}" \
    torchrun --nnodes "${#nodes[@]}" --nproc_per_node "$processes_per_node" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "${nodes[0]}:$port" \
    "$script" ${config:+"$config"} --output_dir "$output_dir" "$@"
