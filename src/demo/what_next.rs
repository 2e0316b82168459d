//! After the steps: commands to try, and the answers of the subscribers.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::narration::Narrator;
use super::stage::Stage;
use super::subscriber::{Subscriber, SubscriberLog};
use crate::shell_command::{executable, quoted};

/// Lines about one subscriber at a time; further answers are counted.
const MOST_LINES: u64 = 8;
/// Pause between two reports, so that many events do not flood the terminal.
const AT_MOST_EVERY: Duration = Duration::from_millis(200);

/// The commands to copy to another terminal.
pub(super) fn invitation(stage: &Stage, log: &Path) -> String {
    let hub = format!("{} --config {}", executable(), quoted(&stage.config.to_string_lossy()));
    let event = stage.js.names().event("policy.updated");
    let mut text = String::new();
    // Writing to a String cannot fail, so the results are dropped.
    let mut section = |title: &str, lines: &[String]| {
        let _ = writeln!(text, "\n  {title}");
        for line in lines {
            let _ = writeln!(text, "    {line}");
        }
    };
    section(
        "Publish an event, with the nats command line or with hub:",
        &[
            format!("nats --server {} pub {event} '{{\"policy\":\"p2\"}}'", stage.nats_url),
            format!("{hub} publish policy.updated '{{\"policy\":\"p2\"}}'"),
        ],
    );
    section(
        "Switch B off and on again:",
        &[format!("curl -X POST {}", stage.b.url("/off")), format!("curl -X POST {}", stage.b.url("/on"))],
    );
    section(
        "List the dead letters of B (redriven after 3s, 5s, 10s, 30s, 1m, 5m), and replay them at once:",
        &[
            format!("{hub} dlt list"),
            format!("{hub} dlt stats"),
            format!("{hub} dlt replay --subscription subscriber-b"),
        ],
    );
    section(
        "List subscriptions, domains and streams, and query readiness and metrics:",
        &[
            format!("{hub} subscription list"),
            format!("{hub} domain list"),
            format!("nats --server {} stream report", stage.nats_url),
            format!("curl {0}/readyz; curl {0}/metrics", stage.health_url),
        ],
    );
    section("Follow the log:", &[format!("tail -f {}", quoted(&log.to_string_lossy()))]);
    text
}

/// Reports the answers of the three subscribers until it is dropped.
pub(super) async fn narrate(stage: &Stage, narrator: &mut Narrator) {
    let subscribers = [&stage.a, &stage.b, &stage.c];
    let mut changes = subscribers.map(Subscriber::changes);
    let mut reported = subscribers.map(|subscriber| {
        let log = subscriber.log();
        (log.count, log.on)
    });
    loop {
        let [a, b, c] = &mut changes;
        tokio::select! {
            _ = a.changed() => {}
            _ = b.changed() => {}
            _ = c.changed() => {}
        }
        for ((subscriber, changes), reported) in subscribers.iter().zip(&mut changes).zip(&mut reported) {
            // Before the log is read, so that no change after it is missed.
            changes.mark_unchanged();
            report_news(subscriber.name(), &subscriber.log(), reported, narrator);
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
    }
}

/// Reports what is new since `count` answers and the state `on`, and updates them.
fn report_news(name: &str, log: &SubscriberLog, (count, on): &mut (u64, bool), narrator: &mut Narrator) {
    if log.on != *on {
        *on = log.on;
        narrator.report(&format!("{name} is switched {}", if log.on { "on" } else { "off" }));
    }
    let news = log.answers.iter().filter(|answer| answer.number > *count);
    for answer in news.take(usize::try_from(MOST_LINES).unwrap_or(usize::MAX)) {
        let (status, attempt, key, data) = (answer.status, answer.attempt, &answer.event_key, &answer.data);
        let times = if attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
        narrator.report(&format!("{name} answers {status} to {key} {data}{times}"));
    }
    let beyond = log.count.saturating_sub(*count).saturating_sub(MOST_LINES);
    if beyond > 0 {
        narrator.report(&format!("{name} answers {beyond} more"));
    }
    *count = (*count).max(log.count);
}
