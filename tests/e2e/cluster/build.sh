#!/usr/bin/env bash
# Builds the five binaries of Kubernetes 1.20.2 from Debian's source package, with Debian's Go: about 5 minutes on two cores.
#
#     build.sh FOLDER     leaves kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kube-proxy there
#
# Wants Debian 12 with golang-1.19-go, golang-github-modern-go-reflect2-dev, dpkg-dev, rsync, jq, make and gcc.
set -euo pipefail
target=$(realpath -m "$1")
work=$target.building
version=v1.20.2

rm -rf "$work"
mkdir -p "$work"/{source,bin,home,cache,apt/lists/partial,go/src/k8s.io}

# The lists of source packages go to a folder of their own: the machine's settings stay as they are.
sed 's/^Types: .*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$work/apt/source.sources"
apt=(apt-get -o "Dir::Etc::sourceparts=$work/apt" -o Dir::Etc::sourcelist=/dev/null -o "Dir::State::Lists=$work/apt/lists")
"${apt[@]}" update -qq
(cd "$work/source" && "${apt[@]}" source -qq kubernetes >"$work/source.log" 2>&1)
mv "$work"/source/kubernetes-1.20* "$work/go/src/k8s.io/kubernetes"
cd "$work/go/src/k8s.io/kubernetes"

# The vendored reflect2 1.0.1 crashes when built with Go 1.18 or newer; Debian's own package has 1.0.2.
reflect2=vendor/github.com/modern-go/reflect2
rm -f "$reflect2"/*.go "$reflect2"/*.s
cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect2/"
rm -f "$reflect2"/*_test.go

# GOPATH mode: in module mode Go refuses the vendor tree as Debian changed it.
export PATH=/usr/lib/go-1.19/bin:$PATH HOME="$work/home" GOCACHE="$work/cache"
export GO111MODULE=off GOPROXY=off GOFLAGS='' CGO_ENABLED=0
cat >"$work/version" <<END
KUBE_GIT_COMMIT='0'
KUBE_GIT_TREE_STATE='clean'
KUBE_GIT_VERSION='$version'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
END
KUBE_GIT_VERSION_FILE="$work/version" make generated_files >"$work/generate.log" 2>&1
vendored=k8s.io/kubernetes/vendor/k8s.io
base=$vendored/component-base/version
GOPATH="$work/go" go build -o "$work/bin/" \
    -ldflags "-s -w -X $base.gitVersion=$version -X $base.gitMajor=1 -X $base.gitMinor=20 -X $vendored/client-go/pkg/version.gitVersion=$version" \
    ./cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy}

rm -rf "$target"
mv "$work/bin" "$target"
chmod -R u+w "$work"
rm -rf "$work"
