//! Another NATS server, or another account of the same one.
//!
//! JetStream: `Nats-Msg-Id` is the message id, so a duplicate within the stream's duplicate window is dropped. A
//! message is acknowledged when the stream acknowledges it. Core NATS: a message is acknowledged when the server has
//! processed it, whether or not anybody subscribes.

mod message;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, Request};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use hub_domain::words::span;
use secrecy::{ExposeSecret, SecretString};

use self::message::{Answer, check_subject, headers};
use super::link::Link;
use super::{Broker, BrokerTls, OutgoingMessage, PublishError, PublishedGroup, SettingError, Timeouts};
use crate::facts::{ExternalNatsClientEvent, ExternalNatsClosedBefore, ExternalNatsErrorReported};

/// What acknowledges a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The stream that stores the subject.
    #[default]
    JetStream,
    /// The server, which forwards the message to the current subscribers. It reports a forbidden subject separately
    /// from the publish; a report that arrives late is only logged.
    Core,
}

/// How to reach a NATS server. At most one kind of login may be set.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// `nats://host:port` or `tls://host:port`; several, separated by commas.
    pub url: String,
    pub mode: Mode,
    pub credentials_file: Option<PathBuf>,
    pub nkey_seed_file: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub token: Option<SecretString>,
    pub tls: BrokerTls,
    pub timeouts: Timeouts,
}

impl NatsOptions {
    /// Options with JetStream, without credentials and TLS files.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            mode: Mode::default(),
            credentials_file: None,
            nkey_seed_file: None,
            user: None,
            password: None,
            token: None,
            tls: BrokerTls::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// A NATS server; all publishes share one connection.
pub struct Nats {
    options: NatsOptions,
    link: Link<Connected>,
}

#[derive(Clone)]
struct Connected {
    client: Client,
    /// Number of errors that the server has reported outside of answers, such as a forbidden publish, which gets no
    /// answer.
    complaints: Arc<AtomicU64>,
}

impl Connected {
    fn complaints(&self) -> u64 {
        self.complaints.load(Ordering::SeqCst)
    }
}

impl Nats {
    /// Checks the options. The first publish connects.
    pub fn new(options: NatsOptions) -> Result<Self, SettingError> {
        for url in options.url.split(',') {
            super::parse_url(url.trim(), &["nats", "tls"])?;
        }
        super::check_login(options.user.as_ref(), options.password.as_ref())?;
        options.tls.validate()?;
        let logins = [
            ("credentials_file", options.credentials_file.is_some()),
            ("nkey_seed_file", options.nkey_seed_file.is_some()),
            ("user", options.user.is_some()),
            ("token", options.token.is_some()),
        ];
        let mut given = logins.iter().filter(|(_, given)| *given).map(|(setting, _)| *setting);
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            return Err(SettingError::new(second, format!("{first} is set too; keep one of them")));
        }
        super::install_tls_provider();
        Ok(Self { link: Link::new(options.timeouts.connect), options })
    }

    async fn connection(&self) -> Result<Connected, PublishError> {
        let connected = self.link.get(self.connect()).await?.connection;
        // The client reconnects by itself; publishing meanwhile would only wait for the timeout.
        if connected.client.connection_state() == State::Disconnected {
            return Err(self.unavailable("the connection is lost; reconnecting"));
        }
        Ok(connected)
    }

