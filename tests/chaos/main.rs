//! Plans of faults on real servers, each a pure function of its seed. Two replicas of every role run throughout. At the end
//! every pair of an acknowledged event and a subscription is accounted for, and every repeated delivery is explained by a
//! fault near it.
//!
//! * `HUB_CHAOS_SEEDS`: seeds, such as `17` or `0-199`. By default a few, which take about a minute together.
//! * `HUB_CHAOS_FAULTS`: the only kinds of faults to inject, such as `kill-hub,flap`; a kind after `-` is left out.
//! * `HUB_CHAOS_PARALLEL`: the number of plans that run at the same time.
//!
//! A plan prints its seed and its faults before it begins; `HUB_CHAOS_SEEDS=<seed> cargo test --test chaos` repeats it.

use hub_harness as support;

mod accounts;
mod broker;
mod clocks;
mod faults;
mod load;
mod plan;
mod plan_tests;
mod run;
mod settle;
mod stage;
mod suite;
