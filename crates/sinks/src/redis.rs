//! Redis Streams: `XADD <stream> [MAXLEN ~ n] * data <json>`, the form that a Protean subscriber reads.
//!
//! Redis does not de-duplicate: if the answer to a publish is lost, the retry adds the entry again, and readers
//! recognise it by `headers.id` of the envelope. Acknowledged entries survive a crash of Redis only with `appendfsync
//! always`; with the default `everysec`, the last second or two may be lost. An entry holds neither key nor headers;
//! the order within a stream is the order of publishing.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates,
};
use secrecy::{ExposeSecret, SecretString};

use super::link::{Link, Linked};
use super::{Broker, BrokerTls, OutgoingMessage, PublishError, PublishedGroup, SettingError, Timeouts};

/// Default of a Redis server's `proto-max-bulk-len`; it closes the connection on a larger value.
pub const LARGEST: usize = 512 * 1024 * 1024;
/// Most entries of a group in one transaction, during which Redis serves no other client.
const MOST_PER_TRANSACTION: usize = 256;

/// How to reach a Redis server, version 5 or newer, without cluster mode.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// `redis://host:port[/database]`, `rediss://` for TLS.
    pub url: String,
    /// The ACL user (Redis 6); not set for `requirepass`.
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub tls: BrokerTls,
    /// Approximate number of entries to which each stream is trimmed, oldest first. `None`: not trimmed.
    pub max_len: Option<u64>,
    /// Largest body in bytes: the server's `proto-max-bulk-len`.
    pub largest: usize,
    pub timeouts: Timeouts,
}

impl RedisOptions {
    /// Options without credentials, TLS files and trimming.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            tls: BrokerTls::default(),
            max_len: None,
            largest: LARGEST,
            timeouts: Timeouts::default(),
        }
    }
}

/// What an error means for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerErrorMeaning {
    /// The message is not the cause: the server accepts none at the moment.
    Unavailable,
    /// The message is not the cause: the server is a cluster.
    Cluster,
    /// The server rejects this message.
    Refused,
}

/// Decides by the error code, the first word of Redis's answer. An error without a code is one of the connection.
fn meaning(kind: ErrorKind, code: Option<&str>) -> ServerErrorMeaning {
    match (kind, code) {
        (_, Some("MOVED" | "ASK" | "CROSSSLOT")) => ServerErrorMeaning::Cluster,
        (
            _,
            // Out of memory, read-only, starting, without its master, cluster or replicas, unable to persist, busy
            // with a script, or the login is no longer valid.
            Some(
                "OOM" | "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MISCONF"
                | "BUSY" | "NOREPLICAS" | "NOAUTH" | "WRONGPASS",
            ),
        ) => ServerErrorMeaning::Unavailable,
        (ErrorKind::Server(_) | ErrorKind::Extension, _) => ServerErrorMeaning::Refused,
        _ => ServerErrorMeaning::Unavailable,
    }
}

/// A Redis server. All publishes are pipelined over one connection.
pub struct Redis {
    options: RedisOptions,
    host: String,
    port: u16,
    database: i64,
    uses_tls: bool,
    link: Link<MultiplexedConnection>,
}

impl Redis {
    /// Checks the options. The first publish connects.
    pub fn new(options: RedisOptions) -> Result<Self, SettingError> {
        let url = super::parse_url(&options.url, &["redis", "rediss"])?;
        options.tls.validate()?;
        if options.user.is_some() && options.password.is_none() {
            return Err(SettingError::new("password", "is required, because user is set"));
        }
        if options.max_len == Some(0) {
            return Err(SettingError::new("max_len", "must be 1 or more; leave it out to keep everything"));
        }
        let uses_tls = options.tls.required || url.scheme() == "rediss";
        if !uses_tls && options.tls.has_files() {
            return Err(SettingError::new("url", "is without TLS, but TLS files are set; write rediss://"));
        }
        let database = match url.path().trim_matches('/') {
            "" => 0,
            number => number.parse().map_err(|_| {
                SettingError::new(
                    "url",
                    format!("the path {number:?} is not a database number; write /0 to /15, or leave it out"),
                )
            })?,
        };
        super::install_tls_provider();
        Ok(Self {
            host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(6379),
            database,
            uses_tls,
            link: Link::new(options.timeouts.connect),
            options,
        })
    }

    async fn connection(&self) -> Result<Linked<MultiplexedConnection>, PublishError> {
        self.link.get(self.connect()).await
    }

