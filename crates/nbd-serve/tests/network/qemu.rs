//! qemu-img and qemu-io, which ask for extended headers since version 8.2.

use std::fs;

use nbd_net::testing::Scratch;
use serde_json::Value;

use crate::content::sparse;
use crate::programs::{output, run};
use crate::server::Server;

#[test]
fn qemu_img_knows_the_image() {
    let server = Server::new(&["file:{dir}/disk,create=16M"]);
    let text = output("qemu-img", &["info", "--output=json", &server.uri("")]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["virtual-size"], 16 << 20, "{text}");
    assert_eq!(json["format"], "raw", "{text}");
}

#[test]
fn qemu_img_converts_both_ways_and_compares() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let content = sparse(scratch.path().join("source").as_path());
    let server = Server::new(&["file:{dir}/disk,create=16M", "m=mem:16M"]);
    for export in ["", "m"] {
        let uri = server.uri(export);
        let (source, back) = (path("source"), path(&format!("back{export}")));
        let to_server = ["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri];
        output("qemu-img", &to_server);
        output("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);
        output("qemu-img", &["convert", "-W", "-f", "raw", "-O", "qcow2", &uri, &back]);
        output("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &back, &uri]);
    }
    assert!(fs::read(server.path("disk")).unwrap() == content);
    assert_eq!(server.stop(), [""; 0]);
}

#[test]
fn qemu_img_maps_what_is_allocated() {
    let scratch = Scratch::new();
    sparse(&scratch.path().join("disk"));
    let server = Server::in_directory(scratch, &["file:{dir}/disk"]);
    let map = ["map", "--output=json", "-f", "raw", &server.uri("")];
    let text = output("qemu-img", &map);
    let json: Value = serde_json::from_str(&text).unwrap();
    let extents: Vec<_> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| (extent["start"].as_u64().unwrap(), extent["zero"].as_bool().unwrap()))
        .collect();
    assert_eq!(extents, [(0, false), (4 << 20, true), (15 << 20, false)], "{text}");
}

#[test]
fn a_qcow2_image_can_live_in_an_export() {
    let server = Server::new(&["mem:64M"]);
    let uri = server.uri("");
    output("qemu-img", &["create", "-f", "qcow2", &uri, "32M"]);
    let write = ["-f", "qcow2", "-c", "write -P 0x5a 1M 3M", "-c", "flush", &uri];
    output("qemu-io", &write);
    let read = ["-f", "qcow2", "-c", "read -P 0x5a 1M 3M", "-c", "read -P 0 4M 1M", &uri];
    output("qemu-io", &read);
    output("qemu-img", &["check", "-f", "qcow2", &uri]);
}

#[test]
fn qemu_io_sends_each_command() {
    let server = Server::new(&["file:{dir}/disk,create=16M", "m=mem:16M"]);
    for export in ["", "m"] {
        let uri = server.uri(export);
        let mut arguments = vec!["-f", "raw"];
        for command in [
            "write -P 0x11 0 1M",
            "write -f -P 0x22 1M 64k",
            "aio_write -P 0x33 2M 64k",
            "aio_write -P 0x44 3M 64k",
            "aio_flush",
            "flush",
            "read -P 0x11 0 1M",
            "read -P 0x22 1M 64k",
            "read -P 0x33 2M 64k",
            "read -P 0x44 3M 64k",
            "write -z 0 64k",
            "write -z -u 64k 64k",
            "read -P 0 0 128k",
            "read -P 0x11 128k 64k",
            "discard 128k 64k",
            "read -P 0x11 192k 64k",
        ] {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let (code, stdout, stderr) = run("qemu-io", &arguments);
        let is_good = code == 0 && !stdout.contains("failed") && stderr.is_empty();
        assert!(is_good, "{export}: {code} {stdout}{stderr}");
    }
    assert_eq!(server.stop(), [""; 0]);
}

#[test]
fn qemu_does_not_write_where_nobody_may() {
    let server = Server::new(&["--read-only", "mem:1M"]);
    let write = ["-f", "raw", "-c", "write 0 512", &server.uri("")];
    let (code, stdout, stderr) = run("qemu-io", &write);
    assert_ne!(code, 0, "{stdout}{stderr}");
    output("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 512", &server.uri("")]);
}
