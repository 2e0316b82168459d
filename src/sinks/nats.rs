//! Another NATS server, or another account of the same one.
//!
//! JetStream: `Nats-Msg-Id` is the message id, so a repetition within the stream's duplicate window is
//! dropped, and the stream's acknowledgement is ours. Core NATS: acknowledged is what the server has
//! processed; whether anybody listened nobody knows.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::connection::State;
use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, HeaderName, HeaderValue, Request,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::link::Link;
use super::{Broker, Outgoing, PublishError, Published, SettingError, Timeouts, Tls};

/// Who acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The stream that takes the subject.
    #[default]
    JetStream,
    /// As JetStream, and several messages of a group go as one atomic batch (ADR-50). For streams with
    /// `allow_atomic` on a server from 2.12; others are published to one by one.
    JetStreamBatch,
    /// The server, which passes the message on to whoever listens.
    Core,
}

/// How to reach a NATS server. One way of logging in, or none.
#[derive(Debug, Clone)]
pub struct Options {
    /// `nats://host:port` or `tls://host:port`, several with commas between.
    pub url: String,
    pub mode: Mode,
    pub credentials_file: Option<PathBuf>,
    pub nkey_seed_file: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub token: Option<SecretString>,
    pub tls: Tls,
    pub timeouts: Timeouts,
}

impl Options {
    /// JetStream, without credentials and TLS files.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            mode: Mode::default(),
            credentials_file: None,
            nkey_seed_file: None,
            user: None,
            password: None,
            token: None,
            tls: Tls::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// A NATS server; all publishes share one connection.
pub struct Nats {
    options: Options,
    link: Link<Client>,
}

impl Nats {
    /// Checks the options; connects with the first publish.
    pub fn new(options: Options) -> Result<Self, SettingError> {
        for url in options.url.split(',') {
            super::parse_url(url.trim(), &["nats", "tls"])?;
        }
        super::check_login(options.user.as_ref(), options.password.as_ref())?;
        options.tls.validate()?;
        let ways = [
            ("credentials_file", options.credentials_file.is_some()),
            ("nkey_seed_file", options.nkey_seed_file.is_some()),
            ("user", options.user.is_some()),
            ("token", options.token.is_some()),
        ];
        let mut given = ways.iter().filter(|(_, given)| *given).map(|(setting, _)| *setting);
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            return Err(SettingError::new(second, format!("{first} is set as well: keep one of them")));
        }
        super::install_tls_provider();
        Ok(Self { link: Link::new(options.timeouts.connect), options })
    }

    async fn client(&self) -> Result<Client, PublishError> {
        let client = self.link.get(self.connect()).await?.connection;
        // The client connects again by itself; no need to wait for the timeout until it has.
        if client.connection_state() == State::Disconnected {
            return Err(self.unavailable("the connection is lost; connecting again"));
        }
        Ok(client)
    }

