//! `nbd-ctl record`: has the backends of a device write down their requests, with their data.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbd_control::control::{Request, Response};
use nbd_control::status::Status;
use nbd_record::file::{reopen, state};
use nbd_record::{Capture, CaptureError, CaptureHeader, CaptureState, writer};

use crate::context::{Context, eprint, progress};
use crate::debug::on_itself;
use crate::device::Device;
use crate::error::Error;
use crate::holder::client::HolderClient;
use crate::inspect::render::count;
use crate::inspect::status;
use crate::text::table::size;

/// The holder does it by itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a backend may take to start.
const BACKEND_START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often to look whether it goes on.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How often an operator at a terminal is told how much there is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// So many requests are named at most.
const MAX_NAMED_REQUESTS: usize = 10;

/// What to record.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) device: Device,
    pub(crate) file: PathBuf,
    /// In bytes.
    pub(crate) limit: u64,
    /// When to stop.
    pub(crate) time: Option<Duration>,
    /// Return at once; the recording goes on.
    pub(crate) background: bool,
}

/// Records until Ctrl-C, or until the recording is over by itself.
pub(crate) fn record(context: &Context, wanted: &Record) -> Result<(), Error> {
    let device = wanted.device;
    let mut holder = HolderClient::connect(context, device)?;
    let status = told(&mut holder, device)?;
    clear(&mut holder, device, &status)?;
    let path = absolute(&wanted.file)?;
    if let Some(needed) = on_itself(device, &[("the recording", path.clone())]) {
        return Err(Error::RecordsItself { device, needed });
    }
    let file = create(&path, device, &status, wanted.limit)?;
    match begin(&mut holder, device, &path, &file) {
        Ok(text) => eprint(&text),
        Err(error) => {
            give_up(context, device, &path, &file);
            return Err(error);
        }
    }
    let name = path.display();
    let until = if let Some(time) = wanted.time {
        format!("{} s have passed, or Ctrl-C", time.as_secs_f64())
    } else if wanted.background {
        format!("`nbd-ctl record --stop {device}`")
    } else {
        "Ctrl-C".into()
    };
    eprint(&format!("recording to {name}, at most {}, until {until}", size(wanted.limit)));
    if wanted.background {
        return Ok(());
    }
    watch(context, wanted, &file);
    finish(context, device, &path, &file)
}

/// Of a file that does not exist yet, for a holder in another directory.
fn absolute(file: &Path) -> Result<PathBuf, Error> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::canonicalize(folder.unwrap_or(Path::new(".")));
    let folder = folder.map_err(|error| failed(file, error.into()))?;
    Ok(folder.join(file.file_name().unwrap_or_default()))
}

/// Ends the recording that is under way.
pub(crate) fn stop(context: &Context, device: Device) -> Result<(), Error> {
    let status = told(&mut HolderClient::connect(context, device)?, device)?;
    let Some(path) = status.recording.map(PathBuf::from) else {
        return Err(Error::NotRecorded { device });
    };
    match reopen(&path) {
        Ok(file) => finish(context, device, &path, &file),
        Err(error) => {
            end(context, device)?;
            Err(failed(&path, error))
        }
    }
}

fn told(holder: &mut HolderClient<'_>, device: Device) -> Result<Box<Status>, Error> {
    holder.send(&Request::Status)?;
    match holder.answer(Some(ANSWER_TIMEOUT), "")? {
        Response::Status(status) => Ok(status),
        _ => Err(Error::Confused { device }),
    }
}

/// One that is over, because it was full, needs no order to make room for the next one.
fn clear(holder: &mut HolderClient<'_>, device: Device, status: &Status) -> Result<(), Error> {
    let Some(path) = &status.recording else {
        return Ok(());
    };
    let goes_on = reopen(Path::new(path)).ok().and_then(|file| state(&file).ok());
    if goes_on == Some(CaptureState::Going) {
        return Err(Error::Recorded { device, path: path.into() });
    }
    holder.order(&Request::EndRecording, Some(ANSWER_TIMEOUT), "").map(drop)
}

fn create(path: &Path, device: Device, status: &Status, limit: u64) -> Result<File, Error> {
    // It holds what was written to the device, and other users must not read that.
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|error| failed(path, error.into()))?;
    writer::begin(&file, &device.to_string(), status.export, status.lanes, limit)
        .map_err(|error| failed(path, error.into()))?;
    Ok(file)
}

