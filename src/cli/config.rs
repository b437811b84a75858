//! `ringway config`: the built-in configuration, and the one in force.

use super::{Exit, SourceArguments, load, output};
use crate::config::BUILT_IN;

/// `ringway config default`: prints the built-in configuration, commented.
pub(super) fn default() -> Exit {
    output::print(BUILT_IN.as_bytes())
}

/// `ringway config show`: prints what a gateway with these flags would run with.
pub(super) fn show(source: &SourceArguments) -> Exit {
    match load(source, false) {
        Ok(config) => output::print(config.to_toml().as_bytes()),
        Err(exit) => exit,
    }
}
