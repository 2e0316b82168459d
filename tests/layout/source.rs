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

/// The path and the whole text of each Rust source in a folder, with the tests at the end of a file.
pub(crate) fn below_with_tests(folder: &str) -> Vec<(String, String)> {
    let src = root().join(folder);
    let read = |source: &Source| fs::read_to_string(src.join(&source.path)).expect("source is UTF-8");
    let texts = below(folder).into_iter().map(|source| (source.path.clone(), read(&source)));
    texts.collect()
}

/// The code without comments, and with empty texts and characters.
pub(crate) fn without_literals(code: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(code.len()), code);
    while let Some(character) = rest.chars().next() {
        let in_word = kept.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let raw = rest.strip_prefix('r').filter(|_| !in_word || kept.ends_with('b')).and_then(|raw| {
            let text = raw.trim_start_matches('#');
            Some((text.strip_prefix('"')?, format!("\"{}", "#".repeat(raw.len() - text.len()))))
        });
        let quoted = |text: &str, quote: char| {
            let mut escaped = false;
            let end = text.find(|c| {
                let is_end = c == quote && !escaped;
                escaped = c == '\\' && !escaped;
                is_end
            });
            end.map_or(text.len(), |at| at + 1)
        };
        rest = if rest.starts_with("//") {
            &rest[rest.find('\n').unwrap_or(rest.len())..]
        } else if rest.starts_with("/*") {
            rest.split_once("*/").map_or("", |(_, after)| after)
        } else if let Some((text, end)) = raw {
            kept.push_str("\"\"");
            text.split_once(&end).map_or("", |(_, after)| after)
        } else if let Some(text) = rest.strip_prefix('"') {
            kept.push_str("\"\"");
            &text[quoted(text, '"')..]
        } else if let Some(text) = rest.strip_prefix('\'').filter(|text| is_character(text)) {
            kept.push_str("' '");
            &text[quoted(text, '\'')..]
        } else {
            kept.push(character);
            &rest[character.len_utf8()..]
        };
    }
    kept
}

/// True if a character follows a quotation mark, not a lifetime.
fn is_character(text: &str) -> bool {
    text.starts_with('\\') || text.chars().nth(1) == Some('\'')
}
