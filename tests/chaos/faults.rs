//! The actors that inject the faults of a plan. Each has one fault at a time; they act at the same time.

use std::time::Duration;

use async_nats::jetstream;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::accounts::Disturbance;
use crate::broker::Broker;
use crate::clocks;
use crate::load::{KEYS, path, well};
use crate::plan::{Actor, Fault, Kind, Plan};
use crate::stage::{Hubs, Stage};
use crate::support::{Behaviour, FaultProxy, Hub, Receiver, eventually, print_output};

/// Time limit of an operator's command that fails while the servers are down.
const PATIENCE: Duration = Duration::from_secs(90);
/// Interval at which ended processes are noticed.
const SUPERVISED_EVERY: Duration = Duration::from_millis(200);
/// Interval at which a flapping endpoint changes.
const FLAPS_EVERY: Duration = Duration::from_millis(300);
/// Long enough to fill a small outbox.
const FILLING: Duration = Duration::from_secs(6);

/// Injects every fault, and returns all of them with their true times, after the last one has ended.
pub(crate) async fn inject(plan: &Plan, stage: &mut Stage, started: Instant) -> Vec<Disturbance> {
    let Stage { broker, hubs, proxies, clocks, operator, client, receiver, .. } = stage;
    let context = &client.context;
    let all = tokio::join!(
        processes(plan.of_actor(Actor::Processes), hubs, started),
        servers(plan.of_actor(Actor::Broker), broker, context, started),
        network(plan.of_actor(Actor::Network), proxies, started),
        endpoints(plan.of_actor(Actor::Endpoints), receiver, started),
        operations(plan.of_actor(Actor::Operator), operator, context, started),
        clocks::jump(plan.of_actor(Actor::Clocks), clocks, started),
    );
    [all.0, all.1, all.2, all.3, all.4, all.5].concat()
}

pub(crate) fn disturbance(fault: Fault, started: Instant, from: Duration) -> Disturbance {
    Disturbance {
        what: fault.kind.name().to_owned(),
        from,
        until: started.elapsed(),
        repeats: fault.kind.repeats(),
    }
}

async fn processes(faults: Vec<Fault>, hubs: &mut Hubs, started: Instant) -> Vec<Disturbance> {
    let mut injected = Vec::new();
    for fault in faults {
        supervise_until(started + fault.at, hubs).await;
        let from = started.elapsed();
        let target = fault.target % hubs.all.len();
        match fault.kind {
            Kind::KillHub => {
                if hubs.all[target].ended_by_itself().is_none() {
                    hubs.all[target].kill().await;
                }
                supervise_until(Instant::now() + fault.lasts, hubs).await;
                hubs.all[target].start();
            }
            Kind::FreezeHub => {
                hubs.supervise();
                hubs.all[target].freeze();
                supervise_until(Instant::now() + fault.lasts, hubs).await;
                hubs.all[target].thaw();
            }
            Kind::RollingRestart => {
                for index in 0..hubs.all.len() {
                    hubs.supervise();
                    hubs.all[index].terminate().await;
                    hubs.all[index].start();
                    hubs.ready().await;
                }
            }
            other => unreachable!("unexpected fault of a process: {}", other.name()),
        }
        injected.push(disturbance(fault, started, from));
    }
    injected
}

async fn supervise_until(moment: Instant, hubs: &mut Hubs) {
    while Instant::now() < moment {
        tokio::time::sleep_until(moment.min(Instant::now() + SUPERVISED_EVERY)).await;
        hubs.supervise();
    }
}

async fn servers(
    faults: Vec<Fault>,
    broker: &mut Broker,
    context: &jetstream::Context,
    started: Instant,
) -> Vec<Disturbance> {
    let mut injected = Vec::new();
    for fault in faults {
        tokio::time::sleep_until(started + fault.at).await;
        let from = started.elapsed();
        broker.fault(fault, context).await;
        injected.push(disturbance(fault, started, from));
    }
    injected
}

async fn network(faults: Vec<Fault>, proxies: &[FaultProxy], started: Instant) -> Vec<Disturbance> {
    let mut injected = Vec::new();
    for fault in faults {
        tokio::time::sleep_until(started + fault.at).await;
        let from = started.elapsed();
        let proxy = &proxies[fault.target % proxies.len()];
        match fault.kind {
            Kind::Cut => {
                proxy.set_refusing(true);
                proxy.cut();
                tokio::time::sleep(fault.lasts).await;
                proxy.set_refusing(false);
            }
            Kind::Silence => {
                proxy.freeze();
                tokio::time::sleep(fault.lasts).await;
                proxy.thaw();
            }
            other => unreachable!("unexpected fault of the network: {}", other.name()),
        }
        injected.push(disturbance(fault, started, from));
    }
    injected
}

