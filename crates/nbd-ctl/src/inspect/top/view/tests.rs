use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;
use ratatui::style::Color;

use super::*;
use crate::device::Device;
use crate::inspect::listed::Listed;
use crate::inspect::render::tests::request;
use crate::inspect::top::model::tests::{looked, press, two_devices};
use crate::inspect::top::rates::tests::after_reads;
use nbd_control::status::BackendState;

const PLAIN: Look = Look { colour: false, unicode: true };

fn screen(model: &Model, look: Look, width: u16, height: u16, now: Instant) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model, look, now)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(width.into());
    rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>())
        .map(|line| line.trim_end().to_string())
        .collect()
}

fn late(start: Instant) -> Instant {
    start + Duration::from_secs(3)
}

#[test]
fn eighty_by_twenty_four_has_the_devices_and_their_heat() {
    let start = Instant::now();
    let model = two_devices(start, 4);
    let lines = screen(&model, PLAIN, 80, 24, late(start));
    assert_eq!(lines[0], "nbd-ctl top  2 devices, every 1.0 s, by device");
    assert_eq!(
        lines[1..4],
        [
            "DEVICE STATE         IOPS  READ/s WRITE/s     p50     p99 DEPTH  OLDEST RESTART",
            "nbd0   running          0       0       0       -       -     0       -       0",
            "nbd7   running        500    2.0M       0  524 µs  524 µs     0       -       0",
        ]
    );
    assert_eq!(
        lines[5],
        "p99     ▁ <32 µs  ▃ <512 µs  ▅ <8 ms  ▇ <131 ms  █ more  · idle  ! waits"
    );
    assert_eq!(lines[6], format!("nbd0{:>76}", "···"));
    assert_eq!(lines[7], format!("nbd7{:>76}", "▄▄▄"));
    assert_eq!(lines[22], "nbd0: file:/srv/disk.img");
    assert!(lines[23].starts_with("q quit  up/down select  Enter details"), "{}", lines[23]);
}

#[test]
fn a_small_terminal_is_told_what_it_needs_and_any_size_is_survived() {
    let start = Instant::now();
    let mut model = two_devices(start, 4);
    let lines = screen(&model, PLAIN, 40, 10, late(start));
    assert_eq!(lines[0], "40x10 is too small:");
    assert_eq!(lines[1], "make it 50x10,");
    for details in [false, true] {
        for width in [1, 2, 49, 50, 63, 64, 79, 81, 97, 300] {
            for height in [1, 2, 9, 10, 11, 13, 24, 60] {
                screen(&model, PLAIN, width, height, late(start));
            }
        }
        if !details {
            press(&mut model, KeyCode::Enter);
        }
    }
    let wide = screen(&two_devices(start, 4), PLAIN, 120, 24, late(start));
    assert!(wide[1].contains("p99.9     MAX"), "{}", wide[1]);
    let narrow = screen(&two_devices(start, 4), PLAIN, 50, 10, late(start));
    assert_eq!(narrow[1], "DEVICE STATE         IOPS  READ/s WRITE/s     p99");
}

#[test]
fn of_many_devices_the_selected_one_is_in_sight() {
    let start = Instant::now();
    let mut model = Model::new(Vec::new(), Duration::from_secs(1));
    let devices: Vec<_> = (0..40).map(Device).collect();
    model.round(&devices, start);
    (0..39).for_each(|_| {
        press(&mut model, KeyCode::Down);
    });
    let lines = screen(&model, PLAIN, 80, 24, start);
    assert!(lines.iter().any(|line| line.starts_with("nbd39  ")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("nbd0 ")), "{lines:#?}");
    assert!(lines.iter().filter(|line| line.starts_with("nbd")).count() > 15);
}

