//! Connections: how many, how slow, and how they end.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tower::util::MapRequest;

use super::Peer;

/// The bounds of connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// How many at a time.
    pub connections: usize,
    /// Time for a request's head to arrive.
    pub head: Duration,
    /// Time for a client to take the next piece of an answer.
    pub piece: Duration,
    /// Time for open answers to get out at the end.
    pub end: Duration,
}

/// Answers connections until `shutdown` resolves, then lets open answers get out.
pub async fn run(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    shutdown: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let connection = tokio::select! {
            connection = accept(&listener, &permits) => connection,
            () = &mut shutdown => break,
        };
        match connection {
            Ok((stream, permit)) => answer(stream, permit, router.clone(), limits, &graceful),
            Err(error) => {
                // Out of file descriptors, mostly: others must close first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    if tokio::time::timeout(limits.end, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

fn answer(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    router: Router,
    limits: ConnectionLimits,
    graceful: &GracefulShutdown,
) {
    let Ok(peer) = stream.peer_addr() else { return }; // gone already
    let Ok(hung_up) = HungUp::watch(&stream) else { return }; // out of file descriptors
    // Events are small and must not wait for each other; where that cannot be set, they do.
    let _ = stream.set_nodelay(true);
    let service = MapRequest::new(router, move |request: Request<_>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(Peer(peer));
        request
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.piece));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
            }
            () = hung_up.happens() => tracing::debug!("a client hung up"),
        }
        drop(permit);
    });
}

/// The socket seen by itself. hyper looks for the end of a connection only while it has nothing unread:
/// a stray byte after a request would keep work alive that nobody waits for.
struct HungUp(TcpStream);

impl HungUp {
    fn watch(stream: &TcpStream) -> std::io::Result<Self> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        TcpStream::from_std(socket.into()).map(Self)
    }

    /// Resolves once the client has closed its side. Reads nothing.
    async fn happens(&self) {
        while let Ok(ready) = self.0.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            // Edge-triggered: says that what is there was seen, and waits for what comes next.
            let seen = || Err::<(), _>(std::io::ErrorKind::WouldBlock.into());
            let _ = self.0.try_io(Interest::READABLE, seen);
        }
    }
}
