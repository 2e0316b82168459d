//! The PostgreSQL that is measured with: one of the bench's own, with the settings that a server comes with, or
//! one that is there already, in databases of the bench's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::str::FromStr as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use tempfile::TempDir;
use tokio::time::Instant;
use url::Url;

use crate::bench::child::{self, free_address};
use crate::bench::error::BenchError;
use hub_testkit::owned_process::{Ending, OwnedProcess, Plan};

/// Where Debian puts the programs of each version.
const DEBIAN: &str = "/usr/lib/postgresql";
const READY_LIMIT: Duration = Duration::from_secs(60);
/// For `initdb`, which takes a second or two.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// A server can only be asked whether it takes connections yet.
const POLL: Duration = Duration::from_millis(20);
/// `insufficient_privilege`
const NOT_PERMITTED: &str = "42501";
/// What the durability and the speed of a server hang on.
const TOLD: [&str; 6] =
    ["server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size"];

/// A server, and the databases that the bench made there.
pub struct Postgres {
    /// Of the database that one connects to in order to make others.
    url: Url,
    /// Of this run alone.
    prefix: String,
    made: AtomicU32,
    databases: Mutex<Vec<String>>,
    /// None where the server is not ours.
    _own: Option<OwnServer>,
}

/// A database with nothing in it, or with what its template had.
#[derive(Debug, Clone)]
pub struct Database {
    name: String,
    /// Holds the password.
    pub url: String,
}

struct OwnServer {
    // Dropped in this order: the process is gone before its folder is removed.
    process: OwnedProcess,
    _folder: TempDir,
}

impl Postgres {
    /// Takes the server of a URL, or starts one with the programs of `binaries`, else of `PATH` or of Debian.
    pub async fn start(url: Option<Url>, binaries: Option<&Path>) -> Result<Self, BenchError> {
        let (url, own) = match url {
            Some(url) => {
                tracing::info!("measuring in databases of the bench's own on the server of --database-url");
                (url, None)
            }
            None => {
                let binaries = find(binaries)?;
                tracing::info!("starting a PostgreSQL of {} in a temporary folder", binaries.display());
                let (url, own) = OwnServer::start(&binaries).await?;
                (url, Some(own))
            }
        };
        let prefix = format!("hub_bench_{:08x}", rand::random::<u32>());
        let postgres = Self { url, prefix, made: AtomicU32::new(0), databases: Mutex::default(), _own: own };
        drop(postgres.maintenance().await?);
        Ok(postgres)
    }

    async fn maintenance(&self) -> Result<PgConnection, BenchError> {
        PgConnection::connect_with(&options(self.url.as_str())?).await.map_err(BenchError::Database)
    }

    /// Makes a database: a copy of `template`, to which nobody may be connected, or an empty one.
    pub async fn database(&self, template: Option<&Database>) -> Result<Database, BenchError> {
        let name = format!("{}_{}", self.prefix, self.made.fetch_add(1, Ordering::Relaxed));
        let copied = template.map(|template| format!(" TEMPLATE {}", template.name)).unwrap_or_default();
        let mut connection = self.maintenance().await?;
        connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}{copied}")))).await?;
        self.databases.lock().expect("nobody panics with it").push(name.clone());
        if template.is_some() {
            self.checkpoint().await?;
        }
        let mut url = self.url.clone();
        url.set_path(&name);
        Ok(Database { name, url: url.into() })
    }

    /// Forces what was written to the disk, so that each run begins alike, and none pays for what was loaded
    /// before it. Without the right to do so it is left to the server.
    pub async fn checkpoint(&self) -> Result<(), BenchError> {
        let mut connection = self.maintenance().await?;
        match connection.execute(sqlx::raw_sql("CHECKPOINT")).await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NOT_PERMITTED) => Ok(()),
            done => done.map(drop).map_err(BenchError::Database),
        }
    }

    /// Removes a database, whoever is connected to it.
    pub async fn remove(&self, database: Database) -> Result<(), BenchError> {
        self.drop_database(&database.name).await?;
        self.databases.lock().expect("nobody panics with it").retain(|name| *name != database.name);
        Ok(())
    }

    async fn drop_database(&self, name: &str) -> Result<(), BenchError> {
        let mut connection = self.maintenance().await?;
        let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
        Ok(())
    }

    /// Removes what is left; a server of the bench's own ends with it.
    pub async fn close(self) -> Result<(), BenchError> {
        let left = std::mem::take(&mut *self.databases.lock().expect("nobody panics with it"));
        for name in left {
            self.drop_database(&name).await?;
        }
        Ok(())
    }

    /// The server's version and the settings that count, for the report.
    pub async fn conditions(&self) -> Result<String, BenchError> {
        let mut connection = self.maintenance().await?;
        let mut told = Vec::new();
        for name in TOLD {
            let value: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(name)
                .fetch_one(&mut connection)
                .await?;
            told.push(format!("{name} {value}"));
        }
        Ok(format!("PostgreSQL: {}", told.join(", ")))
    }
}

