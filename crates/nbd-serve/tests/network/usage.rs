//! Arguments and messages.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use nbd_net::testing::{Scratch, certificates};

use crate::server::{PROGRAM, Server};

fn refused(arguments: &[&str], code: i32, words: &str) {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("nbd-serve: "), "{arguments:?}: {stderr}");
    assert_eq!(stderr.matches(words).count(), 1, "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_arguments_are_named_and_exit_with_2() {
    let listen = "--listen=unix:/nonexistent/socket";
    for (arguments, words) in [
        (&[listen] as &[&str], "required arguments were not provided"),
        (&["--listen=/run/nbd.sock", "mem:1M"], "write unix:PATH, tcp:HOST:PORT, vsock:PORT"),
        (&["--listen=tcp:10809", "mem:1M"], "write tcp::10809 for this port"),
        (&[listen, "a=mem:1M", "a=mem:1M"], "there are two exports named \"a\""),
        (&[listen, "mem:1M", "mem:2M"], "give each its own name, like NAME=SPEC"),
        (&[listen, "a=flie:b"], "a=flie:b: there is no export `flie:`; did you mean `file:`?"),
        (&["mem:1M", "mem:2M"], "a device has one SPEC, and here are 2"),
        (&[listen, "--join=nbd0", "mem:1M"], "cannot be used with"),
        (&[listen, "--print-geometry", "mem:1M"], "cannot be used with"),
        (&["--read-only", "mem:1M"], "not provided:\n  --listen <WHERE>"),
        (&[listen, "--socket-mode=888", "mem:1M"], "write octal digits, like 660"),
        (&[listen, "--max-payload=1K", "mem:1M"], "write a size from 4K to 1G"),
        (&[listen, "--grace=soon", "mem:1M"], "write a number of seconds above 0"),
        (&[listen, "--tls=required", "mem:1M"], "--tls required needs --tls-certificates"),
        (&[listen, "--tls=off", "--tls-certificates=/", "mem:1M"], "contradict each other"),
        (
            &[listen, "--tls-verify-peer", "mem:1M"],
            "not provided:\n  --tls-certificates <DIRECTORY>",
        ),
    ] {
        refused(arguments, 2, words);
    }
}

#[test]
fn failures_name_their_object_and_exit_with_1() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), vec![0; 4096]).unwrap();
    let listen = format!("--listen=unix:{}", path("socket"));
    let in_the_way = format!("--listen=unix:{}", path("file"));
    certificates(scratch.path()).unwrap();
    let empty = format!("--tls-certificates={}", path("none"));
    for (arguments, words) in [
        (&[&*listen, "file:/nonexistent/disk"] as &[&str], "there is no such file"),
        (&[&in_the_way, "mem:1M"], "is in the way and no socket"),
        (&["--listen=unix:/nonexistent/socket", "mem:1M"], "no directory /nonexistent; make it"),
        (&["--listen=-", "mem:1M"], "stdin is no connected socket"),
        (&["--listen=systemd", "mem:1M"], "no sockets were passed to this process"),
        (&[&listen, &empty, "mem:1M"], "server-cert.pem, which is needed for TLS"),
    ] {
        refused(arguments, 1, words);
    }
}

#[test]
fn a_file_or_socket_in_use_is_refused_with_the_culprit() {
    let server = Server::of_content(&[0; 4096]);
    let file = format!("file:{}", server.path("disk").display());
    let other = format!("--listen=unix:{}", server.path("other").display());
    refused(&[&other, &file], 1, "is in use by nbd-serve (process ");
    let socket = format!("--listen=unix:{}", server.path("socket").display());
    refused(&[&socket, "mem:1M"], 1, "another server does");
}

/// Without any capability, also where these tests are run by root.
fn unprivileged(arguments: &[&str]) -> Command {
    let is_root = nix::unistd::geteuid().is_root();
    let mut command = Command::new(if is_root { "setpriv" } else { PROGRAM });
    if is_root {
        command.args(["--bounding-set=-all", "--inh-caps=-all", PROGRAM]);
    }
    command.args(arguments);
    command
}

fn refused_unprivileged(place: &str, words: &str) {
    let listen = format!("--listen={place}");
    let output = unprivileged(&[&listen, "mem:1M"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{place}: {stderr}");
    assert!(stderr.starts_with("nbd-serve: cannot listen on "), "{stderr}");
    assert!(stderr.contains(words), "{words}: {stderr}");
}

#[test]
fn what_is_not_allowed_has_a_way_out() {
    let scratch = Scratch::new();
    let path = |name: &str| format!("{}/{name}", scratch.path().display());
    let set_mode = |name: &str, mode| {
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // A directory in which nothing can be made, and a dead server's socket in it.
    std::fs::create_dir(path("closed")).unwrap();
    drop(UnixListener::bind(path("closed/dead")).unwrap());
    set_mode("closed", 0o555);
    let place = |name: &str| format!("unix:{}", path(name));
    refused_unprivileged(&place("closed/new"), "may not make a socket in ");
    refused_unprivileged(&place("closed/dead"), "a dead server has left there cannot be removed");
    // A socket that nobody may connect to.
    drop(UnixListener::bind(path("foreign")).unwrap());
    set_mode("foreign", 0);
    refused_unprivileged(&place("foreign"), "is another user's");
    set_mode("closed", 0o755);
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    // Containers often let everybody have every port.
    if first.trim().parse::<u16>().unwrap() > 1 {
        refused_unprivileged("tcp:127.0.0.1:1", "choose one above 1023");
    }
}

#[test]
fn help_shows_how_to_serve_the_network() {
    let output = Command::new(PROGRAM).arg("--help").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    for words in [
        "nbd-serve --listen unix:/run/nbd.sock file:disk.img",
        "--tls-certificates <DIRECTORY>",
        "--max-connections <NUMBER>",
        "--max-memory <SIZE>",
        "nbd-serve --list nbd+unix:///?socket=/run/nbd.sock",
    ] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
}
