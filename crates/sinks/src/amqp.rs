//! AMQP 0-9-1, as RabbitMQ speaks it: persistent messages, publisher confirms, and the mandatory flag, so that the
//! broker returns a message that no queue takes instead of dropping it.
//!
//! AMQP does not de-duplicate: `message_id` is the message id, by which readers recognise duplicates.

mod transport;

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hub_domain::words::span;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Error, ErrorKind};
use secrecy::{ExposeSecret, SecretString};

use super::link::{Link, Linked};
use super::{Broker, BrokerTls, OutgoingMessage, PublishError, PublishedGroup, SettingError, Timeouts};
use crate::facts::AmqpClosedBefore;

/// Most idle channels that are kept open.
const MOST_IDLE: usize = 64;
/// Longest short string of AMQP, in bytes: routing keys and header names.
const LONGEST_NAME: usize = 255;
/// Delivery mode 2 of `basic.properties`: the message survives a restart of the broker.
const PERSISTENT: u8 = 2;
/// Heartbeat interval in seconds. A peer that is silent for two intervals is considered dead (AMQP 0-9-1, 4.2.7).
const HEARTBEAT: u16 = 10;

/// How to reach an AMQP broker.
#[derive(Debug, Clone)]
pub struct AmqpOptions {
    /// `amqp://host:port[/vhost]`, `amqps://` for TLS; the vhost is percent-encoded, `/` if not given.
    pub url: String,
    /// Set together with `password`. Without both, RabbitMQ's `guest`, which it accepts from its own machine only.
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub tls: BrokerTls,
    /// The exchange, which must exist. Empty means the default exchange, whose routing keys are queue names. A
    /// message's `stream` is its routing key.
    pub exchange: String,
    pub timeouts: Timeouts,
}

impl AmqpOptions {
    /// Options with the default exchange, without credentials and TLS files.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            tls: BrokerTls::default(),
            exchange: String::new(),
            timeouts: Timeouts::default(),
        }
    }
}

/// An AMQP broker: one connection, with a channel for each group that is being published, because an error closes the
/// channel and fails everything that is pending on it.
pub struct Amqp {
    options: AmqpOptions,
    uri: AMQPUri,
    link: Link<Arc<AmqpSession>>,
}

struct AmqpSession {
    connection: Connection,
    idle: Mutex<Vec<Channel>>,
}

impl Amqp {
    /// Checks the options. The first publish connects.
    pub fn new(options: AmqpOptions) -> Result<Self, SettingError> {
        let url = super::parse_url(&options.url, &["amqp", "amqps"])?;
        super::check_login(options.user.as_ref(), options.password.as_ref())?;
        options.tls.validate()?;
        if options.exchange.len() > LONGEST_NAME {
            return Err(SettingError::new("exchange", format!("is longer than {LONGEST_NAME} bytes")));
        }
        let uses_tls = options.tls.required || url.scheme() == "amqps";
        if !uses_tls && options.tls.has_files() {
            return Err(SettingError::new("url", "is without TLS, but TLS files are set; write amqps://"));
        }
        let scheme = if uses_tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
        let vhost = url.path().trim_start_matches('/');
        let vhost = percent_encoding::percent_decode_str(vhost)
            .decode_utf8()
            .map_err(|_| SettingError::new("url", "the vhost is not UTF-8; percent-encode it"))?;
        let login = match (&options.user, &options.password) {
            (Some(user), Some(password)) => {
                AMQPUserInfo { username: user.clone(), password: password.expose_secret().to_owned() }
            }
            _ => AMQPUserInfo::default(),
        };
        let uri = AMQPUri {
            authority: AMQPAuthority {
                userinfo: login,
                host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
                port: url.port().unwrap_or(scheme.default_port()),
            },
            scheme,
            vhost: if vhost.is_empty() { "/".to_owned() } else { vhost.into_owned() },
            query: AMQPQueryString { heartbeat: Some(HEARTBEAT), ..AMQPQueryString::default() },
        };
        super::install_tls_provider();
        Ok(Self { uri, link: Link::new(options.timeouts.connect), options })
    }

    async fn session(&self) -> Result<Linked<Arc<AmqpSession>>, PublishError> {
        loop {
            let linked = self.link.get(self.connect()).await?;
            if linked.connection.connection.status().connected() {
                return Ok(linked);
            }
            // The next round connects, or returns the error of connecting.
            self.link.lost(&linked).await;
        }
    }

