//! What a web page must not do: an API that asks for no token is open to whatever runs on this machine, and a
//! browser runs what anybody wrote. Its requests are told by their Host (a name that an attacker has pointed here) and
//! their Origin (another page).

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, Uri, header};

use super::problem::{Kind, Problem};

/// What a form or a script sends without asking first (Fetch standard, CORS-safelisted request-header).
const SENT_WITHOUT_ASKING: [&str; 3] =
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];

/// Refuses what a web page elsewhere may have sent. `local`: the address that the caller has connected to;
/// `allowed`: further names of the hub (`api.allowed_hosts`).
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
        return Err(Problem::new(
            Kind::Forbidden,
            format!(
                "{foreign:?} is not a name of this hub, which asks callers for no token (api.anonymous); call it by its address \
                 or as localhost, or add the name to api.allowed_hosts"
            ),
        ));
    }
    let Some(host) = host else {
        return Err(Problem::new(
            Kind::Forbidden,
            "the request has no Host header, and this hub asks callers for no token (api.anonymous); send it",
        ));
    };
    let from_elsewhere = |what: &str| {
        Problem::new(
            Kind::Forbidden,
            format!(
                "{what}, and this hub asks callers for no token (api.anonymous): a web page may not use it; call it from a \
                 program, or set api.anonymous = false and send a token"
            ),
        )
    };
    if let Some(origin) = one(headers, "origin")? {
        let same = origin.split_once("://").is_some_and(|(scheme, rest)| {
            matches!(scheme, "http" | "https") && rest.eq_ignore_ascii_case(host)
        });
        if !same {
            return Err(from_elsewhere(&format!("the request comes from the web page {origin:?}")));
        }
    }
    let site = one(headers, "sec-fetch-site")?.unwrap_or("none");
    let is_link = method == Method::GET && one(headers, "sec-fetch-mode")? == Some("navigate");
    if !matches!(site, "none" | "same-origin") && !is_link {
        return Err(from_elsewhere("the request comes from a web page elsewhere"));
    }
    // Whatever else is forgotten: what a page can send unasked is no request of this API.
    let is_binary_event = headers.keys().any(|name| name.as_str().starts_with("ce-"));
    let media = one(headers, header::CONTENT_TYPE.as_str())?.unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if SENT_WITHOUT_ASKING.contains(&media.as_str()) && !is_binary_event {
        return Err(Problem::new(
            Kind::UnsupportedMediaType,
            format!(
                "{media} is what a web page can send unasked; send JSON, with `content-type: application/json`"
            ),
        ));
    }
    Ok(())
}

/// A header's value; given twice it could mean two things.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::field(name, "is given twice; give it once"));
    }
    value.to_str().map(Some).map_err(|_| Problem::field(name, "holds other than visible ASCII"))
}

/// `[::1]` of `[::1]:8080`, `localhost` of `localhost.:8080`.
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
        // A page that is served from there would be the hub's own.
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
    fn only_names_of_the_hub_itself_are_answered() {
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
    fn no_other_page_is_answered() {
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
    fn what_a_page_can_send_unasked_is_no_request() {
        let host = ("host", "localhost");
        for media in [
            "text/plain",
            "Text/Plain; charset=utf-8",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ] {
            assert_eq!(answer("POST", "/", &[host, ("content-type", media)]), Err(415), "{media}");
            // A page has to ask before it may send another header.
            assert_eq!(answer("POST", "/", &[host, ("content-type", media), ("ce-id", "1")]), Ok(()));
        }
        assert_eq!(answer("POST", "/", &[host, ("content-type", "application/json")]), Ok(()));
    }
}
