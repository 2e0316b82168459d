use super::*;

fn answer(code: u16, err_code: u16) -> NatsError {
    let source = ApiError { code, err_code, description: "as the server says it".to_owned() };
    NatsError::Api { subject: "STREAM.CREATE.X".to_owned(), source }
}

/// An answer of a cluster without a leader says nothing about the stream that the request was about.
#[test]
fn only_an_answer_about_the_stream_is_about_its_room_or_configuration() {
    let stream = render(&crate::nats::definitions::tests::parameters()).remove(0);
    for (code, err_code, passes) in [
        (503, 10008, true),
        (503, 10004, true),
        (500, 10009, true),
        // Servers of the cluster may still join.
        (400, 10005, true),
        // One server without a cluster; no storage; another configuration.
        (500, 10074, false),
        (500, 10047, false),
        (500, 10052, false),
    ] {
        let no_room = no_room(&stream, answer(code, err_code));
        assert_eq!(no_room.may_pass(), passes, "{no_room}");
        let is_about_room = matches!(no_room, ProvisionError::NoRoom { .. });
        assert_eq!(is_about_room, !ApiError::WITHOUT_LEADER.contains(&err_code), "{no_room}");
        let immutable = immutable("stream X", answer(code, err_code));
        let is_about_it = matches!(immutable, ProvisionError::Immutable { .. });
        assert_eq!(is_about_it, !ApiError::WITHOUT_LEADER.contains(&err_code), "{immutable}");
    }
}

#[test]
fn versions_compare_as_numbers() {
    assert!(version("2.10.25") < OLDEST_SERVER);
    assert!(version("2.12.9") >= OLDEST_SERVER);
    assert!(version("v2.15.1-RC.2") >= ADVISED_SERVER);
}
