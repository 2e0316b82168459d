//! Reads the layers, each as one TOML table, and merges them.
//!
//! The TOML is parsed here rather than by `config`, whose syntax errors quote the line, which may contain a secret.

use std::collections::HashSet;
use std::ffi::OsString;

use config::{Config, ConfigError, Map, Source, Value, ValueKind};
use toml::{Table, Value as Toml};

use super::show::Leaf;
use super::{DEFAULTS, SettingProblem, SettingsError};

/// The beginning of the names of variables that hold settings.
pub(super) const VARIABLE: &str = "HUB__";
/// The lists of tables, whose entries are merged by name, with defaults of fields. The structs define the other
/// defaults.
const LISTS: [(&str, &[(&str, i64)]); 3] =
    [("domains", &[("concurrency", 64)]), ("external_brokers", &[]), ("tenants", &[])];
/// The fields of the lists that have no default entries.
const ENTRIES: [(&str, &[(&str, SettingType)]); 2] =
    [("external_brokers", &super::ExternalBroker::FIELDS), ("tenants", &super::Tenant::FIELDS)];

/// The type of a setting in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SettingType {
    Text,
    Whole,
    Flag,
    List,
}

impl SettingType {
    fn of(value: &Toml) -> Option<Self> {
        match value {
            Toml::String(_) => Some(Self::Text),
            Toml::Integer(_) => Some(Self::Whole),
            Toml::Boolean(_) => Some(Self::Flag),
            Toml::Array(_) => Some(Self::List),
            Toml::Float(_) | Toml::Datetime(_) | Toml::Table(_) => None,
        }
    }

    /// A value of this type.
    fn example(self) -> Toml {
        match self {
            Self::Text => Toml::String(String::new()),
            Self::Whole => Toml::Integer(0),
            Self::Flag => Toml::Boolean(false),
            Self::List => Toml::Array(Vec::new()),
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Text => "must be text; write it in quotes",
            Self::Whole => "must be a whole number; write it without quotes, such as 64",
            Self::Flag => "must be true or false; write it without quotes",
            Self::List => "must be a list; write it in brackets, such as [\"one\", \"two\"]",
        }
    }

    /// Converts the text of a variable or a flag to this type.
    fn read(self, text: &str) -> Result<Toml, &'static str> {
        match self {
            Self::Whole => {
                text.trim().parse().map(Toml::Integer).map_err(|_| "must be a whole number, such as 64")
            }
            Self::Flag => text.trim().parse().map(Toml::Boolean).map_err(|_| "must be true or false"),
            Self::Text | Self::List => Ok(Toml::String(text.to_owned())),
        }
    }
}

/// One value of the environment or of a flag, with its dotted key.
struct Given {
    key: String,
    text: String,
    layer: String,
}

/// The table of one layer. Each value carries the layer's name.
#[derive(Debug, Clone)]
struct Layer {
    name: String,
    table: Table,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(marked(&self.table, &self.name))
    }
}

fn marked(table: &Table, layer: &String) -> Map<String, Value> {
    table.iter().map(|(key, value)| (key.clone(), mark(value, layer))).collect()
}

fn mark(value: &Toml, layer: &String) -> Value {
    let kind = match value {
        Toml::String(text) => ValueKind::String(text.clone()),
        Toml::Integer(number) => ValueKind::I64(*number),
        Toml::Float(number) => ValueKind::Float(*number),
        Toml::Boolean(flag) => ValueKind::Boolean(*flag),
        Toml::Datetime(time) => ValueKind::String(time.to_string()),
        Toml::Array(items) => ValueKind::Array(items.iter().map(|item| mark(item, layer)).collect()),
        Toml::Table(table) => ValueKind::Table(marked(table, layer)),
    };
    Value::new(Some(layer), kind)
}

/// The variables of the environment that begin with `HUB__`, sorted by name.
pub(super) fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, SettingsError> {
    let mut found = Vec::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        if !name.starts_with(VARIABLE) {
            continue;
        }
        let value = value.into_string().map_err(|_| {
            SettingsError::Invalid(vec![SettingProblem {
                key: name[VARIABLE.len()..].to_lowercase().replace("__", "."),
                layer: format!("environment {name}"),
                problem: "the value is not UTF-8".to_owned(),
            }])
        })?;
        found.push((name, value));
    }
    found.sort();
    Ok(found)
}

