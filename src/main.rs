//! The `ringway` command: arguments to one subcommand, and its outcome to the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway::cli::main(std::env::args_os()).into()
}
