//! Filters of the CloudEvents Subscriptions API 1.0 (section 3.2.4): `exact`, `prefix`, `suffix`,
//! `all`, `any`, `not`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::field_error::FieldError;

mod program;

pub use program::{Position, Program};

/// Maximum depth of nested filters. It limits the stack of the parser.
const MAX_DEPTH: usize = 16;
/// Maximum number of comparisons of all filters of a subscription, on all levels. Each may be evaluated for each event.
const MAX_COMPARISONS: usize = 256;

/// A filter. `exact`, `prefix` and `suffix` map attribute names to expected texts: every pair must match, and an
/// attribute that the event does not have never matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Filter {
    Exact(Pairs),
    Prefix(Pairs),
    Suffix(Pairs),
    #[cfg_attr(feature = "openapi", schema(no_recursion))]
    All(Vec<Filter>),
    #[cfg_attr(feature = "openapi", schema(no_recursion))]
    Any(Vec<Filter>),
    #[cfg_attr(feature = "openapi", schema(no_recursion))]
    Not(Box<Filter>),
}

/// Attribute names and their expected texts, as a JSON object. A boxed slice uses little memory: the first node of a map
/// takes half a kilobyte, and most filters have one pair.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = HashMap<String, String>, example = json!({"source": "idp"})))]
pub struct Pairs(Box<[(Box<str>, Box<str>)]>);

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, wanted)| (name, wanted)))
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of attribute names and strings, like {\"source\": \"idp\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs: Vec<(Box<str>, Box<str>)> = Vec::new();
                let mut known = HashSet::new();
                while let Some((name, wanted)) = map.next_entry::<Box<str>, Box<str>>()? {
                    // Most filters have one pair and need no set.
                    if pairs.len() == 1 {
                        known.extend(pairs.iter().map(|(name, _)| name.clone()));
                    }
                    if !pairs.is_empty() && !known.insert(name.clone()) {
                        return Err(A::Error::custom(format!(
                            "{name:?} occurs twice; write a filter for each"
                        )));
                    }
                    pairs.push((name, wanted));
                }
                Ok(Pairs(pairs.into()))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}

impl Filter {
    /// True if the filter matches an event. `attribute` returns an attribute of the event by name, in the canonical
    /// CloudEvents string form. Comparisons are case-sensitive.
    pub fn matches<'e>(&self, attribute: &dyn Fn(&str) -> Option<Cow<'e, str>>) -> bool {
        let each = |pairs: &Pairs, holds: fn(&str, &str) -> bool| {
            pairs.0.iter().all(|(name, wanted)| attribute(name).is_some_and(|value| holds(&value, wanted)))
        };
        match self {
            Filter::Exact(pairs) => each(pairs, |value, wanted| value == wanted),
            Filter::Prefix(pairs) => each(pairs, |value, wanted| value.starts_with(wanted)),
            Filter::Suffix(pairs) => each(pairs, |value, wanted| value.ends_with(wanted)),
            Filter::All(filters) => filters.iter().all(|filter| filter.matches(attribute)),
            Filter::Any(filters) => filters.iter().any(|filter| filter.matches(attribute)),
            Filter::Not(filter) => !filter.matches(attribute),
        }
    }

    /// Number of comparisons on all levels.
    pub fn comparisons(&self) -> usize {
        match self {
            Filter::Exact(pairs) | Filter::Prefix(pairs) | Filter::Suffix(pairs) => pairs.0.len(),
            Filter::All(filters) | Filter::Any(filters) => filters.iter().map(Self::comparisons).sum(),
            Filter::Not(filter) => filter.comparisons(),
        }
    }

    /// Checks the values: at least one attribute or nested filter, no empty names or texts, valid CloudEvents attribute
    /// names. `path` is the path of the filter, such as `filter[0]`; the error names the path of the invalid part.
    pub fn validate(&self, path: &str) -> Result<(), FieldError> {
        self.validate_at(path, 1)
    }

    fn validate_at(&self, path: &str, depth: usize) -> Result<(), FieldError> {
        if depth > MAX_DEPTH {
            return Err(FieldError::new(
                path,
                format!("is nested more than {MAX_DEPTH} levels deep; write a flatter filter"),
            ));
        }
        match self {
            Filter::Exact(pairs) => validate_pairs(&format!("{path}.exact"), pairs),
            Filter::Prefix(pairs) => validate_pairs(&format!("{path}.prefix"), pairs),
            Filter::Suffix(pairs) => validate_pairs(&format!("{path}.suffix"), pairs),
            Filter::All(filters) => validate_list(&format!("{path}.all"), filters, depth),
            Filter::Any(filters) => validate_list(&format!("{path}.any"), filters, depth),
            Filter::Not(filter) => filter.validate_at(&format!("{path}.not"), depth + 1),
        }
    }
}

