#!/usr/bin/env bash
# Prints the path of the `nats` command line tool, built once from its Go module.
# usage: nats-cli.sh [VERSION]
set -euo pipefail

version=${1:-v0.4.0}
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
binary=$cache/natscli-$version/nats

if [[ ! -x $binary ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # A temporary module instead of `go install …@version`, which requires the list
    # of all versions; some module proxies do not serve it.
    cd "$work"
    go mod init nats-cli-build >/dev/null 2>&1
    go mod edit -require="github.com/nats-io/natscli@$version"
    GOFLAGS=-mod=mod go build -trimpath -o "$work/nats" github.com/nats-io/natscli/nats >&2
    mkdir -p "$(dirname "$binary")"
    install -m 755 "$work/nats" "$binary.$$"
    mv "$binary.$$" "$binary"
fi
echo "$binary"
