//! How far a peer got before it fell silent.
//!
//! Which version of HTTP a connection speaks is found in its first 24 bytes, and hyper-util waits for those without an
//! end: its header timeout begins after them. A peer that opens connections and says nothing, or `PRI`, would hold every
//! place there is. So the bytes are counted as they come, and a connection that hasn't sent as many within the header
//! timeout is closed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The length of HTTP/2's connection preface (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// A stream that counts its first bytes.
#[derive(Debug)]
pub struct Begun<I> {
    inner: I,
    read: usize,
    shared: Arc<AtomicUsize>,
}

/// What [`Begun`] has counted.
#[derive(Debug)]
pub struct Count(Arc<AtomicUsize>);

impl<I> Begun<I> {
    /// Counts what is read from this stream.
    pub fn new(inner: I) -> (Self, Count) {
        let shared = Arc::new(AtomicUsize::new(0));
        let count = Count(shared.clone());
        (Self { inner, read: 0, shared }, count)
    }
}

impl Count {
    /// Returns when `time` has passed without the first bytes; never, when they came in time.
    pub async fn silent_for(self, time: Duration) {
        tokio::time::sleep(time).await;
        if self.0.load(Ordering::Relaxed) >= PREFACE {
            std::future::pending().await
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Begun<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.read < PREFACE {
            self.read += buf.filled().len() - before;
            self.shared.store(self.read, Ordering::Relaxed);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Begun<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
