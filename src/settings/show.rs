//! The merged settings as `hub config show` prints them: TOML, with the layer of each value.

use config::{Value, ValueKind};

/// Keys whose values are never shown.
const HIDDEN: [&str; 7] = [
    "nats.password",
    "nats.token",
    "outbox.database_url",
    "secrets.master_key",
    "secrets.previous_keys",
    "subscriptions.token",
    "subscriptions.listen_token",
];

/// The same for the entries of a list of tables, without the entry's name.
const HIDDEN_IN: [&str; 2] = ["external_brokers.password", "external_brokers.token"];

pub(super) fn is_hidden(key: &str) -> bool {
    let in_list = || {
        let (list, rest) = key.split_once('[')?;
        let (_, field) = rest.rsplit_once("].")?;
        Some(HIDDEN_IN.contains(&format!("{list}.{field}").as_str()))
    };
    HIDDEN.contains(&key) || in_list().unwrap_or(false)
}

/// One setting of the merged layers.
pub(super) struct Leaf {
    /// `nats.url`; in a list of tables `domains[billing].events`.
    pub(super) key: String,
    /// The value as TOML.
    text: String,
    pub(super) layer: String,
}

/// Every setting, in order of section and key.
pub(super) fn leaves(merged: &Value) -> Vec<Leaf> {
    let mut found = Vec::new();
    collect(merged, String::new(), &mut found);
    found
}

fn collect(value: &Value, key: String, found: &mut Vec<Leaf>) {
    match &value.kind {
        ValueKind::Table(table) => {
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|(name, _)| (name.as_str() != "name", name.as_str()));
            for (name, inner) in entries {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                collect(inner, key, found);
            }
        }
        ValueKind::Array(items) if items.iter().any(|item| matches!(item.kind, ValueKind::Table(_))) => {
            for (position, item) in items.iter().enumerate() {
                collect(
                    item,
                    format!("{key}[{}]", name_of(item).unwrap_or_else(|| position.to_string())),
                    found,
                );
            }
        }
        kind => found.push(Leaf {
            text: if is_hidden(&key) { hidden(kind) } else { toml(kind).to_string() },
            layer: value.origin().unwrap_or("defaults").to_owned(),
            key,
        }),
    }
}

/// The name of an entry in a list of tables.
pub(super) fn name_of(entry: &Value) -> Option<String> {
    match &entry.kind {
        ValueKind::Table(fields) => fields.get("name")?.clone().into_string().ok(),
        _ => None,
    }
}

/// Shows whether a secret is set, but not its value.
fn hidden(kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) if text.is_empty() => "\"\"".to_owned(),
        // `<key id>:<key>`: the id is not secret.
        ValueKind::Array(items) => {
            let entry = |item: &Value| match &item.kind {
                ValueKind::String(text) => text.split_once(':').map(|(id, _)| format!("{id}:***")),
                _ => None,
            };
            let shown: Vec<String> =
                items.iter().map(|item| entry(item).unwrap_or_else(|| "***".to_owned())).collect();
            toml::Value::from(shown).to_string()
        }
        _ => "\"***\"".to_owned(),
    }
}

fn toml(kind: &ValueKind) -> toml::Value {
    match kind {
        ValueKind::Boolean(flag) => (*flag).into(),
        ValueKind::I64(number) => (*number).into(),
        ValueKind::Float(number) => (*number).into(),
        ValueKind::String(text) => text.clone().into(),
        ValueKind::Array(items) => items.iter().map(|item| toml(&item.kind)).collect::<Vec<_>>().into(),
        // TOML has no other values; tables were split above.
        other => other.to_string().into(),
    }
}

pub(super) fn render(leaves: &[Leaf]) -> String {
    let mut text = String::new();
    let mut section = "";
    // TOML requires settings without a section before the first section.
    let (in_section, alone): (Vec<&Leaf>, Vec<&Leaf>) =
        leaves.iter().partition(|leaf| leaf.key.contains('.'));
    for leaf in alone.into_iter().chain(in_section) {
        let (of, name) = leaf.key.rsplit_once('.').unwrap_or(("", &leaf.key));
        if of != section {
            if !text.is_empty() {
                text.push('\n');
            }
            match of.split_once('[') {
                Some((list, _)) => text.push_str(&format!("[[{list}]]\n")),
                None => text.push_str(&format!("[{of}]\n")),
            }
            section = of;
        }
        text.push_str(&format!("{name} = {}  # {}\n", leaf.text, leaf.layer));
    }
    text
}
