//! Programs of other projects: real Redis, RabbitMQ, Kafka and NATS, Protean, and the example subscriber.

use hub_harness as support;

mod example_subscriber;
mod protean;
mod sinks_amqp;
mod sinks_kafka;
mod sinks_nats;
mod sinks_redis;
