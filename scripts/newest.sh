#!/usr/bin/env bash
# Prints the path of the newest Python on PATH or in pyenv.
set -euo pipefail

for minor in 16 15 14 13 12 11; do
  for python in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python3; do
    # Run it: a name on PATH may be a version manager's shim without an interpreter.
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      echo "$python"
      exit
    fi
  done
done
echo "no Python 3.11 or newer with venv found" >&2
exit 1
