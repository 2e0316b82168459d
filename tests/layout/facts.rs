//! Rules of the log lines.

use crate::source::{Source, below, sources};
use crate::{BROKERS, assert_none};

fn facts() -> Vec<Source> {
    let facts: Vec<_> = sources().into_iter().filter(|source| source.module() == "facts").collect();
    assert!(facts.len() > 15, "{} files found", facts.len());
    facts
}

/// The blocks of a source that begin with this text, each up to its closing brace in the first column.
fn blocks<'a>(code: &'a str, start: &str) -> Vec<&'a str> {
    let begins = code.match_indices(start).map(|(at, _)| at);
    begins.map(|at| &code[at..]).map(|rest| rest.split("\n}").next().unwrap_or(rest)).collect()
}

/// Two tenants may use the same id, so an id alone names no subscription.
#[test]
fn a_line_that_names_a_subscription_names_its_tenant() {
    let (mut broken, mut found) = (Vec::new(), 0);
    for source in facts() {
        for block in blocks(&source.code, "\npub struct ") {
            let named = block.contains("pub subscription: ");
            let whole =
                block.contains("pub subscription: &'a SubscriptionRef") || block.contains("pub tenant: ");
            found += usize::from(named);
            broken.extend((named && !whole).then(|| format!("{}: {}", source.path, block.trim())));
        }
        for block in blocks(&source.code, "    pub fn emit(") {
            let is_field = [" subscription,", "\nsubscription,", "subscription = "]
                .iter()
                .any(|form| block.replace("  ", "").contains(form));
            let both = block.contains("tenant") && !block.contains("%subscription");
            broken.extend((is_field && !both).then(|| format!("{}: {}", source.path, block.trim())));
        }
    }
    assert_none(&broken, "fields `tenant` and `subscription` are written together, each as it is");
    assert!(found > 20, "{found} facts name a subscription");
}

/// What a publisher, an endpoint or a tenant repeats does not decide the length of the log.
#[test]
fn lines_about_single_envelopes_and_events_are_limited() {
    let (mut broken, mut found) = (Vec::new(), 0);
    for source in facts() {
        for block in blocks(&source.code, "\nimpl ") {
            let about_one = ["envelope,", "envelope =", "sequence,", "sequence ="]
                .iter()
                .any(|field| block.contains(field));
            let above_debug = ["tracing::info!(", "tracing::warn!(", "tracing::error!("];
            let unlimited = above_debug.iter().any(|form| block.contains(form));
            found += usize::from(about_one && block.contains("limited!("));
            broken.extend((about_one && unlimited).then(|| format!("{}: {}", source.path, block.trim())));
        }
    }
    assert_none(&broken, "a line about one envelope or message above the level debug is `limited!`");
    assert!(found > 12, "{found} such lines are limited");
}

/// One tenant may have thousands of subscriptions, whose endpoints fail at the same moment.
#[test]
fn lines_about_single_subscriptions_and_lanes_are_limited() {
    let (mut broken, mut found) = (Vec::new(), 0);
    for source in facts() {
        for block in blocks(&source.code, "\nimpl ") {
            let about_one = ["subscription", "lane"].iter().any(|name| {
                let forms =
                    [format!(" {name},"), format!(" {name} = "), format!(" {name} }}"), format!("%{name}")];
                forms.iter().any(|form| block.contains(form.as_str()))
            });
            let above_debug = ["tracing::info!(", "tracing::warn!(", "tracing::error!("];
            let unlimited = above_debug.iter().any(|form| block.contains(form));
            found += usize::from(about_one && block.contains("limited!("));
            broken.extend((about_one && unlimited).then(|| format!("{}: {}", source.path, block.trim())));
        }
    }
    assert_none(&broken, "a line about one subscription or lane above the level debug is `limited!`");
    assert!(found > 20, "{found} such lines are limited");
}

/// Publishers, endpoints and operators decide how often a stream is full and has room again.
#[test]
fn lines_about_the_room_of_streams_are_limited() {
    let rooms = facts().into_iter().filter(|source| source.path.ends_with("_rooms.rs"));
    let (mut broken, mut found) = (Vec::new(), 0);
    for source in rooms {
        for block in blocks(&source.code, "\nimpl ") {
            let above_debug = ["tracing::info!(", "tracing::warn!(", "tracing::error!("];
            let unlimited = above_debug.iter().any(|form| block.contains(form));
            found += usize::from(block.contains("limited!("));
            broken.extend(unlimited.then(|| format!("{}: {}", source.path, block.trim())));
        }
    }
    assert_none(&broken, "a line about the room of a stream above the level debug is `limited!`");
    assert!(found >= 9, "{found} such lines are limited");
}

/// A broker, or what is published to it, decides how often it reports something.
#[test]
fn lines_about_external_brokers_are_limited() {
    let facts = below(BROKERS).into_iter().filter(|source| source.module() == "facts");
    let (mut broken, mut found) = (Vec::new(), 0);
    for source in facts {
        for block in blocks(&source.code, "\nimpl ") {
            let above_debug = ["tracing::info!(", "tracing::warn!(", "tracing::error!("];
            let unlimited = above_debug.iter().any(|form| block.contains(form));
            found += usize::from(block.contains("limited!("));
            broken.extend(unlimited.then(|| format!("{}: {}", source.path, block.trim())));
        }
    }
    assert_none(&broken, "a line about an external broker above the level debug is `limited!`");
    assert!(found > 0, "no such line found");
}
