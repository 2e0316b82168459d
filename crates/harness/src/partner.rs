//! An external broker of any provider, for tests of the relay: destinations, received messages, and failures.

use std::collections::BTreeSet;

use async_nats::jetstream::stream;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::FieldTable;
use serde_json::Value;

use super::relay::{SOON, partner, stored};
use super::settings::{ExternalBroker, external};
use super::{FaultProxy, KafkaServer, RabbitMq, RedisServer, TestBroker, eventually};

/// A broker behind a proxy.
pub struct Partner {
    server: PartnerServer,
    /// Kafka returns its address to clients, and therefore has its own proxy.
    proxy: Option<FaultProxy>,
}

enum PartnerServer {
    Redis(RedisServer),
    Nats(TestBroker),
    Amqp(RabbitMq),
    Kafka(KafkaServer),
}

/// A received message.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    pub id: String,
    pub stream: String,
    pub body: Value,
}

impl Arrived {
    /// `id` is the message id of the protocol, if it has one.
    fn read(id: Option<&str>, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).expect("envelopes are JSON");
        let header = |name: &str| body["metadata"]["headers"][name].as_str().unwrap_or_default().to_owned();
        let arrived = Self { id: header("id"), stream: header("stream"), body };
        assert!(id.is_none_or(|id| id == arrived.id), "{id:?} carries {arrived:?}");
        arrived
    }
}

impl Partner {
    pub async fn redis() -> Option<Self> {
        let server = RedisServer::start(&[]).await?;
        let proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
        Some(Self { server: PartnerServer::Redis(server), proxy: Some(proxy) })
    }

    /// NATS with a stream for the subjects below `user.`.
    pub async fn nats() -> Option<Self> {
        let server = partner().await;
        let proxy = FaultProxy::start(&server.url()).await;
        Some(Self { server: PartnerServer::Nats(server), proxy: Some(proxy) })
    }

    pub async fn amqp() -> Option<Self> {
        let partner = Self::of_amqp(RabbitMq::start("").await?).await;
        partner.open("user").await;
        Some(partner)
    }

    /// A running RabbitMQ with existing queues.
    pub async fn of_amqp(server: RabbitMq) -> Self {
        let proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
        Self { server: PartnerServer::Amqp(server), proxy: Some(proxy) }
    }

    pub async fn kafka() -> Option<Self> {
        let partner = Self { server: PartnerServer::Kafka(KafkaServer::start().await?), proxy: None };
        partner.open("user").await;
        Some(partner)
    }

    pub fn proxy(&self) -> &FaultProxy {
        match (&self.server, &self.proxy) {
            (PartnerServer::Kafka(server), _) => server.proxy(),
            (_, proxy) => proxy.as_ref().expect("all others are started with one"),
        }
    }

    /// Its entry in the settings, with the address of the proxy.
    pub fn entry(&self, name: &str) -> ExternalBroker {
        let provider = self.provider();
        let url = match &self.server {
            PartnerServer::Kafka(server) => server.url(),
            _ => self.proxy().url(provider),
        };
        external(name, provider, &url)
    }

