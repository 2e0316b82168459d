//! The steps of the demo: a policy event for three subscribers, one of which is down and one slow.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::expectation::{Unmet, holds, until};
use super::narration::Narrator;
use super::stage::{IN_FLIGHT_OF_C, PAUSE_OF_C, Stage};
use super::subscriber::{Answer, Subscriber};
use crate::domain::dead_letter::DeadLetterState;
use crate::domain::outcome::Reason;
use crate::nats::{DeadLetterEntry, DeadLetterQuery, NatsError};

/// Time limit of each check, many times what it needs.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

const POLICY_DOMAIN: &str = "policy-client";
const POLICY: &str = r#"{"policy":"p1"}"#;
const USER: &str = r#"{"user_id":"u1"}"#;
/// Events in the burst, more than C can process at once.
const BURST: usize = 12;

/// Runs all steps, until a check does not hold.
pub(super) async fn play(stage: &Stage, narrator: &mut Narrator, limit: Duration) -> Result<(), Unmet> {
    let mut play = Play { stage, narrator, limit };
    play.provisioned().await?;
    play.subscribed().await?;
    play.a_user_event().await?;
    let first = play.a_policy_event().await?;
    let letter = play.dead_letter(&first).await?;
    play.redrive(&letter).await?;
    play.a_slow_subscriber().await?;
    play.nothing_is_pending().await
}

struct Play<'a> {
    stage: &'a Stage,
    narrator: &'a mut Narrator,
    limit: Duration,
}

