#!/usr/bin/env bash
# Prints the path of a C compiler for musl: Debian's musl-tools, unpacked, with the paths in its specs replaced.
set -euo pipefail

cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/musl-debian
if [[ ! -x $folder/musl-gcc ]]; then
    rm -rf "$folder"
    "$(dirname "${BASH_SOURCE[0]}")/debian-packages.sh" "$folder.new" musl musl-dev musl-tools
    triple=$(uname -m)-linux-musl
    sed "s|/usr/|$folder/usr/|g; s|/lib/ld-musl|$folder/lib/ld-musl|g" \
        "$folder.new/usr/lib/$triple/musl-gcc.specs" >"$folder.new/musl-gcc.specs"
    printf '#!/bin/sh\nexec cc "$@" -specs "%s/musl-gcc.specs"\n' "$folder" >"$folder.new/musl-gcc"
    chmod +x "$folder.new/musl-gcc"
    mv "$folder.new" "$folder"
fi
echo "$folder/musl-gcc"
