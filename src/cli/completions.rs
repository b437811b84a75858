//! `ringway completions SHELL`: what a shell reads to complete the command line.

use clap_complete::Shell;

use super::{Exit, output};

/// Prints the completions of `command` for `shell`.
pub(super) fn run(shell: Shell, command: &mut clap::Command) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "ringway", &mut script);
    output::print(&script)
}
