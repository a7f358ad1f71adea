use nbd_control::backend::ExportInfo;
use nbd_control::status::{BackendState, BackendStatus};

use super::*;
use crate::device::Device;
use crate::inspect::listed::Orphan;
use crate::inspect::render::tests::{example, request};

fn entry(listed: Listed) -> Entry {
    Entry { listed, name: None, used_by: Vec::new() }
}

#[test]
fn a_list_of_all_kinds() {
    let mut busy = example();
    busy.device = "nbd12".into();
    busy.backend.restarts = 3;
    busy.backend.state = BackendState::Restarting;
    busy.backend.pid = None;
    busy.in_flight = vec![request(0), request(1)];
    let orphan = Orphan {
        device: "nbd13".into(),
        holder_pid: 1,
        sitter_pid: 2,
        backend_pid: Some(77),
        description: "mem:1M".into(),
        export: ExportInfo { size: 1 << 20, block_size: 512, flags: 0 },
        lanes: 4,
        restarts: 1,
    };
    let mut waiting = example();
    waiting.device = "nbd1".into();
    waiting.export.size = 0;
    waiting.lanes = 0;
    waiting.backend = BackendStatus {
        state: BackendState::Waiting,
        pid: None,
        description: String::new(),
        ..waiting.backend
    };
    let devices = [
        Listed::Attached(Box::new(example())),
        Listed::Attached(Box::new(waiting)),
        Listed::Attached(Box::new(busy)),
        Listed::Orphaned(Box::new(orphan)),
        Listed::Stale { device: Device(14).to_string(), detail: String::new() },
        Listed::unreachable(Device(15), &Error::Forbidden { device: Device(15) }),
    ];
    let mut entries = devices.map(entry);
    entries[0].name = Some("backup".into());
    entries[0].used_by = vec!["mounted on /mnt".into(), "used by dm-0".into()];
    assert_eq!(
        table(&entries, &USUAL_COLUMNS, false),
        "\
DEVICE  NAME       SIZE  BACKEND             PID  STATE          RESTARTS  LANES  IN-FLIGHT  OLDEST  USED-BY
nbd0    backup  1.0 GiB  file:/srv/disk.img  820  running               0      2          0       -  /mnt, used by dm-0
nbd1    -             -  -                     -  waiting               0      0          0       -  -
nbd12   -       1.0 GiB  file:/srv/disk.img    -  restarting            3      2          2   2m05s  -
nbd13   -       1.0 MiB  mem:1M               77  orphaned              1      4          -       -  -
nbd14   -             -  -                     -  stale                 -      -          -       -  -
nbd15   -             -  -                     -  no permission         -      -          -       -  -
"
    );
}

#[test]
fn columns_are_those_that_are_named_and_states_have_colours() {
    let entries = [entry(Listed::Attached(Box::new(example())))];
    let columns = [ListColumn::State, ListColumn::KernelApi, ListColumn::Access, ListColumn::Path];
    assert_eq!(
        table(&entries, &columns, false),
        "STATE    KERNEL-API  ACCESS  PATH\nrunning  ioctl       rw      /dev/nbd0\n"
    );
    assert_eq!(
        table(&entries, &[ListColumn::State, ListColumn::Device], true),
        "STATE    DEVICE\n\x1b[32mrunning\x1b[0m  nbd0\n"
    );
}
