//! What a token endpoint answered (RFC 6749 sections 5.1 and 5.2): a token, or a refusal in the endpoint's own words.

use std::collections::HashMap;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;

use super::body::{Body, End};
use crate::domain::redact;
use crate::domain::subscription::TokenType;

/// Where the answer has no `expires_in` that is a number of seconds.
const ASSUMED_LIFETIME: Duration = Duration::from_secs(300);
/// A token that lives longer is asked for again daily.
const LONGEST_LIFETIME: f64 = 86_400.0;
/// Most characters of the endpoint's own words in an error.
const MOST_WORDS: usize = 256;

/// A token that can be sent.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: SecretString,
    pub(super) lifetime: Duration,
}

/// Why the answer is no token. Nobody sees it before its words are cleared of secrets: [`Refusal::text`].
#[derive(Debug)]
pub(super) struct Refusal {
    problem: String,
    /// The endpoint's own words.
    words: Option<String>,
}

impl Refusal {
    fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), words: None }
    }

    /// One line for people: without the secrets of the request, bounded, and with control characters escaped.
    pub(super) fn text(&self, sent_secrets: &[SecretString]) -> String {
        let Some(words) = &self.words else { return self.problem.clone() };
        let secrets = sent_secrets.iter().map(|secret| secret.expose_secret());
        // A character has four bytes at most.
        let words = redact::excerpt(words, false, secrets, MOST_WORDS * 4);
        let mut line = String::new();
        for character in words.trim().chars().take(MOST_WORDS) {
            match character {
                c if c.is_control() || is_bidi(c) => line.extend(c.escape_unicode()),
                c => line.push(c),
            }
        }
        if line.is_empty() { self.problem.clone() } else { format!("{}: {line}", self.problem) }
    }
}

/// Characters that change the order in which a terminal shows others.
fn is_bidi(character: char) -> bool {
    matches!(character, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The members of the answer. Each value as it is written: a number may be one that JSON allows and no type holds.
type Members<'a> = HashMap<String, &'a RawValue>;

/// Reads an answer with any status.
pub(super) fn read(status: u16, body: &Body, accepted: TokenType) -> Result<Granted, Refusal> {
    let bytes = body.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body.bytes);
    let text = String::from_utf8_lossy(bytes);
    let members: Option<Members<'_>> = serde_json::from_str(&text).ok();
    let error = members.as_ref().and_then(error_of);
    if !(200..300).contains(&status) {
        let words = error.or_else(|| Some(text.clone().into_owned()));
        return Err(Refusal { problem: format!("the token endpoint answered {status}"), words });
    }
    // Of a success nothing is repeated but an error: the rest may be a token.
    let Some(members) = members else { return Err(Refusal::new(no_json(body, &text))) };
    let token = members.get("access_token").copied().and_then(string);
    let Some(token) = token else {
        let problem = match error {
            Some(_) => format!("the token endpoint answered {status} with an error"),
            None if members.contains_key("access_token") => {
                "the token endpoint's answer has an access_token that is not a string".to_owned()
            }
            None => "the token endpoint's answer has no access_token".to_owned(),
        };
        return Err(Refusal { problem, words: error });
    };
    if token.is_empty() {
        let problem = "the token endpoint's answer has an empty access_token";
        return Err(Refusal { problem: problem.to_owned(), words: error });
    }
    // RFC 6750 section 2.1 is narrower; some tokens hold other visible characters.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::new(
            "the token endpoint's answer has an access_token with characters that no header may carry",
        ));
    }
    let kind = members.get("token_type").copied().and_then(string);
    if accepted == TokenType::Bearer
        && let Some(kind) = kind.filter(|kind| !kind.trim().eq_ignore_ascii_case("bearer"))
    {
        let problem = "the token endpoint gave a token that is not a bearer token, which token_type = \"bearer\" asks for";
        return Err(Refusal { problem: problem.to_owned(), words: Some(kind) });
    }
    Ok(Granted {
        token: token.into(),
        lifetime: lifetime(members.get("expires_in").map(|value| value.get())),
    })
}

/// `error`, and what else says why.
fn error_of(members: &Members<'_>) -> Option<String> {
    let member = |name: &str| {
        let value = members.get(name).copied()?;
        // An error that is an object, as some vendors have it, is shown as it is written.
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

fn no_json(body: &Body, text: &str) -> String {
    let problem = match body.end {
        End::TooLong => return format!("the token endpoint answered more than {} bytes", body.bytes.len()),
        End::Late => "the token endpoint's answer did not come to its end",
        End::Broken => "the token endpoint's answer broke off",
        End::Whole if text.trim().is_empty() => "the token endpoint's answer is empty",
        End::Whole if text.starts_with("access_token=") || text.contains("&access_token=") => {
            "the token endpoint's answer is form-encoded, and not JSON"
        }
        End::Whole if text.trim_start().starts_with('<') => {
            "the token endpoint's answer is markup, and not JSON"
        }
        End::Whole => "the token endpoint's answer is not a JSON object",
    };
    problem.to_owned()
}

/// A number of seconds, also as a string.
fn lifetime(expires_in: Option<&str>) -> Duration {
    let text = expires_in.map(|value| serde_json::from_str(value).unwrap_or_else(|_| value.to_owned()));
    let seconds: Option<f64> = text.and_then(|text: String| text.trim().parse().ok());
    match seconds {
        // Not in `clamp`, which keeps it.
        None => ASSUMED_LIFETIME,
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

    fn granted(text: &str) -> Granted {
        read(200, &body(text), TokenType::Any).unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"))
    }

    fn refused(status: u16, body: &Body) -> String {
        let secrets = ["hush%21", "hush!"].map(SecretString::from);
        read(status, body, TokenType::Any).expect_err("it is no token").text(&secrets)
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
            let refusal = read(200, &answer, TokenType::Bearer).unwrap_err().text(&[]);
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
            (200, "access_token=secret&token_type=bearer", "is form-encoded, and not JSON"),
            (200, "<html>secret</html>", "is markup, and not JSON"),
            (200, r#"{"access_token":"a\r\nx-more: secret"}"#, "characters that no header may carry"),
            (200, r#"{"access_token":"a\u0000secret"}"#, "characters that no header may carry"),
            (200, r#"{"access_token":"sécret"}"#, "characters that no header may carry"),
            (200, r#"{"access_token":"a secret"}"#, "characters that no header may carry"),
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
            [(End::TooLong, "more than"), (End::Late, "come to its end"), (End::Broken, "broke off")]
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
