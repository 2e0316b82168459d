//! The connection to NATS, and the JetStream API as JSON over request and reply.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, ConnectErrorKind, Event, HeaderMap, Request};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::agreement::SharedState;
use super::error::{ApiError, BoxError, NatsError};
use super::letter_rooms::LetterRooms;
use super::liveness::{Liveness, PING_INTERVAL};
use super::scan_names::ScanNames;
use super::server_choice::ServerChoice;
use super::server_reports::ServerReports;
use super::subjects::SubjectNames;
use crate::facts::{
    NatsClientEvent, NatsConnected, NatsDisconnected, NatsErrorReported, NatsMessagesDropped,
};
use crate::standstill::{Leases, Standstills};
use crate::tasks::Task;

/// Longest subject that is published to, in bytes. The server closes a connection that sends a protocol line longer
/// than its limit, 4 KB by default.
const MAX_SUBJECT_BYTES: usize = 3_500;
/// Longest wait between two attempts to reconnect. Work continues at most this long after a server has returned.
const LONGEST_RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// Address, credentials and timeouts of a connection.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    pub url: String,
    pub prefix: String,
    /// First part of the inbox subjects; empty for the client's default.
    pub inbox_prefix: String,
    pub name: String,
    pub credentials_file: Option<PathBuf>,
    pub nkey_seed_file: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub token: Option<SecretString>,
    pub tls: Tls,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
}

#[derive(Debug, Clone, Default)]
pub struct Tls {
    pub required: bool,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// A connection with the subject names of its hub. Cheap to clone; all clones share one connection.
#[derive(Debug, Clone)]
pub struct JetStream {
    /// In an `Arc` because cloning the client allocates.
    client: Arc<Client>,
    names: SubjectNames,
    /// Number of connections made so far; a change means that outstanding pulls are lost.
    generation: watch::Receiver<u64>,
    connected: watch::Receiver<bool>,
    /// Number of connections lost so far; a change means that outstanding requests get no answer.
    lost: watch::Receiver<u64>,
    reports: Arc<ServerReports>,
    liveness: Arc<Liveness>,
    /// Somebody found that a stream or consumer does not exist.
    missing: Arc<Notify>,
    request_timeout: Duration,
    shared: Arc<SharedState>,
    letter_rooms: Arc<LetterRooms>,
    scan_names: Arc<ScanNames>,
    standstills: Arc<Standstills>,
    /// Ends with the last clone.
    _standstill_watch: Arc<Task<()>>,
}

impl JetStream {
    /// Closes the connection for good, for all clones.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.client.drain().await.expect("the client drains");
    }

