#!/usr/bin/env bash
# Prints a folder for PYTHONPATH with the public Python libraries that verify and decode deliveries:
# standardwebhooks (signatures) and cloudevents (the CloudEvents SDK).
set -euo pipefail

webhooks=${1:-1.0.0}
events=${2:-2.2.0}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/python-receivers-$webhooks-$events

if [[ ! -d $folder ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/python-receivers.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip install --quiet --no-input --root-user-action=ignore --target "$work/package" \
        "standardwebhooks==$webhooks" "cloudevents==$events" >&2
    mv "$work/package" "$folder"
fi
echo "$folder"
