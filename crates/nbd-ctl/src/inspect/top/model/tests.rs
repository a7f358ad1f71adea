use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::inspect::top::rates::tests::after_reads;

pub(crate) fn press(model: &mut Model, code: KeyCode) -> Then {
    model.handle(Event::Terminal(Input::Key(KeyEvent::new(code, KeyModifiers::NONE))))
}

pub(crate) fn looked(device: u32, at: Instant, found: Option<Listed>) -> Event {
    Event::Looked(Box::new(Looked { device: Device(device), at, found, traced: None }))
}

fn attached(reads: u64) -> Option<Listed> {
    Some(Listed::Attached(Box::new(after_reads(reads))))
}

/// Two devices, the second of which reads, after `seconds` of a look each second.
pub(crate) fn two_devices(start: Instant, seconds: u64) -> Model {
    let mut model = Model::new(Vec::new(), Duration::from_secs(1));
    for second in 0..seconds {
        let now = start + Duration::from_secs(second);
        model.round(&[Device(0), Device(7)], now);
        model.handle(looked(0, now, attached(0)));
        model.handle(looked(7, now, attached(500 * second)));
    }
    model
}

fn order(model: &Model) -> Vec<u32> {
    model.rows().iter().map(|row| row.device.0).collect()
}

#[test]
fn devices_are_sorted_by_what_is_asked_for_and_the_selection_stays() {
    let mut model = two_devices(Instant::now(), 3);
    assert_eq!(model.rows()[1].rates.as_ref().unwrap().reads, 500.0);
    assert_eq!((order(&model), model.selected().unwrap().device), (vec![0, 7], Device(0)));
    press(&mut model, KeyCode::Char('s'));
    assert_eq!((model.sort, order(&model)), (Sort::Requests, vec![7, 0]));
    assert_eq!(model.selected().unwrap().device, Device(0));
    press(&mut model, KeyCode::Down);
    assert_eq!(model.selected().unwrap().device, Device(0), "it is the last one now");
    press(&mut model, KeyCode::Up);
    assert_eq!(model.selected().unwrap().device, Device(7));
    (0..5).for_each(|_| assert_eq!(press(&mut model, KeyCode::Char('s')), Then::Go));
    assert_eq!(model.sort, Sort::Name);
}

#[test]
fn details_are_of_the_selected_device_and_end_with_it() {
    let start = Instant::now();
    let mut model = two_devices(start, 2);
    assert_eq!(model.followed(), None);
    press(&mut model, KeyCode::Enter);
    assert_eq!(model.followed(), Some((Device(0), Vec::new())));
    press(&mut model, KeyCode::Down);
    assert_eq!(model.followed(), Some((Device(7), Vec::new())));
    model.handle(looked(7, start, None));
    assert_eq!((order(&model), model.details), (vec![0], false));
    press(&mut model, KeyCode::Enter);
    press(&mut model, KeyCode::Esc);
    assert!(!model.details);
    model.round(&[], start);
    assert!(model.rows().is_empty() && model.selected().is_none());
    assert_eq!(press(&mut model, KeyCode::Enter), Then::Go);
    assert!(!model.details, "there is nothing to tell about");
}

#[test]
fn a_holder_that_does_not_answer_is_silent_and_asked_no_more() {
    let start = Instant::now();
    let mut model = two_devices(start, 2);
    let late = |seconds| start + Duration::from_secs(seconds);
    for second in 2..6 {
        model.round(&[Device(0), Device(7)], late(second));
        model.handle(looked(0, late(second), attached(0)));
    }
    let rows = model.rows();
    assert_eq!(rows[0].silent(late(6)), None);
    assert_eq!(rows[1].silent(late(6)), Some(Duration::from_secs(4)));
    assert_eq!(rows[1].history.latest(3).collect::<Vec<_>>(), [Cell::Silent; 3]);
    model.handle(looked(7, late(6), attached(7000)));
    assert_eq!(model.rows()[1].silent(late(6)), None);
    assert_eq!(model.rows()[1].rates.as_ref().unwrap().seconds, 5.0, "the whole gap");
}

#[test]
fn what_comes_during_a_pause_changes_nothing() {
    let start = Instant::now();
    let mut model = two_devices(start, 2);
    assert_eq!(press(&mut model, KeyCode::Char('p')), Then::LookSoon);
    assert!(model.paused());
    model.handle(looked(7, start + Duration::from_secs(9), attached(90_000)));
    assert_eq!(model.rows()[1].rates.as_ref().unwrap().reads, 500.0);
    press(&mut model, KeyCode::Char(' '));
    assert!(!model.paused());
}

#[test]
fn intervals_have_a_shortest_and_a_longest() {
    let mut model = Model::new(Vec::new(), Duration::from_millis(1500));
    press(&mut model, KeyCode::Char('-'));
    assert_eq!(model.interval(), Duration::from_secs(1));
    (0..20).for_each(|_| {
        press(&mut model, KeyCode::Char('-'));
    });
    assert_eq!(model.interval(), Duration::from_millis(100));
    (0..20).for_each(|_| {
        press(&mut model, KeyCode::Char('+'));
    });
    assert_eq!(model.interval(), Duration::from_secs(300));
}

#[test]
fn it_ends_when_it_is_told_to() {
    let mut model = two_devices(Instant::now(), 1);
    press(&mut model, KeyCode::Char('?'));
    assert!(model.help);
    press(&mut model, KeyCode::Down);
    assert!(!model.help && model.selected().unwrap().device == Device(0), "that only closed it");
    press(&mut model, KeyCode::Char('?'));
    assert_eq!(press(&mut model, KeyCode::Char('x')), Then::Go);
    assert!(!model.help, "any key goes on, also one without a meaning");
    assert_eq!(model.handle(Event::Terminal(Input::Resize(1, 1))), Then::Go);
    assert_eq!(press(&mut model, KeyCode::Char('q')), Then::End);
    assert_eq!(model.handle(Event::End), Then::End);
}
