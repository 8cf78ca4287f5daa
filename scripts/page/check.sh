#!/usr/bin/env bash
# Type-checks the page's JavaScript (JSDoc types) with the TypeScript version in package-lock.json, installed to .node/.
# Without npm it's skipped, or fails if CI is set.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v npm >/dev/null; then
  echo "skipped the type check of the page's JavaScript: npm isn't installed" >&2
  [ -z "${CI:-}" ]
  exit
fi
lock=scripts/page/package-lock.json
if ! cmp -s "$lock" .node/package-lock.json; then
  rm -rf .node .node.new
  mkdir .node.new
  cp scripts/page/package.json "$lock" .node.new
  npm ci --prefix .node.new --ignore-scripts --no-audit --no-fund --loglevel=error
  mv .node.new .node  # atomic
fi
.node/node_modules/.bin/tsc -p scripts/page/tsconfig.json