    /// Connects. The client reconnects by itself, without limit, if the connection is lost later.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, NatsError> {
        let outage = super::outage::Outage::new(&options.url);
        let (generation_sender, generation) = watch::channel(0u64);
        let (connected_sender, connected) = watch::channel(true);
        let (lost_sender, lost) = watch::channel(0u64);
        let reports = Arc::new(ServerReports::default());
        let reported = reports.clone();
        let choice = ServerChoice::default();
        let mut connect = async_nats::ConnectOptions::new()
            .name(&options.name)
            .connection_timeout(options.connect_timeout)
            .request_timeout(Some(options.request_timeout))
            .max_reconnects(None)
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(reconnect_delay)
            .reconnect_to_server_callback(move |pool, _| std::future::ready(choice.next(&pool)))
            // Pulls are bounded by their permits; the capacity only has to exceed the number of permits.
            .subscription_capacity(64 * 1024)
            .client_capacity(8 * 1024)
            .skip_subject_validation(true)
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    outage.ended();
                }
                match event {
                    Event::Connected => {
                        connected_sender.send_replace(true);
                        generation_sender.send_modify(|count| *count += 1);
                        NatsConnected.emit();
                    }
                    Event::Disconnected => {
                        connected_sender.send_replace(false);
                        lost_sender.send_modify(|count| *count += 1);
                        NatsDisconnected.emit();
                    }
                    Event::SlowConsumer(sid) => NatsMessagesDropped { sid }.emit(),
                    Event::ServerError(error) => {
                        reported.add(&error);
                        NatsErrorReported { error: &error }.emit();
                    }
                    Event::ClientError(error) => outage.attempt_failed(&error),
                    event => NatsClientEvent { event: &event }.emit(),
                }
                std::future::ready(())
            });
        if !options.inbox_prefix.is_empty() {
            connect = connect.custom_inbox_prefix(&options.inbox_prefix);
        }
        if let (Some(user), Some(password)) = (&options.user, &options.password) {
            connect = connect.user_and_password(user.clone(), password.expose_secret().to_owned());
        }
        if let Some(token) = &options.token {
            connect = connect.token(token.expose_secret().to_owned());
        }
        if let Some(path) = &options.nkey_seed_file {
            let seed = read_setting("nkey_seed_file", path)?;
            connect = connect.nkey(seed.trim().to_owned());
        }
        if let Some(path) = &options.credentials_file {
            let text = read_setting("credentials_file", path)?;
            connect = connect.credentials(&text).map_err(|error| NatsError::Settings {
                setting: "credentials_file",
                path: path.clone(),
                source: error,
            })?;
        }
        // The client names neither the setting nor the file.
        for (setting, path) in [
            ("tls_ca_file", &options.tls.ca_file),
            ("tls_cert_file", &options.tls.cert_file),
            ("tls_key_file", &options.tls.key_file),
        ] {
            path.as_ref().map_or(Ok(()), |path| read_setting(setting, path).map(drop))?;
        }
        connect = connect.require_tls(options.tls.required);
        if let Some(path) = &options.tls.ca_file {
            connect = connect.add_root_certificates(path.clone());
        }
        if let (Some(cert), Some(key)) = (&options.tls.cert_file, &options.tls.key_file) {
            connect = connect.add_client_certificate(cert.clone(), key.clone());
        }
        let client = connect
            .connect(options.url.split(',').map(str::trim).collect::<Vec<_>>())
            .await
            .map_err(|error| match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    NatsError::Login { url: options.url.clone(), source: error.into() }
                }
                ConnectErrorKind::Tls => NatsError::Tls { url: options.url.clone(), source: error.into() },
                _ if is_of_tls(&error) => NatsError::Tls { url: options.url.clone(), source: error.into() },
                _ => NatsError::Connect { url: options.url.clone(), source: error.into() },
            })?;
        let standstills = Arc::new(Standstills::default());
        Ok(Self {
            _standstill_watch: Arc::new(standstills.watch()),
            standstills,
            client: Arc::new(client),
            names: SubjectNames::new(&options.prefix),
            generation,
            connected,
            lost,
            reports,
            liveness: Arc::new(Liveness::new()),
            missing: Arc::default(),
            request_timeout: options.request_timeout,
            shared: Arc::default(),
            letter_rooms: Arc::default(),
            scan_names: Arc::default(),
        })
    }

    pub fn names(&self) -> &SubjectNames {
        &self.names
    }

    pub(super) fn shared(&self) -> &SharedState {
        &self.shared
    }

    pub(super) fn letter_rooms(&self) -> &LetterRooms {
        &self.letter_rooms
    }

    pub(super) fn scan_names(&self) -> &Arc<ScanNames> {
        &self.scan_names
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    pub(super) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.clone()
    }

    /// The leases of a stream's messages. `expected` is the `ack_wait` of its consumers until the server has answered.
    pub fn leases(&self, stream: &str, expected: Duration) -> Leases {
        self.standstills.leases(stream, expected)
    }

    pub(super) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Notified when a stream or consumer was found missing.
    pub(super) fn missing(&self) -> &Notify {
        &self.missing
    }

    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Number of connections made so far.
    pub fn connections(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Largest message that the server accepts, in bytes.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// `major.minor.patch` of the server.
    pub fn server_version(&self) -> String {
        self.client.server_info().version
    }

    pub fn server_name(&self) -> String {
        self.client.server_info().server_name
    }

    /// Waits until everything published so far has been sent.
    pub async fn flush(&self) -> Result<(), NatsError> {
        let timeout = self.request_timeout;
        match tokio::time::timeout(timeout, self.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(NatsError::transport("flush".to_owned(), error)),
            Err(_) => Err(NatsError::timeout("flush", timeout)),
        }
    }

    /// The same at a stop, which does not wait for a server that is gone.
    pub async fn flush_at_stop(&self) -> Result<(), NatsError> {
        self.check_connected()?;
        self.flush().await
    }

    /// Fails if there is no connection at the moment.
    pub(crate) fn check_connected(&self) -> Result<(), NatsError> {
        if self.is_connected() { Ok(()) } else { Err(NatsError::NotConnected) }
    }

    /// Sends a request to `$JS.API.<subject>`. An `error` in the answer becomes [`NatsError::Api`].
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &impl Serialize,
    ) -> Result<T, NatsError> {
        let payload = serde_json::to_vec(body).map_err(|error| NatsError::encode(subject, error))?;
        let payload = if payload == b"null" { Bytes::new() } else { Bytes::from(payload) };
        let full = format!("$JS.API.{subject}");
        let sent = std::time::Instant::now();
        let answer = self.request(&full, payload, HeaderMap::new()).await?;
        // Only these have the time, and others may be large.
        if subject.starts_with("STREAM.INFO.") || subject.starts_with("CONSUMER.INFO.") {
            self.shared.clock.read(&answer.payload, sent);
        }
        read_answer(subject, &answer.payload)
    }

    /// The error of a request without an answer, which was sent at this time, with the missing permission that the server has
    /// reported for it since.
    pub(super) fn unanswered(&self, subject: &str, sent: Instant) -> NatsError {
        let inbox = self.client.new_inbox();
        let inbox = inbox.rsplit_once('.').map_or(inbox.as_str(), |(prefix, _)| prefix);
        let reported = self.reports.about(subject, inbox, sent);
        let seconds = self.request_timeout.as_secs();
        NatsError::Timeout { subject: subject.to_owned(), seconds, reported }
    }

    pub(super) async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        headers: HeaderMap,
    ) -> Result<async_nats::Message, NatsError> {
        usable(subject)?;
        let size = payload.len();
        let mut request = Request::new().payload(payload).timeout(Some(self.request_timeout));
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        // Of requests before the connection was lost, the server may have carried out some.
        let mut lost = self.lost.clone();
        lost.mark_unchanged();
        let sent = Instant::now();
        let timeout = || self.unanswered(subject, sent);
        let answer = tokio::select! {
            // The limit also counts the wait for room in the client's queue, which is full if the connection stalls.
            answer = tokio::time::timeout(
                self.request_timeout,
                self.client.send_request(subject.to_owned(), request),
            ) => answer.map_err(|_| timeout())?,
            Ok(()) = lost.changed() => {
                return Err(NatsError::ConnectionLost { subject: subject.to_owned() });
            }
        };
        answer.map_err(|error| {
            let subject = subject.to_owned();
            match error.kind() {
                RequestErrorKind::TimedOut => timeout(),
                RequestErrorKind::NoResponders => {
                    self.missing.notify_one();
                    NatsError::NoResponders { subject }
                }
                RequestErrorKind::MaxPayloadExceeded => {
                    NatsError::TooLarge { subject, size, limit: self.max_payload() }
                }
                _ => NatsError::transport(subject, error),
            }
        })
    }

    /// Waits until the client has taken a message to send, at most `request_timeout`: its queue is full if the connection
    /// stalls.
    pub(super) async fn sent<T, E: Into<BoxError>>(
        &self,
        subject: &str,
        sending: impl Future<Output = Result<T, E>>,
    ) -> Result<T, NatsError> {
        match tokio::time::timeout(self.request_timeout, sending).await {
            Ok(sent) => sent.map_err(|error| NatsError::transport(subject, error)),
            Err(_) => Err(NatsError::timeout(subject, self.request_timeout)),
        }
    }
}

