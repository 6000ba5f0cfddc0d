# shellcheck shell=bash disable=SC2034  # what is set here is read by the scripts
# What the job scripts of this folder share; they read it from the checkout, where they are submitted:
#
#   sbatch examples/slurm/one_node.sh
#
# All of them read, from the environment:
#   PROJECT_DIR         the checkout, if it is not the folder of submission
#   VENV                the environment to run in, if it is not the checkout's .venv
#   CONTAINER           an image of examples/apptainer/elastic_encoders.def to run in instead: the
#                       checkout's scripts with the image's package
#   PROCESSES_PER_NODE  if it is not the number of GPUs

# torchrun would set it too, with a warning.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

processes_per_node="${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"

# What comes before a command, so that it runs in the container.
in_container=()
if [[ -n "${CONTAINER:-}" ]]; then
    in_container=(apptainer exec --nv --bind "$PWD" "$CONTAINER")
else
    export PATH="${VENV:-$PWD/.venv}/bin:$PATH"
fi