fn begin(
    holder: &mut HolderClient<'_>,
    device: Device,
    path: &Path,
    file: &File,
) -> Result<String, Error> {
    holder.send_with(&Request::Record { path: path.display().to_string() }, file)?;
    let doing = "starting its backend anew, to record it";
    match holder.answer_order(Some(BACKEND_START_TIMEOUT), doing)? {
        Response::Done { text } => Ok(text),
        _ => Err(Error::Confused { device }),
    }
}

/// Leaves nothing behind of a recording that has not begun, and an end to one that may have.
fn give_up(context: &Context, device: Device, path: &Path, file: &File) {
    let _ = writer::stop(file, CaptureState::Stopped);
    if let Ok(context) = context.without_interrupts()
        && status::of(&context, device)
            .is_ok_and(|status| status.recording.as_deref() == path.to_str())
    {
        let _ = end(&context, device);
    }
    if file.metadata().is_ok_and(|meta| meta.len() <= CaptureHeader::LENGTH) {
        let _ = fs::remove_file(path);
    }
}

/// Returns when the recording shall end, or has.
fn watch(context: &Context, wanted: &Record, file: &File) {
    let begin = Instant::now();
    let mut news = begin;
    loop {
        let left = wanted.time.map_or(POLL_INTERVAL, |time| time.saturating_sub(begin.elapsed()));
        if left.is_zero() || !context.sleep(left.min(POLL_INTERVAL)) {
            return;
        }
        let is_over = state(file).is_ok_and(|state| state != CaptureState::Going);
        if is_over || HolderClient::connect_to_look(context, wanted.device).is_err() {
            return;
        }
        if news.elapsed() >= PROGRESS_INTERVAL {
            news = Instant::now();
            let length = file.metadata().map_or(0, |meta| meta.len());
            progress(&format!("{}: {} recorded", wanted.device, size(length)));
        }
    }
}

/// Ends it, if it is not over, and tells what there is.
fn finish(context: &Context, device: Device, path: &Path, file: &File) -> Result<(), Error> {
    let found = state(file).map_err(|error| failed(path, error.into()))?;
    if found == CaptureState::Going {
        writer::stop(file, CaptureState::Stopped).map_err(|error| failed(path, error.into()))?;
    }
    // The device may be gone by now.
    let _ = end(&context.without_interrupts()?, device);
    let recording = open(path)?;
    eprint(&summary(&recording, path));
    match found {
        CaptureState::Failed(_) => {
            Err(Error::CutShort { path: path.into(), why: found.to_string() })
        }
        CaptureState::Full => {
            eprint(&format!("the recording has ended early: {found}; --limit allows more"));
            Ok(())
        }
        CaptureState::Going | CaptureState::Stopped => Ok(()),
    }
}

fn end(context: &Context, device: Device) -> Result<(), Error> {
    let mut holder = HolderClient::connect_to_look(context, device)?;
    holder.order(&Request::EndRecording, Some(ANSWER_TIMEOUT), "").map(drop)
}

/// Reads a recording.
pub(crate) fn open(path: &Path) -> Result<Capture, Error> {
    let file = File::open(path).map_err(|error| failed(path, error.into()))?;
    Capture::read(file).map_err(|error| failed(path, error))
}

pub(crate) fn failed(path: &Path, source: CaptureError) -> Error {
    Error::Recording { path: path.into(), source }
}

/// What there is in a recording, in words.
pub(crate) fn summary(recording: &Capture, path: &Path) -> String {
    let requests = count(recording.requests.len() as u32, "request");
    let backends = count(recording.backend_count() as u32, "backend");
    let mut text = format!("{}: {requests} of {backends}", path.display());
    if recording.backend_count() == 0 {
        text += "; its backends do not write down what they do, or have not begun";
    }
    if recording.torn > 0 {
        text = format!("{text}; {} bytes at the end are no whole entry", recording.torn);
    }
    let all = || recording.requests.iter().enumerate();
    let list = |what: &str, indices: Vec<usize>| {
        let mut text = match indices.len() {
            0 => return String::new(),
            number => format!("\n{what}: {}", count(number as u32, "request")),
        };
        for &index in indices.iter().take(MAX_NAMED_REQUESTS) {
            text = format!("{text}\n  {}", recording.describe(index));
        }
        text
    };
    text += &list("not answered", recording.unanswered().collect());
    let again = all().filter(|(_, it)| it.backends > 1);
    text += &list("had by another backend when one was lost", again.map(|it| it.0).collect());
    if recording.requests.len() <= MAX_NAMED_REQUESTS {
        text += &list("in all", all().map(|it| it.0).collect());
    }
    text
}
