use super::*;

fn answer(code: u16, err_code: u16) -> NatsError {
    let description = "as the server says it".to_owned();
    let subject = "$JS.API.STREAM.INFO.HUB_EVENTS".to_owned();
    NatsError::Api { subject, source: ApiError { code, err_code, description } }
}

/// By the codes of nats-server 2.14.
#[test]
fn the_code_decides_whether_jetstream_is_unavailable() {
    // Code, error code, unavailable, passing.
    for (code, err_code, unavailable, passing) in [
        (400, 10004, true, true),
        (503, 10004, true, true),
        (503, 10008, true, true),
        (500, 10009, true, true),
        (500, 10118, true, true),
        (500, 10119, true, true),
        (503, 10163, true, true),
        (429, 10167, true, true),
        (429, 10210, true, true),
        (429, 10211, true, true),
        // JetStream is off, or a stream is full: that does not pass by itself.
        (503, 10076, false, true),
        (503, 10039, false, true),
        (503, 10077, false, true),
        (503, 10023, false, true),
        (400, 10005, false, false),
        (500, 10006, false, false),
        (404, 10059, false, false),
        (404, 10014, false, false),
        (404, 10037, false, false),
        (400, 10071, false, false),
        (500, 10057, false, false),
        (400, 0, false, false),
    ] {
        let error = answer(code, err_code);
        assert_eq!((error.is_unavailable(), error.is_passing()), (unavailable, passing), "{err_code}");
        assert!(error.to_string().contains(&err_code.to_string()), "{error}");
    }
    for (error, unavailable) in [
        (NatsError::NoLeader { subject: "s".to_owned() }, true),
        (NatsError::NotConnected, true),
        (NatsError::Timeout { subject: "s".to_owned(), seconds: 5, reported: None }, true),
        (NatsError::ConnectionLost { subject: "s".to_owned() }, true),
        // The stream may not exist.
        (NatsError::NoResponders { subject: "s".to_owned() }, false),
    ] {
        assert_eq!((error.is_unavailable(), error.is_passing()), (unavailable, true), "{error}");
    }
}

/// What a starting process waits for, and what ends it: no wait changes the credentials, the certificates, or the
/// configuration of the server.
#[test]
fn waiting_may_help_without_a_server_or_a_quorum_only() {
    let (url, subject) = (|| "nats://x".to_owned(), || "s".to_owned());
    let source = || -> BoxError { "as the client says it".into() };
    let path = PathBuf::from("/nope");
    for (error, passes) in [
        (NatsError::Connect { url: url(), source: source() }, true),
        (NatsError::Timeout { subject: subject(), seconds: 5, reported: None }, true),
        (NatsError::Transport { subject: subject(), source: source() }, true),
        (NatsError::ConnectionLost { subject: subject() }, true),
        (NatsError::NotConnected, true),
        (NatsError::NoLeader { subject: subject() }, true),
        (answer(503, 10008), true),
        (answer(503, 10004), true),
        (answer(500, 10009), true),
        (answer(429, 10167), true),
        (NatsError::Tls { url: url(), source: source() }, false),
        (NatsError::Login { url: url(), source: source() }, false),
        (
            NatsError::Settings {
                setting: "tls_ca_file",
                path,
                source: std::io::Error::from(std::io::ErrorKind::NotFound),
            },
            false,
        ),
        (NatsError::Closed { subject: subject() }, false),
        (NatsError::NoResponders { subject: subject() }, false),
        (answer(503, 10076), false),
        (answer(503, 10039), false),
        (answer(503, 10023), false),
        (answer(404, 10059), false),
        (NatsError::MessageIdSecret { key: subject() }, false),
    ] {
        assert_eq!(error.may_pass(), passes, "{error}");
    }
}

#[test]
fn without_a_leader_the_message_says_that_it_passes() {
    for err_code in ApiError::WITHOUT_LEADER {
        let text = answer(503, err_code).to_string();
        assert!(text.contains("temporarily unavailable") && text.contains("quorum"), "{text}");
    }
    assert_eq!(
        answer(404, 10059).to_string(),
        "stream HUB_EVENTS: as the server says it (JetStream error 10059)"
    );
}
