//! Delivery of events to subscribers: fan-out, answers, broker targets, the delivery log, faults.

use hub_harness as support;

mod announcements;
mod answers;
mod attempts;
mod backlogs;
mod broker_target;
mod broker_target_faults;
mod burst;
mod circuits;
mod crash;
mod delivery_log;
mod delivery_log_overload;
mod domain_pause;
mod fan_out;
mod full_dlt;
mod holds;
mod isolation;
mod large_events;
mod leftovers;
mod lost_acknowledgements;
mod new_strict_lanes;
mod overwritten_lanes;
mod own_lanes;
mod poison;
mod publishing;
mod refused_own_lanes;
mod rejection;
mod silent_dlt;
mod strict;
mod strict_quota;
mod strict_waiting;
mod two_processes;
mod waiting;
