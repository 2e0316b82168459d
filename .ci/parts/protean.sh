#!/usr/bin/env bash
# Prints a folder for PYTHONPATH with Protean, the Python framework whose envelope format the producer outbox uses,
# and its dependencies for Redis and PostgreSQL. Protean 0.18 requires Python 3.11 or newer.
set -euo pipefail

version=${1:-0.18.0}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/protean-$version

if [[ ! -d $folder ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/protean.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip install --quiet --no-input --root-user-action=ignore --target "$work/package" \
        "protean[redis,postgresql]==$version" >&2
    mv "$work/package" "$folder"
fi
echo "$folder"
