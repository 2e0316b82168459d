#!/usr/bin/env bash
# Prints a folder whose node_modules contain standardwebhooks (the public library for signatures) and
# oidc-provider (an OAuth2 server).
set -euo pipefail

webhooks=${1:-1.0.0}
provider=${2:-9}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/node-receivers-$webhooks-$provider

if [[ ! -d $folder ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/node-receivers.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    npm install --silent --no-audit --no-fund --no-save --prefix "$work/package" \
        "standardwebhooks@$webhooks" "oidc-provider@$provider" >&2
    mv "$work/package" "$folder"
fi
echo "$folder"
