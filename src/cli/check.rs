//! `ringway check`: every fault and warning of a configuration, for people and for machines.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::output::{self, Style};
use super::{CheckArguments, Exit, SourceArguments};
use crate::config::{self, Config, Fault, Place, ReadFault, Warning};

/// Prints what is wrong with the file, or that nothing is.
pub(super) fn run(arguments: &CheckArguments) -> Exit {
    let report = Report::of(&arguments.file, arguments.strict);
    let text = if arguments.json { report.to_json() } else { report.to_text(Style::of(&io::stdout())) };
    let printed = output::print(text.as_bytes());
    match report.config {
        None => Exit::BadConfiguration,
        Some(_) => printed,
    }
}

/// The configuration that these flags ask for, themselves laid over it. Without a file, the built-in one.
///
/// Warnings go to standard error.
///
/// # Errors
/// [`Exit::BadConfiguration`], once every fault has gone to standard error. With `strict` a warning is a fault.
pub fn load(source: &SourceArguments, strict: bool) -> Result<Config, Exit> {
    let mut config = match &source.config {
        None => Config::built_in(),
        Some(file) => {
            let report = Report::of(file, strict);
            if !report.diagnostics.is_empty() {
                output::complain(&report.to_text(Style::of(&io::stderr())));
            }
            report.config.ok_or(Exit::BadConfiguration)?
        }
    };
    source.apply(&mut config);
    Ok(config)
}

/// What there is to say about a configuration file.
struct Report {
    /// As it was given.
    file: String,
    /// Empty where the file could not be read.
    text: String,
    /// `None` exactly while a diagnostic is an error.
    config: Option<Config>,
    /// Errors and warnings, each in the order of the file.
    diagnostics: Vec<Diagnostic>,
}

/// One fault or warning.
#[derive(Serialize)]
struct Diagnostic {
    severity: Severity,
    /// `None` where it is the file as a whole.
    #[serde(flatten)]
    place: Option<Location>,
    key: String,
    message: String,
    help: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
struct Location {
    line: usize,
    column: usize,
    #[serde(skip)]
    width: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Error,
    Warning,
}

impl Report {
    fn of(path: &Path, strict: bool) -> Self {
        let file = path.display().to_string();
        match config::read(path) {
            Ok(text) => {
                let base = path.parent().unwrap_or_else(|| Path::new(""));
                Self::of_text(file, text, base, strict)
            }
            Err(fault) => Self {
                file,
                text: String::new(),
                config: None,
                diagnostics: vec![Diagnostic::of_file(&fault)],
            },
        }
    }

    fn of_text(file: String, text: String, base: &Path, strict: bool) -> Self {
        let (config, diagnostics) = match Config::from_toml(&text, base) {
            Ok((config, warnings)) => {
                let severity = if strict { Severity::Error } else { Severity::Warning };
                let config = (!strict || warnings.is_empty()).then_some(config);
                (config, warnings.iter().map(|warning| Diagnostic::of_warning(warning, severity)).collect())
            }
            Err(faults) => (None, faults.iter().map(Diagnostic::of_fault).collect()),
        };
        Self { file, text, config, diagnostics }
    }

    /// For people: for each diagnostic what and where, the line itself, and what to write instead; then a verdict.
    fn to_text(&self, style: Style) -> String {
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            self.write_diagnostic(&mut out, diagnostic, style).expect("writing to a string cannot fail");
        }
        let count = |severity| self.diagnostics.iter().filter(|one| one.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let verdict = match (&self.config, warnings) {
            (None, _) => format!("{}: {}", self.file, style.error(counted(errors, "error"))),
            (Some(config), 0) => format!("{}: good, {}", self.file, contents(config)),
            (Some(config), warnings) => {
                let warnings = style.warning(counted(warnings, "warning")).to_string();
                format!("{}: good, {}, {warnings}", self.file, contents(config))
            }
        };
        out.push_str(&verdict);
        out.push('\n');
        out
    }

    fn write_diagnostic(&self, out: &mut String, diagnostic: &Diagnostic, style: Style) -> std::fmt::Result {
        let Diagnostic { severity, place, key, message, help } = diagnostic;
        write!(out, "{}:", self.file)?;
        if let Some(place) = place {
            write!(out, "{}:{}:", place.line, place.column)?;
        }
        match severity {
            Severity::Error => write!(out, " {}", style.error("error:"))?,
            Severity::Warning => write!(out, " {}", style.warning("warning:"))?,
        }
        if !key.is_empty() {
            write!(out, " {}", style.strong(format!("{key}:")))?;
        }
        writeln!(out, " {message}")?;
        if let Some(place) = place
            && let Some(line) = self.text.lines().nth(place.line - 1).filter(|line| is_shown(line))
        {
            // A tab before the mark is repeated, so that both are as wide.
            let indent: String =
                line.chars().take(place.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let marks = "^".repeat(place.width);
            let number = place.line.to_string();
            let gutter = " ".repeat(number.len());
            writeln!(out, "  {} {line}", style.faint(format!("{number} |")))?;
            writeln!(out, "  {} {indent}{}", style.faint(format!("{gutter} |")), style.strong(marks))?;
        }
        if let Some(help) = help {
            writeln!(out, "  {} {help}", style.strong("help:"))?;
        }
        Ok(())
    }

    /// For machines: one object.
    fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Json<'r> {
            file: &'r str,
            valid: bool,
            diagnostics: &'r [Diagnostic],
        }
        let json = Json { file: &self.file, valid: self.config.is_some(), diagnostics: &self.diagnostics };
        let mut text =
            serde_json::to_string_pretty(&json).expect("strings and numbers can be written as JSON");
        text.push('\n');
        text
    }
}

