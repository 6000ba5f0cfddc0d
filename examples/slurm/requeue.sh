#!/usr/bin/env bash
# Runs another of these job scripts for longer than the time limit: five minutes before the end the job requeues itself,
# and the training script then continues from its last checkpoint. Arguments are the training script's:
#
#   sbatch examples/slurm/requeue.sh --save_steps 1000 --eval_steps 1000
#   JOB=examples/slurm/several_nodes.sh sbatch --nodes=2 --gpus-per-node=4 examples/slurm/requeue.sh
#
# What was trained after the last checkpoint is trained again, so checkpoints must come often compared with the time
# limit. JOB's #SBATCH lines are not read; give what it needs to sbatch. MAX_RESTARTS (20) ends a job that gets nowhere.
#SBATCH --job-name=elastic-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
cd "${PROJECT_DIR:-${SLURM_SUBMIT_DIR:-$PWD}}"

job="${JOB:-examples/slurm/one_node.sh}"
restarts="${SLURM_RESTART_COUNT:-0}"
max_restarts="${MAX_RESTARTS:-20}"

requeue() {
    if ((restarts >= max_restarts)); then
        echo "Not requeued: the job was restarted $restarts times, and MAX_RESTARTS is $max_restarts." >&2
    else
        echo "The time limit is near; requeueing job $SLURM_JOB_ID after $restarts restarts."
        scontrol requeue "$SLURM_JOB_ID"
    fi
    # Until Slurm ends the job: one that ended by itself first would count as finished.
    status=0
    wait "$training" || status=$?
    exit "$status"
}

# In the background, because bash handles a signal only when the command in the foreground is done.
trap requeue USR1
bash "$job" "$@" &
training=$!
wait "$training"
