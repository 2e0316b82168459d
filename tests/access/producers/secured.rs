//! A server that runs the files `nats/server.conf` and `nats/accounts.conf`; the test chooses only ports, the
//! working directory and passwords.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use async_nats::{Client, ConnectOptions, Event};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::STEP;
use crate::support::{TestSettings, eventually, free_port, nats_server};

pub(super) struct Secured {
    folder: TempDir,
    port: u16,
    _child: Child,
}

/// A connection as one of the users, and the errors that the server sent it.
pub(super) struct User {
    pub client: Client,
    pub name: String,
    refused: Arc<Mutex<Vec<String>>>,
}

impl Secured {
    pub(super) async fn start() -> Self {
        let nats = Path::new(env!("CARGO_MANIFEST_DIR")).join("nats");
        let folder = tempfile::tempdir().expect("temporary folder");
        let read = |name: &str| std::fs::read_to_string(nats.join(name)).expect("the file is there");
        let (port, monitoring) = (free_port(), free_port());
        let (server, accounts) = (read("server.conf"), read("accounts.conf"));
        // A comment in the file until an operator enables it.
        let enabled = "include \"accounts.conf\"";
        assert!(server.lines().any(|line| line.strip_prefix("# ") == Some(enabled)), "{server}");
        let with_accounts = format!("include \"server.conf\"\n{enabled}\n");
        for (name, text) in
            [("server.conf", &server), ("accounts.conf", &accounts), ("test.conf", &with_accounts)]
        {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let log = File::create(folder.path().join("server.log")).expect("the log opens");
        let mut command = Command::new(nats_server());
        // Options take precedence over the file, and its store is in the working directory.
        command.current_dir(folder.path()).arg("-c").arg(folder.path().join("test.conf"));
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-m", &monitoring.to_string()]);
        for variable in passwords(&accounts) {
            command.env(variable, password(variable));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("shared")).stderr(log).kill_on_drop(true);
        let child = command.spawn().expect("the server starts");
        let secured = Self { folder, port, _child: child };
        eventually(STEP, "the server is ready", async || {
            let log = secured.log();
            if log.contains("Server is ready") { Ok(()) } else { Err(log) }
        })
        .await;
        secured
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Every permissions violation in the server's log.
    pub(super) fn violations(&self) -> Vec<String> {
        self.log().lines().filter(|line| line.contains("Violation")).map(str::to_owned).collect()
    }

    /// The settings of a process of this user.
    pub(super) fn settings(&self, user: &str, settings: TestSettings) -> TestSettings {
        settings.with(|settings| {
            settings.nats.user = Some(user.to_owned());
            settings.nats.password = Some(password_of(user));
            settings.nats.inbox_prefix = Some(format!("_INBOX_{user}"));
        })
    }

    pub(super) async fn user(&self, name: &str) -> User {
        let refused = Arc::new(Mutex::new(Vec::new()));
        let heard = refused.clone();
        let options = ConnectOptions::with_user_and_password(name.to_owned(), password_of(name))
            .custom_inbox_prefix(format!("_INBOX_{name}"))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    heard.lock().expect("nobody panics with it").push(error.to_string());
                }
                std::future::ready(())
            });
        let client = options.connect(self.url()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        User { client, name: name.to_owned(), refused }
    }
}

/// A payload that no stream may ever contain.
pub(super) const FORBIDDEN: &str = "whoever publishes this is refused";

impl User {
    /// Publishes [`FORBIDDEN`], and waits until the server has rejected it.
    pub(super) async fn is_refused_to_publish(&self, subject: &str) {
        self.client.publish(subject.to_owned(), FORBIDDEN.into()).await.expect("sent");
        self.is_refused(subject).await;
    }

    pub(super) async fn is_refused_to_subscribe(&self, subject: &str) {
        let _subscription = self.client.subscribe(subject.to_owned()).await.expect("sent");
        self.is_refused(subject).await;
    }

    async fn is_refused(&self, subject: &str) {
        self.client.flush().await.expect("flushed");
        let quoted = format!("\"{subject}\"");
        eventually(STEP, &format!("{} is refused {subject}", self.name), async || {
            let refused = self.refused.lock().expect("nobody panics with it").clone();
            if refused.iter().any(|error| error.to_lowercase().contains(&quoted.to_lowercase())) {
                Ok(())
            } else {
                Err(refused)
            }
        })
        .await;
    }
}

/// The variables with the passwords of the file.
fn passwords(accounts: &str) -> BTreeSet<&str> {
    let lines = accounts.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let found: BTreeSet<&str> = lines
        .filter_map(|line| line.split_once('$')?.1.split([' ', '}']).next())
        .filter(|name| name.starts_with("HUB_"))
        .collect();
    assert!(found.len() > 8, "{found:?}");
    found
}

fn password(variable: &str) -> String {
    format!("pw-{}", variable.to_lowercase())
}

fn password_of(user: &str) -> String {
    let role = if user == "hub" { "ADMIN".to_owned() } else { user.to_uppercase().replace('-', "_") };
    password(&format!("HUB_{role}_PASSWORD"))
}
