#!/bin/sh
# redis-cli as the read-only user. The password is in the environment, since other users can read command lines.
REDISCLI_AUTH=$(cat /run/tokenrelay/password)
export REDISCLI_AUTH
exec redis-cli -h redis --user consumer "$@"
