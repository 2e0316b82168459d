#!/usr/bin/env bash
# Unpacks Debian packages of the machine's own release into a folder: nothing is installed, nothing is
# started, no root is needed. Package indices are taken as they are, or fetched for this once.
# usage: debian-packages.sh FOLDER PACKAGE...
set -euo pipefail

folder=$1
shift
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "this is no Debian machine: install $1 by hand and name it to the tests (README)" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/debs" "$work/lists/partial" "$work/cache/archives/partial"
cd "$work/debs"
apt=(apt-get -qq -o "APT::Sandbox::User=$(id -un)")
if ! "${apt[@]}" download "$@" >&2; then
    echo "once more with fresh package indices" >&2
    apt+=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
    "${apt[@]}" update >&2
    "${apt[@]}" download "$@" >&2
fi
mkdir -p "$folder"
for package in *.deb; do
    dpkg-deb -x "$package" "$folder"
done
