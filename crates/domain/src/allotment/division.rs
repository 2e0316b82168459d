//! Divides the limits of a subscription among processes. All processes compute the same division from the same notices,
//! so that the parts together never exceed the limits.
//!
//! A process that had to wait announces its demand. Those with a demand get the limits, each up to its demand, and what is
//! left in equal parts. The others keep a small part, so that their first delivery need not wait for an announcement. If
//! there are fewer slots than processes with a demand, these take turns, with the slots and with the rate.

/// What a process wants of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Concurrent deliveries.
    pub slots: u32,
    /// Deliveries per second.
    pub rate: u32,
}

/// What a process may use of the limits of a subscription.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    /// Concurrent deliveries.
    pub(super) slots: usize,
    /// The fraction of the rate limit, from 0 to 1.
    pub(super) rate: f64,
}

/// Rates below this are divided also if slots take turns, because a turn would be too short for a token.
const LEAST_RATE_OF_TURNS: f64 = 1.0;
/// The fraction of the rate for all processes without a demand.
const IDLE_RATE: f64 = 0.1;

/// The limits of a subscription as far as they are divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Divided {
    pub(super) slots: usize,
    pub(super) per_second: Option<f64>,
    /// Distributes remainders and turns of different subscriptions differently.
    pub(super) shift: u64,
    /// All processes have the same turn.
    pub(super) turn: u64,
}

/// The parts of the processes, in their order; `None` for one without a demand.
pub(super) fn divide(limits: Divided, demands: &[Option<Demand>]) -> Vec<Part> {
    let slots = slots(limits, demands);
    let rates = match limits.per_second {
        Some(per_second) if per_second >= LEAST_RATE_OF_TURNS && take_turns(&slots, demands) => {
            slots.iter().map(|part| *part as f64 / limits.slots as f64).collect()
        }
        Some(per_second) => rates(per_second, demands),
        None => vec![1.0; demands.len()],
    };
    slots.into_iter().zip(rates).map(|(slots, rate)| Part { slots, rate }).collect()
}

/// Whether processes with a demand have no slot at the moment.
fn take_turns(slots: &[usize], demands: &[Option<Demand>]) -> bool {
    slots.iter().zip(demands).any(|(slots, demand)| *slots == 0 && demand.is_some())
}

/// The positions of those with a demand, by demand.
fn ordered(demands: &[Option<Demand>], of: impl Fn(&Demand) -> u32) -> Vec<(u32, usize)> {
    let wanted = demands.iter().enumerate();
    let mut order: Vec<(u32, usize)> =
        wanted.filter_map(|(at, demand)| Some((of(demand.as_ref()?), at))).collect();
    order.sort_unstable();
    order
}

fn slots(limits: Divided, demands: &[Option<Demand>]) -> Vec<usize> {
    let mut parts = vec![0; demands.len()];
    let order = ordered(demands, |demand| demand.slots);
    if order.is_empty() {
        spread(limits.slots, &(0..demands.len()).collect::<Vec<_>>(), limits, &mut parts);
        return parts;
    }
    let mut free = limits.slots;
    if limits.slots >= 2 * demands.len() {
        for (part, _) in parts.iter_mut().zip(demands).filter(|(_, demand)| demand.is_none()) {
            *part = 1;
            free -= 1;
        }
    }
    let mut among: Vec<usize> = order.iter().map(|(_, at)| *at).collect();
    among.sort_unstable();
    if free >= order.len() {
        for (nth, (demand, at)) in order.iter().enumerate() {
            let equal = free / (order.len() - nth);
            let part = usize::try_from(*demand).unwrap_or(equal).clamp(1, equal);
            parts[*at] = part;
            free -= part;
        }
    }
    spread(free, &among, limits, &mut parts);
    parts
}

/// Distributes slots in equal parts. If there are fewer slots than positions, these take turns.
fn spread(slots: usize, among: &[usize], limits: Divided, parts: &mut [usize]) {
    let count = among.len().max(1);
    let (each, rest) = (slots / count, slots % count);
    let takes_turns = among.iter().any(|at| parts[*at] + each == 0);
    // In each cycle of turns each position is admitted. Cycles start anywhere, so that deliveries that take as long as a
    // cycle do not always end in a turn of the same process.
    let start = if takes_turns {
        let cycle = count.div_ceil(slots.max(1)) as u64;
        mixed(limits.shift ^ mixed(limits.turn / cycle)) % count as u64 + limits.turn % cycle * slots as u64
    } else {
        limits.shift
    };
    let start = (start % count as u64) as usize;
    for (rank, at) in among.iter().enumerate() {
        parts[*at] += each + usize::from((rank + count - start) % count < rest);
    }
}