async fn endpoints(faults: Vec<Fault>, receiver: &Receiver, started: Instant) -> Vec<Disturbance> {
    join_all(faults.into_iter().map(|fault| async move {
        tokio::time::sleep_until(started + fault.at).await;
        let from = started.elapsed();
        let (id, lasts) = match fault.kind {
            Kind::Flap => ("flapping", fault.lasts),
            Kind::Hang => ("hanging", fault.lasts),
            Kind::FullOutbox => ("hanging", fault.lasts.max(FILLING)),
            Kind::Refuse => ("refusing", fault.lasts),
            other => unreachable!("unexpected fault of an endpoint: {}", other.name()),
        };
        let (strict, path, until) = (path("strict"), path(id), Instant::now() + lasts);
        match fault.kind {
            Kind::Flap => {
                let faces = [Behaviour::status(503), well(), Behaviour::CloseMidAnswer, well()];
                for face in faces.iter().cycle() {
                    // A strict subscription has the same trouble, in order.
                    receiver.set(&path, face.clone());
                    receiver.set(&strict, face.clone());
                    if Instant::now() >= until {
                        break;
                    }
                    tokio::time::sleep(FLAPS_EVERY).await;
                }
            }
            Kind::Refuse => {
                receiver.set(&path, Behaviour::status(503));
                tokio::time::sleep_until(until).await;
            }
            _ => {
                receiver.set(&path, Behaviour::Hang);
                tokio::time::sleep_until(until).await;
            }
        }
        receiver.set(&path, well());
        receiver.set(&strict, well());
        disturbance(fault, started, from)
    }))
    .await
}

async fn operations(
    faults: Vec<Fault>,
    operator: &Hub,
    context: &jetstream::Context,
    started: Instant,
) -> Vec<Disturbance> {
    let mut injected = Vec::new();
    for fault in faults {
        tokio::time::sleep_until(started + fault.at).await;
        let from = started.elapsed();
        let (_, domain, outbox) = KEYS[fault.target % KEYS.len()];
        match fault.kind {
            Kind::DeleteLane => delete_consumer(context, outbox, "lane-shared").await,
            Kind::DeleteEventProcessor => delete_consumer(context, "HUB_EVENTS", "event-processor").await,
            Kind::DeleteAdvisories => {
                eventually(PATIENCE, "the stream of the advisories is deleted", async || {
                    context.delete_stream("HUB_ADVISORIES").await
                })
                .await;
            }
            Kind::PauseDomain => {
                command(operator, &["domain", "pause", domain]).await;
                tokio::time::sleep(fault.lasts).await;
                command(operator, &["domain", "resume", domain]).await;
            }
            Kind::Replay => replay(operator).await,
            other => unreachable!("unexpected operation: {}", other.name()),
        }
        injected.push(disturbance(fault, started, from));
    }
    injected
}

async fn delete_consumer(context: &jetstream::Context, stream: &str, consumer: &str) {
    eventually(PATIENCE, &format!("{consumer} of {stream} is deleted"), async || {
        let stream = context.get_stream(stream).await.map_err(|error| error.to_string())?;
        stream.delete_consumer(consumer).await.map_err(|error| error.to_string())
    })
    .await;
}

/// Replays all dead letters. There may be none.
async fn replay(operator: &Hub) {
    eventually(PATIENCE, "the dead letters are replayed", async || {
        let output = operator.cli(&["dlt", "replay", "--all"]).await;
        let nothing = String::from_utf8_lossy(&output.stderr).contains("no dead letter matches");
        if output.status.success() || nothing { Ok(()) } else { Err(print_output(&output)) }
    })
    .await;
}

/// Runs a command until it succeeds, as an operator does while the servers are down.
async fn command(operator: &Hub, args: &[&str]) {
    eventually(PATIENCE, &format!("`hub {}` succeeds", args.join(" ")), async || {
        let output = operator.cli(args).await;
        if output.status.success() { Ok(()) } else { Err(print_output(&output)) }
    })
    .await;
}
