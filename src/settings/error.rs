//! Why settings were rejected.

use std::path::PathBuf;

/// Why settings were rejected. The text never contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("settings file {} cannot be read: {source}; correct --config or HUB_CONFIG, or the file's permissions", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    /// Not TOML.
    #[error("{layer}, line {line}, column {column}: {problem}")]
    Syntax { layer: String, line: usize, column: usize, problem: String },
    #[error("{key}: unknown setting ({layer}); {}", instead(.nearest.as_deref()))]
    UnknownKey { key: String, layer: String, nearest: Option<String> },
    /// One or more invalid values.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<SettingProblem>),
}

/// The remedy of an unknown setting.
fn instead(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || "remove it, or use a setting that `hub config show` lists".to_owned(),
        |known| format!("did you mean {known}?"),
    )
}

/// One invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem} ({layer})")]
pub struct SettingProblem {
    /// As in `delivery.ack_wait`, `domains[billing].events`.
    pub key: String,
    /// The layer of the value: `defaults`, the file's name, `environment HUB__…`, `flag`.
    pub layer: String,
    /// Problem and remedy.
    pub problem: String,
}
