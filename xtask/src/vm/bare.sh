#!/bin/busybox sh
# The first process of a machine that has nothing but imds-trace: does that run, look around, and trace?
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
try() {
    name=$1
    shift
    if /imds-trace "$@" > /out 2>&1; then word=ok; else word=FAILED; result=101; /bin/busybox cat /out; fi
    echo "test bare::$name ... $word"
}
(
    echo "kernel $(/bin/busybox uname -r)"
    result=0
    try it_says_its_version --version
    try it_looks_around doctor
    try it_traces watch --interface lo --for 1s
    echo "result $result"
) < /dev/null > "$TESTS" 2>&1
/bin/busybox poweroff -f
