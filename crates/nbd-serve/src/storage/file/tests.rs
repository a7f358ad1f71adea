use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};

use super::*;
use crate::spec::MemorySpec;
use crate::storage::mem;
use crate::storage::probe::ProbeError;
use crate::testing::{Directory, pattern, serve};

const MIB: u64 = 1 << 20;

fn file(directory: &Directory, size: u64) -> FileExport {
    serve(&format!("file:{}", directory.file("disk", size).display()))
}

fn memory(size: u64) -> FileExport {
    let geometry = mem::geometry(MemorySpec { size, block: 512 });
    let file = mem::make(size).unwrap();
    FileExport::new(file, "mem:".into(), FileKind::Memory, false, geometry)
}

fn read(export: &FileExport, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    export.read_at(&mut buffer, offset).unwrap();
    buffer
}

/// Where the first hole begins.
fn first_hole(export: &FileExport) -> u64 {
    lseek(&export.file, 0, Whence::SeekHole).unwrap() as u64
}

fn write(length: u32, fua: bool) -> Command {
    let offset = 0;
    Command::Write { offset, length, fua }
}

#[test]
fn what_is_written_is_read() {
    let directory = Directory::new();
    for export in [file(&directory, MIB), memory(MIB)] {
        let data = pattern(8192, 1);
        export.write_at(&data, 4096, false).unwrap();
        export.write_at(&data, 65536, true).unwrap();
        export.flush().unwrap();
        assert_eq!(read(&export, 4096, 8192), data);
        assert_eq!(read(&export, 65536, 8192), data);
        assert_eq!(read(&export, 0, 4096), vec![0; 4096]);
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    let directory = Directory::new();
    let export = file(&directory, 1 << 40);
    let last = (1 << 40) - 4096;
    export.write_at(&pattern(4096, 9), last, false).unwrap();
    assert_eq!(read(&export, last, 4096), pattern(4096, 9));
    assert_eq!(read(&export, 1 << 39, 4096), vec![0; 4096]);
    assert!(export.file.metadata().unwrap().blocks() * 512 < MIB);
}

#[test]
fn trim_and_zeroes_make_holes_unless_told_otherwise() {
    let directory = Directory::new();
    for export in [file(&directory, MIB), memory(MIB)] {
        let fill = || {
            export.write_at(&pattern(MIB as usize, 3), 0, false).unwrap();
        };
        let zero = |no_hole| {
            let how = ZeroOptions { no_hole, ..ZeroOptions::default() };
            export.write_zeroes(65536, 65536, how).unwrap();
            assert_eq!(read(&export, 65536, 65536), vec![0; 65536]);
            assert_eq!(read(&export, 65024, 512), pattern(MIB as usize, 3)[65024..65536]);
            assert_eq!(read(&export, 131_072, 512), pattern(MIB as usize, 3)[131_072..131_584]);
        };
        fill();
        assert_eq!(first_hole(&export), MIB);
        export.trim(65536, 65536, true).unwrap();
        assert_eq!(first_hole(&export), 65536);
        fill();
        zero(false);
        assert_eq!(first_hole(&export), 65536);
        fill();
        zero(true);
        // Zeroes that are only noted as such count as a hole, yet they are allocated.
        assert!(export.file.metadata().unwrap().blocks() * 512 >= MIB);
    }
}

#[test]
fn zeroes_can_be_written_by_hand() {
    let directory = Directory::new();
    let export = file(&directory, 4 * MIB);
    export.write_at(&pattern(4 << 20, 3), 0, false).unwrap();
    export.write_zeroes_by_hand(512, 3 * MIB).unwrap();
    assert_eq!(read(&export, 512, 3 << 20), vec![0; 3 << 20]);
    let kept = pattern(4 << 20, 3);
    assert_eq!(read(&export, 0, 512), kept[..512]);
    assert_eq!(read(&export, 3 * MIB + 512, 512), kept[(3 << 20) + 512..(3 << 20) + 1024]);
}

#[test]
fn memory_that_cannot_be_zeroed_fast_says_so() {
    let export = memory(MIB);
    let how = ZeroOptions { no_hole: true, fast_only: true, fua: false };
    match export.write_zeroes(0, 4096, how) {
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}"),
        // A kernel that can.
        Ok(()) => assert_eq!(read(&export, 0, 4096), vec![0; 4096]),
    }
}