impl Diagnostic {
    fn of_fault(fault: &Fault) -> Self {
        Self {
            severity: Severity::Error,
            place: Some(fault.place.into()),
            key: fault.key.clone(),
            message: fault.problem.to_string(),
            help: Some(fault.problem.help()),
        }
    }

    fn of_warning(warning: &Warning, severity: Severity) -> Self {
        Self {
            severity,
            place: Some(warning.place.into()),
            key: warning.key.clone(),
            message: warning.caution.to_string(),
            help: Some(warning.caution.help()),
        }
    }

    fn of_file(fault: &ReadFault) -> Self {
        Self {
            severity: Severity::Error,
            place: None,
            key: String::new(),
            message: fault.to_string(),
            help: None,
        }
    }
}

impl From<Place> for Location {
    fn from(Place { line, column, width }: Place) -> Self {
        Self { line, column, width }
    }
}

/// Whether a line of the file may be shown: none that may hold a secret, such as a token or a field that is one, or move
/// the cursor, and none without anything to see.
fn is_shown(line: &str) -> bool {
    let lower = line.to_lowercase();
    !line.trim().is_empty()
        && !["token", "authorization", "cookie", "key"].iter().any(|word| lower.contains(word))
        && !line.contains(|c: char| c.is_control() && c != '\t')
}

fn contents(config: &Config) -> String {
    format!("{}, {}", counted(config.ports.len(), "port"), counted(config.routes.len(), "route"))
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[port]]\nnumber = 80\n[[route]]\npath = \"/\"\nservice = \"page\"\n";

    fn report(text: &str, strict: bool) -> Report {
        Report::of_text("r.toml".to_owned(), text.to_owned(), Path::new(""), strict)
    }

    #[test]
    fn a_good_file_is_told_to_be_good() {
        let report = report(GOOD, true);
        assert!(report.config.is_some());
        assert_eq!(report.to_text(Style::PLAIN), "r.toml: good, 1 port, 1 route\n");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&report.to_json()).unwrap(),
            serde_json::json!({ "file": "r.toml", "valid": true, "diagnostics": [] })
        );
    }

    #[test]
    fn a_fault_is_shown_with_its_line_and_what_to_write_instead() {
        let report = report(&format!("[limits]\n\tidle_timeout = 5\n{GOOD}"), false);
        assert!(report.config.is_none());
        assert_eq!(
            report.to_text(Style::PLAIN),
            "r.toml:2:2: error: limits.idle_timeout: [limits] has no key \"idle_timeout\"\n\
             \x20 2 | \tidle_timeout = 5\n\
             \x20   | \t^^^^^^^^^^^^\n\
             \x20 help: Did you mean \"idle_timeout_ms\"?\n\
             r.toml: 1 error\n"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&report.to_json()).unwrap(),
            serde_json::json!({ "file": "r.toml", "valid": false, "diagnostics": [{
                "severity": "error", "line": 2, "column": 2, "key": "limits.idle_timeout",
                "message": "[limits] has no key \"idle_timeout\"", "help": "Did you mean \"idle_timeout_ms\"?",
            }] })
        );
    }

    #[test]
    fn a_warning_is_a_fault_where_it_is_strict() {
        let text = GOOD.replace("80", "6000");
        let lenient = report(&text, false);
        assert!(lenient.config.is_some());
        let told = lenient.to_text(Style::PLAIN);
        assert!(told.starts_with("r.toml:2:10: warning: port[0].number: browsers refuse"), "{told}");
        assert!(told.ends_with("\nr.toml: good, 1 port, 1 route, 1 warning\n"), "{told}");
        let strict = report(&text, true);
        assert!(strict.config.is_none());
        let told = strict.to_text(Style::PLAIN);
        assert!(told.starts_with("r.toml:2:10: error: port[0].number: browsers refuse"), "{told}");
        assert!(told.ends_with("\nr.toml: 1 error\n"), "{told}");
    }

    #[test]
    fn a_secret_that_was_written_plainly_is_not_repeated() {
        for value in ["\"hunter2hunter2hunter2\"", "hunter2hunter2hunter2", "[\"hunter2hunter2hunter2\"]"] {
            let report = report(&format!("[admin]\ntoken = {value}\n{GOOD}"), false);
            assert!(report.config.is_none(), "{value}");
            let told = report.to_text(Style::PLAIN) + &report.to_json();
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn a_field_that_may_be_a_secret_is_not_repeated() {
        for field in [
            "Authorization = \"Bearer hunter2\\u0000\"",
            "X-Api-Key = \"hunter2 \"",
            "Cookie = [\"hunter2\"]",
        ] {
            let relay = GOOD.replace("page", "websocket") + "upstreams = [\"ws://app\"]\n";
            let report = report(&format!("{relay}request_headers = {{ set = {{ {field} }} }}\n"), false);
            assert!(report.config.is_none(), "{field}");
            let told = report.to_text(Style::PLAIN) + &report.to_json();
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_bad_configuration() {
        let report = Report::of(Path::new("/does/not/exist.toml"), false);
        assert!(report.config.is_none());
        let told = report.to_text(Style::PLAIN);
        assert!(told.starts_with("/does/not/exist.toml: error: cannot be read: No such file"), "{told}");
        let source =
            SourceArguments { config: Some("/does/not/exist.toml".into()), io_driver: None, shards: None };
        assert_eq!(load(&source, false).err(), Some(Exit::BadConfiguration));
    }
}
