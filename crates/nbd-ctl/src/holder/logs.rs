//! `nbd-ctl logs`: the end of a device's log.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use nbd_control::text::printable;

use crate::context::{Context, eprint, print};
use crate::device::Device;
use crate::error::Error;
use crate::holder::device_state::no_device;

/// So much of a log is read, from its end. Holders keep it shorter than that; an older one did not.
const MAX_LOG_BYTES: u64 = 2 << 20;

/// Prints the last lines of the log of a device as it is, or of its last time.
pub(crate) fn logs(
    context: &Context,
    device: Device,
    last: bool,
    count: usize,
) -> Result<(), Error> {
    let registry = &context.registry;
    let is_attached = registry.folder(device.0).exists();
    let lines = match last || !is_attached {
        true => last_lines(&[registry.last_log(device.0)], count),
        false => last_lines(&[registry.old_log(device.0), registry.log(device.0)], count),
    };
    let lines = lines.map_err(|(path, source)| match source.kind() {
        ErrorKind::PermissionDenied => Error::Forbidden { device },
        ErrorKind::NotFound if !is_attached => no_device(registry, device),
        _ => Error::Registry { path, source },
    })?;
    if !is_attached && !last {
        eprint(&format!("{device} is not attached: this is the log of its last attach"));
    }
    print(&lines)
}

/// The last line of a device's log, and where the rest is: for errors.
pub(crate) fn last_words(context: &Context, device: Device) -> String {
    let registry = &context.registry;
    let paths = [registry.log(device.0), registry.last_log(device.0)];
    let found = paths.into_iter().find(|path| path.exists());
    let line = found.and_then(|path| last_lines(&[path], 1).ok()).unwrap_or_default();
    match line.trim_end() {
        "" => format!("{device} has no log"),
        line => format!("its log ends with: {line} (nbd-ctl logs {device} shows more)"),
    }
}

/// The last lines of files that continue each other, of which all but the last may be missing.
fn last_lines(paths: &[PathBuf], count: usize) -> Result<String, (PathBuf, io::Error)> {
    let mut text = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match read_tail(path) {
            Ok(bytes) => text.extend(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound && index + 1 < paths.len() => {}
            Err(error) => return Err((path.clone(), error)),
        }
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let lines = &lines[lines.len().saturating_sub(count)..];
    Ok(lines.iter().map(|line| printable(&line.replace('\t', "    "), &[]) + "\n").collect())
}

/// The end of a file, however large it is.
fn read_tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_both_files_are_shown_and_do_nothing_to_a_terminal() {
        let folder = std::env::temp_dir().join(format!("nbd-ctl-logs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let paths = [folder.join("log.old"), folder.join("log")];
        assert!(last_lines(&paths, 9).is_err());
        std::fs::write(&paths[1], "three\n\x1b[2Jfour\n").unwrap();
        assert_eq!(last_lines(&paths, 9).unwrap(), "three\n\\u{1b}[2Jfour\n");
        std::fs::write(&paths[0], "one\ntwo\n").unwrap();
        assert_eq!(last_lines(&paths, 3).unwrap(), "two\nthree\n\\u{1b}[2Jfour\n");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn of_an_endless_log_only_the_end_is_read() {
        let path = std::env::temp_dir().join(format!("nbd-ctl-log-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.set_len(650 << 20).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        io::Write::write_all(&mut file, b"\nthe end\n").unwrap();
        assert_eq!(read_tail(&path).unwrap().len() as u64, MAX_LOG_BYTES);
        assert_eq!(last_lines(std::slice::from_ref(&path), 1).unwrap(), "the end\n");
        std::fs::remove_file(path).unwrap();
    }
}
