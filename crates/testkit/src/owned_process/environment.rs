//! The environment variables that child processes get: an allow-list, so that no secret of the hub
//! (`HUB__SECRETS__MASTER_KEY`) or of another program in the same environment is passed on.

use std::ffi::{OsStr, OsString};

/// Variables for any program.
pub(super) const PLAIN: &[&str] =
    &["PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*", "LD_LIBRARY_PATH"];
/// Variables for Python and its packages.
pub const PYTHON: &[&str] = &["PYTHON*", "PYENV_*", "VIRTUAL_ENV"];
/// Variables for `pip`, its index, proxies and certificates. They may contain credentials of a proxy or an index.
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
/// Variables for a hub of the bench, whose settings are a file.
pub const HUB: &[&str] = &["RUST_LOG", "RUST_BACKTRACE", "TOKIO_WORKER_THREADS", "MIMALLOC_*"];

/// The variables of this process with these names; a name with `*` at its end is a prefix.
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
    fn no_list_has_a_setting_or_a_foreign_secret() {
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
