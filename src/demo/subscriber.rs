//! A subscriber of the demo: a receiver that checks credentials, may be slow, and can be switched off and on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hub_testkit::receiver::{Behaviour, Guard, Received, Receiver};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::expectation::Unmet;

const EVENTS: &str = "/events";
/// Requests that are remembered; the oldest are forgotten first.
const MOST_REMEMBERED: usize = 1_000;
/// Characters of an event's data that are shown.
const MOST_SHOWN: usize = 100;

/// The credentials that a subscriber requires.
pub(super) enum Credentials {
    None,
    /// In the header `x-api-key`.
    ApiKey(String),
    /// A bearer token that this guard accepts.
    OAuth2(Guard),
}

/// Serves `POST /events`, and the switch `POST /on` and `POST /off`, on a free loopback port until it is dropped.
pub(super) struct Subscriber {
    name: &'static str,
    receiver: Receiver,
    on: Arc<AtomicBool>,
}

/// The state of a subscriber, and its last answers.
pub(super) struct SubscriberLog {
    pub on: bool,
    /// The number of answered deliveries.
    pub count: u64,
    /// The last of them, in the order of the answers.
    pub answers: Vec<Answer>,
}

/// One answered delivery.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Its position among all answers, from 1.
    pub number: u64,
    pub arrived: Instant,
    pub status: u16,
    /// The headers `webhook-id` and `webhook-attempt` of the delivery.
    pub webhook_id: String,
    pub attempt: u32,
    /// The `type` of the CloudEvent, and its `data` as in the body, shortened.
    pub event_key: String,
    pub data: String,
}

