//! Checks the parameters of a database URL. sqlx ignores an unknown one of PostgreSQL, and logs it with its value, which
//! may be a password.

/// Parameters of PostgreSQL that sqlx knows. `options[<name>]` sets one server setting.
const POSTGRES: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];
const SQLITE: [&str; 4] = ["mode", "cache", "immutable", "vfs"];
/// Maximum length of a name that an error repeats.
const MAX_NAME: usize = 64;

/// A parameter that no connection would use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown parameter{}; remove it, or write one of {known}", shown(name))]
pub struct UnknownParameter {
    /// `None` if it has no value: then the name may be a part of a password.
    name: Option<String>,
    known: String,
}

fn shown(name: &Option<String>) -> String {
    name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default()
}

/// Checks the parameters of a database URL. The error never contains a value. A URL of an unknown scheme has no known
/// parameters, and is not checked.
pub fn check_parameters(url: &str) -> Result<(), UnknownParameter> {
    let is_sqlite = url.starts_with("sqlite:");
    let known: &[&str] = match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => &POSTGRES,
        Some("sqlite") => &SQLITE,
        _ => return Ok(()),
    };
    let Some((_, query)) = url.split_once('?') else { return Ok(()) };
    // Only URLs of PostgreSQL have a fragment.
    let query = if is_sqlite { query } else { query.split('#').next().unwrap_or_default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map(|(name, _)| name);
        // An encoded name is unknown, because nobody needs one.
        let is_known = name.is_some_and(|name| {
            known.contains(&name) || (!is_sqlite && (name == "options" || name.starts_with("options[")))
        });
        if !is_known {
            let is_name = |name: &&str| {
                (1..=MAX_NAME).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
            };
            return Err(UnknownParameter {
                name: name.filter(is_name).map(str::to_owned),
                known: known.join(", "),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_parameters_are_accepted() {
        for name in POSTGRES.into_iter().chain(["options", "options[search_path]"]) {
            assert_eq!(check_parameters(&format!("postgres://u:p@h/db?sslmode=require&{name}=x")), Ok(()));
        }
        for name in SQLITE {
            assert_eq!(check_parameters(&format!("sqlite:///a/b.db?{name}=x")), Ok(()));
        }
        for url in ["postgres://u:p@h/db", "postgresql://h?", "sqlite::memory:", "mysql://h?a=b", "", "h"] {
            assert_eq!(check_parameters(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_named_without_its_value() {
        for (parameter, named) in [
            ("pasword=hush", Some("pasword")),
            ("sslpassword=hush", Some("sslpassword")),
            ("PASSWORD=hush", Some("PASSWORD")),
            ("connect_timeout=hush", Some("connect_timeout")),
            ("hush", None),
            ("hush%3D=hush", None),
            ("p%61ssword=hush", None),
            ("=hush", None),
        ] {
            for url in ["postgres://u:hush@h/db?sslmode=require&", "postgresql://h?", "sqlite:/hush.db?"] {
                let error = check_parameters(&format!("{url}{parameter}")).expect_err(parameter);
                assert_eq!(error.name.as_deref(), named, "{url}{parameter}");
                assert!(!error.to_string().contains("hush"), "{error}");
            }
        }
        // A name that begins after an unencoded question mark in a password.
        let error = check_parameters("postgres://u:1?hush@h/db").expect_err("it is unknown");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
