//! `hub dlt show`

use super::select::explain;
use crate::cli::error::{Answer, CliError};
use crate::cli::manage;
use crate::cli::output::Printer;
use crate::printable;
use crate::settings::Settings;

pub(super) async fn run(id: &str, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let details = manage(settings).await?.show_dead_letter(id, None).await.map_err(explain)?;
    if printer.is_json() {
        printer.json(&details)?;
        return Ok(Answer::Yes);
    }
    let event = details.event().map(|event| indented(event.get()));
    printer.fields(&details.without_event().map_err(|error| CliError::Output(error.into()))?)?;
    if let Some(event) = event {
        printer.lines("\nEVENT")?;
        printer.lines(&printable::json_text(&event))?;
    }
    Ok(Answer::Yes)
}

/// Lays out a JSON text in lines. Its tokens stay as they are; a parser would change numbers and members that occur twice.
fn indented(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let line = |text: &mut String, depth: usize| {
        text.push('\n');
        // Deeper levels would only move the text out of sight.
        text.extend(std::iter::repeat_n("  ", depth.min(20)));
    };
    let mut rest = json.chars().peekable();
    while let Some(c) = rest.next() {
        if in_string {
            text.push(c);
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        match c {
            ' ' | '\t' | '\r' | '\n' => {}
            '{' | '[' => {
                text.push(c);
                while rest.next_if(|c| matches!(c, ' ' | '\t' | '\r' | '\n')).is_some() {}
                match rest.next_if(|c| matches!(c, '}' | ']')) {
                    Some(end) => text.push(end),
                    None => {
                        depth += 1;
                        line(&mut text, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ => {
                in_string = c == '"';
                text.push(c);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_layout_is_the_usual_one_and_changes_no_token() {
        for value in [
            json!({"a": [1, {"b": []}, {}], "c": "x, {\"y\": [1]} \\", "\"": null, "d": [[true]]}),
            json!([]),
            json!("\\\""),
        ] {
            let pretty = serde_json::to_string_pretty(&value).expect("JSON");
            assert_eq!(indented(&value.to_string()), pretty);
            assert_eq!(indented(&pretty), pretty);
        }
        let odd = indented(r#"{"a":1e400,"a":"\ud800","n":1.10}"#);
        assert_eq!(odd, "{\n  \"a\": 1e400,\n  \"a\": \"\\ud800\",\n  \"n\": 1.10\n}");
        let _: Value = serde_json::from_str(&indented(r#"[{"a":"\u0022"}]"#)).expect("JSON");
    }
}
