#!/usr/bin/env bash
# Starts a real Slurm of six simulated hosts in a new folder: CLUSTER=DIR ./start.sh
# Each host has its own name, address, processes and /dev/shm, and an sshd where that is installed.
# Needs root and the Debian packages slurmctld slurmd slurm-client munge iproute2 util-linux.
# With OWNER_FD the cluster ends when the other end of that pipe closes, so it never outlives a test run.
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
export CLUSTER=${CLUSTER:?} NODES=6  # as in slurm.conf.in
export NET=10.77.0 CTLADDR=10.77.0.254
mkdir -p "$CLUSTER"/{bin,etc,state,spool,log,run,munge}
chmod 755 "$CLUSTER" "$CLUSTER/munge"
(umask 077; dd if=/dev/urandom of="$CLUSTER/etc/munge.key" bs=128 count=1 status=none)
{
  echo "127.0.0.1 localhost"; echo "$CTLADDR ctl"
  for i in $(seq "$NODES"); do echo "$NET.$i node$i"; done
} > "$CLUSTER/etc/hosts"
# Job ids are new in every cluster: submitit would read old results of the same id.
sed -e "s|@CLUSTER@|$CLUSTER|g; s|@CTLADDR@|$CTLADDR|; s|@FIRSTJOB@|$(( ($(date +%s) % 100000) * 100 + 1 ))|" \
    -e "s|@NET@|$NET|" \
    "$HERE/slurm.conf.in" > "$CLUSTER/etc/slurm.conf"
# Two GPUs per host for Slurm to allocate; torch sees none.
touch "$CLUSTER"/gpu0 "$CLUSTER"/gpu1
printf 'AutoDetect=off\nName=gpu File=%s/gpu[0-1]\n' "$CLUSTER" > "$CLUSTER/etc/gres.conf"
cat > "$CLUSTER/env.sh" <<END
export CLUSTER=$CLUSTER SLURM_CONF=$CLUSTER/etc/slurm.conf NODES=$NODES CTLADDR=$CTLADDR PATH=$CLUSTER/bin:\$PATH
END
cp "$HERE/sacct" "$CLUSTER/bin/sacct"
if command -v ssh-keygen >/dev/null && [ -x /usr/sbin/sshd ]; then
  ssh-keygen -q -t ed25519 -N '' -f "$CLUSTER/etc/ssh_key"
  printf '#!/bin/sh\nexec /usr/bin/ssh -i %s -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"\n' \
    "$CLUSTER/etc/ssh_key" > "$CLUSTER/bin/ssh"
  chmod +x "$CLUSTER/bin/ssh"
  mkdir -p /run/sshd
fi
setsid unshare --net --uts --mount --pid --ipc --fork --kill-child --mount-proc \
  bash "$HERE/ctl-init.sh" "$CLUSTER" "$NODES" "$HERE" >"$CLUSTER/log/ctl.init.log" 2>&1 </dev/null &
P=$!
echo "$P" > "$CLUSTER/run/cluster.pid"               # the one process to kill, as the host sees it
C=
for _ in $(seq 200); do C=$(cat "/proc/$P/task/$P/children" 2>/dev/null || true); [ -n "$C" ] && break; sleep 0.01; done
echo "${C%% *}" > "$CLUSTER/run/ctl.pid"         # the process whose namespaces run.sh enters
END=$((SECONDS + 30))
while [ $SECONDS -lt $END ]; do
  [ "$("$HERE/run.sh" timeout 5 sinfo -h -p main -t idle -o %D 2>/dev/null)" = "$NODES" ] && exit 0
  kill -0 "$P" 2>/dev/null || { cat "$CLUSTER/log/ctl.init.log" >&2; exit 1; }
  sleep 0.1
done
echo "no $NODES idle nodes within 30 s" >&2
tail -n 5 "$CLUSTER"/log/*.log >&2
exit 1
