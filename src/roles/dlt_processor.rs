//! DLT Processor: sets the timer of every scheduled dead letter, and sends the envelope back to its outbox when the
//! timer is due or an operator requests it. The dead letter is removed by the worker that delivers the envelope, or
//! replaced when it fails again.

mod quota;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::carried::Carried;
use crate::domain::dead_letter::{DeadLetter, DeadLetterState, Failed, Origin};
use crate::domain::headers;
use crate::domain::letter_tally::LetterTally;
use crate::domain::outcome::Reason;
use crate::facts::{
    DeadLetterSetAside, Metrics, OverdueDeadLetterFound, OverdueSearchFailed, OverdueSearchPanicked,
    RedriveFailed, RedriveOfResolved, RedriveUnreadable, Redriven,
};
use crate::health::{Readiness, ReadyFlag};
use crate::nats::subjects::SHARED_LANE;
use crate::nats::{
    DeadLetterQuery, Delivered, EnvelopeMessage, JetStream, NatsError, REDRIVE_TRIGGER_HEADER, Reader,
    RedriveTrigger,
};
use crate::panics::{self, Panicked};
use crate::tasks::{TaskError, Tasks};
pub use quota::RedriveQuota;

/// The durable of this role, on each DLT and on the redrive stream.
pub const CONSUMER: &str = "dlt-processor";
/// Redrives and timers processed at once, per stream.
const IN_FLIGHT: usize = 64;
/// Delay before a message that could not be processed (because the outbox is full, say) is delivered again.
const RETRY_DELAY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct DltProcessorSettings {
    /// The domains whose dead letters it reads.
    pub domains: Vec<String>,
    /// All domains: processes that read the dead letters of different ones share the stream of redrives.
    pub all_domains: Vec<String>,
    /// Interval of the search for overdue dead letters without a timer.
    pub reconcile_interval: Duration,
    pub quota: RedriveQuota,
}

pub struct DltProcessor {
    worker: Arc<Worker>,
    settings: DltProcessorSettings,
    /// Each stream that it reads, with its readiness.
    streams: Vec<(String, ReadyFlag)>,
}

struct Worker {
    js: JetStream,
    domains: Vec<String>,
    metrics: Metrics,
    read: ReadLetter,
    quota: RedriveQuota,
    #[cfg(test)]
    before_search: fn(&str),
}

/// Reads the headers of a message, by name, as a dead letter.
pub(crate) type ReadLetter = for<'a> fn(&dyn Fn(&str) -> Option<&'a str>) -> Option<DeadLetter>;

impl DltProcessor {
    pub fn new(
        js: JetStream,
        settings: DltProcessorSettings,
        metrics: Metrics,
        readiness: &Readiness,
    ) -> Self {
        Self::reading(js, settings, metrics, readiness, |header| DeadLetter::from_headers(header))
    }

    pub(crate) fn reading(
        js: JetStream,
        settings: DltProcessorSettings,
        metrics: Metrics,
        readiness: &Readiness,
        read: ReadLetter,
    ) -> Self {
        let names = js.names().clone();
        let streams = settings
            .domains
            .iter()
            .map(|domain| names.dlt_stream(domain))
            .chain([names.redrive_stream()])
            .map(|stream| {
                let ready = readiness.part(format!("dlt-processor {stream}"));
                (stream, ready)
            })
            .collect();
        let (domains, quota) = (settings.all_domains.clone(), settings.quota.clone());
        let worker = Worker {
            js,
            domains,
            metrics,
            read,
            quota,
            #[cfg(test)]
            before_search: |_| {},
        };
        Self { worker: Arc::new(worker), settings, streams }
    }

    /// Runs `before_search` before each search in a domain.
    #[cfg(test)]
    pub(crate) fn before_search(mut self, before_search: fn(&str)) -> Self {
        Arc::get_mut(&mut self.worker).expect("it does not run yet").before_search = before_search;
        self
    }

    /// Runs until `stop`; then finishes the messages in progress.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        let redrive = self.worker.js.names().redrive_stream();
        let stop = stop.child_token();
        let mut tasks = Tasks::new(stop.clone());
        for (stream, ready) in self.streams {
            let (worker, stop, is_redrive) = (self.worker.clone(), stop.clone(), stream == redrive);
            tasks.graceful(format!("the reader of {stream}"), async move {
                worker.read(&stream, is_redrive, ready, &stop).await
            });
        }
        let (worker, settings) = (self.worker, self.settings);
        tasks.droppable("the search for overdue dead letters", async move {
            worker.reconcile(&settings).await;
        });
        tasks.join().await
    }
}

