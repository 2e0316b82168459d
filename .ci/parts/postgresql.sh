#!/usr/bin/env bash
# Prints the folder of the PostgreSQL server binaries (14 or newer). If there are none, installs the Debian package,
# without creating or starting a database.
set -euo pipefail

# The newest installed version.
found() {
    local postgres
    postgres=$(ls -d /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort -t/ -k5 -n | tail -n 1)
    [[ -n $postgres ]] || postgres=$(command -v postgres || true)
    [[ -n $postgres ]] || return 1
    # A link on PATH points to the folder that also contains initdb and psql.
    dirname "$(readlink -f "$postgres")"
}

if ! found >/dev/null; then
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "PostgreSQL not found; install its server, 14 or newer (Debian: apt-get install postgresql)" >&2
        exit 1
    fi
    mkdir -p /etc/postgresql-common
    [[ -e /etc/postgresql-common/createcluster.conf ]] \
        || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    {
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql
    } >&2
fi
found
