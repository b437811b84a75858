//! `ringway run`: serve until told to stop.

use std::io::{self, IsTerminal};
use std::panic;

use super::{Exit, LogFormat, RunArguments, load};
use crate::control;

pub(super) fn run(arguments: &RunArguments) -> Exit {
    let config = match load(&arguments.source, arguments.strict) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    log_to_stderr(arguments.log);
    match control::run(config) {
        Ok(()) => Exit::Success,
        Err(error) => {
            tracing::error!("{error}");
            if error.is_unavailable() { Exit::CannotBind } else { Exit::Failure }
        }
    }
}

/// Sends the log to standard error, in the form asked for, panics included.
fn log_to_stderr(format: LogFormat) {
    // A line that cannot be written (a full disk, a reader that has gone) is lost. Told of it, tracing would say so on
    // standard error too, which panics, and end the process with every connection.
    let builder =
        tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let is_coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(is_coloured).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), "a fault of ours: {panic}");
    }));
}
