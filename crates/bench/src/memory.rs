//! Figure (d): resident memory of the hub by number of subscriptions, after deliveries to some of them, and the growth for
//! each further one.

use super::error::BenchError;
use super::load::{NewEvent, register, subscription};
use super::process::resident_bytes;
use super::report::{Figure, Goal, Measure, Unit};
use super::rig::{Rig, bar};
use super::tally::Account;
use super::{SyncMode, Tenth};
use integration_hub::domain::subscription::Subscription;

/// Subscriptions of one tenant, which is the fan-out of an event.
const PER_TENANT: usize = 10;
/// Deliveries before the memory is read, because an idle hub needs less.
const DELIVERIES: u64 = 1_000;
const MEGABYTE: f64 = 1_000_000.0;

/// Measures with each of `counts` subscriptions.
pub(crate) async fn measure(sync: SyncMode, counts: &[usize]) -> Result<Figure, BenchError> {
    let (mut measures, mut points) = (Vec::new(), Vec::new());
    let (mut arrivals, mut still_owed) = (Account::default(), 0);
    for &count in counts {
        let rig = Rig::start(sync.interval(), DELIVERIES).await?;
        let bare = rig.bare_loop(DELIVERIES).await?;
        let (resident, account, owed) = with(&rig, sync, count).await?;
        rig.stop().await?;
        let value = resident as f64 / MEGABYTE;
        let bare = bare.resident_bytes as f64 / MEGABYTE;
        let goal = match count {
            10 => Some(Goal::below(value, 100.0, "100 MB")),
            100_000 => Some(Goal::below(value, 300.0, "300 MB")),
            _ => None,
        };
        let name = format!("{count} subscriptions");
        measures.push(Measure::new(name, value, Unit::Megabytes, Some(bare)).aim(goal));
        points.push((count as f64, resident as f64));
        arrivals += account;
        still_owed += owed;
    }
    if let (Some(first), Some(last)) = (points.first(), points.last())
        && last.0 > first.0
    {
        let growth = (last.1 - first.1) / (last.0 - first.0);
        measures.push(Measure::new("growth for each further one", growth, Unit::Bytes, None));
    }
    let title = "resident memory of the hub";
    let sync = sync.name();
    Ok(Figure { figure: "d", title, sync, measures, arrivals, still_owed, processor: None, with: Vec::new() })
}

async fn with(rig: &Rig, sync: SyncMode, count: usize) -> Result<(u64, Account, u64), BenchError> {
    let url = rig.receiver.url();
    let tenant = |number: usize| format!("tenant-{}", number / PER_TENANT);
    let subscriptions: Vec<Subscription> =
        (0..count).map(|n| subscription(n, &tenant(n), url)).collect::<Result<_, _>>()?;
    let progress = bar(count as u64, format!("(d) sync {}: {count} subscriptions", sync.name()));
    register(&rig.js, &subscriptions, |done| progress.inc(done)).await?;
    progress.finish_and_clear();
    let mut hub = rig.whole_hub().await?;
    let mut expected = Vec::new();
    for number in 0..DELIVERIES.tenth() {
        // Events of different tenants, from the first to the last.
        let at = (number as usize).wrapping_mul(7_919) % count.div_ceil(PER_TENANT) * PER_TENANT;
        let event = NewEvent::new(rig.js.names(), number, &tenant(at))?;
        let wanted = &subscriptions[at..count.min(at + PER_TENANT)];
        expected.extend(wanted.iter().map(|subscription| event.webhook_id(subscription)));
        event.publish(&rig.js).await?;
    }
    let progress = bar(expected.len() as u64, format!("(d) sync {}: delivering", sync.name()));
    rig.wait_for(&expected, &progress).await;
    progress.finish_and_clear();
    let owed = rig.wait_until_settled().await?.still_owed;
    hub.wait_until_gauge(&rig.client, "hub_subscriptions", count as f64).await?;
    let resident = resident_bytes(hub.pid())?;
    hub.stop().await?;
    let account = rig.receiver.tally().account(&expected);
    Ok((resident, account, owed))
}
