#!/usr/bin/env bash
# Starts or restarts one host; on the login node: ./run.sh ./node-up.sh node2
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
. "${CLUSTER:?}/env.sh"
N=$1
ip link del "v$N" 2>/dev/null || true
setsid unshare --net --uts --mount --pid --ipc --fork --kill-child --mount-proc \
  bash "$HERE/node-init.sh" "$N" "$CLUSTER" >>"$CLUSTER/log/$N.init.log" 2>&1 </dev/null &
P=$! C=
for _ in $(seq 200); do C=$(cat "/proc/$P/task/$P/children" 2>/dev/null || true); [ -n "$C" ] && break; sleep 0.01; done
C=${C%% *}
echo "$C" > "$CLUSTER/run/$N.init.pid"            # as the login node sees it
ip link add "v$N" type veth peer name eth0 netns "$C"
ip link set "v$N" master br0 up
