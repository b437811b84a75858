//! What commands write: plain where it is piped, in colour on a terminal that has it.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use super::Exit;

/// Writes `text` to standard output.
///
/// A reader that has seen enough and gone (`ringway man | head`) is no failure.
pub(super) fn print(text: &[u8]) -> Exit {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Exit::Success,
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
        Err(cause) => {
            complain(&format!("error: standard output: {cause}\n"));
            Exit::Failure
        }
    }
}

/// Writes `text` to standard error; where that fails nobody is left to be told.
pub(super) fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// How text is marked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    is_coloured: bool,
}

impl Style {
    /// Nothing is marked.
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self { is_coloured: false };

    /// The style for `stream`: colour on a terminal, unless `NO_COLOR` is set or the terminal is dumb.
    pub(super) fn of(stream: &impl IsTerminal) -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { is_coloured: stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb }
    }

    pub(super) fn error(self, text: impl fmt::Display) -> Marked<impl fmt::Display> {
        Marked { code: self.code("1;31"), text }
    }

    pub(super) fn warning(self, text: impl fmt::Display) -> Marked<impl fmt::Display> {
        Marked { code: self.code("1;33"), text }
    }

    pub(super) fn strong(self, text: impl fmt::Display) -> Marked<impl fmt::Display> {
        Marked { code: self.code("1"), text }
    }

    pub(super) fn faint(self, text: impl fmt::Display) -> Marked<impl fmt::Display> {
        Marked { code: self.code("2"), text }
    }

    fn code(self, code: &'static str) -> Option<&'static str> {
        self.is_coloured.then_some(code)
    }
}

/// Text that is shown under a terminal's escape code, if any.
pub(super) struct Marked<T> {
    code: Option<&'static str>,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Marked<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(out, "\x1b[{code}m{}\x1b[0m", self.text),
            None => self.text.fmt(out),
        }
    }
}
