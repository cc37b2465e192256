# Sourced by the other scripts. Leaves in $PYTHON the interpreter of the virtual environment .venv, at the top of the
# repository, with detox_rl and its extras app, demo, dev and serve installed. Needs a Python from 3.11 to 3.13 with pip.

find_python() {
    local candidate
    for candidate in python3 python python3.13 python3.12 python3.11; do
        # 3.14 has no wheel of the embedded base model yet (extra demo).
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Please install Python 3.11, 3.12 or 3.13 with pip, then run this again." >&2
    return 1
}

# Prints one hash of all that decides what must be installed.
wanted_state() {
    "$1" - setup.cfg pyproject.toml <<'PYTHON'
import hashlib, os, sys
state = hashlib.sha256(f"{sys.version_info[:2]} {os.getcwd()}".encode())
for name in sys.argv[1:]:
    state.update(open(name, "rb").read())
print(state.hexdigest())
PYTHON
}

make_environment() {
    local base=$1
    echo "Making the virtual environment .venv with $("$base" --version)."
    if "$base" -c 'import ensurepip' 2>/dev/null; then
        "$base" -m venv --clear .venv
    else
        # Debian's Python comes without ensurepip; pip can install itself into the new environment.
        echo "This Python has no ensurepip module, so its own pip installs pip into .venv."
        "$base" -m venv --clear --without-pip .venv
        "$base" -m pip --python .venv/bin/python install --quiet pip
    fi
}

set_up() {
    local base wanted
    base=$(find_python)
    wanted=$(wanted_state "$base")
    PYTHON=$PWD/.venv/bin/python
    if [[ -f .venv/installed && $(<.venv/installed) == "$wanted" ]] && "$PYTHON" -c '' 2>/dev/null; then
        echo "Using the virtual environment .venv: setup.cfg has not changed since it was installed."
        return
    fi
    make_environment "$base"
    echo "Installing detox_rl and what it needs into .venv (PyTorch is large: a few minutes the first time)."
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".[app,demo,dev,serve]"
    echo "$wanted" > .venv/installed  # written last, so that an interrupted installation is done again
    echo "Installed."
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
set_up
