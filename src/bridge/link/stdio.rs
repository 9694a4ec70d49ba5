//! A process: a line each way is a message (MCP 2026-07-28, "stdio").

use std::sync::Arc;

use bytes::Bytes;

use super::Source;
use crate::bridge::peer::Lost;
use crate::upstream::UpstreamError;
use crate::upstream::stdio::{ChildWriter, Owner, Processes, StdioError};

/// A process that is written to. Dropped, with what it writes, it is ended.
pub struct StdioLink {
    writer: ChildWriter,
    name: Arc<str>,
}

impl StdioLink {
    /// Starts a process.
    ///
    /// # Errors
    /// It can't be started, or not now.
    pub fn start(processes: &Processes, owner: &Owner) -> Result<(Self, Source), StdioError> {
        let (writer, lines) = processes.spawn(owner)?;
        let link = Self {
            writer,
            name: processes.name().clone(),
        };
        Ok((link, Source::Lines(lines)))
    }

    /// The server's name.
    pub fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Writes a message; its answer is among what the process writes.
    ///
    /// # Errors
    /// The process is gone, or reads nothing.
    pub async fn post(&self, message: Bytes) -> Result<(), Lost> {
        let sent = self.writer.send(message).await;
        sent.map_err(|error| UpstreamError::Process(error).into())
    }
}
