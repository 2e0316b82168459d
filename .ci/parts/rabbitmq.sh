#!/usr/bin/env bash
# Prints the path of a RabbitMQ server: the Debian packages with Erlang, unpacked once, with a start script that sets
# the paths. The port mapper epmd is in the same folder.
set -euo pipefail

cache=${HUB_CI_CACHE:-$HOME/.cache/integration-hub-ci}
folder=$cache/rabbitmq-debian

if [[ ! -x $folder/rabbitmq-server ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/rabbitmq.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    "$(dirname "${BASH_SOURCE[0]}")/debian-packages.sh" "$work/root" rabbitmq-server erlang-base erlang-asn1 erlang-crypto \
        erlang-eldap erlang-inets erlang-mnesia erlang-os-mon erlang-parsetools erlang-public-key \
        erlang-runtime-tools erlang-ssl erlang-syntax-tools erlang-tools erlang-xmerl \
        libssl3 libtinfo6 libsystemd0 libcap2 libgcrypt20 libgpg-error0 liblzma5 libzstd1 liblz4-1
    # The start script of Erlang contains its folder.
    sed -i "s|/usr/lib/erlang|$folder/root/usr/lib/erlang|g" "$work"/root/usr/lib/erlang/erts-*/bin/erl \
        "$work/root/usr/lib/erlang/bin/erl"
    cat >"$work/rabbitmq-server" <<'SCRIPT'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$(echo "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu | tr ' ' ':')
export PATH="$root/usr/lib/erlang/bin:$PATH" LD_LIBRARY_PATH="$libraries"
exec "$root"/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server "$@"
SCRIPT
    cat >"$work/epmd" <<'SCRIPT'
#!/bin/sh
exec "$(dirname "$(readlink -f "$0")")/root/usr/lib/erlang/bin/epmd" "$@"
SCRIPT
    chmod +x "$work/rabbitmq-server" "$work/epmd"
    rm -rf "$folder"
    mv "$work" "$folder"
fi
echo "$folder/rabbitmq-server"