#[derive(Deserialize)]
struct CloudEvent<'a> {
    r#type: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl Subscriber {
    /// It answers each delivery after `pause`.
    ///
    /// # Errors
    ///
    /// No loopback port is free.
    pub(super) async fn start(
        name: &'static str,
        credentials: Credentials,
        pause: Duration,
        on: bool,
    ) -> std::io::Result<Self> {
        let receiver = Receiver::bind(MOST_REMEMBERED).await?;
        let on = Arc::new(AtomicBool::new(on));
        receiver.set_default(Behaviour::text(404, "paths: /events, /on, /off\n"));
        receiver.set("/on", switch(&on, true, "on: accepts events\n"));
        receiver.set("/off", switch(&on, false, "off: answers 503\n"));
        let is_on = on.clone();
        let take = post(move |request| {
            Behaviour::status(match &credentials {
                Credentials::ApiKey(key) if request.header("x-api-key") != key => 401,
                Credentials::OAuth2(accepts) if !accepts(&request.headers) => 401,
                _ if !is_on.load(Ordering::Relaxed) => 503,
                _ if CloudEvent::of(request).is_none() => 400,
                _ => 200,
            })
        });
        receiver.set(EVENTS, Behaviour::Slow(pause, Box::new(take)));
        Ok(Self { name, receiver, on })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// `http://<address><path>`
    pub(super) fn url(&self, path: &str) -> String {
        self.receiver.url(path)
    }

    /// The URL of its deliveries.
    pub(super) fn events_url(&self) -> String {
        self.url(EVENTS)
    }

    pub(super) fn switch_on(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    pub(super) fn log(&self) -> SubscriberLog {
        let received = self.receiver.received(EVENTS);
        let mut answers: Vec<Answer> = received.iter().filter_map(Answer::of).collect();
        answers.sort_by_key(|answer| answer.number);
        let count = answers.last().map_or(0, |last| last.number);
        SubscriberLog { on: self.on.load(Ordering::Relaxed), count, answers }
    }

    /// Changes whenever the log may have changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.receiver.changes()
    }

    /// Waits until the log shows what was expected: `look` returns it, or what it found instead.
    ///
    /// # Errors
    ///
    /// After `limit`, with what was found last.
    pub(super) async fn until<T>(
        &self,
        limit: Duration,
        expected: &str,
        look: impl Fn(&SubscriberLog) -> Result<T, String>,
    ) -> Result<T, Unmet> {
        let mut changes = self.changes();
        let looking = async {
            loop {
                // Before the look, so that no change after it is missed.
                changes.mark_unchanged();
                if let Ok(found) = look(&self.log()) {
                    return found;
                }
                if changes.changed().await.is_err() {
                    // Not reached: the receiver, which sends the changes, lives as long as `self`.
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(limit, looking).await {
            Ok(found) => Ok(found),
            Err(_) => {
                look(&self.log()).map_err(|seen| Unmet::new(expected, format!("{seen} (after {limit:?})")))
            }
        }
    }
}

impl SubscriberLog {
    /// The answers with a 2xx, in their order.
    pub(super) fn accepted(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(|answer| (200..300).contains(&answer.status))
    }

    /// The last answers as readable text.
    pub(super) fn summary(&self) -> String {
        let last = self.answers.iter().rev().take(5).rev();
        let last: Vec<String> =
            last.map(|answer| format!("{} to {} {}", answer.status, answer.event_key, answer.data)).collect();
        match last.is_empty() {
            true => "no deliveries".to_owned(),
            false => format!("{} answers, the last: {}", self.count, last.join(", ")),
        }
    }
}

impl Answer {
    /// `None` while the request is in progress.
    fn of(request: &Received) -> Option<Self> {
        let event = CloudEvent::of(request);
        let data = event.as_ref().and_then(|event| event.data).map(RawValue::get).unwrap_or_default();
        Some(Self {
            number: request.answer_number?,
            arrived: request.arrived,
            status: request.answered?,
            webhook_id: request.webhook_id().to_owned(),
            attempt: request.header("webhook-attempt").parse().unwrap_or(0),
            data: data.chars().take(MOST_SHOWN).collect(),
            event_key: event.map(|event| event.r#type).unwrap_or_default(),
        })
    }
}

impl<'a> CloudEvent<'a> {
    fn of(request: &'a Received) -> Option<Self> {
        serde_json::from_slice(&request.body).ok()
    }
}

fn switch(switch: &Arc<AtomicBool>, on: bool, answer: &'static str) -> Behaviour {
    let switch = switch.clone();
    post(move |_| {
        switch.store(on, Ordering::Relaxed);
        Behaviour::text(200, answer)
    })
}

/// Answers 405 to every other method.
fn post(choose: impl Fn(&Received) -> Behaviour + Send + Sync + 'static) -> Behaviour {
    Behaviour::Choose(Arc::new(move |request: &Received| match request.method.as_str() {
        "POST" => choose(request),
        _ => Behaviour::status(405),
    }))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Sends a request, and returns the status.
    async fn send(subscriber: &Subscriber, method: &str, path: &str, headers: &str, body: &str) -> u16 {
        let mut stream = TcpStream::connect(subscriber.receiver.address()).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}");
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn it_checks_the_key_and_the_switch_and_remembers_its_answers() {
        let key = Credentials::ApiKey("k".to_owned());
        let subscriber = Subscriber::start("B", key, Duration::ZERO, false).await.unwrap();
        let headers = "x-api-key: k\r\nwebhook-id: e1\r\nwebhook-attempt: 2\r\n";
        let event = r#"{"type":"policy.updated","data":{"policy":"p1"}}"#;
        let deliver =
            async |headers: &str, body: &str| send(&subscriber, "POST", EVENTS, headers, body).await;
        assert_eq!(deliver("", event).await, 401);
        assert_eq!(deliver(headers, event).await, 503);
        assert_eq!(send(&subscriber, "GET", "/on", "", "").await, 405);
        assert_eq!(send(&subscriber, "POST", "/elsewhere", "", "").await, 404);
        assert!(!subscriber.log().on);
        assert_eq!(send(&subscriber, "POST", "/on", "", "").await, 200);
        assert!(subscriber.log().on);
        assert_eq!(deliver(headers, "no event").await, 400);
        assert_eq!(deliver(headers, event).await, 200);

        let log = subscriber.log();
        let answers: Vec<_> = log.answers.iter().map(|answer| (answer.number, answer.status)).collect();
        assert_eq!(answers, [(1, 401), (2, 503), (3, 400), (4, 200)]);
        let last = log.accepted().next().unwrap();
        assert_eq!((last.webhook_id.as_str(), last.attempt, log.count), ("e1", 2, 4));
        assert_eq!((last.event_key.as_str(), last.data.as_str()), ("policy.updated", r#"{"policy":"p1"}"#));
    }

    #[tokio::test]
    async fn an_expectation_that_is_not_met_names_what_was_found() {
        let subscriber = Subscriber::start("C", Credentials::None, Duration::ZERO, true).await.unwrap();
        let look = |log: &SubscriberLog| if log.count == 1 { Ok(()) } else { Err(log.summary()) };
        let unmet = subscriber.until(Duration::from_millis(50), "a delivery", look).await.unwrap_err();
        assert_eq!(unmet.seen.to_string(), "no deliveries (after 50ms)");
        let (met, status) = tokio::join!(
            subscriber.until(Duration::from_secs(5), "a delivery", look),
            send(&subscriber, "POST", EVENTS, "", r#"{"type":"user.created"}"#),
        );
        assert_eq!((met.is_ok(), status), (true, 200));
    }
}
