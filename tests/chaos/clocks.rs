//! Wall clocks of processes that jump.

use std::sync::Arc;

use tokio::time::Instant;

use crate::accounts::Disturbance;
use crate::faults::disturbance;
use crate::plan::Fault;
use crate::support::ShiftedClock;

/// Seconds by which a clock is wrong after each jump of a fault; the last remains until the end of the plan.
const JUMPS: [[i64; 2]; 8] = [
    [3 * HOUR, 0],
    [-3 * HOUR, 0],
    [2 * HOUR, -2 * HOUR],
    [-26 * HOUR, 26 * HOUR],
    [90, -90],
    [-10 * MINUTE, 10 * MINUTE],
    [0, -5 * HOUR],
    [0, 5 * HOUR],
];
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;

/// Lets the clock of one process jump at the beginning and at the end of each fault.
pub(crate) async fn jump(
    faults: Vec<Fault>,
    clocks: &[Arc<ShiftedClock>],
    started: Instant,
) -> Vec<Disturbance> {
    let mut injected = Vec::new();
    for fault in faults {
        if clocks.is_empty() {
            // The missing compiler was reported.
            continue;
        }
        tokio::time::sleep_until(started + fault.at).await;
        let from = started.elapsed();
        let clock = &clocks[fault.target % clocks.len()];
        let [first, second] = JUMPS[fault.target / clocks.len() % JUMPS.len()];
        clock.set(first);
        tokio::time::sleep(fault.lasts).await;
        clock.set(second);
        injected.push(disturbance(fault, started, from));
    }
    injected
}
