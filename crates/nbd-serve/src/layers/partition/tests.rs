use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

struct Disk(Vec<u8>);

impl Disk {
    fn new() -> Self {
        Self(vec![0; 8 * MIB as usize])
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// An entry of a boot record, in sectors.
    fn entry(&mut self, record: u64, index: u64, kind: u8, start: u32, length: u32) {
        let at = record * 512 + 446 + 16 * index;
        self.put(at + 4, &[kind]);
        self.put(at + 8, &start.to_le_bytes());
        self.put(at + 12, &length.to_le_bytes());
        self.put(record * 512 + 510, &[0x55, 0xaa]);
    }

    /// A GPT header in one sector, for a table elsewhere, with entries of first and last sector.
    fn gpt(&mut self, sector: u64, at: u64, table: u64, entries: &[(u64, u64)]) {
        let mut bytes = vec![0; 128 * 128];
        for (entry, (first, last)) in bytes.chunks_mut(128).zip(entries) {
            if *last > 0 {
                entry[..16].fill(7);
            }
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(SIGNATURE);
        header[12..16].copy_from_slice(&(HEADER as u32).to_le_bytes());
        header[72..80].copy_from_slice(&table.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let checksum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        self.put(at * sector, &header);
        self.put(table * sector, &bytes);
    }

    fn find(&self, number: u32) -> Result<Range, PartitionError> {
        let read = |buffer: &mut [u8], at: u64| {
            buffer.copy_from_slice(&self.0[at as usize..at as usize + buffer.len()]);
            Ok(())
        };
        find(&read, self.0.len() as u64, 512, number)
    }

    fn complaint(&self, number: u32) -> String {
        self.find(number).unwrap_err().to_string()
    }
}

#[test]
fn a_gpt_in_either_copy_and_with_either_sector() {
    for sector in [512, 4096] {
        let last = 8 * MIB / sector - 1;
        let entries = [(MIB / sector, 2 * MIB / sector - 1), (0, 0), (2 * MIB / sector, 1024)];
        let mut disk = Disk::new();
        disk.gpt(sector, 1, 2, &entries);
        disk.gpt(sector, last, last - 16384 / sector, &entries);
        let expected = Range { start: MIB, length: MIB };
        assert_eq!(disk.find(1).unwrap(), expected, "{sector}");
        assert_eq!(disk.complaint(2), "there is no partition 2; there are 1, 3");
        // The first copy is damaged: in its header, or in its table.
        for at in [sector + 20, 2 * sector + 40] {
            let mut disk = Disk(disk.0.clone());
            disk.0[at as usize] ^= 0xff;
            assert_eq!(disk.find(1).unwrap(), expected, "{sector} {at}");
            disk.put(last * sector + 20, &[0xff]);
            assert!(disk.complaint(1).contains("both copies of its GPT are damaged"));
        }
    }
}

#[test]
fn an_mbr_with_logical_partitions() {
    let mut disk = Disk::new();
    disk.entry(0, 0, 0x83, 2048, 1000);
    disk.entry(0, 1, 0x05, 4096, 8000);
    disk.entry(4096, 0, 0x83, 64, 100);
    disk.entry(4096, 1, 0x05, 1000, 200);
    disk.entry(5096, 0, 0x83, 64, 50);
    let range = |start: u64, length: u64| Range { start: start * 512, length: length * 512 };
    assert_eq!(disk.find(1).unwrap(), range(2048, 1000));
    assert_eq!(disk.find(5).unwrap(), range(4160, 100));
    assert_eq!(disk.find(6).unwrap(), range(5160, 50));
    assert_eq!(disk.complaint(2), "there is no partition 2; there are 1, 5, 6");
}

#[test]
fn what_leads_outside_or_in_a_circle_is_no_partition() {
    let mut disk = Disk::new();
    assert!(disk.complaint(1).contains("there is no partition table"));
    disk.entry(0, 0, 0x83, 0, 100);
    disk.entry(0, 1, 0x83, 16000, 1000);
    disk.entry(0, 2, 0x83, u32::MAX, u32::MAX);
    disk.entry(0, 3, 0x0f, 4096, 8000);
    // It is its own successor.
    disk.entry(4096, 0, 0x83, 64, 100);
    disk.entry(4096, 1, 0x05, 0, 8000);
    for number in 1..=3 {
        assert!(disk.complaint(number).contains("does not lie within the disk"), "{number}");
    }
    assert!(disk.find(5).is_ok());
    disk.entry(4096, 1, 0x05, 1, 8000);
    disk.entry(4097, 0, 0x83, 64, 100);
    disk.entry(4097, 1, 0x05, 1, 8000);
    assert!(disk.find(9).is_ok());
    assert!(disk.complaint(1000).contains("there is no partition 1000"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in the tables, a partition lies within the disk.
    #[test]
    fn garbage_is_survived(
        scribbles in prop::collection::vec((0u64..20_000, any::<u8>()), 0..40),
        fields in prop::collection::vec((0usize..11, any::<u64>()), 0..3),
        number in 1u32..9,
    ) {
        let mut disk = Disk::new();
        disk.entry(0, 0, 0x83, 2048, 1000);
        disk.entry(0, 1, 0x05, 4096, 8000);
        disk.entry(4096, 0, 0x83, 64, 100);
        disk.gpt(512, 1, 2, &[(2048, 4095)]);
        // Fields with a checksum that is right.
        for (field, value) in fields {
            let at = 512 + 8 + 8 * field;
            disk.put(at as u64, &value.to_le_bytes()[..8.min(92 - 8 - 8 * field)]);
            disk.put(512 + 16, &[0; 4]);
            let checksum = crc32fast::hash(&disk.0[512..512 + HEADER]);
            disk.put(512 + 16, &checksum.to_le_bytes());
        }
        for (at, byte) in scribbles {
            disk.put(at, &[byte]);
        }
        if let Ok(range) = disk.find(number) {
            prop_assert!(range.start + range.length <= 8 * MIB);
        }
    }
}
