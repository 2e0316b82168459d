//! Why nobody answered a request: JetStream is off, the stream does not exist, or it has no leader.

use super::connection::JetStream;
use super::error::NatsError;

impl JetStream {
    /// Fails if JetStream has no leader. Then a server that is alone still answers reads of its streams, which may lack what
    /// the others have. `stream`: one whose consumers may be listed, which only works with a leader.
    pub async fn confirm_leader(&self, stream: &str) -> Result<(), NatsError> {
        match self.consumer_names(stream).await {
            Err(error) if error.api().is_some() && error.is_unavailable() => Err(error),
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
            Err(why) if why.is_unavailable() => why,
            Err(_) => error,
        }
    }
}
