//! An invalid setting or field: its path, the problem and the remedy.

/// An invalid field. `field` is the path in the document, such as `delivery.auth.type`; `problem` is the problem and the
/// remedy, such as `unsupported scheme "ftp"; write https://…`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    pub field: String,
    pub problem: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}
