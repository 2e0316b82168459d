//! The fenced blocks of the Markdown files.

use std::path::{Path, PathBuf};

/// A fenced block, and where it is.
pub(crate) struct Block {
    pub at: String,
    pub language: String,
    pub text: String,
    /// The reason why no test runs it: the HTML comment `<!-- not run: … -->` before it.
    pub not_run: Option<String>,
    /// Runs until it is stopped: the HTML comment `<!-- until stopped -->` before it.
    pub until_stopped: bool,
}

/// README and all pages below `docs/`, in that order.
pub(crate) fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).expect("docs/ is there");
    let mut pages: Vec<PathBuf> = docs.map(|entry| entry.expect("listed").path()).collect();
    pages.sort();
    pages.insert(0, root.join("README.md"));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages
}

/// The blocks of a language, in order.
pub(crate) fn blocks(language: &str) -> Vec<Block> {
    let mut found: Vec<Block> = pages().iter().flat_map(|page| of_page(page)).collect();
    found.retain(|block| block.language == language);
    assert!(!found.is_empty(), "no ```{language} block in the documentation");
    found
}

fn of_page(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(page).expect("the page is UTF-8");
    let name = page.file_name().and_then(|name| name.to_str()).expect("a name");
    let mut blocks = Vec::new();
    let (mut not_run, mut until_stopped) = (None, false);
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) => {
                open = Some(Block {
                    at: format!("{name}:{number}"),
                    language: language.to_owned(),
                    text: String::new(),
                    not_run: not_run.take(),
                    until_stopped: std::mem::take(&mut until_stopped),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {
                let comment = line.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
                // It counts for the block that follows at once.
                if comment.is_some() || !line.is_empty() {
                    not_run = comment.map(str::to_owned);
                    until_stopped = line == "<!-- until stopped -->";
                }
            }
        }
    }
    assert!(open.is_none(), "{name}: a block has no end");
    blocks
}

/// Links to files of the repository are valid.
#[test]
fn every_link_leads_to_a_file() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("UTF-8");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let path = page.parent().expect("in a folder").join(file);
            assert!(path.exists(), "{}: the link {target} leads nowhere", page.display());
        }
    }
}
