//! Which streams have no leader, because too few of their servers are connected for a quorum, as repeated looks show it.
//!
//! A stream without a leader may still answer reads from one server, but stores and delivers nothing. A stream whose only
//! server is gone does not answer. An election takes a moment, so one look without a leader is not enough.

use std::collections::BTreeMap;

/// Looks in a row without a leader that count.
const LOOKS: u8 = 2;

/// What a look at a stream has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Leader,
    /// JetStream says that the stream, or itself, has none.
    NoLeader,
    /// The server answers, but not to this look.
    Silent,
    /// Nothing was learned: the connection is lost, or the stream does not exist.
    Unknown,
}

/// What the looks at all streams mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Leadership {
    #[default]
    Complete,
    /// These streams have no leader, or do not answer.
    Missing(Vec<String>),
    /// No stream has a leader, as JetStream says.
    None,
}

/// The streams of a process, by name.
#[derive(Debug, Default)]
pub struct StreamLeaders(BTreeMap<String, Stream>);

#[derive(Debug, Default)]
struct Stream {
    /// Looks in a row that found no leader. One that learned nothing does not count.
    without: u8,
    has_leader: bool,
    /// JetStream said so in one of them.
    is_said: bool,
}

impl StreamLeaders {
    /// Takes note of a look at a stream.
    pub fn look(&mut self, stream: &str, seen: Seen) {
        let known = self.0.entry(stream.to_owned()).or_default();
        known.has_leader = seen == Seen::Leader;
        match seen {
            Seen::Leader => *known = Stream { has_leader: true, ..Stream::default() },
            Seen::NoLeader | Seen::Silent => {
                known.without = known.without.saturating_add(1).min(LOOKS);
                known.is_said |= seen == Seen::NoLeader;
            }
            Seen::Unknown => {}
        }
    }

    /// What is known after the looks at all streams.
    pub fn leadership(&self) -> Leadership {
        let missing: Vec<String> = self
            .0
            .iter()
            .filter(|(_, stream)| stream.without >= LOOKS)
            .map(|(name, _)| name.clone())
            .collect();
        match missing.is_empty() {
            true => Leadership::Complete,
            false if self.0.values().any(|stream| stream.has_leader) => Leadership::Missing(missing),
            false if self.0.values().any(|stream| stream.is_said) => Leadership::None,
            false => Leadership::Missing(missing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Seen::{Leader, NoLeader, Silent, Unknown};
    use super::*;

    /// The result after these rounds of looks at streams `a` and `b`.
    fn after(rounds: &[[Seen; 2]]) -> Leadership {
        let mut leaders = StreamLeaders::default();
        for [a, b] in rounds {
            leaders.look("a", *a);
            leaders.look("b", *b);
        }
        leaders.leadership()
    }

    #[test]
    fn an_election_or_a_missing_answer_alone_is_no_lost_quorum() {
        for rounds in [
            &[][..],
            &[[Leader, Leader]],
            &[[NoLeader, NoLeader]],
            &[[Unknown, Unknown], [Unknown, Unknown], [Unknown, Unknown]],
            &[[NoLeader, Leader], [Leader, NoLeader], [NoLeader, Leader]],
            &[[NoLeader, Unknown], [Leader, Unknown], [NoLeader, Unknown]],
            &[[Silent, Silent], [Leader, Leader], [Silent, Silent], [Unknown, Unknown]],
        ] {
            assert_eq!(after(rounds), Leadership::Complete, "{rounds:?}");
        }
    }

    #[test]
    fn a_quorum_is_lost_after_two_looks_and_back_after_one() {
        let only = |stream: &str| Leadership::Missing(vec![stream.to_owned()]);
        for (rounds, expected) in [
            (&[[NoLeader, NoLeader], [NoLeader, NoLeader]][..], Leadership::None),
            (&[[NoLeader, Leader], [NoLeader, Leader]], only("a")),
            // One server is silent, or knows it later.
            (&[[NoLeader, Unknown], [NoLeader, Unknown]], Leadership::None),
            (&[[NoLeader, Leader], [NoLeader, NoLeader]], Leadership::None),
            (&[[NoLeader, Unknown], [Unknown, Unknown], [NoLeader, Unknown]], Leadership::None),
            (&[[Silent, NoLeader], [Silent, NoLeader]], Leadership::None),
            // Its only server is gone, or the server is busy.
            (&[[Silent, Leader], [Silent, Leader]], only("a")),
            (
                &[[Silent, Silent], [Silent, Silent]],
                Leadership::Missing(vec!["a".to_owned(), "b".to_owned()]),
            ),
            // What is known remains known while nothing answers.
            (&[[NoLeader, NoLeader], [NoLeader, NoLeader], [Unknown, Unknown]], Leadership::None),
            (&[[NoLeader, NoLeader], [NoLeader, NoLeader], [Leader, Unknown]], only("b")),
            (&[[NoLeader, NoLeader], [NoLeader, NoLeader], [Leader, Leader]], Leadership::Complete),
        ] {
            assert_eq!(after(rounds), expected, "{rounds:?}");
        }
    }
}
