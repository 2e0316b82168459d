//! The fenced blocks of the Markdown files.

use std::path::{Path, PathBuf};

/// The languages of the blocks. Each has a test.
const LANGUAGES: [&str; 11] =
    ["sh", "json", "toml", "yaml", "sql", "rust", "rust,no_run", "python", "js", "go", "text"];
/// Folders without documentation of the project.
const FOREIGN: [&str; 2] = ["target", "vendor"];

/// A fenced block, and where it is.
pub(crate) struct Block {
    /// Page and line.
    pub at: String,
    /// The path of the page in the repository.
    pub page: String,
    pub language: String,
    pub text: String,
    /// Runs until it is stopped: the HTML comment `<!-- until stopped -->` before it.
    pub until_stopped: bool,
    /// Needs a terminal: the HTML comment `<!-- at a terminal -->` before it.
    pub at_a_terminal: bool,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the repository: README, those below `docs/`, and the others.
pub(crate) fn pages() -> Vec<PathBuf> {
    let (mut folders, mut pages) = (vec![root().to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder is readable") {
            let path = entry.expect("listed").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !path.is_symlink() {
                if !name.starts_with('.') && !FOREIGN.contains(&name) {
                    folders.push(path);
                }
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    let place = |page: &PathBuf| {
        let name = name_of(page);
        (name != "README.md", !name.starts_with("docs/"), name)
    };
    pages.sort_by_key(place);
    assert!(pages.len() > 15, "{pages:?}");
    pages
}

fn name_of(page: &Path) -> String {
    page.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/")
}

/// The blocks of a language, in order.
pub(crate) fn blocks(language: &str) -> Vec<Block> {
    let mut found = all_blocks();
    found.retain(|block| block.language == language);
    assert!(!found.is_empty(), "no ```{language} block in the documentation");
    found
}

fn all_blocks() -> Vec<Block> {
    pages().iter().flat_map(|page| of_page(page)).collect()
}

fn of_page(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(page).expect("the page is UTF-8");
    let name = name_of(page);
    let mut blocks = Vec::new();
    let mut comment = String::new();
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) => {
                open = Some(Block {
                    at: format!("{name}:{number}"),
                    page: name.clone(),
                    language: language.to_owned(),
                    text: String::new(),
                    until_stopped: comment == "<!-- until stopped -->",
                    at_a_terminal: comment == "<!-- at a terminal -->",
                });
                comment.clear();
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            // A comment counts for the block that follows at once.
            (None, None) if !line.is_empty() => line.trim().clone_into(&mut comment),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{name}: a block has no end");
    blocks
}

/// No block has a language, such as `bash`, that no test looks for.
#[test]
fn every_block_has_a_language_that_is_tested() {
    for block in all_blocks() {
        let drawing = block.language.is_empty() && !block.text.contains("$ ");
        assert!(drawing || LANGUAGES.contains(&&*block.language), "{}: {}", block.at, block.language);
    }
}

/// Every command block is run, so no page has a comment that excludes one.
#[test]
fn no_block_is_excluded() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("UTF-8");
        assert!(!text.contains("<!-- not run"), "{}: every block is run", page.display());
    }
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
