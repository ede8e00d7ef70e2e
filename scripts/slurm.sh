#!/usr/bin/env bash
# Two nodes of eight GPUs under SLURM: sbatch scripts/slurm.sh [options of prunelit fit]
#SBATCH --job-name=prunelit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

# SLURM runs a copy of this file, so change to the folder in which sbatch was called.
cd "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch scripts/slurm.sh}"
source .venv/bin/activate
# If one rank fails, stop the whole job. The other ranks would wait for it.
srun --kill-on-bad-exit=1 prunelit fit --config configs/multi_node.yaml "$@"
