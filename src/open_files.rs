//! The limit of open files of the process; sockets count as files.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::facts::OpenFilesNotRaised;

/// Raises the soft limit to the hard limit. The soft limit is often 1,024, for programs that use select(2).
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum || current.is_none() {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        OpenFilesNotRaised { error: &error }.emit();
    }
}

/// The limit at the time of the first call.
pub fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let current = getrlimit(Resource::Nofile).current;
        current.and_then(|current| usize::try_from(current).ok()).unwrap_or(usize::MAX)
    })
}
