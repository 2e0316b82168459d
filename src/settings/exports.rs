//! The environment variables with which another process has the same settings.

use std::path::Path;

use super::layers::VARIABLE;
use super::show::is_hidden;

/// Environment variables with which another process has the same settings as this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exports {
    /// Names and values, without secrets, each name once.
    pub(crate) variables: Vec<(String, String)>,
    /// The names of the variables that hold secrets.
    pub(crate) secrets: Vec<String>,
}

impl Exports {
    /// The variables of the layers above the defaults. A later layer overrides an earlier one.
    ///
    /// * `file`: the settings file
    /// * `overrides`: dotted keys and values of flags
    pub(super) fn of(
        file: Option<&Path>,
        environment: &[(String, String)],
        overrides: &[(String, String)],
    ) -> Self {
        let mut exports = Self::default();
        if let Some(file) = file {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            exports.set("HUB_CONFIG", file.to_string_lossy());
        }
        for (name, value) in environment {
            exports.set(name, value);
        }
        for (key, value) in overrides {
            exports.set(&format!("{VARIABLE}{}", key.to_uppercase().replace('.', "__")), value);
        }
        exports
    }

    /// Sets a variable. Of a secret, only the name is kept.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        let key = name.strip_prefix(VARIABLE).unwrap_or_default().to_lowercase().replace("__", ".");
        // The entries of this list may hold passwords.
        if is_hidden(&key) || key == "external_brokers" {
            if !self.secrets.iter().any(|known| known == name) {
                self.secrets.push(name.to_owned());
            }
            return;
        }
        let value = value.into();
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_layer_is_exported_once_without_secrets() {
        let exports = Exports::of(
            Some(Path::new("/etc/hub.toml")),
            &pairs(&[
                ("HUB__NATS__PREFIX", "env"),
                ("HUB__NATS__PASSWORD", "hush"),
                ("HUB__SECRETS__MASTER_KEY", "hush"),
                ("HUB__EXTERNAL_BROKERS", "[{name = 'x', password = 'hush'}]"),
            ]),
            &pairs(&[("nats.prefix", "flag"), ("nats.token", "hush"), ("delivery.held", "7")]),
        );
        let variables =
            [("HUB_CONFIG", "/etc/hub.toml"), ("HUB__NATS__PREFIX", "flag"), ("HUB__DELIVERY__HELD", "7")];
        assert_eq!(exports.variables, pairs(&variables));
        assert_eq!(
            exports.secrets,
            ["HUB__NATS__PASSWORD", "HUB__SECRETS__MASTER_KEY", "HUB__EXTERNAL_BROKERS", "HUB__NATS__TOKEN"]
        );
        assert!(!format!("{exports:?}").contains("hush"));
    }
}
