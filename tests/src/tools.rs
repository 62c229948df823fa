//! Programs that some tests need and a machine may not have.

use std::{
    env,
    io::{self, Write},
    path::PathBuf,
    process::{Command, Output},
};

/// The path of a program, or nothing, having said which test is skipped for want of it.
///
/// # Panics
/// If `BERTH_TEST_ALL` is set: then nothing may be skipped.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{program} is not installed"));
    }
    found
}

/// Says that the test that runs is skipped.
///
/// # Panics
/// If `BERTH_TEST_ALL` is set.
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(env::var_os("BERTH_TEST_ALL").is_none(), "{test} can't run: {why}");
    // Not by `eprintln`, which is only shown of tests that fail.
    let _ = writeln!(io::stderr(), "skipped {test}: {why} (./test.sh installs what it needs)");
}

/// What a command printed, and whether it succeeded.
pub struct Outcome {
    /// It ended with 0.
    pub success: bool,
    /// Everything that it printed.
    pub printed: String,
}

/// Runs a command to its end.
///
/// # Panics
/// If it can't be started.
pub fn run(command: &mut Command) -> Outcome {
    let Output { status, stdout, stderr } = command.output().expect("a command");
    let printed = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Outcome { success: status.success(), printed }
}

/// Runs a command that must succeed; gives what it printed.
///
/// # Panics
/// If it doesn't succeed, with what it printed.
pub fn must(command: &mut Command) -> String {
    let Outcome { success, printed } = run(command);
    assert!(success, "{command:?} failed: {printed}");
    printed
}
