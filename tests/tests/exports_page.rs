//! Every command of docs/exports.md that needs no device does what the page says.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nbd_tests::ctl::bin_dir;
use nbd_tests::temp::TempDir;

const MIB: u64 = 1 << 20;

/// The files that the page speaks of.
fn prepare(files: &TempDir) {
    let _ = files.image("base.img", MIB);
    let disk = fs::File::options().write(true).open(files.image("disk.img", 8 * MIB)).unwrap();
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..].copy_from_slice(&4096u32.to_le_bytes());
    disk.write_all_at(&entry, 446).unwrap();
    disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
    fs::write(files.join("disk.log"), log()).unwrap();
}

/// A recording of three writes to 64 KiB of zeroes, and a flush; see `record/log.rs`.
fn log() -> Vec<u8> {
    let mut log = b"NBDREC\0\x01".to_vec();
    log.extend((64u64 << 10).to_le_bytes());
    for (kind, offset, length) in [(1u32, 0u64, 512u64), (1, 4096, 512), (3, 2, 0), (1, 8192, 512)]
    {
        let mut entry = [kind.to_le_bytes(), [0; 4]].concat();
        entry.extend(offset.to_le_bytes());
        entry.extend(length.to_le_bytes());
        entry.extend(crc32fast::hash(&entry).to_le_bytes());
        entry.extend([0; 4]);
        log.extend(entry);
        log.extend(vec![0; length as usize]);
    }
    log
}

#[test]
fn every_command_of_the_page_works() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/exports.md");
    let page = fs::read_to_string(page).unwrap();
    let commands: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(commands.len() > 20, "only {} commands on the page", commands.len());
    let files = TempDir::new();
    prepare(&files);
    let path =
        format!("{}:/sbin:/usr/sbin:{}", bin_dir().display(), std::env::var("PATH").unwrap());
    for command in commands {
        // Serving makes a diff, and here nothing is served; nbd-serve's own tests commit one.
        let is_about_a_diff = command.contains(" commit ") || command.contains(" discard ");
        let is_about_a_file_system = command.contains("e2fsck");
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(files.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if is_about_a_diff {
            assert!(words.contains("nothing to commit or discard"), "{command}: {words}");
        } else if is_about_a_file_system {
            // The recording has none, and the checker says so for every image.
            assert!(words.contains("the checker fails on "), "{command}: {words}");
        } else {
            assert!(output.status.success(), "{command}: {words}");
            assert!(!words.contains("failed"), "{command}: {words}");
        }
        if command.contains("--print-geometry") {
            let shape: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(shape["size"].as_u64().unwrap() >= MIB, "{command}: {shape}");
        }
    }
    assert_eq!(fs::metadata(files.join("broken.img")).unwrap().len(), 64 << 10);
    assert!(!files.join("new.img").exists() && !files.join("changes.cow").exists());
}
