#!/usr/bin/env bash
# Prints the folder of the Python package kubernetes-validate, which contains the Kubernetes schemas. Usage:
#   PYTHONPATH=FOLDER python3 FOLDER/bin/kubernetes-validate …
set -euo pipefail

version=${1:-1.37.0}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/kubernetes-validate-$version

if [[ ! -x $folder/bin/kubernetes-validate ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/kubernetes-validate.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # --target changes no system packages, and needs no virtual environment.
    python3 -m pip install --quiet --no-input --root-user-action=ignore --target "$work/package" \
        "kubernetes-validate==$version" >&2
    rm -rf "$folder"
    mv "$work/package" "$folder"
fi
echo "$folder"
