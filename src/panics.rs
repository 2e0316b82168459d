//! Catches a panic in the work on one input, so that neither its task nor the process ends. An input that causes
//! panics repeatedly is set aside.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::facts::InputPanicked;

/// Deliveries of an input that causes panics before it is set aside.
pub(crate) const TRIES: u32 = 3;

/// The message of a panic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the hub panicked on it: {message}; report this with the version of the hub")]
pub(crate) struct Panicked {
    pub message: String,
}

impl Panicked {
    fn new(payload: &(dyn Any + Send)) -> Self {
        Self { message: message(payload) }
    }

    /// Logs the panic with the input that caused it. Returns true if the input is to be set aside.
    pub(crate) fn on_input(&self, stream: &str, sequence: u64, deliveries: u32) -> bool {
        let set_aside = deliveries >= TRIES;
        InputPanicked { panic: &self.message, stream, sequence, deliveries, set_aside }.emit();
        set_aside
    }
}

/// The message of a panic payload.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Returns the result of `work`, or its panic. `work` must not leave shared state half changed.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::new(&*payload))
}

/// The same for a future, which is dropped if it panics. (An `async fn` would have room for it twice.)
pub(crate) fn catch_async<T>(work: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
    AssertUnwindSafe(work).catch_unwind().map(|done| done.map_err(|payload| Panicked::new(&*payload)))
}

#[cfg(test)]
mod decoders;
#[cfg(test)]
#[path = "panics/tests.rs"]
mod roles;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_message_of_a_panic_is_kept() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| panic!("no {}", 7)).map(|()| 0).unwrap_err().message, "no 7");
        assert_eq!(catch_async(async { panic!("no") }).await.map(|()| 0).unwrap_err().message, "no");
        let odd = catch(|| std::panic::panic_any(7)).map(|()| 0).unwrap_err();
        assert_eq!(odd.message, "a panic without a message");
        assert!(!odd.on_input("S", 1, TRIES - 1));
        assert!(odd.on_input("S", 1, TRIES));
    }
}
