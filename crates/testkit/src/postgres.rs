//! A private PostgreSQL server.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::ServerError;
use crate::owned_process::{Ending, Plan};
use crate::server_process::{Ready, ServerProcess};

const PROGRAM: &str = "PostgreSQL";
/// The folder of the server versions on Debian.
pub const DEBIAN: &str = "/usr/lib/postgresql";
/// The log line of the server when it accepts connections, after recovery.
const READY: &str = "database system is ready to accept connections";
/// Time limit of `initdb` and `psql`; a disk may be slow.
const RUN_LIMIT: Duration = Duration::from_secs(120);
const GONE_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// One server on a free loopback port, with the default settings of an installation (fsync included), reached over TCP
/// as the superuser `hub` with a password.
pub struct PostgresServer {
    // Dropped in this order: the process is gone before its folder is removed.
    process: ServerProcess,
    password: String,
    _folder: TempDir,
}

/// The folder of `initdb` and `postgres`: the given one, else that of `postgres` on `PATH`, else Debian's newest.
pub fn find(given: Option<&Path>) -> Option<PathBuf> {
    let has_programs =
        |folder: &Path| ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file());
    if let Some(folder) = given {
        return has_programs(folder).then(|| folder.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A link on PATH leads to the folder of the other programs.
    let linked = std::env::split_paths(&path)
        .filter_map(|folder| folder.join("postgres").canonicalize().ok()?.parent().map(Path::to_owned));
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut debian: Vec<(u32, PathBuf)> = versions
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .collect();
    debian.sort();
    linked.chain(debian.into_iter().rev().map(|(_, folder)| folder)).find(|folder| has_programs(folder))
}

impl PostgresServer {
    /// Creates a data folder and starts the server of `binaries`; `settings` are further settings, as `name=value`.
    ///
    /// # Errors
    ///
    /// As [`ServerProcess::start`], or `initdb` fails, or the folder or port is not available.
    pub async fn start(binaries: &Path, password: &str, settings: &[&str]) -> Result<Self, ServerError> {
        let folder = crate::folder("hub-postgres-")?;
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::File { path, source }
        };
        let (password_file, data) = (folder.path().join("password"), folder.path().join("data"));
        std::fs::write(&password_file, password).map_err(at(&password_file))?;
        let user = other_user().await?;
        if let Some((user, group)) = user {
            for path in [folder.path(), &password_file] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(at(path))?;
            }
        }
        let initdb = plan(&binaries.join("initdb"), user)
            .with_folder(folder.path())
            .args(["--username=hub", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"])
            .arg("--pwfile")
            .arg(&password_file)
            .arg("--pgdata")
            .arg(&data);
        run(initdb).await?;

        let port = crate::free_port().map_err(ServerError::NoPort)?;
        let (postgres, goes) = (binaries.join("postgres"), folder.path().to_owned());
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let plan = move || {
            let settings = settings.iter().flat_map(|setting| ["-c", setting]);
            plan(&postgres, user)
                .with_folder(&goes)
                .arg("-D")
                .arg(&data)
                .args(["-c", "listen_addresses=127.0.0.1"])
                .args(["-c", &format!("port={port}"), "-c", "unix_socket_directories="])
                .args(settings)
        };
        let log = folder.path().join("log");
        let process = ServerProcess::start(PROGRAM, port, &log, Ready::Logged(READY), plan).await?;
        Ok(Self { process, password: password.to_owned(), _folder: folder })
    }

    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// The URL of a database, with the password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://hub:{}@127.0.0.1:{}/{database}", self.password, self.port())
    }

    /// Kills all its processes (SIGKILL), as a power failure does, and waits until the last is gone.
    ///
    /// # Errors
    ///
    /// It is not running, the system refuses, or a process is still there after 60 s.
    pub async fn crash(&mut self) -> Result<(), ServerError> {
        let failed = |source| ServerError::Run { program: PROGRAM, source };
        let pid = self.process.pid().ok_or(ServerError::NotRunning { program: PROGRAM })?;
        // A stopped process starts no further ones.
        send(pid, Signal::STOP).map_err(failed)?;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).map_err(failed)?;
        let children: Vec<u32> = children.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        self.process.kill().await?;
        for child in &children {
            // Fails if it has ended by itself.
            let _ = send(*child, Signal::KILL);
        }
        let deadline = Instant::now() + GONE_LIMIT;
        while children.iter().any(|child| runs(*child)) {
            if Instant::now() >= deadline {
                return Err(failed(std::io::ErrorKind::TimedOut.into()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Starts it again after a crash, and waits until it has recovered.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.process.restart().await
    }
}

/// Runs a script on the database of `url` with the `psql` of `binaries`, which stops at the first error. Blocks.
///
/// # Errors
///
/// `psql` does not start, or runs for more than 2 minutes.
pub fn psql(binaries: &Path, url: &str, script: &str) -> Result<Output, ServerError> {
    Plan::new(binaries.join("psql"))
        .env("LC_ALL", "C")
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
        .args(["--command", script, url])
        .output_within(RUN_LIMIT)
        .map_err(|source| ServerError::Run { program: "psql", source })
}

/// The user and group id of `nobody` if this process runs as root, because PostgreSQL refuses to run as root.
async fn other_user() -> Result<Option<(u32, u32)>, ServerError> {
    if !rustix::process::getuid().is_root() {
        return Ok(None);
    }
    let id = async |what: &str| -> Result<u32, ServerError> {
        let output = run(Plan::new("id").args([what, "nobody"])).await?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        text.parse().map_err(|_| ServerError::NoUser { text })
    };
    Ok(Some((id("-u").await?, id("-g").await?)))
}

fn plan(program: &Path, user: Option<(u32, u32)>) -> Plan {
    Plan::new(program).env("LC_ALL", "C").directory("/").user(user).ends_by(Ending::Quit)
}

/// Runs a program that must succeed to its end; dropping the future ends the program.
async fn run(plan: Plan) -> Result<Output, ServerError> {
    let failed = |source| ServerError::Run { program: PROGRAM, source };
    let process = plan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let output = tokio::time::timeout(RUN_LIMIT, process.output()).await;
    let output = output.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(ServerError::Ended { program: PROGRAM, status: output.status, log })
}

fn send(pid: u32, signal: Signal) -> std::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
    kill_process(pid, signal).map_err(std::io::Error::from)
}

/// False for a zombie.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The state follows the name in parentheses.
    stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}
