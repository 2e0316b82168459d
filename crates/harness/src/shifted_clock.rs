//! A wall clock that a test shifts while the process runs, by a small library that replaces `clock_gettime` in it. Linux
//! itself has no wall clock of a process (time_namespaces(7)). Monotonic clocks, and so all timers, are not affected.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use hub_testkit::owned_process::Plan;
use tempfile::TempDir;
use tokio::process::Command;

use super::{require_tool, tool};

const CODE: &str = include_str!("shifted_clock.c");
const COMPILER_LIMIT: Duration = Duration::from_secs(60);

/// The clock of one process, or of several.
pub struct ShiftedClock {
    /// Removed at the end.
    _folder: TempDir,
    library: PathBuf,
    shift: PathBuf,
    file: File,
}

impl ShiftedClock {
    /// Builds the library; `None`, with a message, without a C compiler.
    ///
    /// # Panics
    ///
    /// If the library cannot be built.
    pub fn build() -> Option<Self> {
        let compiler = require_tool("cc", tool("cc", "HUB_TEST_CC"))?;
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = |name: &str| folder.path().join(name);
        let (source, library, shift) = (path("clock.c"), path("clock.so"), path("shift"));
        std::fs::write(&source, CODE).expect("the source is written");
        let plan = Plan::new(compiler).args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let output = plan.output_within(COMPILER_LIMIT).expect("the compiler runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(&shift, 0_i64.to_ne_bytes()).expect("the shift is written");
        let file = File::options().write(true).open(&shift).expect("the shift can be changed");
        Some(Self { _folder: folder, library, shift, file })
    }

    /// Gives a process this clock at its start.
    pub fn give(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("CLOCK_SHIFT_FILE", &self.shift);
    }

    /// Sets how many seconds the clock is ahead of that of the machine, from now on.
    pub fn set(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the shift is written");
    }
}
