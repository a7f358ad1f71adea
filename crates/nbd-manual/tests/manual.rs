//! The manual is complete, and the programs that show it have nothing to complain of.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory with the manual, gone at the end.
struct Written(PathBuf);

impl Written {
    fn new(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&directory);
        nbd_manual::write(&directory).unwrap();
        Self(directory)
    }

    fn pages(&self) -> BTreeMap<String, PathBuf> {
        let entries = fs::read_dir(self.0.join("man")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a program prints, both streams in one; panics unless it succeeds.
fn printed(program: &str, arguments: &[&str], path: &Path) -> String {
    let mut command = Command::new(program);
    command.args(arguments).arg(path).stdin(Stdio::null());
    command.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "100").env("MAN_KEEP_FORMATTING", "");
    let output =
        command.output().unwrap_or_else(|error| panic!("{program}: {error}: run scripts/setup"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let text = text.concat();
    assert!(output.status.success(), "{program} {}: {text}", path.display());
    text
}

/// All but that there is no date, which is meant so.
fn complaints_of_mandoc(path: &Path) -> Vec<String> {
    let output = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(path).output();
    let output = output.expect("mandoc: run scripts/setup");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.contains(": missing date"));
    lines.map(str::to_owned).collect()
}

/// The names of commands, and the long options, that a program's help shows.
fn offered(help: &str, is_grouped: bool) -> (Vec<String>, Vec<String>) {
    let mut commands = Vec::new();
    let mut options = Vec::new();
    let mut in_commands = false;
    for line in help.lines() {
        if !line.starts_with(' ') {
            // Those of nbd-ctl have headings of their own.
            let others = ["Arguments:", "Options:", "Exit status:", "Example:"];
            in_commands = match is_grouped {
                true => line.ends_with(':') && !others.contains(&line),
                false => line == "Commands:",
            };
        }
        let word = line.split_ascii_whitespace().next().unwrap_or_default();
        if in_commands && line.starts_with("  ") && !line.starts_with("   ") && word != "help" {
            commands.push(word.to_owned());
        }
        if line.trim_start().starts_with('-') {
            let words = line.split([' ', ',']);
            options.extend(
                words
                    .filter(|word| word.len() > 2 && word.starts_with("--"))
                    // What may be given more than once is shown with dots.
                    .map(|word| word.trim_end_matches("...").to_owned())
                    .take(1),
            );
        }
    }
    (commands, options)
}

/// The page of a command as a reader sees it.
fn shown(path: &Path) -> String {
    plain(&printed("mandoc", &["-T", "utf8", "-O", "width=200"], path))
}

/// Without the backspaces by which terminals are told of bold and underlined letters.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        if c == '\u{8}' {
            plain.pop();
        } else {
            plain.push(c);
        }
    }
    plain
}

