//! Endpoints that answer before they have read the request.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;

/// More than the buffers of both sides hold.
const BODY: usize = 16 << 20;

/// What an endpoint does after it has answered.
#[derive(Debug, Clone, Copy)]
enum Then {
    ReadsTheRest,
    Resets,
    ReadsNothing,
}

/// Answers the first request with these bytes as soon as it has its head. Returns the number of bytes that it read, and the
/// connection if it is to stay open.
async fn answer_early(listener: TcpListener, answer: &'static str, then: Then) -> (usize, Option<TcpStream>) {
    let mut stream: TcpStream = listener.accept().await.unwrap().0;
    let mut read = vec![0; 512];
    let mut count = stream.read(&mut read).await.unwrap();
    stream.write_all(answer.as_bytes()).await.unwrap();
    match then {
        Then::ReadsTheRest => {
            while count < BODY {
                match stream.read(&mut read).await.unwrap() {
                    0 => break,
                    more => count += more,
                }
                read.resize(1 << 16, 0);
            }
        }
        Then::Resets => stream.set_zero_linger().unwrap(),
        Then::ReadsNothing => return (count, Some(stream)),
    }
    (count, None)
}

async fn attempt_with_early(answer: &'static str, then: Then) -> (Attempt, usize) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(answer_early(listener, answer, then));
    let event = Bytes::from(format!(r#"{{"data":"{}"}}"#, "x".repeat(BODY)));
    let envelope = EnvelopeView { event, ..view() };
    let target = target(&url, "");
    let attempt = local().attempt(&target, &envelope, 1).await;
    (attempt, server.join_next().await.unwrap().unwrap().0)
}

#[tokio::test]
async fn a_2xx_counts_once_the_whole_request_is_taken() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let (attempt, read) = attempt_with_early(answer, Then::ReadsTheRest).await;
        assert!(attempt.outcome.status().is_some_and(|status| status < 300), "{answer:?}: {attempt:?}");
        assert!(read >= BODY, "{read}");
    }
}

#[tokio::test]
async fn a_2xx_for_a_part_of_the_request_does_not_count() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nten bytes.",
        // Incomplete and invalid heads.
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
    ] {
        for then in [Then::Resets, Then::ReadsNothing] {
            let (attempt, read) = attempt_with_early(answer, then).await;
            assert!(read < BODY, "{answer:?}, {then:?}: it read all");
            assert!(matches!(attempt.outcome, Outcome::Failed(_)), "{answer:?}, {then:?}: {attempt:?}");
        }
    }
}

/// Any other status is an answer, however early it comes.
#[tokio::test]
async fn an_early_refusal_counts() {
    let refusal = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (attempt, _) = attempt_with_early(refusal, Then::ReadsNothing).await;
    assert_eq!(attempt.outcome, answered(413), "{attempt:?}");
}