/// Variables with one underscore where two are required (`HUB_NATS_URL`), each with the correct name
/// (`HUB__NATS__URL`).
pub(super) fn with_one_underscore(names: impl Iterator<Item = OsString>) -> Vec<(String, String)> {
    let known = parse("defaults", DEFAULTS).expect("the embedded defaults are valid: a test loads them");
    let mut keys = Vec::new();
    collect_keys(&known, "", &mut keys);
    let mut found: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter_map(|name| {
            let rest = name.strip_prefix("HUB_")?;
            let key = keys.iter().find(|key| key.replace('.', "_").eq_ignore_ascii_case(rest))?;
            let meant = format!("{VARIABLE}{}", key.to_uppercase().replace('.', "__"));
            Some((name, meant))
        })
        .collect();
    found.sort();
    found
}

/// Merges all layers into one value. Each part keeps its layer (`Value::origin`).
pub(super) fn merge(
    file: Option<(String, String)>,
    environment: Vec<(String, String)>,
    overrides: &[(String, String)],
) -> Result<Value, SettingsError> {
    let known = parse("defaults", DEFAULTS)?;
    let mut layers = vec![Layer { name: "defaults".to_owned(), table: known.clone() }];
    if let Some((name, text)) = file {
        layers.push(Layer { table: parse(&name, &text)?, name });
    }
    let environment = environment.into_iter().map(|(name, text)| Given {
        key: name[VARIABLE.len()..].to_lowercase().replace("__", "."),
        text,
        layer: format!("environment {name}"),
    });
    let overrides = overrides.iter().map(|(key, text)| Given {
        key: key.clone(),
        text: text.clone(),
        layer: "flag".to_owned(),
    });
    for given in environment.chain(overrides) {
        layers.push(one_value(&known, given)?);
    }

    for layer in &layers[1..] {
        refuse_unknown(&layer.table, &known, "", &known, layer)?;
    }
    let lists =
        LISTS.map(|(list, defaults)| merge_by_name(&layers, list, defaults).map(|merged| (list, merged)));

    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    for list in lists {
        let (list, merged) = list?;
        builder = builder.set_override(list, merged).map_err(|error| refused(error, &[]))?;
    }
    builder.build().map(|config| config.cache).map_err(|error| refused(error, &[]))
}

fn parse(layer: &str, text: &str) -> Result<Table, SettingsError> {
    text.parse::<Table>().map_err(|error| {
        let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
        SettingsError::Syntax {
            layer: layer.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
            problem: error.message().to_owned(),
        }
    })
}

/// Converts `delivery.retry` = `1s,5s` to the table `{delivery: {retry: ["1s", "5s"]}}`. The default defines the type.
fn one_value(known: &Table, given: Given) -> Result<Layer, SettingsError> {
    let path: Vec<&str> = given.key.split('.').collect();
    let default = path.iter().skip(1).fold(known.get(path[0]), |value, part| value?.get(part));
    let mut value = match default {
        Some(Toml::Array(_)) if given.text.trim_start().starts_with('[') => {
            // The parser's position is that in this line, which nobody has written.
            match format!("list = {}", given.text).parse::<Table>() {
                Ok(line) => line.get("list").cloned().expect("the line parsed, so it holds its one key"),
                Err(error) => {
                    let example = if LISTS.iter().any(|(list, _)| *list == given.key) {
                        "[{name = \"one\"}]"
                    } else {
                        "[\"one\", \"two\"]"
                    };
                    let problem = format!("is not a list: {}; write it as {example}", error.message());
                    return Err(invalid(&given.key, &given.layer, problem));
                }
            }
        }
        Some(Toml::Array(_)) => Toml::Array(
            given.text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Into::into).collect(),
        ),
        Some(default) => match SettingType::of(default).unwrap_or(SettingType::Text).read(&given.text) {
            Ok(value) => value,
            Err(problem) => return Err(invalid(&given.key, &given.layer, problem.to_owned())),
        },
        None => Toml::String(given.text),
    };
    for part in path.iter().skip(1).rev() {
        value = Toml::Table(Table::from_iter([((*part).to_owned(), value)]));
    }
    Ok(Layer { name: given.layer, table: Table::from_iter([(path[0].to_owned(), value)]) })
}

