#!/bin/sh
# Makes a virtual environment, installs what the tests need, and runs mypy and pytest. Once the
# environment is there, no network is needed.
# PYTHON picks the interpreter, VENV the folder; --all runs every sample whole, as CI does, and any
# other arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
if [ "${1-}" = --all ]; then
    shift
    export DANGA_RAW_REQUIRE_ORACLES=1
fi
if [ ! -e "$venv/made" ] || [ pyproject.toml -nt "$venv/made" ]; then
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'
    : >"$venv/made"
fi
"$venv/bin/python" -m mypy
exec "$venv/bin/python" -m pytest "$@"
