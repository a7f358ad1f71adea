//! One interval as text or JSON, for scripts and for terminals that cannot move their cursor.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nbd_control::latency::LatencyStatus;
use serde::Serialize;

use crate::context::{Context, eprint, print};
use crate::device::Device;
use crate::error::Error;
use crate::inspect::listed::Listed;
use crate::inspect::status::print_json;
use crate::inspect::top::cells::{COLUMNS, cells, remark, state};
use crate::inspect::top::model::Row;
use crate::inspect::top::sample::{Looked, Looks};
use crate::text::table;

/// A holder that hangs as soon as it is connected to is waited for no longer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// The exit status of what took too long.
const TIMED_OUT_STATUS: u8 = 5;

/// Looks twice and prints what happened in between.
pub(crate) fn once(
    context: &Arc<Context>,
    devices: Vec<Device>,
    interval: Duration,
    json: bool,
) -> Result<(), Error> {
    let (sender, inbox) = channel();
    let looks = Looks::new(context, devices, move |looked| drop(sender.send(looked)));
    let mut rows: Vec<Row> = looks.devices()?.into_iter().map(Row::new).collect();
    if rows.is_empty() {
        eprint("nothing is attached: nbd-ctl attach file:disk.img");
    } else {
        look(context, &looks, &inbox, &mut rows)?;
        if !context.sleep(interval) {
            return Err(Error::Interrupted("nothing is changed".into()));
        }
        look(context, &looks, &inbox, &mut rows)?;
    }
    let now = Instant::now();
    if json {
        print_json(&rows.iter().map(|row| Told::of(row, now)).collect::<Vec<_>>())?;
    } else if !rows.is_empty() {
        let header = COLUMNS.each_ref().map(|column| (column.name, column.align));
        let texts: Vec<_> = rows.iter().map(|row| cells(row, now)).collect();
        let lines = table::columns(header, &texts);
        print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    }
    let unheard = |row: &&Row| matches!(row.found, None | Some(Listed::Unreachable { .. }));
    let unheard: Vec<_> = rows.iter().filter(unheard).collect();
    for row in &unheard {
        match row.found {
            Some(_) => eprint(&remark(row, now)),
            None => {
                eprint(&format!("{}: no answer within {} s", row.device, LOOK_TIMEOUT.as_secs()));
            }
        }
    }
    if unheard.is_empty() { Ok(()) } else { Err(Error::Several(TIMED_OUT_STATUS)) }
}

/// Waits until all have answered, or long enough.
fn look(
    context: &Context,
    looks: &Looks,
    inbox: &Receiver<Looked>,
    rows: &mut Vec<Row>,
) -> Result<(), Error> {
    let devices: Vec<_> = rows.iter().map(|row| row.device).collect();
    looks.look(&devices, None);
    let mut open = devices;
    let deadline = Instant::now() + LOOK_TIMEOUT;
    while !open.is_empty() && Instant::now() < deadline {
        let Ok(looked) = inbox.recv_timeout(Duration::from_millis(50)) else {
            if !context.sleep(Duration::ZERO) {
                return Err(Error::Interrupted("nothing is changed".into()));
            }
            continue;
        };
        open.retain(|&device| device != looked.device);
        match looked.found {
            // It was detached meanwhile.
            None => rows.retain(|row| row.device != looked.device),
            Some(found) => {
                if let Some(row) = rows.iter_mut().find(|row| row.device == looked.device) {
                    row.learn(found, looked.at);
                }
            }
        }
    }
    // What was known of those that have fallen silent is not what is.
    rows.retain_mut(|row| {
        if open.contains(&row.device) {
            *row = Row::new(row.device);
        }
        true
    });
    Ok(())
}

/// A device as JSON. What could not be measured is absent.
#[derive(Serialize)]
struct Told<'a> {
    device: String,
    /// Its name, given at attach.
    name: Option<&'a str>,
    state: &'static str,
    interval_s: Option<f64>,
    reads_per_s: Option<f64>,
    writes_per_s: Option<f64>,
    flushes_per_s: Option<f64>,
    others_per_s: Option<f64>,
    errors_per_s: Option<f64>,
    read_bytes_per_s: Option<f64>,
    written_bytes_per_s: Option<f64>,
    /// All requests of the interval.
    latency: Option<&'a LatencyStatus>,
    /// The same by kind.
    latencies: &'a [LatencyStatus],
    in_flight: Option<usize>,
    oldest_ms: Option<u64>,
    restarts: Option<u64>,
}

impl<'a> Told<'a> {
    fn of(row: &'a Row, now: Instant) -> Self {
        let (rates, status) = (row.rates.as_ref(), row.status());
        Self {
            device: row.device.to_string(),
            name: row.name.as_deref(),
            state: match row.found {
                None => "no answer",
                Some(_) => state(row, now).0,
            },
            interval_s: rates.map(|rates| rates.seconds),
            reads_per_s: rates.map(|rates| rates.reads),
            writes_per_s: rates.map(|rates| rates.writes),
            flushes_per_s: rates.map(|rates| rates.flushes),
            others_per_s: rates.map(|rates| rates.others),
            errors_per_s: rates.map(|rates| rates.errors),
            read_bytes_per_s: rates.map(|rates| rates.read_bytes),
            written_bytes_per_s: rates.map(|rates| rates.written_bytes),
            latency: rates.map(|rates| &rates.all),
            latencies: rates.map_or(&[], |rates| &rates.kinds),
            in_flight: status.map(|status| status.in_flight.len()),
            oldest_ms: status.and_then(|status| status.in_flight.first()).map(|it| it.age_ms),
            restarts: status.map(|status| status.backend.restarts),
        }
    }
}
