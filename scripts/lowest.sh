#!/usr/bin/env bash
# Runs the tests with the lowest versions that setup.cfg allows:   bash scripts/lowest.sh [arguments of pytest]
# This is how its lower bounds were found: where it fails, raise the bound and run it again. What others bring along is
# left as new as it can be.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

[[ -x .venv-lowest/bin/python ]] || "$PYTHON" -m venv --without-pip .venv-lowest
"$PYTHON" -m pip install --quiet --disable-pip-version-check uv
echo "Installing the lowest versions into .venv-lowest."
"$PYTHON" -m uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable ".[app,demo,dev]"
echo "Running the tests."
.venv-lowest/bin/python -m pytest --numprocesses logical --dist worksteal "$@"
