//! The signals that ask a process to stop, SIGINT (ctrl-c), SIGTERM, and SIGHUP (the terminal was closed), and those that
//! change the level of its log.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signals. From its creation on, none of them ends the process by itself, so that it can clean up.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if the process was started with SIGHUP ignored, for example by `nohup`, to outlive its terminal.
    hangup: Option<Signal>,
}

impl Signals {
    /// # Errors
    ///
    /// If the system refuses to register a handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// What a signal asks of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogSignal {
    /// SIGUSR1: every line of the hub.
    Debug,
    /// SIGUSR2: the level of the settings.
    Configured,
}

/// Receives the signals for the log. Before its creation, they end the process.
#[derive(Debug)]
pub(crate) struct LogSignals {
    debug: Signal,
    configured: Signal,
}

impl LogSignals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            debug: signal(SignalKind::user_defined1())?,
            configured: signal(SignalKind::user_defined2())?,
        })
    }

    pub(crate) async fn next(&mut self) -> LogSignal {
        tokio::select! {
            _ = self.debug.recv() => LogSignal::Debug,
            _ = self.configured.recv() => LogSignal::Configured,
        }
    }
}

/// Reads `/proc`, because the standard library cannot query a signal's action without setting it. False without `/proc`.
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// Parses `SigIgn`, a hexadecimal mask whose lowest bit is signal 1 (proc_pid_status(5)).
fn ignores_hangup(status: &str) -> bool {
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_found_in_the_mask() {
        assert!(ignores_hangup("Name:\thub\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangup("Name:\thub\nSigIgn:\t0000000000001000\nSigCgt:\t1\n"));
        assert!(!ignores_hangup(""));
    }
}
