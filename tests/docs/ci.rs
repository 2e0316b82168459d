//! The commands of the README as `.ci/run` runs them, and the variables of all commands.

use std::collections::BTreeSet;
use std::path::Path;

use super::blocks::{blocks, root};

const MOST_LINES_OF_README: usize = 149;
/// Options of `.ci/run` that change neither what is built nor what is tested, and end the demo by itself.
const OPTIONS: [&str; 5] = ["--quiet", "--locked", "--no-fail-fast", "--once", "2>&1"];

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("the file is readable")
}

/// The body of a function of `.ci/run`.
fn body<'a>(script: &'a str, name: &str) -> &'a str {
    let start = script.find(&format!("\n{name}() {{\n")).expect("the function is there");
    let step = format!("\" {name}\n");
    assert!(script.contains(&step), "a step calls {name}");
    script[start..].split("\n}\n").next().unwrap_or_default()
}

/// The `cargo` command of a line, without its options of CI.
fn cargo(line: &str) -> Option<String> {
    let command = &line[line.find("cargo ")?..];
    let command = command.split(['|', '#']).next().unwrap_or_default();
    Some(command.split_whitespace().filter(|word| !OPTIONS.contains(word)).collect::<Vec<_>>().join(" "))
}

#[test]
fn ci_runs_the_two_commands_of_the_readme_and_no_others() {
    let script = read(".ci/run");
    let run: BTreeSet<String> =
        ["demo", "tests"].iter().flat_map(|name| body(&script, name).lines().filter_map(cargo)).collect();
    let page = read("README.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Two commands\n"));
    let block = section.and_then(|section| section.split("```").nth(1)).expect("a block");
    let shown: BTreeSet<String> = block.lines().filter_map(cargo).collect();
    assert_eq!(shown, run);
    assert_eq!(shown.len(), 2, "{shown:?}");
}

/// A variable that a command sets is read by a program, a test or a script of this repository.
#[test]
fn every_variable_of_a_command_is_read() {
    let mut sources = String::new();
    for folder in ["src", "crates", "tests", ".ci"] {
        collect(&root().join(folder), &mut sources);
    }
    let mut found = 0;
    for block in blocks("sh") {
        for word in block.text.split_whitespace() {
            let Some((name, _)) = word.split_once('=') else { continue };
            // Settings have two underscores; the program checks their names.
            if !name.starts_with("HUB_") || name.starts_with("HUB__") {
                continue;
            }
            found += 1;
            let read = [format!("\"{name}\""), format!("${{{name}:-")];
            assert!(read.iter().any(|form| sources.contains(form)), "{}: nothing reads {name}", block.at);
        }
    }
    assert!(found > 3, "{found} variables");
}

fn collect(folder: &Path, sources: &mut String) {
    for entry in std::fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("listed").path();
        let is_source = path.extension().is_none_or(|extension| extension == "rs" || extension == "sh");
        if path.is_dir() {
            collect(&path, sources);
        } else if is_source && let Ok(text) = std::fs::read_to_string(&path) {
            sources.push_str(&text);
        }
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= MOST_LINES_OF_README, "README.md has {lines} lines; at most {MOST_LINES_OF_README}");
}
