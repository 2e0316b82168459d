//! Reports at `/readyz` and in the log which streams have no leader. A process without any is not ready, because it can
//! neither store nor deliver; it continues by itself. While some streams have one, it stays ready with a warning.

use tokio::time::Instant;

use crate::domain::stream_leaders::{Leadership, Seen, StreamLeaders};
use crate::facts::{StreamsHaveLeaders, StreamsWithoutLeader};
use crate::health::{Readiness, ReadyFlag};
use crate::nats::{NatsError, StreamInfo};

/// The subject of the warning, which is also that of a process that waits at its start.
const NOTE: &str = "JetStream";
const REMEDY: &str = "too few of their NATS servers are connected; check them with `nats stream report`; the hub \
                      continues by itself";

/// The streams of all domains, as the last looks showed them.
pub(super) struct LeaderWatch {
    readiness: Readiness,
    jetstream: ReadyFlag,
    leaders: StreamLeaders,
    reported: Leadership,
    /// When the first stream was reported.
    since: Option<Instant>,
}

impl LeaderWatch {
    pub(super) fn new(readiness: Readiness, jetstream: ReadyFlag) -> Self {
        let (leaders, reported) = (StreamLeaders::default(), Leadership::default());
        Self { readiness, jetstream, leaders, reported, since: None }
    }

    /// Takes note of a look at all streams of a server that answers, or not, and returns what was read of those with a leader.
    pub(super) fn look(
        &mut self,
        is_answering: bool,
        infos: Vec<(String, Result<StreamInfo, NatsError>)>,
    ) -> Vec<Result<StreamInfo, NatsError>> {
        let mut read = Vec::with_capacity(infos.len());
        for (stream, info) in infos {
            let info = match info {
                Ok(info) if info.has_leader() => Ok(info),
                Ok(_) => Err(NatsError::NoLeader { subject: stream.clone() }),
                Err(error) => Err(error),
            };
            let seen = match &info {
                Ok(_) => Seen::Leader,
                Err(error) if error.is_without_leader() => Seen::NoLeader,
                Err(NatsError::Timeout { .. }) if is_answering => Seen::Silent,
                Err(_) => Seen::Unknown,
            };
            self.leaders.look(&stream, seen);
            read.push(info);
        }
        self.report(self.leaders.leadership());
        read
    }

    fn report(&mut self, leadership: Leadership) {
        if leadership == self.reported {
            return;
        }
        self.since.get_or_insert_with(Instant::now);
        let note = match &leadership {
            Leadership::Complete => {
                let after = self.since.take().map(|since| since.elapsed()).unwrap_or_default();
                StreamsHaveLeaders { after }.emit();
                None
            }
            Leadership::Missing(streams) => {
                let streams = streams.join(", ");
                StreamsWithoutLeader { streams: &streams, remedy: REMEDY }.emit();
                Some(format!("no leader, or no answer, of {streams}: {REMEDY}"))
            }
            Leadership::None => {
                StreamsWithoutLeader { streams: "all", remedy: REMEDY }.emit();
                Some(format!("JetStream: no quorum, the streams have no leader: {REMEDY}"))
            }
        };
        self.readiness.note(NOTE, note);
        self.jetstream.set(leadership != Leadership::None);
        self.reported = leadership;
    }
}
