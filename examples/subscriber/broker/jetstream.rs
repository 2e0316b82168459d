//! A durable pull consumer of a JetStream stream. The server delivers a message again if it is not acknowledged in
//! time.

use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::message::Acker;
use futures_util::TryStreamExt as _;

use super::{BrokerError, Delivery, Receipt, Source, TIMEOUT, WAIT};

pub(crate) struct JetStream {
    consumer: PullConsumer,
    stream: String,
    batch: usize,
}

impl JetStream {
    pub(crate) async fn connect(source: &Source) -> Result<Self, BrokerError> {
        let options = ConnectOptions::new().connection_timeout(TIMEOUT).request_timeout(Some(TIMEOUT));
        let client = options.connect(source.url.as_str()).await.map_err(nats)?;
        let stream = async_nats::jetstream::new(client).get_stream(&source.stream).await.map_err(nats)?;
        let config = pull::Config {
            durable_name: Some(source.group.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: source.reclaim_after,
            ..pull::Config::default()
        };
        let consumer = stream.get_or_create_consumer(&source.group, config).await.map_err(nats)?;
        Ok(Self { consumer, stream: source.stream.clone(), batch: source.batch })
    }

    pub(crate) async fn next(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let request = self.consumer.batch().max_messages(self.batch).expires(WAIT);
        // If the server disappears, the client ends the request and reconnects automatically.
        let messages: Vec<_> =
            request.messages().await.map_err(nats)?.try_collect().await.map_err(BrokerError::Nats)?;
        let deliveries = messages.into_iter().map(|message| {
            let info = message.info().map_err(BrokerError::Nats)?;
            let (place, attempts) = (format!("{} {}", self.stream, info.stream_sequence), info.delivered);
            let (message, acker) = message.split();
            let attempts = u64::try_from(attempts).unwrap_or(1);
            Ok(Delivery {
                place,
                body: message.payload,
                attempts,
                receipt: Receipt::JetStream(Box::new(acker)),
            })
        });
        deliveries.collect()
    }
}

/// Acknowledges, and waits up to 5 s for the confirmation of the server.
pub(super) async fn acknowledge(acker: &Acker) -> Result<(), BrokerError> {
    acker.double_ack().await.map_err(BrokerError::Nats)
}

fn nats(error: impl std::error::Error + Send + Sync + 'static) -> BrokerError {
    BrokerError::Nats(Box::new(error))
}