/// Nothing is told of a statement that takes long: loading does.
fn options(url: &str) -> Result<PgConnectOptions, BenchError> {
    let options = PgConnectOptions::from_str(url).map_err(BenchError::Database)?;
    Ok(options.application_name("integration-hub bench").disable_statement_logging())
}

impl Database {
    pub async fn pool(&self, connections: u32) -> Result<PgPool, BenchError> {
        PgPoolOptions::new()
            .max_connections(connections)
            .connect_with(options(&self.url)?)
            .await
            .map_err(BenchError::Database)
    }
}

fn is_binaries(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
}

/// The folder of `initdb` and `postgres`.
fn find(given: Option<&Path>) -> Result<PathBuf, BenchError> {
    if let Some(folder) = given {
        return if is_binaries(folder) {
            Ok(folder.to_owned())
        } else {
            Err(BenchError::NoPostgres { looked: folder.display().to_string() })
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A link on PATH points to where its companions are as well.
    let linked = std::env::split_paths(&path)
        .filter_map(|folder| folder.join("postgres").canonicalize().ok()?.parent().map(Path::to_owned));
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut debian: Vec<(u32, PathBuf)> = versions
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .collect();
    debian.sort();
    let mut folders = linked.chain(debian.into_iter().rev().map(|(_, folder)| folder));
    folders
        .find(|folder| is_binaries(folder))
        .ok_or_else(|| BenchError::NoPostgres { looked: format!("PATH and {DEBIAN}") })
}

/// PostgreSQL refuses to run as root: then as `nobody`, whose numbers these are.
async fn other_user() -> Result<Option<(u32, u32)>, BenchError> {
    if !rustix::process::getuid().is_root() {
        return Ok(None);
    }
    let id = async |what: &str| -> Result<u32, BenchError> {
        let output = run(Plan::new("id").args([what, "nobody"])).await?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        text.parse().map_err(|_| BenchError::Answer { what: "id", text })
    };
    Ok(Some((id("-u").await?, id("-g").await?)))
}

/// Runs a program to its end; it ends as well if this is dropped.
async fn run(plan: Plan) -> Result<Output, BenchError> {
    let failed = |source| BenchError::Spawn { what: "PostgreSQL", source };
    let process = plan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let output = tokio::time::timeout(RUN_LIMIT, process.output()).await;
    let output = output.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(BenchError::Ended { what: "PostgreSQL", status: output.status, log })
}

fn plan(program: &Path, user: Option<(u32, u32)>, folder: &Path) -> Plan {
    let plan = Plan::new(program).env("LC_ALL", "C").directory("/").user(user);
    plan.ends_by(Ending::Quit).with_folder(folder)
}

impl OwnServer {
    async fn start(binaries: &Path) -> Result<(Url, Self), BenchError> {
        let folder = child::folder()?;
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| BenchError::File { path, source }
        };
        let password = format!("{:032x}", rand::random::<u128>());
        let (password_file, data) = (folder.path().join("password"), folder.path().join("data"));
        std::fs::write(&password_file, &password).map_err(at(&password_file))?;
        let user = other_user().await?;
        if let Some((user, group)) = user {
            for path in [folder.path(), &password_file] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(at(path))?;
            }
        }
        let initdb = plan(&binaries.join("initdb"), user, folder.path()).args([
            "--username=hub",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        run(initdb.arg("--pwfile").arg(&password_file).arg("--pgdata").arg(&data)).await?;

        let address = free_address()?;
        let port = address.rsplit(':').next().unwrap_or_default().to_owned();
        let log = folder.path().join("log");
        let output = File::create(&log).map_err(at(&log))?;
        let errors = output.try_clone().map_err(at(&log))?;
        let postgres = plan(&binaries.join("postgres"), user, folder.path())
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", &format!("port={port}"), "-c", "unix_socket_directories="]);
        let process = postgres
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| BenchError::Spawn { what: "PostgreSQL", source })?;
        let mut server = Self { process, _folder: folder };
        let url = format!("postgres://hub:{password}@{address}/postgres");
        let url = Url::parse(&url).map_err(|_| BenchError::Answer { what: "PostgreSQL", text: address })?;
        server.wait_until_ready(&url, &log).await?;
        Ok((url, server))
    }

    async fn wait_until_ready(&mut self, url: &Url, log: &Path) -> Result<(), BenchError> {
        let deadline = Instant::now() + READY_LIMIT;
        let read_log = || std::fs::read_to_string(log).unwrap_or_default();
        loop {
            let ended = self.process.try_wait();
            if let Some(status) = ended.map_err(|source| BenchError::Spawn { what: "PostgreSQL", source })? {
                return Err(BenchError::Ended { what: "PostgreSQL", status, log: read_log() });
            }
            match PgConnection::connect(url.as_str()).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(BenchError::Database(error)),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}
