#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Small packages in version 1, installed, and in version 2, in a directory that says it is the security archive. A dry run shows what
# unattended-upgrades would take. Names come as arguments.
set -eu
root=/opt/molecule-hardening/updates
rm -rf "$root" && mkdir -p "$root/old" "$root/new"
make() { # name version directory
    tree=$root/tree
    rm -rf "$tree" && mkdir -p "$tree/DEBIAN"
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Molecule <molecule@example.com>\nDescription: a test\n' "$1" "$2" > "$tree/DEBIAN/control"
    dpkg-deb -Znone --build "$tree" "$root/$3/$1_$2_all.deb" > /dev/null
}
for name in "$@"; do
    make "$name" 1 old
    make "$name" 2 new
done
dpkg -i "$root"/old/*.deb > /dev/null
cd "$root/new"
for file in *.deb; do
    dpkg-deb -f "$file"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$file" "$(stat -c %s "$file")" "$(sha256sum "$file" | cut -d' ' -f1)"
done > Packages
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
{
    printf 'Origin: Debian\nLabel: Debian-Security\nSuite: stable-security\nCodename: %s-security\nDate: %s\nSHA256:\n' "$codename" "$(date -Ru)"
    printf ' %s %s Packages\n' "$(sha256sum Packages | cut -d' ' -f1)" "$(stat -c %s Packages)"
} > Release
# Only these packages and the installed ones, so that it is quick; all other settings are the host's.
echo "deb [trusted=yes] file:$root/new ./" > "$root/sources.list"
printf 'Dir::Etc::sourcelist "%s";\nDir::Etc::sourceparts "/dev/null";\nDir::State::lists "%s";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n' \
    "$root/sources.list" "$root/lists" > "$root/apt.conf"
mkdir -p "$root/lists/partial"
export APT_CONFIG="$root/apt.conf"
apt-get -qq update
unattended-upgrade --dry-run --debug 2>&1
# The same without the list of names: what would have been taken.
echo CONTROL
cp -r /etc/apt/apt.conf.d "$root/parts"
sed -i '/^Unattended-Upgrade::Package-Blacklist {/,/^};/d' "$root/parts/99gpufleet-updates"
echo "Dir::Etc::parts \"$root/parts\";" >> "$root/apt.conf"
unattended-upgrade --dry-run --debug 2>&1
