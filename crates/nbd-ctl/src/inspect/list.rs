//! `nbd-ctl list`: all devices, one a line.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use nbd_control::status::Status;
use nbd_control::text::printable;

use crate::cli::{ListArguments, ListColumn};
use crate::context::{Context, print};
use crate::error::Error;
use crate::inspect::listed::{Entry, Listed};
use crate::inspect::render::{NO_VALUE, join, number, some};
use crate::inspect::status::all;
use crate::text::style::is_coloured;
use crate::text::table::{Align, age, painted, size};

/// What is shown if no columns are named.
const USUAL_COLUMNS: [ListColumn; 11] = [
    ListColumn::Device,
    ListColumn::Name,
    ListColumn::Size,
    ListColumn::Backend,
    ListColumn::Pid,
    ListColumn::State,
    ListColumn::Restarts,
    ListColumn::Lanes,
    ListColumn::InFlight,
    ListColumn::Oldest,
    ListColumn::UsedBy,
];
/// Moves the cursor of a terminal to its first line, and clears it.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

/// Lists the devices, once or until Ctrl-C.
pub(crate) fn list(context: &Context, wanted: &ListArguments) -> Result<(), Error> {
    let columns = match wanted.columns.as_slice() {
        [] => &USUAL_COLUMNS,
        named => named,
    };
    let coloured = is_coloured();
    let show = || all(context, wanted.json, |entries| table(entries, columns, coloured));
    let Some(interval) = wanted.watch else { return show() };
    loop {
        if io::stdout().is_terminal() {
            print(CLEAR_SCREEN)?;
        }
        match show() {
            // What cannot be asked has been told, and may answer next time.
            Ok(()) | Err(Error::Several(_)) => {}
            Err(Error::Interrupted(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        if !context.sleep(interval) {
            return Ok(());
        }
    }
}

/// The devices in columns; `coloured` for a terminal.
pub(crate) fn table(entries: &[Entry], columns: &[ListColumn], coloured: bool) -> String {
    let names = columns.iter().map(|column| {
        let name = column.to_possible_value();
        name.map(|name| name.get_name().to_uppercase()).unwrap_or_default()
    });
    let names: Vec<_> = names.collect();
    let header: Vec<_> =
        names.iter().zip(columns).map(|(name, column)| (name.as_str(), align(*column))).collect();
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| columns.iter().map(|column| cell(entry, *column)).collect())
        .collect();
    let paint = |row: usize, column: usize, text: &str| match columns[column] {
        ListColumn::State if coloured => entries[row].listed.state().1.paint(text),
        _ => text.to_owned(),
    };
    join(&painted(&header, &rows, paint))
}

fn align(column: ListColumn) -> Align {
    match column {
        ListColumn::Size
        | ListColumn::Pid
        | ListColumn::Restarts
        | ListColumn::Lanes
        | ListColumn::InFlight
        | ListColumn::Oldest
        | ListColumn::Holder => Align::Right,
        _ => Align::Left,
    }
}

fn cell(entry: &Entry, column: ListColumn) -> String {
    let device = entry.listed.device();
    match (column, &entry.listed) {
        (ListColumn::Device, _) => device.to_owned(),
        (ListColumn::Path, _) => format!("/dev/{device}"),
        (ListColumn::Name, _) => some(entry.name.as_deref().unwrap_or_default()),
        (ListColumn::State, listed) => listed.state().0.to_owned(),
        (ListColumn::UsedBy, _) => used_by(&entry.used_by),
        (_, Listed::Attached(status)) => of_status(status, column),
        (ListColumn::Size, Listed::Orphaned(orphan)) => size(orphan.export.size),
        (ListColumn::Backend, Listed::Orphaned(orphan)) => some(&orphan.description),
        (ListColumn::Pid, Listed::Orphaned(orphan)) => number(orphan.backend_pid),
        (ListColumn::Restarts, Listed::Orphaned(orphan)) => orphan.restarts.to_string(),
        (ListColumn::Lanes, Listed::Orphaned(orphan)) => orphan.lanes.to_string(),
        (ListColumn::Pid, Listed::Abandoned { backend_pid, .. }) => number(*backend_pid),
        _ => NO_VALUE.to_owned(),
    }
}

/// What only the holder knows.
fn of_status(status: &Status, column: ListColumn) -> String {
    let oldest = status.in_flight.first();
    match column {
        ListColumn::Size => match status.export.size {
            // No backend has said yet.
            0 => NO_VALUE.to_owned(),
            bytes => size(bytes),
        },
        ListColumn::Backend => some(&status.backend.description),
        ListColumn::Pid => number(status.backend.pid),
        ListColumn::Restarts => status.backend.restarts.to_string(),
        ListColumn::Lanes => status.lanes.to_string(),
        ListColumn::InFlight => status.in_flight.len().to_string(),
        ListColumn::Oldest => {
            oldest.map_or_else(|| NO_VALUE.to_owned(), |oldest| age(oldest.age_ms))
        }
        ListColumn::Access => if status.read_only { "ro" } else { "rw" }.to_owned(),
        ListColumn::KernelApi => printable(&status.kernel_api, &[]),
        ListColumn::Holder => status.holder_pid.to_string(),
        ListColumn::Device
        | ListColumn::Path
        | ListColumn::Name
        | ListColumn::State
        | ListColumn::UsedBy => NO_VALUE.to_owned(),
    }
}

/// A mount by its place alone, as `df` has it.
fn used_by(users: &[String]) -> String {
    let short = |user: &String| match user.strip_prefix("mounted on ") {
        Some(place) => place.to_owned(),
        None => user.clone(),
    };
    some(&users.iter().map(short).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests;
