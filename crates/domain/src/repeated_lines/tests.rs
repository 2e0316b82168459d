use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_secs(60);

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn of<'a>(tenant: &'a str, subscription: &'a str, detail: &'a str) -> Thing<'a> {
    Thing { domain: "user-lifecycle", tenant, subscription, detail }
}

const WRITTEN: LineDecision = LineDecision::Write { left_out: 0 };

#[test]
fn the_first_line_is_written_and_the_next_after_the_interval_says_how_many_were_left_out() {
    let mut lines = RepeatedLines::new(INTERVAL);
    let crm = of("acme", "crm", "exhausted");
    assert_eq!(lines.turn("dead-lettered", crm, seconds(0)), WRITTEN);
    for second in 1..60 {
        assert_eq!(lines.turn("dead-lettered", crm, seconds(second)), LineDecision::LeaveOut);
    }
    assert_eq!(lines.turn("dead-lettered", crm, seconds(60)), LineDecision::Write { left_out: 59 });
    assert_eq!(lines.turn("dead-lettered", crm, seconds(61)), LineDecision::LeaveOut);
}

#[test]
fn things_and_kinds_have_lines_of_their_own() {
    let mut lines = RepeatedLines::new(INTERVAL);
    let things = [
        of("acme", "crm", "exhausted"),
        of("acme", "crm", "over-quota"),
        of("acme", "erp", "exhausted"),
        of("globex", "crm", "exhausted"),
        Thing { domain: "organization", ..of("acme", "crm", "exhausted") },
    ];
    for kind in ["dead-lettered", "redriven"] {
        for thing in things {
            assert_eq!(lines.turn(kind, thing, seconds(1)), WRITTEN, "{thing:?}");
            assert_eq!(lines.turn(kind, thing, seconds(2)), LineDecision::LeaveOut, "{thing:?}");
        }
    }
}

#[test]
fn the_last_count_comes_out_when_the_lines_stop() {
    let mut lines = RepeatedLines::new(INTERVAL);
    let crm = of("acme", "crm", "exhausted");
    for second in 0..3 {
        lines.turn("dead-lettered", crm, seconds(second));
    }
    assert_eq!(lines.due(seconds(59)), []);
    let about = ["user-lifecycle", "acme", "crm", "exhausted"].map(str::to_owned);
    assert_eq!(lines.due(seconds(60)), [LeftOut { kind: "dead-lettered", about, count: 2 }]);
    assert_eq!(lines.due(seconds(61)), []);
    // The summary was a line, too.
    assert_eq!(lines.turn("dead-lettered", crm, seconds(62)), LineDecision::LeaveOut);
    assert_eq!(lines.rest().iter().map(|left_out| left_out.count).collect::<Vec<_>>(), [1]);
    assert!(lines.is_empty() && lines.rest().is_empty());
}

#[test]
fn many_subscriptions_of_a_tenant_are_no_way_around_the_limit_and_leave_lines_for_others() {
    let mut lines = RepeatedLines::new(INTERVAL);
    let mut written = 0;
    for number in 0..1_000 {
        let id = format!("s-{number}");
        written += u32::from(lines.turn("dead-lettered", of("acme", &id, ""), seconds(1)) == WRITTEN);
    }
    assert_eq!(written, LINES_OF_TENANT);
    assert_eq!(lines.turn("dead-lettered", of("globex", "crm", ""), seconds(2)), WRITTEN);
    let rest = lines.due(seconds(61));
    assert_eq!(rest, [LeftOut { kind: "dead-lettered", about: Default::default(), count: 990 }]);
}

#[test]
fn an_interval_of_zero_writes_every_line() {
    let mut lines = RepeatedLines::new(Duration::ZERO);
    for _ in 0..100 {
        assert_eq!(lines.turn("dead-lettered", of("acme", "crm", ""), seconds(1)), WRITTEN);
    }
    assert!(lines.is_empty() && lines.due(seconds(100)).is_empty());
}

#[test]
fn hostile_fields_cost_bounded_memory() {
    let mut lines = RepeatedLines::new(INTERVAL);
    let long = "\u{202e}é\0".repeat(100_000);
    assert_eq!(lines.turn("event rejected", of(&long, &long, &long), seconds(1)), WRITTEN);
    assert_eq!(lines.turn("event rejected", of(&long, &long, &long), seconds(2)), LineDecision::LeaveOut);
    let rest = lines.rest();
    assert_eq!(rest.len(), 1);
    assert!(rest[0].about.iter().map(String::len).sum::<usize>() <= 4 * MOST_BYTES);
}

proptest! {
    /// Whatever the lines are about and whenever they come: no line is lost from the count, and their number is bounded.
    #[test]
    fn every_line_is_written_or_counted_and_the_number_of_lines_is_bounded(
        steps in proptest::collection::vec((0_u64..40, 0..5_u8, 0..40_u8, 0..3_u8, any::<bool>()), 1..400),
    ) {
        let mut lines = RepeatedLines::new(INTERVAL);
        let (mut now, mut caused, mut accounted, mut written) = (0, 0_u64, 0_u64, Vec::new());
        for (wait, tenant, subscription, kind, ticks) in steps {
            now += wait / 20;
            let (tenant, subscription) = (format!("t-{tenant}"), format!("s-{subscription}"));
            let thing = of(&tenant, &subscription, "");
            caused += 1;
            if let LineDecision::Write { left_out } = lines.turn(kind, thing, seconds(now)) {
                accounted += 1 + left_out;
                written.push((kind, now));
            }
            if ticks {
                for left_out in lines.due(seconds(now)) {
                    accounted += left_out.count;
                    written.push((left_out.kind, now));
                }
            }
            prop_assert!(lines.len() <= 3 * 3 * LINES_OF_KIND as usize);
        }
        accounted += lines.rest().iter().map(|left_out| left_out.count).sum::<u64>();
        prop_assert_eq!(accounted, caused);
        // Any interval touches two intervals of the kind, each with a summary of the others.
        for (kind, at) in &written {
            let within = written.iter().filter(|(other, then)| other == kind && (*at..at + 60).contains(then));
            prop_assert!(within.count() <= 2 * (LINES_OF_KIND as usize + 1));
        }
    }
}
