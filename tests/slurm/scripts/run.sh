#!/usr/bin/env bash
# Runs a command on the login node: CLUSTER=DIR ./run.sh squeue
set -eu
. "${CLUSTER:?}/env.sh"
exec nsenter -t "$(cat "$CLUSTER/run/ctl.pid")" --net --uts --mount --pid --ipc --wd="$PWD" -- "$@"
