//! After the steps: what to try, and what the subscribers do meanwhile.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::receiver::{Receiver, ReceiverLog};
use super::stage::Stage;
use super::telling::Teller;
use crate::shell_command::{executable, quoted};

/// Most lines about one receiver at a time; further ones are counted.
const MOST_LINES: u64 = 8;
/// Between two tellings, so that a flood of events does not flood the terminal.
const AT_MOST_EVERY: Duration = Duration::from_millis(200);

/// The lines to copy into another terminal.
pub fn invitation(stage: &Stage, log: &Path) -> String {
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
        "Publish an event, with the nats command line or with the hub's own:",
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
        "See what B missed (redriven after 3s, 5s, 10s, 30s, 1m, 5m), and send it again at once:",
        &[
            format!("{hub} dlt list"),
            format!("{hub} dlt stats"),
            format!("{hub} dlt replay --subscription subscriber-b"),
        ],
    );
    section(
        "Subscriptions, domains, streams, and how the hub is:",
        &[
            format!("{hub} subscription list"),
            format!("{hub} domain list"),
            format!("nats --server {} stream report", stage.nats_url),
            format!("curl {0}/readyz; curl {0}/metrics", stage.health_url),
        ],
    );
    section("The hub's log:", &[format!("tail -f {}", quoted(&log.to_string_lossy()))]);
    text
}

/// Prints the answers of the three receivers for as long as it is polled.
pub async fn narrate(stage: &Stage, teller: &mut Teller) {
    let receivers = [&stage.a, &stage.b, &stage.c];
    let mut logs = receivers.map(Receiver::watch);
    let mut told = [0; 3];
    let mut on = [true; 3];
    for ((log, told), on) in logs.iter_mut().zip(&mut told).zip(&mut on) {
        let log = log.borrow_and_update();
        (*told, *on) = (log.count, log.on);
    }
    loop {
        let [a, b, c] = &mut logs;
        tokio::select! {
            _ = a.changed() => {}
            _ = b.changed() => {}
            _ = c.changed() => {}
        }
        for (((receiver, log), told), on) in receivers.iter().zip(&mut logs).zip(&mut told).zip(&mut on) {
            tell_news(receiver.name(), log, told, on, teller);
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
    }
}

fn tell_news(
    name: &str,
    log: &mut watch::Receiver<ReceiverLog>,
    told: &mut u64,
    on: &mut bool,
    teller: &mut Teller,
) {
    let log = log.borrow_and_update();
    if log.on != *on {
        *on = log.on;
        teller.tell(&format!("{name} is switched {}", if log.on { "on" } else { "off" }));
    }
    let news = log.answers.iter().filter(|answer| answer.number > *told);
    for answer in news.take(usize::try_from(MOST_LINES).unwrap_or(usize::MAX)) {
        let (status, attempt, key, data) = (answer.status, answer.attempt, &answer.event_key, &answer.data);
        let times = if attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
        teller.tell(&format!("{name} answers {status} to {key} {data}{times}"));
    }
    let beyond = (log.count - *told).saturating_sub(MOST_LINES);
    if beyond > 0 {
        teller.tell(&format!("{name} answers {beyond} more"));
    }
    *told = log.count;
}
