//! nbdinfo and nbdcopy; and our own list of exports.

use std::fs;

use nbd_net::testing::Scratch;
use serde_json::Value;

use crate::content::{pattern, sparse};
use crate::programs::{output, run};
use crate::server::{PROGRAM, Server};

fn info(arguments: &[&str]) -> String {
    output("nbdinfo", arguments)
}

#[test]
fn nbdinfo_is_told_everything() {
    let server = Server::of_content(&pattern(1 << 20));
    let text = info(&["--json", &server.uri("")]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["structured"], true);
    assert_eq!(json["TLS"], false);
    let export = &json["exports"][0];
    for (field, value) in [
        ("export-name", Value::from("")),
        ("export-size", (1 << 20).into()),
        ("is_read_only", false.into()),
        ("is_rotational", false.into()),
        ("can_cache", true.into()),
        ("can_df", true.into()),
        ("can_fast_zero", true.into()),
        ("can_flush", true.into()),
        ("can_fua", true.into()),
        ("can_multi_conn", true.into()),
        ("can_trim", true.into()),
        ("can_zero", true.into()),
        ("block_size_minimum", 1.into()),
        ("block_size_preferred", 4096.into()),
        ("block_size_maximum", (64 << 20).into()),
    ] {
        assert_eq!(export[field], value, "{field}: {text}");
    }
    assert_eq!(export["contexts"], Value::from(vec!["base:allocation"]));
    let description = export["description"].as_str().unwrap();
    assert_eq!(description, format!("file:{}", server.path("disk").display()));
    assert_eq!(info(&["--size", &server.uri("")]).trim(), (1 << 20).to_string());
}

#[test]
fn nbdinfo_asks_yes_or_no() {
    let server = Server::new(&["m=mem:1M", "d=file:{dir}/new,create=1M,block=4096"]);
    let answer = |question: [&str; 2], export| {
        let (code, _, words) = run("nbdinfo", &[question[0], question[1], &server.uri(export)]);
        assert!(matches!(code, 0 | 2), "{question:?}: {code} {words}");
        code == 0
    };
    for capability in [
        "connect",
        "read",
        "write",
        "zero",
        "fast-zero",
        "trim",
        "flush",
        "fua",
        "multi-conn",
        "df",
    ] {
        assert!(answer(["--can", capability], "m"), "{capability}");
        assert!(answer(["--can", capability], "d"), "{capability}");
    }
    assert!(answer(["--can", "cache"], "d"));
    // Memory is as fast as a cache.
    assert!(!answer(["--can", "cache"], "m"));
    assert!(!answer(["--is", "read-only"], "m"));
    assert!(!answer(["--is", "rotational"], "m"));
    assert!(!answer(["--is", "tls"], "m"));
    let read_only = Server::new(&["--read-only", "mem:1M"]);
    let (code, ..) = run("nbdinfo", &["--is", "read-only", &read_only.uri("")]);
    assert_eq!(code, 0);
    let (code, ..) = run("nbdinfo", &["--can", "write", &read_only.uri("")]);
    assert_eq!(code, 2);
}

#[test]
fn nbdinfo_lists_exports() {
    let server = Server::new(&["first=mem:1M", "mem:2M", "with spaces=mem:3M"]);
    let text = info(&["--list", "--json", &server.uri("")]);
    let json: Value = serde_json::from_str(&text).unwrap();
    let exports = json["exports"].as_array().unwrap();
    let names: Vec<_> = exports.iter().map(|export| export["export-name"].as_str()).collect();
    assert_eq!(names, [Some("first"), Some(""), Some("with spaces")], "{text}");
    let sizes: Vec<_> = exports.iter().map(|export| export["export-size"].as_u64()).collect();
    assert_eq!(sizes, [Some(1 << 20), Some(2 << 20), Some(3 << 20)], "{text}");
    let (code, _, words) = run("nbdinfo", &[&server.uri("none")]);
    assert_ne!(code, 0);
    assert!(words.contains("No such file or directory"), "{words}");
}

#[test]
fn nbdinfo_maps_what_is_allocated() {
    let scratch = Scratch::new();
    sparse(&scratch.path().join("disk"));
    let server = Server::in_directory(scratch, &["file:{dir}/disk", "m=mem:1T"]);
    let map = |export: &str| {
        let text = info(&["--map", "--json", &server.uri(export)]);
        let json: Value = serde_json::from_str(&text).unwrap();
        let extents = json.as_array().unwrap().iter();
        let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
        extents
            .map(|extent| {
                (number(extent, "offset"), number(extent, "length"), number(extent, "type"))
            })
            .collect::<Vec<_>>()
    };
    const MIB: u64 = 1 << 20;
    assert_eq!(map(""), [(0, 4 * MIB, 0), (4 * MIB, 11 * MIB, 3), (15 * MIB, MIB, 0)]);
    // More than fits into 32 bits, which this version of nbdinfo asks for piece by piece.
    assert_eq!(map("m"), [(0, 1 << 40, 3)]);
    let totals = info(&["--map", "--totals", &server.uri("")]);
    assert!(totals.contains("hole,zero"), "{totals}");
}

