//! Arguments, messages, exit codes.

use std::fs::Permissions;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_control::Channel;
use nbd_control::backend::{EXPORT_VARIABLE, FromBackend, GROW_VARIABLE, HOLDER_FD, Hello};
use nbd_net::testing::Scratch;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::holder::{Directory, PROGRAM};

/// Exit code, stdout and stderr of a call outside any holder.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .env_remove(HOLDER_FD)
        .env_remove("NBD_JOIN")
        .env("NBD_RUNTIME_DIR", "/nonexistent")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// What a shell is told of the last of these words.
fn complete(words: &[&str]) -> String {
    let mut command = Command::new(PROGRAM);
    command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_COMP_TYPE", "9");
    command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    let output = command.arg("--").args(words).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_shell_is_told_specs_and_files() {
    let scratch = Scratch::new();
    let disk = scratch.path().join("disk.img").display().to_string();
    std::fs::write(&disk, "x").unwrap();
    let begun = disk.strip_suffix("sk.img").unwrap();
    for (words, expected) in [
        (&["nbd-serve", "me"] as &[&str], "mem:".to_owned()),
        (&["nbd-serve", "--listen", "systemd", "root=me"], "root=mem:".into()),
        (&["nbd-serve", &format!("log@file:{begun}")], format!("log@file:{disk}")),
        (&["nbd-serve", &format!("root=file:{begun}")], format!("root=file:{disk}")),
    ] {
        let told = complete(words);
        assert!(told.split(|c: char| c.is_control()).any(|word| word == expected), "{told:?}");
    }
}

#[test]
fn wrong_arguments_are_named_once_and_exit_with_2() {
    let directory = Directory::new();
    let disk = directory.file("disk");
    for (arguments, words) in [
        (&[] as &[&str], "required arguments were not provided"),
        (&["--jion", "nbd0", &disk], "unexpected argument '--jion' found"),
        (&["--join"], "a value is required for '--join <DEVICE>'"),
        (&[&disk, &disk], "a device has one SPEC, and here are 2"),
        (&["disk.img"], "disk.img: has no type: write file:disk.img to serve"),
        (&["flie:disk.img"], "flie:disk.img: there is no export `flie:`; did you mean `file:`?"),
        (&["file:a,dierct"], "unknown option `dierct`; did you mean `direct`?"),
        (&["mem:12Q"], "mem:12Q: mem:SIZE: `12Q` is not a size: write a whole number"),
        (&[&disk], "no device to serve: use `nbd-ctl attach file:"),
        (&["--join", "sda", &disk], "sda is not the name of an NBD device (like nbd0)"),
        (&["--print-geometry", "--takeover", &disk], "cannot be used with"),
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, &*stdout), (2, ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("nbd-serve: "), "{arguments:?}: {stderr}");
        assert_eq!(stderr.matches(words).count(), 1, "{arguments:?}: {stderr}");
    }
}