    async fn connect(&self) -> Result<Arc<AmqpSession>, PublishError> {
        let tls = match self.uri.scheme {
            AMQPScheme::AMQPS => Some(transport::tls(self.options.tls.read().await?)?),
            AMQPScheme::AMQP => None,
        };
        let properties = ConnectionProperties::default().with_connection_name("integration-hub".into());
        let connecting = transport::connect(self.uri.clone(), properties, tls);
        let connection = connecting.await.map_err(|error| match soft_error(&error) {
            Some(AMQPSoftError::ACCESSREFUSED) => PublishError::unavailable(format!(
                "{} rejects the login; correct user and password",
                self.address()
            )),
            _ => self.unavailable(&error),
        })?;
        let session = AmqpSession { connection, idle: Mutex::default() };
        let channel = self.open(&session).await.map_err(|error| self.unavailable(&error))?;
        if !self.options.exchange.is_empty() {
            let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let exchange = self.options.exchange.as_str();
            let declared = channel
                .exchange_declare(
                    exchange.into(),
                    lapin::ExchangeKind::Direct,
                    passive,
                    FieldTable::default(),
                )
                .await;
            declared.map_err(|error| match soft_error(&error) {
                Some(AMQPSoftError::NOTFOUND) => PublishError::unavailable(format!(
                    "{} has no exchange {exchange:?}; declare it, or correct the setting exchange",
                    self.address()
                )),
                _ => self.unavailable(&error),
            })?;
        }
        session.give_back(channel);
        Ok(Arc::new(session))
    }

    async fn open(&self, session: &AmqpSession) -> Result<Channel, Error> {
        let channel = session.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    fn address(&self) -> String {
        format!("{}:{}", self.uri.authority.host, self.uri.authority.port)
    }

    fn unavailable(&self, error: &Error) -> PublishError {
        PublishError::unavailable(format!("{}: {error}", self.address())).caused_by(error.clone())
    }

    async fn publish_group(&self, group: &[OutgoingMessage]) -> PublishedGroup {
        if group.is_empty() {
            return PublishedGroup::all(group);
        }
        let linked = match self.session().await {
            Ok(linked) => linked,
            Err(error) => return PublishedGroup::none(error),
        };
        let session = &linked.connection;
        let channel = match self.within(self.channel(session)).await {
            Ok(channel) => channel,
            Err(error) => {
                self.link.lost(&linked).await;
                return PublishedGroup::none(error);
            }
        };
        // One by one: the broker may reject a message, and later ones must not overtake it.
        for (acknowledged, message) in group.iter().enumerate() {
            match self.publish_one(&channel, message).await {
                Ok(()) => {}
                Err(error) => {
                    if matches!(error, PublishError::Unavailable { .. }) {
                        self.link.lost(&linked).await;
                    } else if channel.status().connected() {
                        session.give_back(channel);
                    }
                    return PublishedGroup { acknowledged, error: Some(error) };
                }
            }
        }
        session.give_back(channel);
        PublishedGroup::all(group)
    }

    async fn channel(&self, session: &AmqpSession) -> Result<Channel, PublishError> {
        while let Some(channel) = session.take() {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        self.open(session).await.map_err(|error| self.unavailable(&error))
    }

    async fn within<T>(
        &self,
        step: impl Future<Output = Result<T, PublishError>>,
    ) -> Result<T, PublishError> {
        let limit = self.options.timeouts.publish;
        tokio::time::timeout(limit, step).await.unwrap_or_else(|_| {
            Err(PublishError::unavailable(format!("{}: no answer within {}", self.address(), span(limit))))
        })
    }

    async fn publish_one(&self, channel: &Channel, message: &OutgoingMessage) -> Result<(), PublishError> {
        if message.stream.len() > LONGEST_NAME {
            return Err(PublishError::permanent(format!(
                "destination: the routing key is {} bytes long; AMQP allows {LONGEST_NAME}",
                message.stream.len()
            )));
        }
        let properties = properties(message)?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmed = self.within(async {
            let (exchange, key) = (self.options.exchange.as_str().into(), message.stream.as_str().into());
            let confirm = channel.basic_publish(exchange, key, options, &message.body, properties).await;
            let confirm = confirm.map_err(|error| self.publish_error(&error))?;
            confirm.await.map_err(|error| self.publish_error(&error))
        });
        let place = || format!("exchange {:?}, routing key {:?}", self.options.exchange, message.stream);
        match confirmed.await? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                Err(PublishError::refused(format!(
                    "{}: {} ({})",
                    place(),
                    returned.reply_text,
                    returned.reply_code
                )))
            }
            Confirmation::Nack(None) => {
                Err(PublishError::no_room(format!("{}: rejected; a queue may be full", place())))
            }
            Confirmation::NotRequested => Err(PublishError::unavailable(format!(
                "{}: the channel has no publisher confirms",
                self.address()
            ))),
        }
    }

