//! Runs one plan.

use std::time::SystemTime;

use tokio::time::Instant;

use crate::accounts::Accounts;
use crate::load::publish;
use crate::plan::Plan;
use crate::stage::Stage;
use crate::{faults, settle};

/// What a plan has shown.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) deliveries: usize,
    pub(crate) doubles: usize,
    /// Faults that may repeat deliveries.
    pub(crate) interruptions: usize,
}

/// Runs a plan to its end.
///
/// # Panics
///
/// If a pair is lost, a double has no explanation, or something is left. The processes print the ends of their logs.
pub(crate) async fn run(plan: Plan) -> Outcome {
    println!("{plan}");
    let mut stage = Stage::set(&plan).await;
    let context = stage.client.context.clone();
    let (started, clock) = (Instant::now(), SystemTime::now());
    let (published, disturbances) =
        tokio::join!(publish(&context, started), faults::inject(&plan, &mut stage, started));
    let drained = settle::drain(&mut stage).await;
    let took = started.elapsed();
    let (arrivals, aside) = (settle::arrivals(&stage, clock), settle::set_aside(&stage.client).await);
    let accounts = Accounts::of(&published, &stage.subscribers, &arrivals, &aside, &disturbances);
    let restarts = stage.hubs.restarts;
    println!("seed {} in {:.0} s: {accounts}; {restarts} restarts", plan.seed, took.as_secs_f64());
    let mut problems = accounts.problems();
    problems.extend(drained.err());
    assert!(problems.is_empty(), "{plan}: {accounts}; {problems:#?}; injected: {disturbances:#?}");
    let interruptions = disturbances.iter().filter(|one| one.repeats).count();
    Outcome { deliveries: arrivals.len(), doubles: accounts.doubles.len(), interruptions }
}
