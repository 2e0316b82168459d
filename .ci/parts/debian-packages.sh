#!/usr/bin/env bash
# Unpacks Debian packages of the release of this machine into a folder. Installs and starts nothing, and needs no
# root. Uses the existing package indices, or downloads new ones to a temporary folder.
# usage: debian-packages.sh FOLDER PACKAGE...
set -euo pipefail

folder=$1
shift
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "apt-get or dpkg-deb not found; install $1 and set its HUB_TEST_… variable (see .ci/run)" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/debs" "$work/lists/partial" "$work/cache/archives/partial"
cd "$work/debs"
apt=(apt-get -qq -o "APT::Sandbox::User=$(id -un)")
if ! "${apt[@]}" download "$@" >&2; then
    echo "trying again with new package indices" >&2
    apt+=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
    "${apt[@]}" update >&2
    "${apt[@]}" download "$@" >&2
fi
mkdir -p "$folder"
for package in *.deb; do
    dpkg-deb -x "$package" "$folder"
done
