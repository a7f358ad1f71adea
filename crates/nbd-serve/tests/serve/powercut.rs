//! A program that forgets a flush is caught, and one that does not forget it is not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nbd_proto::{CommandFlags, CommandType, NbdError};

use crate::holder::{Directory, Holder, PROGRAM};

const SECTOR: u64 = 512;
const RECORDS: u64 = 8;

/// A little database: it writes a record of eight sectors, then says in sector 0 how many records
/// there are. Its first flush is the one that is easily forgotten.
fn run(holder: &mut Holder, forgets: bool) {
    let flush = |holder: &mut Holder| {
        let answer = holder.ask(CommandType::FLUSH, CommandFlags::NONE, 0, 0);
        assert_eq!(answer, NbdError::SUCCESS);
    };
    for record in 1..=RECORDS {
        let data = [record as u8; 8 * SECTOR as usize];
        holder.write(record * 8 * SECTOR, &data);
        if !forgets {
            flush(holder);
        }
        holder.write(0, &[record as u8; SECTOR as usize]);
        flush(holder);
    }
}

/// Its recovery: each of the records that sector 0 tells of must be there.
const CHECKER: &str = r#"#!/bin/sh
byte() { od -An -tu1 -j "$1" -N 1 "$image" | tr -d ' '; }
image=$1
count=$(byte 0)
record=1
while [ "$record" -le "$count" ]; do
    for sector in 0 7; do
        found=$(byte $((record * 4096 + sector * 512)))
        if [ "$found" != "$record" ]; then
            echo "record $record of $count: found $found"
            exit 3
        fi
    done
    record=$((record + 1))
done
"#;

struct Recording {
    directory: Directory,
    log: String,
    checker: String,
}

impl Recording {
    fn of(forgets: bool) -> Self {
        let directory = Directory::new();
        let path = |name: &str| directory.path(name).display().to_string();
        let (log, checker) = (path("log"), path("checker"));
        fs::write(&checker, CHECKER).unwrap();
        fs::set_permissions(&checker, fs::Permissions::from_mode(0o755)).unwrap();
        let mut holder = Holder::new();
        let spec = format!("record:{log}@mem:1M");
        // It offers no flush of its own.
        let spec = spec.replace("mem:1M", &directory.file("disk"));
        let server = holder.serve(&spec);
        run(&mut holder, forgets);
        holder.detach();
        server.end();
        Self { directory, log, checker }
    }

    fn check(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(PROGRAM)
            .args(["powercut", &self.log])
            .args(arguments)
            .args(["--", &self.checker])
            .output()
            .unwrap();
        let words = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(words).unwrap())
    }

    fn files(&self) -> usize {
        fs::read_dir(self.directory.path("")).unwrap().count()
    }
}

#[test]
fn who_flushes_before_the_commit_survives_every_power_cut() {
    let recording = Recording::of(false);
    let files = recording.files();
    for arguments in [&["--points", "all", "--torn"][..], &[]] {
        let (code, said) = recording.check(arguments);
        assert_eq!(code, 0, "{said}");
        assert!(said.starts_with("32 entries, ") && said.ends_with(" 0 failed\n"), "{said}");
    }
    assert_eq!(recording.files(), files, "images are left");
}

#[test]
fn who_forgets_it_is_caught_and_the_case_can_be_repeated() {
    let recording = Recording::of(true);
    let (code, said) = recording.check(&["--subsets", "4", "--json"]);
    assert_eq!(code, 1, "{said}");
    let report: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let failed = report["failed"].as_array().unwrap();
    assert!(!failed.is_empty() && said.contains("the checker fails on "), "{said}");
    let scene = failed[0]["scene"].as_str().unwrap();
    let output = failed[0]["output"].as_str().unwrap();
    assert!(output.contains("found 0"), "{output}");

    let keep = recording.directory.path("broken").display().to_string();
    let (code, said) = recording.check(&["--only", scene, "--keep", &keep]);
    assert_eq!(code, 1, "{said}");
    assert!(said.starts_with(&format!("{scene}: exit status: 3\n    {output}")), "{said}");
    let status = Command::new(&recording.checker).arg(&keep).status().unwrap();
    assert_eq!(status.code(), Some(3));
    let (code, said) = recording.check(&["--only", "1000.0"]);
    assert_eq!(code, 2, "{said}");
}

#[test]
fn an_interrupted_search_leaves_no_images() {
    let recording = Recording::of(false);
    let files = recording.files();
    // The checker interrupts the one who called it.
    let output = Command::new(PROGRAM)
        .args(["powercut", &recording.log, "--", "sh", "-c", "kill -INT $PPID"])
        .output()
        .unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{words}");
    assert!(words.contains("interrupted after 0 images"), "{words}");
    assert_eq!(recording.files(), files, "images are left");
}
