//! A PostgreSQL server of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    process::{Process, free_port, wait_for},
    tools::{self, must, run},
};

/// The server, until this is dropped.
pub struct Postgres {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Starts a server whose files are in the new folder `folder`; nothing, if PostgreSQL isn't installed.
    ///
    /// # Panics
    /// If it doesn't serve.
    pub async fn start(folder: &Path) -> Option<Self> {
        // Debian keeps them away from PATH, by version.
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut programs: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
        programs.retain(|programs| programs.join("postgres").is_file());
        programs.sort();
        let Some(programs) = programs.pop() else {
            tools::skip("PostgreSQL is not installed");
            return None;
        };
        fs::create_dir(folder).expect("a folder");
        let mut server = Self { programs, folder: folder.to_owned(), port: free_port(), process: None };
        if server.runs_as_root() {
            must(Command::new("chown").arg("postgres").arg(folder));
            // Above it are folders of ours alone.
            must(Command::new("chmod").arg("a+x").arg(folder.parent().expect("a parent")));
        }
        must(server.program("initdb").args(["--auth=trust", "--username=berth", "--pgdata"]).arg(server.data()));
        server.restart().await;
        Some(server)
    }

    fn runs_as_root(&self) -> bool {
        must(Command::new("id").arg("-u")).trim() == "0"
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// One of its programs, which refuse to be run by root.
    fn program(&self, name: &str) -> Command {
        let path = self.programs.join(name);
        if !self.runs_as_root() {
            return Command::new(path);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
        command
    }

    /// Starts it, again if it was stopped.
    ///
    /// # Panics
    /// If it doesn't serve.
    pub async fn restart(&mut self) {
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.folder).args(["-p", &self.port.to_string()]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        let log = self.folder.with_extension("log");
        self.process = Some(Process::start(&mut command, &log).expect("a process"));
        wait_for("PostgreSQL", async || run(&mut self.psql("postgres", "SELECT 1")).success.then_some(())).await;
    }

    /// Stops it at once.
    pub fn stop(&mut self) {
        // Its children end with it, since it tells them.
        if let Some(process) = &mut self.process {
            must(Command::new("kill").args(["-QUIT", &process.id().to_string()]));
            while !process.has_ended() {
                std::thread::yield_now();
            }
        }
    }

    /// The command that runs a statement in a database.
    pub fn psql(&self, database: &str, statement: &str) -> Command {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "berth", "-d", database]);
        command.args(["-v", "ON_ERROR_STOP=1", "-At", "-c", statement]);
        command
    }

    /// Runs a statement in a database; gives what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        must(&mut self.psql(database, statement))
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://berth@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}
