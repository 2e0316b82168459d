#!/usr/bin/env bash
# Prints the path of a Redis server: the Debian package, unpacked once, with a start script that sets the library path.
set -euo pipefail

cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/redis-server-debian

if [[ ! -x $folder/redis-server ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/redis-server.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # Libraries of redis-server, without the C library.
    "$(dirname "${BASH_SOURCE[0]}")/debian-packages.sh" "$work/root" redis-server redis-tools liblzf1 libjemalloc2 libatomic1 \
        libssl3 libsystemd0 libcap2 libgcrypt20 libgpg-error0 liblzma5 libzstd1 liblz4-1
    cat >"$work/redis-server" <<'SCRIPT'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$(echo "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu | tr ' ' ':')
LD_LIBRARY_PATH=$libraries exec "$root/usr/bin/redis-server" "$@"
SCRIPT
    chmod +x "$work/redis-server"
    rm -rf "$folder"
    mv "$work" "$folder"
fi
echo "$folder/redis-server"