    pub fn provider(&self) -> &'static str {
        match &self.server {
            PartnerServer::Redis(_) => "redis",
            PartnerServer::Nats(_) => "nats",
            PartnerServer::Amqp(_) => "amqp",
            PartnerServer::Kafka(_) => "kafka",
        }
    }

    /// The default destination of events `<category>.created`.
    fn destination(&self, category: &str) -> String {
        match &self.server {
            PartnerServer::Redis(_) | PartnerServer::Kafka(_) => category.to_owned(),
            PartnerServer::Nats(_) | PartnerServer::Amqp(_) => format!("{category}.created"),
        }
    }

    /// Accepts events of this category from now on.
    pub async fn open(&self, category: &str) {
        let destination = self.destination(category);
        match &self.server {
            PartnerServer::Redis(server) => {
                let mut connection = server.connect().await;
                let deleted = redis::cmd("DEL").arg(&destination).query_async(&mut connection).await;
                let () = deleted.expect("Redis answers");
            }
            PartnerServer::Nats(server) => {
                let config = stream::Config {
                    name: category.to_uppercase(),
                    subjects: vec![format!("{category}.>")],
                    ..stream::Config::default()
                };
                server.jetstream().await.create_stream(config).await.expect("the stream is made");
            }
            PartnerServer::Amqp(server) => server.declare(&destination, FieldTable::default()).await,
            PartnerServer::Kafka(server) => server.create_topic(&destination, 3).await,
        }
    }

    /// Rejects events of a category: it was not opened; on Redis, the key has another type.
    pub async fn shut(&self, category: &str) {
        if let PartnerServer::Redis(server) = &self.server {
            let mut connection = server.connect().await;
            let set = redis::cmd("SET").arg(category).arg("no stream").query_async(&mut connection).await;
            let () = set.expect("Redis answers");
        }
    }

    /// True if its messages survive a restart. (Tansu stores its topics in memory.)
    pub fn is_durable(&self) -> bool {
        !matches!(self.server, PartnerServer::Kafka(_))
    }

    /// Sends SIGKILL.
    pub async fn kill(&mut self) {
        match &mut self.server {
            PartnerServer::Redis(server) => server.kill().await,
            PartnerServer::Nats(server) => server.process().kill().await.expect("it is killed"),
            PartnerServer::Amqp(server) => server.kill().await,
            PartnerServer::Kafka(server) => server.kill().await,
        }
    }

    /// Starts it again on the same port, with its data on disk.
    pub async fn restart(&mut self) {
        match &mut self.server {
            PartnerServer::Redis(server) => server.restart().await,
            PartnerServer::Nats(server) => server.process().restart().await.expect("it starts"),
            PartnerServer::Amqp(server) => server.restart().await,
            PartnerServer::Kafka(server) => {
                server.restart().await;
                server.create_topic("user", 3).await;
            }
        }
    }

    /// Waits until all of `expected` are there. Returns all messages of a category in order, including duplicates.
    /// On AMQP, they are removed from the queue.
    pub async fn arrived(&self, category: &str, expected: &BTreeSet<String>) -> Vec<Arrived> {
        let destination = self.destination(category);
        let mut seen = Vec::new();
        let is_complete = |seen: &[Arrived]| {
            let ids: BTreeSet<&String> = seen.iter().map(|arrived| &arrived.id).collect();
            expected.iter().all(|id| ids.contains(id))
        };
        match &self.server {
            PartnerServer::Redis(server) => {
                let mut connection = server.connect().await;
                eventually(SOON, "all are in the Redis stream", async || {
                    let entries: Vec<(String, Vec<String>)> = redis::cmd("XRANGE")
                        .arg(&[&destination, "-", "+"])
                        .query_async(&mut connection)
                        .await
                        .map_err(|error| error.to_string())?;
                    seen = entries
                        .iter()
                        .map(|(_, fields)| {
                            assert_eq!((fields.len(), fields[0].as_str()), (2, "data"));
                            Arrived::read(None, fields[1].as_bytes())
                        })
                        .collect();
                    if is_complete(&seen) { Ok(()) } else { Err(format!("{} entries", seen.len())) }
                })
                .await;
            }
            PartnerServer::Nats(server) => {
                let name = if category == "user" { "PARTNER".to_owned() } else { category.to_uppercase() };
                for message in stored(server, &name, expected.len() as u64).await {
                    assert_eq!(message.subject, destination);
                    seen.push(Arrived::read(Some(&message.id), message.body.to_string().as_bytes()));
                }
                assert!(is_complete(&seen), "the stream has unexpected messages");
            }
            PartnerServer::Amqp(server) => {
                let (channel, options) = (server.channel().await, BasicConsumeOptions::default());
                let consumer =
                    channel.basic_consume(destination.into(), "".into(), options, FieldTable::default());
                let mut consumer = consumer.await.expect("a consumer");
                let reading = async {
                    while !is_complete(&seen) {
                        let delivery = consumer.next().await.expect("it continues").expect("a delivery");
                        delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
                        let id = delivery.properties.message_id().as_ref().expect("an id").to_string();
                        seen.push(Arrived::read(Some(&id), &delivery.data));
                    }
                };
                tokio::time::timeout(SOON, reading).await.expect("all are in the queue");
            }
            PartnerServer::Kafka(server) => {
                let records = server.read(&destination, |records| {
                    let ids: BTreeSet<&String> = records.iter().map(|record| &record.id).collect();
                    expected.iter().all(|id| ids.contains(id))
                });
                for record in records.await {
                    let arrived = Arrived::read(Some(&record.id), record.body.as_bytes());
                    assert_eq!(record.key, arrived.stream);
                    seen.push(arrived);
                }
            }
        }
        seen
    }
}
