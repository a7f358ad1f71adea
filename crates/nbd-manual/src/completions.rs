//! Scripts that complete command lines.
//!
//! Programs that name attached devices are asked by the shell at each press of the key
//! (`COMPLETE=bash nbd-ctl`), so that the names are those of now. Where there is nothing live to
//! know the script knows it all.

use std::io;

use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use clap_complete::{Shell, generate};

use crate::document::Document;
use crate::programs::Program;

/// The variable by which a shell asks a program for completions.
const VARIABLE: &str = "COMPLETE";

/// The scripts of a program, under the names by which shells find them.
pub(crate) fn scripts(program: &Program, found: &mut Vec<Document>) -> io::Result<()> {
    let name = program.command.get_name().to_owned();
    let shells: [(Shell, &dyn EnvCompleter, String); 3] = [
        (Shell::Bash, &Bash, format!("bash/{name}")),
        (Shell::Zsh, &Zsh, format!("zsh/_{name}")),
        (Shell::Fish, &Fish, format!("fish/{name}.fish")),
    ];
    for (shell, asking, file) in shells {
        let mut script = Vec::new();
        if program.completes_itself {
            asking.write_registration(VARIABLE, &name, &name, &name, &mut script)?;
        } else {
            generate(shell, &mut program.command.clone(), &name, &mut script);
        }
        let script = String::from_utf8(script).map_err(io::Error::other)?;
        let script = match (shell, program.completes_itself) {
            (Shell::Bash, true) => with_colons(&script),
            _ => script,
        };
        found.push((format!("completions/{file}"), script));
    }
    Ok(())
}

/// Bash breaks words at colons, which SPECs have: puts them together for the program, and takes what bash
/// has already off its answers.
fn with_colons(script: &str) -> String {
    let script = script.replacen("() {\n", &format!("() {{\n{JOIN_WORDS}"), 1);
    let script = script.replacen("=${COMP_CWORD}\n", "=$cword\n", 1);
    let (begin, rest) = script.split_once(OWN_WORDS).unwrap_or((&script, ""));
    let rest = rest.split_once("    fi\n").map_or("", |(_, rest)| rest);
    let script = format!("{begin}{rest}");
    script.replacen("\n    fi\n}\n", &format!("\n    fi\n{TRIM_ANSWERS}}}\n"), 1)
}

/// What clap has instead of [`JOIN_WORDS`].
const OWN_WORDS: &str = "    local words=(\"${COMP_WORDS[@]}\")\n";
const JOIN_WORDS: &str = r#"    local words=() cword=0 index word line=$COMP_LINE
    for index in "${!COMP_WORDS[@]}"; do
        word=${COMP_WORDS[index]}
        if [[ $index -eq $COMP_CWORD && $word != : ]]; then word=$2; fi
        if [[ $index -gt 0 && $line != [[:space:]]* && "${COMP_WORDS[index-1]}$word" == *:* ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        line=${line#"${line%%[![:space:]]*}"}
        line=${line#"${COMP_WORDS[index]}"}
        if [[ $index -eq $COMP_CWORD ]]; then cword=$((${#words[@]} - 1)); fi
    done
"#;
const TRIM_ANSWERS: &str = r#"    word=${words[cword]}
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
    fi
"#;
