#!/bin/sh
# Makes the passwords of the compose file, once: authentik's in the first folder, and Berth's credentials at authentik,
# which is all that Berth gets of them, in the second.
set -eu
client=$(cd "$2" && pwd)
cd "$1"

secret() {
    [ -s "$1" ] || head -c 30 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' > "$1"
}
secret authentik-secret-key
secret database-password
secret admin-password
secret client-secret
secret ci-password
printf '{"clientid": "berth", "clientsecret": "%s"}\n' "$(cat client-secret)" > "$client/next" && mv -f "$client/next" "$client/oidc-credentials.json"

# authentik reads some settings from the environment alone.
cat > next <<'END'
export AUTHENTIK_BOOTSTRAP_PASSWORD="$(cat /run/berth/admin-password)"
export BERTH_CLIENT_SECRET="$(cat /run/berth/client-secret)"
export BERTH_CI_PASSWORD="$(cat /run/berth/ci-password)"
exec dumb-init -- ak "$@"
END
mv -f next authentik.sh
# The services run as different users; the folders are theirs alone.
chmod 444 ./* "$client/oidc-credentials.json"
