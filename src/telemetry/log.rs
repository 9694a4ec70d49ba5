//! The process's own log, on stderr.
//!
//! 1. Nothing but `portcullis` itself speaks below `info`: HTTP libraries print header values when asked for more, and
//!    a log holds no token, not even at `trace` (r44).
//! 2. The environment doesn't change the log; the configuration does.
//! 3. Installing twice is no error: the first stays.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt, FilterFn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

use crate::config::{Log, LogFormat};

/// Why the log couldn't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("telemetry.log.level: not a filter such as `info` or `portcullis=debug,info`: {0}")]
    Level(String),
}

/// Makes the process log to stderr. `Ok(false)`: something was installed already, and stays.
pub fn install(log: &Log) -> Result<bool, LogError> {
    let subscriber = subscriber(log, std::io::stderr, std::io::stderr().is_terminal())?;
    Ok(tracing::subscriber::set_global_default(subscriber).is_ok())
}

fn subscriber<W>(log: &Log, writer: W, colours: bool) -> Result<impl Subscriber + Send + Sync, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = EnvFilter::try_new(&log.level).map_err(|error| LogError::Level(error.to_string()))?;
    let ours = FilterFn::new(|meta| {
        let target = meta.target();
        target == "portcullis" || target.starts_with("portcullis::") || *meta.level() <= LevelFilter::INFO
    });
    let layer = match log.format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_ansi(colours)
            .with_writer(writer)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_ansi(false)
            .with_writer(writer)
            .boxed(),
    };
    Ok(Registry::default().with(layer.with_filter(level.and(ours))))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str, speak: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let log = Log {
            format,
            level: level.to_owned(),
        };
        let subscriber = subscriber(&log, move || writer.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, speak);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn r44_libraries_do_not_speak_below_info() {
        let text = logged(LogFormat::Text, "trace", || {
            tracing::trace!(target: "hyper::proto", "authorization: Bearer secret");
            tracing::debug!(target: "h2", "authorization: Bearer secret");
            tracing::debug!(target: "portcullis_fake", "authorization: Bearer secret");
            tracing::info!(target: "hyper::proto", "connection closed");
            tracing::trace!(target: "portcullis::edge", "ours");
        });
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("connection closed") && text.contains("ours"), "{text}");
    }

    #[test]
    fn the_level_is_kept_and_json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, "portcullis=warn", || {
            tracing::info!(target: "portcullis", "quiet");
            tracing::warn!(target: "portcullis", route = "notes", "loud");
        });
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((&line["message"], &line["route"]), (&"loud".into(), &"notes".into()));
    }

    #[test]
    fn a_bad_level_is_an_error_and_no_panic() {
        let log = Log {
            format: LogFormat::Text,
            level: "portcullis=loudest".to_owned(),
        };
        assert!(matches!(subscriber(&log, io::sink, false), Err(LogError::Level(_))));
    }
}
