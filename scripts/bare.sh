#!/usr/bin/env bash
# Runs a command as on a machine with only Python, make and the standard tools of Debian and macOS:
#   bash scripts/bare.sh make test
# No redis-server, promtool, chromium, docker, git, openssl or compiler is on PATH, and HOME is the only variable.
# PYTHON: the interpreter to use as python3; default: the one of .venv.
set -euo pipefail

tools=(awk basename bash cat chmod cmp cp cut date dd df diff dirname du echo env expr false find getconf grep gzip head
  hostname id kill ln ls make mkdir mkfifo mktemp mv od paste printf pwd readlink rm rmdir sed seq sh sha256sum sleep sort stat
  stty tail tar tee test touch tr true tty uname uniq wc which xargs)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for tool in "${tools[@]}"; do
  if found=$(type -P "$tool"); then ln -s "$found" "$folder/$tool"; fi
done
python=${PYTHON:-$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/python}
python=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" >"$folder/python3"
chmod +x "$folder/python3"

env -i HOME="$HOME" PATH="$folder" "$@"