#[test]
fn every_command_and_option_that_help_shows_has_its_place() {
    let manual = Written::new("complete");
    let pages = manual.pages();
    let programs = ["nbd-ctl", "nbd-serve", "nbd-kernel-holder"];
    let mut seen = 0;
    for program in programs {
        let mut waiting = vec![vec![program.to_owned()]];
        while let Some(words) = waiting.pop() {
            let help = nbd_manual::help(&words).unwrap();
            let name = format!("{}.8", words.join("-"));
            let page = shown(pages.get(&name).unwrap_or_else(|| panic!("no page {name}")));
            let (commands, options) = offered(&help, words == ["nbd-ctl"]);
            assert!(!options.is_empty(), "{help}");
            for option in options {
                assert!(page.contains(&option), "{name} has no {option}:\n{page}");
            }
            for command in commands {
                assert!(
                    page.contains(&format!("{}-{command}(8)", words.join("-"))),
                    "{name}: {command}"
                );
                waiting.push([&words[..], &[command]].concat());
            }
            for heading in ["NAME", "SYNOPSIS", "OPTIONS", "SEE ALSO"] {
                assert!(
                    page.contains(&format!("\n{heading}\n")),
                    "{name} has no {heading}:\n{page}"
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} commands");
    for name in [
        "nbd-ctl-devices.5",
        "nbd-backend-protocol.7",
        "nbd-logs.7",
        "nbd-security.7",
        "libnbdbackend.3",
    ] {
        assert!(pages.contains_key(name), "{name}");
    }
    for (program, words) in [
        ("nbd-ctl", ["NBD_CTL_CONFIG", "/etc/nbd-ctl/devices.toml"]),
        ("nbd-serve", ["NBD_JOIN", "/etc/nbd-ctl/serve-NAME.conf"]),
        ("nbd-kernel-holder", ["NBD_LOG", "/run/nbd/nbdN.log.last"]),
    ] {
        let page = shown(&pages[&format!("{program}.8")]);
        for words in ["\nENVIRONMENT\n", "\nFILES\n"].into_iter().chain(words) {
            assert!(page.contains(words), "{program} has no {words}:\n{page}");
        }
    }
    let protocol = shown(&pages["nbd-backend-protocol.7"]);
    for words in ["NBD_HOLDER_FD", "commit", "│", "Finding it"] {
        assert!(protocol.contains(words), "{words}");
    }
}

#[test]
fn mandoc_and_man_have_nothing_to_complain_of() {
    let manual = Written::new("warnings");
    for (name, path) in manual.pages() {
        let complaints = complaints_of_mandoc(&path);
        assert!(complaints.is_empty(), "{name}:\n{complaints:?}");
        let mut command = Command::new("man");
        command.args(["--warnings", "-E", "UTF-8", "-P", "cat", "-l"]).arg(&path);
        command.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "100");
        let output = command.output().expect("man: run scripts/setup");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{name}: {complaints}");
        assert!(output.stdout.len() > 500, "{name} is empty");
    }
}

/// A SPEC has a colon, at which bash breaks words, and what stands before it is not typed again.
#[test]
fn bash_completes_what_stands_behind_a_colon() {
    let manual = Written::new("colons");
    let script = manual.0.join("completions/bash/nbd-ctl");
    let bin = manual.0.join("bin");
    fs::create_dir(&bin).unwrap();
    // In place of the program: it tells what it was asked, and completes that.
    let program = "#!/bin/sh\necho \"$_CLAP_COMPLETE_INDEX $*\" >\"${0%/bin/*}/asked\"\nprintf '%s' \"$ANSWER\"\n";
    let mut shell = Command::new("sh");
    shell.args(["-c", "printf '%s' \"$1\" >\"$0\" && chmod 755 \"$0\""]);
    assert!(shell.arg(bin.join("nbd-ctl")).arg(program).status().unwrap().success());
    for (line, words, second, asked, answer, reply) in [
        (
            "nbd-ctl attach file:/etc/ho",
            "nbd-ctl attach file : /etc/ho",
            "/etc/ho",
            "2 -- nbd-ctl attach file:/etc/ho",
            "file:/etc/hosts",
            "/etc/hosts",
        ),
        ("nbd-ctl attach mem:", "nbd-ctl attach mem :", "", "2 -- nbd-ctl attach mem:", "", ""),
        ("nbd-ctl attach me", "nbd-ctl attach me", "me", "2 -- nbd-ctl attach me", "mem:", "mem:"),
    ] {
        let count = words.split(' ').count() - 1;
        let commands = format!(
            "COMP_LINE='{line}' COMP_CWORD={count} COMP_TYPE=9\nCOMP_WORDS=({words})\n. {}\n\
             _clap_complete_nbd_ctl nbd-ctl '{second}' x\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let mut bash = Command::new("bash");
        bash.args(["-c", &commands]).env("ANSWER", answer);
        bash.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
        let output = bash.output().unwrap();
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(told, [format!("{reply}\n"), String::new()], "{line}");
        assert_eq!(fs::read_to_string(manual.0.join("asked")).unwrap(), format!("{asked}\n"));
    }
}

#[test]
fn shells_understand_the_completions() {
    let manual = Written::new("completions");
    for (shell, check, files) in [
        ("bash", &["-n"][..], ["bash/nbd-ctl", "bash/nbd-serve", "bash/nbd-kernel-holder"]),
        ("zsh", &["-n"], ["zsh/_nbd-ctl", "zsh/_nbd-serve", "zsh/_nbd-kernel-holder"]),
        (
            "fish",
            &["--no-execute"],
            ["fish/nbd-ctl.fish", "fish/nbd-serve.fish", "fish/nbd-kernel-holder.fish"],
        ),
    ] {
        for file in files {
            let path = manual.0.join("completions").join(file);
            assert_eq!(printed(shell, check, &path), "", "{file}");
        }
    }
}
