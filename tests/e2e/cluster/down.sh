#!/usr/bin/env bash
# Stops what up.sh started in FOLDER, with every pod, and removes the folder and the network namespace.
#
#     down.sh FOLDER
set -uo pipefail
folder=$(realpath "$1")
containers=(timeout 5 ctr -a "$folder/containerd.sock" -n k8s.io)

stop() { # SIGNAL NAME…
    local signal=$1 name
    shift
    for name in "$@"; do
        [[ -s $folder/$name.pid ]] && kill "-$signal" "$(<"$folder/$name.pid")" 2>/dev/null
    done
}

stop TERM kubelet proxy controllers scheduler
sleep 1
for task in $("${containers[@]}" tasks ls -q); do "${containers[@]}" tasks kill -s SIGKILL "$task" 2>/dev/null; done
sleep 1
for container in $("${containers[@]}" containers ls -q); do
    "${containers[@]}" tasks delete -f "$container" >/dev/null 2>&1
    "${containers[@]}" containers delete "$container" 2>/dev/null
done
stop TERM containerd
stop KILL apiserver etcd
sleep 1
awk -v folder="$folder/" 'index($2, folder) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount -l
ip netns del losswire-e2e 2>/dev/null
for name in $(ip netns list | awk '/^cni-/ {print $1}'); do ip netns del "$name"; done
rm -rf "$folder"
