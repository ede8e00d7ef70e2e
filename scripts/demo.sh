#!/usr/bin/env bash
# Prune a real model of 135M parameters with Wanda and compare it with the dense one.
# Sets itself up first; arguments go to the command line, as in
#   ./scripts/demo.sh --pruning.pruner.sparsity.ratio 0.3
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

./scripts/setup.sh
echo "demo: prunelit fit --config configs/wanda.yaml${*:+ $*}" >&2
exec .venv/bin/prunelit fit --config configs/wanda.yaml "$@"
