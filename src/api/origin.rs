//! Protects an API without tokens against web pages. Such an API is open to every program on this machine, and a browser
//! runs code from anywhere. Its requests are recognized by their Host (DNS rebinding) and their Origin (cross-site
//! requests).

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, Uri, header};

use super::problem::{Problem, ProblemKind};

/// Media types that a page may send without a preflight request (Fetch standard, CORS-safelisted request-header).
const WITHOUT_PREFLIGHT: [&str; 3] =
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];

/// Refuses requests that a web page of another origin may have sent.
///
/// * `local`: the address that the caller connected to
/// * `allowed`: further names of the hub (`api.allowed_hosts`)
pub(super) fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    local: Option<IpAddr>,
    allowed: &[String],
) -> Result<(), Problem> {
    let host = one(headers, "host")?;
    let is_ours = |authority: &str| name_of(authority).is_some_and(|name| is_ours(name, local, allowed));
    let named = [host, uri.authority().map(|authority| authority.as_str())];
    let foreign = named.into_iter().flatten().find(|authority| !is_ours(authority));
    if let Some(foreign) = foreign {
        return Err(Problem::header(
            ProblemKind::Forbidden,
            "host",
            format!(
                "unknown name {foreign:?}, which is refused because this hub requires no token (api.anonymous = true); \
                 use its address or localhost, or add the name to api.allowed_hosts"
            ),
        ));
    }
    let Some(host) = host else {
        return Err(Problem::header(
            ProblemKind::Forbidden,
            "host",
            "the header is required, because this hub requires no token (api.anonymous = true); send it",
        ));
    };
    let from_elsewhere = |name: &str, what: &str| {
        Problem::header(
            ProblemKind::Forbidden,
            name,
            format!(
                "{what}, which is refused because this hub requires no token (api.anonymous = true); call the API from a \
                 program, or set api.anonymous = false and send a token"
            ),
        )
    };
    if let Some(origin) = one(headers, "origin")? {
        let same = origin.split_once("://").is_some_and(|(scheme, rest)| {
            matches!(scheme, "http" | "https") && rest.eq_ignore_ascii_case(host)
        });
        if !same {
            return Err(from_elsewhere("origin", &format!("the request comes from the web page {origin:?}")));
        }
    }
    let site = one(headers, "sec-fetch-site")?.unwrap_or("none");
    let is_link = method == Method::GET && one(headers, "sec-fetch-mode")? == Some("navigate");
    if !matches!(site, "none" | "same-origin") && !is_link {
        return Err(from_elsewhere("sec-fetch-site", "the request comes from a web page of another site"));
    }
    // A second line of defence: no request of this API can be sent without a preflight.
    let is_binary_event = headers.keys().any(|name| name.as_str().starts_with("ce-"));
    let media = one(headers, header::CONTENT_TYPE.as_str())?.unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if WITHOUT_PREFLIGHT.contains(&media.as_str()) && !is_binary_event {
        return Err(Problem::header(
            ProblemKind::UnsupportedMediaType,
            "content-type",
            format!("{media} is not supported; send JSON with `content-type: application/json`"),
        ));
    }
    Ok(())
}

/// A header's value. A repeated header is refused, because it is ambiguous.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::field(name, "is sent more than once; send it once"));
    }
    value.to_str().map(Some).map_err(|_| Problem::field(name, "must be visible ASCII"))
}

/// Removes the port: `[::1]` for `[::1]:8080`, `localhost.` for `localhost.:8080`.
fn name_of(authority: &str) -> Option<&str> {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    let bracketed = name.starts_with('[') && name.ends_with(']');
    (!name.is_empty() && !name.contains('@') && (bracketed || !name.contains(':'))).then_some(name)
}

fn is_ours(name: &str, local: Option<IpAddr>, allowed: &[String]) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        // A page from this address would come from the hub itself.
        return ip.is_loopback() || Some(ip) == local || allowed.iter().any(|known| known == bare);
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || allowed.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<(), u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(axum::http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let (method, uri) = (method.parse().unwrap(), uri.parse().unwrap());
        let local = Some(IpAddr::from([192, 168, 7, 9]));
        check(&method, &uri, &map, local, &["hub.internal".to_owned()])
            .map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn only_names_of_the_hub_are_accepted() {
        for host in [
            "127.0.0.1:8080",
            "127.0.0.9",
            "localhost",
            "localhost:8080",
            "LOCALHOST.:8080",
            "[::1]:8080",
            "192.168.7.9:8080",
            "hub.internal",
            "HUB.internal:80",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert_eq!(answer("GET", "/v1/domains", &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "127.0.0.1@evil.example",
            "192.168.7.8",
            "0.0.0.0",
            "[2001:db8::1]:8080",
            "",
            ":8080",
            "127.0.0.1:80:80",
            "2130706433",
            "0x7f000001",
        ] {
            assert_eq!(answer("GET", "/v1/domains", &[("host", host)]), Err(403), "{host}");
        }
        assert_eq!(answer("GET", "/v1/domains", &[]), Err(403));
        assert_eq!(answer("GET", "/", &[("host", "localhost"), ("host", "evil.example")]), Err(400));
        assert_eq!(answer("GET", "http://evil.example/v1/domains", &[("host", "localhost")]), Err(403));
    }

    #[test]
    fn requests_of_other_pages_are_refused() {
        let host = ("host", "127.0.0.1:8080");
        for origin in ["http://127.0.0.1:8080", "https://127.0.0.1:8080"] {
            assert_eq!(answer("POST", "/", &[host, ("origin", origin)]), Ok(()), "{origin}");
        }
        for origin in [
            "null",
            "http://evil.example",
            "http://127.0.0.1:8081",
            "http://localhost:8080",
            "http://127.0.0.1",
            "file://127.0.0.1:8080",
            "127.0.0.1:8080",
            "",
        ] {
            for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS"] {
                assert_eq!(answer(method, "/", &[host, ("origin", origin)]), Err(403), "{method} {origin}");
            }
        }
        for site in ["cross-site", "same-site", "whatever"] {
            assert_eq!(answer("POST", "/", &[host, ("sec-fetch-site", site)]), Err(403), "{site}");
            let link = [host, ("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
            assert_eq!(answer("GET", "/", &link), Ok(()), "a link may be followed");
            assert_eq!(answer("POST", "/", &link), Err(403), "a form may not be sent");
        }
    }

    #[test]
    fn media_types_without_preflight_are_refused() {
        let host = ("host", "localhost");
        for media in [
            "text/plain",
            "Text/Plain; charset=utf-8",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ] {
            assert_eq!(answer("POST", "/", &[host, ("content-type", media)]), Err(415), "{media}");
            // A page needs a preflight before it may send another header.
            assert_eq!(answer("POST", "/", &[host, ("content-type", media), ("ce-id", "1")]), Ok(()));
        }
        assert_eq!(answer("POST", "/", &[host, ("content-type", "application/json")]), Ok(()));
    }
}
