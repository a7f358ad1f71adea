//! `nbd-serve --list`: the exports of another server, in words.

use std::time::Duration;

use nbd_client::{ClientError, ListedExport, Target};
use nbd_control::text::printable;
use thiserror::Error;

use crate::size::Size;
use crate::spec::Spec;

/// How long a server may take to list its exports.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Error)]
pub(crate) enum ListError {
    #[error("{0}: --list needs the URI of a server, like nbd://HOST or nbd+unix:///?socket=PATH")]
    NotUri(String),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A line for each export of the server that a SPEC names, below a head.
pub(crate) fn list(spec: &Spec) -> Result<String, ListError> {
    let Spec::Remote(Target::Uri(uri)) = spec else {
        return Err(ListError::NotUri(spec.to_string()));
    };
    Ok(table(&nbd_client::list(uri, LIST_TIMEOUT)?))
}

fn table(exports: &[ListedExport]) -> String {
    let head = ["NAME", "SIZE", "ACCESS", "DESCRIPTION"].map(str::to_owned);
    let rows: Vec<_> = [head].into_iter().chain(exports.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [name, size, access] = [0, 1, 2].map(|column| width(column).unwrap_or_default());
    let line = |row: &[String; 4]| {
        let text = format!("{:name$}  {:>size$}  {:access$}  {}", row[0], row[1], row[2], row[3]);
        format!("{}\n", text.trim_end())
    };
    rows.iter().map(line).collect()
}

/// What a server says may be meant for the terminal.
fn cells(export: &ListedExport) -> [String; 4] {
    let name =
        if export.name.is_empty() { "(default)".into() } else { printable(&export.name, &[]) };
    let size = export.shape.map_or("?".into(), |(size, _)| Size(size).to_string());
    let access = match export.is_read_only() {
        Some(true) => "ro",
        Some(false) => "rw",
        None => "?",
    };
    [name, size, access.into(), printable(&export.description, &[])]
}
