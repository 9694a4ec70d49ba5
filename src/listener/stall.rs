//! How long a peer may leave what it asked for unread.
//!
//! 1. A reply is asked for more only once its last bytes were taken. A peer that stops reading stops everything above:
//!    neither the end of its token nor an idle timeout would ever come to be looked at, and what is buffered for it
//!    would be held for ever. So a write that made no progress for [`STALL`] fails, which ends the connection and drops
//!    every reply on it.
//! 2. Any progress begins the time anew: slow isn't stalled. (The kernel sees none in single bytes: it says that a socket
//!    can be written again when a good part of its buffer is free.)
//! 3. While a write waits, the connection isn't idle ([`super::idle`]): its peer still has something to take.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::idle::{Busy, Idle};

/// The longest that a peer may take nothing of what is written to it: longer than a phone is without a network on its
/// way from one to the next.
pub const STALL: Duration = Duration::from_secs(60);

/// A stream whose writes fail once the peer has taken nothing for [`STALL`].
#[derive(Debug)]
pub struct Stall<I> {
    inner: I,
    /// Made at the first write that has to wait: most never do.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: Option<Busy>,
    idle: Idle,
}

impl<I> Stall<I> {
    /// Watches the writes to this stream of a connection.
    pub fn new(inner: I, idle: Idle) -> Self {
        Self {
            inner,
            timer: None,
            waiting: None,
            idle,
        }
    }

    /// Passes on what came of a write, and the error if it has waited for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        if self.waiting.is_none() {
            self.waiting = Some(self.idle.busy());
            timer.as_mut().reset(Instant::now() + STALL);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Stall<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Stall<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_write_without_progress_fails() {
        let (inner, mut peer) = tokio::io::duplex(4);
        let mut stream = Stall::new(inner, Idle::new());
        let began = Instant::now();
        let writing = tokio::spawn(async move { stream.write_all(b"sixteen  letters").await });
        for _ in 0..2 {
            tokio::time::advance(STALL - Duration::from_secs(1)).await;
            peer.read_exact(&mut [0; 4]).await.expect("four more");
        }
        let error = writing.await.expect("it ends").expect_err("eight letters are left");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let allowed = 3 * STALL - Duration::from_secs(2);
        assert!(began.elapsed() >= allowed, "{:?}", began.elapsed());
    }
}
