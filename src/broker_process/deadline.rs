//! Running a short-lived command with a time limit.

use std::io;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Runs `command` to its end and gives its output; past `limit` it is killed.
///
/// # Errors
///
/// What starting it gave, or [`io::ErrorKind::TimedOut`].
pub(super) fn output_within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (sender, receiver) = mpsc::sync_channel(1);
    // Ends with the child, which is killed below if it outstays its time.
    let waiter = std::thread::Builder::new()
        .name("command-output".to_owned())
        .spawn(move || drop(sender.send(child.wait_with_output())))?;
    match receiver.recv_timeout(limit) {
        Ok(output) => {
            let _ = waiter.join();
            output
        }
        Err(_) => {
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::KILL);
            }
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no end after {}", humantime::format_duration(limit)),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_given_and_a_hanging_command_is_ended() {
        let done =
            output_within(Command::new("sh").args(["-c", "echo out; echo err >&2"]), Duration::from_secs(10))
                .expect("sh runs");
        assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));

        let late = output_within(Command::new("sleep").arg("60"), Duration::from_millis(50))
            .expect_err("the limit is shorter than the command");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
