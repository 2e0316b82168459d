//! The Rust sources of the project as the rules read them.

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) struct Source {
    /// The path below `src` or another folder, with slashes.
    pub(crate) path: String,
    pub(crate) lines: usize,
    /// The code without comments and without the tests at the end of the file.
    pub(crate) code: String,
}

impl Source {
    /// `nats` for `nats/pull.rs`, `seal` for `seal.rs`.
    pub(crate) fn module(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// `dlt_router` for `roles/dlt_router/sweep.rs`.
    pub(crate) fn role(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("roles/")?;
        Some(rest.split('/').next()?.trim_end_matches(".rs")).filter(|name| *name != "mod")
    }

    /// True if a path begins with this name: `name::`, `use name;`, `use name as`.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.code.match_indices(name).any(|(at, _)| {
            let before = self.code[..at].chars().next_back();
            let free =
                before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':' | '"' | '-' | '.'));
            let after = &self.code[at + name.len()..];
            let in_use =
                self.code[..at].ends_with("use ") && (after.starts_with(';') || after.starts_with(" as "));
            free && (after.starts_with("::") || in_use)
        })
    }

    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

pub(crate) fn sources() -> Vec<Source> {
    let sources = below("src");
    assert!(sources.len() > 50, "only {} files found: is this the right folder?", sources.len());
    sources
}

/// The Rust sources in a folder of the project.
pub(crate) fn below(folder: &str) -> Vec<Source> {
    let src = root().join(folder);
    let (mut folders, mut sources) = (vec![src.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("sources are readable") {
            let path = entry.expect("sources are readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                let path =
                    path.strip_prefix(&src).expect("below the folder").to_string_lossy().replace('\\', "/");
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                let code = code.lines().map(without_comment).collect::<Vec<_>>().join("\n");
                sources.push(Source { path, lines: text.lines().count(), code });
            }
        }
    }
    sources
}

/// The line up to a `//` outside of strings.
fn without_comment(line: &str) -> &str {
    let (mut in_string, mut escaped) = (false, false);
    for (at, character) in line.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' if !line[..at].ends_with('\'') => in_string = !in_string,
            '/' if !in_string && line[at..].starts_with("//") => return &line[..at],
            _ => {}
        }
    }
    line
}
