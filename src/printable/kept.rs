//! A log that a test reads.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Keeps what the log writes; one write is one record.
#[derive(Clone, Default)]
pub(crate) struct KeptLog(Arc<Mutex<Vec<String>>>);

impl KeptLog {
    pub(crate) fn records(&self) -> Vec<String> {
        self.kept().clone()
    }

    fn kept(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for KeptLog {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.kept().push(String::from_utf8(record.to_vec()).expect("a record is UTF-8"));
        Ok(record.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for KeptLog {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
