#!/usr/bin/env bash
# Makes localhost/base-python:3.11-bookworm, a stand-in for the public Python image, from Debian's own packages.
#
#     base.sh FOLDER     builds there and removes it
set -euo pipefail
folder=$(realpath -m "$1")
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$folder" >"$folder.log"
container=$(buildah from scratch)
tar -C "$folder" --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' -c . >"$folder.tar"
buildah add --quiet "$container" "$folder.tar" /
rm -f "$folder.tar" "$folder.log"
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit --quiet --rm "$container" localhost/base-python:3.11-bookworm
