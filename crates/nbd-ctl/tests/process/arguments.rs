//! What is refused before anything is done.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::runtime_dir::{Ran, RuntimeDir};

#[test]
fn wrong_usage_has_exit_status_2() {
    let runtime = RuntimeDir::new();
    for arguments in [
        &["frobnicate"][..],
        &[],
        &["attach"],
        &["attach", "--external", "mem:1M"],
        &["attach", "mem:1M", "--", "prog"],
        &["attach", "mem:1M", "--lanes", "0"],
        &["attach", "mem:1M", "--kernel-api", "telepathy"],
        &["attach", "mem:1M", "--ready-timeout", "soon"],
        &["attach", "mem:1M", "--poison-limit", "1"],
        &["attach", "--external", "--name", "nbd3"],
        &["attach", "--external", "--name", "3"],
        &["detach"],
        &["detach", "nbd0", "--all"],
        &["detach", "nbd0", "--timeout", "-1"],
        &["wait", "nbd0", "--for", "godot"],
        &["replace", "nbd0", "mem:1M", "--", "prog"],
        &["restart"],
        &["upgrade"],
        &["upgrade", "nbd0", "--all"],
    ] {
        let ran = runtime.run(arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
        assert_eq!(ran.stdout, "");
        assert!(!ran.stderr.contains("error:"), "{}", ran.stderr);
    }
    let ran = runtime.run(&["frobnicate"]);
    assert!(ran.stderr.starts_with("nbd-ctl: unrecognized subcommand 'frobnicate'"), "{ran:?}");
}

#[test]
fn a_file_without_its_scheme_is_told_how_to_be_served() {
    let runtime = RuntimeDir::new();
    let run = |word: &str| {
        let mut command = runtime.command(&["attach", word]);
        command.current_dir(&runtime.directory).env("NBD_CTL_CONFIG", "/nonexistent/devices.toml");
        Ran::from(command.output().unwrap())
    };
    std::fs::write(runtime.directory.join("disk.img"), "x").unwrap();
    run("disk.img").failed(
        2,
        "disk.img: to serve this file: nbd-ctl attach file:disk.img. A word without a colon \
         is the name of a device in devices.toml",
    );
    let ran = run("other.img");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    for words in ["/nonexistent/devices.toml: no such file", "nbd-ctl attach file:other.img"] {
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
}

/// The neighbour of a copied nbd-ctl tells this of every SPEC.
fn nbd_serve_tells(runtime: &RuntimeDir, report: &str) {
    runtime.executable("nbd-serve", &format!("#!/bin/sh\necho '{report}'\n"));
}

#[test]
fn a_mistake_in_a_spec_is_wrong_usage_before_anything_starts() {
    let runtime = RuntimeDir::new();
    let report = r#"{"mistake":"flie:a: no export","relative_paths":[],"warnings":[]}"#;
    nbd_serve_tells(&runtime, report);
    let program = runtime.copied_program();
    for command in [&["attach", "flie:a"][..], &["replace", "nbd0", "flie:a"]] {
        let mut command_line = Command::new(&program);
        command_line.args(command).env("NBD_RUNTIME_DIR", runtime.registry.directory());
        Ran::from(command_line.output().unwrap()).failed(2, "flie:a: no export");
    }
}

#[test]
fn check_config_finds_what_cannot_be_meant() {
    let runtime = RuntimeDir::new();
    let report = r#"{"mistake":null,"relative_paths":["disk.img"],"warnings":["rather large"]}"#;
    nbd_serve_tells(&runtime, report);
    let program = runtime.copied_program();
    let file = runtime.directory.join("devices.toml");
    std::fs::write(
        &file,
        "[a]\nexport = \"file:disk.img\"\n[b]\nprogram = [\"sh\"]\nuser = \"no-such-user\"\n\
         group = \"no-such-group\"\n[c]\nprogram = [\"./none\"]\nsandbox = \"local\"\n\
         [d]\nexternal = true\n[e]\nexternal = true\nuser = \"root\"\nsandbox = \"local\"\n",
    )
    .unwrap();
    let mut command = Command::new(program);
    let ran = Ran::from(command.arg("check-config").arg(&file).output().unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), "d  external\n"), "{ran:?}");
    for words in [
        ":2: a.export: rather large",
        ":2: a.export: disk.img: is a relative path",
        ":5: b.user: no user no-such-user on this machine: `getent passwd`",
        ":6: b.group: no group no-such-group on this machine: `getent group`",
        ":8: c.program: ./none: is a relative path",
        ":8: c.program: ./none: no such program there",
        ":9: c.sandbox: --sandbox needs --user",
        ":14: e.user: a sandbox cannot confine root",
    ] {
        assert_eq!(ran.stderr.matches(words).count(), 1, "{words}: {}", ran.stderr);
    }
    assert_eq!(ran.stderr.lines().count(), 8, "{}", ran.stderr);
}

#[test]
fn a_name_that_is_not_utf8_is_shown_with_the_way_out() {
    use std::os::unix::ffi::OsStrExt;
    let runtime = RuntimeDir::new();
    let mut command = runtime.command(&["attach"]);
    command.arg(std::ffi::OsStr::from_bytes(b"file:a\xff"));
    Ran::from(command.output().unwrap()).failed(
        2,
        "\"file:a\\xFF\" is not UTF-8, which nbd-ctl needs: give the file a second name, like \
         ln -s FILE disk.img",
    );
}

