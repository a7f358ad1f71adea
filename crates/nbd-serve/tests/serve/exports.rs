//! Exports on top of exports: what they show, and what a successor must bring.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use nbd_control::settings;
use nbd_proto::{CommandFlags, CommandType, NbdError};

use crate::holder::{Directory, Holder, PROGRAM};

const MIB: u64 = 1 << 20;

/// Runs one of the tools; its exit code, and all that it said.
fn tool(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(words).unwrap())
}

/// A disk of 4 MiB whose second partition is the third mebibyte, full of nines.
fn partitioned(directory: &Directory) -> String {
    let path = directory.path("disk");
    let file = File::create_new(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    for (index, start) in [(0u64, 2048u32), (1, 4096)] {
        let mut entry = [0; 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&2048u32.to_le_bytes());
        file.write_all_at(&entry, 446 + 16 * index).unwrap();
    }
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    file.write_all_at(&vec![9; MIB as usize], 2 * MIB).unwrap();
    path.display().to_string()
}

#[test]
fn a_partition_is_a_device_and_its_neighbour_is_another_one() {
    let directory = Directory::new();
    let disk = partitioned(&directory);
    let mut holder = Holder::new();
    let server = holder.serve(&format!("partition:2@file:{disk}"));
    assert_eq!(holder.stored_fd_names(), ["range", "range.file"]);
    assert_eq!(holder.read(MIB - 512, 512), [9; 512]);
    holder.write(0, &[1; 512]);
    assert_eq!(holder.ask(CommandType::READ, CommandFlags::NONE, MIB, 512), NbdError::EINVAL);
    server.kill();
    // It has the same size.
    let complaint = holder.serve_in_vain(&format!("partition:1@file:{disk}"));
    assert!(
        complaint.contains("is not the part that was attached, which is 1M at 2M"),
        "{complaint}"
    );
    let complaint = holder.serve_in_vain("mem:1M");
    assert!(complaint.contains("serves range and not memory since it was attached"), "{complaint}");
    let _server = holder.serve(&format!("log:on=off@offset:2M+1M@file:{disk}"));
    assert_eq!(holder.read(0, 512), [1; 512]);
    let data = fs::read(&disk).unwrap();
    assert!(data[2 * MIB as usize..][..512] == [1; 512] && data[MIB as usize..][..512] == [0; 512]);
}

#[test]
fn parts_that_are_not_there_are_named() {
    let directory = Directory::new();
    let disk = partitioned(&directory);
    for (spec, words) in [
        (
            format!("partition:3@file:{disk}"),
            "partition 3: there is no partition 3; there are 1, 2",
        ),
        (format!("partition:1@partition:1@file:{disk}"), "there is no partition table"),
        ("partition:1@mem:1M".into(), "its content is not known before it is served"),
        (format!("offset:4M@file:{disk}"), "offset 4M: is not within the 4M of what is below it"),
        (format!("offset:1M+4M@file:{disk}"), "offset 5M: is not within"),
        (format!("offset:100@file:{disk}"), "offset 100: is not a multiple of the block size 512"),
        ("delay:1ms@file:/nonexistent".into(), "/nonexistent: there is no such file"),
    ] {
        let (code, said) = tool(&["--print-geometry", &spec]);
        assert_eq!(code, 1, "{spec}: {said}");
        assert!(said.contains(words), "{spec}: {said}");
    }
}

#[test]
fn what_is_read_only_does_not_offer_to_be_written_to() {
    let directory = Directory::new();
    let disk = partitioned(&directory);
    let mut holder = Holder::new();
    let server = holder.serve(&format!("readonly@file:{disk}"));
    assert_eq!(holder.ask(CommandType::TRIM, CommandFlags::NONE, 0, 512), NbdError::EPERM);
    assert_eq!(holder.read(2 * MIB, 512), [9; 512]);
    server.kill();
    let mut holder = Holder::new();
    let _server = holder.serve("pattern:1M");
    assert_eq!(holder.stored_fd_names(), [""; 0]);
    assert_eq!(holder.read(0x1200, 512)[0x38..0x40], 0x1238u64.to_be_bytes());
    let mut holder = Holder::new();
    let _server = holder.serve("null:1M");
    holder.write(0, &[1; 512]);
    assert_eq!(holder.read(0, 512), [0; 512]);
}

/// The holder stores the value, and whoever serves reads it.
#[test]
fn a_setting_outlives_the_backend() {
    let mut holder = Holder::new();
    let server = holder.serve("error:errno=ENOSPC@mem:1M");
    assert_eq!(holder.stored_fd_names(), ["settings", "memory"]);
    let table = holder.stored_fd("settings");
    assert!(settings::is_memory(&table));
    holder.write(0, &[1; 512]);
    let set = |text: &str| {
        let changes = settings::plan(&settings::load(&table).unwrap(), &[text]).unwrap();
        settings::change(&table, &changes).unwrap();
    };
    set("error.write=1");
    holder.send(CommandType::WRITE, 512, 512, &[2; 512]);
    assert_eq!(holder.reply(), NbdError::ENOSPC);
    server.kill();
    let server = holder.serve("error:errno=ENOSPC@mem:1M");
    holder.send(CommandType::WRITE, 512, 512, &[2; 512]);
    assert_eq!(holder.reply(), NbdError::ENOSPC);
    server.kill();
    // What was set stays set, unless the backend is started with something else by now.
    let server = holder.serve("delay:1us@error:read=1@mem:1M");
    assert_eq!(settings::load(&table).unwrap()[0].name, "delay.read");
    holder.send(CommandType::WRITE, 512, 512, &[2; 512]);
    assert_eq!(holder.reply(), NbdError::EIO);
    holder.send(CommandType::READ, 512, 512, &[]);
    assert_eq!(holder.reply(), NbdError::EIO);
    server.kill();
    // Such layers do not change where the data is, so they may come and go.
    let server = holder.serve("rate:1G@mem:1M");
    holder.write(512, &[3; 512]);
    server.kill();
    let _server = holder.serve("mem:1M");
    assert_eq!(holder.read(0, 1024), [[1; 512], [3; 512]].concat());
    assert!(settings::load(&table).unwrap().is_empty());
}

#[test]
fn a_diff_keeps_the_base_clean_until_it_is_committed() {
    let directory = Directory::new();
    let disk = partitioned(&directory);
    let before = fs::read(&disk).unwrap();
    let diff = directory.path("diff").display().to_string();
    let spec = format!("cow:{disk}+{diff}");
    let mut holder = Holder::new();
    let server = holder.serve(&spec);
    assert_eq!(holder.stored_fd_names(), ["diff", "base.file"]);
    holder.write(2 * MIB + 512, &[1; 512]);
    server.kill();
    let (code, said) = tool(&["commit", &spec]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("diff: is in use by"), "{said}");
    let server = holder.serve(&spec);
    assert_eq!(holder.read(2 * MIB, 1536), [[9; 512], [1; 512], [9; 512]].concat());
    assert_eq!(holder.ask(CommandType::FLUSH, CommandFlags::NONE, 0, 0), NbdError::SUCCESS);
    holder.detach();
    assert_eq!(server.end().0.code(), Some(0));
    assert!(fs::read(&disk).unwrap() == before);

    let (code, said) = tool(&["commit", &spec]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("4K committed"), "{said}");
    let mut expected = before;
    expected[2 * MIB as usize + 512..][..512].fill(1);
    assert!(fs::read(&disk).unwrap() == expected);

    let mut holder = Holder::new();
    let server = holder.serve(&spec);
    holder.write(0, &[7; 4096]);
    holder.detach();
    server.end();
    assert_eq!(tool(&["discard", &spec]).0, 0);
    let mut holder = Holder::new();
    let _server = holder.serve(&spec);
    assert_eq!(holder.read(2 * MIB, 1024), [[9; 512], [1; 512]].concat());
    assert_eq!(holder.read(0, 1024)[510..514], [0x55, 0xaa, 0, 0]);
}

#[test]
fn several_devices_share_a_base_and_a_diff_may_be_one() {
    let directory = Directory::new();
    let disk = partitioned(&directory);
    let path = |name: &str| directory.path(name).display().to_string();
    let (one, two, three) = (path("one"), path("two"), path("three"));
    let mut first = Holder::new();
    let server = first.serve(&format!("cow:{disk}+{one}"));
    let mut second = Holder::new();
    let _other = second.serve(&format!("cow:{disk}+{two}"));
    first.write(2 * MIB, &[1; 4096]);
    second.write(2 * MIB, &[2; 4096]);
    assert_eq!(first.read(2 * MIB, 4096), [1; 4096]);
    drop((server, first));
    let mut third = Holder::new();
    let chain = format!("cow:cow:{disk}+{one}+{three}");
    let _server = third.serve(&chain);
    assert_eq!(third.stored_fd_names(), ["diff", "base.diff", "base.base.file"]);
    assert_eq!(third.read(2 * MIB, 4096), [1; 4096]);
    third.write(2 * MIB, &[3; 512]);
    assert_eq!(third.read(2 * MIB, 1024), [[3; 512], [1; 512]].concat());
    let complaint = Holder::new().serve_in_vain(&format!("cow:{disk}+{one}"));
    assert!(complaint.contains("one: is in use by"), "{complaint}");
}

#[test]
fn a_replaced_diff_or_log_is_refused() {
    let directory = Directory::new();
    let disk = partitioned(&directory);
    let path = |name: &str| directory.path(name).display().to_string();
    for spec in
        [format!("cow:{disk}+{}", path("side")), format!("record:{}@file:{disk}", path("side"))]
    {
        let mut holder = Holder::new();
        holder.serve(&spec).kill();
        fs::rename(path("side"), path("kept")).unwrap();
        fs::write(path("side"), "").unwrap();
        let complaint = holder.serve_in_vain(&spec);
        assert!(complaint.contains("side: is not the "), "{complaint}");
        assert_eq!(fs::read(path("side")).unwrap(), b"");
        fs::rename(path("kept"), path("side")).unwrap();
        holder.serve(&spec).kill();
        fs::remove_file(path("side")).unwrap();
    }
}

#[test]
fn tools_name_what_is_wrong() {
    for (arguments, code, words) in [
        (&["commit", "file:a"][..], 2, "file:a: is not a cow: export"),
        (&["commit", "cow:a"], 2, "write cow:BASE+DIFF"),
        (&["commit"], 2, "required arguments were not provided"),
        (&["discard", "cow:a+/nonexistent"], 1, "/nonexistent: does not exist"),
        (&["powercut", "/nonexistent", "--", "true"], 1, "/nonexistent: No such file"),
        (&["powercut", "/dev/null", "--", "true"], 1, "/dev/null: is not a log of `record:`"),
        (&["powercut", "/dev/null", "--points", "no"], 2, "write all, flushes or a number"),
        (&["powercut", "/dev/null", "--only", "1"], 2, "like 17.3"),
    ] {
        let (status, said) = tool(arguments);
        assert_eq!(status, code, "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
        assert!(said.starts_with("nbd-serve: "), "{arguments:?}: {said}");
    }
    for name in ["commit", "discard", "powercut"] {
        let (code, said) = tool(&[name, "--help"]);
        assert_eq!(code, 0);
        assert!(said.contains("Example:\n  ") && said.contains(&format!("nbd-serve {name} ")));
    }
}
