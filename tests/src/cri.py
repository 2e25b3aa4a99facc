# How do tests speak the kubelet's language to a containerd? The few messages of runtime.v1 that they need, encoded by hand: then it
# takes no generated code and no crictl, which Debian does not have.
#
#   cri.py SOCKET run POD NAMESPACE UID CGROUP-PARENT pod|node LOGS IMAGE MARK NAME ARG...   prints the ids of sandbox and container
#   cri.py SOCKET node POD NAMESPACE UID CGROUP-PARENT LOGS MARK SPEC ARG...   the same for a manifest's pod (JSON) with one container
#   cri.py SOCKET stop CONTAINER
#   cri.py SOCKET remove SANDBOX

import json
import sys

import grpc


def number(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(tag, value):
    if isinstance(value, int):
        return number(tag << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(tag << 3 | 2) + number(len(value)) + value


def first(answer):
    """The first field of an answer, an id."""
    return answer[2 : 2 + answer[1]].decode()


# What the kubelet hides of /proc and /sys from a container that does not ask for it.
MASKED = ["acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi"]
READ_ONLY = ["bus", "fs", "irq", "sys", "sysrq-trigger"]


def namespaces(spec):
    """NamespaceOption: network, pid."""
    return field(1, 2 if spec.get("hostNetwork") else 0) + field(2, 2 if spec.get("hostPID") else 1)


def profile(context, kind):
    """SecurityProfile: 0 is RuntimeDefault, 1 Unconfined."""
    return field(1, 1 if context.get(kind, {}).get("type", "Unconfined") == "Unconfined" else 0)


def security(spec, container):
    """LinuxContainerSecurityContext."""
    context = container["securityContext"]
    capabilities = context["capabilities"]
    added = b"".join(field(1, name) for name in capabilities["add"])
    dropped = b"".join(field(2, name) for name in capabilities["drop"])
    out = field(1, added + dropped) + field(2, int(context["privileged"])) + field(3, namespaces(spec))
    out += field(5, field(1, context["runAsUser"])) + field(7, int(context["readOnlyRootFilesystem"]))
    out += field(11, int(not context["allowPrivilegeEscalation"])) + field(12, field(1, context["runAsGroup"]))
    out += b"".join(field(13, "/proc/" + name) for name in MASKED) + field(13, "/sys/firmware")
    out += b"".join(field(14, "/proc/" + name) for name in READ_ONLY)
    return out + field(15, profile(context, "seccompProfile")) + field(16, profile(context, "appArmorProfile"))


def node(call, pod, namespace, uid, parent, logs, mark, spec, *args):
    spec = json.loads(spec)
    [container] = spec["containers"]
    metadata = field(1, pod) + field(2, uid) + field(3, namespace) + field(4, 0)
    linux = field(1, parent) + field(2, field(1, namespaces(spec)))
    sandbox_config = field(1, metadata) + field(3, logs) + field(8, linux)
    sandbox = first(call("RunPodSandbox", field(1, sandbox_config)))
    print(sandbox, flush=True)
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    config = field(1, field(1, container["name"]) + field(2, 0)) + field(2, field(1, container["image"]))
    config += b"".join(field(4, word) for word in args)
    key, value = mark.split("=", 1)
    config += field(6, field(1, key) + field(2, value))
    for mount in container["volumeMounts"]:
        # Propagation is left out: it takes a mount that is shared, as `/` is where systemd runs.
        config += field(7, field(1, mount["mountPath"]) + field(2, paths[mount["name"]]) + field(3, int(mount["readOnly"])))
    config += field(11, pod + ".log") + field(15, field(2, security(spec, container)))
    created = first(call("CreateContainer", field(1, sandbox) + field(2, config) + field(3, sandbox_config)))
    call("StartContainer", field(1, created))
    print(created, flush=True)


def main(socket, verb, *words):
    channel = grpc.insecure_channel("unix://" + socket)

    def call(method, request):
        method = channel.unary_unary("/runtime.v1.RuntimeService/" + method)
        return method(request, timeout=60, wait_for_ready=True)

    if verb == "stop":
        call("StopContainer", field(1, words[0]) + field(2, 20))
        return
    if verb == "node":
        node(call, *words)
        return
    if verb == "remove":
        call("StopPodSandbox", field(1, words[0]))
        call("RemovePodSandbox", field(1, words[0]))
        return
    pod, namespace, uid, parent, network, logs, image, mark, name, *args = words
    # PodSandboxConfig: metadata, hostname, log_directory, linux with cgroup_parent and the network that it shares.
    shared = 2 if network == "node" else 0
    metadata = field(1, pod) + field(2, uid) + field(3, namespace) + field(4, 0)
    linux = field(1, parent) + field(2, field(1, field(1, shared)))
    # In the node's network it has the node's name, too.
    hostname = b"" if shared else field(2, pod)
    sandbox_config = field(1, metadata) + hostname + field(3, logs) + field(8, linux)
    sandbox = first(call("RunPodSandbox", field(1, sandbox_config)))
    print(sandbox, flush=True)
    # ContainerConfig: metadata, image, command, envs, log_path.
    config = field(1, field(1, name) + field(2, 0)) + field(2, field(1, image))
    config += b"".join(field(3, word) for word in args)
    key, value = mark.split("=", 1)
    config += field(6, field(1, key) + field(2, value))
    config += field(6, field(1, "AWS_SECRET_ACCESS_KEY") + field(2, "wJalrXUtnFEMIEXAMPLEKEYbPxRfiCYzzzzzzzzz"))
    config += field(11, name + ".log")
    container = first(call("CreateContainer", field(1, sandbox) + field(2, config) + field(3, sandbox_config)))
    call("StartContainer", field(1, container))
    print(container, flush=True)


main(*sys.argv[1:])