/// Checks the number of comparisons of all filters of a subscription.
pub(crate) fn validate_size(filters: &[Filter]) -> Result<(), FieldError> {
    let comparisons: usize = filters.iter().map(Filter::comparisons).sum();
    if comparisons <= MAX_COMPARISONS {
        return Ok(());
    }
    Err(FieldError::new(
        "filter",
        format!(
            "has {comparisons} comparisons (attributes of exact, prefix and suffix, on all levels), at most \
             {MAX_COMPARISONS} are allowed; write fewer, or split the subscription"
        ),
    ))
}

/// True if a stored subscription has more comparisons than are allowed now.
pub fn is_oversized(comparisons: usize) -> bool {
    comparisons > MAX_COMPARISONS
}

fn validate_pairs(path: &str, pairs: &Pairs) -> Result<(), FieldError> {
    if pairs.0.is_empty() {
        return Err(FieldError::new(
            path,
            "is empty; write at least one attribute, like {\"source\": \"idp\"}",
        ));
    }
    for (name, wanted) in &pairs.0 {
        if !super::event::is_attribute_name(name) {
            return Err(FieldError::new(
                path,
                format!("invalid attribute name {name:?}; use lower-case letters and digits (CloudEvents)"),
            ));
        }
        if wanted.is_empty() {
            return Err(FieldError::new(
                format!("{path}.{name}"),
                "is empty; write the expected text of the attribute",
            ));
        }
    }
    Ok(())
}

