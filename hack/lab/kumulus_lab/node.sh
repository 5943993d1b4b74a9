#!/bin/bash
# Run once in the machine that becomes the node, after it has booted: what kubelet and containerd need of it.
# usage: node.sh DIRECTORY CGROUP
set -eu
directory=$1 cgroup=$2

mount --make-rshared /
for place in kubelet containerd cni; do
    mkdir -p "$directory/var/lib/$place"
    # boot.sh has put a tmpfs over /var/lib where the machine outside has no kumulus there.
    mkdir -p "/var/lib/$place" 2>/dev/null || true
    mount --bind "$directory/var/lib/$place" "/var/lib/$place"
done
for place in pods containers; do
    mkdir -p "$directory/var/log/$place" "/var/log/$place"
    mount --bind "$directory/var/log/$place" "/var/log/$place"
done

# /sys is new here, and control groups are the machine's own: the same ones, mounted once more.
if grep -q '^[1-9][0-9]*:[a-z]' /proc/self/cgroup; then
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        case $controllers in
            '') continue ;;
            name=*) where=${controllers#name=} options=none,$controllers ;;
            *) where=$controllers options=$controllers ;;
        esac
        mkdir "/sys/fs/cgroup/$where"
        mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$where"
        mkdir -p "/sys/fs/cgroup/$where/$cgroup"
    done </proc/self/cgroup
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p "/sys/fs/cgroup/$cgroup"
fi
