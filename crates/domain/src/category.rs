//! The domain of an event key. The rules come from the settings; the first match wins.

use super::key::{EventKey, KeyPattern};

/// The domains in order of precedence, each with its patterns.
#[derive(Debug, Clone)]
pub struct Categories(Vec<(String, Vec<KeyPattern>)>);

impl Categories {
    /// `rules` are the names of the domains in order of precedence, with the patterns of their keys.
    pub fn new(rules: Vec<(String, Vec<KeyPattern>)>) -> Self {
        Self(rules)
    }

    /// The domain of the first pattern that matches the key; `None` if no pattern matches.
    pub fn domain_of(&self, key: &EventKey) -> Option<&str> {
        self.index_of(key).and_then(|index| self.name(index))
    }

    /// The position in the rules of the domain of a key.
    pub fn index_of(&self, key: &EventKey) -> Option<usize> {
        self.0.iter().position(|(_, patterns)| patterns.iter().any(|pattern| pattern.matches(key)))
    }

    /// True if a domain accepts at least one of the keys that match the pattern.
    pub fn accept_some_of(&self, pattern: &KeyPattern) -> bool {
        self.0.iter().any(|(_, patterns)| patterns.iter().any(|one| one.overlaps(pattern)))
    }

    /// The name of the domain at a position.
    pub fn name(&self, index: usize) -> Option<&str> {
        self.0.get(index).map(|(name, _)| name.as_str())
    }

    /// The names of the domains in order of precedence.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn categories(rules: &[(&str, &[&str])]) -> Categories {
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Categories::new(rules.iter().map(|(name, texts)| ((*name).to_owned(), patterns(texts))).collect())
    }

    fn domain<'c>(categories: &'c Categories, key: &str) -> Option<&'c str> {
        categories.domain_of(&key.parse().unwrap())
    }

    #[test]
    fn the_first_match_in_the_order_of_domains_wins() {
        let rules = categories(&[
            ("special", &["user.locked"]),
            ("users", &["user.>", "role.*"]),
            ("roles", &["role.>"]),
        ]);
        assert_eq!(domain(&rules, "user.locked"), Some("special"));
        assert_eq!(domain(&rules, "user.created"), Some("users"));
        assert_eq!(domain(&rules, "role.created"), Some("users"));
        assert_eq!(domain(&rules, "role.created.eu"), Some("roles"));
        assert_eq!(domain(&rules, "invoice.paid"), None);
        assert_eq!(rules.index_of(&"role.a.b".parse().unwrap()), Some(2));
        assert_eq!(Vec::from_iter(rules.names()), ["special", "users", "roles"]);
        assert_eq!(rules.name(3), None);
    }

    proptest! {
        #[test]
        fn each_key_has_exactly_one_domain_or_none(
            key in "[abc](\\.[abc]){1,2}",
            rules in proptest::collection::vec(proptest::collection::vec("([abc]|\\*)(\\.([abc]|\\*)){0,2}(\\.>)?", 1..4), 0..5),
        ) {
            let key: EventKey = key.parse().unwrap();
            let named = rules.iter().enumerate().map(|(n, patterns)| {
                (format!("d{n}"), patterns.iter().map(|text| text.parse().unwrap()).collect())
            });
            let rules = Categories::new(named.collect());
            let claims = |index: usize| rules.0[index].1.iter().any(|pattern| pattern.matches(&key));
            match rules.index_of(&key) {
                // The domain claims the key, and no earlier domain does.
                Some(index) => {
                    prop_assert!(claims(index) && !(0..index).any(claims));
                    let domain = rules.domain_of(&key);
                    prop_assert_eq!(rules.names().filter(|name| Some(*name) == domain).count(), 1);
                }
                None => prop_assert!(!(0..rules.0.len()).any(claims) && rules.domain_of(&key).is_none()),
            }
        }
    }
}
