//! What programs that are compiled with one release and run with another rely on: the header, the
//! symbols and their version, the soname, the layout of structures. Each is compared with a file, so
//! that no change goes unnoticed. `NBD_UPDATE=1` writes the files anew.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use nbdbackend::abi::{
    nbdb_callbacks, nbdb_geometry, nbdb_open_options, nbdb_request, nbdb_serve_options,
};

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a file of this crate with what it has to be.
fn compare(file: &str, expected: &str) {
    let path = crate_dir().join(file);
    if std::env::var_os("NBD_UPDATE").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{file} is out of date: NBD_UPDATE=1 writes this:\n{expected}");
}

/// The shared library that cargo has built for this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let directory = test.parent().unwrap();
    let path = directory.join("libnbdbackend.so");
    assert!(path.exists(), "{} is not there", path.display());
    path
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_header_is_that_of_the_sources() {
    let config = cbindgen::Config::from_file(crate_dir().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_src(crate_dir().join("src/abi.rs"))
        .with_src(crate_dir().join("src/functions.rs"))
        .with_src(crate_dir().join("src/queue_functions.rs"))
        .with_config(config)
        .generate()
        .unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    compare("include/nbdbackend.h", &String::from_utf8(header).unwrap());
}

#[test]
fn the_pkg_config_file_has_the_version_of_the_crate() {
    let text = std::fs::read_to_string(crate_dir().join("nbdbackend.pc")).unwrap();
    let version = format!("\nVersion: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&version), "nbdbackend.pc has not{version}");
}

#[test]
fn the_python_package_has_the_version_of_the_crate() {
    let path = crate_dir().join("../../python/nbdbackend/pyproject.toml");
    let version = format!("\nversion = \"{}\"\n", env!("CARGO_PKG_VERSION"));
    assert!(std::fs::read_to_string(path).unwrap().contains(&version), "it has not{version}");
}

macro_rules! layout {
    ($text:ident, $name:ident { $($member:ident),* }) => {
        let size = size_of::<$name>();
        writeln!($text, "struct {} {size}", stringify!($name)).unwrap();
        $( writeln!($text, "  {} {}", offset_of!($name, $member), stringify!($member)).unwrap(); )*
    };
}

#[test]
fn symbols_soname_and_structures_are_those_of_the_last_release() {
    let library = library().display().to_string();
    let dynamic = output("readelf", &["-d", &library]);
    let soname = dynamic.lines().find(|line| line.contains("SONAME")).unwrap();
    let soname = soname.rsplit_once('[').unwrap().1.trim_end_matches(']');
    let mut text = format!("soname {soname}\n");
    // Version and name of what is exported.
    let mut symbols: Vec<_> = output("objdump", &["-T", &library])
        .lines()
        .filter(|line| !line.contains("*UND*") && line.contains(" DF .text"))
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            format!("{} {}", words[words.len() - 1], words[words.len() - 2])
        })
        .collect();
    symbols.sort();
    for symbol in symbols {
        writeln!(text, "{symbol}").unwrap();
    }
    layout!(text, nbdb_open_options { struct_size, device, replay });
    layout!(text, nbdb_geometry { struct_size, size, block_size, flags });
    layout!(text, nbdb_serve_options { struct_size, description, context, flags, max_threads });
    layout!(
        text,
        nbdb_callbacks { struct_size, read, write, flush, trim, zero, cache, granted, close }
    );
    layout!(
        text,
        nbdb_request {
            handle,
            context,
            offset,
            length,
            data,
            device,
            error,
            r#type,
            flags,
            reserved
        }
    );
    compare("abi.txt", &text);
}
