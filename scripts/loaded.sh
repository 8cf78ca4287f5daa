#!/usr/bin/env bash
# Runs a command with a busy loop on every core, as on a loaded laptop:
#   bash scripts/loaded.sh make test
set -euo pipefail

hogs=()
trap 'kill "${hogs[@]}" 2>/dev/null' EXIT
for ((core = $(getconf _NPROCESSORS_ONLN); core; core--)); do
  (while :; do :; done) &
  hogs+=("$!")
done

"$@"
