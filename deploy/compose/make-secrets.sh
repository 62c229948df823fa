#!/bin/sh
# Makes the passwords of the compose file in a folder that its services share, once.
set -eu
cd "$1"

secret() {
    [ -s "$1" ] || head -c 30 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' > "$1"
}
secret authentik-secret-key
secret database-password
secret admin-password
secret client-secret
secret ci-password
printf '{"clientid": "berth", "clientsecret": "%s"}\n' "$(cat client-secret)" > oidc-credentials.json

# authentik reads some settings from the environment alone.
cat > authentik.sh <<'END'
export AUTHENTIK_BOOTSTRAP_PASSWORD="$(cat /run/berth/admin-password)"
export BERTH_CLIENT_SECRET="$(cat /run/berth/client-secret)"
export BERTH_CI_PASSWORD="$(cat /run/berth/ci-password)"
exec dumb-init -- ak "$@"
END
# The services run as different users; the folder is theirs alone.
chmod 444 ./*
