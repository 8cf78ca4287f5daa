#!/bin/sh
# Asks, prints the answer as it is written, and says how to see it in Redis. Arguments: those of `tokenrelay submit`.
set -u
id=$(tokenrelay submit "$@") || exit
trap 'tokenrelay cancel "$id" >&2; exit 130' INT TERM
tokenrelay follow "$id"
status=$?
cat >&2 <<END

Every token is still in Redis, at its own index:
  docker compose run --rm cli XRANGE 'tokenrelay:{$id}:stream' - +
END
exit $status
