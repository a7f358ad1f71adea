//! Mounted file systems, as `/proc/PID/mountinfo` has them (Documentation/filesystems/proc.rst, 3.5).
//!
//! Read as bytes: a mount point may have any name, and one that is no UTF-8 must not hide the others.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor`; the major number is 0 if no single device is below it.
    pub number: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// What it is mounted from, often the path of a device.
    pub source: PathBuf,
    /// Options of the file system that have a value, like `("lowerdir", "/a:/b")`.
    pub options: Vec<(String, PathBuf)>,
}

impl Mount {
    /// What is mounted in the mount namespace of a process.
    ///
    /// # Errors
    ///
    /// There is no such process, or the caller may not look at it.
    pub fn all_of(pid: i32) -> io::Result<Vec<Self>> {
        Ok(Self::parse(&fs::read(format!("/proc/{pid}/mountinfo"))?))
    }

    /// What the text of a `mountinfo` tells. A line that is none is left out.
    #[must_use]
    pub fn parse(text: &[u8]) -> Vec<Self> {
        text.split(|&byte| byte == b'\n').filter_map(Self::parse_line).collect()
    }

    /// A line like `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/root rw,lowerdir=…`.
    fn parse_line(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        // Between the mount options and the dash there are any number of optional fields.
        let dash = fields.iter().position(|field| *field == b"-")?;
        let options = fields.get(dash + 3).copied().unwrap_or_default();
        let options = options.split(|&byte| byte == b',').filter_map(|option| {
            let (name, value) = option.split_at(option.iter().position(|&byte| byte == b'=')?);
            Some((String::from_utf8_lossy(name).into_owned(), unescape(&value[1..])))
        });
        Some(Self {
            number: String::from_utf8_lossy(fields.get(2)?).into_owned(),
            point: unescape(fields.get(4)?),
            source: unescape(fields.get(dash + 2)?),
            options: options.collect(),
        })
    }
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped.filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_mount_is_parsed_with_and_without_optional_fields() {
        let mounts = Mount::parse(
            b"22 1 0:21 / / rw - overlay overlay rw,lowerdir=/disk:/other,upperdir=/part\\040b\n\
              23 22 8:1 / /disk rw,relatime shared:7 master:1 - ext4 /dev/sda1 rw\n\
              no mount\n\
              25 24 0:30 / /a\\040b\\011c\\012d\\134e - tmpfs tmpfs rw\n",
        );
        assert_eq!(mounts.len(), 3);
        let options = [("lowerdir", "/disk:/other"), ("upperdir", "/part b")];
        assert_eq!(mounts[0].options, options.map(|(name, value)| (name.into(), value.into())));
        assert_eq!((&*mounts[1].number, &*mounts[1].source), ("8:1", Path::new("/dev/sda1")));
        assert_eq!(mounts[2].point, Path::new("/a b\tc\nd\\e"));
    }

    #[test]
    fn a_mount_point_that_is_no_text_hides_no_other() {
        let text =
            b"36 1 43:0 / /\xff\xfe rw - ext4 /dev/nbd0 rw\n37 1 8:1 / /b rw - ext4 /dev/b rw";
        let points: Vec<_> = Mount::parse(text).into_iter().map(|mount| mount.point).collect();
        assert_eq!(points[0], PathBuf::from(OsString::from_vec(b"/\xff\xfe".into())));
        assert_eq!(points[1], Path::new("/b"));
    }

    #[test]
    fn this_process_has_a_root() {
        let mounts = Mount::all_of(std::process::id().cast_signed()).unwrap();
        assert!(mounts.iter().any(|mount| mount.point == Path::new("/")));
        assert!(Mount::all_of(i32::MAX).is_err());
    }
}
