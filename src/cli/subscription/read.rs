//! Reads and checks the subscriptions of a file, and collects all problems.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use crate::cli::error::CliError;
use crate::cli::read_input;
use crate::domain::strict_json::{self, StrictJsonError};
use crate::domain::subscription::Subscription;
use crate::management::read_subscription;
use crate::settings::Settings;

/// Reads and checks all subscriptions of a file. A secret `***`, which keeps its stored value, is returned as an empty sealed
/// secret.
pub(super) fn read(file: &Path, settings: &Settings) -> Result<Vec<Subscription>, CliError> {
    let document = document(file);
    let invalid = |problems| CliError::Invalid { document: document.clone(), problems };
    let bytes = read_input(file)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| invalid(vec!["not UTF-8 text; save the file as UTF-8".to_owned()]))?;
    // Some editors write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let values = parse(text, file).map_err(|problem| invalid(vec![problem]))?;
    if values.is_empty() {
        return Err(invalid(vec!["no subscription found; add at least one".to_owned()]));
    }

    let (mut subscriptions, mut problems) = (Vec::new(), Vec::new());
    let mut names = HashSet::new();
    for (position, value) in values.into_iter().enumerate() {
        let label = label(position, value.get("id").and_then(Value::as_str));
        match read_subscription(settings, value) {
            Ok(subscription) if !names.insert((subscription.tenant.clone(), subscription.id.clone())) => {
                problems
                    .push(format!("{label}: id: occurs more than once in the file; remove one of the two"));
            }
            Ok(subscription) => subscriptions.push(subscription),
            Err(errors) => problems.extend(errors.into_iter().map(|error| format!("{label}: {error}"))),
        }
    }
    if problems.is_empty() { Ok(subscriptions) } else { Err(invalid(problems)) }
}

/// The file in errors.
pub(super) fn document(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

/// The subscription at a position of the file in errors, such as `subscription 1 ("crm")`.
pub(super) fn label(position: usize, id: Option<&str>) -> String {
    let number = position + 1;
    match id {
        Some(id) => format!("subscription {number} ({id:?})"),
        None => format!("subscription {number}"),
    }
}

/// Parses one subscription, a list, or `{"subscriptions": […]}`, in JSON or TOML.
fn parse(text: &str, file: &Path) -> Result<Vec<Value>, String> {
    let start = text.trim_start();
    // A TOML table's header begins with a bracket as well, but never with `[{` or `[]`.
    let looks_like_json = start.starts_with('{')
        || start.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(['{', ']']));
    let is_json = match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => true,
        Some("toml") => false,
        Some("yaml" | "yml") => return Err("YAML is not supported; write JSON or TOML".to_owned()),
        _ => looks_like_json,
    };
    let value: Value = if is_json {
        strict_json::parse(text.as_bytes()).map_err(|error| match error {
            StrictJsonError::Duplicate { .. } => error.to_string(),
            StrictJsonError::Syntax(error) => format!("not valid JSON: {error}"),
        })?
    } else {
        // Display of the error quotes the line, which may hold a secret.
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let what = if looks_like_toml(text) { "not valid TOML" } else { "neither JSON nor TOML" };
            format!("{what}: line {line}: {}", error.message())
        })?;
        serde_json::to_value(table).map_err(|error| format!("conversion of TOML failed: {error}"))?
    };
    Ok(match value {
        Value::Array(list) => list,
        Value::Object(mut members) => match members.remove("subscriptions") {
            Some(Value::Array(list)) if members.is_empty() => list,
            Some(Value::Array(_)) => {
                let others: Vec<&str> = members.keys().map(String::as_str).collect();
                return Err(format!(
                    "unknown keys beside \"subscriptions\": {}; move each into its subscription",
                    others.join(", ")
                ));
            }
            Some(_) => return Err("subscriptions: must be a list".to_owned()),
            None => vec![Value::Object(members)],
        },
        other => vec![other],
    })
}

/// True if a line looks like TOML: a table or a key with a value.
fn looks_like_toml(text: &str) -> bool {
    text.lines().map(str::trim_start).any(|line| line.starts_with('[') || line.contains('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_and_yaml_are_refused_in_plain_words() {
        let error = ids(r#"{"id":"a","delivery":{"url":"x","url":"y"}}"#, "x.json").unwrap_err();
        assert_eq!(error, "delivery.url: occurs twice; remove one of the two");
        let error = ids("id = 'a'\nid = 'b'", "x.toml").unwrap_err();
        assert!(error.contains("line 2") && error.contains("duplicate key"), "{error}");
        assert!(ids("id: a", "x.yaml").unwrap_err().contains("YAML is not supported"));
        assert!(ids("id: a", "-").unwrap_err().starts_with("neither JSON nor TOML: line 1"));
        assert_eq!(ids(r#"[{"n":[1,-1,1.5,true,null,{}],"id":"a"}]"#, "-"), Ok(vec!["a".to_owned()]));
    }

    fn ids(text: &str, file: &str) -> Result<Vec<String>, String> {
        let values = parse(text, Path::new(file))?;
        Ok(values.iter().map(|value| value["id"].as_str().unwrap_or("?").to_owned()).collect())
    }

    #[test]
    fn one_or_many_as_json_or_toml() {
        assert_eq!(ids(r#"{"id":"a"}"#, "-"), Ok(vec!["a".to_owned()]));
        assert_eq!(ids(r#" [ {"id":"a"}, {"id":"b"}]"#, "-"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(ids(r#"{"subscriptions":[{"id":"a"}]}"#, "x.json"), Ok(vec!["a".to_owned()]));
        assert_eq!(ids("id = 'a'\n[delivery]\nurl = 'x'", "-"), Ok(vec!["a".to_owned()]));
        assert_eq!(ids("[delivery]\nurl = 'x'", "-"), Ok(vec!["?".to_owned()]));
        let two = "[[subscriptions]]\nid = 'a'\n[[subscriptions]]\nid = 'b'";
        assert_eq!(ids(two, "x.toml"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(ids("[]", "-"), Ok(vec![]));
    }

    #[test]
    fn a_syntax_error_names_the_line_and_quotes_nothing() {
        let error = ids("id = 'a'\ntoken = 'hush' hush", "x.toml").unwrap_err();
        assert!(error.contains("line 2") && !error.contains("hush"), "{error}");
        let error = ids("{\"id\":\n \"hush\" \"hush\"}", "x.json").unwrap_err();
        assert!(error.contains("line 2") && !error.contains("hush"), "{error}");
        assert!(ids("tenant = 'x'\n[[subscriptions]]\nid = 'a'", "-").unwrap_err().contains("tenant"));
    }
}