#[test]
fn failures_name_their_object_and_exit_with_1() {
    let directory = Directory::new();
    let disk = directory.file("disk");
    let none = format!("file:{}", directory.path("none").display());
    for (arguments, words) in [
        (
            &["--print-geometry", "file:/dev/null"] as &[&str],
            "/dev/null: is a character device: only",
        ),
        (&["--print-geometry", &none], "none: there is no such file"),
        (&["--join", "nbd7", &none], "none: there is no such file; `create=SIZE` makes one\n"),
        (&["--join", "/dev/nbd7", &disk], "cannot reach the holder at /nonexistent/nbd7.join"),
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, &*stdout), (1, ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("nbd-serve: "), "{arguments:?}: {stderr}");
        assert_eq!(stderr.matches(words).count(), 1, "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_spec_is_checked_without_opening_anything() {
    let check = |spec: &str| {
        let (code, stdout, stderr) = run(&["--check", spec]);
        (code, serde_json::from_str::<serde_json::Value>(&stdout).unwrap(), stderr)
    };
    let (code, report, stderr) = check("cow:/none+log.cow");
    assert_eq!((code, &*stderr), (0, ""));
    assert_eq!(report["relative_paths"], serde_json::json!(["log.cow"]));
    assert_eq!((&report["mistake"], &report["warnings"]), (&().into(), &serde_json::json!([])));
    let (code, report, stderr) = check("flie:a");
    assert_eq!(code, 2);
    for told in [report["mistake"].as_str().unwrap(), &stderr] {
        assert!(told.contains("did you mean `file:`?"), "{told}");
    }
}

#[test]
fn more_memory_than_the_machine_has_is_told() {
    let (code, stdout, _) = run(&["--check", "log@mem:4E"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let warning = report["warnings"][0].as_str().unwrap();
    for words in ["log@mem:4E: 4E is more than the ", " MiB of memory", "Choose a smaller size"] {
        assert!(warning.contains(words), "{warning}");
    }
    assert_eq!(code, 0);
    let (code, _, stderr) = run(&["--print-geometry", "mem:4E"]);
    assert_eq!(code, 0);
    assert!(stderr.contains("mem:4E: 4E is more than the "), "{stderr}");
}

#[test]
fn the_user_that_may_not_open_a_file_is_named() {
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let directory = Directory::new();
    let disk = directory.file("disk");
    std::fs::set_permissions(directory.path("disk"), Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(directory.path(""), Permissions::from_mode(0o755)).unwrap();
    // The build directory may be closed to others.
    let program = directory.path("nbd-serve");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_nbd-serve")).arg(&program).status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(program);
    command.args(["--print-geometry", &disk]).uid(65534).gid(65534);
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    for words in ["disk: cannot be written to", "as user nobody (uid 65534): change its owner"] {
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn help_has_examples() {
    let (code, stdout, stderr) = run(&["--help"]);
    assert_eq!((code, &*stderr), (0, ""));
    for words in ["nbd-ctl attach file:disk.img", "gdb --args nbd-serve --join nbd0"] {
        assert!(stdout.contains(words), "{stdout}");
    }
    let (code, stdout, _) = run(&["--version"]);
    assert_eq!((code, &*stdout), (0, concat!("nbd-serve ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn the_geometry_is_printed_for_scripts() {
    let directory = Directory::new();
    let spec = format!("{},ro", directory.file("disk"));
    let (code, stdout, stderr) = run(&["--print-geometry", &spec]);
    assert_eq!((code, &*stderr), (0, ""));
    let shape: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shape["size"], 1 << 20);
    assert_eq!(shape["block_size"], 512);
    assert_eq!(shape["read_only"], true);
    assert_eq!(shape["description"], spec);
    let place = directory.path("").display().to_string();
    let (_, stdout, _) = run(&["--directory", &place, "--print-geometry", "log@file:disk"]);
    assert!(stdout.contains(&format!("log@{}", spec.trim_end_matches(",ro"))), "{stdout}");
    // Nothing is made by looking.
    let new = directory.path("new");
    let (code, stdout, _) =
        run(&["--print-geometry", &format!("file:{},create=1M", new.display())]);
    assert_eq!(code, 0);
    assert!(stdout.contains("\"size\":1048576"), "{stdout}");
    assert!(!new.exists());
}

#[test]
fn a_holder_that_started_it_hears_why_it_fails() {
    for (spec, words, code) in [
        ("flie:x", "there is no export `flie:`", 2),
        ("file:/dev/null", "/dev/null: is a character device", 1),
    ] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let mut channel = Channel::new(ours).unwrap();
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut child = Command::new(PROGRAM)
            .arg(spec)
            .env(HOLDER_FD, theirs.as_raw_fd().to_string())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(theirs);
        let received = channel.receive_within(Duration::from_secs(120)).unwrap();
        let FromBackend::Failed { reason, damaged } = received.message else {
            panic!("{received:?}");
        };
        assert!(reason.contains(words), "{reason}");
        assert!(!damaged);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(stderr, format!("nbd-serve: {reason}\n"));
    }
}

#[test]
fn what_is_logged_is_chosen() {
    let directory = Directory::new();
    let spec = directory.file("odd");
    let file = std::fs::OpenOptions::new().write(true).open(directory.path("odd")).unwrap();
    file.set_len((1 << 20) + 100).unwrap();
    let says = |options: &[&str], environment: &str| {
        let output = Command::new(PROGRAM)
            .args(options)
            .args(["--print-geometry", &spec])
            .env("NBD_LOG", environment)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let note = says(&[], "").1;
    assert!(note.starts_with("nbd-serve: ") && note.contains("last 100 bytes"), "{note}");
    for (options, environment, is_said) in [
        (&[][..], "info", true),
        (&[], "warn", false),
        (&[], "off,nbd_serve=info", true),
        (&["--log-level", "warn"], "info", false),
        (&["--log-level", "info"], "off", true),
        (&["-v"], "off", true),
    ] {
        let expected = if is_said { &*note } else { "" };
        assert_eq!(says(options, environment), (Some(0), expected.into()), "{options:?}");
    }
    let (code, words) = says(&["--log-level", "inof"], "");
    assert!(words.contains("`inof` is no level: write error, warn, info"), "{words}");
    assert_eq!(code, Some(2));
    let (code, words) = says(&[], "inof");
    assert!(words.starts_with("nbd-serve: NBD_LOG: `inof` is no level"), "{words}");
    assert!(words.ends_with(&note), "{words}");
    assert_eq!(code, Some(0), "an old service must not stop working");
}

#[test]
fn a_device_that_is_to_grow_is_asked_for_its_present_size() {
    let directory = Directory::new();
    let spec = directory.file("grown");
    for (layers, expected) in [("", 1 << 20), ("delay:0ms@", 1 << 20), ("offset:0@", 524_288)] {
        let hello = hello_of(&format!("{layers}{spec}"), true);
        assert_eq!(hello.export.size, expected, "{layers}");
    }
    assert_eq!(hello_of(&format!("{spec},create=512K"), true).export.size, 1 << 20);
    assert_eq!(hello_of(&format!("{spec},create=512K"), false).export.size, 524_288);
}

/// How a backend introduces itself that succeeds one with half a mebibyte.
fn hello_of(spec: &str, grows: bool) -> Hello {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let mut channel = Channel::new(ours).unwrap();
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .arg(spec)
        .env(HOLDER_FD, theirs.as_raw_fd().to_string())
        .env(EXPORT_VARIABLE, "524288:512:0")
        .stderr(Stdio::null());
    if grows {
        command.env(GROW_VARIABLE, "1");
    }
    let mut child = command.spawn().unwrap();
    drop((theirs, command));
    let received = channel.receive_within(Duration::from_secs(120)).unwrap();
    let FromBackend::Hello(hello) = received.message else {
        panic!("{received:?}");
    };
    drop(channel);
    child.wait().unwrap();
    hello
}

#[test]
fn a_file_that_has_grown_is_served_in_its_attached_size() {
    let directory = Directory::new();
    assert_eq!(hello_of(&directory.file("grown"), false).export.size, 524_288);
}