#[test]
fn nbdcopy_copies_both_ways() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name);
    let content = sparse(&path("source"));
    let server = Server::new(&["file:{dir}/disk,create=16M", "m=mem:16M"]);
    for export in ["", "m"] {
        let uri = server.uri(export);
        let (source, back) = (path("source"), path(&format!("back{export}")));
        output("nbdcopy", &["--flush", source.to_str().unwrap(), &uri]);
        output("nbdcopy", &["--connections=4", &uri, back.to_str().unwrap()]);
        assert!(fs::read(&back).unwrap() == content, "{export}: something else came back");
        // It knows of holes.
        use std::os::unix::fs::MetadataExt;
        assert!(back.metadata().unwrap().blocks() * 512 < 6 << 20);
    }
    assert!(fs::read(server.path("disk")).unwrap() == content);
    // From one export to the other, by clients that wait for nobody.
    output("nbdcopy", &["--requests=64", &server.uri(""), &server.uri("m")]);
    assert_eq!(server.stop(), [""; 0]);
}

/// The part that is gone is an error, and never zeroes with success.
#[test]
fn tools_fail_to_copy_a_file_that_was_cut_off_while_it_was_served() {
    let scratch = Scratch::new();
    let back = scratch.path().join("back");
    let back = back.to_str().unwrap();
    for layers in ["", "cow:"] {
        let directory = Scratch::new();
        let disk = directory.path().join("disk");
        fs::write(&disk, pattern(4 << 20)).unwrap();
        let end = if layers.is_empty() { "" } else { "+{dir}/diff" };
        let export = format!("{layers}file:{{dir}}/disk{end}");
        let server = Server::in_directory(directory, &[&export]);
        fs::File::options().write(true).open(&disk).unwrap().set_len(1 << 20).unwrap();
        let uri = server.uri("");
        for (program, arguments) in [
            ("nbdcopy", vec![&*uri, back]),
            ("qemu-img", vec!["convert", "-f", "raw", "-O", "raw", &uri, back]),
        ] {
            let (code, _, words) = run(program, &arguments);
            assert_ne!(code, 0, "{program} copies what is gone from {export}: {words}");
        }
        let (code, text, _) = run("nbdinfo", &["--map", &uri]);
        assert!(code != 0 || !text.contains("hole,zero"), "{text}");
        let zero = ["-f", "raw", "-c", "write -z 2M 64k", &uri];
        let (code, text, words) = run("qemu-io", &zero);
        // A diff is whole, so zeroes can be written there.
        assert_eq!(code != 0, layers.is_empty(), "{export}: {text}{words}");
    }
}

#[test]
fn exports_of_servers_are_listed_in_words() {
    let list = |uri: &str| output(PROGRAM, &["--list", uri]);
    let server = Server::new(&["file:{dir}/new,create=1M", "scratch=readonly@mem:64K"]);
    let text = list(&server.uri(""));
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "SIZE", "ACCESS", "DESCRIPTION"], "{text}");
    assert_eq!(lines[1][..3], ["(default)", "1M", "rw"], "{text}");
    assert!(lines[1][3].starts_with("file:"), "{text}");
    assert_eq!(lines[2][..3], ["scratch", "64K", "ro"], "{text}");
    assert!(lines[2][3].contains("mem:64K"), "{text}");
    assert_eq!(lines.len(), 3, "{text}");
    // Another project's server.
    let scratch = Scratch::new();
    let socket = scratch.path().join("socket").display().to_string();
    let uri = format!("nbd+unix:///?socket={socket}");
    let command = format!("nbdkit -U {socket} --run '{PROGRAM} --list {uri}' memory 1M");
    let text = output("sh", &["-c", &command]);
    assert!(text.contains("(default)") && text.contains("1M"), "{text}");
}

#[test]
fn a_list_of_what_is_no_server_is_refused() {
    for (spec, code, words) in [
        ("mem:1M", 2, "--list needs the URI of a server"),
        ("nbd+unix:///?socket=/nonexistent/socket", 1, "check the path"),
    ] {
        let (found, stdout, stderr) = run(PROGRAM, &["--list", spec]);
        assert_eq!(found, code, "{spec}: {stderr}");
        assert!(stdout.is_empty() && stderr.contains(words), "{spec}: {stderr}");
    }
}
