#!/usr/bin/env bash
# Prints the folder of PostgreSQL's server binaries (14 or newer): the machine's, else those of the
# Debian package, which is installed without making or starting a database.
set -euo pipefail

# The newest of those installed.
found() {
    local postgres
    postgres=$(ls -d /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort -t/ -k5 -n | tail -n 1)
    [[ -n $postgres ]] || postgres=$(command -v postgres || true)
    [[ -n $postgres ]] || return 1
    # A link on PATH points to where initdb and psql are as well.
    dirname "$(readlink -f "$postgres")"
}

if ! found >/dev/null; then
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "PostgreSQL is not there: install its server, 14 or newer (Debian: apt-get install postgresql)" >&2
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
