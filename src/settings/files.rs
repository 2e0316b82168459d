//! The files that the settings name.

use std::path::Path;

use super::Settings;

impl Settings {
    /// The files of logins and of TLS, each with its setting. The master key has a check of its own.
    fn files(&self) -> Vec<(String, &Path)> {
        let (nats, resolver) = (&self.nats, &self.subscriptions);
        let named = [
            ("nats.credentials_file", &nats.credentials_file),
            ("nats.nkey_seed_file", &nats.nkey_seed_file),
            ("nats.tls_ca_file", &nats.tls_ca_file),
            ("nats.tls_cert_file", &nats.tls_cert_file),
            ("nats.tls_key_file", &nats.tls_key_file),
            ("subscriptions.tls_ca_file", &resolver.tls_ca_file),
            ("subscriptions.tls_cert_file", &resolver.tls_cert_file),
            ("subscriptions.tls_key_file", &resolver.tls_key_file),
            ("subscriptions.listen_tls_cert_file", &resolver.listen_tls_cert_file),
            ("subscriptions.listen_tls_key_file", &resolver.listen_tls_key_file),
            ("subscriptions.listen_tls_client_ca_file", &resolver.listen_tls_client_ca_file),
        ];
        let mut files: Vec<(String, &Path)> = Vec::new();
        files.extend(named.iter().filter_map(|(key, file)| Some(((*key).to_owned(), file.as_deref()?))));
        for broker in &self.external_brokers {
            let named = [
                ("credentials_file", &broker.credentials_file),
                ("nkey_seed_file", &broker.nkey_seed_file),
                ("tls_ca_file", &broker.tls_ca_file),
                ("tls_cert_file", &broker.tls_cert_file),
                ("tls_key_file", &broker.tls_key_file),
            ];
            let key = |field: &str| format!("external_brokers[{}].{field}", broker.name);
            files.extend(named.iter().filter_map(|(field, file)| Some((key(field), file.as_deref()?))));
        }
        files
    }

    /// What valid settings cannot do on this machine, such as read a file that they name. It may be possible where the hub
    /// runs.
    pub(crate) fn cautions(&self) -> Vec<super::SettingProblem> {
        let unreadable = self.files().into_iter().filter_map(|(key, file)| {
            let error = std::fs::File::open(file).err()?;
            let problem = format!(
                "{} cannot be read on this machine: {error}; every process that uses the setting needs the file",
                file.display()
            );
            Some(self.problem(&key, problem))
        });
        let (configured, used) = (self.outbox.connections, self.relay_connections());
        let too_few = configured < used && !self.is_default("outbox.connections");
        let too_few = too_few.then(|| {
            let problem = format!(
                "is {configured}, but the relay uses {used} with these external brokers; set at least {used}, or leave it out"
            );
            self.problem("outbox.connections", problem)
        });
        unreadable.chain(too_few).collect()
    }

    /// Least number of database connections of a relay: each target broker has two workers, and the upkeep needs one more.
    pub(crate) fn relay_connections(&self) -> u32 {
        u32::try_from(2 * (self.outbox_brokers().count() + 1) + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_and_too_few_connections_are_reported_with_their_layer() {
        let text = r#"
            [nats]
            credentials_file = "/nope.creds"
            tls_ca_file = "/nope.pem"
            [outbox]
            connections = 3
            [[external_brokers]]
            name = "partner"
            provider = "nats"
            url = "tls://127.0.0.1:1"
            tls_ca_file = "/nope/ca.pem"
            outbox = true
        "#;
        let settings = Settings::from_toml("hub.toml", text).expect("valid");
        let found = settings.cautions();
        let keys: Vec<&str> = found.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "nats.credentials_file",
                "nats.tls_ca_file",
                "external_brokers[partner].tls_ca_file",
                "outbox.connections"
            ]
        );
        assert!(found.iter().all(|one| one.layer == "hub.toml"), "{found:?}");
        assert!(
            found[0].problem.contains("/nope.creds") && found[3].problem.contains("at least 5"),
            "{found:?}"
        );
        assert_eq!(Settings::defaults().cautions(), []);
    }

    /// A setting that names a file is in the list.
    #[test]
    fn every_setting_of_a_file_is_checked() {
        let mut all: Vec<String> = Settings::defaults()
            .show()
            .lines()
            .scan(String::new(), |section, line| {
                if let Some(name) = line.strip_prefix('[') {
                    *section = name.trim_end_matches(']').to_owned();
                }
                let key = line.split(" = ").next().filter(|key| key.ends_with("_file"));
                Some(key.map(|key| format!("{section}.{key}")))
            })
            .flatten()
            .collect();
        all.retain(|key| key != "secrets.master_key_file");
        // Together they are not valid settings.
        let mut settings = Settings::defaults();
        let file = Some(std::path::PathBuf::from("/nope"));
        let (nats, resolver) = (&mut settings.nats, &mut settings.subscriptions);
        for field in [
            &mut nats.credentials_file,
            &mut nats.nkey_seed_file,
            &mut nats.tls_ca_file,
            &mut nats.tls_cert_file,
            &mut nats.tls_key_file,
            &mut resolver.tls_ca_file,
            &mut resolver.tls_cert_file,
            &mut resolver.tls_key_file,
            &mut resolver.listen_tls_cert_file,
            &mut resolver.listen_tls_key_file,
            &mut resolver.listen_tls_client_ca_file,
        ] {
            *field = file.clone();
        }
        let mut checked: Vec<String> = settings.files().into_iter().map(|(key, _)| key).collect();
        checked.sort();
        all.sort();
        assert_eq!(checked, all);
    }
}
