//! How the kernel's picture of a device differs from its export.
//!
//! Linux 6.12 sets some limits of the queue when a device is connected, and does not take them back
//! when it is disconnected: the next export on the same device is still sent write zeroes, and still
//! counts as rotational. Newer drivers start anew each time.

use std::fs;

use nbd_control::backend::ExportInfo;
use nbd_proto::TransmissionFlags;

use super::Device;

/// Bits of [`compare`]'s result, and what each of them means to the operator.
pub(crate) const DIFFERENCES: [(u64, &str); 6] = [
    (
        WRITE_ZEROES,
        "sends write zeroes, which the export does not offer; zeroes are written instead",
    ),
    (TRIM, "sends trim, which the export does not offer; it has no effect"),
    (FLUSH, "sends flush, which the export does not offer"),
    (FUA, "sends writes with FUA, which the export does not offer"),
    (NO_FLUSH, "sends no flush, although the export has one: what fsync promises may be lost"),
    (ROTATIONAL, "takes it for a rotational disk, which it is not"),
];

const WRITE_ZEROES: u64 = 1;
const TRIM: u64 = 2;
const FLUSH: u64 = 4;
const FUA: u64 = 8;
const NO_FLUSH: u64 = 16;
const ROTATIONAL: u64 = 32;

/// Compares `queue/` in /sys with an export. Reading it may block; see [`super::helper_process`].
pub(super) fn compare(device: &Device, export: &ExportInfo) -> u64 {
    let read = |name: &str| fs::read_to_string(device.sys(&format!("queue/{name}"))).ok();
    differences(TransmissionFlags::from_bits(export.flags), read)
}

fn differences(offered: TransmissionFlags, read: impl Fn(&str) -> Option<String>) -> u64 {
    // An attribute that a kernel does not have says nothing.
    let text = |name| read(name).unwrap_or_default().trim().to_owned();
    let is_positive = |name| text(name).parse::<u64>().is_ok_and(|number| number > 0);
    let has = |flag| offered.contains(flag);
    let cache = text("write_cache");
    [
        (WRITE_ZEROES, is_positive("write_zeroes_max_bytes"), TransmissionFlags::SEND_WRITE_ZEROES),
        (TRIM, is_positive("discard_max_bytes"), TransmissionFlags::SEND_TRIM),
        (FLUSH, cache == "write back", TransmissionFlags::SEND_FLUSH),
        (FUA, is_positive("fua"), TransmissionFlags::SEND_FUA),
        (ROTATIONAL, is_positive("rotational"), TransmissionFlags::ROTATIONAL),
    ]
    .into_iter()
    .filter(|(_, used, flag)| *used && !has(*flag))
    .map(|(bit, ..)| bit)
    .chain((cache == "write through" && has(TransmissionFlags::SEND_FLUSH)).then_some(NO_FLUSH))
    .fold(0, |found, bit| found | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| format!("{value}\n"))
        }
    }

    #[test]
    fn only_what_the_kernel_uses_and_the_export_lacks_differs() {
        let stale = queue(&[
            ("write_zeroes_max_bytes", "2199023255040"),
            ("discard_max_bytes", "0"),
            ("write_cache", "write back"),
            ("fua", "0"),
            ("rotational", "1"),
        ]);
        let basic = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
        assert_eq!(differences(basic, &stale), WRITE_ZEROES | ROTATIONAL);
        let full = basic
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::ROTATIONAL
            | TransmissionFlags::SEND_TRIM;
        assert_eq!(differences(full, &stale), 0);
        assert_eq!(differences(TransmissionFlags::HAS_FLAGS, queue(&[])), 0);
    }

    #[test]
    fn a_flush_that_is_never_sent_is_found() {
        let through = queue(&[("write_cache", "write through")]);
        let flush = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
        assert_eq!(differences(flush, &through), NO_FLUSH);
        assert_eq!(differences(TransmissionFlags::HAS_FLAGS, &through), 0);
    }
}
