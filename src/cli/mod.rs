//! The command line: from arguments to one command, and from its outcome to an exit code.

mod bench;
mod check;
mod completions;
mod config;
mod man;
mod output;
mod run;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValue;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{Config, IoDriver};

pub use check::load;

/// Runs the command that `arguments` ask for, of which the first is the name of the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        // Help and version come this way too, and are no mistake.
        Err(message) => {
            let exit = if message.use_stderr() { Exit::Usage } else { Exit::Success };
            // Where standard error is closed nobody is left to be told.
            return if message.print().is_ok() { exit } else { Exit::Failure };
        }
    };
    match arguments.command {
        None => run::run(&arguments.run),
        Some(Command::Run(run_arguments)) => run::run(&run_arguments),
        Some(Command::Check(check_arguments)) => check::run(&check_arguments),
        Some(Command::Config(ConfigCommand::Default)) => config::default(),
        Some(Command::Config(ConfigCommand::Show(source))) => config::show(&source),
        Some(Command::Completions { shell }) => completions::run(shell, &mut Arguments::command()),
        Some(Command::Bench(bench_command)) => bench::run(*bench_command),
        Some(Command::Man) => man::run(Arguments::command()),
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked.
    Success = 0,
    /// It failed.
    Failure = 1,
    /// It was not understood.
    Usage = 2,
    /// A port cannot be bound, or `io_uring` was demanded and cannot be had.
    CannotBind = 69,
    /// The configuration has faults.
    BadConfiguration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What the numbers of [`Exit`] mean, for people.
const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure, 2 usage, 69 a port cannot be bound or io_uring cannot be \
                          had, 78 bad configuration.";

/// A WebSocket gateway for the Linux edge.
///
/// Without a command it runs, and without a configuration it listens at ports 80 and 8080.
#[derive(Debug, Parser)]
#[command(
    name = "ringway",
    version,
    args_conflicts_with_subcommands = true,
    after_help = EXIT_CODES
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (what happens without a command, too)
    Run(RunArguments),
    /// Tell every fault and warning of a configuration; exit 78 on faults
    Check(CheckArguments),
    /// Print a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Put servers under load and measure what it costs them
    #[command(subcommand)]
    Bench(Box<bench::BenchCommand>),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// The built-in configuration, commented: a file to begin with
    Default,
    /// The configuration in force, every default written out, secrets by their reference
    Show(SourceArguments),
}

/// The flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub source: SourceArguments,
    /// The form of the log: for people, or one JSON object a line
    #[arg(long, value_name = "FORM", env = "RINGWAY_LOG", default_value = "text")]
    pub log: LogFormat,
    /// Take warnings about the configuration for faults
    #[arg(long)]
    pub strict: bool,
}

/// Where the configuration comes from, and what stands above it.
#[derive(Clone, Debug, Args)]
pub struct SourceArguments {
    /// The configuration file; without one, the built-in configuration
    #[arg(long, value_name = "FILE", env = "RINGWAY_CONFIG")]
    pub config: Option<PathBuf>,
    /// What drives the sockets, above what the configuration says
    #[arg(long, value_name = "DRIVER", env = "RINGWAY_IO_DRIVER")]
    pub io_driver: Option<IoDriver>,
    /// The number of shards, above what the configuration says
    #[arg(long, value_name = "N", env = "RINGWAY_SHARDS", value_parser = shards)]
    pub shards: Option<NonZeroUsize>,
}

impl SourceArguments {
    /// Lays the flags over what the file says.
    pub fn apply(&self, config: &mut Config) {
        if let Some(io_driver) = self.io_driver {
            config.gateway.io_driver = io_driver;
        }
        if self.shards.is_some() {
            config.gateway.shards = self.shards;
        }
    }
}

/// The flags of `check`.
#[derive(Debug, Args)]
struct CheckArguments {
    /// The configuration file
    file: PathBuf,
    /// Take warnings for faults
    #[arg(long)]
    strict: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl ValueEnum for IoDriver {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.label()))
    }
}

/// As `shards` of the configuration: 1 to 1024.
fn shards(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(shards) if shards.get() <= Config::SHARDS_MAX => Ok(shards),
        _ => Err(format!("write a number from 1 to {}", Config::SHARDS_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(arguments.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn run_is_what_happens_without_a_command() {
        let flags = "--config a.toml --io-driver epoll --shards 3 --log json --strict";
        let implied = parse(&format!("ringway {flags}")).unwrap();
        assert!(implied.command.is_none());
        let Some(Command::Run(explicit)) = parse(&format!("ringway run {flags}")).unwrap().command else {
            panic!("run was not understood");
        };
        assert_eq!(format!("{:?}", implied.run), format!("{explicit:?}"));
        assert_eq!(explicit.source.config.as_deref(), Some("a.toml".as_ref()));
        assert_eq!(explicit.source.io_driver, Some(IoDriver::Epoll));
        assert_eq!(explicit.source.shards, NonZeroUsize::new(3));
        assert_eq!((explicit.log, explicit.strict), (LogFormat::Json, true));
    }

    #[test]
    fn a_flag_stands_above_the_file() {
        let mut config = Config::built_in();
        parse("ringway --io-driver epoll --shards 3").unwrap().run.source.apply(&mut config);
        assert_eq!(
            (config.gateway.io_driver, config.gateway.shards),
            (IoDriver::Epoll, NonZeroUsize::new(3))
        );
    }

    #[test]
    fn what_is_not_understood_is_a_mistake_of_usage() {
        for arguments in [
            "ringway serve",
            "ringway --shards 0",
            "ringway --shards 1025",
            "ringway --io-driver kqueue",
            "ringway --log xml",
            "ringway check",
            "ringway config",
            "ringway completions",
            "ringway --strict check a.toml",
        ] {
            let message = parse(arguments).expect_err(arguments);
            assert_eq!(message.exit_code(), 2, "{arguments}");
        }
    }
}
