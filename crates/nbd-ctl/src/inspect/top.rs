//! `nbd-ctl top`: devices as they are at work, on a terminal.
//!
//! | module | idea |
//! |---|---|
//! | [`sample`] | looks at devices, each in a thread of its own: a holder that hangs delays no other look |
//! | [`rates`] | what happened between two looks |
//! | [`history`] | an interval as one cell of a heat line |
//! | [`slow`] | the slowest requests of the flight recorder |
//! | [`model`] | what is known and what is shown of it: events in, no I/O |
//! | [`keys`] | what keys do, in one table for the program and for its help |
//! | [`cells`] | a device as a row of a table |
//! | [`view`] | the model on a terminal |
//! | [`once`] | one interval as text or JSON |

mod cells;
mod history;
mod keys;
mod model;
mod once;
mod rates;
mod sample;
mod slow;
mod view;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event;

use crate::cli::TopArguments;
use crate::context::Context;
use crate::device::Device;
use crate::error::Error;
use crate::holder::device_state::{DeviceState, no_device, probe};
use crate::inspect::top::model::{Event, Model, Then};
use crate::inspect::top::sample::Looks;
use crate::inspect::top::view::look::Look;

/// Watches devices until the user has seen enough.
pub(crate) fn top(
    context: &Arc<Context>,
    devices: Vec<Device>,
    wanted: &TopArguments,
) -> Result<(), Error> {
    for &device in &devices {
        if matches!(probe(&context.registry, device)?, DeviceState::Absent) {
            return Err(no_device(&context.registry, device));
        }
    }
    if wanted.once {
        return once::once(context, devices, wanted.interval, wanted.json);
    }
    let look = terminal_look()?;
    let (events, inbox) = channel();
    let looks = Looks::new(context, devices.clone(), {
        let events = events.clone();
        move |looked| drop(events.send(Event::Looked(Box::new(looked))))
    });
    // A registry that cannot be read is told before the screen is cleared.
    looks.devices()?;
    let mut terminal = ratatui::try_init().map_err(Error::Terminal)?;
    listen(context, events);
    let result = watch(&mut terminal, &looks, &inbox, Model::new(devices, wanted.interval), look);
    ratatui::restore();
    result
}

/// Keys and signals become events. The threads end with the process.
fn listen(context: &Arc<Context>, events: Sender<Event>) {
    let (context, signalled) = (Arc::clone(context), events.clone());
    thread::spawn(move || {
        while context.sleep(Duration::from_secs(3600)) {}
        let _ = signalled.send(Event::End);
    });
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if events.send(Event::Terminal(event)).is_err() {
                return;
            }
        }
        let _ = events.send(Event::End);
    });
}

fn watch(
    terminal: &mut DefaultTerminal,
    looks: &Looks,
    inbox: &Receiver<Event>,
    mut model: Model,
    look: Look,
) -> Result<(), Error> {
    let mut due = Instant::now();
    loop {
        let now = Instant::now();
        if !model.paused() && now >= due {
            let devices = looks.devices()?;
            model.round(&devices, now);
            looks.look(&devices, model.followed().as_ref());
            due = now + model.interval();
        }
        terminal.draw(|frame| view::draw(frame, &model, look, now)).map_err(Error::Terminal)?;
        // While it is paused nothing but a key changes anything.
        let rest = if model.paused() { Duration::from_secs(3600) } else { due - now };
        let first = match inbox.recv_timeout(rest) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        for event in std::iter::once(first).chain(inbox.try_iter()) {
            match model.handle(event) {
                Then::Go => {}
                Then::LookSoon => due = due.min(Instant::now() + model.interval()),
                Then::Redraw => terminal.clear().map_err(Error::Terminal)?,
                Then::End => return Ok(()),
            }
        }
    }
}

/// What the terminal can show; an error if it is none.
fn terminal_look() -> Result<Look, Error> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let refused = |why: &str| {
        Err(Error::Usage(format!("top: {why}: use nbd-ctl top --once, which prints lines")))
    };
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return refused("needs a terminal");
    }
    if matches!(variable("TERM").as_str(), "" | "dumb") {
        return refused("this terminal cannot move its cursor (TERM)");
    }
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(variable);
    let locale = locale.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    Ok(Look {
        colour: variable("NO_COLOR").is_empty(),
        unicode: locale.contains("utf-8") || locale.contains("utf8"),
    })
}