#[test]
fn states_that_need_attention_are_said_and_explained() {
    let start = Instant::now();
    let mut model = two_devices(start, 2);
    let mut stopped = after_reads(0);
    stopped.backend.state = BackendState::Stopped;
    stopped.in_flight = vec![request(1), request(2)];
    model.round(&[Device(0), Device(7)], late(start));
    model.handle(looked(0, late(start), Some(Listed::Attached(Box::new(stopped.clone())))));
    let later = late(start) + Duration::from_secs(3);
    let lines = screen(&model, PLAIN, 80, 24, later);
    assert!(lines[2].starts_with("nbd0   stopped          0"), "{}", lines[2]);
    assert!(lines[2].ends_with("    2   2m04s       0"), "{}", lines[2]);
    assert!(lines[3].starts_with("nbd7   no answer"), "{}", lines[3]);
    assert!(lines[6].ends_with('!'), "{}", lines[6]);
    assert_eq!(lines[22], "nbd0: its backend (pid 820) is stopped: kill -CONT 820");
    press(&mut model, KeyCode::Down);
    let lines = screen(&model, PLAIN, 80, 24, later);
    assert_eq!(lines[22], "nbd7: its holder has not answered for 3.0 s: nbd-ctl list");

    stopped.backend.tracer_pid = Some(i32::MAX);
    model.handle(looked(0, later, Some(Listed::Attached(Box::new(stopped)))));
    press(&mut model, KeyCode::Up);
    let lines = screen(&model, PLAIN, 80, 24, later);
    assert!(lines[2].starts_with("nbd0   debugger"), "{}", lines[2]);
    assert!(lines[22].ends_with("is stopped by (pid 2147483647)"), "{}", lines[22]);
}

#[test]
fn details_have_rates_requests_and_the_slowest() {
    let start = Instant::now();
    let mut model = two_devices(start, 2);
    press(&mut model, KeyCode::Enter);
    let mut status = after_reads(10);
    status.in_flight = (0..9).map(request).collect();
    let executed = crate::inspect::top::slow::tests::executed(3, 5_000_000_000, 250_000_000);
    let event = crate::inspect::top::Event::Looked(Box::new(crate::inspect::top::sample::Looked {
        device: Device(0),
        at: late(start),
        found: Some(Listed::Attached(Box::new(status))),
        traced: Some((vec![executed], vec![4])),
    }));
    model.handle(event);
    let lines = screen(&model, PLAIN, 80, 24, late(start));
    assert!(
        lines[0].starts_with("nbd0  running  file:/srv/disk.img, 1.0 GiB, ioctl"),
        "{lines:#?}"
    );
    assert!(lines[1].starts_with("backend: running, pid 820"), "{lines:#?}");
    let has = |words: &str| lines.iter().any(|line| line.contains(words));
    assert!(has("in flight: 9, the oldest") && has("125.0 s") | has("2m05s"), "{lines:#?}");
    assert!(has("slowest of the last minute"), "{lines:#?}");
    assert!(has("5.000  250 ms  write    12288+4096"), "{lines:#?}");
    assert!(lines[23].starts_with("Esc back"), "{lines:#?}");
}

#[test]
fn help_fits_and_ascii_is_enough() {
    let start = Instant::now();
    let mut model = two_devices(start, 4);
    let ascii = Look { colour: true, unicode: false };
    let lines = screen(&model, ascii, 80, 24, late(start));
    assert!(lines.iter().all(|line| line.is_ascii()), "{lines:#?}");
    assert!(lines[7].ends_with("---"), "{}", lines[7]);
    press(&mut model, KeyCode::Char('?'));
    let lines = screen(&model, PLAIN, 80, 24, late(start));
    let last = lines.iter().rfind(|line| !line.is_empty()).unwrap();
    assert_eq!(last, "Any key goes on.");
}

#[test]
fn without_devices_it_says_how_to_attach_one() {
    let start = Instant::now();
    let model = Model::new(Vec::new(), Duration::from_secs(1));
    let lines = screen(&model, PLAIN, 80, 24, start);
    assert_eq!(lines[2], "nothing is attached: nbd-ctl attach file:disk.img");
    let model = Model::new(vec![Device(3)], Duration::from_secs(1));
    assert_eq!(screen(&model, PLAIN, 80, 24, start)[2], "not attached any more: nbd3");
}

#[test]
fn colours_are_used_only_where_they_are_wanted() {
    let start = Instant::now();
    let model = two_devices(start, 4);
    for colour in [true, false] {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let look = Look { colour, unicode: true };
        terminal.draw(|frame| draw(frame, &model, look, late(start))).unwrap();
        let cells = &terminal.backend().buffer().content;
        assert_eq!(cells.iter().any(|cell| cell.fg != Color::Reset), colour);
    }
}
