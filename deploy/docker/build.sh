#!/usr/bin/env bash
# Builds a target of the Dockerfile as losswire:TARGET, with buildah or docker. More arguments go to the builder:
#
#     build.sh cpu --build-arg BASE=registry.example.com/python:3.11-slim-bookworm
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$1
shift
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
if command -v buildah >/dev/null; then
    # One time for every file: two builds then differ only where their contents do.
    builder=(buildah build --layers --timestamp 0)
elif command -v docker >/dev/null; then
    builder=(docker build)
else
    echo "make image: neither buildah nor docker is installed; expected one of them" >&2
    exit 1
fi
exec "${builder[@]}" --file deploy/docker/Dockerfile --target "$target" --tag "losswire:$target" \
    --build-arg "REVISION=$revision" "$@" .
