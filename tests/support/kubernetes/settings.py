"""How the parts of a node are configured, and why."""

import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.canary import secret

NODE = "node1"
ADDRESS = "10.87.0.1"  # kubelet refuses an address of the loopback interface
API = f"https://{ADDRESS}:443"
GATES = "CSIServiceAccountToken=true,BoundServiceAccountTokenVolume=true"
CNI_PLUGINS = "/usr/lib/cni"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
PAUSE = "localhost/pause:1"

# Runs in a machine whose /run is empty. The node has no default route on purpose: kubelet asks the metadata services of
# three clouds, and only "network unreachable" is a quick no. It sets sysctls of the whole machine where they are not as
# it wants them, so it is shown files that say that they are.
PREPARE = """
mkdir -p {directory}/lib {directory}/log {directory}/cni
mount --bind {directory}/lib /var/lib
mount --bind {directory}/log /var/log
mkdir -p /var/lib/kubelet /run/containerd /run/sysctl
while read -r path value; do
    echo "$value" > "/run/sysctl/${{path//\\//.}}"
    mount --bind "/run/sysctl/${{path//\\//.}}" "/proc/sys/$path"
done <<'LIST'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
LIST
ip link set lo up
ip link add node0 type bridge
ip addr add {address}/24 dev node0
ip link set node0 up
ip addr add 10.96.0.1/32 dev lo
"""

# containerd 1.6. Its shims keep their sockets in /run/containerd whatever is said here. oom_score_adj cannot be lowered
# where CAP_SYS_RESOURCE is missing, and then no pod would start.
_CONTAINERD = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
]
[grpc]
    address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "{pause}"
    disable_apparmor = true
    restrict_oom_score_adj = true
    [plugins."io.containerd.grpc.v1.cri".containerd]
        snapshotter = "overlayfs"
        default_runtime_name = "runc"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
            runtime_type = "io.containerd.runc.v2"
            [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
                SystemdCgroup = false
    [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "{cni}"
        conf_dir = "{directory}/cni"
"""

# A pod's way to the API server is the address of the service "kubernetes", one of the node's own: no kube-proxy.
_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": True,
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/ipam",
                "ranges": [[{"subnet": "10.88.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}

# oomScoreAdj: the default takes CAP_SYS_RESOURCE. protectKernelDefaults: fail rather than set sysctls of the machine.
# syncFrequency: how often a volume is published again, by default once a minute. volumePluginDir: the default is made
# in the machine's /usr. Authentication: the network is private, and kubectl shows logs with it.
_KUBELET = """
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
protectKernelDefaults: true
makeIPTablesUtilChains: false
evictionHard: {{memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}}
imageGCHighThresholdPercent: 100
readOnlyPort: 0
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
syncFrequency: 2s
nodeStatusUpdateFrequency: 2s
runtimeRequestTimeout: 2m
featureGates: {{CSIServiceAccountToken: true, BoundServiceAccountTokenVolume: true}}
volumePluginDir: {directory}/flexvolume
"""


def write(directory: Path, cgroup: str) -> None:
    """Write the configuration of a boot into a directory."""
    settings = {
        "directory": directory,
        "cgroup": cgroup,
        "socket": CONTAINERD_SOCKET,
        "pause": PAUSE,
        "cni": CNI_PLUGINS,
    }
    (directory / "containerd.toml").write_text(_CONTAINERD.format(**settings), encoding="ascii")
    (directory / "kubelet.yaml").write_text(_KUBELET.format(**settings), encoding="ascii")
    (directory / "cni/10-pods.conflist").write_text(json.dumps(_NETWORK), encoding="ascii")


def write_identities(directory: Path) -> None:
    """Write the keys and users of a cluster into a directory."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (directory / "sa.key").write_bytes(pem)
    users = {"admin": ("admin", "system:masters"), "node": (f"system:node:{NODE}", "system:nodes")}
    tokens = (f'{token(name)},{user},{name},"{group}"\n' for name, (user, group) in users.items())
    (directory / "tokens.csv").write_text("".join(tokens), encoding="ascii")
    for name in users:
        cluster = {"server": API, "certificate-authority": f"{directory}/certs/apiserver.crt"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token(name)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        }
        (directory / f"{name}.kubeconfig").write_text(json.dumps(document), encoding="ascii")


def token(user: str) -> str:
    """Return the token by which the API server knows "admin" or "node"."""
    return secret(f"{user}-token")


def etcd(directory: Path) -> list[str]:
    """Return the options of etcd."""
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        f"--data-dir={directory}/etcd", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]  # fmt: skip


def apiserver(directory: Path) -> list[str]:
    """Return the options of the API server."""
    return [
        "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", f"--advertise-address={ADDRESS}",
        "--secure-port=443", f"--cert-dir={directory}/certs", "--service-cluster-ip-range=10.96.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={directory}/sa.key",
        f"--service-account-signing-key-file={directory}/sa.key", "--api-audiences=https://kubernetes.default.svc",
        f"--token-auth-file={directory}/tokens.csv", "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP", f"--feature-gates={GATES}",
    ]  # fmt: skip


def kubelet(directory: Path) -> list[str]:
    """Return the options of kubelet."""
    return [
        f"--config={directory}/kubelet.yaml", f"--kubeconfig={directory}/node.kubeconfig",
        f"--hostname-override={NODE}", f"--node-ip={ADDRESS}", "--container-runtime=remote",
        f"--container-runtime-endpoint=unix://{CONTAINERD_SOCKET}",
        "--v=1",  # says when it begins to set up a volume, and when it has
    ]  # fmt: skip


def controllers(directory: Path) -> list[str]:
    """Return the options of the controllers: they make the pods of DaemonSets, and what a namespace starts with."""
    return [
        f"--kubeconfig={directory}/admin.kubeconfig", "--leader-elect=false",
        f"--service-account-private-key-file={directory}/sa.key", f"--root-ca-file={directory}/certs/apiserver.crt",
        f"--feature-gates={GATES}", "--use-service-account-credentials=false",
        "--controllers=daemonset,root-ca-cert-publisher,serviceaccount,garbagecollector", "--port=0",
    ]  # fmt: skip
