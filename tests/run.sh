#!/bin/sh
# Makes a virtual environment, installs what the tests need, and runs mypy and pytest. Once the
# environment is there, no network is needed.
# PYTHON picks the interpreter, VENV the folder; --all runs every sample whole, as CI does, and any
# other arguments go to pytest. Without these all tests are run, in several processes, beside mypy.
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
if [ $# -gt 0 ]; then
    "$venv/bin/python" -m mypy
    exec "$venv/bin/python" -m pytest "$@"
fi
# Three on two cores: now and then one waits.
types=$(mktemp)
"$venv/bin/python" -m mypy >"$types" 2>&1 &
mypy=$!
trap 'kill $mypy 2>/dev/null || true; rm "$types"' EXIT
trap 'exit 130' INT
status=0
"$venv/bin/python" -m pytest --processes 3 || status=$?
wait $mypy || [ $status != 0 ] || status=1
cat "$types"
exit $status
