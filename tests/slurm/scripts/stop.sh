#!/usr/bin/env bash
# Ends the box: one kill takes its first process, the kernel takes the rest.
set -eu
P=$(cat "${SLURMBOX:?}/run/box.pid") C=$(cat "$SLURMBOX/run/ctl.pid")
# The files may be old and the numbers reused: act on nothing but our own process.
grep -qa "ctl-init.sh" "/proc/$P/cmdline" 2>/dev/null && kill -9 "$P"
grep -qa "ctl-init.sh" "/proc/$C/cmdline" 2>/dev/null || exit 0
for _ in $(seq 100); do
  state=$(awk '/^State/{print $2}' "/proc/$C/status" 2>/dev/null || echo gone)
  [ "$state" = gone ] || [ "$state" = Z ] && exit 0
  sleep 0.05
done
echo "pid $C is still there" >&2
exit 1
