//! Errors of commands, and their exit codes.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::bounded;
use crate::domain::field_error::FieldError;
use crate::domain::registry_backup::BackupError;
use crate::domain::words::{counted, span};
use crate::management::ManagementError;
use crate::nats::NatsError;
use crate::nats::provision::ProvisionError;
use crate::seal::{MasterKeyError, OpenSettingsError};
use crate::serve::ServeError;
use crate::settings::SettingsError;
use hub_outbox::StoreError;

/// The result of a command that ran without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1: a negative result, for example drift was found.
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
    /// A usage error that the parser cannot detect.
    #[error("{0}")]
    Usage(String),
    /// The value of the option that the field names.
    #[error("--{0}")]
    InvalidOption(#[source] FieldError),
    #[error("{0} with --tenant, or write <tenant>/<id>")]
    AmbiguousSubscription(#[source] ManagementError),
    #[error("--after {cursor}: {domain} is not one of the listed domains; use the same --domain as before")]
    ForeignCursor { cursor: String, domain: String },
    #[error("--output json: the settings cannot be printed as JSON ({0}); use --output table")]
    NotAsJson(#[source] Box<toml::de::Error>),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    #[error(transparent)]
    OpenSettings(#[from] OpenSettingsError),
    #[error(
        "secrets.master_key: not set, but required to seal a secret; create a key with `openssl rand -base64 32`, and set it as \
         HUB__SECRETS__MASTER_KEY, or in a file named by secrets.master_key_file, with the same value in every process of the hub{hint}"
    )]
    NoKeyToSeal { hint: String },
    #[error("standard input: not a valid secret: {problem}")]
    NotASecret { problem: String },
    #[error(
        "secrets.master_key: not set, but required to seal the credentials of {subscriptions}; create a key with \
         `openssl rand -base64 32`, and set it as HUB__SECRETS__MASTER_KEY, or in a file named by secrets.master_key_file, with \
         the same value in every process of the hub{hint}"
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
    #[error("{}: reading failed: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("standard input: reading failed: {0}")]
    Stdin(#[source] io::Error),
    #[error("standard output: writing failed: {0}")]
    Output(#[source] io::Error),
    #[error("starting the runtime failed: {0}")]
    Runtime(#[source] io::Error),
    #[error(
        "event not published: the data is not JSON: {0}; pass a JSON value, such as '{{\"user_id\":\"u1\"}}'"
    )]
    DataNotJson(#[source] serde_json::Error),
    #[error("event not published: {0}")]
    EventRejected(#[source] ManagementError),
    /// One or more parts of the input are invalid; nothing was changed.
    #[error("{document}: invalid, nothing was applied:\n  {}", problems.join("\n  "))]
    Invalid { document: String, problems: Vec<String> },
    #[error("{}: writing failed: {source}", path.display())]
    FileNotWritten { path: PathBuf, source: io::Error },
    #[error("{document}: {source}")]
    Backup { document: String, source: BackupError },
    /// Nothing was written.
    #[error(
        "{}: differs from the file, nothing was imported; use --overwrite to replace what the registry has, or remove it from \
         the file",
        names.join(", ")
    )]
    ImportConflict { names: Vec<String> },
    #[error("no subscription {id:?}; list the subscriptions with `hub subscription list`")]
    NoSubscription { id: String },
    #[error("{ids}: changed meanwhile by someone else, not written; check it and run the command again")]
    Conflict { ids: String },
    #[error("{} not resealed:\n  {}", counted(problems.len(), "subscription"), problems.join("\n  "))]
    NotResealed { problems: Vec<String> },
    #[error(
        "outbox.database_url: not set; set it to the producer's database (HUB__OUTBOX__DATABASE_URL), or use --database-url"
    )]
    NoDatabase,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{source}; {done} rows were {verb} before, run the same command again for the rest")]
    RowsPartlyChanged { verb: &'static str, done: u64, source: StoreError },
    #[error(
        "token {name:?} already exists; use another name, or revoke it first with `hub token revoke {name}`"
    )]
    TokenExists { name: String },
    /// The trace ended before it had read all streams.
    #[error(
        "event {id:?}: not found in the streams that were read, but not all were read within {}; narrow the search with \
         --domain or --since, raise --timeout, or check the NATS servers",
        span(*timeout)
    )]
    TraceCut { id: String, timeout: Duration },
    /// The command found nothing to work on; the text has the remedy.
    #[error("{0}")]
    NothingMatched(String),
    #[error("{source}; {remedy}")]
    NotFound { source: ManagementError, remedy: &'static str },
}

impl From<NatsError> for CliError {
    fn from(error: NatsError) -> Self {
        Self::Management(error.into())
    }
}

impl From<ManagementError> for CliError {
    /// Replaces errors whose remedy is another command.
    fn from(error: ManagementError) -> Self {
        match error {
            ManagementError::NoSubscription { id } => Self::NoSubscription { id },
            error @ ManagementError::AmbiguousSubscription { .. } => Self::AmbiguousSubscription(error),
            ManagementError::Conflict { id } => Self::Conflict { ids: id },
            ManagementError::NoMasterKey { id } => Self::no_master_key(id),
            ManagementError::NoProducerOutbox => Self::NoDatabase,
            ManagementError::Store(source) => Self::Store(source),
            ManagementError::RowsPartlyChanged { verb, done, source } => {
                Self::RowsPartlyChanged { verb, done, source }
            }
            error @ ManagementError::NoRow { .. } => {
                Self::NotFound { source: error, remedy: "list the rows with `hub outbox list`" }
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
    /// Credentials of these subscriptions cannot be sealed.
    pub(super) fn no_master_key(subscriptions: String) -> Self {
        Self::NoMasterKey { subscriptions, hint: crate::dev::key_hint() }
    }

    /// The exit code: 1 for a negative result, 2 for a usage error, 3 if a server is unavailable and the same command may
    /// succeed later.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::InvalidOption(_)
            | Self::AmbiguousSubscription(_)
            | Self::ForeignCursor { .. }
            | Self::NotAsJson(_) => 2,
            Self::Store(error) | Self::RowsPartlyChanged { source: error, .. } if error.is_transient() => 3,
            Self::Management(error) if error.is_unavailable() && !error.is_refused() => 3,
            Self::TraceCut { .. } => 3,
            Self::Serve(ServeError::Nats(error) | ServeError::Provision(ProvisionError::Nats(error)))
                if error.is_passing() && !error.is_refused() =>
            {
                3
            }
            Self::Serve(ServeError::Provision(ProvisionError::CreatedMeanwhile { .. })) => 3,
            _ => 1,
        }
    }

    /// Prints the error to standard error, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        // A closed pipe is not an error: the reader has read enough (`hub dlt list | head`).
        if let Self::Output(error) = self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        super::output::note(&bounded::middle(&format!("error: {self}"), bounded::MAX_ERROR_BYTES));
        ExitCode::from(self.code())
    }
}
