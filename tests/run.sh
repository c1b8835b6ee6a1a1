#!/bin/sh
# Makes a virtual environment, installs what the tests need, and runs mypy and pytest.
# PYTHON picks the interpreter, VENV the folder; arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'
"$venv/bin/python" -m mypy
exec "$venv/bin/python" -m pytest "$@"
