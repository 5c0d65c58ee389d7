#!/bin/bash
# Download Debian's packaged kernel and unpack it into out/kernel (vmlinuz, release, modules); nothing is installed.
# linux-image-amd64 only names the package of the day: its dependency is the real one.
set -eu -o pipefail
out=$1
mkdir -p "$out"
find_package() { apt-cache depends --important linux-image-amd64 | sed -n 's/^ *Depends: //p' | head -1; }
package=$(find_package)
if [ -z "$package" ]; then
  apt-get update -qq
  package=$(find_package)
fi
[ -n "$package" ] || { echo "kernel: apt knows no linux-image-amd64" >&2; exit 1; }
work=$(mktemp -d "$out/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
(cd "$work" && { apt-get download -qq -o APT::Sandbox::User=root "$package" ||
  { apt-get update -qq && apt-get download -qq -o APT::Sandbox::User=root "$package"; }; })
dpkg-deb -x "$work"/*.deb "$work/root"
rm -rf "$out/modules"
mv "$work"/root/lib/modules/* "$work/modules"
mv "$work/modules" "$out/modules"
mv "$work"/root/boot/vmlinuz-* "$out/vmlinuz"
mv "$work"/root/boot/config-* "$out/config"
mkdir -p "$out/doc"
mv "$work"/root/usr/share/doc/*/copyright "$out/doc/copyright"
echo "${package#linux-image-}" >"$out/release"
dpkg-deb -f "$work"/*.deb Package Version >"$out/package"
