#!/usr/bin/env bash
# First process of the cluster: bridge, munged, slurmctld, nodes. All of them end with it.
set -eu
CLUSTER=$1 NODES=$2 HERE=$3
hostname ctl
mount --bind "$CLUSTER/etc/hosts" /etc/hosts
ip link set lo up
ip link add br0 type bridge
ip link set br0 up
ip addr add "$CTLADDR/24" dev br0
munged --key-file="$CLUSTER/etc/munge.key" --socket="$CLUSTER/munge/munge.socket.2" \
  --pid-file="$CLUSTER/run/munged.pid" --log-file="$CLUSTER/log/munged.log" --seed-file="$CLUSTER/run/munged.seed"
slurmctld -f "$CLUSTER/etc/slurm.conf"
for i in $(seq "$NODES"); do "$HERE/node-up.sh" "node$i"; done
if [ -n "${OWNER_FD:-}" ]; then
  read -r -u "$OWNER_FD" _ || true
else
  while :; do sleep 3600 & wait $! || true; done
fi
