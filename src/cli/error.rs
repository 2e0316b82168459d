//! Why a command did not do what it was asked, and the exit code that says so.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::bench::BenchError;
use crate::management::ManagementError;
use crate::nats::NatsError;
use crate::nats::provision::ProvisionError;
use crate::seal::{MasterKeyError, OpenSettingsError};
use crate::serve::ServeError;
use crate::settings::SettingsError;
use hub_outbox::StoreError;

/// What a command has to say when it did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1: nothing went wrong, but the answer is no (drift was found, say).
    No,
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Yes => ExitCode::SUCCESS,
            Answer::No => ExitCode::from(1),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Not to be told by the command line's grammar alone.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    #[error(transparent)]
    OpenSettings(#[from] OpenSettingsError),
    #[error(
        "secrets.master_key is not set: without it nothing can be sealed. Make a key with \
         `openssl rand -base64 32` and set it as HUB__SECRETS__MASTER_KEY (or in a file that secrets.master_key_file names), \
         the same for every process of the hub"
    )]
    NoKeyToSeal,
    #[error("standard input holds no secret that can be sealed: {problem}")]
    NotASecret { problem: String },
    #[error(
        "secrets.master_key is not set, and {subscriptions} has a credential, which is stored only sealed. Make a key with \
         `openssl rand -base64 32` and set it as HUB__SECRETS__MASTER_KEY (or in a file that secrets.master_key_file names), \
         the same for every process of the hub{hint}"
    )]
    NoMasterKey { subscriptions: String, hint: String },
    #[error(transparent)]
    Management(ManagementError),
    #[error(transparent)]
    Provision(ProvisionError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Demo(#[from] crate::demo::DemoError),
    #[error("the bench cannot measure: {0}")]
    Bench(#[from] BenchError),
    #[error("{} cannot be read: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("standard input cannot be read: {0}")]
    Stdin(io::Error),
    #[error("the output cannot be written: {0}")]
    Output(io::Error),
    #[error("the runtime cannot be started: {0}")]
    Runtime(io::Error),
    #[error("the event was not published: {0}")]
    EventRejected(String),
    /// One or more things that were read are not as they must be; nothing was changed.
    #[error("nothing was applied; in {document}:\n  {}", problems.join("\n  "))]
    Invalid { document: String, problems: Vec<String> },
    #[error("there is no subscription {id:?}; `hub subscription list` shows those that are there")]
    NoSubscription { id: String },
    #[error(
        "{ids}: changed by someone else meanwhile, and left as it is now; look at it and run the command again"
    )]
    Conflict { ids: String },
    #[error("{} subscriptions are sealed as they were:\n  {}", problems.len(), problems.join("\n  "))]
    NotResealed { problems: Vec<String> },
    #[error(
        "there is no database to look into: set outbox.database_url (HUB__OUTBOX__DATABASE_URL), or give --database-url"
    )]
    NoDatabase,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{source}. {done} rows were {verb} before; run the same command again for the rest")]
    OutboxHalfway { verb: &'static str, done: u64, source: StoreError },
    #[error(
        "there is a token {name:?} already; take another name, or revoke it first with `hub token revoke {name}`"
    )]
    TokenExists { name: String },
    #[error("{0}")]
    NothingMatched(String),
}

impl From<NatsError> for CliError {
    fn from(error: NatsError) -> Self {
        Self::Management(error.into())
    }
}

impl From<ManagementError> for CliError {
    /// What the command line says in words of its own: it may point at other commands.
    fn from(error: ManagementError) -> Self {
        match error {
            ManagementError::NoSubscription { id } => Self::NoSubscription { id },
            error @ ManagementError::AmbiguousSubscription { .. } => {
                Self::Usage(format!("{error} with --tenant, or write <tenant>/<id>"))
            }
            ManagementError::Conflict { id } => Self::Conflict { ids: id },
            ManagementError::NoMasterKey { id } => {
                Self::NoMasterKey { subscriptions: id, hint: String::new() }
            }
            ManagementError::NoOutbox => Self::NoDatabase,
            ManagementError::Store(source) => Self::Store(source),
            ManagementError::OutboxHalfway { verb, done, source } => {
                Self::OutboxHalfway { verb, done, source }
            }
            error @ ManagementError::NoRow { .. } => {
                Self::NothingMatched(format!("{error}. `hub outbox list` shows those that are there"))
            }
            other => Self::Management(other),
        }
    }
}

impl From<ProvisionError> for CliError {
    fn from(error: ProvisionError) -> Self {
        match error {
            ProvisionError::Nats(error) => error.into(),
            other => Self::Provision(other),
        }
    }
}

impl CliError {
    /// 1: the answer is no. 2: a usage error. 3: a server cannot be reached, so that the same
    /// command may succeed later.
    pub fn code(&self) -> u8 {
        let unreachable = |error: &NatsError| {
            matches!(
                error,
                NatsError::Connect { .. }
                    | NatsError::Login { .. }
                    | NatsError::Timeout { .. }
                    | NatsError::Transport { .. }
            )
        };
        match self {
            Self::Usage(_) => 2,
            Self::Store(error) | Self::OutboxHalfway { source: error, .. } if error.is_transient() => 3,
            Self::Management(error) if error.is_unreachable() => 3,
            Self::Serve(ServeError::Nats(error) | ServeError::Provision(ProvisionError::Nats(error)))
                if unreachable(error) =>
            {
                3
            }
            _ => 1,
        }
    }

    /// Says it on standard error, as one paragraph, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        // Whoever reads the output has seen enough (`hub dlt list | head`): not an error.
        if let Self::Output(error) = self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        super::output::note(&format!("error: {self}"));
        ExitCode::from(self.code())
    }
}
