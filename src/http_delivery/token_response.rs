//! Parses a token endpoint's answer (RFC 6749 sections 5.1 and 5.2): a token, or an error with the endpoint's message.

use std::collections::HashMap;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;

use super::body::{Body, End};
use crate::domain::redact;
use crate::domain::subscription::TokenType;

/// Lifetime of a token without a usable `expires_in`.
const ASSUMED_LIFETIME: Duration = Duration::from_secs(300);
/// Maximum lifetime, in seconds: a token that lives longer is fetched daily.
const LONGEST_LIFETIME: f64 = 86_400.0;
/// Maximum number of characters of the endpoint's message in an error.
const MOST_WORDS: usize = 256;

/// A token that is valid in a header.
#[derive(Debug)]
pub(super) struct GrantedToken {
    pub(super) token: SecretString,
    pub(super) lifetime: Duration,
}

/// An answer without a usable token. It may hold secrets; [`RawRefusal::redacted`] removes them.
#[derive(Debug)]
pub(super) struct RawRefusal {
    problem: TokenProblem,
    /// The endpoint's message.
    words: Option<String>,
}

/// An answer without a usable token, with a message that is safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}{}", .words.as_ref().map(|words| format!(": {words}")).unwrap_or_default())]
pub(super) struct TokenRefusal {
    problem: TokenProblem,
    words: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum TokenProblem {
    #[error("the token endpoint answered {0}")]
    Status(u16),
    #[error("the token endpoint answered {0} with an error")]
    ErrorWithSuccess(u16),
    #[error("the token endpoint's answer has no access_token")]
    NoToken,
    #[error("the token endpoint's answer has an access_token that is not a string")]
    NotAString,
    #[error("the token endpoint's answer has an empty access_token")]
    EmptyToken,
    #[error("the token endpoint's answer has an access_token that is not a valid header value")]
    InvalidToken,
    #[error("the token endpoint issued a token that is not a bearer token, but token_type is \"bearer\"")]
    NotABearerToken,
    #[error("the token endpoint's answer is larger than {0} bytes")]
    TooLong(usize),
    #[error("the token endpoint's answer timed out")]
    Late,
    #[error("the token endpoint's answer broke off")]
    Broken,
    #[error("the token endpoint's answer is empty")]
    Empty,
    #[error("the token endpoint's answer is form-encoded, not JSON")]
    FormEncoded,
    #[error("the token endpoint's answer is markup, not JSON")]
    Markup,
    #[error("the token endpoint's answer is not a JSON object")]
    NotAnObject,
}

impl From<TokenProblem> for RawRefusal {
    fn from(problem: TokenProblem) -> Self {
        Self { problem, words: None }
    }
}

impl RawRefusal {
    /// Redacts the secrets of the request, limits the length, and escapes control characters.
    pub(super) fn redacted(self, sent_secrets: &[SecretString]) -> TokenRefusal {
        let Self { problem, words } = self;
        let Some(words) = words else { return TokenRefusal { problem, words } };
        let secrets = sent_secrets.iter().map(|secret| secret.expose_secret());
        // A character has at most four bytes.
        let words = redact::excerpt(&words, false, secrets, MOST_WORDS * 4);
        let mut line = String::new();
        for character in words.trim().chars().take(MOST_WORDS) {
            match character {
                c if c.is_control() || is_bidi(c) => line.extend(c.escape_unicode()),
                c => line.push(c),
            }
        }
        TokenRefusal { problem, words: Some(line).filter(|line| !line.is_empty()) }
    }
}

/// True for characters that change the order in which a terminal shows text.
fn is_bidi(character: char) -> bool {
    matches!(character, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The members of the answer, unparsed: JSON allows numbers that no Rust type holds.
type Members<'a> = HashMap<String, &'a RawValue>;

/// Parses an answer with any status.
pub(super) fn read(status: u16, body: &Body, accepted: TokenType) -> Result<GrantedToken, RawRefusal> {
    let bytes = body.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body.bytes);
    let text = String::from_utf8_lossy(bytes);
    let members: Option<Members<'_>> = serde_json::from_str(&text).ok();
    let error = members.as_ref().and_then(error_of);
    if !(200..300).contains(&status) {
        let words = error.or_else(|| Some(text.clone().into_owned()));
        return Err(RawRefusal { problem: TokenProblem::Status(status), words });
    }
    // A successful answer may hold a token, so only its error is quoted.
    let Some(members) = members else { return Err(not_json(body, &text).into()) };
    let token = members.get("access_token").copied().and_then(string);
    let Some(token) = token else {
        let problem = match error {
            Some(_) => TokenProblem::ErrorWithSuccess(status),
            None if members.contains_key("access_token") => TokenProblem::NotAString,
            None => TokenProblem::NoToken,
        };
        return Err(RawRefusal { problem, words: error });
    };
    if token.is_empty() {
        return Err(RawRefusal { problem: TokenProblem::EmptyToken, words: error });
    }
    // RFC 6750 section 2.1 allows fewer characters, but some servers use other visible ones.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenProblem::InvalidToken.into());
    }
    let kind = members.get("token_type").copied().and_then(string);
    if accepted == TokenType::Bearer
        && let Some(kind) = kind.filter(|kind| !kind.trim().eq_ignore_ascii_case("bearer"))
    {
        return Err(RawRefusal { problem: TokenProblem::NotABearerToken, words: Some(kind) });
    }
    Ok(GrantedToken {
        token: token.into(),
        lifetime: lifetime(members.get("expires_in").map(|value| value.get())),
    })
}

/// The `error` member with its description.
fn error_of(members: &Members<'_>) -> Option<String> {
    let member = |name: &str| {
        let value = members.get(name).copied()?;
        // Some vendors send an object as the error: it is shown as JSON.
        let text = string(value).unwrap_or_else(|| value.get().to_owned());
        (!text.is_empty() && !matches!(text.as_str(), "null" | "false")).then_some(text)
    };
    let error = member("error")?;
    let description = member("error_description").or_else(|| member("message"));
    Some(match description {
        Some(description) => format!("{error} ({description})"),
        None => error,
    })
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn not_json(body: &Body, text: &str) -> TokenProblem {
    match body.end {
        End::TooLong => TokenProblem::TooLong(body.bytes.len()),
        End::Late => TokenProblem::Late,
        End::Broken => TokenProblem::Broken,
        End::Whole if text.trim().is_empty() => TokenProblem::Empty,
        End::Whole if text.starts_with("access_token=") || text.contains("&access_token=") => {
            TokenProblem::FormEncoded
        }
        End::Whole if text.trim_start().starts_with('<') => TokenProblem::Markup,
        End::Whole => TokenProblem::NotAnObject,
    }
}

/// Parses a number of seconds; it may be in quotes.
fn lifetime(expires_in: Option<&str>) -> Duration {
    let text = expires_in.map(|value| serde_json::from_str(value).unwrap_or_else(|_| value.to_owned()));
    let seconds: Option<f64> = text.and_then(|text: String| text.trim().parse().ok());
    match seconds {
        None => ASSUMED_LIFETIME,
        // `clamp` would return NaN.
        Some(seconds) if seconds.is_nan() => ASSUMED_LIFETIME,
        Some(seconds) => Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_LIFETIME)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: impl Into<Vec<u8>>) -> Body {
        Body { bytes: text.into(), end: End::Whole }
    }

    fn granted(text: &str) -> GrantedToken {
        read(200, &body(text), TokenType::Any)
            .unwrap_or_else(|refusal| panic!("{text}: {}", refusal.redacted(&[])))
    }

    fn refused(status: u16, body: &Body) -> String {
        let secrets = ["hush%21", "hush!"].map(SecretString::from);
        let Err(refusal) = read(status, body, TokenType::Any) else { panic!("a token") };
        refusal.redacted(&secrets).to_string()
    }

    #[test]
    fn expires_in_is_whatever_servers_write() {
        for (written, seconds) in [
            ("3600", 3600.0),
            (r#""3600""#, 3600.0),
            (r#"" 60 ""#, 60.0),
            ("59.5", 59.5),
            (r#""59.5""#, 59.5),
            ("0", 0.0),
            ("-0", 0.0),
            ("-1", 0.0),
            (r#""-1""#, 0.0),
            ("1e300", 86_400.0),
            ("1e999", 86_400.0),
            ("-1e999", 0.0),
            ("99999999999999999999999999999999999999999", 86_400.0),
            (r#""inf""#, 86_400.0),
            (r#""NaN""#, 300.0),
            (r#""soon""#, 300.0),
            (r#""""#, 300.0),
            ("null", 300.0),
            ("true", 300.0),
            ("[60]", 300.0),
            (r#"{"seconds":60}"#, 300.0),
        ] {
            let granted = granted(&format!(r#"{{"access_token":"t","expires_in":{written}}}"#));
            assert_eq!(granted.lifetime.as_secs_f64(), seconds, "{written}");
        }
        assert_eq!(granted(r#"{"access_token":"t"}"#).lifetime, ASSUMED_LIFETIME);
    }

    #[test]
    fn token_type_is_taken_as_bearer_unless_set_otherwise() {
        for kind in [r#""Bearer""#, r#""bearer""#, r#""BEARER ""#, "null", "7"] {
            let answer = body(format!(r#"{{"access_token":"t","token_type":{kind}}}"#));
            for accepted in [TokenType::Any, TokenType::Bearer] {
                assert_eq!(read(201, &answer, accepted).unwrap().token.expose_secret(), "t", "{kind}");
            }
        }
        for kind in ["", "mac", "DPoP", "N_A", "bearer-token", "JWT"] {
            let answer = body(format!(r#"{{"access_token":"t","token_type":"{kind}"}}"#));
            assert!(read(200, &answer, TokenType::Any).is_ok(), "{kind}");
            let refusal = read(200, &answer, TokenType::Bearer).unwrap_err().redacted(&[]).to_string();
            assert!(refusal.contains("not a bearer token") && refusal.ends_with(kind), "{refusal}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_in_the_endpoints_own_words() {
        let long = "y".repeat(100_000);
        for (status, answer, said) in [
            (200, r#"{"error":"invalid_client"}"#, "answered 200 with an error: invalid_client"),
            (200, r#"{"access_token":null,"error":"slow_down"}"#, "answered 200 with an error: slow_down"),
            (200, r#"{"access_token":"","error":"no"}"#, "an empty access_token: no"),
            (200, r#"{"access_token":""}"#, "an empty access_token"),
            (200, r#"{"access_token":7}"#, "not a string"),
            (200, "{}", "has no access_token"),
            (200, "[]", "is not a JSON object"),
            (200, "null", "is not a JSON object"),
            (200, "", "is empty"),
            (200, "eyJhbGciOi.secret.token", "is not a JSON object"),
            (200, r#"{"access_token":"t","expires_in":NaN}"#, "is not a JSON object"),
            (200, "access_token=secret&token_type=bearer", "is form-encoded, not JSON"),
            (200, "<html>secret</html>", "is markup, not JSON"),
            (200, r#"{"access_token":"a\r\nx-more: secret"}"#, "not a valid header value"),
            (200, r#"{"access_token":"a\u0000secret"}"#, "not a valid header value"),
            (200, r#"{"access_token":"sécret"}"#, "not a valid header value"),
            (200, r#"{"access_token":"a secret"}"#, "not a valid header value"),
            (
                400,
                r#"{"error":"invalid_scope","error_description":"no\u001b[31m \u202e"}"#,
                r"answered 400: invalid_scope (no\u{1b}[31m \u{202e})",
            ),
            (401, r#"{"error":"x","error_description":"hush! or hush%21"}"#, "answered 401: x (*** or ***)"),
            (401, r#"{"error":{"code":7},"message":"why"}"#, r#"answered 401: {"code":7} (why)"#),
            (401, "go away, hush!", "answered 401: go away, ***"),
            (500, "", "answered 500"),
            (302, "\r\n", "answered 302"),
            (503, long.as_str(), "answered 503: yyy"),
        ] {
            let text = refused(status, &body(answer));
            assert!(text.contains(said), "{status} {answer:.80}: {text}");
            assert!(text.len() < 400 && !text.contains("secret") && !text.contains("hush"), "{text}");
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{text:?}");
        }
        for (end, said) in
            [(End::TooLong, "larger than"), (End::Late, "timed out"), (End::Broken, "broke off")]
        {
            let text = refused(200, &Body { bytes: b"{\"access_token\":\"secret".to_vec(), end });
            assert!(text.contains(said) && !text.contains("secret"), "{text}");
        }
        let text = refused(400, &body(b"M\xfcller \xff\xfe".as_slice()));
        assert!(text.starts_with("the token endpoint answered 400: M"), "{text}");
    }

    #[test]
    fn an_answer_that_is_whole_counts_although_its_framing_is_not() {
        for end in [End::Late, End::Broken] {
            let answer = Body { bytes: b"\xef\xbb\xbf {\"access_token\":\"t\"} ".to_vec(), end };
            assert_eq!(read(200, &answer, TokenType::Any).unwrap().token.expose_secret(), "t");
        }
        let twice = granted(r#"{"access_token":"a","access_token":"b","error":null}"#);
        assert_eq!(twice.token.expose_secret(), "b");
    }
}
