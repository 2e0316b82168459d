//! Servers of other protocols as child processes, and what all tests of external brokers need.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use integration_hub::sinks::{Broker, OutgoingMessage, PublishError, Published, Timeouts};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::eventually;

/// Short enough for a test, long enough for a busy machine.
pub const SHORT: Timeouts =
    Timeouts { connect: Duration::from_secs(2), publish: Duration::from_millis(1500) };
/// In which a server of any kind is up.
const START: Duration = Duration::from_secs(90);

/// A server that listens on a port of loopback; killed with its owner.
pub struct ServerProcess {
    command: Box<dyn Fn() -> Command + Send + Sync>,
    child: Child,
    port: u16,
    log: PathBuf,
}

impl ServerProcess {
    /// `command` is called for each start; its output goes to `log`.
    ///
    /// # Panics
    ///
    /// If nobody listens on the port in time, with the log.
    pub async fn start(port: u16, log: &Path, command: impl Fn() -> Command + Send + Sync + 'static) -> Self {
        let child = spawn(&command, log);
        let mut server = Self { command: Box::new(command), child, port, log: log.to_owned() };
        server.wait_until_it_listens().await;
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        self.kill_group();
        self.child.wait().await.expect("a child of ours can be waited for");
    }

    /// A server may be a script that has the server proper as its child.
    fn kill_group(&self) {
        let group = self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        if let Some(group) = group {
            // An error says that it has ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Starts it anew, on the same port with the same data.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.command, &self.log);
        self.wait_until_it_listens().await;
    }

    async fn wait_until_it_listens(&mut self) {
        let (child, port, log) = (&mut self.child, self.port, &self.log);
        eventually(START, "the server listens", async || {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("the server has ended with {status}: {log}");
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map(drop)
        })
        .await;
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill_group();
    }
}

fn spawn(command: &impl Fn() -> Command, log: &Path) -> Child {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("the log opens");
    let mut command = command();
    command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
    command.process_group(0);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A CA and a certificate of it for `localhost`, as files.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    pub fn generate() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Not the name that the certificate has by default, or that one would seem to be its own issuer.
        ca.distinguished_name.push(DnType::CommonName, "the tests' CA");
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).expect("names").signed_by(&key, &ca).expect("signs");
        for (name, text) in
            [("ca.pem", ca.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())]
        {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        Self { folder }
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }
}

/// Message number `n` of a key.
pub fn outgoing(stream: &str, key: &str, n: usize) -> OutgoingMessage {
    OutgoingMessage {
        id: format!("{key}-{n}"),
        stream: stream.to_owned(),
        key: key.to_owned(),
        body: format!(r#"{{"key":"{key}","n":{n}}}"#).into(),
        headers: vec![("traceparent".to_owned(), format!("00-{n:032x}-00f067aa0ba902b7-01"))],
    }
}

/// The messages of a key, by number.
pub fn group(stream: &str, key: &str, numbers: std::ops::Range<usize>) -> Vec<OutgoingMessage> {
    numbers.map(|n| outgoing(stream, key, n)).collect()
}

/// All were acknowledged.
#[track_caller]
pub fn assert_all(published: Published, count: usize) {
    assert_eq!(published, Published { acknowledged: count, error: None });
}

/// Publishes until the broker is back, as the relay would: from the first that was not acknowledged on.
pub async fn publish_when_back(broker: &dyn Broker, group: &[OutgoingMessage]) {
    let mut left = group;
    eventually(Duration::from_secs(30), "publishing goes on", async || {
        let published = broker.publish(left).await;
        left = &left[published.acknowledged..];
        match published.error {
            None => Ok(()),
            Some(error @ PublishError::Unavailable { .. }) => Err(error),
            Some(error) => panic!("not the broker's absence: {error}"),
        }
    })
    .await;
}

/// The broker is down or silent: publishing ends as unavailable, and does not hang.
pub async fn assert_unavailable(broker: &dyn Broker, group: &[OutgoingMessage]) {
    // Much longer than the broker's own timeouts, which follow each other.
    let limit = (SHORT.connect + SHORT.publish) * 5;
    let published = tokio::time::timeout(limit, broker.publish(group)).await;
    let published = published.unwrap_or_else(|_| panic!("publishing hangs for {limit:?}"));
    assert!(matches!(published.error, Some(PublishError::Unavailable { .. })), "{published:?}");
}
