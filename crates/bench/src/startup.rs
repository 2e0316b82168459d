//! Figure (s): the time from the start of the process until it is ready, by number of subscriptions in the registry.

use std::time::{Duration, Instant};

use super::SyncMode;
use super::error::BenchError;
use super::load::{NewEvent, register, subscription};
use super::report::{Figure, Goal, Measure, Unit};
use super::rig::{Rig, bar};
use super::tally::Account;
use integration_hub::domain::subscription::Subscription;

/// Subscriptions of one tenant, which is the fan-out of an event.
const PER_TENANT: usize = 10;
/// Starts with each number of subscriptions; the slowest is the result.
const STARTS: u64 = 3;

/// Measures with each of `counts` subscriptions.
pub(crate) async fn measure(sync: SyncMode, counts: &[usize]) -> Result<Figure, BenchError> {
    let mut measures = Vec::new();
    let (mut arrivals, mut still_owed) = (Account::default(), 0);
    for &count in counts {
        let (slowest, account, owed) = with(sync, count).await?;
        let value = slowest.as_secs_f64();
        let goal = (count == 100_000).then(|| Goal::below(value, 10.0, "10 s"));
        let name = format!("{count} subscriptions");
        measures.push(Measure::new(name, value, Unit::Seconds, None).aim(goal));
        arrivals += account;
        still_owed += owed;
    }
    let title = "from the start to ready, the slowest of three starts";
    Ok(Figure {
        figure: "s",
        title,
        sync: sync.name(),
        measures,
        arrivals,
        still_owed,
        processor: None,
        with: Vec::new(),
    })
}

async fn with(sync: SyncMode, count: usize) -> Result<(Duration, Account, u64), BenchError> {
    let rig = Rig::start(sync.interval(), STARTS * PER_TENANT as u64).await?;
    let tenant = |number: usize| format!("tenant-{}", number / PER_TENANT);
    let url = rig.receiver.url();
    let subscriptions: Vec<Subscription> =
        (0..count).map(|n| subscription(n, &tenant(n), url)).collect::<Result<_, _>>()?;
    let progress = bar(count as u64, format!("(s) sync {}: {count} subscriptions", sync.name()));
    register(&rig.js, &subscriptions, |done| progress.inc(done)).await?;
    progress.finish_and_clear();
    let (mut slowest, mut expected) = (Duration::ZERO, Vec::new());
    for number in 0..STARTS {
        let started = Instant::now();
        let hub = rig.whole_hub().await?;
        slowest = slowest.max(started.elapsed());
        // A ready hub has the last subscription in its index.
        let last = count - 1;
        let wanted = &subscriptions[last / PER_TENANT * PER_TENANT..];
        let event = NewEvent::new(rig.js.names(), number, &tenant(last))?;
        expected.extend(wanted.iter().map(|subscription| event.webhook_id(subscription)));
        event.publish(&rig.js).await?;
        let progress = bar(expected.len() as u64, format!("(s) sync {}: delivering", sync.name()));
        rig.wait_for(&expected, &progress).await;
        progress.finish_and_clear();
        hub.stop().await?;
    }
    let owed = rig.wait_until_settled().await?.still_owed;
    let account = rig.receiver.tally().account(&expected);
    rig.stop().await?;
    Ok((slowest, account, owed))
}
