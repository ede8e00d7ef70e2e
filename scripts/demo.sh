#!/usr/bin/env bash
# Prune a model of 135M parameters with Wanda and compare it with the dense model.
# Runs scripts/setup.sh first. Arguments go to prunelit:
#   ./scripts/demo.sh --pruning.pruner.sparsity.ratio 0.3
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

./scripts/setup.sh
echo "demo: prunelit fit --config configs/wanda.yaml${*:+ $*}" >&2
exec .venv/bin/prunelit fit --config configs/wanda.yaml "$@"
