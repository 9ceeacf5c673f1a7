#!/usr/bin/env bash
# Starts a Kubernetes of one node in a network namespace of its own, from which no packet leaves. Stop it with down.sh.
#
#     up.sh BINARIES FOLDER     leaves kubeconfig, logs and process numbers in FOLDER
#
# Wants root, and Debian's etcd-server, containerd, runc, containernetworking-plugins, conntrack, iptables and catatonit. Nodes
# and pods are 198.18.0.0/16, Services 198.19.0.0/16: addresses set aside for tests of networks (RFC 2544).
set -euo pipefail
binaries=$(realpath "$1")
mkdir -p "$2"/{pki,cni}
folder=$(realpath "$2")
cd "$folder"
namespace=losswire-e2e
# Not `ip netns exec`, which hides the control groups.
inside=(nsenter "--net=/run/netns/$namespace")

ip netns add "$namespace"
"${inside[@]}" ip link set lo up
"${inside[@]}" ip link add node0 type bridge
"${inside[@]}" ip addr add 198.18.0.1/24 dev node0
"${inside[@]}" ip link set node0 up
"${inside[@]}" sysctl -q -w net.ipv4.ip_forward=1
"${inside[@]}" sysctl -q -w net.bridge.bridge-nf-call-iptables=1 || true # A pod's call to itself through a Service.

start() { # NAME COMMAND…
    local name=$1
    shift
    "${inside[@]}" setsid "$@" >"$name.log" 2>&1 &
    echo $! >"$name.pid"
}

wait_for() { # SECONDS COMMAND…: until it succeeds
    local -i left=$(($1 * 4))
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        if ((left <= 0)); then
            echo "up.sh: waited in vain for: $*; see the logs in $folder" >&2
            exit 1
        fi
        sleep 0.25
    done
}

start etcd etcd --data-dir etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster default=http://127.0.0.1:2380

openssl genrsa -out pki/sa.key 2048 2>/dev/null
openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null
openssl req -x509 -newkey rsa:2048 -nodes -keyout pki/ca.key -out pki/ca.crt -subj /CN=kubernetes-ca -days 3 2>/dev/null
openssl req -newkey rsa:2048 -nodes -keyout pki/api.key -out pki/api.csr -subj /CN=kube-apiserver 2>/dev/null
echo 'subjectAltName=IP:127.0.0.1,IP:198.18.0.1,IP:198.19.0.1,DNS:kubernetes.default.svc' >pki/names
openssl x509 -req -in pki/api.csr -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial -out pki/api.crt -days 3 \
    -extfile pki/names 2>/dev/null
token=$(openssl rand -hex 16)
echo "$token,admin,1,\"system:masters\"" >tokens.csv

start apiserver "$binaries/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 \
    --advertise-address=198.18.0.1 --external-hostname=198.18.0.1 --secure-port=6443 --tls-cert-file=pki/api.crt \
    --tls-private-key-file=pki/api.key --client-ca-file=pki/ca.crt --token-auth-file=tokens.csv --authorization-mode=RBAC \
    --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key \
    --service-account-issuer=https://198.18.0.1:6443 --service-cluster-ip-range=198.19.0.0/16 --allow-privileged=true \
    --cert-dir=pki --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing \
    --requestheader-client-ca-file=pki/ca.crt --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra-
cat >kubeconfig <<END
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "https://198.18.0.1:6443", certificate-authority: $folder/pki/ca.crt}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: e2e, context: {cluster: e2e, user: admin}}]
current-context: e2e
END
wait_for 120 "${inside[@]}" curl -sf --cacert pki/ca.crt -H "Authorization: Bearer $token" https://127.0.0.1:6443/readyz

start controllers "$binaries/kube-controller-manager" --kubeconfig=kubeconfig --bind-address=127.0.0.1 --port=0 \
    --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt --use-service-account-credentials=true \
    --leader-elect=false --allocate-node-cidrs=false --cert-dir=pki \
    --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-downscale-stabilization=20s
start scheduler "$binaries/kube-scheduler" --kubeconfig=kubeconfig --bind-address=127.0.0.1 --port=0 --leader-elect=false \
    --cert-dir=pki

# Without CAP_SYS_RESOURCE no score can be lowered, hence restrict_oom_score_adj.
cat >containerd.toml <<END
version = 2
root = "$folder/containerd/root"
state = "$folder/containerd/state"
[grpc]
  address = "$folder/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$folder/cni"
END
cat >cni/10-pods.conflist <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "198.18.1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "$folder/cni-data"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
start containerd containerd -c containerd.toml
wait_for 20 ctr -a containerd.sock version

cat >kubelet.yaml <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 198.18.0.1
cgroupDriver: cgroupfs
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDNS: [198.19.0.10]
clusterDomain: cluster.local
resolvConf: ""
enforceNodeAllocatable: []
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 200Mi, nodefs.available: "1%", imagefs.available: "1%"}
END
start kubelet "$binaries/kubelet" --config=kubelet.yaml --kubeconfig=kubeconfig --root-dir="$folder/kubelet" \
    --cert-dir="$folder/pki/kubelet" --container-runtime=remote \
    --container-runtime-endpoint="unix://$folder/containerd.sock" --node-ip=198.18.0.1 --hostname-override=node1
cat >proxy.yaml <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 198.18.0.1
hostnameOverride: node1
mode: iptables
clusterCIDR: 198.18.1.0/24
clientConnection: {kubeconfig: $folder/kubeconfig}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
start proxy "$binaries/kube-proxy" --config=proxy.yaml
