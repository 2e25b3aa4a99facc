//! What can be made of the program for others? Shell completions and manual pages, for whoever packages it; the schemas of its JSON.

use std::io;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Cli;
use diagnosis::finding::RULES;

const NAME: &str = "imds-trace";
/// The shells, and what their completions are asked for by.
const SHELLS: [(&str, Shell); 3] =
    [("complete-bash", Shell::Bash), ("complete-zsh", Shell::Zsh), ("complete-fish", Shell::Fish)];
/// The manual page of the program; `man-watch` and so on are those of its commands.
const MAN: &str = "man";
/// Stands at the foot of a page.
const SOURCE: &str = concat!("imds-trace ", env!("CARGO_PKG_VERSION"));
/// What the first line of the program's page says.
const SUMMARY: &str = "find out why containers on EC2 cannot get credentials";
const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "It ran, or the command of `run` ended well."),
    ("1", "It ran, and what was asserted with --expect or --exit-code failed. `run` passes on how its command ended."),
    ("2", "It could not run, and says why in one sentence."),
];
/// What a schema is asked for by, and what makes it.
type Schema = (&'static str, fn() -> String);
/// The schemas of what is told to programs.
const SCHEMAS: &[Schema] = &[
    ("schema", diagnosis::output::json::schema),
    #[cfg(feature = "live")]
    ("schema-doctor", crate::doctor::schema),
];
/// The list of kinds.
const KINDS: &str = "kinds";

/// What of `kind` there is; `None` if nothing can be made of that name. `date` is the one of a manual page.
pub(super) fn generate(kind: &str, date: &str) -> Option<String> {
    let mut program = program();
    if kind == KINDS {
        return Some(kinds(&program).concat());
    }
    if let Some((_, schema)) = SCHEMAS.iter().find(|(name, _)| *name == kind) {
        return Some(schema());
    }
    if let Some((_, shell)) = SHELLS.iter().find(|(name, _)| *name == kind) {
        let mut text = Vec::new();
        clap_complete::generate(*shell, &mut program, NAME, &mut text);
        // clap_complete 4.6.11 takes the hyphen of a program's name for a space, in one of two places for bash: then the options
        // of its commands are never completed.
        return Some(String::from_utf8(text).ok()?.replace("imds__subcmd__trace", "imds__trace"));
    }
    // Now a command knows that it is one of this program. (Completions must be made of one that does not yet.)
    program.build();
    let mut text = Vec::new();
    match kind.strip_prefix("man-") {
        None if kind == MAN => page(program, date, &mut text).ok()?,
        None => return None,
        Some(command) => {
            let command = program.get_subcommands().find(|known| known.get_name() == command)?.clone();
            Man::new(command).source(SOURCE).date(date).render(&mut text).ok()?;
        }
    }
    String::from_utf8(text).ok()
}

/// The program's own page: with what it finds, and how it ends.
fn page(program: Command, date: &str, text: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(program).source(SOURCE).date(date);
    man.render_title(text)?;
    man.render_name_section(text)?;
    man.render_synopsis_section(text)?;
    man.render_description_section(text)?;
    man.render_options_section(text)?;
    man.render_subcommands_section(text)?;
    let findings = RULES.iter().map(|rule| (rule.id, rule.explain));
    for (heading, rows) in [("FINDINGS", Vec::from_iter(findings)), ("EXIT STATUS", EXIT_STATUS.to_vec())] {
        let mut section = Roff::new();
        section.control("SH", [heading]);
        for (name, what) in rows {
            section.control("TP", []).text([bold(name)]).text([roman(what)]);
        }
        section.to_writer(text)?;
    }
    Ok(())
}

/// A line for each kind but the list itself.
fn kinds(program: &Command) -> Vec<String> {
    let shells = SHELLS.iter().map(|(name, _)| format!("{name}\n"));
    let pages = program.get_subcommands().map(|command| format!("{MAN}-{}\n", command.get_name()));
    let schemas = SCHEMAS.iter().map(|(name, _)| format!("{name}\n"));
    shells.chain([format!("{MAN}\n")]).chain(pages).chain(schemas).collect()
}

/// The program as users see it.
fn program() -> Command {
    let all = Cli::command();
    let seen = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(SUMMARY)
        .long_about(all.get_about().cloned().unwrap_or_default())
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommands(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_that_is_listed_can_be_made() {
        let listed = generate(KINDS, "").unwrap();
        assert_eq!(listed.lines().count(), SHELLS.len() + 1 + program().get_subcommands().count() + SCHEMAS.len());
        for kind in listed.lines() {
            assert!(generate(kind, "").is_some_and(|text| text.lines().count() > 5), "{kind}");
        }
        assert_eq!(generate("man-nothing", ""), None);
        assert_eq!(generate("complete-", ""), None);
    }

    #[test]
    fn what_is_made_knows_the_commands() {
        for (kind, _) in SHELLS {
            let text = generate(kind, "").unwrap();
            assert!(text.contains("probe") && text.contains("record-rotate"), "{kind}");
        }
        let page = generate("man-watch", "2026-11-22").unwrap();
        assert!(page.contains(".TH imds-trace-watch 1 2026-11-22"), "{page}");
        assert!(generate("man-generate", "").is_some_and(|page| page.contains("allow")));
    }
}
