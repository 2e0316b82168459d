#!/usr/bin/env bash
# Prints the folder of the Python package grafana-foundation-sdk, Grafana's own types of dashboards. Usage:
#   PYTHONPATH=FOLDER python3 …
set -euo pipefail

version=${1:-1769699998!10.1.0}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/grafana-sdk-${version#*!}

if [[ ! -d $folder/grafana_foundation_sdk ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/grafana-sdk.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # It has no dependencies. --target changes no system packages, and needs no virtual environment.
    python3 -m pip install --quiet --no-input --no-deps --root-user-action=ignore --target "$work/package" \
        "grafana-foundation-sdk==$version" >&2
    rm -rf "$folder"
    mv "$work/package" "$folder"
fi
echo "$folder"
