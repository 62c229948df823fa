//! What docker, podman, buildah, skopeo, crane, oras and helm ask of a credential helper: one word as argument, text on standard
//! input, JSON on standard output, and errors there too.
//! <https://github.com/docker/docker-credential-helpers#development>

use std::{
    io::{self, Read},
    process::ExitCode,
};

use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};

use crate::{
    client::{Client, ClientError, Secret},
    host::Host,
    job,
    logins::{Login, Logins, Turn, now},
};

/// By this text, and no other, clients know that nothing is known, and go on without credentials.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// What every secret that a Berth gives out begins with.
const SECRET_PREFIX: &str = "bls_";

/// A secret that is good for less long is not given out, in seconds: a client pushes with it for as long as that takes.
const MIN_LEFT: u64 = 30 * 60;

/// How much is told of what a registry says.
const MAX_TOLD_CHARS: usize = 2000;

/// The most that is read from a client.
const MAX_INPUT_BYTES: u64 = 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Credentials {
    #[serde(rename = "ServerURL")]
    server: String,
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Answers a client, with what it has written.
pub fn answer(action: impl FnOnce(&str) -> Result<String, String>) -> ExitCode {
    let mut input = String::new();
    let read = io::stdin().take(MAX_INPUT_BYTES).read_to_string(&mut input);
    match read.map_err(|e| e.to_string()).and_then(|_| action(&input)) {
        Ok(text) => {
            if !text.is_empty() {
                println!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("{}", plain(&message));
            ExitCode::FAILURE
        }
    }
}

/// A name and a secret for a registry.
pub fn get(input: &str) -> Result<String, String> {
    let server = input.trim();
    let Ok(host) = server.parse::<Host>() else { return Err(NOT_FOUND.to_owned()) };
    let (user, secret) = match job::token_for(&host)? {
        Some(token) => of_job(&host, &token)?,
        None => of_login(&host)?,
    };
    let credentials = Credentials { server: server.to_owned(), user, secret };
    serde_json::to_string(&credentials).map_err(|e| e.to_string())
}

/// What the registry gives for a job's token.
fn of_job(host: &Host, token: &str) -> Result<(String, String), String> {
    match Client::at_first(&host.addresses()).and_then(|client| client.exchange(token, "")) {
        Ok(Secret { username, secret, .. }) => Ok((username, secret)),
        // Another registry, of which this job has pulled something.
        Err(ClientError::NotBerth(..)) => Err(NOT_FOUND.to_owned()),
        Err(error) => Err(format!("docker-credential-berth: {host} does not take this job's token: {error}")),
    }
}

/// What is known of a registry here; of a terminal that was signed in, the last secret, or another one.
fn of_login(host: &Host) -> Result<(String, String), String> {
    let _turn = Turn::wait(host)?;
    let Some(login) = Logins::open()?.find(host)? else { return Err(NOT_FOUND.to_owned()) };
    let (url, refresh_token, retry, user, secret, good_until) = match login {
        Login::Password { user, secret } => return Ok((user, secret)),
        Login::Terminal { url, refresh_token, retry, user, secret, good_until } => {
            (url, refresh_token, retry, user, secret, good_until)
        }
    };
    let left = good_until.saturating_sub(now());
    if left >= MIN_LEFT {
        return Ok((user, secret));
    }
    let last = |error: String| if left > 60 { Ok((user.clone(), secret.clone())) } else { Err(error) };
    // What the question may be repeated with is kept before it is asked: so nothing is lost with an answer that doesn't come,
    // and nothing is asked whose answer could not be kept.
    let retry = match retry {
        Some(retry) => retry,
        None => random()?,
    };
    let asking = Login::Terminal {
        url: url.clone(),
        refresh_token: refresh_token.clone(),
        retry: Some(retry.clone()),
        user: user.clone(),
        secret: secret.clone(),
        good_until,
    };
    if let Err(error) = Logins::open()?.keep(host, asking) {
        return last(format!("docker-credential-berth: {error}"));
    }
    let renewed = match Client::new(&url).renew(&refresh_token, &retry) {
        Ok(renewed) => renewed,
        Err(ClientError::Refused { error, description }) if error == "invalid_grant" => {
            Logins::open()?.forget(host)?;
            return Err(format!(
                "docker-credential-berth: {description}. To sign this terminal in again: docker-credential-berth login {host}"
            ));
        }
        // It may be back before the last secret ends.
        Err(error) => return last(format!("docker-credential-berth: {error}")),
    };
    let Secret { secret, username: user, expires_in, refresh_token } = renewed;
    let refresh_token = refresh_token.ok_or("docker-credential-berth: the registry gave no refresh token")?;
    let (name, text) = (user.clone(), secret.clone());
    let good_until = now() + expires_in;
    Logins::open()?.keep(host, Login::Terminal { url, refresh_token, retry: None, user, secret, good_until })?;
    Ok((name, text))
}

/// 128 random bits, in hexadecimal.
fn random() -> Result<String, String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| "docker-credential-berth: the system has no random numbers".to_owned())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Keeps what `docker login` was given.
pub fn store(input: &str) -> Result<String, String> {
    let given: Credentials = serde_json::from_str(input).map_err(|e| format!("what is stored can't be read: {e}"))?;
    // docker writes down again what it has got from here: it would be a password of an hour instead of a login.
    if given.secret.starts_with(SECRET_PREFIX) {
        return Ok(String::new());
    }
    let host: Host = given.server.parse().map_err(|e| format!("docker-credential-berth: {e}"))?;
    let _turn = Turn::wait(&host)?;
    end(&host)?;
    let mut logins = Logins::open()?;
    if !logins.keep(&host, Login::Password { user: given.user, secret: given.secret })? {
        warn_of_file(&logins);
    }
    Ok(String::new())
}

/// Forgets a registry.
pub fn erase(input: &str) -> Result<String, String> {
    if let Ok(host) = input.parse::<Host>() {
        let _turn = Turn::wait(&host)?;
        end(&host)?;
        Logins::open()?.forget(&host)?;
    }
    Ok(String::new())
}

/// Ends a terminal at its registry; if that is away, it ends unused after thirty days. For who has the registry's turn.
///
/// # Errors
/// If what is kept can't be read.
pub fn end(host: &Host) -> Result<(), String> {
    let login = Logins::open()?.find(host)?;
    if let Some(Login::Terminal { url, refresh_token, .. }) = login
        && let Err(error) = Client::new(&url).revoke(&refresh_token)
    {
        eprintln!("docker-credential-berth: the terminal could not be ended at the registry, only here: {error}");
    }
    Ok(())
}

/// What a registry says, without what would move a cursor or turn the text around.
pub fn plain(text: &str) -> String {
    let is_harmless = |c: &char| {
        !c.is_control() && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
    };
    text.chars().filter(is_harmless).take(MAX_TOLD_CHARS).collect()
}

/// Says where a login is, if that isn't a keyring.
pub fn warn_of_file(logins: &Logins) {
    eprintln!(
        "docker-credential-berth: there is no keyring here, so the login is in {}, which only you can read",
        logins.path().display()
    );
}

/// Every registry that is known, and who one is there.
pub fn list() -> Result<String, String> {
    let logins = Logins::open()?;
    serde_json::to_string(&logins.all()).map_err(|e| e.to_string())
}