    /// An error that closes the channel is caused by the one message that was pending on it.
    fn publish_error(&self, error: &Error) -> PublishError {
        let reason = format!("{}: {error}", self.address());
        let failed = match soft_error(error).map(|soft| meaning(&soft)) {
            Some(ChannelErrorMeaning::TooLarge) => PublishError::permanent(reason),
            Some(ChannelErrorMeaning::Refused) => PublishError::refused(reason),
            Some(ChannelErrorMeaning::Unavailable) | None => PublishError::unavailable(reason),
        };
        failed.caused_by(error.clone())
    }
}

/// What a broker's error on a channel means for the message that was pending on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChannelErrorMeaning {
    TooLarge,
    Refused,
    /// The message is not the cause: all messages are affected.
    Unavailable,
}

fn meaning(soft: &AMQPSoftError) -> ChannelErrorMeaning {
    match soft {
        // RabbitMQ's answer to a message above max_message_size; publishing has no other condition.
        AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::CONTENTTOOLARGE => ChannelErrorMeaning::TooLarge,
        AMQPSoftError::ACCESSREFUSED => ChannelErrorMeaning::Refused,
        // The exchange was removed, or a resource is locked.
        _ => ChannelErrorMeaning::Unavailable,
    }
}

impl AmqpSession {
    fn take(&self) -> Option<Channel> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, channel: Channel) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(channel);
        }
    }
}

/// The broker's error on a channel, or on the login.
fn soft_error(error: &Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

fn properties(message: &OutgoingMessage) -> Result<BasicProperties, PublishError> {
    let short = |what: &str, text: &str| {
        if text.len() <= LONGEST_NAME {
            return Ok(());
        }
        let length = text.len();
        Err(PublishError::permanent(format!("{what} is {length} bytes long; AMQP allows {LONGEST_NAME}")))
    };
    short("the message id", &message.id)?;
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        short("the name of a header", name)?;
        headers.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
    }
    Ok(BasicProperties::default()
        .with_message_id(message.id.as_str().into())
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers))
}

impl Broker for Amqp {
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup> {
        self.publish_group(group).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        async {
            let linked = self.session().await?;
            let opened = self.within(self.channel(&linked.connection)).await;
            match opened {
                Ok(channel) => {
                    linked.connection.give_back(channel);
                    Ok(())
                }
                Err(error) => {
                    self.link.lost(&linked).await;
                    Err(error)
                }
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            if let Some(session) = self.link.close().await {
                let closing = session.connection.close(200, "closing".into());
                if !matches!(tokio::time::timeout(self.options.timeouts.connect, closing).await, Ok(Ok(()))) {
                    AmqpClosedBefore { broker: &self.address() }.emit();
                }
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_about_the_message_is_attributed_to_it() {
        for (soft, expected) in [
            (AMQPSoftError::PRECONDITIONFAILED, ChannelErrorMeaning::TooLarge),
            (AMQPSoftError::CONTENTTOOLARGE, ChannelErrorMeaning::TooLarge),
            (AMQPSoftError::ACCESSREFUSED, ChannelErrorMeaning::Refused),
            (AMQPSoftError::RESOURCELOCKED, ChannelErrorMeaning::Unavailable),
            (AMQPSoftError::NOTFOUND, ChannelErrorMeaning::Unavailable),
            (AMQPSoftError::NOCONSUMERS, ChannelErrorMeaning::Unavailable),
        ] {
            assert_eq!(meaning(&soft), expected, "{soft:?}");
        }
    }
}
