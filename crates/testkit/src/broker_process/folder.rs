//! The data folder of one server, locked against a second server.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::BrokerProcessError;
use super::options::Data;

/// A data folder that this process has locked.
///
/// The lock is a file lock (`flock`), which belongs to an open file description. The server gets that description as its
/// standard input, so the folder is locked until both processes have ended, even if only the hub is killed.
#[derive(Debug)]
pub(super) struct DataFolder {
    path: PathBuf,
    lock: File,
    /// Removes the folder when dropped.
    temporary: Option<tempfile::TempDir>,
}

/// The ports of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) client: u16,
    pub(super) monitoring: u16,
}

impl DataFolder {
    /// Creates the folder if it does not exist, and locks it.
    pub(super) fn open(data: &Data) -> Result<Self, BrokerProcessError> {
        let (path, temporary) = match data {
            Data::Temporary => {
                let folder = tempfile::Builder::new()
                    .prefix("hub-nats-")
                    .tempdir()
                    .map_err(|source| failed("create a temporary folder in", std::env::temp_dir(), source))?;
                (folder.path().to_path_buf(), Some(folder))
            }
            Data::Lasting(path) => {
                fs::create_dir_all(path).map_err(|source| failed("create the folder", path, source))?;
                // The server gets absolute paths, because its working directory may differ.
                let path = path.canonicalize().map_err(|source| failed("find the folder", path, source))?;
                (path, None)
            }
        };
        let lock_path = path.join("nats-server.lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(|source| failed("open", &lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path, source)),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let pid = lock.read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse().ok());
                return Err(BrokerProcessError::InUse { folder: path, pid });
            }
        }
        for folder in [path.join("jetstream"), path.join("ports")] {
            fs::create_dir_all(&folder).map_err(|source| failed("create the folder", &folder, source))?;
        }
        Ok(Self { path, lock, temporary })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder, if it is removed with its owner.
    pub(super) fn temporary(&self) -> Option<&Path> {
        self.temporary.as_ref().map(tempfile::TempDir::path)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.path.join("jetstream")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.path.join("nats-server.conf")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("nats-server.log")
    }

    pub(super) fn ports(&self) -> PathBuf {
        self.path.join("ports")
    }

    /// The lock, for the standard input of the server, which it does not read.
    pub(super) fn lock_to_share(&self) -> Result<File, BrokerProcessError> {
        self.lock.try_clone().map_err(|source| failed("share the lock of", &self.path, source))
    }

    /// Writes the process id of the server to the lock file, for the error of a second process.
    pub(super) fn note_pid(&mut self, pid: u32) -> Result<(), BrokerProcessError> {
        self.lock
            .set_len(0)
            .and_then(|()| self.lock.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(self.lock, "{pid}"))
            .map_err(|source| failed("write the lock file in", &self.path, source))
    }

    /// The log, opened for appending, and its length before this start.
    pub(super) fn open_log(&self) -> Result<(File, u64), BrokerProcessError> {
        let path = self.log();
        let opened = File::options().create(true).append(true).open(&path);
        opened
            .and_then(|file| file.metadata().map(|about| (file, about.len())))
            .map_err(|source| failed("open", path, source))
    }

    /// The last 20 lines of the log after its first `from` bytes.
    pub(super) fn log_tail(&self, from: u64) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.log())?;
            let end = file.metadata()?.len();
            // At most 64 KiB.
            file.seek(SeekFrom::Start(from.max(end.saturating_sub(64 * 1024))))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        let text = read().unwrap_or_else(|error| format!("(cannot read the log: {error})"));
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Removes the ports file of an earlier server: it remains after a kill, and a process id may occur again.
    pub(super) fn forget_ports(&self) -> Result<(), BrokerProcessError> {
        let folder = self.ports();
        let forget = || -> std::io::Result<()> {
            for entry in fs::read_dir(&folder)? {
                fs::remove_file(entry?.path())?;
            }
            Ok(())
        };
        forget().map_err(|source| failed("empty the folder", &folder, source))
    }

    /// The ports of the server with this process id, once its file (`<program>_<pid>.ports`) is complete.
    pub(super) fn read_ports(&self, pid: u32) -> Option<Ports> {
        #[derive(Deserialize)]
        struct PortsFile {
            nats: Vec<url::Url>,
            monitoring: Vec<url::Url>,
        }
        let ending = format!("_{pid}.ports");
        let file = fs::read_dir(self.ports())
            .ok()?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.to_string_lossy().ends_with(&ending))?;
        // A partial file is invalid JSON, and is read again.
        let ports: PortsFile = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        Some(Ports { client: ports.nats.first()?.port()?, monitoring: ports.monitoring.first()?.port()? })
    }
}

fn failed(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> BrokerProcessError {
    BrokerProcessError::Folder { action, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_folder_is_locked_until_the_server_ends_even_without_its_owner() {
        let place = tempfile::tempdir().expect("temporary folder");
        let data = Data::Lasting(place.path().join("data"));
        let mut folder = DataFolder::open(&data).expect("the folder is free");
        // In place of the server: it has the lock as its standard input, and does not read it.
        let mut server = Command::new("sleep")
            .arg("60")
            .stdin(folder.lock_to_share().expect("shared"))
            .spawn()
            .expect("sleep runs");
        folder.note_pid(server.id()).expect("noted");
        drop(folder);
        let refused = DataFolder::open(&data).expect_err("the server still uses it");
        assert!(
            matches!(refused, BrokerProcessError::InUse { pid, .. } if pid == Some(server.id())),
            "{refused}"
        );
        server.kill().expect("killed");
        server.wait().expect("waited for");
        DataFolder::open(&data).expect("the folder is free again");
    }
}