/// Rejects settings that are not in the defaults or have another type than there. Nothing is converted, because a `2`
/// for a `true` or a `5.7` for a `5` is a mistake. `at` is the dotted path of `table`, with its trailing dot.
fn refuse_unknown(
    table: &Table,
    known: &Table,
    at: &str,
    all: &Table,
    layer: &Layer,
) -> Result<(), SettingsError> {
    for (name, value) in table {
        let key = format!("{at}{name}");
        match (known.get(name), value) {
            (None, _) => {
                return Err(SettingsError::UnknownKey {
                    nearest: nearest(&key, all),
                    key,
                    layer: layer.name.clone(),
                });
            }
            (Some(Toml::Table(known)), Toml::Table(table)) => {
                refuse_unknown(table, known, &format!("{key}."), all, layer)?;
            }
            (Some(Toml::Table(_)), _) => {
                return Err(invalid(
                    &key,
                    &layer.name,
                    format!("is a section; write [{key}] and its settings below"),
                ));
            }
            (Some(Toml::Array(items)), Toml::Array(given)) => {
                // The first default defines the fields of an entry; without defaults, the list of fields does.
                let entries: Table;
                let known = match items.first() {
                    Some(Toml::Table(known)) => known,
                    _ => match ENTRIES.iter().find(|(list, _)| *list == key) {
                        Some((_, fields)) => {
                            let field =
                                |(name, kind): &(&str, SettingType)| ((*name).to_owned(), kind.example());
                            entries = fields.iter().map(field).collect();
                            &entries
                        }
                        None if given.iter().all(|item| item.is_str()) => continue,
                        None => {
                            let problem = "must be a list of texts; write each in quotes";
                            return Err(invalid(&key, &layer.name, problem.to_owned()));
                        }
                    },
                };
                for (position, item) in given.iter().enumerate() {
                    let Toml::Table(item) = item else {
                        return Err(invalid(
                            &key,
                            &layer.name,
                            format!("must be a list of tables; write [[{key}]] entries"),
                        ));
                    };
                    let name =
                        item.get("name").and_then(Toml::as_str).map_or(position.to_string(), str::to_owned);
                    refuse_unknown(item, known, &format!("{key}[{name}]."), all, layer)?;
                }
            }
            (Some(Toml::Array(_)), _) if at.is_empty() && LISTS.iter().any(|(list, _)| list == name) => {
                return Err(invalid(
                    &key,
                    &layer.name,
                    format!("must be a list of tables; write [[{name}]] entries"),
                ));
            }
            (Some(known), value) => {
                if let Some(kind) =
                    SettingType::of(known).filter(|kind| SettingType::of(value) != Some(*kind))
                {
                    return Err(invalid(&key, &layer.name, kind.remedy().to_owned()));
                }
            }
        }
    }
    Ok(())
}

