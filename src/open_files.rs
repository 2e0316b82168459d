//! How many files the process may have open: sockets count as files.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Allows the process as many as the system lets it have without a privilege: the soft limit is often 1,024, for the
/// sake of programs that use select(2).
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum || current.is_none() {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// The limit in force when it was first asked for.
pub fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let current = getrlimit(Resource::Nofile).current;
        current.and_then(|current| usize::try_from(current).ok()).unwrap_or(usize::MAX)
    })
}
