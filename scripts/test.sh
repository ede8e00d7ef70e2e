#!/usr/bin/env bash
# Run the tests: the fast ones first, then those with the real model or two processes.
# Sets itself up first; with arguments, pytest gets those instead, as in
#   ./scripts/test.sh tests/pruners -k wanda
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

./scripts/setup.sh
if (($#)); then
    exec .venv/bin/pytest "$@"
fi
echo "test: the fast tests" >&2
.venv/bin/pytest -m "not model and not distributed"
echo "test: the real model and two processes" >&2
.venv/bin/pytest -m "model or distributed"
