#!/usr/bin/env bash
# Run the tests. Runs scripts/setup.sh first.
#   scripts/test.sh                            every test but those marked `full`
#   scripts/test.sh full                       the tests marked `full`
#   scripts/test.sh tests/pruners -k wanda     arguments go to pytest
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

./scripts/setup.sh
# One worker a core. More than four wait for memory.
workers=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
parallel=(--numprocesses "$((workers < 4 ? workers : 4))" --dist worksteal)

if [[ ${1-} == full ]]; then
    echo "test: the tests marked full" >&2
    exec .venv/bin/pytest "${parallel[@]}" -m full "${@:2}"
elif (($#)); then
    exec .venv/bin/pytest "$@"
fi
echo "test: the examples in docstrings and the fast tests" >&2
.venv/bin/pytest "${parallel[@]}" -m "not model and not distributed and not full"
# After the fast ones: a test of these uses several processes or much memory.
echo "test: the tests with the real model or two processes" >&2
.venv/bin/pytest "${parallel[@]}" -m "(model or distributed) and not full"
