#!/usr/bin/env bash
# Creates $VENV (.venv) and installs tokenrelay into it, editable, with the versions in $CONSTRAINTS (constraints.txt).
#
# Environment: PYTHON           the interpreter; default: the first suitable one on PATH
#              TORCH_INDEX_URL  the package index for torch; default: pip's index with an NVIDIA GPU and on macOS (whose
#                               wheels have no CUDA), otherwise wherever pip finds a CPU build, PyTorch's CPU index last.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
constraints=${CONSTRAINTS:-constraints.txt}
torch=$(sed -n 's/^torch==//p' "$constraints")
torch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*" >&2; }

# Run it: a name on PATH may be a version manager's shim without an interpreter.
fits() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local name
  if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
  else
    set -- python3.13 python3.12 python3.11 python3.14 python3 python
  fi
  for name; do
    if fits "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  say "${PYTHON:+$PYTHON: }no Python 3.11 or newer with venv found: install one (Debian, Ubuntu: apt install python3" \
    "python3-venv; macOS: brew install python@3.12), or pass its path: make PYTHON=/path/to/python"
  return 1
}

has_torch() { "$venv/bin/python" -c 'import torch' >/dev/null 2>&1; }
has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }
pip_finds_cpu_build() { "$venv/bin/python" -m pip install --quiet --dry-run --no-deps "torch==$torch+cpu" >/dev/null 2>&1; }

# The extra index for torch; empty for none. An unreachable index costs pip many seconds of retries.
torch_index() {
  if [ -n "${TORCH_INDEX_URL:-}" ]; then
    printf '%s\n' "$TORCH_INDEX_URL"
  elif [ "$(uname -s)" = Linux ] && ! has_torch && ! has_nvidia_gpu && ! pip_finds_cpu_build; then
    printf '%s\n' "$torch_cpu_index"
  fi
}

if ! fits "$venv/bin/python"; then
  python=$(find_python)
  say "Creating $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi

index=$(torch_index)
if [ -n "$index" ]; then
  say "Installing torch from $index (make TORCH_INDEX_URL=… sets another index)"
fi
say "Installing tokenrelay and its dependencies, which takes a few minutes the first time"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${index:+--extra-index-url "$index"} \
  --constraint "$constraints" --editable '.[worker,local,gateway,dev]'
touch "$venv/.installed"