impl Worker {
    async fn read(
        self: Arc<Self>,
        stream: &str,
        is_redrive: bool,
        ready: ReadyFlag,
        stop: &CancellationToken,
    ) -> Result<(), NatsError> {
        let reader = Reader::bind(&self.js, stream, CONSUMER, IN_FLIGHT, Some(ready), stop).await?;
        let Some(reader) = reader else { return Ok(()) };
        let work = |message| self.clone().work_on(stream.to_owned(), is_redrive, message);
        reader.for_each(format!("the work on a message of {stream}"), stop, work).await
    }

    async fn work_on(self: Arc<Self>, stream: String, is_redrive: bool, message: Box<Delivered>) {
        let work = async {
            if is_redrive { self.redrive(&message).await } else { self.set_timer(&stream, &message).await }
        };
        let done = match panics::catch_async(work).await {
            Ok(done) => done,
            Err(panicked) => {
                if !panicked.on_input(&stream, message.stream_sequence, message.deliveries) {
                    return message.acker.nak(Some(RETRY_DELAY)).await;
                }
                let aside = self.had_its_tries(&stream, is_redrive, &message, &panicked);
                panics::catch_async(aside).await.unwrap_or(Ok(()))
            }
        };
        match done {
            Ok(()) => message.acker.ack().await,
            Err(error) => {
                RedriveFailed { error: &error, subject: &message.subject, retry_in: RETRY_DELAY }.emit();
                message.acker.nak(Some(RETRY_DELAY)).await;
            }
        }
    }

    /// Sets the timer of a new dead letter, if it is scheduled.
    async fn set_timer(&self, stream: &str, message: &Delivered) -> Result<(), NatsError> {
        let Some(letter) = (self.read)(&|name| message.header(name)) else {
            let Some(domain) = self.domain_of(stream) else { return Ok(()) };
            let why = message.malformed().map(|why| why.to_string());
            let why = why.unwrap_or_else(|| why_unread(|name| message.header(name)));
            return self.set_aside(domain, message.stream_sequence, Reason::Undecodable, &why).await;
        };
        match letter.next_redrive_at {
            Some(at) if letter.state == DeadLetterState::Scheduled => {
                self.js.schedule_redrive(&letter.domain, message.stream_sequence, at).await
            }
            _ => Ok(()),
        }
    }

    fn knows(&self, domain: &str) -> bool {
        self.domains.iter().any(|known| known == domain)
    }

    fn domain_of(&self, stream: &str) -> Option<&str> {
        let names = self.js.names();
        self.domains.iter().find(|domain| names.dlt_stream(domain) == stream).map(String::as_str)
    }

    /// Sets aside the dead letter of a message after [`panics::TRIES`] panics.
    async fn had_its_tries(
        &self,
        stream: &str,
        is_redrive: bool,
        message: &Delivered,
        panicked: &Panicked,
    ) -> Result<(), NatsError> {
        let entry = if is_redrive {
            self.js.names().parse_redrive_due(&message.subject).filter(|(domain, _)| self.knows(domain))
        } else {
            self.domain_of(stream).map(|domain| (domain, message.stream_sequence))
        };
        let Some((domain, sequence)) = entry else { return Ok(()) };
        self.set_aside(domain, sequence, Reason::InternalError, &panicked.to_string()).await
    }

    /// Stores a dead letter that cannot be processed again, parked, with its original body. One that was set aside before
    /// is left as it is.
    async fn set_aside(
        &self,
        domain: &str,
        sequence: u64,
        reason: Reason,
        detail: &str,
    ) -> Result<(), NatsError> {
        let Some(entry) = self.js.get(&self.js.names().dlt_stream(domain), sequence).await? else {
            return Ok(());
        };
        let set_aside = [Reason::InternalError, Reason::Undecodable].map(Reason::as_str);
        if entry.header(headers::REASON).is_some_and(|reason| set_aside.contains(&reason)) {
            return Ok(());
        }
        let header = |name: &str| entry.header(name);
        let parsed = self.js.names().parse_dead_letter(&entry.subject);
        let subscription = || Some(parsed?.reference()?.id().to_owned());
        let origin = Origin::read_partial(header, || format!("{domain}-dlt-{sequence}"), subscription);
        let failed = Failed::by_hub(header, reason, detail.to_owned(), self.js.now());
        let letter = DeadLetter::new(domain, origin, failed, &[]);
        self.js.refile_dead_letter(&entry, &letter).await?;
        DeadLetterSetAside { letter: &letter, sequence }.emit(&self.metrics);
        Ok(())
    }

