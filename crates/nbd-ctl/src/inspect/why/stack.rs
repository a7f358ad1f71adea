//! What a thread does in the kernel, by the functions that it is in.

/// The first function of a stack that is known here says it. Functions that only sleep say
/// nothing, so the order is that of the stack and not of this table.
const KNOWN_FUNCTIONS: [(&str, &str); 30] = [
    ("sock_alloc_send_pskb", "sends to the backend; the socket is full"),
    ("unix_stream_sendmsg", "sends to the backend; the socket is full"),
    ("nbd_handle_cmd", "waits for another thread that is sending to the backend"),
    ("nbd_queue_rq", "waits for another thread that is sending to the backend"),
    ("nbd_start_device_ioctl", "sits in NBD_DO_IT"),
    ("blk_mq_freeze_queue_wait", "waits until nothing is in flight, to change the device"),
    ("blk_mq_get_tag", "waits for a free request: as many are in flight as the driver takes"),
    ("rq_qos_wait", "is throttled: much is being written back"),
    ("balance_dirty_pages", "is throttled until dirty memory is written back"),
    ("jbd2_log_wait_commit", "waits for the journal"),
    ("jbd2_journal_commit_transaction", "writes the journal"),
    ("wait_transaction_locked", "waits for the journal"),
    ("blkdev_issue_flush", "flushes"),
    ("__wait_on_buffer", "reads metadata of the file system"),
    ("__blkdev_direct_IO_simple", "does direct I/O"),
    ("__blkdev_direct_IO", "does direct I/O"),
    ("blkdev_direct_IO", "does direct I/O"),
    ("__iomap_dio_rw", "does direct I/O"),
    ("folio_wait_writeback", "waits for writeback"),
    ("wait_on_page_writeback", "waits for writeback"),
    ("__filemap_fdatawait_range", "waits for writeback"),
    ("filemap_read", "reads through the cache"),
    ("filemap_get_pages", "reads through the cache"),
    ("filemap_fault", "touches a mapped file"),
    ("bdev_disk_changed", "looks for partitions"),
    ("blkdev_get_by_dev", "opens the device; another process is opening or closing it"),
    ("blkdev_put", "closes the device; another process is opening or closing it"),
    ("blkdev_llseek", "waits while another process uses the device"),
    ("blkdev_read_iter", "reads"),
    ("blkdev_write_iter", "writes"),
];

/// Where every thread is that sleeps.
const SLEEP_FUNCTIONS: [&str; 6] = [
    "__switch_to",
    "__schedule",
    "schedule",
    "schedule_timeout",
    "io_schedule",
    "io_schedule_timeout",
];

/// What a thread with this stack does, if that can be told.
pub(crate) fn doing(stack: &[String]) -> Option<&'static str> {
    stack.iter().find_map(|function| {
        KNOWN_FUNCTIONS.iter().find(|(name, _)| *name == function).map(|(_, words)| *words)
    })
}

/// The functions of `/proc/PID/stack` that say something, the innermost first.
pub(crate) fn functions(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            // [<0>] io_schedule+0x46/0x80
            let symbol = line.split_once("] ")?.1.trim();
            let name = symbol.split(['+', ' ']).next()?;
            let plain = name.split('.').next()?;
            let says =
                !plain.is_empty() && !plain.starts_with("0x") && !SLEEP_FUNCTIONS.contains(&plain);
            says.then(|| plain.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_known_function_decides() {
        let text = "\
[<0>] io_schedule+0x46/0x80
[<0>] submit_bio_wait+0x57/0x70
[<0>] __blkdev_direct_IO_simple.constprop.0+0x16a/0x290
[<0>] blkdev_read_iter+0x8f/0x1a0 [nbd]
[<0>] vfs_read+0x1d5/0x320
[<0>] 0x55d0
";
        let stack = functions(text);
        let names =
            ["submit_bio_wait", "__blkdev_direct_IO_simple", "blkdev_read_iter", "vfs_read"];
        assert_eq!(stack, names);
        assert_eq!(doing(&stack), Some("does direct I/O"));
        assert_eq!(doing(&stack[..1]), None);
    }
}
