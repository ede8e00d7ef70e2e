#!/usr/bin/env bash
# Build the documentation site into docs/_build/html; open index.html there in a browser.
# Sets itself up first; warnings, broken links and unknown API references are errors. Arguments go
# to sphinx-build, as in
#   ./scripts/docs.sh --fresh-env
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

./scripts/setup.sh dev
exec .venv/bin/sphinx-build --builder html --fail-on-warning --keep-going --nitpicky --quiet \
    --doctree-dir docs/_build/doctrees "$@" docs docs/_build/html
