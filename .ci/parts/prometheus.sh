#!/usr/bin/env bash
# Prints the path of a folder with promtool and prometheus: the Debian package, unpacked once. Both are statically
# linked, except for the C library.
set -euo pipefail

cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/prometheus-debian

if [[ ! -x $folder/promtool ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/prometheus.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    "$(dirname "${BASH_SOURCE[0]}")/debian-packages.sh" "$work/root" prometheus
    mv "$work/root/usr/bin/prometheus" "$work/root/usr/bin/promtool" "$work/"
    rm -rf "$work/root" "$folder"
    mv "$work" "$folder"
fi
echo "$folder"
