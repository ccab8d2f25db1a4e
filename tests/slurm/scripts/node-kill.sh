#!/usr/bin/env bash
# Breaks one host; on the login node: ./run.sh ./node-kill.sh NODE die|crash|unplug|plug
#   die     its processes end at once, peers see their connections close
#   crash   cable out first, so that peers see nothing: a power cut
#   unplug  cable out, processes go on          plug  put it back
set -eu
. "${CLUSTER:?}/env.sh"
N=$1 P=$(cat "$CLUSTER/run/$1.init.pid")
case $2 in
  die) kill -9 "$P" ;;
  crash) ip link set "v$N" down; kill -9 "$P" ;;
  unplug) ip link set "v$N" down ;;
  plug) ip link set "v$N" up ;;
  *) echo "unknown way to break a host: $2" >&2; exit 2 ;;
esac
