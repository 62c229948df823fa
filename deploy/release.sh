#!/bin/sh
# What a release consists of, in the folder `dist`: for each target an archive with the programs, the documents and the
# systemd units, their bills of materials (CycloneDX), and the checksums of all.
#
#   deploy/release.sh [TARGET…]
#
# Without a target: static programs for x86-64 and arm64. Those need `rustup target add` to have been possible, and
# cargo-zigbuild with zig for the C in some crates (pip install cargo-zigbuild ziglang). A target with gnu in its name is built
# with this machine's own compiler.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- x86_64-unknown-linux-musl aarch64-unknown-linux-musl

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
BERTH_COMMIT=${BERTH_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || true)}
export BERTH_COMMIT
built=${CARGO_TARGET_DIR:-target}
command -v cargo-cyclonedx >/dev/null || cargo install --quiet --locked --debug --version 0.5.9 cargo-cyclonedx

rm -rf dist
mkdir dist
for target; do
    case $target in
        *-gnu) build=build ;;
        *)
            rustup target add "$target" >/dev/null 2>&1 || {
                echo "$target: its standard library can't be had (rustup target add $target)" >&2
                exit 1
            }
            command -v cargo-zigbuild >/dev/null || {
                echo "cargo-zigbuild is missing: pip install cargo-zigbuild ziglang" >&2
                exit 1
            }
            build=zigbuild
            ;;
    esac
    cargo "$build" --release --locked --target "$target" -p berth-proxy -p berth-registry \
        -p berth-mirror -p berth-credential -p berth-bench
    name=berth-$version-${target%%-*}-linux
    mkdir -p "dist/$name/docs"
    cp "$built/$target/release/berth-proxy" "$built/$target/release/berth-registry" "$built/$target/release/berth-mirror" \
        "$built/$target/release/docker-credential-berth" "$built/$target/release/berth-bench" LICENSE README.md CHANGELOG.md "dist/$name/"
    cp docs/*.md "dist/$name/docs/"
    cp -r deploy/systemd deploy/observability "dist/$name/"
    for program in proxy registry mirror credential bench; do
        cargo cyclonedx --quiet --format json --target "$target" --manifest-path "$program/Cargo.toml" \
            --override-filename "sbom"
        mv "$program/sbom.json" "dist/$name/berth-$program.cdx.json"
        # It writes one for each crate of the workspace.
        rm -f ./*/sbom.json
    done
    tar --create --gzip --owner 0 --group 0 --directory dist --file "dist/$name.tar.gz" "$name"
done
(cd dist && sha256sum ./*.tar.gz >SHA256SUMS)
ls -l dist