#[test]
fn nothing_is_done_to_an_empty_range() {
    let directory = Directory::new();
    let export = file(&directory, MIB);
    export.trim(0, 0, true).unwrap();
    export.write_zeroes(MIB, 0, ZeroOptions::default()).unwrap();
    export.write_at(&[], 0, true).unwrap();
    export.read_at(&mut [], 0).unwrap();
    export.cache(0, 0).unwrap();
    export.cache(0, MIB).unwrap();
}

#[test]
fn a_file_truncated_under_us_reads_as_an_error_and_never_as_zeroes() {
    let directory = Directory::new();
    let export = file(&directory, MIB);
    export.write_at(&pattern(MIB as usize, 5), 0, true).unwrap();
    export.file.set_len(MIB / 2 + 100).unwrap();

    let mut buffer = vec![0; 4096];
    assert!(!export.try_read_at(&mut buffer, MIB / 2).unwrap());
    let truncated = |result: io::Result<()>| {
        let error = result.unwrap_err();
        // Without an errno, so that it becomes EIO.
        assert_eq!(error.raw_os_error(), None);
        let text = error.to_string();
        assert!(text.contains("disk was truncated"), "{text}");
        assert!(text.contains("has 524388 bytes instead of 1048576"), "{text}");
    };
    truncated(export.read_at(&mut buffer, MIB / 2));
    truncated(export.read_at(&mut buffer, MIB - 4096));
    // This one would make the file grow back, with zeroes where data was.
    truncated(export.write_at(&buffer, MIB - 4096, false));
    truncated(export.write_at(&buffer, MIB - 8192, false));
    truncated(export.write_zeroes_by_hand(MIB - 4096, 4096));
    truncated(export.read_at(&mut buffer, MIB - 4096));
    // What is left is as good as before.
    assert_eq!(read(&export, 0, 4096), pattern(4096, 5));
    export.write_at(&buffer, 0, true).unwrap();
}

/// A copying tool would make zeroes of it, with success.
#[test]
fn what_was_cut_off_is_neither_called_zero_nor_made_zero() {
    let directory = Directory::new();
    let on_disk = file(&directory, MIB);
    let shared = File::from(memfd_create(c"cut", MFdFlags::MFD_CLOEXEC).unwrap());
    shared.set_len(MIB).unwrap();
    let geometry = on_disk.geometry();
    let in_memory = FileExport::new(shared, "disk".into(), FileKind::Regular, false, geometry);
    for export in [on_disk, in_memory] {
        export.write_at(&pattern(4096, 5), 0, true).unwrap();
        let cut = MIB / 2 + 100;
        export.file.set_len(cut).unwrap();
        let lost = |result: io::Result<()>| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains("disk was truncated"), "{text}");
        };
        // What is there is told, and no more.
        let data = Extent { length: 4096, hole: false, zero: false };
        let hole = Extent { length: cut - 4096, hole: true, zero: true };
        assert_eq!(export.extents(0, MIB, false).unwrap(), [data, hole]);
        assert_eq!(export.extents(4096, MIB - 4096, true).unwrap(), [hole]);
        for offset in [cut, MIB / 2 + 4096, MIB - 4096] {
            lost(export.extents(offset, MIB - offset, false).map(drop));
        }
        for (no_hole, fast_only) in [(false, false), (true, false), (false, true)] {
            let how = ZeroOptions { fua: false, no_hole, fast_only };
            for (offset, length) in [(MIB - 4096, 4096), (MIB / 2, 4096), (0, MIB)] {
                lost(export.write_zeroes(offset, length, how));
            }
            export.write_zeroes(MIB / 4, 4096, how).unwrap();
        }
        lost(export.trim(MIB - 4096, 4096, false));
        lost(export.trim(MIB / 2, 4096, false));
        export.trim(MIB / 4, 4096, true).unwrap();
        assert_eq!(export.file.metadata().unwrap().len(), cut);
    }
}

