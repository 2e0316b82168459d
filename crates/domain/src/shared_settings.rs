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

/// The differences in one line. Anybody who may change a stream may record very many.
pub fn in_one_line(differences: &[Difference]) -> String {
    let mut line =
        differences.iter().take(MOST_SHOWN).map(Difference::to_string).collect::<Vec<_>>().join("; ");
    if let Some(more) = differences.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
        line.push_str(&format!("; and {more} more"));
    }
    line
}

/// Most differences in one line.
const MOST_SHOWN: usize = 12;
/// Most domains of a record, and most bytes of the name of one.
const MOST_DOMAINS: usize = 1_000;
const LONGEST_NAME: usize = 128;

/// Why a stored text is not a record of settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableRecord {
    #[error("the record is empty")]
    Empty,
    #[error("the record is not that of a hub: {0}")]
    Damaged(String),
    #[error("the record names the domain {0:?}, which no hub has")]
    Domain(String),
    /// Its processes may be at work: nobody replaces it but an operator.
    #[error("the record is in format {0}, of a newer version of the hub")]
    Newer(u64),
}

impl UnreadableRecord {
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Newer(_))
    }
}

/// Whether a text can be the name of a domain, and thus a part of the name of a stream.
fn is_domain(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
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

/// The format of records. A later version that stores something else increases it, so that older processes do not replace
/// what they cannot read. A record without a format has this one.
const FORMAT: u64 = 1;

#[derive(Deserialize)]
struct Format {
    #[serde(default = "current_format")]
    format: u64,
}

fn current_format() -> u64 {
    FORMAT
}

impl RecordedSettings {
    /// The text that the broker stores.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the stored text, which may be anything: somebody may have edited it by hand.
    pub fn read(text: &str) -> Result<Self, UnreadableRecord> {
        if text.trim().is_empty() {
            return Err(UnreadableRecord::Empty);
        }
        let damaged = |error: serde_json::Error| {
            // The error may quote the text.
            UnreadableRecord::Damaged(error.to_string().chars().take(200).collect())
        };
        let Format { format } = serde_json::from_str(text).map_err(damaged)?;
        if format > FORMAT {
            return Err(UnreadableRecord::Newer(format));
        }
        let record: Self = serde_json::from_str(text).map_err(damaged)?;
        let domains = record.settings.domains();
        if domains.len() > MOST_DOMAINS {
            return Err(UnreadableRecord::Damaged(format!("it has {} domains", domains.len())));
        }
        if let Some(name) = domains.iter().find(|name| !is_domain(name)) {
            return Err(UnreadableRecord::Domain(name.chars().take(LONGEST_NAME).collect()));
        }
        // Each hub has a domain, and records the patterns of each.
        if domains.is_empty() {
            return Err(UnreadableRecord::Damaged("it has no domains".to_owned()));
        }
        match domains.iter().find(|name| !record.settings.values.contains_key(&events_of(name))) {
            Some(name) => Err(UnreadableRecord::Damaged(format!("it lacks {}", events_of(name)))),
            None => Ok(record),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

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
        use UnreadableRecord::{Damaged, Domain, Empty, Newer};
        let of_domains = |names: &str| json!({"by": "serve", "settings": {"domains": names}}).to_string();
        for text in ["", " ", "\n\t"] {
            assert_eq!(RecordedSettings::read(text), Err(Empty), "{text:?}");
        }
        for text in [
            "something else",
            "{}",
            "[]",
            "null",
            "5.5",
            "{\"by\":\"serve\"",
            "{\"by\":\"me\",\"settings\":{}}",
            "{\"by\":1,\"settings\":{}}",
            "{\"by\":\"serve\",\"settings\":[]}",
            "{\"by\":\"serve\",\"settings\":{\"a\":1}}",
            "{\"by\":\"serve\",\"settings\":{\"a\":null}}",
            "{\"by\":\"serve\",\"settings\":{},\"format\":-1}",
            "{\"by\":\"serve\",\"settings\":{},\"format\":\"2\"}",
            "{\"by\":\"serve\",\"settings\":{}}",
            "{\"by\":\"serve\",\"settings\":{\"delivery.max_deliver\":\"5\"}}",
            &of_domains(""),
            &of_domains("a"),
            "{\"by\":\"serve\",\"settings\":{\"domains\":\"a, b\",\"domains[a].events\":\"x.>\"}}",
            &of_domains(&vec!["a"; MOST_DOMAINS + 1].join(", ")),
            &"[".repeat(100_000),
            &format!("{{\"by\":\"{}\"}}", "x".repeat(100_000)),
        ] {
            let read = RecordedSettings::read(text);
            let Err(Damaged(why)) = read else { panic!("{read:?}") };
            assert!(why.len() < 1_000, "{}", why.len());
        }
        for name in ["a b", "A", "a.b", "*", ">", "a\r\nPUB x 0", "größe", &"x".repeat(10_000)] {
            let read = RecordedSettings::read(&of_domains(name));
            assert!(matches!(&read, Err(Domain(shown)) if shown.chars().count() <= LONGEST_NAME), "{read:?}");
        }
        for newer in [
            "{\"format\":2}",
            "{\"by\":\"serve\",\"settings\":{\"a\":[1]},\"format\":2}",
            "{\"format\":18446744073709551615,\"by\":9}",
        ] {
            assert!(matches!(RecordedSettings::read(newer), Err(Newer(2..))), "{newer}");
        }
        let known = json!({"domains": "a", "domains[a].events": "x.>", "other": "1"});
        let known = json!({"by": "serve", "settings": known, "format": 1, "note": []}).to_string();
        assert!(RecordedSettings::read(&known).is_ok(), "a field that only adds to the format");
    }

    #[test]
    fn very_many_differences_are_one_short_line() {
        let mut there = SharedSettings::default();
        for number in 0..5_000 {
            there = there.with(&format!("domains[d{number}].events"), "x.>");
        }
        let differences = SharedSettings::default().differences(&there);
        assert_eq!(differences.len(), 5_000);
        let line = in_one_line(&differences);
        assert!(line.len() < 2_000 && line.ends_with("; and 4988 more"), "{line}");
        assert!(!in_one_line(&differences[..12]).contains("more"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,64}", of_format in any::<bool>()) {
            let text = if of_format { format!("{{\"by\":\"serve\",\"settings\":{text}}}") } else { text };
            if let Err(error) = RecordedSettings::read(&text) {
                prop_assert!(error.to_string().len() < 1_200);
            }
        }

        #[test]
        fn a_record_reads_back_and_equal_sets_never_differ(
            values in proptest::collection::btree_map(".{0,12}", ".{0,12}", 0..8),
            others in proptest::collection::btree_map(".{0,12}", ".{0,12}", 0..8),
        ) {
            let domains = || [("a", vec!["x.>".to_owned()])];
            let settings = SharedSettings { values }.with_domains(domains());
            let other = SharedSettings { values: others }.with_domains(domains());
            let record = RecordedSettings { by: RecordedBy::Serve, settings: settings.clone() };
            prop_assert_eq!(RecordedSettings::read(&record.to_text()), Ok(record));
            prop_assert_eq!(settings.differences(&settings), vec![]);
            let there = other.differences(&settings);
            let here = settings.differences(&other);
            prop_assert_eq!(named(&here), named(&there));
        }
    }
}
