//! Where a partition begins and ends, by the tables of the PC (MBR, with logical partitions) and
//! of UEFI (GPT).
//!
//! The tables are whatever somebody has written to a disk, so nothing of them is believed unless
//! it lies within the disk. Partitions are numbered as the kernel does.

#[cfg(test)]
mod tests;

use std::io;

use thiserror::Error;

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// Why there is no such partition.
#[derive(Debug, Error)]
pub(crate) enum PartitionError {
    #[error("the partition table cannot be read")]
    Read(#[source] io::Error),
    #[error("there is no partition table (GPT or MBR)")]
    NoTable,
    #[error("both copies of its GPT are damaged: `sgdisk --verify` tells more")]
    Damaged,
    #[error("there is no partition {number}; there {}", there(.known))]
    Missing { number: u32, known: Vec<u32> },
    #[error("partition {0} does not lie within the disk")]
    Outside(u32),
}

fn there(known: &[u32]) -> String {
    let all: Vec<_> = known.iter().map(ToString::to_string).collect();
    match all.as_slice() {
        [] => "is none".into(),
        [one] => format!("is {one}"),
        all => format!("are {}", all.join(", ")),
    }
}

/// Reads from a disk.
pub(crate) type Read<'a> = &'a dyn Fn(&mut [u8], u64) -> io::Result<()>;

/// Finds a partition of a disk of `size` bytes with sectors of `sector` bytes. Images of disks
/// with other sectors are recognised as well.
pub(crate) fn find(
    read: Read<'_>,
    size: u64,
    sector: u32,
    number: u32,
) -> Result<Range, PartitionError> {
    let mut partitions = None;
    for sector in [u64::from(sector), 512, 4096] {
        if let Some(found) = gpt(read, size, sector)? {
            partitions = Some(found);
            break;
        }
    }
    let partitions = match partitions {
        Some(partitions) => partitions,
        None => mbr(read, size, u64::from(sector))?,
    };
    let found = partitions.iter().find(|(found, _)| *found == number);
    let Some(&(_, range)) = found else {
        let known = partitions.iter().map(|(number, _)| *number).collect();
        return Err(PartitionError::Missing { number, known });
    };
    let end = range.start.checked_add(range.length).filter(|end| *end <= size);
    match end {
        Some(_) if range.length > 0 && range.start > 0 => Ok(range),
        _ => Err(PartitionError::Outside(number)),
    }
}

type Partitions = Vec<(u32, Range)>;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// The fields of a header, in bytes. Headers may be longer, and nbdkit's are (UEFI: "HeaderSize").
const HEADER: usize = 92;
/// Most bytes of a table: 128 entries are usual, and take up 16 KiB.
const MAX_TABLE_LEN: u64 = 4 << 20;

/// The partitions of a GPT; nothing if there is none.
fn gpt(read: Read<'_>, size: u64, sector: u64) -> Result<Option<Partitions>, PartitionError> {
    let mut damaged = false;
    // The second copy is in the last sector.
    for at in [sector, (size / sector).saturating_sub(1) * sector] {
        let mut header = vec![0; sector as usize];
        if at < sector || at + sector > size {
            continue;
        }
        read_some(read, &mut header, at)?;
        if header[..8] != *SIGNATURE {
            continue;
        }
        match gpt_entries(read, size, sector, &mut header)? {
            Some(partitions) => return Ok(Some(partitions)),
            None => damaged = true,
        }
    }
    if damaged { Err(PartitionError::Damaged) } else { Ok(None) }
}

/// Nothing if the checksums are wrong.
fn gpt_entries(
    read: Read<'_>,
    size: u64,
    sector: u64,
    header: &mut [u8],
) -> Result<Option<Partitions>, PartitionError> {
    let checksum = word(header, 16);
    header[16..20].fill(0);
    let (table, count) = (long(header, 72), u64::from(word(header, 80)));
    let entry = u64::from(word(header, 84));
    // As the kernel has it: up to a sector.
    let header_len = word(header, 12) as usize;
    let checked = header.get(..header_len).filter(|_| header_len >= HEADER);
    let length = count * entry;
    let start = table
        .checked_mul(sector)
        .filter(|start| start.checked_add(length).is_some_and(|end| end <= size));
    let is_sane = checked.is_some_and(|bytes| crc32fast::hash(bytes) == checksum)
        && (128..=4096).contains(&entry)
        && length <= MAX_TABLE_LEN;
    let (Some(start), true) = (start, is_sane) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length as usize];
    read_some(read, &mut bytes, start)?;
    if crc32fast::hash(&bytes) != word(header, 88) {
        return Ok(None);
    }
    let entries = (1..).zip(bytes.chunks(entry as usize));
    let used = entries.filter(|(_, entry)| entry[..16] != [0; 16]);
    Ok(Some(
        used.map(|(number, entry)| {
            let (first, last) = (long(entry, 32), long(entry, 40));
            let sectors = last.checked_sub(first).and_then(|length| length.checked_add(1));
            (number, range(first, sectors.unwrap_or(0), sector))
        })
        .collect(),
    ))
}

