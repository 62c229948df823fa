//! Every key of the configuration, described once: `berth-proxy reference` prints it, and tests compare it with what the
//! processes read.

use std::{collections::BTreeSet, fmt::Write};

/// A key: its path (`<name>` is whatever the operator calls it, `[]` one of several, `*` all that is there), what it says, and
/// what is so without it.
type Key = (&'static str, &'static str, &'static str);

/// All of them, by section.
const SECTIONS: [(&str, &[Key]); 6] = [
    (
        "`http`: where the proxy listens",
        &[
            (
                "http.externalUrl",
                "the address that people and clients use, a scheme and a host; every URL that Berth writes begins with it",
                "required",
            ),
            ("http.address", "an IP address to listen on, or `localhost`", "`0.0.0.0`"),
            ("http.port", "a port", "`8080`"),
            (
                "http.tls.cert",
                "PEM file: the certificate and those between it and an authority; read again when it changes; HTTP/2 is offered",
                "plain HTTP",
            ),
            ("http.tls.key", "PEM file: its key", "plain HTTP"),
            ("http.tls.cacert", "PEM file: the authorities of client certificates; a client may show one", "none"),
        ],
    ),
    (
        "`http.auth`: who is let in",
        &[
            ("http.auth.openid.providers.<name>.issuer", "exactly as authentik shows it, with its slash", "required"),
            (
                "http.auth.openid.providers.<name>.credentialsFile",
                "a file `{\"clientid\": \"…\", \"clientsecret\": \"…\"}`; read again when it changes",
                "`clientid` and `clientsecret`",
            ),
            ("http.auth.openid.providers.<name>.clientid", "the Client ID at the provider", "from `credentialsFile`"),
            ("http.auth.openid.providers.<name>.clientsecret", "the Client Secret", "from `credentialsFile`"),
            ("http.auth.openid.providers.<name>.name", "what stands on the button after \"SIGN IN WITH\"", "`OIDC`"),
            (
                "http.auth.openid.providers.<name>.scopes",
                "what to ask for; `openid` is added; with `offline_access` people are asked about again",
                "`openid profile email`",
            ),
            ("http.auth.openid.providers.<name>.claimMapping.username", "the claim that names people", "`email`"),
            (
                "http.auth.openid.providers.<name>.claimMapping.groups",
                "the claim with their groups, an array or one text",
                "`groups`",
            ),
            (
                "http.auth.openid.providers.<name>.scim.tokenFile",
                "a file with the token with which the provider pushes who is there, at `/scim/v2`; read again when it changes",
                "none: nobody pushes",
            ),
            (
                "http.auth.openid.providers.<name>.scim.linkBy",
                "`externalId`, if that is the `sub` of tokens; `userName`, if that is the name claim",
                "`externalId`",
            ),
            ("http.auth.openid.providers.<name>.scim.required", "`true`: nobody signs in who wasn't pushed", "`false`"),
            (
                "http.auth.openid.providers.<name>.certificateAuthorityFile",
                "PEM file: authorities to trust beside the system's",
                "none",
            ),
            ("http.auth.openid.providers.<name>.certificateAuthority", "the same, as PEM text", "none"),
            ("http.auth.openid.providers.<name>.keypath", "not used: keys are fetched from the provider", "none"),
            ("http.auth.openid.callbackAllowOrigins", "other origins that a sign-in may return to", "none"),
            ("http.auth.apikey", "whether there are API keys; `false` makes those that exist open nothing", "`true`"),
            (
                "http.auth.htpasswd.path",
                "a password file as `htpasswd -B` writes it; read again when it changes",
                "none",
            ),
            (
                "http.auth.mtls.identityAttributes",
                "which part of a client certificate names the user, the first that it has: `CommonName`, `Subject`, `Email`, `DNSName`, `URI`",
                "`CommonName`",
            ),
            ("http.auth.secureSession", "whether cookies are for https alone", "by the scheme of `externalUrl`"),
            ("http.auth.bearer.oidc[].issuer", "whose workloads' tokens are taken", "required"),
            ("http.auth.bearer.oidc[].audiences", "for whom a token must have been made: one of these", "required"),
            ("http.auth.bearer.oidc[].claimMapping.variables[].name", "a name by which `vars` knows it", "required"),
            (
                "http.auth.bearer.oidc[].claimMapping.variables[].expression",
                "CEL over `claims` and the `vars` before it",
                "required",
            ),
            (
                "http.auth.bearer.oidc[].claimMapping.validations[].expression",
                "CEL over `claims` and `vars` that must be true",
                "required",
            ),
            ("http.auth.bearer.oidc[].claimMapping.validations[].message", "what is said if it isn't", "none"),
            (
                "http.auth.bearer.oidc[].claimMapping.username",
                "CEL: the user's name",
                "`claims.iss + '/' + claims.sub`",
            ),
            ("http.auth.bearer.oidc[].claimMapping.groups", "CEL: the groups, a list or one text", "none"),
            (
                "http.auth.bearer.oidc[].certificateAuthorityFile",
                "PEM file: authorities to trust beside the system's",
                "none",
            ),
            ("http.auth.bearer.oidc[].certificateAuthority", "the same, as PEM text", "none"),
            (
                "http.auth.bearer.oidc[].skipIssuerVerification",
                "takes tokens of that issuer's keys whatever their `iss`",
                "`false`",
            ),
            (
                "http.auth.bearer.oidc[].anyOwner",
                "lets a rule for an issuer that many share pin nobody by a literal",
                "`false`",
            ),
        ],
    ),
    (
        "`http.accessControl`: who may do what",
        &[
            (
                "http.accessControl.groups.<name>.users",
                "who is in that group, beside those whose claims say so",
                "none",
            ),
            (
                "http.accessControl.repositories.<name>.policies[].users",
                "whom the policy is for, by name; `<name>` is a glob, of which the longest that matches counts",
                "nobody",
            ),
            ("http.accessControl.repositories.<name>.policies[].groups", "whom it is for, by group", "nobody"),
            (
                "http.accessControl.repositories.<name>.policies[].actions",
                "`read`, `create`, `update`, `delete`",
                "nothing",
            ),
            (
                "http.accessControl.repositories.<name>.policies[].conditions[].expression",
                "CEL over `req` that must be true",
                "none",
            ),
            (
                "http.accessControl.repositories.<name>.policies[].conditions[].message",
                "what the client is told if it isn't",
                "none",
            ),
            (
                "http.accessControl.repositories.<name>.policies[].onDemand",
                "whether what they may read and the registry lacks is fetched for them from where it is [mirrored](mirror.md)",
                "`false`",
            ),
            (
                "http.accessControl.repositories.<name>.defaultPolicy",
                "actions of everybody who is signed in",
                "nothing",
            ),
            ("http.accessControl.repositories.<name>.anonymousPolicy", "actions of everybody who isn't", "nothing"),
            ("http.accessControl.adminPolicy.*", "a policy for all repositories, whatever matches", "none"),
            (
                "http.accessControl.metrics.users",
                "who may see `/metrics`",
                "nobody; without `accessControl` whoever is signed in",
            ),
            ("http.accessControl.metrics.anonymousPolicy", "`[\"read\"]`: everybody may", "nobody"),
            ("extensions.metrics.prometheus.path", "another address of the counters", "`/metrics` alone"),
            ("extensions.metrics.enable", "not used: the counters are always there", "`true`"),
            ("extensions.events.enable", "whether anybody is told of [events](events.md)", "`true`"),
            ("extensions.events.source", "where events are from (CloudEvents' `source`)", "`http.externalUrl`"),
            ("extensions.events.typePrefix", "what their types begin with", "`zotregistry`"),
            ("extensions.events.sinks[].type", "`http`; one of `nats` is not used", "required"),
            ("extensions.events.sinks[].address", "where they are sent to, a URL", "required"),
            (
                "extensions.events.sinks[].privateAddresses",
                "whether that may be an address that only this network knows",
                "`false`",
            ),
            (
                "extensions.events.sinks[].types",
                "what is told: of `repository.created`, `image.updated`, `image.deleted`, `image.expired`, `quota.warning`, `key.created`, `user.deprovisioned`",
                "all",
            ),
            ("extensions.events.sinks[].timeout", "how long one event may take", "`30s`"),
            (
                "extensions.events.sinks[].signingKeyFiles",
                "files with the keys that events are signed with, two at most: a new one and, for a while, the old one",
                "not signed",
            ),
            ("extensions.events.sinks[].credentials.username", "with `password`: Basic", "none"),
            ("extensions.events.sinks[].credentials.password", "its password", "from `file`"),
            ("extensions.events.sinks[].credentials.token", "without `username`: a bearer token", "from `file`"),
            ("extensions.events.sinks[].credentials.file", "a file with the password or the token", "none"),
            ("extensions.events.sinks[].headers", "more headers: `{\"Name\": \"value\"}`", "none"),
            ("extensions.events.sinks[].channel", "an attribute of each event, `ce-channel`", "none"),
            ("extensions.events.sinks[].proxy", "the URL of a proxy on the way", "none"),
            (
                "extensions.events.sinks[].tls.cacertfile",
                "PEM file: authorities to trust beside the system's (`tlsconfig` is the same)",
                "none",
            ),
            ("extensions.events.sinks[].tls.certfile", "PEM file: a certificate to show", "none"),
            ("extensions.events.sinks[].tls.keyfile", "PEM file: its key", "none"),
            ("extensions.events.sinks[].tlsconfig.*", "as `tls`", "none"),
            (
                "extensions.sync.enable",
                "whether other registries are [mirrored](mirror.md), by `berth-mirror`",
                "`true`",
            ),
            (
                "extensions.sync.credentialsFile",
                "a file `{\"host\": {\"username\": \"…\", \"password\": \"…\"}}`",
                "none",
            ),
            ("extensions.sync.downloadDir", "where what is on its way is kept, in files without a name", "`/tmp`"),
            (
                "extensions.sync.registries[].urls",
                "the addresses of one; the next is asked if one doesn't answer",
                "required",
            ),
            ("extensions.sync.registries[].onDemand", "`true`; without it, it isn't mirrored", "`false`"),
            ("extensions.sync.registries[].pollInterval", "how long a tag is taken for what it was", "`5m`"),
            ("extensions.sync.registries[].tlsVerify", "`false` takes every certificate", "`true`"),
            (
                "extensions.sync.registries[].certDir",
                "a folder with `ca.crt`, `client.cert` and `client.key`, as far as there are",
                "none",
            ),
            (
                "extensions.sync.registries[].privateAddresses",
                "whether its redirects and its token service may lead to addresses that only this network knows",
                "`false`",
            ),
            ("extensions.sync.registries[].onlySigned", "refused if `true`: Berth can't", "`false`"),
            ("extensions.sync.registries[].credentialHelper", "refused: there is `credentialsFile`", "none"),
            ("extensions.sync.registries[].oauth2CredentialHelper", "the same", "none"),
            ("extensions.sync.registries[].content[].prefix", "a glob over its repositories", "`**`"),
            ("extensions.sync.registries[].content[].destination", "what their names begin with here", "`/`"),
            (
                "extensions.sync.registries[].content[].stripPrefix",
                "whether what stands before the first `*` of `prefix` is left out of the names here",
                "`false`",
            ),
            ("extensions.lint.*", "refused if `mandatoryAnnotations` guards something: Berth can't", "none"),
        ],
    ),
    (
        "`storage`: where the registry keeps everything",
        &[
            ("storage.rootDirectory", "a directory that one registry writes", "`/var/lib/berth/registry`"),
            ("storage.gc", "whether garbage is collected while it runs", "`true`"),
            ("storage.gcDelay", "how long what nothing names is kept: a minute at least, ten in a bucket", "`1h`"),
            ("storage.gcInterval", "how often it is looked for", "`1h`"),
            ("storage.retention.dryRun", "only say in the log what would go", "`false`"),
            (
                "storage.retention.delay",
                "how long manifests without a tag are kept, and what is attached to something that is gone",
                "`24h`",
            ),
            (
                "storage.retention.policies[].repositories",
                "patterns of repositories; the first policy that has one counts, alone",
                "required",
            ),
            (
                "storage.retention.policies[].keepTags[].patterns",
                "regular expressions; a tag belongs to the first entry that has it, and goes if none has",
                "all tags",
            ),
            (
                "storage.retention.policies[].keepTags[].mostRecentlyPushedCount",
                "how many of its tags stay, those that were pushed last; with any of the four, one that holds is enough",
                "none",
            ),
            (
                "storage.retention.policies[].keepTags[].mostRecentlyPulledCount",
                "the same, those that were pulled last",
                "none",
            ),
            (
                "storage.retention.policies[].keepTags[].pushedWithin",
                "those that were pushed so long ago at most",
                "none",
            ),
            (
                "storage.retention.policies[].keepTags[].pulledWithin",
                "those that were pulled or pushed so long ago at most",
                "none",
            ),
            ("storage.retention.policies[].deleteUntagged", "whether manifests go that no tag points at", "`true`"),
            (
                "storage.retention.policies[].keepUntagged.mostRecentlyPushedCount",
                "how many of those stay, as of tags",
                "none",
            ),
            ("storage.retention.policies[].keepUntagged.mostRecentlyPulledCount", "the same", "none"),
            ("storage.retention.policies[].keepUntagged.pushedWithin", "the same", "none"),
            ("storage.retention.policies[].keepUntagged.pulledWithin", "the same", "none"),
            (
                "storage.retention.policies[].deleteReferrers",
                "whether signatures and the like go when what they are attached to is gone",
                "`false`",
            ),
            (
                "storage.immutableTags[].repositories",
                "patterns of repositories whose tags nobody moves or deletes",
                "required",
            ),
            ("storage.quotas[].repositories", "patterns of repositories that count together", "required"),
            ("storage.quotas[].bytes", "how much they may hold, each blob once, such as `50GB` or `50GiB`", "no limit"),
            ("storage.quotas[].tags", "how many tags they may have", "no limit"),
            (
                "storage.redirectBlobURL",
                "whether clients fetch blobs from the bucket itself, at addresses that are signed for five minutes",
                "`false`",
            ),
            (
                "storage.redirectBlobURL.endpoint",
                "where clients reach the S3 service, if that isn't `regionendpoint`",
                "that",
            ),
            ("storage.maxRepos", "how many repositories there may be", "no limit"),
            ("storage.immutableTags[].patterns", "regular expressions of those tags", "all tags"),
            ("storage.dedupe", "always on: bytes are stored once", "`true`"),
            ("storage.commit", "always on: what was acknowledged is on the disk", "`true`"),
            ("storage.storageDriver.name", "`s3`, `gcs`, `azure`, or `local` for the directory", "`local`"),
            ("storage.storageDriver.rootdirectory", "the folder of the bucket that is Berth's", "all of it"),
            ("storage.storageDriver.bucket", "the bucket, of S3 and GCS", "required"),
            ("storage.storageDriver.region", "S3's region", "`us-east-1`"),
            ("storage.storageDriver.regionendpoint", "the URL of a service that speaks as S3 does", "Amazon's"),
            ("storage.storageDriver.endpoint", "the same", "Amazon's"),
            (
                "storage.storageDriver.forcepathstyle",
                "whether the bucket is in the path of a URL",
                "`true` with an endpoint",
            ),
            ("storage.storageDriver.secure", "whether an endpoint without a scheme is https", "`true`"),
            ("storage.storageDriver.skipverify", "takes every certificate of the service", "`false`"),
            ("storage.storageDriver.accesskey", "S3's key", "`AWS_ACCESS_KEY_ID`"),
            ("storage.storageDriver.secretkey", "and its secret", "`AWS_SECRET_ACCESS_KEY`"),
            ("storage.storageDriver.sessiontoken", "the token of a temporary key", "`AWS_SESSION_TOKEN`"),
            ("storage.storageDriver.keyfile", "GCS: the JSON key of a service account", "`GOOGLE_SERVICE_ACCOUNT`"),
            ("storage.storageDriver.credentialsFile", "the same", "`GOOGLE_SERVICE_ACCOUNT`"),
            ("storage.storageDriver.accountname", "Azure's storage account", "required"),
            ("storage.storageDriver.accountkey", "and its key", "`AZURE_STORAGE_ACCOUNT_KEY`"),
            ("storage.storageDriver.container", "Azure's container", "required"),
            (
                "storage.storageDriver.credentials.type",
                "`shared_key`, or `default_credentials` of the environment",
                "by `accountkey`",
            ),
        ],
    ),
    (
        "`log`: what both tell",
        &[
            ("log.level", "`trace`, `debug`, `info`, `warn` or `error`", "`info`"),
            ("log.format", "`text`, or `json`: one object a line", "`text`"),
            ("log.output", "a file; opened again on SIGHUP", "standard output"),
            (
                "log.audit",
                "a file for [who did what](observe.md#the-audit-log), of the proxy; opened again on SIGHUP",
                "none",
            ),
        ],
    ),
    (
        "`sidecar`: what is Berth's own",
        &[
            (
                "sidecar.upstream",
                "where the registry listens and the proxy connects: `http://127.0.0.1:5000` or `unix:/path`",
                "`http://127.0.0.1:5000`",
            ),
            (
                "sidecar.mirror",
                "where `berth-mirror` listens and the proxy connects, if other registries are [mirrored](mirror.md)",
                "`http://127.0.0.1:5001`",
            ),
            (
                "sidecar.allowRemoteRegistry",
                "lets `upstream` and `mirror` be an address that others can reach",
                "`false`",
            ),
            (
                "sidecar.database",
                "people, sessions and API keys: `sqlite:/path`, or `postgres://user:password@host/name` for several replicas",
                "`sqlite:/var/lib/berth/proxy.db`",
            ),
            (
                "sidecar.secretFile",
                "the key that seals what the database holds; made on the first start; the same for all replicas",
                "beside the database, `.key`",
            ),
            (
                "sidecar.trustedProxies",
                "addresses of proxies in front, whose `X-Forwarded-For` is believed: `[\"10.0.0.1\", \"10.1.0.0/24\"]`",
                "none",
            ),
            (
                "sidecar.connectionsPerAddress",
                "how many connections one address (of IPv6, one /64) may have, 8 at least; `trustedProxies` are exempt",
                "no bound",
            ),
            (
                "sidecar.drainTimeout",
                "how long requests may go on after the proxy was told to stop; `/readyz` is 503 meanwhile",
                "`8s`",
            ),
            (
                "sidecar.tokenLifetime",
                "how long a token of the token service lives, a quarter of an hour at most",
                "`15m`",
            ),
            (
                "sidecar.refreshTokenLifetime",
                "how long a CI job may go on after its own token has expired, a day at most",
                "`1h`",
            ),
            ("sidecar.session.idle", "how long a session lives unused, a minute at least", "`2h`"),
            ("sidecar.session.absolute", "how long it lives at all", "`24h`"),
            (
                "sidecar.session.grace",
                "how long somebody is good whose provider can't be asked about them any more",
                "`24h`",
            ),
            (
                "sidecar.traces",
                "a collector of [traces](observe.md#traces), OTLP over HTTP: `http://otel-collector:4318`",
                "none",
            ),
        ],
    ),
];

const INTRODUCTION: &str = "# Every key of the configuration

One file for both processes, in the shape of zot's `config.json`; a file called `.yaml` or `.yml` is read as YAML. Keys are
found whatever their case. A length of time is written as in Go (`90s`, `1h30m`). [The configuration](configuration.md) says how
they go together. This page is printed by `berth-proxy reference`.
";

/// All keys as a page of Markdown.
pub fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (title, keys) in SECTIONS {
        let _ = write!(page, "\n## {title}\n\n| key | meaning | without it |\n|---|---|---|\n");
        for (path, meaning, default) in keys {
            let _ = writeln!(page, "| `{path}` | {meaning} | {default} |");
        }
    }
    page
}

