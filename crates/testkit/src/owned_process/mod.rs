//! Child processes: private servers, downloads, and the programs that the bench measures.
//!
//! No other module starts a process, because each of them has three properties:
//!
//! * It gets no secret. Its environment is an allow-list ([`Plan::new`], [`Plan::pass`]).
//! * It does not outlive its owner. Dropping an [`OwnedProcess`] ends it and waits until it is gone; if the owner is
//!   killed, a small shell script (`watch.sh`) ends it and removes its folder. (The parent-death signal of Linux is bound
//!   to the thread that started the process.)
//! * It has a process group of its own, so that ctrl-c reaches only its owner, which then stops it.

mod environment;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeWriter, pipe};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout};

pub use environment::{DOWNLOADS, HUB, PYTHON};

const SHELL: &str = "/bin/sh";
const WATCH: &str = include_str!("watch.sh");
/// Time limit for the end of a dropped process; a killed one ends within milliseconds.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// The options of a process.
#[derive(Debug)]
pub struct Plan {
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    ending: Ending,
    folder: Option<PathBuf>,
    input: Option<File>,
    stdout: Stdio,
    stderr: Stdio,
    user: Option<(u32, u32)>,
    directory: Option<PathBuf>,
}

/// The signal that ends a process if its owner is gone or drops it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM if the owner is gone, SIGKILL if it is dropped.
    Plain,
    /// SIGQUIT in both cases: the immediate shutdown of PostgreSQL, which leaves no shared memory.
    Quit,
}

impl Plan {
    /// Standard input, output and error are `/dev/null`. The environment has the paths of programs, home and temporary
    /// files, and the language.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            environment: environment::of(environment::PLAIN),
            ending: Ending::Plain,
            folder: None,
            input: None,
            stdout: Stdio::null(),
            stderr: Stdio::null(),
            user: None,
            directory: None,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable for this process only.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Passes these variables on, too; a name with `*` at its end is a prefix.
    pub fn pass(mut self, names: &[&str]) -> Self {
        self.environment.extend(environment::of(names));
        self
    }

    /// Sets the signal that ends it.
    pub fn ends_by(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    /// A folder that is removed after the end of the process if the owner is gone.
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Sets a file as standard input, which is open until the process ends. Standard output is then `/dev/null`.
    pub fn holding(mut self, input: File) -> Self {
        self.input = Some(input);
        self
    }

    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Runs it as this user and group.
    pub fn user(mut self, user: Option<(u32, u32)>) -> Self {
        self.user = user;
        self
    }

    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Starts it on the current runtime.
    ///
    /// # Errors
    ///
    /// The program does not exist or is not executable, or the system refuses.
    pub fn spawn(self) -> io::Result<OwnedProcess> {
        let ending = self.ending;
        let (command, owner) = self.command()?;
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        Ok(OwnedProcess { child, pid, ending, owner })
    }

    /// Runs it to its end and returns its output; after `limit` it is killed. Blocks.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn), or [`io::ErrorKind::TimedOut`].
    pub fn output_within(self, limit: Duration) -> io::Result<Output> {
        let (mut command, owner) = self.stdout(Stdio::piped()).stderr(Stdio::piped()).command()?;
        let child = command.spawn()?;
        let group = Group(i32::try_from(child.id()).ok().and_then(Pid::from_raw), owner);
        let (sender, receiver) = mpsc::sync_channel(1);
        // Ends with the child, which is killed below after the limit.
        let waiter = std::thread::Builder::new()
            .name("command-output".to_owned())
            .spawn(move || drop(sender.send(child.wait_with_output())))?;
        let output = receiver.recv_timeout(limit);
        drop(group);
        match output {
            Ok(output) => {
                let _ = waiter.join();
                output
            }
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no end after {}", humantime::format_duration(limit)),
            )),
        }
    }

    /// The command, and the pipe that the watch waits on: closing it ends the process.
    fn command(self) -> io::Result<(Command, Option<PipeWriter>)> {
        let program = find(&self.program, &self.environment)?;
        let (mut command, owner) = if Path::new(SHELL).exists() {
            let (watched, owner) = pipe()?;
            let mut command = Command::new(SHELL);
            let signal = if self.ending == Ending::Quit { "QUIT" } else { "TERM" };
            command.args(["-c", WATCH, "hub-watch", signal]).arg(self.folder.unwrap_or_default());
            command.arg(if self.input.is_some() { "output" } else { "null" }).arg(program);
            command.stdin(watched).stdout(self.input.map_or(self.stdout, Stdio::from));
            (command, Some(owner))
        } else {
            tracing::warn!("{SHELL} not found: if this process is killed, its children continue to run");
            let mut command = Command::new(program);
            let (stdin, stdout) =
                self.input.map_or((Stdio::null(), self.stdout), |file| (file.into(), Stdio::null()));
            command.stdin(stdin).stdout(stdout);
            (command, None)
        };
        command.args(self.args).env_clear().envs(self.environment).stderr(self.stderr).process_group(0);
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        Ok((command, owner))
    }
}

