//! The commands by what they are for, as `--help` and the manual show them.

use clap::Command;

/// A heading, and its commands.
pub(crate) type Group = (&'static str, &'static [&'static str]);

/// All commands, in the order of their definition.
pub(crate) const GROUPS: [Group; 5] = [
    ("Attach and detach", &["attach", "detach", "wait", "resize"]),
    ("Look at devices", &["list", "status", "why", "top", "logs", "events", "metrics"]),
    ("Change what serves a device", &["restart", "replace", "set", "pause", "resume", "fail"]),
    ("Debug a backend", &["debug", "trace", "record", "replay"]),
    ("Look after this machine", &["doctor", "check-config", "adopt", "upgrade"]),
];

/// The heading above a command, if it is the first of its group.
pub(crate) fn heading(command: &str) -> Option<&'static str> {
    let (heading, _) = GROUPS.iter().find(|(_, names)| names.first() == Some(&command))?;
    Some(heading)
}

/// The definition with a help in which the commands stand in their groups. clap has no groups of
/// commands.
pub(crate) fn grouped(command: Command) -> Command {
    let width = command.get_subcommands().map(|it| it.get_name().len()).max().unwrap_or(0);
    let mut commands = String::new();
    for inner in command.get_subcommands() {
        if let Some(heading) = heading(inner.get_name()) {
            commands.push_str(&format!("\n{heading}:\n"));
        }
        let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
        commands.push_str(&format!("  {:<width$}  {about}\n", inner.get_name()));
    }
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{commands}\nOptions:\n{{options}}{{after-help}}"
    ))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Arguments;
    use super::*;

    #[test]
    fn every_command_is_in_one_group_in_the_order_of_its_definition() {
        let command = Arguments::command();
        let defined: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
        let grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        assert_eq!(defined, grouped);
        let help = Arguments::definition().render_long_help().to_string();
        for (heading, names) in GROUPS {
            assert!(help.contains(&format!("\n\n{heading}:\n  {} ", names[0])), "{help}");
        }
    }
}
