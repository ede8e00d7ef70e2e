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

# SLURM runs a copy of this file: the folder is the one that sbatch was called from.
cd "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch scripts/slurm.sh}"
source .venv/bin/activate
# A rank that fails takes the job with it, instead of leaving the others waiting.
srun --kill-on-bad-exit=1 prunelit fit --config configs/multi_node.yaml "$@"