/// Finds the program as a shell does, so that a missing program is an error of the start and not an exit code.
fn find(program: &Path, environment: &[(OsString, OsString)]) -> io::Result<PathBuf> {
    let check = |path: &Path| {
        let about = path.metadata()?;
        if about.is_file() && about.permissions().mode() & 0o111 != 0 {
            Ok(path.to_owned())
        } else {
            Err(io::Error::from(io::ErrorKind::PermissionDenied))
        }
    };
    if program.components().count() > 1 {
        return check(program);
    }
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    std::env::split_paths(path.unwrap_or_default())
        .find_map(|folder| check(&folder.join(program)).ok())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A running process that ends with its owner.
#[derive(Debug)]
pub struct OwnedProcess {
    child: Child,
    pid: Pid,
    ending: Ending,
    /// The watch waits until it is closed. `None` without a shell.
    owner: Option<PipeWriter>,
}

impl OwnedProcess {
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        kill_process(self.pid, signal).map_err(io::Error::from)
    }

    /// Waits until it ends. Cancel safe.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Its exit status; `None` while it runs.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends SIGTERM and waits at most `limit`; then kills it. False if it was killed.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub async fn stop(&mut self, limit: Duration) -> io::Result<bool> {
        if self.try_wait()?.is_some() {
            return Ok(true);
        }
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(limit, self.wait()).await {
            Ok(ended) => ended.map(|_| true),
            Err(_) => self.kill().await.map(|()| false),
        }
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub async fn kill(&mut self) -> io::Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        self.wait().await.map(drop)
    }

    /// Standard output, if it is piped; `None` from the second call on.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for its end, and returns what it wrote to piped outputs. Dropping the future ends the process.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub async fn output(mut self) -> io::Result<Output> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read_out = async {
            match stdout {
                Some(mut pipe) => pipe.read_to_end(&mut out).await.map(drop),
                None => Ok(()),
            }
        };
        let read_err = async {
            match stderr {
                Some(mut pipe) => pipe.read_to_end(&mut err).await.map(drop),
                None => Ok(()),
            }
        };
        let (status, (), ()) = tokio::try_join!(self.child.wait(), read_out, read_err)?;
        Ok(Output { status, stdout: out, stderr: err })
    }
}

impl Drop for OwnedProcess {
    fn drop(&mut self) {
        let signal = if self.ending == Ending::Quit { Signal::QUIT } else { Signal::KILL };
        if matches!(self.child.try_wait(), Ok(None)) && self.signal(signal).is_ok() {
            // Until it is gone, it may write to a folder that is removed next.
            for _ in 0..DROP_LIMIT.as_millis() {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    break;
                }
                #[expect(clippy::disallowed_methods, reason = "a drop cannot await")]
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // The watch, and processes that this one has started and left.
        drop(Group(Some(self.pid), self.owner.take()));
    }
}

/// A process group with a watch in it; dropping it kills all of it.
struct Group(Option<Pid>, Option<PipeWriter>);

impl Drop for Group {
    fn drop(&mut self) {
        // Without a watch, another process may have the number.
        if let (Some(group), Some(_)) = (self.0, &self.1) {
            // Fails if the group has ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests;
