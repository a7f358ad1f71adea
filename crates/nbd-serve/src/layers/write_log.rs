//! The log: a header, and an entry for each change and each flush.
//!
//! ```text
//! header:  magic, 8 bytes     8  size of the device, u64
//! entry:   0  kind, 1 write, 2 zeroes, 3 flush, u32     4  flags, 1 is FUA, u32
//!          8  offset, u64     16  length, u64     24  CRC of the 24 bytes, u32     28  0
//!          32 the data of a write
//! ```
//! The offset of a flush is the number of the entries before it that it covers. Numbers are
//! little-endian. A process that dies may leave a part of an entry at the end; nobody was told of
//! that change, so a successor cuts it off and is asked for it again.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

const MAGIC: [u8; 8] = *b"NBDREC\0\x01";
const HEADER_LEN: u64 = 16;
const ENTRY_LEN: usize = 32;
const FUA: u32 = 1;

/// Why a log cannot be used.
#[derive(Debug, Error)]
pub(crate) enum LogError {
    #[error("is not a log of `record:`, and is left unchanged: use another name")]
    Foreign,
    #[error("is the log of a device of {found} bytes and not {size}: use another name")]
    OtherSize { found: u64, size: u64 },
    #[error("cannot be read or written")]
    Access(#[source] io::Error),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Write,
    Zero,
    Flush,
}

const KINDS: [(EntryKind, u32); 3] =
    [(EntryKind::Write, 1), (EntryKind::Zero, 2), (EntryKind::Flush, 3)];

/// An entry, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) fua: bool,
    /// Of a flush, how many entries it covers.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Where in the log its data is.
    pub(crate) data: u64,
}

impl Entry {
    fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        let code =
            KINDS.into_iter().find(|(kind, _)| *kind == self.kind).map_or(0, |found| found.1);
        bytes[..4].copy_from_slice(&code.to_le_bytes());
        bytes[4..8].copy_from_slice(&(if self.fua { FUA } else { 0 }).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..24]);
        bytes[24..28].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_LEN], data: u64) -> Option<Self> {
        let word = |at: usize| {
            bytes[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if crc32fast::hash(&bytes[..24]) != word(24) {
            return None;
        }
        let (kind, _) = KINDS.into_iter().find(|(_, code)| *code == word(0))?;
        Some(Self { kind, fua: word(4) & FUA != 0, offset: long(8), length: long(16), data })
    }

    /// How many bytes it takes up in the log.
    fn extent(&self) -> u64 {
        ENTRY_LEN as u64 + if self.kind == EntryKind::Write { self.length } else { 0 }
    }
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    end: u64,
    count: u64,
}

impl Log {
    /// Goes on with a log, or begins it in an empty file.
    pub(crate) fn resume(file: File, size: u64) -> Result<Self, LogError> {
        let begin = || -> io::Result<()> {
            let mut header = [0; HEADER_LEN as usize];
            header[..8].copy_from_slice(&MAGIC);
            header[8..].copy_from_slice(&size.to_le_bytes());
            file.write_all_at(&header, 0)
        };
        if file.metadata().map_err(LogError::Access)?.len() == 0 {
            begin().map_err(LogError::Access)?;
        }
        let reader = Reader::open(file.try_clone().map_err(LogError::Access)?)?;
        if reader.size != size {
            return Err(LogError::OtherSize { found: reader.size, size });
        }
        let (count, end) = (reader.entries.len() as u64, reader.end);
        file.set_len(end).map_err(LogError::Access)?;
        Ok(Self { file, end, count })
    }

    /// How many entries there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Notes a change that was carried out.
    pub(crate) fn change(
        &mut self,
        kind: EntryKind,
        offset: u64,
        length: u64,
        fua: bool,
        data: &[u8],
    ) -> io::Result<()> {
        self.append(Entry { kind, fua, offset, length, data: 0 }, data)
    }

    /// Notes a flush that is done.
    pub(crate) fn flush(&mut self, covers: u64) -> io::Result<()> {
        let flush =
            Entry { kind: EntryKind::Flush, fua: false, offset: covers, length: 0, data: 0 };
        self.append(flush, &[])
    }

    fn append(&mut self, entry: Entry, data: &[u8]) -> io::Result<()> {
        // The data first: an entry whose header is there is whole.
        self.file.write_all_at(data, self.end + ENTRY_LEN as u64)?;
        self.file.write_all_at(&entry.encode(), self.end)?;
        self.end += entry.extent();
        self.count += 1;
        Ok(())
    }
}

/// A log that is read.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    /// Of the device.
    pub(crate) size: u64,
    pub(crate) entries: Vec<Entry>,
    end: u64,
}

impl Reader {
    pub(crate) fn open(file: File) -> Result<Self, LogError> {
        let mut header = [0; HEADER_LEN as usize];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(LogError::Foreign);
            }
            other => other.map_err(LogError::Access)?,
        }
        if header[..8] != MAGIC {
            return Err(LogError::Foreign);
        }
        let size = header[8..].iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
        let length = file.metadata().map_err(LogError::Access)?.len();
        let mut entries = Vec::new();
        let mut end = HEADER_LEN;
        while end + ENTRY_LEN as u64 <= length {
            let mut bytes = [0; ENTRY_LEN];
            file.read_exact_at(&mut bytes, end).map_err(LogError::Access)?;
            let Some(entry) = Entry::decode(&bytes, end + ENTRY_LEN as u64) else {
                break;
            };
            let next = end.checked_add(entry.extent());
            let within = |end: u64| entry.kind == EntryKind::Flush || end <= size;
            let fits = entry.offset.checked_add(entry.length).is_some_and(within);
            let Some(next) = next.filter(|next| *next <= length && fits) else {
                break;
            };
            entries.push(entry);
            end = next;
        }
        Ok(Self { file, size, entries, end })
    }

    /// Reads the data of a write from `at` on.
    pub(crate) fn data(&self, entry: &Entry, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, entry.data + at)
    }
}
