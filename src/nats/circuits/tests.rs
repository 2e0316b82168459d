use super::*;

fn info(config: Value, paused: bool) -> ConsumerInfo {
    let pair = json!({"consumer_seq": 0, "stream_seq": 0});
    serde_json::from_value(json!({
        "name": "lane-own-acme=crm", "config": config, "delivered": pair, "ack_floor": pair, "paused": paused,
        "num_ack_pending": 0, "num_redelivered": 0, "num_pending": 0, "ts": "2027-01-15T09:00:00.123456789Z",
    }))
    .unwrap()
}

fn record() -> CircuitRecord {
    let at = |text| OffsetDateTime::parse(text, &Rfc3339).unwrap();
    CircuitRecord {
        subscription: Identity {
            subscription: SubscriptionRef::of("acme", "crm").unwrap(),
            incarnation: Incarnation::new(42),
        },
        since: at("2027-01-15T08:00:00.123Z"),
        pause: Duration::from_millis(4_870),
        probe_at: at("2027-01-15T09:00:04.993Z"),
        error: "503 Service Unavailable".to_owned(),
        revision: 7,
    }
}

#[test]
fn a_circuit_reads_back_and_leaves_other_metadata_alone() {
    let before = json!({"metadata": {"hub.role": "outbox-processor"}, "max_deliver": 5});
    let Value::Object(mut config) = before.clone() else { unreachable!() };
    store(&mut config, &record()).unwrap();
    let stored = info(Value::Object(config.clone()), false);
    assert_eq!(stored.circuit(), Some(record()));
    assert_eq!(stored.config["metadata"]["hub.role"], "outbox-processor");
    forget(&mut config);
    assert_eq!(Value::Object(config), before);
    assert_eq!(info(before, true).circuit(), None);
    assert_eq!(info(json!({"metadata": 1}), true).circuit(), None);
}

#[test]
fn damaged_metadata_are_a_circuit_that_any_change_ends() {
    let damaged = json!({SINCE: "soon", PAUSE: "-1", PROBE_AT: 3, INCARNATION: "x", REVISION: "many"});
    let circuit = info(json!({"metadata": damaged}), true).circuit().unwrap();
    assert_eq!((circuit.since, circuit.pause), (OffsetDateTime::UNIX_EPOCH, Duration::ZERO));
    assert_eq!((circuit.subscription.incarnation, circuit.revision), (Incarnation::LEGACY, 0));
}

#[test]
fn the_pause_of_a_domain_is_not_that_of_the_circuit() {
    let mut config = Map::new();
    store(&mut config, &record()).unwrap();
    let paused = |until: &str, paused| {
        let mut config = config.clone();
        config.insert("pause_until".to_owned(), json!(until));
        info(Value::Object(config), paused).is_paused_by_circuit()
    };
    assert!(paused("2027-01-15T09:00:04.993Z", true));
    assert!(paused("2027-01-15T09:00:04.993000Z", true));
    assert!(!paused("2027-01-15T09:00:04.993Z", false), "it is over");
    assert!(!paused("2126-12-22T09:00:00Z", true));
}

#[test]
fn only_a_pause_of_its_own_without_a_record_has_lost_a_circuit() {
    let with = |stored: bool, until: &str, paused: bool| {
        let mut config = Map::new();
        if stored {
            store(&mut config, &record()).unwrap();
        }
        config.insert("pause_until".to_owned(), json!(until));
        info(Value::Object(config), paused)
    };
    let own = "2027-01-15T09:00:04.993Z";
    assert!(with(false, own, true).has_lost(&record()));
    assert!(!with(true, own, true).has_lost(&record()));
    assert!(!with(false, own, false).has_lost(&record()), "it is over");
    for other in ["2027-01-15T09:00:04.994Z", "2126-12-22T09:00:00Z", "soon", ""] {
        assert!(!with(false, other, true).has_lost(&record()), "of an operator, or the domain: {other}");
    }
}

#[test]
fn the_clock_is_that_of_the_broker() {
    let now = info(json!({}), false).now();
    assert_eq!(text(now).unwrap(), "2027-01-15T09:00:00.123Z");
    assert_eq!(text(later(now, Duration::from_micros(1_500_900))).unwrap(), "2027-01-15T09:00:01.623Z");
}

#[test]
fn invalid_notices_are_ignored() {
    let names = SubjectNames::new("hub");
    let subject = names.circuit("policy-client", "acme=crm");
    assert_eq!(subject, "hub.circuits.policy-client.acme=crm");
    let digits = Incarnation::new(42).to_string();
    let notice = read_notice(&names, &subject, digits.as_bytes()).unwrap();
    assert_eq!(notice.subscription, record().subscription);
    for (subject, payload) in [
        (&*subject, "soon"),
        ("hub.circuits.policy-client.default=crm", "legacy"),
        ("hub.circuits.policy-client", "legacy"),
        ("hub.circuits.policy-client.a.b", "legacy"),
        ("hub.holds.crm", "legacy"),
    ] {
        assert_eq!(read_notice(&names, subject, payload.as_bytes()), None, "{subject} {payload}");
    }
}

#[test]
fn a_lane_is_paused_until_the_later_end_of_its_domain_and_its_open_circuit() {
    let at = |text| OffsetDateTime::parse(text, &Rfc3339).unwrap();
    // The look is at 09:00:00, the probe at 09:00:04.
    let mut config = Map::new();
    store(&mut config, &record()).unwrap();
    let [open, closed] = [config.clone(), Map::new()].map(|config| info(Value::Object(config), false));
    let probe_at = record().probe_at;
    let (sooner, later) = (at("2027-01-15T09:00:01Z"), at("2027-01-15T10:00:00Z"));
    assert_eq!(closed.wanted_pause(None), None);
    assert_eq!(closed.wanted_pause(Some(sooner)), Some(sooner));
    assert_eq!(open.wanted_pause(None), Some(probe_at));
    assert_eq!(open.wanted_pause(Some(sooner)), Some(probe_at));
    assert_eq!(open.wanted_pause(Some(later)), Some(later));
    let over = CircuitRecord { probe_at: at("2027-01-15T09:00:00Z"), ..record() };
    store(&mut config, &over).unwrap();
    let half_open = info(Value::Object(config), false);
    assert_eq!((half_open.wanted_pause(None), half_open.wanted_pause(Some(sooner))), (None, Some(sooner)));
}
