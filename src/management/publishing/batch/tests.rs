use std::cell::{Cell, RefCell};
use std::time::Duration;

use super::*;
use crate::nats::NatsError;

/// A server whose answers take a round trip each, by a clock that only waits move.
struct Server {
    round_trip: Duration,
    /// Events that were published before, by message id.
    known: HashMap<String, u64>,
    /// The event that is not stored, and for how long its answer is missing.
    broken: Option<(usize, Duration)>,
    lookup_fails: Option<String>,
    stored: RefCell<Vec<usize>>,
    remembered: RefCell<Vec<(String, u64)>>,
    lookups: Cell<usize>,
    most_lookups: Cell<usize>,
}

impl Server {
    fn new(round_trip: Duration) -> Self {
        Self {
            round_trip,
            known: HashMap::new(),
            broken: None,
            lookup_fails: None,
            stored: RefCell::default(),
            remembered: RefCell::default(),
            lookups: Cell::new(0),
            most_lookups: Cell::new(0),
        }
    }

    fn published(index: usize, sequence: u64, duplicate: bool) -> Published {
        Published { stream: "HUB_EVENTS".to_owned(), sequence, id: index.to_string(), duplicate }
    }
}

fn error() -> ManagementError {
    NatsError::NotConnected.into()
}

impl Steps for Server {
    async fn look_up(&self, message_id: &str) -> Result<Option<u64>, ManagementError> {
        self.lookups.set(self.lookups.get() + 1);
        self.most_lookups.set(self.most_lookups.get().max(self.lookups.get()));
        tokio::time::sleep(self.round_trip).await;
        self.lookups.set(self.lookups.get() - 1);
        if self.lookup_fails.as_deref() == Some(message_id) {
            return Err(error());
        }
        Ok(self.known.get(message_id).copied())
    }

    async fn store(&self, index: usize, _: Option<&str>) -> Result<Published, ManagementError> {
        match self.broken {
            Some((broken, silence)) if broken == index => {
                tokio::time::sleep(silence).await;
                Err(error())
            }
            _ => {
                tokio::time::sleep(self.round_trip).await;
                self.stored.borrow_mut().push(index);
                Ok(Self::published(index, 1_000 + index as u64, false))
            }
        }
    }

    fn known(&self, index: usize, sequence: u64) -> Published {
        Self::published(index, sequence, true)
    }

    async fn remember(&self, message_id: &str, sequence: u64) {
        tokio::time::sleep(self.round_trip).await;
        self.remembered.borrow_mut().push((message_id.to_owned(), sequence));
    }
}

fn ids(count: usize) -> Vec<Option<String>> {
    (0..count).map(|number| Some(format!("id-{number}"))).collect()
}

fn time() -> BatchTime {
    let last_start = Instant::now() + Duration::from_secs(48);
    BatchTime { last_start, end: last_start + Duration::from_secs(7) }
}

fn sequences(batch: &Batch) -> Vec<u64> {
    batch.published.iter().map(|one| one.sequence).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_takes_a_round_trip_per_event_and_is_stored_in_its_order() {
    let server = Server::new(Duration::from_millis(40));
    let (ids, start) = (ids(1_000), Instant::now());
    let batch = in_order(&server, &ids, time()).await;
    assert!(batch.stopped.is_none(), "{:?}", batch.stopped);
    let took = start.elapsed();
    // Timers end at whole milliseconds: an answer takes up to 2 ms longer than its server.
    assert!(took < Duration::from_millis(42 * 1_000 + 400), "{took:?}");
    assert_eq!(*server.stored.borrow(), (0..1_000).collect::<Vec<_>>());
    assert_eq!(sequences(&batch), (1_000..2_000).collect::<Vec<u64>>());
    let remembered: Vec<_> = (0..1_000).map(|number| (format!("id-{number}"), 1_000 + number)).collect();
    assert_eq!(*server.remembered.borrow(), remembered);
    assert!((2..=LOOKUPS).contains(&server.most_lookups.get()), "{}", server.most_lookups.get());
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_takes_too_long_stops_before_its_request_times_out() {
    for (millis, stored) in [(60, 774..=800), (1_000, 46..=47), (30_000, 0..=1), (60_000, 0..=0)] {
        let server = Server::new(Duration::from_millis(millis));
        let start = Instant::now();
        let batch = in_order(&server, &ids(1_000), time()).await;
        assert!(start.elapsed() <= Duration::from_secs(55), "{:?}", start.elapsed());
        assert!(matches!(batch.stopped, Some(Stopped::OutOfTime { .. })), "{:?}", batch.stopped);
        assert!(stored.contains(&batch.published.len()), "{millis} ms: {}", batch.published.len());
        assert_eq!(server.stored.borrow().len(), batch.published.len());
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_without_an_answer_is_perhaps_stored_and_nothing_after_it_is_tried() {
    for (silence, out_of_time) in [(5, false), (600, true)] {
        let mut server = Server::new(Duration::from_millis(1));
        server.broken = Some((7, Duration::from_secs(silence)));
        let batch = in_order(&server, &ids(20), time()).await;
        match batch.stopped {
            Some(Stopped::OutOfTime { tried }) => assert!(out_of_time && tried),
            Some(Stopped::Failed(_)) => assert!(!out_of_time),
            None => panic!("it stops"),
        }
        assert_eq!(batch.published.len(), 7);
        assert_eq!(*server.stored.borrow(), (0..7).collect::<Vec<_>>());
        assert_eq!(server.remembered.borrow().len(), 7, "what is stored is not stored twice");
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_are_known_are_not_stored_again() {
    let mut server = Server::new(Duration::from_millis(1));
    server.known = HashMap::from([("id-0".to_owned(), 5), ("id-3".to_owned(), 6)]);
    // The second and the last one are the same event; the third has no id.
    let mut ids = ids(5);
    ids[2] = None;
    let repeated = ids[1].clone();
    ids[4] = repeated;
    let batch = in_order(&server, &ids, time()).await;
    assert!(batch.stopped.is_none());
    assert_eq!(sequences(&batch), [5, 1_001, 1_002, 6, 1_001]);
    let duplicates: Vec<bool> = batch.published.iter().map(|one| one.duplicate).collect();
    assert_eq!(duplicates, [true, false, false, true, true]);
    assert_eq!(*server.stored.borrow(), [1, 2]);
    assert_eq!(*server.remembered.borrow(), [("id-1".to_owned(), 1_001)]);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_fails_stops_the_batch_at_its_event() {
    let mut server = Server::new(Duration::from_millis(1));
    server.lookup_fails = Some("id-4".to_owned());
    let batch = in_order(&server, &ids(20), time()).await;
    assert!(matches!(batch.stopped, Some(Stopped::Failed(_))));
    assert_eq!(*server.stored.borrow(), [0, 1, 2, 3]);
    assert_eq!(server.remembered.borrow().len(), 4);
}
