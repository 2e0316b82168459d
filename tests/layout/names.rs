//! One name for one type.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_none;
use crate::source::{Source, below, root, sources};

const ITEMS: [&str; 5] = ["struct", "enum", "trait", "type", "union"];
/// Names by which the core is imported: in its own crates, in the hub, and in the crates that use the hub.
const CORE: [&str; 3] = ["hub_domain::", "crate::domain::", "integration_hub::domain::"];

/// The sources of each part of the project in which a type name has one meaning: a role, another top-level module of the
/// hub, or a crate.
fn areas() -> BTreeMap<String, Vec<Source>> {
    let mut areas = BTreeMap::<String, Vec<Source>>::new();
    for source in sources() {
        let area = source.role().map_or_else(|| source.module().to_owned(), |role| format!("roles/{role}"));
        areas.entry(area).or_default().push(source);
    }
    for folder in std::fs::read_dir(root().join("crates")).expect("the crates are readable") {
        let name = folder.expect("the crates are readable").file_name().to_string_lossy().into_owned();
        areas.insert(format!("crates/{name}"), below(&format!("crates/{name}/src")));
    }
    areas.values_mut().for_each(|sources| sources.retain(|source| !source.is_test()));
    areas
}

/// The types and traits that a file defines at its top level, each once: alternatives by `cfg` have one name.
fn defined(source: &Source) -> BTreeSet<&str> {
    let items = source.code.lines().filter_map(|line| {
        let item = match line.strip_prefix("pub") {
            Some(rest) => rest.strip_prefix('(').map_or(Some(rest), |rest| Some(rest.split_once(')')?.1))?,
            None => line,
        };
        let (kind, rest) = item.trim_start().split_once(' ')?;
        let is_item = !line.starts_with(' ') && ITEMS.contains(&kind);
        is_item.then(|| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())?
    });
    items.filter(|name| !name.is_empty()).collect()
}

/// The paths that a `use` names, without spaces: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn imported(code: &str) -> Vec<String> {
    let declarations = code.split('\n').enumerate().filter_map(|(at, line)| {
        let line = line.trim_start();
        let line =
            line.split_once("use ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
        line.map(|_| at)
    });
    let lines: Vec<&str> = code.split('\n').collect();
    let mut paths = Vec::new();
    for at in declarations {
        let declaration = lines[at..].join(" ");
        let tree = declaration.split_once("use ").map_or("", |(_, rest)| rest);
        flatten("", tree.split(';').next().unwrap_or_default(), &mut paths);
    }
    paths
}

fn flatten(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        paths.extend((!path.is_empty()).then(|| format!("{prefix}{path}")));
        return;
    };
    let inner = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut start) = (0, 0);
    for (at, character) in inner.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                flatten(&format!("{prefix}{head}"), &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    flatten(&format!("{prefix}{head}"), &inner[start..], paths);
}

/// The types of the core that a file uses by name: imported, or behind the name of an imported module.
fn of_the_core<'a>(source: &'a Source, core: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let mut used = BTreeSet::new();
    let mut modules: Vec<String> = CORE.map(str::to_owned).into();
    for path in imported(&source.code) {
        let Some(rest) = CORE.iter().find_map(|core| path.strip_prefix(core)) else { continue };
        let last = rest.rsplit("::").find(|part| *part != "self").unwrap_or_default();
        match core.get(last) {
            Some(name) => drop(used.insert(*name)),
            None => modules.push(format!("{last}::")),
        }
    }
    for name in core {
        let uses = source.code.match_indices(&format!("::{name}")).any(|(at, found)| {
            let ends =
                !source.code[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
            let path =
                source.code[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next();
            let path = format!("{}::", path.unwrap_or_default());
            ends && modules.iter().any(|module| path.starts_with(module.as_str()))
        });
        used.extend(uses.then_some(*name));
    }
    used
}

#[test]
fn a_type_name_has_one_meaning_in_each_role_and_crate() {
    let areas = areas();
    assert!(areas.len() > 25, "{:?}", areas.keys());
    let (mut broken, mut found) = (Vec::new(), 0);
    for (area, sources) in &areas {
        let mut homes = BTreeMap::<&str, Vec<&str>>::new();
        for source in sources {
            defined(source).into_iter().for_each(|name| homes.entry(name).or_default().push(&source.path));
        }
        found += homes.len();
        let repeated = homes.into_iter().filter(|(_, homes)| homes.len() > 1);
        broken.extend(repeated.map(|(name, homes)| format!("{area}: {name} in {}", homes.join(", "))));
    }
    assert_none(&broken, "no two types of a role, of a module of the hub or of a crate have one name");
    assert!(found > 1_000, "only {found} types are found");
}

/// A reader of a role knows which of two types a name means.
#[test]
fn no_type_has_the_name_of_a_core_type_that_its_neighbours_use() {
    let areas = areas();
    let core: BTreeSet<&str> = areas["crates/domain"].iter().flat_map(defined).collect();
    let (mut broken, mut uses) = (Vec::new(), 0);
    for (area, sources) in areas.iter().filter(|(area, _)| *area != "crates/domain") {
        let own: BTreeSet<&str> = sources.iter().flat_map(defined).collect();
        for source in sources {
            let used = of_the_core(source, &core);
            uses += used.len();
            let both = used.into_iter().filter(|name| own.contains(name));
            broken.extend(both.map(|name| format!("{area}: {name}, of the core in {}", source.path)));
        }
    }
    assert_none(&broken, "a type has another name than the types of the core that the same part uses");
    assert!(uses > 500, "only {uses} uses of the core are found");
}
