//! Signing this terminal in and out.

use std::{env, thread, time::Duration};

use crate::{
    LoginArguments,
    client::{Client, ClientError, DeviceCode, Secret},
    configure,
    host::Host,
    logins::{Login, Logins, now},
    protocol::{end, warn_of_file},
};

/// How much longer is waited after `slow_down` (RFC 8628, section 3.5).
const SLOWER: Duration = Duration::from_secs(5);

/// Signs this terminal in: somebody confirms a code in a browser.
///
/// # Errors
/// A sentence for people.
pub fn login(arguments: &LoginArguments) -> Result<(), String> {
    let host = &arguments.registry;
    let client = Client::at_first(&host.addresses()).map_err(|e| e.to_string())?;
    let name = arguments.name.clone().unwrap_or_else(|| gethostname::gethostname().to_string_lossy().into_owned());
    let read_only = arguments.read_only.then_some("read");
    let scopes: Vec<&str> = read_only.into_iter().chain(arguments.repository.iter().map(String::as_str)).collect();
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
    let mut logins = Logins::open()?;
    end(&logins, host);
    let shown = plain(&user);
    let login = Login::Terminal { url, refresh_token, user, secret, good_until: now() + expires_in };
    if !logins.keep(host, login)? {
        warn_of_file(&logins);
    }
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

/// What a registry says, without what would move a cursor.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Signs this terminal out, here and at the registry.
///
/// # Errors
/// A sentence for people.
pub fn logout(host: &Host) -> Result<(), String> {
    let mut logins = Logins::open()?;
    end(&logins, host);
    let there = logins.forget(host)?;
    for path in configure::remove(host)? {
        println!("{} does not ask docker-credential-berth for {host} any more.", path.display());
    }
    println!("{}", if there { format!("Signed out of {host}.") } else { format!("You were not signed in to {host}.") });
    Ok(())
}