impl Play<'_> {
    async fn provisioned(&mut self) -> Result<(), Unmet> {
        self.narrator.heading("The hub: streams, consumers, and every role in this process");
        let readiness = &self.stage.readiness;
        until(self.limit, "every role ready", async || {
            let missing = readiness.missing();
            if missing.is_empty() { Ok(()) } else { Err(format!("not ready: {}", missing.join(", ")).into()) }
        })
        .await?;
        let names = self.stage.js.names();
        let expected = "an empty outbox and an empty dead-letter stream (DLT) for each domain";
        for domain in self.domains() {
            for stream in [names.outbox_stream(&domain), names.dlt_stream(&domain)] {
                let depth = self.depth(&stream).await.map_err(|seen| Unmet::new(expected, seen))?;
                holds(depth == 0, expected, format!("{stream} has {depth} messages"))?;
            }
        }
        self.narrator.confirm(&format!(
            "nats-server {}; {} domains, each with an outbox and a dead-letter stream (DLT), all empty",
            self.stage.js.server_version(),
            self.domains().len()
        ));
        self.narrator.confirm("every role is ready");
        Ok(())
    }

    async fn subscribed(&mut self) -> Result<(), Unmet> {
        self.narrator.heading("Three subscribers, each at its own endpoint");
        let expected = "three subscriptions in the registry, without a credential in clear text";
        for subscription in self.stage.subscriptions() {
            let applied = self.stage.apply(subscription).await;
            let applied = applied.map_err(|error| Unmet::failed(expected, error))?;
            let names = self.stage.js.names();
            let name = applied.reference().map_err(|error| Unmet::failed(expected, error))?;
            let stored = self
                .stage
                .js
                .get_last(&names.subscriptions_stream(), &names.subscription_key(&name))
                .await
                .map_err(|error| Unmet::failed(expected, error))?;
            let Some(stored) = stored else {
                return Err(Unmet::new(expected, format!("{} does not exist", applied.id)));
            };
            let text = String::from_utf8_lossy(&stored.payload);
            let clear = self.stage.secrets.iter().any(|secret| text.contains(secret));
            holds(!clear, expected, format!("a credential of {} is stored in clear text", applied.id))?;
        }
        self.narrator
            .report("A: policy.>             works, and requires an OAuth2 token (client credentials)");
        self.narrator.report("B: policy.updated       is down (answers 503), and requires an API key");
        self.narrator.report(&format!(
            "C: policy.> and user.>  is slow: {PAUSE_OF_C:?} for each answer, {IN_FLIGHT_OF_C} at a time"
        ));
        self.narrator.confirm("the three subscriptions are stored, their credentials sealed");
        Ok(())
    }

    async fn a_user_event(&mut self) -> Result<(), Unmet> {
        self.narrator.heading("An event is delivered to its subscribers only");
        let published = self.publish("user.created", USER).await?;
        let answer = self.accepted(&self.stage.c, "C to accept the user event", USER).await?;
        for other in [&self.stage.a, &self.stage.b] {
            let log = other.log();
            holds(log.count == 0, "no delivery to A and B, which do not select user events", log.summary())?;
        }
        self.narrator.confirm(&format!(
            "it reached C after {} (C takes {PAUSE_OF_C:?} to answer); A and B, which do not select it, got nothing",
            millis(answer.arrived - published)
        ));
        Ok(())
    }

    /// A accepts it; B fails until the attempts are used up. Returns the last answer of B.
    async fn a_policy_event(&mut self) -> Result<Answer, Unmet> {
        self.narrator.heading("One policy event: A gets it, B is down");
        let published = self.publish("policy.updated", POLICY).await?;
        let answer = self.accepted(&self.stage.a, "A to accept the policy event", POLICY).await?;
        let tokens = self.stage.tokens.issued();
        holds(tokens >= 1, "a token issued by the token endpoint", format!("{tokens} tokens issued"))?;
        self.narrator.confirm(&format!(
            "A has it after {}, with a token that the hub fetched for it",
            millis(answer.arrived - published)
        ));

        let most = self.stage.settings.delivery.max_deliver;
        let mut before: Option<Answer> = None;
        for attempt in 1..=most {
            let expected = format!("attempt {attempt} of {most} at B, answered 503");
            let answer = self.stage.b.until(self.limit, &expected, |log| {
                let nth = log.answers.get(attempt as usize - 1);
                nth.cloned().ok_or_else(|| log.summary())
            });
            let answer = answer.await?;
            let same = before.as_ref().is_none_or(|before| before.webhook_id == answer.webhook_id);
            holds(
                answer.status == 503 && answer.attempt == attempt && answer.data == POLICY && same,
                &format!("{expected}, under the webhook-id of the attempts before"),
                format!("{answer:?}"),
            )?;
            let waited = before.as_ref().map_or_else(
                || format!("after {}", millis(answer.arrived - published)),
                |before| format!("{} later", millis(answer.arrived - before.arrived)),
            );
            self.narrator.report(&format!("B, attempt {attempt} of {most}, {waited}: 503"));
            before = Some(answer);
        }
        self.accepted(&self.stage.c, "C to accept the policy event", POLICY).await?;
        self.narrator.confirm(&format!(
            "B was tried {most} times, with growing waits, always with the same webhook-id"
        ));
        before.ok_or_else(|| Unmet::new("at least one attempt", "delivery.max_deliver is 0"))
    }

    async fn dead_letter(&mut self, failed: &Answer) -> Result<DeadLetterEntry, Unmet> {
        self.narrator.heading("The event that B did not accept is a dead letter of its domain");
        let names = self.stage.js.names();
        let dlt = names.dlt_stream(POLICY_DOMAIN);
        let expected = format!("one dead letter in {dlt}: for subscriber-b, exhausted, with its last status");
        let letter = until(self.limit, &expected, async || {
            let query = DeadLetterQuery::default();
            let page = self.stage.js.dead_letters(POLICY_DOMAIN, &query, 1, 10).await;
            let entries = page?.entries;
            match <[DeadLetterEntry; 1]>::try_from(entries) {
                Ok([entry]) => Ok(entry),
                Err(entries) => Err(format!("{} dead letters", entries.len()).into()),
            }
        })
        .await?;
        let found = &letter.letter;
        holds(
            found.subscription == "subscriber-b"
                && found.id == failed.webhook_id
                && found.event_key == "policy.updated"
                && found.reason == Reason::Exhausted
                && found.attempts == self.stage.settings.delivery.max_deliver
                && found.last_status == Some(503)
                && found.state == DeadLetterState::Scheduled,
            &expected,
            format!("{found:?}"),
        )?;
        for domain in self.domains() {
            let stream = self.stage.js.names().dlt_stream(&domain);
            let expected = "a dead letter in the policy DLT and in no other";
            let depth = self.depth(&stream).await.map_err(|seen| Unmet::new(expected, seen))?;
            let right = if domain == POLICY_DOMAIN { 1 } else { 0 };
            holds(depth == right, expected, format!("{stream} has {depth} messages"))?;
        }
        self.empty(&self.stage.js.names().outbox_stream(POLICY_DOMAIN)).await?;
        self.narrator.report(&format!(
            "{dlt} holds it: subscriber-b, {}, {} attempts, {}",
            found.reason,
            found.attempts,
            found.last_error.as_deref().unwrap_or_default()
        ));
        self.narrator.confirm("the dead letter is in the policy DLT and in no other; the outbox is empty");
        Ok(letter)
    }

    async fn redrive(&mut self, letter: &DeadLetterEntry) -> Result<(), Unmet> {
        self.narrator.heading("B is switched on, and the redrive brings the dead letter back");
        self.stage.b.switch_on();
        self.narrator.report(&format!(
            "B is on; the broker has the timer of the redrive, {} after the failure",
            letter
                .letter
                .next_redrive_at
                .map(|at| format!("{:.1} s", (at - letter.letter.failed_at).as_seconds_f64()))
                .unwrap_or_default()
        ));
        let answer = self.accepted(&self.stage.b, "B to accept the redriven policy event", POLICY).await?;
        let most = self.stage.settings.delivery.max_deliver;
        holds(
            answer.webhook_id == letter.letter.id && answer.attempt > most,
            "the same webhook-id as before, with a higher attempt",
            format!("{answer:?}"),
        )?;
        self.narrator.confirm(&format!("B has it, at attempt {}, under the same webhook-id", answer.attempt));
        self.empty(&self.stage.js.names().dlt_stream(POLICY_DOMAIN)).await?;
        self.narrator.confirm("the dead letter is resolved: the depth of the policy DLT is 0");
        Ok(())
    }

    async fn a_slow_subscriber(&mut self) -> Result<(), Unmet> {
        self.narrator.heading("C is slow, and does not delay A");
        let mut published = Vec::with_capacity(BURST);
        self.narrator.report(&format!("{BURST} events policy.reviewed at once, for A and C"));
        for number in 1..=BURST {
            let data = format!(r#"{{"policy":"r{number}"}}"#);
            published.push((self.publish_silently("policy.reviewed", &data).await?, data));
        }
        let expected = format!("A to accept all {BURST} before C does");
        let (arrived, by_c) = {
            let arrived = self.stage.a.until(self.limit, &expected, |log| {
                let arrived: Vec<Duration> = published
                    .iter()
                    .filter_map(|(at, data)| {
                        let answer = log.accepted().find(|answer| answer.data == *data)?;
                        Some(answer.arrived.saturating_duration_since(*at))
                    })
                    .collect();
                if arrived.len() == BURST { Ok(arrived) } else { Err(format!("{} so far", arrived.len())) }
            });
            (arrived.await?, reviewed(&self.stage.c))
        };
        let mut sorted = arrived;
        sorted.sort();
        let (middle, slowest) = (sorted[BURST / 2], sorted[BURST - 1]);
        holds(by_c < BURST, &expected, format!("C had all {by_c} by then"))?;
        holds(
            slowest < PAUSE_OF_C,
            &format!("A's slowest delivery to take less than one answer of C, {PAUSE_OF_C:?}"),
            millis(slowest),
        )?;
        self.narrator.report(&format!(
            "A has all {BURST}: half of them within {}, the slowest after {}",
            millis(middle),
            millis(slowest)
        ));
        self.narrator
            .confirm(&format!("at that moment C had answered {by_c} of {BURST}: it delayed only itself"));
        let expected = format!("C to accept all {BURST} later");
        let last = self.stage.c.until(self.limit, &expected, |log| {
            let count = log.accepted().filter(|answer| answer.event_key == "policy.reviewed").count();
            if count < BURST {
                Err(format!("{count} so far"))
            } else {
                Ok(log.answers.last().map(|last| last.arrived))
            }
        });
        let took = last.await?.map(|at| at.saturating_duration_since(published[0].0) + PAUSE_OF_C);
        self.narrator
            .confirm(&format!("C has all {BURST} as well, after {}", took.map(millis).unwrap_or_default()));
        Ok(())
    }

    async fn nothing_is_pending(&mut self) -> Result<(), Unmet> {
        self.narrator.heading("At the end nothing is pending");
        let names = self.stage.js.names().clone();
        let mut streams = vec![names.events_stream(), names.advisories_stream(), names.rejected_stream()];
        for domain in self.domains() {
            streams.extend([names.outbox_stream(&domain), names.dlt_stream(&domain)]);
        }
        for stream in streams {
            self.empty(&stream).await?;
        }
        for (subscriber, wanted) in
            [(&self.stage.a, 1 + BURST), (&self.stage.b, 1), (&self.stage.c, 2 + BURST)]
        {
            let log = subscriber.log();
            let mut ids: Vec<&str> = log.accepted().map(|answer| answer.webhook_id.as_str()).collect();
            let count = ids.len();
            ids.sort_unstable();
            ids.dedup();
            holds(
                count == wanted && ids.len() == wanted,
                &format!("{wanted} events accepted by {}, each once", subscriber.name()),
                format!("{count}, {} of them distinct", ids.len()),
            )?;
        }
        self.narrator.confirm(
            "every outbox and every DLT is empty; each subscriber has each of its events exactly once",
        );
        Ok(())
    }

    async fn publish(&mut self, key: &str, data: &str) -> Result<Instant, Unmet> {
        self.narrator.report(&format!("nats pub {} '{data}'", self.stage.js.names().event(key)));
        self.publish_silently(key, data).await
    }

    async fn publish_silently(&self, key: &str, data: &str) -> Result<Instant, Unmet> {
        let subject = self.stage.js.names().event(key);
        let at = Instant::now();
        match self.stage.publisher.publish_plain(&subject, Bytes::from(data.to_owned())).await {
            Ok(()) => Ok(at),
            Err(error) => Err(Unmet::failed(format!("an event published on {subject}"), error)),
        }
    }

    /// The first 2xx of the subscriber to an event with this data.
    async fn accepted(&self, subscriber: &Subscriber, expected: &str, data: &str) -> Result<Answer, Unmet> {
        subscriber
            .until(self.limit, expected, |log| {
                log.accepted().find(|answer| answer.data == data).cloned().ok_or_else(|| log.summary())
            })
            .await
    }

    async fn depth(&self, stream: &str) -> Result<u64, NatsError> {
        let info = self.stage.js.stream_info(stream).await?;
        Ok(info.state.messages)
    }

    /// Waits until a stream is empty.
    async fn empty(&self, stream: &str) -> Result<(), Unmet> {
        until(self.limit, &format!("{stream} to be empty"), async || match self.depth(stream).await? {
            0 => Ok(()),
            depth => Err(format!("it has {depth} messages").into()),
        })
        .await
    }

    fn domains(&self) -> Vec<String> {
        self.stage.settings.domains.iter().map(|domain| domain.name.clone()).collect()
    }
}

/// The number of events of the burst that it has accepted.
fn reviewed(subscriber: &Subscriber) -> usize {
    subscriber.log().accepted().filter(|answer| answer.event_key == "policy.reviewed").count()
}

fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1_000.0;
    if millis < 10.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}
