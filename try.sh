#!/bin/sh
# The whole system on this machine, with a stand-in for authentik. Needs a Rust toolchain, a C compiler, make and cmake.
set -eu
cd "$(dirname "$0")"

if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust, see https://rustup.rs" >&2
    exit 1
fi
missing=
command -v cmake >/dev/null || missing="$missing cmake"
command -v make >/dev/null || missing="$missing make"
command -v cc >/dev/null || missing="$missing gcc"
command -v c++ >/dev/null || missing="$missing g++"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        # shellcheck disable=SC2086
        apt-get install -y -qq --no-install-recommends $missing
    else
        echo "missing:$missing. On Debian: sudo apt-get install$missing" >&2
        exit 1
    fi
fi

# As fast to build as can be, and good enough to look at.
cargo build --profile quick --locked --no-default-features --bin berth-proxy --bin berth-registry --bin berth-stand-in --bin berth-try \
    --bin docker-credential-berth
# cargo may have been told to build elsewhere.
exec "${CARGO_TARGET_DIR:-target}/quick/berth-try"
