//! From a file to subscriptions that may be written: read and checked, with every problem told.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use crate::cli::error::CliError;
use crate::cli::read_input;
use crate::domain::subscription::Subscription;
use crate::management::read_subscription;
use crate::settings::Settings;

/// Reads and checks all subscriptions of a file. A secret that is to be kept comes out sealed and
/// empty.
pub(super) fn read(file: &Path, settings: &Settings) -> Result<Vec<Subscription>, CliError> {
    let document =
        if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let invalid = |problems| CliError::Invalid { document: document.clone(), problems };
    let bytes = read_input(file)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid(vec!["it is not UTF-8 text".to_owned()]))?;
    let values = parse(text, file).map_err(|problem| invalid(vec![problem]))?;
    if values.is_empty() {
        return Err(invalid(vec!["it holds no subscription".to_owned()]));
    }

    let (mut subscriptions, mut problems) = (Vec::new(), Vec::new());
    let mut names = HashSet::new();
    for (position, value) in values.into_iter().enumerate() {
        let label = label(position, &value);
        match read_subscription(settings, value) {
            Ok(subscription) if !names.insert((subscription.tenant.clone(), subscription.id.clone())) => {
                problems.push(format!("{label}: id: stands in the file twice; take one of the two out"));
            }
            Ok(subscription) => subscriptions.push(subscription),
            Err(errors) => problems.extend(errors.into_iter().map(|error| format!("{label}: {error}"))),
        }
    }
    if problems.is_empty() { Ok(subscriptions) } else { Err(invalid(problems)) }
}

fn label(position: usize, value: &Value) -> String {
    let number = position + 1;
    match value.get("id").and_then(Value::as_str) {
        Some(id) => format!("subscription {number} ({id:?})"),
        None => format!("subscription {number}"),
    }
}

/// One subscription, a list, or `{"subscriptions": […]}`, as JSON or TOML.
fn parse(text: &str, file: &Path) -> Result<Vec<Value>, String> {
    let start = text.trim_start();
    // A TOML table's header begins with a bracket as well, but never with `[{` or `[]`.
    let looks_like_json = start.starts_with('{')
        || start.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(['{', ']']));
    let is_json = match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => true,
        Some("toml") => false,
        _ => looks_like_json,
    };
    let value: Value = if is_json {
        serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?
    } else {
        // The error's own text quotes the line, which may hold a secret.
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            format!("it is not TOML: line {line}: {}", error.message())
        })?;
        serde_json::to_value(table).map_err(|error| format!("it cannot be read: {error}"))?
    };
    Ok(match value {
        Value::Array(list) => list,
        Value::Object(mut members) => match members.remove("subscriptions") {
            Some(Value::Array(list)) if members.is_empty() => list,
            Some(Value::Array(_)) => {
                let others: Vec<&str> = members.keys().map(String::as_str).collect();
                return Err(format!(
                    "beside \"subscriptions\" it holds {}; put each into its subscription",
                    others.join(", ")
                ));
            }
            Some(_) => return Err("\"subscriptions\" must be a list".to_owned()),
            None => vec![Value::Object(members)],
        },
        other => vec![other],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
