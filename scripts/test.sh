#!/usr/bin/env bash
# Sets everything up and runs the tests:   bash scripts/test.sh [arguments of pytest]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

echo "Checking lint, format and types."
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
echo "Running the tests on all cores."
# A process a core; each computes on one thread (tests/conftest.py).
"$PYTHON" -m pytest --numprocesses logical --dist worksteal "$@"