    /// Carries out a due timer or a redrive request: sends the envelope back, once, and marks the dead letter as replaying.
    async fn redrive(&self, message: &Delivered) -> Result<(), NatsError> {
        let names = self.js.names();
        let due = names.parse_redrive_due(&message.subject).filter(|_| message.malformed().is_none());
        let Some((domain, sequence)) = due.filter(|(domain, _)| self.knows(domain)) else {
            // The domain may be one of newer settings.
            self.js.confirm_settings().await?;
            RedriveUnreadable { subject: &message.subject, sequence: message.stream_sequence }.emit();
            return Ok(());
        };
        let trigger = RedriveTrigger::read(message.header(REDRIVE_TRIGGER_HEADER));
        let stream = names.dlt_stream(domain);
        let Some(entry) = self.js.get(&stream, sequence).await? else {
            RedriveOfResolved { domain, sequence }.emit();
            return Ok(());
        };
        let Some(letter) = (self.read)(&|name| entry.header(name)) else {
            let why = why_unread(|name| entry.header(name));
            return self.set_aside(domain, sequence, Reason::Undecodable, &why).await;
        };
        if trigger != RedriveTrigger::OperatorForce && self.js.is_replaying(domain, sequence).await? {
            return Ok(());
        }
        let is_scheduled = trigger == RedriveTrigger::Schedule;
        if is_scheduled && self.quota.postpone(&self.js, &entry, &letter, &self.metrics).await? {
            return Ok(());
        }
        let redrives = letter.redrives + u32::from(is_scheduled);
        let redriven = || {
            let trigger = trigger.as_str();
            Redriven { letter: &letter, domain, redrives, trigger, is_scheduled }.emit(&self.metrics);
        };
        if self.js.stopped_envelope(domain, &entry).await?.is_some() {
            // It is at its place in the order, and is tried there.
            self.js.mark_replaying_in_place(domain, sequence, redrives).await?;
            redriven();
            return Ok(());
        }
        // An unreadable envelope goes to the subscription in its subject.
        let from = names.parse_dead_letter(&entry.subject).map(|subject| subject.subscription);
        let from =
            from.filter(|token| token.len() <= 256 && token.bytes().all(|byte| byte.is_ascii_graphic()));
        let Some(token) =
            letter.reference().map(|name| name.token().into_owned()).or(from.map(str::to_owned))
        else {
            return Ok(());
        };
        // With the request's own sequence, so that a forced replay is not dropped as a duplicate.
        let message_id = match trigger {
            RedriveTrigger::OperatorForce => format!("{stream}-{sequence}-{}", message.stream_sequence),
            _ => format!("{stream}-{sequence}"),
        };
        let outgoing = EnvelopeMessage {
            subject: names.outbox(domain, SHARED_LANE, &token),
            message_id,
            payload: entry.payload.clone().into(),
            headers: Carried {
                dead_letter: Some(sequence),
                redrives,
                attempts: letter.attempts,
                ..Carried::default()
            }
            .to_headers(),
        };
        self.js.publish_each(std::slice::from_ref(&outgoing)).await?;
        self.js.mark_replaying(domain, sequence).await?;
        redriven();
        Ok(())
    }

    /// Searches for scheduled dead letters that are overdue without a timer or a pending request (because the redrive
    /// stream was purged or lost, say), and requests their redrive. Counts the dead letters on the way. Never returns.
    async fn reconcile(&self, settings: &DltProcessorSettings) {
        let mut ticks = tokio::time::interval(settings.reconcile_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.js.gate().opened().await;
            for domain in &settings.domains {
                let retry_in = settings.reconcile_interval;
                // One dead letter that panics must not end the role again and again.
                match panics::catch_async(self.reconcile_domain(domain, retry_in)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => OverdueSearchFailed { error: &error, domain, retry_in }.emit(),
                    Err(panicked) => {
                        OverdueSearchPanicked { panic: &panicked.message, domain, retry_in }.emit();
                    }
                }
            }
        }
    }

    async fn reconcile_domain(&self, domain: &str, grace: Duration) -> Result<(), NatsError> {
        let query = DeadLetterQuery { state: Some(DeadLetterState::Scheduled), ..DeadLetterQuery::default() };
        let mut tally = LetterTally::default();
        #[cfg(test)]
        (self.before_search)(domain);
        let mut from = 1;
        loop {
            let page = self.js.dead_letters(domain, &query, from, 1_000).await?;
            tally.merge(page.seen);
            let overdue = self.js.now() - grace;
            let late: Vec<_> = page
                .entries
                .iter()
                .filter(|entry| entry.letter.next_redrive_at.is_some_and(|at| at < overdue))
                .collect();
            if !late.is_empty() {
                let pending = self.js.redrive_pending(domain).await?;
                for entry in late.iter().filter(|entry| !pending.contains(&entry.sequence)) {
                    self.js.request_redrive(domain, entry.sequence, RedriveTrigger::Schedule).await?;
                    OverdueDeadLetterFound { domain, envelope: &entry.letter.id }.emit();
                }
            }
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        self.metrics.letters(domain, &tally, self.js.now());
        Ok(())
    }
}

/// Names the header for which a message of a dead-letter stream is not a dead letter.
fn why_unread<'a>(header: impl Fn(&str) -> Option<&'a str>) -> String {
    match DeadLetter::read(header) {
        Err(error) => error.to_string(),
        Ok(_) => "the message is not a dead letter".to_owned(),
    }
}
