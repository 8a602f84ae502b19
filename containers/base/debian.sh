#!/bin/sh
# The root of the stand-in bases where no registry can be reached: Debian 12 by debootstrap, as a tarball.
#   debian.sh OUT.tar      then: docker import OUT.tar NAME
# Needs root and debootstrap, whose mirror is taken unless DEBIAN_MIRROR names another. Takes about a minute, so the
# tarball is kept in .cache.
set -eu
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include=ca-certificates bookworm "$work/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$work/log" 2>&1 \
  || { tail -5 "$work/log" >&2; exit 1; }
# debootstrap has written the mirror that it took.
sources=$work/root/etc/apt/sources.list
mirror=$(awk '$1 == "deb" { sub("/$", "", $2); print $2; exit }' "$sources")
cat >"$sources" <<SOURCES
deb $mirror bookworm main
deb $mirror bookworm-updates main
deb $mirror-security bookworm-security main
SOURCES
rm -rf "$work/root/var/cache/apt/archives/"*.deb "$work/root/var/lib/apt/lists/"* "$work/root/var/log/"*
tar -C "$work/root" --numeric-owner --sort=name -cf "$out.partial" .
mv "$out.partial" "$out"
