//! Why a request failed, as JetStream answers a second one: JetStream is off, the stream does not exist, or there is no
//! leader.

use serde_json::Value;

use super::connection::JetStream;
use super::error::NatsError;
use super::stream_api::StreamInfo;
use super::subjects::described;

impl JetStream {
    /// Fails unless the leader of JetStream answers. Without one, a server that is alone still answers reads of its streams,
    /// which may lack what the others have; and until it knows that it is alone, nobody answers. `stream`: one whose
    /// consumers may be listed, which only the leader does.
    pub async fn confirm_leader(&self, stream: &str) -> Result<(), NatsError> {
        unless_missing(self.consumer_names(stream).await)
    }

    /// Fails unless the bucket of the registry has a leader; otherwise it may have what was not found.
    pub async fn confirm_registry_leader(&self) -> Result<(), NatsError> {
        self.confirm_leader_of(&self.names().subscriptions_stream()).await
    }

    /// The same for any stream, of which only the state may be read.
    pub async fn confirm_leader_of(&self, stream: &str) -> Result<(), NatsError> {
        unless_missing(self.stream_info_of_leader(stream).await)
    }

    /// The state of a stream as its leader knows it. Without a leader, the answer may lack messages, or be that of an empty
    /// stream.
    pub async fn stream_info_of_leader(&self, stream: &str) -> Result<StreamInfo, NatsError> {
        let info = self.stream_info(stream).await?;
        if info.has_leader() { Ok(info) } else { Err(NatsError::NoLeader { subject: stream.to_owned() }) }
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

/// A leader says so if a stream does not exist.
fn unless_missing<T>(answer: Result<T, NatsError>) -> Result<(), NatsError> {
    match answer {
        Err(error) if !error.is_stream_missing() => Err(error),
        _ => Ok(()),
    }
}
