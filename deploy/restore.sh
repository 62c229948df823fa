#!/bin/sh
# Brings back what deploy/backup.sh has copied, to a machine that has nothing of it yet:
#
#   deploy/restore.sh FOLDER
#
# Whatever the services kept under the same names before must be gone (docker compose down --volumes).
set -eu
from=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
compose=${COMPOSE:-docker compose}
for file in secrets.tar authentik.dump proxy/proxy.db proxy/proxy.key repositories.tar blobs.tar; do
    [ -f "$from/$file" ] || { echo "$from/$file is missing; is that a backup?" >&2; exit 1; }
done
container() {
    $compose ps --all --quiet "$1"
}
if [ -n "$(container proxy)" ]; then
    echo "the services are there already; nothing is overwritten (docker compose down --volumes removes what they keep)" >&2
    exit 1
fi

# It makes new secrets, and the old ones take their place before anything reads them.
$compose up --detach --no-deps setup
docker wait "$(container setup)" >/dev/null
docker cp - "$(container setup):/run" < "$from/secrets.tar"
$compose up --no-start --no-deps ${COMPOSE_UP_OPTIONS:-} proxy registry
# As the user that Berth's containers run as.
tar --create --owner 65532 --group 65532 --directory "$from/proxy" proxy.db proxy.key |
    docker cp - "$(container proxy):/var/lib/berth"
for part in repositories blobs; do
    docker cp - "$(container registry):/var/lib/berth/registry" < "$from/$part.tar"
done
$compose up --detach --no-deps ${COMPOSE_UP_OPTIONS:-} postgresql
tries=0
until $compose exec -T postgresql pg_isready --dbname authentik --username authentik; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "PostgreSQL does not start" >&2; exit 1; }
    sleep 1
done
$compose exec -T postgresql pg_restore --username authentik --dbname authentik --clean --if-exists --no-owner < "$from/authentik.dump"
$compose up --detach ${COMPOSE_UP_OPTIONS:-}
echo "everything is back"
