#!/usr/bin/env bash
# Prints a folder for PYTHONPATH with schemathesis, which fuzzes an API by its OpenAPI description.
# usage: schemathesis.sh [VERSION]
set -euo pipefail

version=${1:-4.32.5}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/schemathesis-$version

if [[ ! -d $folder ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/schemathesis.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip install --quiet --no-input --root-user-action=ignore --target "$work/package" \
        "schemathesis==$version" >&2
    mv "$work/package" "$folder"
fi
echo "$folder"
