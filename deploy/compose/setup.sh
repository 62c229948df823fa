#!/bin/sh
# Makes what the compose file's services share, before they start: every password, once, and Berth's configuration, each
# time, with the names that were chosen. Each service has a folder of its own with what it needs, and no right to more.
#
#   setup.sh FOLDER-OF-THE-FOLDERS CONFIGURATION
set -eu
cd "$1"
umask 077
for folder in authentik postgresql proxy config; do
    [ -d "$folder" ] || mkdir "$folder"
done

# secret FOLDER/NAME: one that is there stays.
secret() {
    [ -s "$1" ] || { head -c 30 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' > "$1.next" && mv "$1.next" "$1"; }
}
secret authentik/secret-key
secret authentik/database-password
secret authentik/admin-password
secret authentik/client-secret
secret authentik/ci-password
secret authentik/scim-token
cp authentik/database-password postgresql/database-password
printf '{"clientid": "berth", "clientsecret": "%s"}\n' "$(cat authentik/client-secret)" > proxy/next
mv -f proxy/next proxy/oidc-credentials.json
cp authentik/scim-token proxy/scim-token

# The names stand in the configuration as they are on one's own machine.
sed -e "s|http://localhost:8080|${BERTH_URL:-http://localhost:8080}|g" \
    -e "s|http://authentik.localhost:9000|${AUTHENTIK_URL:-http://authentik.localhost:9000}|g" \
    -e "s|\"trustedProxies\": \[\]|\"trustedProxies\": [${BERTH_TRUSTED_PROXIES:-}]|" "$2" > config/next
mv -f config/next config/config.json

# authentik's containers run as 1000, PostgreSQL's as 70, Berth's as 65532.
own() {
    chown -R "$1:$1" "$2"
    chmod 500 "$2"
    chmod 400 "$2"/*
}
own 1000 authentik
own 70 postgresql
own 65532 proxy
own 65532 config
