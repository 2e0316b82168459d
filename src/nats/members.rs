//! Notices of the processes that deliver, over core NATS: at most once and not stored. They are repeated every second.

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::connection::JetStream;
use super::error::NatsError;
use super::subjects::SubjectNames;
use crate::domain::allotment::{Announced, Demand, MOST_ANNOUNCED, MemberNotice, MemberState};
use crate::facts::MemberNoticeIgnored;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Delivering,
    Stopping,
    Gone,
}

#[derive(Serialize, Deserialize)]
struct MemberBody {
    state: State,
    turn: u64,
    /// Of each subscription: its key, the demand for slots (0 for no demand) and for deliveries per second, and the
    /// deliveries in flight.
    #[serde(default)]
    subscriptions: Vec<(u64, u32, u32, u32)>,
    #[serde(default)]
    more: bool,
}

/// The notices of all processes, including this one.
pub struct MemberNotices {
    messages: Subscriber,
    names: SubjectNames,
}

impl JetStream {
    /// Publishes a notice to all listening processes, without an acknowledgement.
    pub async fn publish_member_notice(&self, notice: &MemberNotice) -> Result<(), NatsError> {
        let subject = self.names().member(notice.member);
        let body = serde_json::to_vec(&to_body(notice))
            .map_err(|error| NatsError::encode(subject.as_str(), error))?;
        let sent = self.client().publish(subject.clone(), body.into());
        match tokio::time::timeout(self.request_timeout(), sent).await {
            Ok(sent) => sent.map_err(|error| NatsError::transport(subject, error)),
            Err(_) => Err(NatsError::timeout(subject, self.request_timeout())),
        }
    }

    /// Subscribes to the notices of processes; the subscription survives reconnects.
    pub async fn member_notices(&self) -> Result<MemberNotices, NatsError> {
        let subject = self.names().members_filter();
        let messages = self.client().subscribe(subject.clone()).await;
        let messages = messages.map_err(|error| NatsError::transport(subject, error))?;
        Ok(MemberNotices { messages, names: self.names().clone() })
    }
}

impl MemberNotices {
    /// Waits for the next valid notice; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<MemberNotice> {
        loop {
            let message = self.messages.next().await?;
            match read(&self.names, &message.subject, &message.payload) {
                Some(notice) => return Some(notice),
                None => MemberNoticeIgnored { subject: &message.subject }.emit(),
            }
        }
    }
}

fn to_body(notice: &MemberNotice) -> MemberBody {
    let subscriptions = notice.announced.iter().map(|one| {
        let (slots, rate) = one.demand.map_or((0, 0), |demand| (demand.slots.max(1), demand.rate));
        (one.key, slots, rate, one.in_flight)
    });
    MemberBody {
        state: match notice.state {
            MemberState::Delivering => State::Delivering,
            MemberState::Stopping => State::Stopping,
            MemberState::Gone => State::Gone,
        },
        turn: notice.turn,
        subscriptions: subscriptions.collect(),
        more: notice.more,
    }
}

fn read(names: &SubjectNames, subject: &str, payload: &[u8]) -> Option<MemberNotice> {
    let member = names.parse_member(subject)?;
    let MemberBody { state, turn, subscriptions, more } = serde_json::from_slice(payload).ok()?;
    if subscriptions.len() > MOST_ANNOUNCED {
        return None;
    }
    let announced = subscriptions.into_iter().map(|(key, slots, rate, in_flight)| {
        let demand = (slots > 0).then_some(Demand { slots, rate });
        Announced { key, demand, in_flight }
    });
    Some(MemberNotice {
        member,
        state: match state {
            State::Delivering => MemberState::Delivering,
            State::Stopping => MemberState::Stopping,
            State::Gone => MemberState::Gone,
        },
        turn,
        announced: announced.collect(),
        more,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::allotment::MemberId;

    #[test]
    fn notices_round_trip() {
        let names = SubjectNames::new("hub");
        let announced = |demand| Announced { key: u64::MAX, demand, in_flight: 3 };
        let notice = MemberNotice {
            member: MemberId::new(0xab),
            state: MemberState::Stopping,
            turn: u64::MAX,
            announced: vec![announced(None), announced(Some(Demand { slots: 2, rate: u32::MAX }))],
            more: true,
        };
        let body = serde_json::to_vec(&to_body(&notice)).unwrap();
        assert_eq!(read(&names, "hub.members.00000000000000ab", &body), Some(notice));
    }

    #[test]
    fn invalid_notices_are_ignored() {
        let names = SubjectNames::new("hub");
        let valid = r#"{"state":"delivering","turn":1}"#;
        assert!(read(&names, "hub.members.00000000000000ab", valid.as_bytes()).is_some());
        let many = vec![(1, 1, 1, 1); MOST_ANNOUNCED + 1];
        let many = serde_json::json!({"state": "delivering", "turn": 1, "subscriptions": many}).to_string();
        for (subject, payload) in [
            ("hub.members.00000000000000ab", "here"),
            ("hub.members.00000000000000ab", r#"{"state":"delivering","turn":-1}"#),
            ("hub.members.00000000000000ab", r#"{"state":"asleep","turn":1}"#),
            ("hub.members.00000000000000ab", r#"{"state":"gone","turn":1,"subscriptions":[[1,2,3]]}"#),
            ("hub.members.00000000000000ab", many.as_str()),
            ("hub.members.00000000000000AB", valid),
            ("hub.members.ab", valid),
            ("hub.members.+0000000000000ab", valid),
            ("hub.holds.00000000000000ab", valid),
        ] {
            assert_eq!(read(&names, subject, payload.as_bytes()), None, "{subject} {payload}");
        }
    }
}
