#!/usr/bin/env bash
# Ends the cluster: kills its first process, and the kernel the others with it.
set -eu
P=$(cat "${CLUSTER:?}/run/cluster.pid") C=$(cat "$CLUSTER/run/ctl.pid")
# The files may be old and the pids reused, so check that the process is ours.
grep -qa "ctl-init.sh" "/proc/$P/cmdline" 2>/dev/null && kill -9 "$P"
grep -qa "ctl-init.sh" "/proc/$C/cmdline" 2>/dev/null || exit 0
for _ in $(seq 100); do
  state=$(awk '/^State/{print $2}' "/proc/$C/status" 2>/dev/null || echo gone)
  [ "$state" = gone ] || [ "$state" = Z ] && exit 0
  sleep 0.05
done
echo "pid $C is still running" >&2
exit 1
