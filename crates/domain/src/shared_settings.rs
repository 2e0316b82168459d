//! The settings on which all processes of a hub must agree, because one process writes into the broker what another
//! relies on: domains, streams, consumers, and the limits by which events are accepted.
//!
//! The broker holds one recorded set. A process compares its own set with it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backlog::size;

/// The value of each shared setting as text, by its key in the settings file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SharedSettings {
    values: BTreeMap<String, String>,
}

/// Who recorded a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordedBy {
    /// `hub provision`: only it replaces the set.
    Provision,
    /// A process at its start, because nothing was recorded or no other process was at work.
    Serve,
}

/// The recorded set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedSettings {
    pub by: RecordedBy,
    pub settings: SharedSettings,
}

/// One setting on which a process and the recorded set differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub setting: String,
    /// `None` if this process does not have it, such as the patterns of a domain.
    pub here: Option<String>,
    pub recorded: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<String>| value.as_deref().map_or_else(|| "not set".to_owned(), for_people);
        write!(f, "{}: here {}, recorded {}", self.setting, text(&self.here), text(&self.recorded))
    }
}

/// A value as people write it in the settings: sizes are recorded in bytes, so that equal ones have equal texts.
pub fn for_people(value: &str) -> String {
    let bytes = value.strip_suffix('B').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    bytes.and_then(|digits| digits.parse().ok()).map_or_else(|| value.to_owned(), size::exact)
}

/// The differences in one line.
pub fn in_one_line(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

impl SharedSettings {
    /// Adds a setting.
    pub fn with(mut self, setting: &str, value: impl fmt::Display) -> Self {
        self.values.insert(setting.to_owned(), value.to_string());
        self
    }

    /// Adds the domains, in matching order, with their patterns.
    pub fn with_domains<'a>(mut self, domains: impl IntoIterator<Item = (&'a str, Vec<String>)>) -> Self {
        let mut names = Vec::new();
        for (name, patterns) in domains {
            self = self.with(&events_of(name), patterns.join(" "));
            names.push(name);
        }
        self.with(DOMAINS, names.join(", "))
    }

    /// The names of the domains.
    pub fn domains(&self) -> Vec<&str> {
        let names = self.values.get(DOMAINS).map(String::as_str).unwrap_or_default();
        names.split(", ").filter(|name| !name.is_empty()).collect()
    }

    /// The settings in which this set differs from the recorded one. A setting that only one of the two versions of the
    /// hub shares is ignored.
    pub fn differences(&self, recorded: &Self) -> Vec<Difference> {
        let mut keys: Vec<&String> = self.values.keys().chain(recorded.values.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter()
            .filter_map(|key| {
                let (here, there) = (self.values.get(key), recorded.values.get(key));
                let comparable = (here.is_some() && there.is_some()) || is_of_domain(key);
                (comparable && here != there).then(|| Difference {
                    setting: key.clone(),
                    here: here.cloned(),
                    recorded: there.cloned(),
                })
            })
            .collect()
    }
}

const DOMAINS: &str = "domains";

fn events_of(domain: &str) -> String {
    format!("domains[{domain}].events")
}

fn is_of_domain(key: &str) -> bool {
    key.starts_with("domains[")
}

impl RecordedSettings {
    /// The text that the broker stores.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the stored text; `None` if it is something else, such as an edit by hand.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(domains: &[(&str, &[&str])]) -> SharedSettings {
        let domains = domains.iter().map(|(name, patterns)| {
            (*name, patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>())
        });
        SharedSettings::default().with("delivery.max_deliver", 5).with_domains(domains)
    }

    fn named(differences: &[Difference]) -> Vec<&str> {
        differences.iter().map(|one| one.setting.as_str()).collect()
    }

    #[test]
    fn a_domain_more_differs_in_both_directions() {
        let (one, two) = (set(&[("a", &["x.>"])]), set(&[("a", &["x.>"]), ("b", &["y.>"])]));
        for (here, there) in [(&one, &two), (&two, &one)] {
            assert_eq!(named(&here.differences(there)), ["domains", "domains[b].events"]);
        }
        assert_eq!(two.domains(), ["a", "b"]);
    }

    #[test]
    fn the_order_of_the_domains_and_of_their_patterns_counts() {
        let one = set(&[("a", &["x.>", "y.>"]), ("b", &["z.>"])]);
        assert_eq!(named(&one.differences(&set(&[("b", &["z.>"]), ("a", &["x.>", "y.>"])]))), ["domains"]);
        let other = set(&[("a", &["y.>", "x.>"]), ("b", &["z.>"])]);
        assert_eq!(named(&one.differences(&other)), ["domains[a].events"]);
    }

    #[test]
    fn a_setting_of_another_version_is_no_difference() {
        let newer = set(&[("a", &["x.>"])]).with("limits.new", 1);
        let older = set(&[("a", &["x.>"])]);
        assert_eq!(newer.differences(&older), []);
        assert_eq!(older.differences(&newer), []);
    }

    #[test]
    fn anything_else_that_is_stored_is_no_record() {
        for text in
            ["", "{}", "5.5", "{\"by\":\"me\",\"settings\":{}}", "{\"by\":\"serve\",\"settings\":{\"a\":1}}"]
        {
            assert_eq!(RecordedSettings::read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back_and_equal_sets_never_differ(
            values in proptest::collection::btree_map(".{0,12}", ".{0,12}", 0..8),
            others in proptest::collection::btree_map(".{0,12}", ".{0,12}", 0..8),
        ) {
            let (settings, other) = (SharedSettings { values }, SharedSettings { values: others });
            let record = RecordedSettings { by: RecordedBy::Serve, settings: settings.clone() };
            prop_assert_eq!(RecordedSettings::read(&record.to_text()), Some(record));
            prop_assert_eq!(settings.differences(&settings), vec![]);
            let there = other.differences(&settings);
            let here = settings.differences(&other);
            prop_assert_eq!(named(&here), named(&there));
        }
    }
}