/// The wait before an attempt to reconnect, by its number.
fn reconnect_delay(attempt: usize) -> Duration {
    let attempt = u64::try_from(attempt).unwrap_or(u64::MAX);
    Duration::from_millis(attempt.saturating_mul(50)).min(LONGEST_RECONNECT_DELAY)
}

/// Rejects a subject for which the server would close the connection. Some subjects contain text that
/// publishers wrote.
fn usable(subject: &str) -> Result<(), NatsError> {
    let invalid = |reason| NatsError::Subject { subject: subject.chars().take(80).collect(), reason };
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err(invalid("the subject is too long; at most 3500 bytes are allowed"));
    }
    if subject.is_empty() || subject.bytes().any(|byte| byte.is_ascii_whitespace()) {
        return Err(invalid("the subject is empty or contains white space"));
    }
    Ok(())
}

/// True if an error, or one of its causes, is of TLS. The client reports a failed handshake as an I/O error.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || inner.is_some_and(|inner| is_of_tls(inner))
        || error.source().is_some_and(is_of_tls)
}

fn read_setting(setting: &'static str, path: &std::path::Path) -> Result<String, NatsError> {
    std::fs::read_to_string(path).map_err(|error| NatsError::Settings {
        setting,
        path: path.to_owned(),
        source: error,
    })
}

/// Decodes a JetStream API answer or publish acknowledgement.
pub(super) fn read_answer<T: DeserializeOwned>(subject: &str, payload: &[u8]) -> Result<T, NatsError> {
    let unreadable = |error: serde_json::Error| NatsError::answer(subject.to_owned(), error);
    let value: Value = serde_json::from_slice(payload).map_err(unreadable)?;
    if let Some(error) = value.get("error") {
        let source: ApiError = serde_json::from_value(error.clone()).map_err(unreadable)?;
        return Err(NatsError::Api { subject: subject.to_owned(), source });
    }
    serde_json::from_value(value).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_attempts_to_reconnect_stop_growing() {
        assert_eq!([1, 2, 9, 10].map(reconnect_delay), [50, 100, 450, 500].map(Duration::from_millis));
        assert_eq!([11, 1_000, usize::MAX].map(reconnect_delay), [LONGEST_RECONNECT_DELAY; 3]);
    }
}
