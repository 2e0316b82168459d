//! Which variables of the hub's environment its children get: an allow-list, so that a secret of the hub
//! (`HUB__SECRETS__MASTER_KEY`), or of whatever else runs in the same environment, is not among them.

use std::ffi::{OsStr, OsString};

/// What any program may need.
pub(super) const PLAIN: &[&str] =
    &["PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*", "LD_LIBRARY_PATH"];
/// A Python with its packages.
pub const PYTHON: &[&str] = &["PYTHON*", "PYENV_*", "VIRTUAL_ENV"];
/// What `pip` needs for its index, and any program for the way to it. A proxy's or an index's own credentials are
/// among these.
pub const DOWNLOADS: &[&str] = &[
    "PIP_*",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
];
/// How a hub of the bench runs; its settings are a file.
pub const HUB: &[&str] = &["RUST_LOG", "RUST_BACKTRACE", "TOKIO_WORKER_THREADS", "MIMALLOC_*"];

/// The variables of this process with these names; one that ends in `*` stands for all that begin so.
pub(super) fn of(names: &[&str]) -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| is_among(name, names)).collect()
}

fn is_among(name: &OsStr, names: &[&str]) -> bool {
    name.to_str().is_some_and(|name| {
        names.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == *allowed,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_lets_a_setting_or_a_foreign_secret_through() {
        let lists = [PLAIN, PYTHON, DOWNLOADS, HUB].concat();
        for name in [
            "HUB__SECRETS__MASTER_KEY",
            "HUB__SECRETS__MASTER_KEY_FILE",
            "HUB__NATS__PASSWORD",
            "HUB__OUTBOX__DATABASE_URL",
            "HUB_CONFIG",
            "HUB_BENCH_DATABASE_URL",
            "DATABASE_URL",
            "PGPASSWORD",
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN",
            "PATHS",
            "home",
            "",
        ] {
            assert!(!is_among(OsStr::new(name), &lists), "{name}");
        }
        for name in ["PATH", "LC_ALL", "LC_CTYPE", "PIP_INDEX_URL", "PYTHONPATH", "RUST_LOG"] {
            assert!(is_among(OsStr::new(name), &lists), "{name}");
        }
    }
}