/// Fails unless each of these paths, as a process has read them, is described. `NAME` stands for a name.
///
/// # Panics
/// With those that aren't.
pub fn must_describe(who: &str, read: &BTreeSet<String>) {
    let described = || SECTIONS.iter().flat_map(|(_, keys)| keys.iter().map(|(path, ..)| *path));
    let is_described = |path: &String| {
        described().any(|known| known == path || known.strip_suffix('*').is_some_and(|all| path.starts_with(all)))
    };
    let general = |path: &String| path.replace("NAME", "<name>").replace("[0]", "[]");
    let for_all = |path: &&String| !path.ends_with(ANY_GC_DELAY);
    let missing: Vec<String> = read.iter().filter(for_all).map(general).filter(|path| !is_described(path)).collect();
    assert!(missing.is_empty(), "{who} reads keys that the reference lacks: {missing:#?}");
}

/// A key of `storage` that is for tests alone, and described nowhere: `gcDelay` may be shorter than a minute.
pub const ANY_GC_DELAY: &str = "gcAnyDelay";

/// Fails if something is described that none of the processes reads.
///
/// # Panics
/// With what it is.
pub fn must_be_read(prefixes: &[&str], read: &BTreeSet<String>) {
    let general: BTreeSet<String> =
        read.iter().map(|path| path.replace("NAME", "<name>").replace("[0]", "[]")).collect();
    let ours = |path: &&str| prefixes.iter().any(|prefix| path.starts_with(prefix)) && !path.ends_with('*');
    let described = SECTIONS.iter().flat_map(|(_, keys)| keys.iter().map(|(path, ..)| *path)).filter(ours);
    let unread: Vec<&str> = described.filter(|path| !general.contains(*path)).collect();
    assert!(unread.is_empty(), "the reference has keys that nobody reads: {unread:#?}");
}
