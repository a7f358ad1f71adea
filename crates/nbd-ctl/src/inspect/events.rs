//! `nbd-ctl events`: what the holders log with an event's name, as it happens.
//!
//! No process is asked: the logs are read. A log that is full becomes `log.old` while it is read, and that
//! of a device that is gone `nbdN.log.last`; so a file stays open until a look has found its end after it
//! lost its name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nbd_control::text::printable;
use serde::Serialize;

use crate::context::{Context, print};
use crate::device::Device;
use crate::error::Error;
use crate::holder::device_state::{devices, no_device};
use crate::text::wall_clock;

/// How often to look for more.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Most bytes that are taken of a log in one look. Holders keep it shorter than that.
const MAX_READ_BYTES: u64 = 2 << 20;
/// Most bytes of a line that is kept until its end has come.
const MAX_LINE_BYTES: usize = 64 << 10;
/// What stands before an event's name.
const EVENT_MARK: &str = " event=";

/// Shows events until Ctrl-C.
pub(crate) fn events(context: &Context, device: Option<Device>, json: bool) -> Result<(), Error> {
    let mut logs: BTreeMap<Device, Log> = BTreeMap::new();
    let mut is_first_look = true;
    if let Some(device) = device.filter(|&device| !context.registry.folder(device.0).exists()) {
        return Err(no_device(&context.registry, device));
    }
    loop {
        let mut found = devices(&context.registry)?;
        found.retain(|it| device.is_none_or(|wanted| wanted == *it));
        for (&device, log) in &mut logs {
            show(device, &log.take().map_err(|error| failed(context, device, error))?, json)?;
        }
        logs.retain(|device, _| found.contains(device));
        for &device in &found {
            let opened = open(context, device, logs.get(&device), is_first_look);
            let opened = opened.map_err(|error| failed(context, device, error))?;
            let Some(log) = opened else { continue };
            // What was written to the one before since it was looked at, and before it was full.
            if let Some(mut full) = logs.insert(device, log) {
                show(device, &full.take().map_err(|error| failed(context, device, error))?, json)?;
            }
        }
        is_first_look = false;
        if !context.sleep(POLL_INTERVAL) {
            return Ok(());
        }
    }
}

/// A log that is followed.
struct Log {
    file: File,
    inode: u64,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

/// The log of a device unless it is the one that is followed already. Of what was logged before the first
/// look nothing is shown.
fn open(
    context: &Context,
    device: Device,
    followed: Option<&Log>,
    from_its_end: bool,
) -> io::Result<Option<Log>> {
    let mut file = match File::open(context.registry.log(device.0)) {
        Ok(file) => file,
        // It is just being made, or has just gone.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let inode = file.metadata()?.ino();
    if followed.is_some_and(|log| log.inode == inode) {
        return Ok(None);
    }
    if from_its_end {
        file.seek(SeekFrom::End(0))?;
    }
    Ok(Some(Log { file, inode, begun: Vec::new() }))
}

impl Log {
    /// The lines that have come.
    fn take(&mut self) -> io::Result<Vec<String>> {
        let mut bytes = std::mem::take(&mut self.begun);
        (&mut self.file).take(MAX_READ_BYTES).read_to_end(&mut bytes)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.begun = bytes.split_off(end);
        self.begun.truncate(MAX_LINE_BYTES);
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// An event as JSON.
#[derive(Serialize)]
struct Told<'a> {
    time: String,
    device: String,
    event: &'a str,
    /// The whole line of the log.
    text: &'a str,
}

fn show(device: Device, lines: &[String], json: bool) -> Result<(), Error> {
    let mut text = String::new();
    for line in lines {
        let Some(event) = event_of(line) else { continue };
        let now = wall_clock::now();
        if json {
            let (time, device) = (wall_clock::timestamp(now), device.to_string());
            let told = Told { time, device, event, text: line };
            let told = serde_json::to_string(&told).map_err(|error| Error::Output(error.into()))?;
            text.push_str(&told);
        } else {
            // The holder's name and the device's stand before what it says.
            let said = line.split_once(&format!(" {device}: ")).map_or(line.as_str(), |(_, it)| it);
            let said = printable(said, &[]);
            text.push_str(&format!("{} {device} {said}", wall_clock::date(now)));
        }
        text.push('\n');
    }
    if text.is_empty() { Ok(()) } else { print(&text) }
}

/// The name of the event that a line tells, if a holder has written it: what backends say is quoted.
fn event_of(line: &str) -> Option<&str> {
    let (said, rest) = line.split_once(EVENT_MARK)?;
    let name = rest.split(' ').next()?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    (said.starts_with("nbd-kernel-holder: ") && is_name && !name.is_empty()).then_some(name)
}

fn failed(context: &Context, device: Device, source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::PermissionDenied => Error::Forbidden { device },
        _ => Error::Registry { path: context.registry.log(device.0), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_holder_tells_events() {
        let line = "nbd-kernel-holder: nbd0: backend 7 killed event=backend-lost pid=7";
        assert_eq!(event_of(line), Some("backend-lost"));
        for other in [
            "nbd-kernel-holder: nbd0: requests are recorded to /tmp/a",
            "nbd-serve: words event=backend-lost",
            "nbd-kernel-holder: nbd0: said event=\x1b[2J",
        ] {
            assert_eq!(event_of(other), None, "{other}");
        }
    }
}