fn validate_list(path: &str, filters: &[Filter], depth: usize) -> Result<(), FieldError> {
    if filters.is_empty() {
        return Err(FieldError::new(path, "is an empty list; write at least one filter, or remove it"));
    }
    filters
        .iter()
        .enumerate()
        .try_for_each(|(position, filter)| filter.validate_at(&format!("{path}[{position}]"), depth + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(json: &str) -> Filter {
        serde_json::from_str(json).expect("the test's filter is well formed")
    }

    /// An event with source = "idp/eu", type = "user.created" and level = "3".
    fn attribute(name: &str) -> Option<Cow<'static, str>> {
        match name {
            "source" => Some("idp/eu".into()),
            "type" => Some("user.created".into()),
            "level" => Some("3".into()),
            _ => None,
        }
    }

    #[test]
    fn each_dialect_compares_as_the_specification_says() {
        for (json, expected) in [
            (r#"{"exact": {"source": "idp/eu"}}"#, true),
            (r#"{"exact": {"source": "idp"}}"#, false),
            (r#"{"exact": {"source": "IDP/EU"}}"#, false),
            (r#"{"exact": {"source": "idp/eu", "level": "3"}}"#, true),
            (r#"{"exact": {"source": "idp/eu", "level": "4"}}"#, false),
            (r#"{"exact": {"absent": "x"}}"#, false),
            (r#"{"prefix": {"source": "idp/"}}"#, true),
            (r#"{"prefix": {"source": "eu"}}"#, false),
            (r#"{"prefix": {"source": "idp", "type": "role."}}"#, false),
            (r#"{"prefix": {"absent": "x"}}"#, false),
            (r#"{"suffix": {"type": ".created"}}"#, true),
            (r#"{"suffix": {"type": "user"}}"#, false),
            (r#"{"suffix": {"type": ".created", "absent": "x"}}"#, false),
            (r#"{"all": [{"exact": {"level": "3"}}, {"prefix": {"type": "user."}}]}"#, true),
            (r#"{"all": [{"exact": {"level": "3"}}, {"prefix": {"type": "role."}}]}"#, false),
            (r#"{"any": [{"exact": {"level": "9"}}, {"prefix": {"type": "user."}}]}"#, true),
            (r#"{"any": [{"exact": {"level": "9"}}, {"prefix": {"type": "role."}}]}"#, false),
            (r#"{"not": {"exact": {"level": "9"}}}"#, true),
            (r#"{"not": {"exact": {"level": "3"}}}"#, false),
            (r#"{"not": {"exact": {"absent": "x"}}}"#, true),
        ] {
            assert_eq!(filter(json).matches(&attribute), expected, "{json}");
        }
    }

    #[test]
    fn an_unknown_dialect_is_rejected_by_the_parser() {
        assert!(serde_json::from_str::<Filter>(r#"{"sql": "source = 'idp'"}"#).is_err());
        assert!(serde_json::from_str::<Filter>(r#"{"exact": {"a": "b"}, "prefix": {"a": "b"}}"#).is_err());
        assert!(serde_json::from_str::<Filter>(r#"{"exact": {"level": 3}}"#).is_err());
        assert!(serde_json::from_str::<Filter>(r#"{"exact": {"level": "3", "level": "4"}}"#).is_err());
    }

    #[test]
    fn empty_and_misnamed_parts_are_rejected_by_path() {
        for (json, field) in [
            (r#"{"exact": {}}"#, "filter[0].exact"),
            (r#"{"prefix": {"source": ""}}"#, "filter[0].prefix.source"),
            (r#"{"suffix": {"": "x"}}"#, "filter[0].suffix"),
            (r#"{"exact": {"Source": "x"}}"#, "filter[0].exact"),
            (r#"{"all": []}"#, "filter[0].all"),
            (r#"{"any": []}"#, "filter[0].any"),
            (r#"{"any": [{"exact": {"a": "b"}}, {"not": {"all": []}}]}"#, "filter[0].any[1].not.all"),
        ] {
            let error = filter(json).validate("filter[0]").expect_err(json);
            assert_eq!(error.field, field, "{json}");
        }
        assert_eq!(filter(r#"{"not": {"exact": {"source": "x"}}}"#).validate("filter[0]"), Ok(()));
    }

    /// The cost is linear in the number of names; quadratic, it would be minutes.
    #[test]
    fn very_many_names_cost_little() {
        let names: Vec<String> = (0..200_000).map(|number| format!("\"a{number}\":\"\"")).collect();
        let filter: Filter = serde_json::from_str(&format!("{{\"exact\":{{{}}}}}", names.join(","))).unwrap();
        assert_eq!(filter.comparisons(), 200_000);
        let twice = format!("{{\"exact\":{{{},{}}}}}", names.join(","), names[7]);
        let error = serde_json::from_str::<Filter>(&twice).unwrap_err().to_string();
        assert!(error.contains("\"a7\" occurs twice"), "{error}");
        let error = serde_json::from_str::<Filter>(r#"{"exact":{"a":"","a":""}}"#).unwrap_err().to_string();
        assert!(error.contains("occurs twice"), "{error}");
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| {
            filter(&format!(
                "{}{}{}",
                r#"{"not":"#.repeat(depth),
                r#"{"exact":{"a":"b"}}"#,
                "}".repeat(depth)
            ))
        };
        assert_eq!(nested(MAX_DEPTH - 1).validate("filter[0]"), Ok(()));
        assert!(nested(MAX_DEPTH).validate("filter[0]").is_err());
    }

    #[test]
    fn comparisons_are_counted_on_every_level() {
        let leaf = r#"{"exact":{"source":"idp"}}"#;
        let list = |count: usize| vec![leaf; count].join(",");
        let pairs: Vec<String> = (0..257).map(|number| format!("\"a{number}\":\"x\"")).collect();
        for (refused, json) in [
            (false, format!(r#"{{"any":[{}]}}"#, list(256))),
            (true, format!(r#"{{"any":[{}]}}"#, list(257))),
            (true, format!(r#"{{"any":[{}]}}"#, list(24_000))),
            (true, format!(r#"{{"not":{{"all":[{{"any":[{}]}},{{"all":[{}]}}]}}}}"#, list(128), list(129))),
            (true, format!(r#"{{"prefix":{{{}}}}}"#, pairs.join(","))),
            (false, format!(r#"{{"prefix":{{{}}}}}"#, pairs[1..].join(","))),
        ] {
            assert_eq!(validate_size(&[filter(&json)]).is_err(), refused, "{}", json.len());
        }
        let several: Vec<Filter> = (0..4).map(|_| filter(&format!(r#"{{"any":[{}]}}"#, list(65)))).collect();
        let error = validate_size(&several).unwrap_err();
        assert!(error.field == "filter" && error.problem.contains("has 260 comparisons"), "{error}");
    }

    fn leaf() -> impl Strategy<Value = Filter> {
        let pairs = proptest::collection::btree_map("(source|type|level|absent)", "[a-z3/.]{1,3}", 1..3);
        pairs.prop_flat_map(|pairs| {
            let pairs = Pairs(pairs.into_iter().map(|(name, wanted)| (name.into(), wanted.into())).collect());
            prop_oneof![
                Just(Filter::Exact(pairs.clone())),
                Just(Filter::Prefix(pairs.clone())),
                Just(Filter::Suffix(pairs)),
            ]
        })
    }

    fn any_filter() -> impl Strategy<Value = Filter> {
        leaf().prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::All),
                proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::Any),
                inner.prop_map(|filter| Filter::Not(Box::new(filter))),
            ]
        })
    }

    proptest! {
        #[test]
        fn negation_and_de_morgan_hold(filters in proptest::collection::vec(any_filter(), 1..4)) {
            let negated: Vec<Filter> =
                filters.iter().map(|filter| Filter::Not(Box::new(filter.clone()))).collect();
            let none = Filter::Not(Box::new(Filter::Any(filters.clone()))).matches(&attribute);
            prop_assert_eq!(none, Filter::All(negated).matches(&attribute));
            prop_assert_eq!(
                Filter::All(filters.clone()).matches(&attribute),
                filters.iter().all(|filter| filter.matches(&attribute))
            );
        }

        #[test]
        fn a_compiled_filter_has_the_same_result(filters in proptest::collection::vec(any_filter(), 0..4)) {
            let program = Program::new(&filters);
            prop_assert_eq!(program.comparisons(), filters.iter().map(Filter::comparisons).sum::<usize>());
            prop_assert_eq!(
                program.matches(&attribute),
                filters.iter().all(|filter| filter.matches(&attribute))
            );
        }

        #[test]
        fn a_filter_round_trips_as_json(filter in any_filter()) {
            let json = serde_json::to_string(&filter).unwrap();
            prop_assert_eq!(serde_json::from_str::<Filter>(&json).unwrap(), filter);
        }
    }
}
