//! The commands of this program in the documentation.

use std::path::Path;

use clap::Parser as _;

use super::CommandLine;

/// Each command of the pages is a valid command line.
#[test]
fn the_commands_of_the_pages_are_valid() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating.md");
    let text = std::fs::read_to_string(page).expect("the page is readable");
    let mut found = 0;
    // In command blocks: the path of the program, perhaps after variables.
    for line in text.lines().filter(|line| line.contains("target/dist/hub-bench")) {
        let words = line.split_whitespace().skip_while(|word| *word != "target/dist/hub-bench");
        let parsed = CommandLine::try_parse_from(words);
        assert!(
            parsed.is_ok(),
            "{line}: {}",
            parsed.err().map(|error| error.to_string()).unwrap_or_default()
        );
        found += 1;
    }
    assert!(found >= 3, "{found} commands");
}
