//! The accept loop of the endpoints and proxies.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Pause after an accept that failed, for example because the process has no free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections, and runs the future of each as a task. At most `limit` are open at the same time; further ones
/// wait in the backlog of the listener.
///
/// Never returns. Dropping it stops accepting and ends every connection.
pub async fn serve_connections<F>(
    listener: TcpListener,
    limit: usize,
    mut serve: impl FnMut(TcpStream) -> F,
) -> std::convert::Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= limit {
            // A panic has been reported by the panic hook.
            let _ = connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // A small answer must not wait for an acknowledgement. Fails only on a closed connection.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream));
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_and_end_with_the_loop() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = |mut stream: TcpStream| async move {
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
        };
        let serving = tokio::spawn(serve_connections(listener, 1, echo));
        let mut byte = [1];
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(&byte).await.unwrap();
        first.read_exact(&mut byte).await.unwrap();

        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(&byte).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(100), second.read_exact(&mut byte)).await;
        assert!(early.is_err(), "the first connection is still open");
        drop(first);
        second.read_exact(&mut byte).await.unwrap();

        serving.abort();
        assert!(matches!(second.read(&mut byte).await, Ok(0) | Err(_)), "it ends with the loop");
    }
}
