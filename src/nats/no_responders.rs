//! Why a request failed, as JetStream answers a second one: JetStream is off, the stream does not exist, or there is no
//! leader.

use serde_json::Value;

use super::connection::JetStream;
use super::error::NatsError;
use super::subjects::described;

impl JetStream {
    /// Fails if JetStream has no leader. Then a server that is alone still answers reads of its streams, which may lack what
    /// the others have. `stream`: one whose consumers may be listed, which only works with a leader.
    pub async fn confirm_leader(&self, stream: &str) -> Result<(), NatsError> {
        match self.consumer_names(stream).await {
            Err(error) if error.api().is_some() && error.is_unavailable() => Err(error),
            _ => Ok(()),
        }
    }

    /// Fails if the bucket of the registry has no leader, so that it may have what was not found.
    pub async fn confirm_registry_leader(&self) -> Result<(), NatsError> {
        self.confirm_leader_of(&self.names().subscriptions_stream()).await
    }

    /// The same for any stream, of which only the state may be read.
    pub async fn confirm_leader_of(&self, stream: &str) -> Result<(), NatsError> {
        match self.stream_info(stream).await {
            Ok(info) if !info.has_leader() => Err(NatsError::NoLeader { subject: stream.to_owned() }),
            Err(error) if error.is_without_leader() => Err(error),
            _ => Ok(()),
        }
    }

    /// The cause of [`NatsError::NoResponders`], as JetStream says it now; any other error is returned as it is. A stream
    /// without a leader answers nobody, as one that does not exist.
    pub async fn why_no_responders(&self, error: NatsError) -> NatsError {
        let NatsError::NoResponders { subject } = &error else { return error };
        let Some(stream) = self.names().stream_of(subject) else { return error };
        match self.stream_info(&stream).await {
            // It has a leader again.
            Ok(_) => NatsError::NoLeader { subject: subject.clone() },
            Err(why) if why.is_unavailable() || why.is_stream_missing() => why,
            Err(_) => error,
        }
    }

    /// Why a request to this subject had no answer: JetStream, or the stream, has no leader. `None` if that is not known.
    pub async fn why_silent(&self, subject: &str) -> Option<NatsError> {
        let leaderless = || Some(NatsError::NoLeader { subject: subject.to_owned() });
        match self.api::<Value>("INFO", &Value::Null).await {
            Err(NatsError::Api { source, .. }) => {
                let error = NatsError::Api { subject: subject.to_owned(), source };
                return error.is_without_leader().then_some(error);
            }
            Err(_) => return None,
            Ok(_) => {}
        }
        let stream = self.names().stream_of(subject);
        let stream = stream.or_else(|| described(subject).stream.map(str::to_owned))?;
        match self.stream_info(&stream).await {
            Ok(info) if !info.has_leader() => leaderless(),
            Err(error) if error.is_without_leader() => leaderless(),
            // JetStream answers, but not for this stream, and reports no missing permission.
            Err(NatsError::Timeout { reported: None, .. }) => leaderless(),
            _ => None,
        }
    }
}
