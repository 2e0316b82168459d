//! W3C Trace Context: the event's `traceparent` if it has a valid one, otherwise a new trace.

use std::io::Write;

use hyper::header::HeaderValue;

/// `<version>-<trace id>-<parent id>-<flags>`
const LENGTH: usize = 55;

/// The `traceparent` of one attempt: the event's, if it is valid.
pub(super) fn parent(of_event: Option<&str>) -> HeaderValue {
    let own = of_event.filter(|value| is_valid(value));
    own.and_then(|value| HeaderValue::from_str(value).ok()).unwrap_or_else(new)
}

/// Checks a `traceparent` (section 3.2 of the recommendation, version 00).
fn is_valid(value: &str) -> bool {
    let parts: Vec<&str> = value.split('-').collect();
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let nonzero = |part: &str| part.bytes().any(|b| b != b'0');
    match parts[..] {
        [version, trace, span, flags] => {
            hex(version, 2)
                && version != "ff"
                && hex(trace, 32)
                && nonzero(trace)
                && hex(span, 16)
                && nonzero(span)
                && hex(flags, 2)
        }
        _ => false,
    }
}

fn new() -> HeaderValue {
    // Zero is not a valid id.
    let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    let mut text = [0; LENGTH];
    write!(&mut text[..], "00-{trace:032x}-{span:016x}-01").expect("the text is as long as the array");
    HeaderValue::from_bytes(&text).expect("hex digits and dashes are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_own_trace_is_kept() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parent(Some(trace)), trace);
    }

    #[test]
    fn a_missing_or_malformed_one_is_replaced_by_a_new_one() {
        for own in [
            None,
            Some(""),
            Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            Some("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
            Some("x\r\ny: z"),
            Some("7"),
        ] {
            let first = parent(own);
            assert!(is_valid(first.to_str().unwrap()), "{own:?}: {first:?}");
            assert_ne!(first, parent(own), "{own:?}: a trace id was used twice");
            assert_ne!(Some(first.to_str().unwrap()), own);
        }
    }
}