#[test]
fn a_truncation_is_noticed_a_moment_later_at_most_even_if_writes_were_quicker() {
    let directory = Directory::new();
    let export = file(&directory, MIB);
    export.check_end_at(4096, 7 * SIZE_TRUSTED_NS).unwrap();
    export.file.set_len(4096).unwrap();
    export.check_end_at(MIB - 512, 8 * SIZE_TRUSTED_NS - 1).unwrap();
    // The one that would make it whole again always asks.
    export.check_end_at(MIB, 8 * SIZE_TRUSTED_NS - 1).unwrap_err();
    export.check_end_at(MIB - 512, 8 * SIZE_TRUSTED_NS - 1).unwrap_err();
    export.file.set_len(MIB).unwrap();
    export.check_end_at(MIB - 512, 9 * SIZE_TRUSTED_NS).unwrap();
    export.file.set_len(4096).unwrap();
    export.check_end_at(MIB - 512, 10 * SIZE_TRUSTED_NS).unwrap_err();
    export.check_end_at(4096, 10 * SIZE_TRUSTED_NS).unwrap();
}

#[test]
fn check_received_fails_once_the_file_was_truncated() {
    let shared = File::from(memfd_create(c"cut", MFdFlags::MFD_CLOEXEC).unwrap());
    shared.set_len(MIB).unwrap();
    let geometry = mem::geometry(MemorySpec { size: MIB, block: 512 });
    let export = FileExport::new(shared, "x".into(), FileKind::Regular, false, geometry);
    export.write_at(&pattern(MIB as usize, 1), 0, false).unwrap();
    assert!(export.mapped_range_mut(0, 8192).is_some());
    export.check_received().unwrap();
    export.file.set_len(4096).unwrap();
    export.check_received().unwrap_err();
    assert!(export.mapped_range_mut(0, 4096).is_none());
    // A write that believed what it knew a moment ago makes it grow back, but not entirely.
    export.file.set_len(MIB / 2).unwrap();
    export.check_received().unwrap_err();
}

#[test]
fn only_reads_writes_and_flushes_of_a_file_are_waited_for() {
    let directory = Directory::new();
    let export = file(&directory, MIB);
    assert!(
        export.may_block_inline(&Command::Flush) && export.may_block_inline(&write(4096, true))
    );
    assert!(!export.may_block_inline(&write(2 << 20, true)));
    assert!(!export.may_block_inline(&Command::Trim { offset: 0, length: 4096, fua: false }));
}

#[test]
fn what_is_cached_is_read_at_once() {
    let directory = Directory::new();
    let export = file(&directory, MIB);
    export.write_at(&pattern(4096, 7), 0, false).unwrap();
    let mut buffer = vec![0; 4096];
    let read = export.try_read_at(&mut buffer, 0).unwrap();
    if export.can_read_nowait.load(Ordering::Relaxed) {
        assert!(read);
        assert_eq!(buffer, pattern(4096, 7));
    } else {
        println!("the file system of {} has no RWF_NOWAIT", export.path.display());
        assert!(!read);
    }
}

#[test]
fn a_kernel_without_durable_writes_is_asked_to_sync_instead() {
    let directory = Directory::new();
    let export = file(&directory, MIB);
    export.can_write_durably.store(false, Ordering::Relaxed);
    export.write_at(&pattern(4096, 7), 512, true).unwrap();
    assert_eq!(read(&export, 512, 4096), pattern(4096, 7));
}