#[test]
fn what_is_not_a_device_is_named() {
    let runtime = RuntimeDir::new();
    for command in ["detach", "status", "restart", "replace", "upgrade", "set", "wait", "adopt"] {
        runtime
            .run(&[command, "/dev/sda"])
            .failed(2, "/dev/sda: not an NBD device: give it as nbd0, /dev/nbd0 or 0");
    }
    runtime
        .run(&["attach", "--device", "nbd0p1", "mem:1M"])
        .failed(2, "nbd0p1: is a partition: give the whole device, nbd0");
}

#[test]
fn a_device_that_is_not_attached_has_exit_status_3() {
    let runtime = RuntimeDir::new();
    for command in ["detach", "status", "restart", "replace", "upgrade", "set", "wait", "adopt"] {
        runtime.run(&[command, "3"]).failed(
            3,
            "nbd3: no such attached device (nothing is attached; see nbd-ctl attach --help)",
        );
    }
    runtime.registry.create_folder(0).unwrap();
    runtime.registry.create_folder(10).unwrap();
    runtime
        .run(&["detach", "nbd3"])
        .failed(3, "nbd3: no such attached device (attached: nbd0, nbd10; see nbd-ctl list)");
}

#[test]
fn help_and_version_are_data() {
    let runtime = RuntimeDir::new();
    let ran = runtime.run(&["--help"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("6    data could not be written"));
    let ran = runtime.run(&["detach", "--help"]);
    assert!(ran.stdout.contains("Example:\n  nbd-ctl detach nbd0"));
    assert_eq!(runtime.run(&["--version"]).code, Some(0));
}

#[test]
fn a_shell_is_told_the_devices_of_now() {
    let runtime = RuntimeDir::new();
    runtime.registry.create_folder(3).unwrap();
    runtime.registry.create_folder(12).unwrap();
    let complete = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nbd-ctl"));
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_COMP_TYPE", "9");
        command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        command.env("NBD_RUNTIME_DIR", runtime.registry.directory());
        let output = command.arg("--").args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for command in ["detach", "status", "restart", "replace", "wait", "adopt"] {
        let told = complete(&["nbd-ctl", command, "nbd"]);
        assert_eq!(told, "nbd3\nnbd12", "{command}");
    }
    assert_eq!(complete(&["nbd-ctl", "det"]), "detach");
    runtime.registry.write_properties(12, Some("backup"), false).unwrap();
    assert_eq!(complete(&["nbd-ctl", "detach", "b"]), "backup");
    let has = |words: &[&str], wanted: &[&str]| {
        let told = complete(words);
        let told: Vec<_> = told.split(|c: char| c.is_control()).collect();
        for word in wanted {
            assert!(told.contains(word), "{word}: {told:?}");
        }
    };
    has(&["nbd-ctl", "attach", ""], &["file:", "mem:", "nbd://", "log@"]);
    has(&["nbd-ctl", "replace", "nbd3", "me"], &["mem:"]);
    let place = runtime.directory.display();
    std::fs::write(runtime.directory.join("disk.img"), "x").unwrap();
    let disk = format!("{place}/disk.img");
    for head in ["file:", "log@file:", "cow:", "cow:a+"] {
        let typed = format!("{head}{place}/di");
        has(&["nbd-ctl", "attach", &typed], &[&format!("{head}{disk}")]);
    }
    has(&["nbd-ctl", "attach", &format!("{place}/di")], &[&format!("file:{disk}")]);
}

#[test]
fn backend_programs_are_looked_for_before_anything_starts() {
    let runtime = RuntimeDir::new();
    let file = runtime.directory.join("plain");
    std::fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    for command in [&["attach"][..], &["replace", "nbd0"]] {
        let with = |program| runtime.run(&[command, &["--", program]].concat());
        with("no-such-backend").failed(
            1,
            "no-such-backend: no such program in PATH: give its path, like ./no-such-backend",
        );
        with("./no-such").failed(1, "./no-such: no such program there: check the path");
        with(file).failed(1, &format!("{file}: is not executable: it must be an executable file"));
        with("/tmp").failed(1, "/tmp: is a directory: it must be an executable file");
    }
}

#[test]
fn the_holder_program_must_exist() {
    let runtime = RuntimeDir::new();
    runtime
        .run(&["attach", "--external"])
        .failed(1, "/nonexistent/holder: no such program there: check the path");
}

#[test]
fn only_root_attaches_and_controls() {
    let runtime = RuntimeDir::new();
    let holder = runtime.listen(0, |_listener| ());
    holder.join().unwrap();
    let program = runtime.copied_program();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).env("NBD_RUNTIME_DIR", runtime.registry.directory());
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        Ran::from(command.current_dir("/").output().unwrap())
    };
    if nix::unistd::geteuid().is_root() {
        let forbidden = "nbd0: permission denied: only root may control it; run nbd-ctl with sudo";
        run(&["status", "nbd0"]).failed(1, forbidden);
        run(&["detach", "nbd0", "--force"]).failed(1, forbidden);
        let ran = run(&["list"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stdout.contains("no permission"), "{ran:?}");
        assert_eq!(ran.stderr, format!("nbd-ctl: {forbidden}\n"));
    }
    run(&["attach", "mem:1M"]).failed(1, "attach needs root: run it with sudo");
}
