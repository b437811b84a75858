//! Secrets: named in the configuration, kept elsewhere, and never shown.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// Bytes of a secret at least: shorter ones can be guessed over a network.
const SIZE_MIN: usize = 16;
/// Bytes of a secret at most: a larger file is not a secret, and might not end (`/dev/zero`).
const SIZE_MAX: usize = 4096;

/// A secret that was read. What prints it prints where it came from.
#[derive(Clone)]
pub struct Secret {
    source: SecretSource,
    value: Vec<u8>,
}

impl Secret {
    /// Whether `presented` is the secret, in a time that tells nothing but its length.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.value.ct_eq(presented).into()
    }

    /// Where the secret was read.
    pub fn source(&self) -> &SecretSource {
        &self.source
    }

    /// Reads the secret that `reference` names: `file:PATH`, relative to `base`, or `env:NAME`. A line end after it is
    /// not a part of it.
    ///
    /// # Errors
    /// The [`SecretFault`]; it never holds the secret.
    pub fn load(reference: &str, base: &Path) -> Result<Self, SecretFault> {
        Self::load_from(reference, base, |name| std::env::var(name).ok())
    }

    /// As [`Secret::load`], the environment being what `variable` makes of a name.
    fn load_from(
        reference: &str,
        base: &Path,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SecretFault> {
        let (source, mut value) = read_from(reference, base, variable)?;
        value.truncate(value.trim_ascii_end().len());
        if !(SIZE_MIN..=SIZE_MAX).contains(&value.len()) {
            return Err(SecretFault::Size { source });
        }
        if !value.iter().all(u8::is_ascii_graphic) {
            return Err(SecretFault::NotVisible { source });
        }
        Ok(Self { source, value })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Secret({})", self.source)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(formatter)
    }
}

/// Where a secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, its path as written.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "file:{}", path.display()),
            Self::Environment(name) => write!(formatter, "env:{name}"),
        }
    }
}

/// Why there is no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFault {
    /// The text names neither a file nor a variable: it may be the secret itself.
    Plain,
    /// The file cannot be read.
    Unreadable {
        /// The file.
        source: SecretSource,
        /// What the system said.
        cause: io::ErrorKind,
    },
    /// The environment variable is not set, or not UTF-8.
    Unset {
        /// The variable.
        source: SecretSource,
    },
    /// Too short to be safe, or too long to be sent in a request.
    Size {
        /// Where it was read.
        source: SecretSource,
    },
    /// It holds a space or a character outside ASCII, which no request can carry as a token.
    NotVisible {
        /// Where it was read.
        source: SecretSource,
    },
}

impl fmt::Display for SecretFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => formatter.write_str("a secret is never written plainly"),
            Self::Unreadable { source, cause } => write!(formatter, "{source} cannot be read: {cause}"),
            Self::Unset { source } => write!(formatter, "{source} is not set"),
            Self::Size { source } => {
                write!(formatter, "what {source} holds is not of {SIZE_MIN} to {SIZE_MAX} bytes")
            }
            Self::NotVisible { source } => {
                write!(formatter, "{source} holds more than visible ASCII characters")
            }
        }
    }
}

/// What `reference` names, as with [`Secret::load`], and where that was read; of whatever characters, at least one.
pub(super) fn read(reference: &str, base: &Path) -> Result<(SecretSource, Vec<u8>), SecretFault> {
    let (source, mut value) = read_from(reference, base, |name| std::env::var(name).ok())?;
    // One line end is what editors and `echo` put behind it. More may be a part of the secret.
    if value.ends_with(b"\n") {
        value.truncate(value.len() - if value.ends_with(b"\r\n") { 2 } else { 1 });
    }
    if value.is_empty() || value.len() > SIZE_MAX {
        return Err(SecretFault::Size { source });
    }
    Ok((source, value))
}

fn read_from(
    reference: &str,
    base: &Path,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(SecretSource, Vec<u8>), SecretFault> {
    let source = match reference.split_once(':') {
        Some(("file", path)) if !path.is_empty() => SecretSource::File(PathBuf::from(path)),
        Some(("env", name)) if !name.is_empty() => SecretSource::Environment(name.to_owned()),
        _ => return Err(SecretFault::Plain),
    };
    let value = match &source {
        SecretSource::File(path) => match read_bounded(&base.join(path)) {
            Ok(value) => value,
            Err(cause) => return Err(SecretFault::Unreadable { source, cause: cause.kind() }),
        },
        SecretSource::Environment(name) => match variable(name) {
            Some(value) => value.into_bytes(),
            None => return Err(SecretFault::Unset { source }),
        },
    };
    Ok((source, value))
}

/// The content of the file at `path`, or as much of it as shows that it is too long for a secret.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // Beyond the longest secret there may be a line end of two bytes.
    std::fs::File::open(path)?.take(SIZE_MAX as u64 + 3).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the file of [`with_token_file`] holds.
    pub(in crate::config) const TOKEN: &str = "0123456789abcdef";

    /// Runs `test` with a directory in which the file `token` is.
    pub(in crate::config) fn with_token_file<T>(test_name: &str, test: impl FnOnce(&Path) -> T) -> T {
        let directory = std::env::temp_dir().join(format!("ringway-{test_name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("token"), format!("{TOKEN}\r\n")).unwrap();
        std::fs::write(directory.join("secret"), format!("{TOKEN}{TOKEN}\n")).unwrap();
        let result = test(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        result
    }

    #[test]
    fn a_secret_is_read_from_a_file_beside_the_configuration_and_never_shown() {
        let secret = with_token_file("secret", |base| Secret::load("file:token", base)).unwrap();
        assert!(secret.matches(TOKEN.as_bytes()));
        assert!(
            !secret.matches(&TOKEN.as_bytes()[1..])
                && !secret.matches(b"")
                && !secret.matches(b"0123456789abcdeg")
        );
        assert_eq!(format!("{secret:?} {secret}"), "Secret(file:token) file:token");
    }

    #[test]
    fn a_secret_is_read_from_the_environment() {
        let environment = |name: &str| (name == "TOKEN").then(|| TOKEN.to_owned());
        let secret = Secret::load_from("env:TOKEN", Path::new(""), environment).unwrap();
        assert!(secret.matches(TOKEN.as_bytes()));
        assert_eq!(secret.source(), &SecretSource::Environment("TOKEN".to_owned()));
        let fault = Secret::load_from("env:OTHER", Path::new(""), environment).unwrap_err();
        assert_eq!(fault.to_string(), "env:OTHER is not set");
    }

    #[test]
    fn what_is_no_secret_is_a_fault_that_does_not_show_it() {
        let cases = [
            ("hunter2hunter2hunter2", "a secret is never written plainly"),
            ("file:", "a secret is never written plainly"),
            ("env:", "a secret is never written plainly"),
            ("file:does/not/exist", "file:does/not/exist cannot be read: entity not found"),
            ("env:RINGWAY_TEST_NEVER_SET", "env:RINGWAY_TEST_NEVER_SET is not set"),
            ("file:/dev/null", "what file:/dev/null holds is not of 16 to 4096 bytes"),
            ("file:/dev/zero", "what file:/dev/zero holds is not of 16 to 4096 bytes"),
            ("file:rustfmt.toml", "file:rustfmt.toml holds more than visible ASCII characters"),
        ];
        for (reference, sentence) in cases {
            let fault = Secret::load(reference, Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_err();
            assert_eq!(fault.to_string(), sentence, "{reference}");
        }
    }
}
