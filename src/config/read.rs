//! A configuration file's text.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a configuration file at most: a larger one is some other file.
const SIZE_MAX: u64 = 4 << 20;

/// The text of the file at `path`.
///
/// # Errors
/// The [`ReadFault`] for which there is no text to be checked.
pub fn read(path: &Path) -> Result<String, ReadFault> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(SIZE_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(cause) => Err(ReadFault::Unreadable(cause)),
        Ok(size) if size as u64 > SIZE_MAX => Err(ReadFault::TooLarge),
        Ok(_) => String::from_utf8(bytes).map_err(|fault| {
            let before = &fault.as_bytes()[..fault.utf8_error().valid_up_to()];
            ReadFault::NotUtf8 { line: before.split(|&byte| byte == b'\n').count() }
        }),
    }
}

/// Why there is no text.
#[derive(Debug)]
pub enum ReadFault {
    /// What the system said.
    Unreadable(io::Error),
    /// More than 4 MiB.
    TooLarge,
    /// Not UTF-8.
    NotUtf8 {
        /// The first such line, counted from 1.
        line: usize,
    },
}

impl fmt::Display for ReadFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(cause) => write!(out, "cannot be read: {cause}"),
            Self::TooLarge => write!(out, "is larger than {} MiB, and not a configuration", SIZE_MAX >> 20),
            Self::NotUtf8 { line } => write!(out, "is not UTF-8 text from line {line} on"),
        }
    }
}

impl std::error::Error for ReadFault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_a_fault() {
        assert!(matches!(read(Path::new("/does/not/exist")), Err(ReadFault::Unreadable(_))));
        assert!(matches!(read(Path::new("/dev/zero")), Err(ReadFault::TooLarge)));
        let path = std::env::temp_dir().join(format!("ringway-read-{}", std::process::id()));
        std::fs::write(&path, b"# one\n# two \xff\n").unwrap();
        let read = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read, Err(ReadFault::NotUtf8 { line: 2 })), "{read:?}");
    }
}
