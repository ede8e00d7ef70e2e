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
# One run, since each imports and collects for half a minute. The tests of several processes or with
# much memory come first, in one worker: see tests/conftest.py.
echo "test: the examples in docstrings, and every test but those marked full" >&2
.venv/bin/pytest "${parallel[@]}" -m "not full"
