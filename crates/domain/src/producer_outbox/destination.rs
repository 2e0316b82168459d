//! Destinations at an external broker (setting `destination`): subjects, topics, streams or routing keys.

use serde::Deserialize;

use super::name_rules::NameRules;
use crate::field_error::FieldError;

/// A parsed template: text with the placeholders `{type}`, `{category}`, `{stream}` and `{tenant}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pieces: Vec<Piece>,
    names: NameRules,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Type,
    Category,
    Stream,
    Tenant,
}

/// The tenant of events without one.
const DEFAULT_TENANT: &str = "default";
const PLACEHOLDERS: &str = "{type}, {category}, {stream} and {tenant}";

/// The fields of an envelope that a destination may need.
#[derive(Debug, Default, Deserialize)]
struct Facts {
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    domain: Domain,
    #[serde(default)]
    extensions: Extensions,
}

#[derive(Debug, Default, Deserialize)]
struct Domain {
    stream_category: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Extensions {
    tenant: Option<String>,
}

impl Destination {
    /// Parses a template, such as `events.{category}`. The error names the field `destination`.
    pub fn parse(template: &str) -> Result<Self, FieldError> {
        let refuse = |problem: String| Err(FieldError::new("destination", problem));
        let (mut pieces, mut rest) = (Vec::new(), template);
        while let Some(at) = rest.find(['{', '}']) {
            let (text, placeholder) = rest.split_at(at);
            if !text.is_empty() {
                pieces.push(Piece::Text(text.to_owned()));
            }
            let Some(end) = placeholder.find('}').filter(|_| placeholder.starts_with('{')) else {
                return refuse(format!("{template:?} has a brace without its other; write {PLACEHOLDERS}"));
            };
            pieces.push(match &placeholder[..=end] {
                "{type}" => Piece::Type,
                "{category}" => Piece::Category,
                "{stream}" => Piece::Stream,
                "{tenant}" => Piece::Tenant,
                other => return refuse(format!("{other} is not known; write {PLACEHOLDERS}")),
            });
            rest = &placeholder[end + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        if pieces.is_empty() {
            return refuse(format!("is empty; write a name, or a template with {PLACEHOLDERS}"));
        }
        Ok(Self { pieces, names: NameRules::Any })
    }

    /// Applies the name rules of a broker: values of placeholders are escaped with [`NameRules::part`].
    ///
    /// The error names the field `destination`: its literal text contains a character that the rules do not allow, or a dot
    /// without a token on both sides.
    pub fn with_names(self, names: NameRules) -> Result<Self, FieldError> {
        for piece in &self.pieces {
            if let Piece::Text(text) = piece {
                names.check_text(text)?;
            }
        }
        // A value of a placeholder is never empty, and its dots at the ends are escaped.
        let sample: String = self
            .pieces
            .iter()
            .map(|piece| if let Piece::Text(text) = piece { text.as_str() } else { "x" })
            .collect();
        names.check_tokens(&sample)?;
        Ok(Self { names, ..self })
    }

    /// Renders the destination of one row.
    ///
    /// * `event_type`: the event key
    /// * `stream`: the row's stream
    /// * `envelope`: the row's envelope as JSON, parsed only for `{category}` and `{tenant}`. The category is
    ///   `metadata.domain.stream_category`, or else the resource of the event key; the tenant is
    ///   `metadata.extensions.tenant`, or else `default`.
    ///
    /// Fails if the envelope cannot be parsed.
    pub fn render(
        &self,
        event_type: &str,
        stream: &str,
        envelope: &str,
    ) -> Result<String, serde_json::Error> {
        let asks = self.pieces.iter().any(|piece| matches!(piece, Piece::Category | Piece::Tenant));
        let Metadata { domain, extensions } =
            if asks { serde_json::from_str::<Facts>(envelope)?.metadata } else { Metadata::default() };
        let resource = event_type.split('.').next().unwrap_or(event_type);
        let mut rendered = String::new();
        for piece in &self.pieces {
            let text = match piece {
                Piece::Text(text) => {
                    rendered.push_str(text);
                    continue;
                }
                Piece::Type => event_type,
                Piece::Category => domain.stream_category.as_deref().unwrap_or(resource),
                Piece::Stream => stream,
                Piece::Tenant => extensions.tenant.as_deref().unwrap_or(DEFAULT_TENANT),
            };
            rendered.push_str(&self.names.part(text));
        }
        Ok(rendered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = r#"{"data": {}, "metadata": {"domain": {"stream_category": null}, "extensions": {}}}"#;
    const FULL: &str =
        r#"{"metadata": {"domain": {"stream_category": "crm"}, "extensions": {"tenant": "acme", "n": 1}}}"#;

    fn rendered(template: &str, envelope: &str) -> String {
        let destination = Destination::parse(template).unwrap();
        destination.render("user.created", "user-u1", envelope).unwrap()
    }

    #[test]
    fn each_placeholder_is_filled() {
        assert_eq!(rendered("{type}", "not read"), "user.created");
        assert_eq!(rendered("{stream}", "not read"), "user-u1");
        assert_eq!(rendered("{category}", BARE), "user");
        assert_eq!(rendered("{category}", FULL), "crm");
        assert_eq!(rendered("{tenant}", BARE), "default");
        assert_eq!(rendered("a.{tenant}.{category}-{type}.z", FULL), "a.acme.crm-user.created.z");
        assert_eq!(rendered("plain", "not read"), "plain");
    }

    #[test]
    fn what_fills_a_template_becomes_a_legal_name() {
        let destination = Destination::parse("events.{category}.{stream}").unwrap();
        let envelope = r#"{"metadata": {"domain": {"stream_category": "crm::user"}}}"#;
        let rendered = |names| {
            let destination = destination.clone().with_names(names).unwrap();
            destination.render("user.created", "user 1", envelope).unwrap()
        };
        assert_eq!(rendered(NameRules::Any), "events.crm::user.user 1");
        assert_eq!(rendered(NameRules::Subject), "events.crm::user.user%201");
        assert_eq!(rendered(NameRules::Topic), "events.crm_.3A_.3Auser.user_.201");
        let error = Destination::parse("a:{type}").unwrap().with_names(NameRules::Topic).unwrap_err();
        assert_eq!(error.field, "destination");
    }

    #[test]
    fn a_subject_has_no_empty_token() {
        for name in [".a", "a.", "a..b", ".", "..", ".{type}", "{type}.", "a..{type}", "{type}..{stream}"] {
            let named = |names| Destination::parse(name).unwrap().with_names(names);
            let error = named(NameRules::Subject).unwrap_err();
            assert_eq!(error.field, "destination", "{name}");
            assert!(named(NameRules::Any).is_ok() && named(NameRules::Topic).is_ok(), "{name}");
        }
        for name in ["a", "a.b", "a.{type}.b", "{type}{stream}", "{tenant}.{type}"] {
            assert!(Destination::parse(name).unwrap().with_names(NameRules::Subject).is_ok(), "{name}");
        }
    }

    #[test]
    fn invalid_templates_are_rejected() {
        for (template, problem) in [
            ("", "is empty"),
            ("{typ}", "{typ} is not known; write {type}"),
            ("a{type", "a brace without its other"),
            ("a}", "a brace without its other"),
            ("}{type}", "a brace without its other"),
        ] {
            let error = Destination::parse(template).unwrap_err();
            assert_eq!(error.field, "destination");
            assert!(error.problem.contains(problem), "{template:?}: {error}");
        }
    }

    #[test]
    fn an_envelope_that_cannot_be_read_is_an_error() {
        assert!(Destination::parse("{category}").unwrap().render("a.b", "s", "{").is_err());
    }
}
