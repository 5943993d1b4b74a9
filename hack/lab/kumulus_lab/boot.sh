#!/bin/bash
# Process 1 of a lab host, in namespaces of its own (mount, pid, uts, ipc, net): makes the file systems a machine
# has of its own, says who it is, and becomes an init that reaps. Ending it is a power cut: nothing of it survives.
# usage: boot.sh DIRECTORY NAME SHARED
set -eu
directory=$1 name=$2 shared=$3

# /proc is still the outer one: this is the number this machine knows the host by.
read -r pid _ </proc/self/stat

cd /
hostname "$name"
# Other hosts' network namespaces would be kept alive by the mounts this one inherited.
umount --recursive --lazy /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/libvirt

# /var/lib gets a place for kumulus without anything being made on the machine outside.
if [ ! -d /var/lib/kumulus ]; then
    mkdir /run/outer
    mount --rbind /var/lib /run/outer
    mount -t tmpfs -o mode=755 tmpfs /var/lib
    for entry in /run/outer/*; do
        if [ -d "$entry" ] && [ ! -L "$entry" ]; then
            mkdir "/var/lib/${entry##*/}"
            mount --rbind "$entry" "/var/lib/${entry##*/}"
        fi
    done
    mkdir -p /var/lib/kumulus /var/lib/libvirt
fi
for place in /var/lib/libvirt /var/lib/kumulus /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
    mkdir -p "$directory$place"
    mount --bind "$directory$place" "$place"
done
# What a filer is elsewhere: a directory that all hosts of the lab have.
mkdir -p "$shared" /var/lib/kumulus/pools/shared
mount --bind "$shared" /var/lib/kumulus/pools/shared
mount -t proc proc /proc
mount -t sysfs sysfs /sys
ulimit -n 65536 2>/dev/null || true

echo "$pid" >"$directory/init.new"
mv "$directory/init.new" "$directory/init"
exec tini -- sleep infinity
