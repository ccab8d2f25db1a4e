#!/usr/bin/env bash
# Runs a command inside the box, as on its login node: SLURMBOX=DIR ./run.sh squeue
set -eu
. "${SLURMBOX:?}/env.sh"
exec nsenter -t "$(cat "$SLURMBOX/run/ctl.pid")" --net --uts --mount --pid --ipc --wd="$PWD" -- "$@"
