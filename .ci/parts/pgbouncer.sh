#!/usr/bin/env bash
# Prints the path of PgBouncer: the Debian package, unpacked once, with a start script that sets the library path.
set -euo pipefail

cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/pgbouncer-debian

if [[ ! -x $folder/pgbouncer ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/pgbouncer.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # Libraries of pgbouncer, without the C library.
    "$(dirname "${BASH_SOURCE[0]}")/debian-packages.sh" "$work/root" pgbouncer libc-ares2 libevent-2.1-7 libssl3 libpam0g \
        libsystemd0 libaudit1 libcap-ng0 libcap2 libgcrypt20 libgpg-error0 liblzma5 libzstd1 liblz4-1
    cat >"$work/pgbouncer" <<'SCRIPT'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$(echo "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu | tr ' ' ':')
LD_LIBRARY_PATH=$libraries exec "$root/usr/sbin/pgbouncer" "$@"
SCRIPT
    chmod +x "$work/pgbouncer"
    chmod 755 "$work"
    rm -rf "$folder"
    mv "$work" "$folder"
fi
echo "$folder/pgbouncer"
