//! `ringway man`: the manual page, made from the definition of the command line.

use std::io::{self, Write};

use clap_mangen::Man;

use super::{EXIT_CODES, Exit, output};

/// Prints one manual page for `command` and all below it.
pub(super) fn run(command: clap::Command) -> Exit {
    let page = page(command).expect("writing to a vector cannot fail");
    output::print(&page)
}

fn page(mut command: clap::Command) -> io::Result<Vec<u8>> {
    // Gives each subcommand its full name, as in "ringway config show".
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    write_commands(&mut page, &command)?;
    writeln!(page, ".SH ENVIRONMENT")?;
    for argument in command.get_arguments() {
        if let (Some(variable), Some(flag)) = (argument.get_env(), argument.get_long()) {
            writeln!(page, ".TP\n\\fB{}\\fR\nStands for \\fB\\-\\-{flag}\\fR.", variable.to_string_lossy())?;
        }
    }
    writeln!(page, ".SH \"EXIT STATUS\"\n{EXIT_CODES}")?;
    Ok(page)
}

/// Writes a subsection for each command below `parent` that does something by itself.
fn write_commands(page: &mut Vec<u8>, parent: &clap::Command) -> io::Result<()> {
    for command in parent.get_subcommands().filter(|command| command.get_name() != "help") {
        if command.has_subcommands() {
            write_commands(page, command)?;
            continue;
        }
        let name = command.get_bin_name().expect("build() names every subcommand");
        writeln!(page, ".SS \"{name}\"")?;
        let man = Man::new(command.clone());
        let mut body = Vec::new();
        man.render_synopsis_section(&mut body)?;
        man.render_description_section(&mut body)?;
        // The flags of `run` are those of the page itself.
        if command.get_name() != "run" {
            man.render_options_section(&mut body)?;
        }
        // Within a subsection a section's heading is no more than a new paragraph.
        for line in body.split_inclusive(|&byte| byte == b'\n') {
            page.write_all(if line.starts_with(b".SH ") { b".PP\n" } else { line })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_page_tells_of_every_command_variable_and_exit_code() {
        let page = String::from_utf8(page(super::super::Arguments::command()).unwrap()).unwrap();
        for part in [
            ".SS \"ringway run\"\n",
            ".SS \"ringway check\"\n",
            ".SS \"ringway config default\"\n",
            ".SS \"ringway config show\"\n",
            ".SS \"ringway completions\"\n",
            ".SS \"ringway man\"\n",
            "RINGWAY_CONFIG",
            "RINGWAY_IO_DRIVER",
            "RINGWAY_LOG",
            "RINGWAY_SHARDS",
            "78 bad configuration",
        ] {
            assert!(page.contains(part), "{part} is missing in\n{page}");
        }
        assert_eq!(
            page.matches("\n.TH ").count() + usize::from(page.starts_with(".TH ")),
            1,
            "one page has one title"
        );
    }
}