/// Most logical partitions; a chain that is longer leads in a circle.
const MAX_LOGICAL_PARTITIONS: u32 = 128;

fn mbr(read: Read<'_>, size: u64, sector: u64) -> Result<Partitions, PartitionError> {
    let table = boot_record(read, size, 0)?.ok_or(PartitionError::NoTable)?;
    let mut partitions = Vec::new();
    let mut logical = 5;
    for (number, entry) in (1..).zip(table) {
        match entry.kind {
            0 => {}
            EXTENDED_CHS | EXTENDED | EXTENDED_LINUX => {
                let base = u64::from(entry.start);
                let mut next = Some(base);
                while let Some(at) = next.take().filter(|_| logical < 5 + MAX_LOGICAL_PARTITIONS) {
                    let Some(table) = boot_record(read, size, at.saturating_mul(sector))? else {
                        break;
                    };
                    let [first, second, ..] = table;
                    if first.kind != 0 {
                        let start = at + u64::from(first.start);
                        let found = range(start, u64::from(first.length), sector);
                        partitions.push((logical, found));
                        logical += 1;
                    }
                    if second.kind != 0 && second.start != 0 {
                        next = Some(base + u64::from(second.start));
                    }
                }
            }
            _ => {
                let (start, length) = (u64::from(entry.start), u64::from(entry.length));
                partitions.push((number, range(start, length, sector)));
            }
        }
    }
    partitions.sort_unstable_by_key(|(number, _)| *number);
    Ok(partitions)
}

const EXTENDED_CHS: u8 = 0x05;
const EXTENDED: u8 = 0x0f;
const EXTENDED_LINUX: u8 = 0x85;

/// An entry of an MBR, in sectors.
#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    start: u32,
    length: u32,
}

/// Reads a boot record; nothing if none is there.
fn boot_record(read: Read<'_>, size: u64, at: u64) -> Result<Option<[Entry; 4]>, PartitionError> {
    let mut bytes = [0; 512];
    if at.checked_add(512).is_none_or(|end| end > size) {
        return Ok(None);
    }
    read_some(read, &mut bytes, at)?;
    if bytes[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    Ok(Some([0, 1, 2, 3].map(|index| {
        let entry = &bytes[446 + 16 * index..];
        Entry { kind: entry[4], start: word(entry, 8), length: word(entry, 12) }
    })))
}

/// What overflows does not lie within any disk either.
fn range(start: u64, length: u64, sector: u64) -> Range {
    Range { start: start.saturating_mul(sector), length: length.saturating_mul(sector) }
}

fn read_some(read: Read<'_>, buffer: &mut [u8], at: u64) -> Result<(), PartitionError> {
    read(buffer, at).map_err(PartitionError::Read)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
