#!/bin/sh
# Lays out the root of Berth's container image: the two programs, the libraries that they load if they aren't static, and the
# system's certificate authorities. There is no shell in it, and nothing that is not needed.
#
#   deploy/image.sh FOLDER-OF-THE-PROGRAMS FOLDER-TO-MAKE [PROGRAM…]
set -eu
programs=$1
root=$2
shift 2
[ $# -gt 0 ] || set -- berth-proxy berth-registry

mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/tmp"
for program; do
    cp "$programs/$program" "$root/usr/bin/"
    # Each line of ldd names one library by its path, but for the kernel's own.
    ldd "$programs/$program" 2>/dev/null | grep -o '/[^ ]*' | sort -u | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
# What they are made of, if that was written down.
for bill in "$programs"/*.cdx.json; do
    [ ! -e "$bill" ] || { mkdir -p "$root/usr/share/sbom" && cp "$bill" "$root/usr/share/sbom/"; }
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'berth:x:65532:65532:berth:/:/none' > "$root/etc/passwd"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
mkdir -p "$root/var/lib/berth/registry" "$root/run/registry" "$root/etc/berth"
chown -R 65532:65532 "$root/var/lib/berth" "$root/run/registry"
chmod 1777 "$root/tmp"
