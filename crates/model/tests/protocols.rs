//! Every state of the models is visited, and every seeded bug is found.

use hub_model::{lanes, letters};
use stateright::{Checker, HasDiscoveries, Model};

#[test]
fn every_envelope_is_delivered_and_resolved_whatever_crashes() {
    let checker = letters::Letters::with(letters::LetterBug::None).checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "only {} states", checker.unique_state_count());
}

#[test]
fn every_envelope_leaves_its_lane_whatever_crashes() {
    let checker = lanes::Lanes::with(lanes::LaneBug::None).checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "only {} states", checker.unique_state_count());
}

#[test]
fn each_seeded_bug_of_the_letters_is_found() {
    const LOST: &str = "no event is lost";
    const STUCK: &str = "in the end, everything is delivered and resolved";
    for (bug, broken) in [
        (letters::LetterBug::SweepOff, STUCK),
        (letters::LetterBug::DeleteBeforeCopy, LOST),
        (letters::LetterBug::AckBeforeCommit, LOST),
        (letters::LetterBug::GoneIsError, STUCK),
    ] {
        let model = letters::Letters::with(bug).checker().threads(2);
        let found = model.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join().discoveries();
        assert!(found.contains_key(broken), "{bug:?} was not found: {:?}", found.keys());
    }
}

#[test]
fn each_seeded_bug_of_the_lanes_is_found() {
    const LOST: &str = "no envelope is lost";
    const STUCK: &str = "in the end, everything is delivered";
    for (bug, broken) in [
        (lanes::LaneBug::SweepOff, STUCK),
        (lanes::LaneBug::AckBeforeCommit, LOST),
        (lanes::LaneBug::GoneIsError, STUCK),
        (lanes::LaneBug::PausedForever, STUCK),
    ] {
        let model = lanes::Lanes::with(bug).checker().threads(2);
        let found = model.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join().discoveries();
        assert!(found.contains_key(broken), "{bug:?} was not found: {:?}", found.keys());
    }
}
