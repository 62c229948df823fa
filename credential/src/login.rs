//! Signing this terminal in and out.

use std::{env, thread, time::Duration};

use crate::{
    LoginArguments,
    client::{Client, ClientError, DeviceCode, Secret},
    configure,
    host::Host,
    logins::{Login, Logins, Turn, now},
    protocol::{end, plain, warn_of_file},
};

/// How much longer is waited after `slow_down` (RFC 8628, section 3.5).
const SLOWER: Duration = Duration::from_secs(5);

/// Signs this terminal in: somebody confirms a code in a browser.
///
/// # Errors
/// A sentence for people.
pub fn login(arguments: &LoginArguments) -> Result<(), String> {
    let host = &arguments.registry;
    // Nothing is begun whose end could not be kept.
    drop(Logins::open()?);
    if arguments.configure {
        configure::check(host)?;
    }
    let client = Client::at_first(&host.addresses()).map_err(|e| e.to_string())?;
    let name = arguments.name.clone().unwrap_or_else(|| gethostname::gethostname().to_string_lossy().into_owned());
    let read_only = arguments.read_only.then(|| "read".to_owned());
    let patterns = arguments.repository.iter().map(|pattern| scope(pattern)).collect::<Result<Vec<_>, _>>()?;
    let scopes: Vec<String> = read_only.into_iter().chain(patterns).collect();
    let code = client.begin(&name, &scopes.join(" ")).map_err(|e| e.to_string())?;
    let page = code.verification_uri_complete.as_deref().unwrap_or(&code.verification_uri);
    println!("Confirm this code:  {}", plain(&code.user_code));
    println!("at                  {}", plain(page));
    if !arguments.no_browser && has_screen() {
        // Who sees no browser open has the address.
        let _ = webbrowser::open(page);
    }
    let Secret { secret, username: user, expires_in, refresh_token } = wait(&client, &code)?;
    let refresh_token = refresh_token.ok_or("the registry gave no refresh token")?;
    let url = client.url.clone();
    let _turn = Turn::wait(host)?;
    end(host)?;
    let shown = plain(&user);
    let good_until = now() + expires_in;
    let login = Login::Terminal { url, refresh_token, retry: None, user, secret, good_until };
    let mut logins = Logins::open()?;
    if !logins.keep(host, login)? {
        warn_of_file(&logins);
    }
    drop(logins);
    println!("Signed in to {host} as {shown}.");
    if arguments.configure {
        for path in configure::add(host)? {
            println!("{} asks docker-credential-berth for {host} now.", path.display());
        }
    } else if !configure::is_asked(host) {
        println!(
            "For docker and podman to know: docker-credential-berth login --configure {host}, or in docker's config.json"
        );
        println!("{{\"credHelpers\": {{\"{host}\": \"berth\"}}}}");
    }
    Ok(())
}

/// Asks until somebody has decided.
fn wait(client: &Client, code: &DeviceCode) -> Result<Secret, String> {
    let mut interval = Duration::from_secs(code.interval.clamp(1, 60));
    let end = now() + code.expires_in.min(3600);
    while now() < end {
        thread::sleep(interval);
        match client.poll(&code.device_code) {
            Ok(secret) => return Ok(secret),
            Err(ClientError::Refused { error, .. }) if error == "authorization_pending" => {}
            Err(ClientError::Refused { error, .. }) if error == "slow_down" => interval += SLOWER,
            // It may be restarting.
            Err(ClientError::Unreachable(..)) => {}
            Err(error) => return Err(format!("This terminal was not signed in: {error}.")),
        }
    }
    Err("This terminal was not signed in: nobody has confirmed the code in time.".to_owned())
}

/// Whether a browser could be seen.
fn has_screen() -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    cfg!(any(windows, target_os = "macos")) || set("DISPLAY") || set("WAYLAND_DISPLAY")
}

/// The scope for a pattern of repositories. One that is called as an action is written so that it isn't taken for that.
fn scope(pattern: &str) -> Result<String, String> {
    if pattern.is_empty() || pattern.contains(char::is_whitespace) {
        return Err(format!("--repository {pattern:?} is no pattern of repositories; give one such as team/**"));
    }
    Ok(match pattern {
        "read" | "push" | "delete" => format!("{{{pattern}}}"),
        pattern => pattern.to_owned(),
    })
}

/// Signs this terminal out, here and at the registry.
///
/// # Errors
/// A sentence for people.
pub fn logout(host: &Host) -> Result<(), String> {
    let _turn = Turn::wait(host)?;
    end(host)?;
    let there = Logins::open()?.forget(host)?;
    let undone = if there { configure::remove(host)? } else { Vec::new() };
    for path in undone {
        println!("{} does not ask docker-credential-berth for {host} any more.", path.display());
    }
    println!("{}", if there { format!("Signed out of {host}.") } else { format!("You were not signed in to {host}.") });
    Ok(())
}
