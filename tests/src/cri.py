# How do tests speak the kubelet's language to a containerd? The few messages of runtime.v1 that they need, encoded by hand: then it
# takes no generated code and no crictl, which Debian does not have.
#
#   cri.py SOCKET run POD NAMESPACE UID CGROUP-PARENT pod|node LOGS IMAGE MARK NAME ARG...   prints the ids of sandbox and container
#   cri.py SOCKET remove SANDBOX

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


def main(socket, verb, *words):
    channel = grpc.insecure_channel("unix://" + socket)

    def call(method, request):
        method = channel.unary_unary("/runtime.v1.RuntimeService/" + method)
        return method(request, timeout=60, wait_for_ready=True)

    if verb == "remove":
        call("StopPodSandbox", field(1, words[0]))
        call("RemovePodSandbox", field(1, words[0]))
        return
    pod, namespace, uid, parent, network, logs, image, mark, name, *args = words
    # PodSandboxConfig: metadata, hostname, log_directory, linux with cgroup_parent and the network that it shares.
    node = 2 if network == "node" else 0
    metadata = field(1, pod) + field(2, uid) + field(3, namespace) + field(4, 0)
    linux = field(1, parent) + field(2, field(1, field(1, node)))
    # In the node's network it has the node's name, too.
    hostname = b"" if node else field(2, pod)
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
