#!/usr/bin/env bash
# Starts a real Slurm of simulated hosts: SLURMBOX=DIR NODES=4 CPUS=8 MEM=8000 ./start.sh
# Each host has its own name, address, processes and /dev/shm, and an sshd where that is installed.
# Needs root and the Debian packages slurmctld slurmd slurm-client munge iproute2 util-linux.
# With OWNER_FD the box ends when the other end of that pipe closes, so that none outlives a test run.
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
export SLURMBOX=${SLURMBOX:?} NODES=${NODES:-4} CPUS=${CPUS:-8} MEM=${MEM:-8000}
export NET=10.77.0 CTLADDR=10.77.0.254
mkdir -p "$SLURMBOX"/{bin,etc,state,spool,log,run,munge}
chmod 755 "$SLURMBOX" "$SLURMBOX/munge"
(umask 077; dd if=/dev/urandom of="$SLURMBOX/etc/munge.key" bs=128 count=1 status=none)
{
  echo "127.0.0.1 localhost"; echo "$CTLADDR ctl"
  for i in $(seq "$NODES"); do echo "$NET.$i node$i"; done
} > "$SLURMBOX/etc/hosts"
# Job ids are new in every box, for submitit reads old results of the same id.
sed -e "s|@BOX@|$SLURMBOX|g; s|@CTLADDR@|$CTLADDR|; s|@FIRSTJOB@|$(( ($(date +%s) % 100000) * 100 + 1 ))|" \
    -e "s|@NODES@|$NODES|; s|@NODEADDR@|NodeAddr=$NET.[1-$NODES]|; s|@CPUS@|$CPUS|; s|@MEM@|$MEM|" \
    "$HERE/slurm.conf.in" > "$SLURMBOX/etc/slurm.conf"
# Two devices a host, which Slurm deals out; torch sees none.
touch "$SLURMBOX"/gpu0 "$SLURMBOX"/gpu1
printf 'AutoDetect=off\nName=gpu File=%s/gpu[0-1]\n' "$SLURMBOX" > "$SLURMBOX/etc/gres.conf"
cat > "$SLURMBOX/env.sh" <<END
export SLURMBOX=$SLURMBOX SLURM_CONF=$SLURMBOX/etc/slurm.conf NODES=$NODES CTLADDR=$CTLADDR PATH=$SLURMBOX/bin:\$PATH
END
cp "$HERE/sacct" "$SLURMBOX/bin/sacct"
if command -v ssh-keygen >/dev/null && [ -x /usr/sbin/sshd ]; then
  ssh-keygen -q -t ed25519 -N '' -f "$SLURMBOX/etc/ssh_key"
  printf '#!/bin/sh\nexec /usr/bin/ssh -i %s -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"\n' \
    "$SLURMBOX/etc/ssh_key" > "$SLURMBOX/bin/ssh"
  chmod +x "$SLURMBOX/bin/ssh"
  mkdir -p /run/sshd
fi
setsid unshare --net --uts --mount --pid --ipc --fork --kill-child --mount-proc \
  bash "$HERE/ctl-init.sh" "$SLURMBOX" "$NODES" "$HERE" >"$SLURMBOX/log/ctl.init.log" 2>&1 </dev/null &
P=$!
echo "$P" > "$SLURMBOX/run/box.pid"               # the one process to kill, as the host sees it
C=
for _ in $(seq 200); do C=$(cat "/proc/$P/task/$P/children" 2>/dev/null || true); [ -n "$C" ] && break; sleep 0.01; done
echo "${C%% *}" > "$SLURMBOX/run/ctl.pid"         # the process whose namespaces run.sh enters
END=$((SECONDS + 30))
while [ $SECONDS -lt $END ]; do
  [ "$("$HERE/run.sh" timeout 5 sinfo -h -p main -t idle -o %D 2>/dev/null)" = "$NODES" ] && exit 0
  kill -0 "$P" 2>/dev/null || { cat "$SLURMBOX/log/ctl.init.log" >&2; exit 1; }
  sleep 0.1
done
echo "no $NODES idle nodes within 30 s" >&2
tail -n 5 "$SLURMBOX"/log/*.log >&2
exit 1
