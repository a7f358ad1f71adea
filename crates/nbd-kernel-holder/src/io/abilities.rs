//! What a backend offers and another one did not, in words.

use nbd_control::backend::ExportInfo;
use nbd_proto::TransmissionFlags;

/// What people call the transmission flags.
const ABILITIES: [(TransmissionFlags, &str); 9] = [
    (TransmissionFlags::READ_ONLY, "read-only"),
    (TransmissionFlags::SEND_FLUSH, "flush"),
    (TransmissionFlags::SEND_FUA, "FUA (write through)"),
    (TransmissionFlags::ROTATIONAL, "rotational"),
    (TransmissionFlags::SEND_TRIM, "trim"),
    (TransmissionFlags::SEND_WRITE_ZEROES, "write zeroes"),
    (TransmissionFlags::SEND_FAST_ZERO, "fast zeroes"),
    (TransmissionFlags::CAN_MULTI_CONN, "several connections"),
    (TransmissionFlags::SEND_CACHE, "cache"),
];

/// What keeps a backend from serving a device that was attached with another one: the kernel has been told
/// what the device can do, once and for all.
pub(crate) fn differences(found: &ExportInfo, attached: &ExportInfo, device: &str) -> String {
    let mut told = Vec::new();
    if found.block_size != attached.block_size {
        told.push(format!(
            "its blocks have {} bytes, and those of {device} {}",
            found.block_size, attached.block_size
        ));
    }
    let named = abilities(found.flags & !attached.flags);
    if !named.is_empty() {
        told.push(format!("it offers {named}, and {device} was attached without"));
    }
    let named = abilities(attached.flags & !found.flags);
    if !named.is_empty() {
        told.push(format!("it does not offer {named}, and {device} was attached with that"));
    }
    told.join("; ")
}

fn abilities(flags: u16) -> String {
    let (mut named, mut rest) = (Vec::new(), flags);
    for (flag, name) in ABILITIES {
        if flags & flag.bits() != 0 {
            named.push(name.to_owned());
            rest &= !flag.bits();
        }
    }
    if rest != 0 {
        named.push(TransmissionFlags::from_bits(rest).to_string());
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(block_size: u32, flags: u16) -> ExportInfo {
        ExportInfo { size: 1 << 20, block_size, flags }
    }

    #[test]
    fn what_differs_is_called_by_its_name() {
        for (found, attached, words) in [
            (export(512, 1), export(4096, 1), "its blocks have 512 bytes, and those of nbd0 4096"),
            (export(512, 3), export(512, 1), "it offers read-only, and nbd0 was attached without"),
            (
                export(512, 1),
                export(512, 1 | 4 | 32),
                "it does not offer flush, trim, and nbd0 was attached with that",
            ),
            (
                export(512, 3),
                export(512, 1 | 1 << 15),
                "it offers read-only, and nbd0 was attached without; it does not offer 0x8000, and nbd0 was \
                 attached with that",
            ),
        ] {
            assert_eq!(differences(&found, &attached, "nbd0"), words);
        }
    }
}
