#!/bin/sh
# Creates each role's Redis user: a password, a file with the role's URL, and the ACL file for Redis.
#
# Environment: PRODUCER_PASSWORD, GATEWAY_PASSWORD, WORKER_PASSWORD, CONSUMER_PASSWORD, DASHBOARD_PASSWORD, OPERATOR_PASSWORD
#                             if unset, the previous one is kept, or one of 256 random bits is generated
#              REDIS_ADDRESS  host:port in the URLs (redis:6379)
# Arguments:   template of the ACL file, folder to write to: ROLE/redis_url, ROLE/password, acl/users.acl
set -eu
template=$1 out=$2
umask 022 # each folder is a volume that only its role mounts, with another user ID than this script's

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }

password_of() {
  case $1 in
    producer) given=${PRODUCER_PASSWORD:-} ;;
    gateway) given=${GATEWAY_PASSWORD:-} ;;
    worker) given=${WORKER_PASSWORD:-} ;;
    consumer) given=${CONSUMER_PASSWORD:-} ;;
    dashboard) given=${DASHBOARD_PASSWORD:-} ;;
    operator) given=${OPERATOR_PASSWORD:-} ;;
  esac
  case $given in
    '') if [ -s "$out/$1/password" ]; then cat "$out/$1/password"; else random; fi ;;
    *[!A-Za-z0-9._~-]*) echo "the password of $1: letters, digits and . _ ~ - only, since it's part of a URL" >&2; exit 1 ;;
    *) printf %s "$given" ;;
  esac
}

rules=$(awk '/^#/ || !NF { next } /^ / { line = line $0; next } { if (line) print line; line = $0 } END { print line }' "$template")
for role in producer gateway worker consumer dashboard operator; do
  mkdir -p "$out/$role"
  password=$(password_of "$role")
  printf %s "$password" >"$out/$role/password"
  printf 'redis://%s:%s@%s/0\n' "$role" "$password" "${REDIS_ADDRESS:-redis:6379}" >"$out/$role/redis_url"
  hash=$(printf %s "$password" | sha256 | cut -d' ' -f1)
  rules=$(printf '%s\n' "$rules" | sed "s/#$role#/#$hash/")
done
mkdir -p "$out/acl"
printf '%s\n' "$rules" >"$out/acl/users.acl"
