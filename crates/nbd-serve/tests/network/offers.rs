//! What is offered is what the storage can do, through every layer: compared with what nbdkit says
//! of itself.

use std::process::{Child, Command, Stdio};

use nbd_net::testing::Scratch;
use serde_json::Value;

use crate::programs::output;
use crate::server::Server;

/// What a server may offer, and how nbdkit's eval plugin says yes.
const ABILITIES: [(&str, &str); 8] = [
    ("can_flush", "exit 0"),
    ("can_fua", "echo native"),
    ("can_trim", "exit 0"),
    ("can_zero", "exit 0"),
    ("can_fast_zero", "exit 0"),
    ("can_cache", "echo native"),
    ("can_multi_conn", "exit 0"),
    ("is_rotational", "exit 0"),
];

/// A plugin that has some of these.
fn plugin(has: impl Fn(&str) -> bool, can_write: bool) -> Vec<String> {
    let mut words: Vec<String> =
        ["eval", "get_size=echo 1048576", "extents=echo 0 1048576"].map(String::from).into();
    words.push("pread=dd if=/dev/zero count=$3 iflag=count_bytes status=none".into());
    words.push("pwrite=cat >/dev/null".into());
    for command in ["flush", "trim", "zero", "cache"] {
        words.push(format!("{command}=exit 0"));
    }
    words.push(format!("can_write=exit {}", if can_write { 0 } else { 3 }));
    words.push(format!("can_extents=exit {}", if has("can_extents") { 0 } else { 3 }));
    for (name, yes) in ABILITIES {
        let no = if yes.starts_with("echo") { "echo none" } else { "exit 3" };
        words.push(format!("{name}={}", if has(name) { yes } else { no }));
    }
    words
}

struct Nbdkit {
    child: Child,
    scratch: Scratch,
}

impl Nbdkit {
    fn new(plugin: &[String]) -> Self {
        let scratch = Scratch::new();
        let child = Command::new("nbdkit")
            .args(["-f", "--exit-with-parent", "-U"])
            .arg(scratch.path().join("upstream"))
            .args(plugin)
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit must be installed: see scripts/setup");
        Self { child, scratch }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.scratch.path().join("upstream").display())
    }

    fn wait(&self) {
        let socket = self.scratch.path().join("upstream");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What nbdinfo says of an export.
fn offer(uri: &str) -> Value {
    let json: Value = serde_json::from_str(&output("nbdinfo", &["--json", uri])).unwrap();
    json["exports"][0].clone()
}

const FIELDS: [&str; 9] = [
    "is_read_only",
    "is_rotational",
    "can_cache",
    "can_fast_zero",
    "can_flush",
    "can_fua",
    "can_trim",
    "can_zero",
    "contexts",
];

/// Serves what upstream has, with these layers on it, and compares what is offered.
fn offers_the_same(upstream: &Nbdkit, layers: &str, what: &str) -> Server {
    let theirs = offer(&upstream.uri());
    let server = Server::new(&[&format!("{layers}{}", upstream.uri())]);
    let ours = offer(&server.uri(""));
    for field in FIELDS {
        assert_eq!(ours[field], theirs[field], "{field} of {layers} without {what}");
    }
    // One that has a single client keeps what all of ours have written in order.
    assert_eq!(ours["can_multi_conn"], Value::from(true));
    server
}

#[test]
fn what_upstream_cannot_do_is_not_offered() {
    let names = ABILITIES.map(|(name, _)| name);
    for missing in [&names[..], &["can_extents"], &[]].concat() {
        // Without zeroes there are no fast ones.
        let has =
            |name: &str| name != missing && !(missing == "can_zero" && name == "can_fast_zero");
        let upstream = Nbdkit::new(&plugin(has, true));
        upstream.wait();
        offers_the_same(&upstream, "", missing);
    }
    let upstream = Nbdkit::new(&plugin(|_| true, false));
    upstream.wait();
    offers_the_same(&upstream, "", "writing");
}

#[test]
fn layers_offer_what_is_below_them() {
    let layers = ["delay:1us@", "error:0@", "rate:1G@", "log@", "record:{dir}/log@"];
    for missing in ["can_flush", "can_fua", "can_zero", "can_extents"] {
        let has =
            |name: &str| name != missing && !(missing == "can_zero" && name == "can_fast_zero");
        let upstream = Nbdkit::new(&plugin(has, true));
        upstream.wait();
        for layer in layers {
            offers_the_same(&upstream, layer, missing);
        }
        // Through two servers of ours.
        let first = offers_the_same(&upstream, "", missing);
        let second = Server::new(&[&first.uri("")]);
        for field in FIELDS {
            let (ours, theirs) = (&offer(&second.uri(""))[field], &offer(&upstream.uri())[field]);
            assert_eq!(ours, theirs, "{field} without {missing}");
        }
    }
}

#[test]
fn what_is_read_only_offers_nothing_that_writes() {
    for arguments in [
        &["--read-only", "file:{dir}/disk"] as &[&str],
        &["readonly@file:{dir}/disk"],
        &["file:{dir}/disk,ro"],
        &["readonly@cow:file:{dir}/disk+{dir}/diff"],
        &["pattern:1M"],
    ] {
        let scratch = Scratch::new();
        std::fs::write(scratch.path().join("disk"), vec![7; 1 << 20]).unwrap();
        let server = Server::in_directory(scratch, arguments);
        let ours = offer(&server.uri(""));
        assert_eq!(ours["is_read_only"], Value::from(true), "{arguments:?}");
        for field in ["can_trim", "can_zero", "can_fast_zero"] {
            assert_eq!(ours[field], Value::from(false), "{field} of {arguments:?}");
        }
    }
}

/// Memory has nothing to make durable, and clients like to ask. A part of it is memory, too.
#[test]
fn a_flush_of_memory_succeeds() {
    for export in ["mem:1M", "delay:1us@offset:512K@mem:1M", "log@mem:1M"] {
        let server = Server::new(&[export]);
        let ours = offer(&server.uri(""));
        for field in ["can_flush", "can_fua"] {
            assert_eq!(ours[field], Value::from(true), "{field} of {export}");
        }
        let script = "h.connect_uri(uri)\nh.pwrite(b'x' * 512, 0, nbd.CMD_FLAG_FUA)\nh.flush()";
        output("nbdsh", &["-c", &format!("uri = {:?}", server.uri("")), "-c", script]);
    }
}

/// A flush that cannot be had is the client's mistake, and not a failure of the storage.
#[test]
fn a_flush_that_was_not_offered_is_refused_and_the_storage_is_as_good_as_before() {
    let upstream = Nbdkit::new(&plugin(|name| name != "can_flush" && name != "can_fua", true));
    upstream.wait();
    let server = Server::new(&[&upstream.uri()]);
    let script = "
import errno
h.set_strict_mode(0)
h.connect_uri(uri)
assert not h.can_flush() and not h.can_fua()
def refused(call):
    try:
        call()
    except nbd.Error as ex:
        assert ex.errnum == errno.EINVAL, ex
    else:
        assert False, 'it did not fail'
for _ in range(2):
    refused(h.flush)
    refused(lambda: h.pwrite(b'x' * 4096, 0, nbd.CMD_FLAG_FUA))
    h.pwrite(b'x' * 4096, 0)
    h.pread(4096, 0)
";
    output("nbdsh", &["-c", &format!("uri = {:?}", server.uri("")), "-c", script]);
    let lines = server.stop();
    assert!(!lines.iter().any(|line| line.contains("a flush failed")), "{lines:#?}");
}
