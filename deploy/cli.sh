#!/bin/sh
# redis-cli as the read-only user. The password goes through the environment: a command line can be read by others.
REDISCLI_AUTH=$(cat /run/tokenrelay/password)
export REDISCLI_AUTH
exec redis-cli -h redis --user consumer "$@"
