#!/usr/bin/env bash
# Resolves what the images are made of and writes it with hashes to requirements/, for Python 3.11 on Linux.
#
#     lock.sh PYTHON [--upgrade]
#
# PyTorch is the release that the tests run with: for cpu the build without CUDA, from PyTorch's own index or the folder that
# pip is set up to look into.
set -euo pipefail
python=$(realpath -s "$1")
shift
cd "$(dirname "$0")/../.."
torch=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip install --quiet pip-tools
# losswire itself is no release: the server's need of it is met by a wheel, and it stays out of the locks.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" ./client

lock() { # TARGET REQUIREMENT ARGUMENTS…
    local lock=deploy/docker/requirements/$1.txt
    echo "$2" >"$folder/torch.in"
    shift 2
    "$python" -m piptools compile --quiet --generate-hashes --strip-extras --no-header --no-annotate --no-emit-find-links \
        --no-emit-index-url --find-links "$folder" --unsafe-package losswire --extra cli --extra score --extra bfloat16 --extra otlp \
        --output-file "$lock" "$@" client/pyproject.toml server/pyproject.toml "$folder/torch.in"
    sed -i '/^#/d' "$lock"
}

lock cpu "torch==$torch+cpu" "$@"
# With CUDA and Triton, from the package index alone: a folder's build for CPUs has the same version, and would lend its hash.
PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS='' lock gpu "torch==$torch" --extra gpu "$@"
