#!/bin/sh
# Copies everything that the compose file's services keep into a new folder, while they run:
#
#   deploy/backup.sh FOLDER
#
# In this order, so that the parts fit each other: the generated secrets, authentik's database, Berth's sessions and keys,
# then what each repository holds, and last the blobs. A blob is removed an hour (gcDelay) after nothing names it, so what
# the repositories name is there when the blobs are copied. Whoever has this folder has everything: keep it safe.
set -eu
to=$1
mkdir -p "$to"
to=$(cd "$to" && pwd)
chmod 700 "$to"
if [ -n "$(ls -A "$to")" ]; then
    echo "$to is not empty; give a new folder" >&2
    exit 1
fi
cd "$(dirname "$0")/.."
# Another one, with other files, may be given: COMPOSE="docker compose -f compose.yaml -f compose.tls.yaml".
compose=${COMPOSE:-docker compose}
container() {
    $compose ps --all --quiet "$1" | grep . || { echo "there is no container of $1; start the services first" >&2; exit 1; }
}
proxy=$(container proxy)
registry=$(container registry)

docker cp "$(container setup):/run/setup" - > "$to/secrets.tar"
$compose exec -T postgresql pg_dump --username authentik --format custom authentik > "$to/authentik.dump"
# The image has no shell; it is run once more, with the proxy's files and a folder of ours.
mkdir "$to/proxy"
docker run --rm --user 0:0 --network none --volumes-from "$proxy" --volume "$to/proxy:/backup" \
    "$(docker inspect --format '{{.Image}}' "$proxy")" berth-proxy backup /etc/berth/config.json /backup
docker cp "$registry:/var/lib/berth/registry/repositories" - > "$to/repositories.tar"
docker cp "$registry:/var/lib/berth/registry/blobs" - > "$to/blobs.tar"
echo "everything is in $to"