/// The known key that is nearest to `key`; `None` if none is near. Near means: at most a third of the letters of its last
/// part differ. Its section may differ, for a key in the wrong section.
fn nearest(key: &str, all: &Table) -> Option<String> {
    // The name or position of a list entry is not part of the comparison.
    let plain = match key.split_once('[') {
        Some((list, rest)) => format!("{list}{}", rest.split_once(']').map_or("", |(_, tail)| tail)),
        None => key.to_owned(),
    };
    let mut candidates = Vec::new();
    collect_keys(all, "", &mut candidates);
    for (list, fields) in ENTRIES {
        candidates.extend(fields.iter().map(|(field, _)| format!("{list}.{field}")));
    }
    let parts = |key: &str| match key.rsplit_once('.') {
        Some((section, last)) => (section.to_owned(), last.to_owned()),
        None => (String::new(), key.to_owned()),
    };
    let (section, last) = parts(&plain);
    let near = candidates.into_iter().filter_map(|candidate| {
        let (its_section, its_last) = parts(&candidate);
        let edits = strsim::damerau_levenshtein(&last, &its_last);
        let most = last.chars().count().max(its_last.chars().count()) / 3;
        let away = strsim::damerau_levenshtein(&section, &its_section);
        (edits <= most).then_some(((edits, away), candidate))
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

fn collect_keys(table: &Table, at: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = format!("{at}{name}");
        match value {
            Toml::Table(inner) => collect_keys(inner, &format!("{key}."), keys),
            Toml::Array(items) => {
                if let Some(Toml::Table(inner)) = items.first() {
                    collect_keys(inner, &format!("{key}."), keys);
                }
            }
            _ => {}
        }
        keys.push(key);
    }
}

/// Merges the entries of a list by name. New entries come first, those of the latest layer before the others; an entry
/// with a known name overrides the fields that it sets.
fn merge_by_name(layers: &[Layer], list: &str, defaults: &[(&str, i64)]) -> Result<Value, SettingsError> {
    let mut merged: Vec<(String, Map<String, Value>)> = Vec::new();
    for layer in layers {
        let Some(Toml::Array(entries)) = layer.table.get(list) else { continue };
        let mut seen = HashSet::new();
        let mut added = Vec::new();
        for entry in entries {
            let Toml::Table(entry) = entry else { continue };
            let Some(name) = entry.get("name").and_then(Toml::as_str) else {
                return Err(invalid(
                    &format!("{list}.name"),
                    &layer.name,
                    format!("is missing or not text; each [[{list}]] entry needs name = \"…\""),
                ));
            };
            if !seen.insert(name) {
                return Err(invalid(
                    &format!("{list}[{name}]"),
                    &layer.name,
                    "occurs twice; merge the two entries".to_owned(),
                ));
            }
            let fields = marked(entry, &layer.name);
            match merged.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.extend(fields),
                None => added.push((name.to_owned(), fields)),
            }
        }
        added.append(&mut merged);
        merged = added;
    }
    let entries = merged.into_iter().map(|(_, mut fields)| {
        let layer = fields.get("name").and_then(Value::origin).unwrap_or("defaults").to_owned();
        for (field, default) in defaults {
            fields
                .entry((*field).to_owned())
                .or_insert_with(|| Value::new(Some(&"defaults".to_owned()), ValueKind::I64(*default)));
        }
        Value::new(Some(&layer), ValueKind::Table(fields))
    });
    Ok(Value::new(None, ValueKind::Array(entries.collect())))
}

fn invalid(key: &str, layer: &str, problem: String) -> SettingsError {
    SettingsError::Invalid(vec![SettingProblem { key: key.to_owned(), layer: layer.to_owned(), problem }])
}

/// Converts an error of `config`; adds the key, and the layer from `leaves`.
pub(super) fn refused(error: ConfigError, leaves: &[Leaf]) -> SettingsError {
    let (key, problem) = match error {
        ConfigError::At { error, key, .. } => (key, error.to_string()),
        ConfigError::Type { key, unexpected, expected, .. } => {
            (key, format!("is a {unexpected}; must be {expected}"))
        }
        ConfigError::NotFound(key) => (Some(key), "is missing".to_owned()),
        other => (None, other.to_string()),
    };
    let key = key.unwrap_or_else(|| "settings".to_owned());
    let key = with_entry_name(&key, leaves).unwrap_or(key);
    // A missing setting has no layer; the error names the layer of its section.
    let section = key.rsplit_once('.').map_or(key.as_str(), |(section, _)| section);
    let of = leaves
        .iter()
        .find(|leaf| leaf.key == key || key.strip_prefix(&leaf.key).is_some_and(|rest| rest.starts_with('[')))
        .or_else(|| leaves.iter().find(|leaf| leaf.key.starts_with(section)));
    invalid(&key, of.map_or("settings", |leaf| &leaf.layer), problem)
}

/// Converts `domains[2].events` to `domains[billing].events`, because the position in the merged list is not visible to
/// the user.
fn with_entry_name(key: &str, leaves: &[Leaf]) -> Option<String> {
    let (list, position) = key.split_once('[')?;
    let (position, field) = position.split_once(']')?;
    let open = format!("{list}[");
    let names = leaves.iter().filter_map(|leaf| leaf.key.strip_prefix(&open)?.strip_suffix("].name"));
    let name = names.into_iter().nth(position.parse().ok()?)?;
    let field = field.strip_prefix('.').unwrap_or(field);
    Some(if field.is_empty() { format!("{list}[{name}]") } else { format!("{list}[{name}].{field}") })
}