    async fn connect(&self) -> Result<Connected, PublishError> {
        let options = &self.options;
        let complaints = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&complaints);
        let broker: Arc<str> = options.url.as_str().into();
        let mut connect = ConnectOptions::new()
            .name("integration-hub external broker")
            .connection_timeout(options.timeouts.connect)
            .request_timeout(Some(options.timeouts.publish))
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| Duration::from_millis((100 * attempt as u64).min(5_000)))
            .ping_interval(Duration::from_secs(10))
            .require_tls(options.tls.required)
            .event_callback(move |event| {
                match event {
                    Event::ServerError(error) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        ExternalNatsErrorReported { broker: &broker, error: &error }.emit();
                    }
                    event => ExternalNatsClientEvent { event: &event }.emit(),
                }
                std::future::ready(())
            });
        if let (Some(user), Some(password)) = (&options.user, &options.password) {
            connect = connect.user_and_password(user.clone(), password.expose_secret().to_owned());
        }
        if let Some(token) = &options.token {
            connect = connect.token(token.expose_secret().to_owned());
        }
        if let Some(path) = &options.nkey_seed_file {
            let seed = read_text("nkey_seed_file", path).await?;
            connect = connect.nkey(seed.trim().to_owned());
        }
        if let Some(path) = &options.credentials_file {
            let text = read_text("credentials_file", path).await?;
            // The error is dropped, because it may quote the file.
            connect = connect.credentials(&text).map_err(|_| {
                let reason = format!("{} is not a credentials file", path.display());
                SettingError::new("credentials_file", reason)
            })?;
        }
        // The client's own error would not name the setting.
        options.tls.check_files().await?;
        if let Some(path) = &options.tls.ca_file {
            connect = connect.add_root_certificates(path.clone());
        }
        if let (Some(cert), Some(key)) = (&options.tls.cert_file, &options.tls.key_file) {
            connect = connect.add_client_certificate(cert.clone(), key.clone());
        }
        let servers = options.url.split(',').map(str::trim).collect::<Vec<_>>();
        let client = connect.connect(servers).await.map_err(|error| match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                self.unavailable(format!("the server rejects the login; correct {}", self.login()))
            }
            _ => self.failed(error),
        })?;
        Ok(Connected { client, complaints })
    }

    /// The setting that holds the login.
    fn login(&self) -> &'static str {
        let options = &self.options;
        if options.credentials_file.is_some() {
            "credentials_file"
        } else if options.nkey_seed_file.is_some() {
            "nkey_seed_file"
        } else if options.token.is_some() {
            "token"
        } else {
            "user and password"
        }
    }

    fn unavailable(&self, reason: impl std::fmt::Display) -> PublishError {
        PublishError::unavailable(format!("{}: {reason}", self.options.url))
    }

    fn failed(&self, error: impl std::error::Error + Send + Sync + 'static) -> PublishError {
        self.unavailable(&error).caused_by(error)
    }

    async fn publish_group(&self, group: &[OutgoingMessage]) -> PublishedGroup {
        let connected = &match self.connection().await {
            Ok(connected) => connected,
            Err(error) => return PublishedGroup::none(error),
        };
        match self.options.mode {
            Mode::Core => self.publish_core(connected, group).await,
            Mode::JetStream => self.publish_each(connected, group).await,
        }
    }

    /// Publishes one by one: each message is sent after the stream has stored the one before.
    async fn publish_each(&self, connected: &Connected, group: &[OutgoingMessage]) -> PublishedGroup {
        for (acknowledged, message) in group.iter().enumerate() {
            if let Err(error) = self.publish_one(connected, message).await {
                return PublishedGroup { acknowledged, error: Some(error) };
            }
        }
        PublishedGroup::all(group)
    }

    /// Publishes a message and waits until the stream acknowledges it.
    async fn publish_one(
        &self,
        connected: &Connected,
        message: &OutgoingMessage,
    ) -> Result<(), PublishError> {
        let (subject, headers) = (message.stream.as_str(), headers(message)?);
        check_subject(subject)?;
        let Connected { client, .. } = connected;
        let before = connected.complaints();
        let request = Request::new()
            .headers(headers)
            .payload(message.body.clone())
            .timeout(Some(self.options.timeouts.publish));
        let answer = match client.send_request(subject.to_owned(), request).await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::TimedOut if self.is_alone_at_fault(connected, before).await => {
                        PublishError::refused(format!(
                            "{subject}: the server reports an error and does not acknowledge; check that the user may publish to this subject"
                        ))
                    }
                    RequestErrorKind::TimedOut => self.unavailable(format!(
                        "no acknowledgement within {}",
                        span(self.options.timeouts.publish)
                    )),
                    RequestErrorKind::NoResponders => self.no_responders(client, subject).await,
                    RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                        PublishError::permanent(format!("{subject}: {error}")).caused_by(error)
                    }
                    RequestErrorKind::Other => self.failed(error),
                });
            }
        };
        match serde_json::from_slice::<Answer>(&answer.payload) {
            Ok(Answer { error: Some(refusal), .. }) => Err(refusal.into_error(subject)),
            Ok(Answer { stream: Some(_), .. }) => Ok(()),
            Ok(_) | Err(_) => Err(PublishError::refused(format!(
                "{subject}: the answer is not from JetStream; set a destination that a stream stores"
            ))),
        }
    }

    /// Whether the server reported an error since `before`, and still answers: then the message is the cause.
    async fn is_alone_at_fault(&self, connected: &Connected, before: u64) -> bool {
        connected.complaints() != before && self.echo(&connected.client).await.is_ok()
    }

    /// Why nothing answered: no stream stores the subject, or JetStream as a whole is unavailable, as it is while a
    /// server starts.
    async fn no_responders(&self, client: &Client, subject: &str) -> PublishError {
        match self.jetstream(client).await {
            Ok(()) => PublishError::refused(format!(
                "{subject}: no stream stores this subject; add it to a stream, or correct destination"
            )),
            Err(error) => error,
        }
    }

    /// Checks that JetStream is available. A user without the permission for that request gets no answer; then it
    /// checks that the server answers.
    async fn jetstream(&self, client: &Client) -> Result<(), PublishError> {
        let request = Request::new().timeout(Some(self.options.timeouts.publish));
        match client.send_request("$JS.API.INFO".to_owned(), request).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == RequestErrorKind::TimedOut => self.echo(client).await,
            Err(error) => {
                Err(self.unavailable(format!("JetStream does not answer: {error}")).caused_by(error))
            }
        }
    }

    /// Sends a message to an own inbox. When it arrives, the server has processed everything that was sent before on
    /// this connection.
    async fn echo(&self, client: &Client) -> Result<(), PublishError> {
        let within = self.options.timeouts.publish;
        let inbox = client.new_inbox();
        let round = async {
            let subscribed = client.subscribe(inbox.clone()).await;
            let mut echoes =
                subscribed.map_err(|error| self.unavailable(format!("{inbox}: {error}")).caused_by(error))?;
            self.send(client.publish(inbox.clone(), Bytes::new())).await?;
            let echo = echoes.next().await;
            echo.map(drop).ok_or_else(|| self.unavailable("the connection was closed"))
        };
        tokio::time::timeout(within, round).await.unwrap_or_else(|_| {
            Err(self.unavailable(format!("no answer from the server within {}", span(within))))
        })
    }

    /// Publishes over core NATS: all messages, then the echo.
    async fn publish_core(&self, connected: &Connected, group: &[OutgoingMessage]) -> PublishedGroup {
        let client = &connected.client;
        // Messages on a lost connection may be lost, although the echo arrives over the next one.
        let statistics = client.statistics();
        let connects = statistics.connects.load(Ordering::SeqCst);
        let complaints = connected.complaints();
        let (mut sent, mut fault) = (0, None);
        for message in group {
            if let Err(error) = self.send_core(client, message).await {
                fault = Some(error);
                break;
            }
            sent += 1;
        }
        if let Err(error) = self.echo(client).await {
            return PublishedGroup::none(error);
        }
        if statistics.connects.load(Ordering::SeqCst) != connects {
            return PublishedGroup::none(self.unavailable("the connection was lost while publishing"));
        }
        if connected.complaints() != complaints {
            let reason = "the server reports an error; check that the user may publish to the subject";
            return PublishedGroup::none(PublishError::refused(reason));
        }
        PublishedGroup { acknowledged: sent, error: fault }
    }

    async fn send_core(&self, client: &Client, message: &OutgoingMessage) -> Result<(), PublishError> {
        check_subject(&message.stream)?;
        let (subject, body) = (message.stream.clone(), message.body.clone());
        self.send(client.publish_with_headers(subject, headers(message)?, body)).await
    }

    /// Waits for a publish to enter the client's bounded queue, which is full while the server does not read.
    async fn send(
        &self,
        publish: impl Future<Output = Result<(), async_nats::PublishError>>,
    ) -> Result<(), PublishError> {
        match tokio::time::timeout(self.options.timeouts.publish, publish).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
                    PublishError::permanent(error.to_string()).caused_by(error)
                }
                PublishErrorKind::Send => self.failed(error),
            }),
            Err(_) => Err(self.unavailable("the server does not read")),
        }
    }
}

async fn read_text(setting: &'static str, path: &std::path::Path) -> Result<String, SettingError> {
    let bytes = super::read_file(setting, path).await?;
    String::from_utf8(bytes)
        .map_err(|_| SettingError::new(setting, format!("{} is not UTF-8", path.display())))
}

impl Broker for Nats {
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup> {
        self.publish_group(group).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        async {
            let Connected { client, .. } = self.connection().await?;
            match self.options.mode {
                Mode::JetStream => self.jetstream(&client).await,
                Mode::Core => self.echo(&client).await,
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            if let Some(connected) = self.link.close().await
                && let Err(error) = connected.client.drain().await
            {
                ExternalNatsClosedBefore { error: &error }.emit();
            }
        }
        .boxed()
    }
}