/// Any number of the same bits (the last steps of SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn rates(per_second: f64, demands: &[Option<Demand>]) -> Vec<f64> {
    let order = ordered(demands, |demand| demand.rate);
    if order.is_empty() {
        return vec![1.0 / demands.len() as f64; demands.len()];
    }
    let idle = demands.len() - order.len();
    let mut free = if idle == 0 { 1.0 } else { 1.0 - IDLE_RATE };
    let mut parts = vec![IDLE_RATE / idle.max(1) as f64; demands.len()];
    for (nth, (demand, at)) in order.iter().enumerate() {
        let equal = free / (order.len() - nth) as f64;
        parts[*at] = (f64::from((*demand).max(1)) / per_second).min(equal);
        free -= parts[*at];
    }
    let left = free.max(0.0) / order.len() as f64;
    order.iter().for_each(|(_, at)| parts[*at] += left);
    parts
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;

    fn limits(slots: usize, per_second: f64, turn: u64) -> Divided {
        Divided { slots, per_second: Some(per_second), shift: 0, turn }
    }

    fn of(parts: &[Part]) -> (Vec<usize>, Vec<f64>) {
        parts.iter().map(|part| (part.slots, (part.rate * 1000.0).round() / 1000.0)).unzip()
    }

    #[test]
    fn those_with_a_demand_get_nearly_all() {
        let busy = Some(Demand { slots: 1000, rate: 1000 });
        assert_eq!(of(&divide(limits(4, 10.0, 0), &[busy])), (vec![4], vec![1.0]));
        assert_eq!(of(&divide(limits(4, 10.0, 0), &[None, None])), (vec![2, 2], vec![0.5, 0.5]));
        assert_eq!(of(&divide(limits(4, 10.0, 0), &[busy, None])), (vec![3, 1], vec![0.9, 0.1]));
        let (slots, rates) = of(&divide(limits(32, 10.0, 0), &[None, busy, None]));
        assert_eq!((slots, rates), (vec![1, 30, 1], vec![0.05, 0.9, 0.05]));
        let little = Some(Demand { slots: 2, rate: 1 });
        assert_eq!(of(&divide(limits(32, 10.0, 0), &[little, busy])), (vec![2, 30], vec![0.1, 0.9]));
        assert_eq!(of(&divide(limits(1, 10.0, 0), &[None, busy])).0, vec![0, 1]);
        // The rate goes with the slots, unless it is slow.
        assert_eq!(of(&divide(limits(1, 10.0, 0), &[busy, busy])), (vec![1, 0], vec![1.0, 0.0]));
        assert_eq!(of(&divide(limits(1, 0.9, 0), &[busy, busy])), (vec![1, 0], vec![0.5, 0.5]));
    }

    #[test]
    fn one_slot_goes_from_process_to_process() {
        let busy = Some(Demand { slots: 9, rate: 9 });
        let holders = |demands: &[Option<Demand>], turns: Range<u64>| -> Vec<usize> {
            let parts = |turn| of(&divide(limits(1, 1.0, turn), demands)).0;
            let mut holders: Vec<usize> =
                turns.map(|turn| parts(turn).iter().position(|slots| *slots == 1).unwrap()).collect();
            holders.sort_unstable();
            holders
        };
        for cycle in 0..20 {
            let turns = |count: u64| cycle * count..(cycle + 1) * count;
            assert_eq!(holders(&[busy, busy], turns(2)), [0, 1]);
            assert_eq!(holders(&[busy, None, busy], turns(2)), [0, 2]);
            assert_eq!(holders(&[None, None, None], turns(3)), [0, 1, 2]);
        }
    }

    fn demand() -> impl Strategy<Value = Option<Demand>> {
        proptest::option::of((any::<u32>(), any::<u32>()).prop_map(|(slots, rate)| Demand { slots, rate }))
    }

    proptest! {
        #[test]
        fn the_parts_are_the_limit_and_nobody_with_a_demand_starves(
            slots in 1usize..40,
            per_second in 0.01..1000.0f64,
            (shift, turn) in (any::<u64>(), 0..u64::MAX / 2),
            demands in proptest::collection::vec(demand(), 1..12),
        ) {
            let mut used = vec![0; demands.len()];
            let wanting = demands.iter().filter(|demand| demand.is_some()).count();
            for passed in 0..2 * demands.len() as u64 {
                let turn = turn + passed;
                let limits = Divided { slots, per_second: Some(per_second), shift, turn };
                let parts = divide(limits, &demands);
                prop_assert_eq!(parts.iter().map(|part| part.slots).sum::<usize>(), slots);
                let rate: f64 = parts.iter().map(|part| part.rate).sum();
                prop_assert!((rate - 1.0).abs() < 1e-9, "{}", rate);
                let parts = parts.iter().zip(&mut used);
                parts.for_each(|(part, used)| *used += if part.rate > 0.0 { part.slots } else { 0 });
            }
            for (used, demand) in used.iter().zip(&demands) {
                prop_assert!(*used > 0 || (demand.is_none() && wanting > 0));
            }
        }
    }
}
