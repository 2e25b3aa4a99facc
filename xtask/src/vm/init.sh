#!/bin/busybox sh
# The first process of a virtual machine: mounts what programs expect, runs the tests, says what came of it, and switches off.
# What the kernel says, and the result, go to the first serial line; what the tests say, to the second.
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /tmp /run /dev/shm /var/lib; do mount -t tmpfs tmpfs $folder; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
ip link set lo up
# The root is an archive in memory, which cannot be exchanged for another: the engine is told so.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin HOME=/root DOCKER_RAMDISK=1 IMDS_LAB_ENGINE=docker
set --
while IFS= read -r word; do set -- "$@" "$word"; done < /opt/lab/arguments
if [ -s /opt/lab/tests ]; then export IMDS_LAB_TESTS=/opt/lab/tests; fi
# The line is closed, and so all of it is sent, before the machine is switched off.
(
    echo "kernel $(uname -r)"
    cd /opt/lab
    ./lab --color never "$@"
    echo "result $?"
) < /dev/null > "$TESTS" 2>&1
poweroff -f
