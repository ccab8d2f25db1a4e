#!/usr/bin/env bash
# First process of one simulated host; everything on the host ends with it.
set -eu
N=$1 CLUSTER=$2
hostname "$N"
mount -t tmpfs -o size=2g tmpfs /dev/shm
ip link set lo up
for _ in $(seq 200); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.02; done
ip link set eth0 up
ip addr add "$(awk -v n="$N" '$2==n{print $1}' "$CLUSTER/etc/hosts")/24" dev eth0
slurmd -N "$N" -f "$CLUSTER/etc/slurm.conf"
if [ -f "$CLUSTER/etc/ssh_key" ]; then
  /usr/sbin/sshd -f /dev/null -h "$CLUSTER/etc/ssh_key" -o PidFile=none -o UsePAM=no -o StrictModes=no \
    -o AuthorizedKeysFile="$CLUSTER/etc/ssh_key.pub" -o PermitRootLogin=yes -o MaxStartups=100
fi
while :; do sleep 3600 & wait $! || true; done     # bash reaps orphans while it waits
