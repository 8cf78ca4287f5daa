#!/bin/sh
# Submits a request, prints its answer as it's generated, and shows how to read it in Redis. Arguments: as `tokenrelay submit`.
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