    async fn connect(&self) -> Result<MultiplexedConnection, PublishError> {
        let mut login = RedisConnectionInfo::default()
            .set_db(self.database)
            // Every version understands RESP2, and a publisher needs no push messages.
            .set_protocol(ProtocolVersion::RESP2);
        if let Some(user) = &self.options.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.options.password {
            login = login.set_password(password.expose_secret());
        }
        let address = if self.uses_tls {
            let (host, port) = (self.host.clone(), self.port);
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(self.host.clone(), self.port)
        };
        let info = address.into_connection_info().map_err(|error| self.error(&error))?;
        let info = info.set_redis_settings(login);
        let client = if self.uses_tls {
            let files = self.options.tls.read().await?;
            let client_tls =
                files.identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
            Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: files.ca })
        } else {
            Client::open(info)
        };
        let client = client.map_err(|error| self.error(&error))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.timeouts.connect))
            .set_response_timeout(Some(self.options.timeouts.publish));
        let connected = client.get_multiplexed_async_connection_with_config(&config).await;
        connected.map_err(|error| {
            let login = error.kind() == ErrorKind::AuthenticationFailed
                || matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "NOPERM"));
            if login {
                // The error's text is dropped, because it may quote what was sent.
                let (host, port) = (&self.host, self.port);
                let reason = format!("{host}:{port} rejects the login; correct user and password");
                return PublishError::unavailable(reason);
            }
            match self.error(&error) {
                // Before there is a connection, no message can be the cause.
                PublishError::Refused { reason } => PublishError::Unavailable { reason },
                error => error,
            }
        })
    }

    fn error(&self, error: &RedisError) -> PublishError {
        let reason = format!("{}:{}: {error}", self.host, self.port);
        let failed = match meaning(error.kind(), error.code()) {
            ServerErrorMeaning::Unavailable => PublishError::unavailable(reason),
            ServerErrorMeaning::Cluster => PublishError::unavailable(format!(
                "{reason}: this is a Redis Cluster; set url to a server without cluster mode"
            )),
            ServerErrorMeaning::Refused => PublishError::refused(reason),
        };
        failed.caused_by(error.clone())
    }

    fn xadd(&self, message: &OutgoingMessage) -> redis::Cmd {
        let mut command = redis::cmd("XADD");
        command.arg(&message.stream);
        if let Some(max_len) = self.options.max_len {
            command.arg("MAXLEN").arg("~").arg(max_len);
        }
        command.arg("*").arg("data").arg(message.body.as_ref());
        command
    }

    /// Drops the connection after an error that concerns it: a demoted server would answer READONLY forever, and a
    /// hung one would never answer.
    async fn fail(&self, linked: &Linked<MultiplexedConnection>, error: &RedisError) -> PublishError {
        let error = self.error(error);
        if matches!(error, PublishError::Unavailable { .. }) {
            self.link.lost(linked).await;
        }
        error
    }

    async fn publish_one(
        &self,
        linked: &Linked<MultiplexedConnection>,
        message: &OutgoingMessage,
    ) -> Result<(), PublishError> {
        let mut connection = linked.connection.clone();
        let added = self.xadd(message).query_async::<()>(&mut connection).await;
        match added {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(linked, &error).await),
        }
    }

    /// Publishes messages of one stream in a transaction: all, or none if the server rejects one when it is queued
    /// (`EXECABORT`). An error on execution (`WRONGTYPE`) concerns all, because they have the same stream.
    async fn publish_run(
        &self,
        linked: &Linked<MultiplexedConnection>,
        run: &[OutgoingMessage],
    ) -> Result<(), (usize, PublishError)> {
        if let [message] = run {
            return self.publish_one(linked, message).await.map_err(|error| (0, error));
        }
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        for message in run {
            pipeline.add_command(self.xadd(message)).ignore();
        }
        let mut connection = linked.connection.clone();
        match pipeline.query_async::<()>(&mut connection).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::ExecAbort) => {
                // Nothing was written. Publishing one by one shows which message is rejected, and why.
                for (position, message) in run.iter().enumerate() {
                    self.publish_one(linked, message).await.map_err(|error| (position, error))?;
                }
                Ok(())
            }
            Err(error) => Err((0, self.fail(linked, &error).await)),
        }
    }

    async fn publish_group(&self, group: &[OutgoingMessage]) -> PublishedGroup {
        let fits = group.iter().take_while(|message| message.body.len() <= self.options.largest).count();
        let too_large = group.get(fits).map(|message| {
            PublishError::permanent(format!(
                "the message has {} bytes; the server allows {} (proto-max-bulk-len)",
                message.body.len(),
                self.options.largest
            ))
        });
        let mut acknowledged = 0;
        if fits > 0 {
            let linked = match self.connection().await {
                Ok(linked) => linked,
                Err(error) => return PublishedGroup::none(error),
            };
            for stream in group[..fits].chunk_by(|a, b| a.stream == b.stream) {
                for run in stream.chunks(MOST_PER_TRANSACTION) {
                    match self.publish_run(&linked, run).await {
                        Ok(()) => acknowledged += run.len(),
                        Err((added, error)) => {
                            return PublishedGroup { acknowledged: acknowledged + added, error: Some(error) };
                        }
                    }
                }
            }
        }
        PublishedGroup { acknowledged, error: too_large }
    }
}

impl Broker for Redis {
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup> {
        self.publish_group(group).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        async {
            let linked = self.connection().await?;
            let answered = redis::cmd("PING").query_async::<()>(&mut linked.connection.clone()).await;
            match answered {
                Ok(()) => Ok(()),
                Err(error) => Err(self.fail(&linked, &error).await),
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.link.close().map(drop).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the client reads the server's answer `-CODE text`.
    fn of(answer: &str) -> ServerErrorMeaning {
        let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes());
        let error = value.and_then(redis::Value::extract_error).expect_err("it is an error");
        meaning(error.kind(), error.code())
    }

    #[test]
    fn only_an_error_about_the_message_is_attributed_to_it() {
        for answer in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "NOREPLICAS Not enough good replicas to write.",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
        ] {
            assert_eq!(of(answer), ServerErrorMeaning::Unavailable, "{answer}");
        }
        for answer in ["MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381", "CROSSSLOT Keys in request"] {
            assert_eq!(of(answer), ServerErrorMeaning::Cluster, "{answer}");
        }
        for answer in [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "NOPERM this user has no permissions to access one of the keys used as arguments",
            "ERR unknown command 'XADD'",
            "SOMETHING new",
        ] {
            assert_eq!(of(answer), ServerErrorMeaning::Refused, "{answer}");
        }
        for kind in [ErrorKind::Io, ErrorKind::Parse, ErrorKind::AuthenticationFailed] {
            assert_eq!(meaning(kind, None), ServerErrorMeaning::Unavailable, "{kind:?}");
        }
    }
}
