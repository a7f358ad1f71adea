//! Attach options on command lines: their defaults, their names, and what nbd-ctl hands to a holder.

use clap::{Args, Command, FromArgMatches};
use serde_json::Value;

use super::AttachOptions;

impl Default for AttachOptions {
    /// What an empty command line means.
    fn default() -> Self {
        let command = Self::augment_args(Command::new("attach")).no_binary_name(true);
        let options = command
            .try_get_matches_from([""; 0])
            .and_then(|matches| Self::from_arg_matches(&matches));
        // Neither depends on any input.
        options.unwrap_or_else(|error| unreachable!("no option is required: {error}"))
    }
}

impl AttachOptions {
    /// The options as they are typed and as `devices.toml` has them, like `restart-limit`.
    #[must_use]
    pub fn names() -> Vec<String> {
        let command = Self::augment_args(Command::new("attach"));
        command.get_arguments().filter_map(|option| option.get_long().map(str::to_owned)).collect()
    }

    /// The holder's command line for these options. Where they are the defaults, it says nothing.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let defaults = Self::default().fields();
        let given = self.fields().into_iter().filter(|(field, value)| defaults[field] != *value);
        let argument = |(field, value): (String, Value)| {
            let option = format!("--{}", field.replace('_', "-"));
            match value {
                // Switches are off unless they are given.
                Value::Bool(_) => option,
                Value::String(text) => format!("{option}={text}"),
                value => format!("{option}={value}"),
            }
        };
        given.map(argument).collect()
    }
}