    async fn connect(&self) -> Result<Client, PublishError> {
        let options = &self.options;
        let mut connect = ConnectOptions::new()
            .name("integration-hub external broker")
            .connection_timeout(options.timeouts.connect)
            .request_timeout(Some(options.timeouts.publish))
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| Duration::from_millis((100 * attempt as u64).min(5_000)))
            .ping_interval(Duration::from_secs(10))
            .require_tls(options.tls.required)
            .event_callback(|event| {
                match event {
                    Event::ServerError(error) => {
                        tracing::warn!(%error, "an external NATS server reports an error");
                    }
                    other => tracing::debug!(event = %other, "external NATS client event"),
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
            // The error may quote the file.
            connect = connect.credentials(&text).map_err(|_| {
                let reason = format!("{} is not a credentials file", path.display());
                SettingError::new("credentials_file", reason)
            })?;
        }
        // Read before it is handed over, for the error that names the setting.
        options.tls.read().await?;
        if let Some(path) = &options.tls.ca_file {
            connect = connect.add_root_certificates(path.clone());
        }
        if let (Some(cert), Some(key)) = (&options.tls.cert_file, &options.tls.key_file) {
            connect = connect.add_client_certificate(cert.clone(), key.clone());
        }
        let servers = options.url.split(',').map(str::trim).collect::<Vec<_>>();
        connect.connect(servers).await.map_err(|error| match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                self.unavailable(format!("the server does not let us in: correct {}", self.login()))
            }
            _ => self.unavailable(error),
        })
    }

    /// The setting we log in with.
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

    async fn publish_group(&self, group: &[Outgoing]) -> Published {
        let client = &match self.client().await {
            Ok(client) => client,
            Err(error) => return Published::none(error),
        };
        match self.options.mode {
            Mode::Core => self.publish_core(client, group).await,
            Mode::JetStream => self.publish_each(client, group).await,
            Mode::JetStreamBatch => self.publish_batches(client, group).await,
        }
    }

    /// One by one: the next leaves only when the one before is in the stream.
    async fn publish_each(&self, client: &Client, group: &[Outgoing]) -> Published {
        for (acknowledged, message) in group.iter().enumerate() {
            if let Err(error) = self.publish_one(client, message).await {
                return Published { acknowledged, error: Some(error) };
            }
        }
        Published::all(group)
    }

    async fn publish_one(&self, client: &Client, message: &Outgoing) -> Result<(), PublishError> {
        let headers = headers(message)?;
        let body = message.body.clone();
        match self.request(client, &message.stream, headers, body).await? {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal.into_error(&message.stream)),
        }
    }

    /// The stream's answer: its acknowledgement, or why it does not take the message.
    async fn request(
        &self,
        client: &Client,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Result<Stored, Refusal>, PublishError> {
        check_subject(subject)?;
        let request =
            Request::new().headers(headers).payload(body).timeout(Some(self.options.timeouts.publish));
        let answer = match client.send_request(subject.to_owned(), request).await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::TimedOut => self.unavailable(format!(
                        "no acknowledgement within {:?}",
                        self.options.timeouts.publish
                    )),
                    RequestErrorKind::NoResponders => self.nobody_takes(client, subject).await,
                    RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                        PublishError::permanent(format!("{subject}: {error}"))
                    }
                    RequestErrorKind::Other => self.unavailable(error),
                });
            }
        };
        match serde_json::from_slice::<Answer>(&answer.payload) {
            Ok(Answer { error: Some(refusal), .. }) => Ok(Err(refusal)),
            Ok(Answer { stream: Some(_), count, .. }) => Ok(Ok(Stored { count })),
            Ok(_) | Err(_) => Err(PublishError::refused(format!(
                "{subject}: somebody other than JetStream has answered: name a subject that a stream takes"
            ))),
        }
    }

    /// No stream takes the subject, or JetStream as a whole is away, as it is while a server starts.
    async fn nobody_takes(&self, client: &Client, subject: &str) -> PublishError {
        match self.jetstream(client).await {
            Ok(()) => PublishError::refused(format!("{subject}: no stream takes this subject")),
            Err(error) => error,
        }
    }

    async fn jetstream(&self, client: &Client) -> Result<(), PublishError> {
        let request = Request::new().timeout(Some(self.options.timeouts.publish));
        match client.send_request("$JS.API.INFO".to_owned(), request).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.unavailable(format!("JetStream does not answer: {error}"))),
        }
    }

    /// A batch is committed whole or not at all. A repetition (known ids) and a stream without batches
    /// are published one by one.
    async fn publish_batches(&self, client: &Client, group: &[Outgoing]) -> Published {
        let mut acknowledged = 0;
        for batch in group.chunks(MOST_PER_BATCH) {
            let committed = match batch {
                [_] => false,
                _ => match self.commit(client, batch).await {
                    Ok(committed) => committed,
                    Err(error @ PublishError::Unavailable { .. }) => {
                        return Published { acknowledged, error: Some(error) };
                    }
                    // One by one shows whose fault it is.
                    Err(_) => false,
                },
            };
            if !committed {
                let each = self.publish_each(client, batch).await;
                if each.error.is_some() {
                    return Published { acknowledged: acknowledged + each.acknowledged, error: each.error };
                }
            }
            acknowledged += batch.len();
        }
        Published::all(group)
    }

    /// False where the stream takes no such batch; nothing of it is stored then.
    async fn commit(&self, client: &Client, batch: &[Outgoing]) -> Result<bool, PublishError> {
        let id = client.new_inbox();
        let id = id.rsplit('.').next().unwrap_or(&id).to_owned();
        for (position, message) in batch.iter().enumerate() {
            check_subject(&message.stream)?;
            let mut headers = headers(message)?;
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", (position + 1).to_string());
            if position + 1 == batch.len() {
                headers.insert("Nats-Batch-Commit", "1");
                let committed = self.request(client, &message.stream, headers, message.body.clone()).await?;
                // A server that knows no batches stores each message by itself and says nothing of them.
                return Ok(committed.is_ok_and(|stored| stored.count == Some(batch.len())));
            }
            let (subject, body) = (message.stream.clone(), message.body.clone());
            self.send(client.publish_with_headers(subject, headers, body)).await?;
        }
        Ok(true)
    }

    /// Core: the messages, and behind them one to ourselves, which the server passes back when it has
    /// processed what came before on the connection.
    async fn publish_core(&self, client: &Client, group: &[Outgoing]) -> Published {
        let (mut sent, mut fault) = (0, None);
        // What was written to a connection that is lost may be lost with it, and the echo go over the next.
        let statistics = client.statistics();
        let before = statistics.connects.load(Ordering::SeqCst);
        let echo = client.new_inbox();
        let subscribed = client.subscribe(echo.clone()).map(|result| {
            result.map_err(|error| self.unavailable(format!("cannot subscribe to {echo}: {error}")))
        });
        let mut echoes = match subscribed.await {
            Ok(echoes) => echoes,
            Err(error) => return Published::none(error),
        };
        for message in group {
            if let Err(error) = self.send_core(client, message).await {
                fault = Some(error);
                break;
            }
            sent += 1;
        }
        if let Err(error) = self.send(client.publish(echo, Bytes::new())).await {
            return Published::none(error);
        }
        let heard = tokio::time::timeout(self.options.timeouts.publish, echoes.next()).await;
        if !matches!(heard, Ok(Some(_))) {
            let within = self.options.timeouts.publish;
            return Published::none(self.unavailable(format!("no answer from the server within {within:?}")));
        }
        if statistics.connects.load(Ordering::SeqCst) != before {
            return Published::none(self.unavailable("the connection was lost while publishing"));
        }
        Published { acknowledged: sent, error: fault }
    }

    async fn send_core(&self, client: &Client, message: &Outgoing) -> Result<(), PublishError> {
        check_subject(&message.stream)?;
        let (subject, body) = (message.stream.clone(), message.body.clone());
        self.send(client.publish_with_headers(subject, headers(message)?, body)).await
    }

    /// The client's queue to its connection is bounded: it is full when the server does not read.
    async fn send(
        &self,
        publish: impl Future<Output = Result<(), async_nats::PublishError>>,
    ) -> Result<(), PublishError> {
        match tokio::time::timeout(self.options.timeouts.publish, publish).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
                    PublishError::permanent(error.to_string())
                }
                PublishErrorKind::Send => self.unavailable(error),
            }),
            Err(_) => Err(self.unavailable("the server takes nothing")),
        }
    }
}

