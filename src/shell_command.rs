//! Commands in messages that a person copies into a shell.

use std::path::Path;

/// The path of this program, relative to the working directory if it is below it.
pub(crate) fn executable() -> String {
    let Ok(path) = std::env::current_exe() else { return "hub".to_owned() };
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok().map(|rest| Path::new(".").join(rest)));
    quoted(&below.unwrap_or(path).to_string_lossy())
}

/// Quotes a text as one word for a POSIX shell, if necessary.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_special_characters_is_quoted() {
        assert_eq!(quoted("/tmp/hub-demo-a1/hub.toml"), "/tmp/hub-demo-a1/hub.toml");
        assert_eq!(quoted("/tmp/it's here"), r"'/tmp/it'\''s here'");
    }
}