#[test]
fn only_what_does_not_wait_never_blocks() {
    let directory = Directory::new();
    let (offset, length) = (0, 4096);
    let slow = [
        write(4096, true),
        write(2 << 20, false),
        write(512, false),
        Command::Flush,
        Command::Trim { offset, length, fua: false },
        Command::Cache { offset, length },
        Command::Read { offset, length: 4096 },
    ];
    let mut export = file(&directory, MIB);
    // The tests' directory may be in memory.
    export.in_memory = false;
    assert!(export.never_blocks(&write(4096, false)));
    for command in slow {
        assert!(!export.never_blocks(&command), "{command:?}");
        let in_memory = command.range().1 <= MAX_INLINE_LEN;
        assert_eq!(memory(MIB).never_blocks(&command), in_memory, "{command:?}");
    }
    export.write_latency.took(Duration::from_millis(50));
    assert!(!export.never_blocks(&write(4096, false)));
}

#[test]
fn a_file_in_memory_is_as_quick_as_memory() {
    // To the kernel, a memfd is a file in tmpfs.
    let shared = mem::make(MIB).unwrap();
    let geometry = mem::geometry(MemorySpec { size: MIB, block: 512 });
    let export = FileExport::new(shared, "x".into(), FileKind::Regular, false, geometry);
    assert!(export.never_blocks(&Command::Read { offset: 0, length: 4096 }));
    assert!(export.never_blocks(&Command::Flush));
    let on_disk = FileExport { in_memory: false, ..export };
    assert!(!on_disk.never_blocks(&Command::Flush));
    assert!(!is_in_memory(&File::open("/proc/self/stat").unwrap()));
}

#[test]
fn memory_starts_as_zeroes_and_keeps_its_size() {
    let export = memory(MIB);
    assert_eq!(read(&export, MIB - 512, 512), vec![0; 512]);
    assert!(export.file.set_len(0).is_err());
    assert!(export.file.set_len(2 * MIB).is_err());
    mem::check(&export.file, MIB).unwrap();
    let error = mem::check(&export.file, 2 * MIB).unwrap_err().to_string();
    assert!(error.contains("has 1M and not 2M"), "{error}");
    let directory = Directory::new();
    let stranger = File::open(directory.file("x", MIB)).unwrap();
    assert!(matches!(mem::check(&stranger, MIB), Err(mem::MemoryError::NotOurs)));
}

/// Runs on files with direct I/O; says why if there is none here.
fn with_direct_io(test: impl FnOnce(&FileExport)) {
    let directory = Directory::new();
    let path = directory.file("disk", 4 * MIB);
    match crate::testing::probe(&format!("file:{},direct", path.display())) {
        Err(error @ ProbeError::NoDirect) => println!("skipped: {}: {error}", path.display()),
        probed => {
            probed.unwrap();
            test(&serve(&format!("file:{},direct", path.display())));
        }
    }
}

#[test]
fn direct_io_works_at_any_address() {
    with_direct_io(|export| {
        let block = export.geometry.block_size as usize;
        assert!(!export.never_blocks(&write(4096, false)));
        for (skew, length, fua) in [(1, block, false), (28, 3 << 20, false), (0, 1 << 20, true)] {
            let mut data = vec![0; length + skew];
            data[skew..].copy_from_slice(&pattern(length, skew as u8));
            export.write_at(&data[skew..], block as u64, fua).unwrap();
            assert_eq!(read(export, block as u64, length), pattern(length, skew as u8));
            let mut buffer = vec![0; length + 3];
            export.read_at(&mut buffer[3..], block as u64).unwrap();
            assert_eq!(buffer[3..], data[skew..]);
        }
        assert!(!export.try_read_at(&mut vec![0; block], 0).unwrap());
        export.flush().unwrap();
        export.write_zeroes_by_hand(0, MIB).unwrap();
        assert_eq!(read(export, 0, 1 << 20), vec![0; 1 << 20]);
        export.file.set_len(MIB).unwrap();
        let error = export.read_at(&mut vec![0; 2 << 20], 0).unwrap_err();
        assert!(error.to_string().contains("was truncated"), "{error}");
    });
}
