#!/usr/bin/env bash
# Checks the types of the page's JavaScript, which stand in JSDoc comments, with the TypeScript of package-lock.json.
# It lies in .node/. Without npm nothing is checked; where CI is set that fails.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v npm >/dev/null; then
  echo "the types of the page's JavaScript weren't checked: there is no npm" >&2
  [ -z "${CI:-}" ]
  exit
fi
lock=scripts/page/package-lock.json
if ! cmp -s "$lock" .node/package-lock.json; then
  rm -rf .node .node.new
  mkdir .node.new
  cp scripts/page/package.json "$lock" .node.new
  npm ci --prefix .node.new --ignore-scripts --no-audit --no-fund --loglevel=error
  mv .node.new .node  # whole or not there
fi
.node/node_modules/.bin/tsc -p scripts/page/tsconfig.json