/// The server's limit for an atomic batch (ADR-50).
const MOST_PER_BATCH: usize = 1000;

/// A publish acknowledgement, or an API error in its place.
#[derive(Deserialize)]
struct Answer {
    stream: Option<String>,
    count: Option<usize>,
    error: Option<Refusal>,
}

/// What the stream has stored: of a batch, so many messages.
struct Stored {
    count: Option<usize>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u16,
    #[serde(default)]
    err_code: u16,
    #[serde(default)]
    description: String,
}

impl Refusal {
    /// `JSStreamMessageExceedsMaximumErr`
    const TOO_LARGE: u16 = 10054;
    /// `JSStreamHeaderExceedsMaximumErr`
    const HEADERS_TOO_LARGE: u16 = 10097;

    fn into_error(self, subject: &str) -> PublishError {
        let reason = format!("{subject}: {} (JetStream error {})", self.description, self.err_code);
        match (self.code, self.err_code) {
            (_, Self::TOO_LARGE | Self::HEADERS_TOO_LARGE) => PublishError::permanent(reason),
            // JetStream is off, has no leader, or no resources: not this message's fault. A stream that is
            // full is 10077, which comes with 503 as well.
            (503, code) if code != Self::STORE_FAILED => PublishError::unavailable(reason),
            _ => PublishError::refused(reason),
        }
    }

    /// `JSStreamStoreFailedF`: the stream's limits refuse the message (discard new).
    const STORE_FAILED: u16 = 10077;
}

/// The message's headers and its id. A NATS header value is one line (ADR-4).
fn headers(message: &Outgoing) -> Result<HeaderMap, PublishError> {
    let mut map = HeaderMap::new();
    let id = ("Nats-Msg-Id", message.id.as_str());
    let rest = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in rest.chain([id]) {
        let unfit =
            |what| PublishError::permanent(format!("header {name:?}: its {what} cannot be a NATS header's"));
        let name = HeaderName::from_str(name).map_err(|_| unfit("name"))?;
        map.insert(name, HeaderValue::from_str(value).map_err(|_| unfit("value"))?);
    }
    Ok(map)
}

/// A subject that a message can be published to: tokens with dots between, no wildcards.
fn check_subject(subject: &str) -> Result<(), PublishError> {
    let fits = |token: &str| {
        !token.is_empty()
            && !matches!(token, "*" | ">")
            && !token.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    if subject.split('.').all(fits) {
        return Ok(());
    }
    Err(PublishError::permanent(format!("{subject:?} is no subject to publish to: tokens with dots between")))
}

async fn read_text(setting: &'static str, path: &std::path::Path) -> Result<String, SettingError> {
    let bytes = super::read_file(setting, path).await?;
    String::from_utf8(bytes)
        .map_err(|_| SettingError::new(setting, format!("{} is not text", path.display())))
}

impl Broker for Nats {
    fn publish<'a>(&'a self, group: &'a [Outgoing]) -> BoxFuture<'a, Published> {
        self.publish_group(group).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        async {
            let client = self.client().await?;
            match self.options.mode {
                Mode::JetStream | Mode::JetStreamBatch => self.jetstream(&client).await,
                Mode::Core => {
                    let published = self.publish_core(&client, &[]).await;
                    published.error.map_or(Ok(()), Err)
                }
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            if let Some(client) = self.link.close().await
                && let Err(error) = client.drain().await
            {
                tracing::debug!(%error, "the connection to an external NATS server was closed already");
            }
        }
        .boxed()
    }
}
