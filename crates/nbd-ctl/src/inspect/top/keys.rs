//! What keys do: one table for the program and for its help.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Quit,
    Back,
    Up,
    Down,
    Open,
    Sort,
    Pause,
    Longer,
    Shorter,
    Help,
    Redraw,
}

/// What it is called on the screen, which keys those are, what it does.
pub(crate) const KEYS: [(Key, &str, &[KeyCode], &str); 11] = [
    (Key::Quit, "q", &[KeyCode::Char('q'), KeyCode::Char('Q')], "quit; also Ctrl-C"),
    (Key::Up, "up, k", &[KeyCode::Up, KeyCode::Char('k')], "select the device above"),
    (Key::Down, "down, j", &[KeyCode::Down, KeyCode::Char('j')], "select the device below"),
    (Key::Open, "Enter", &[KeyCode::Enter], "details of the selected device, and back"),
    (Key::Back, "Esc", &[KeyCode::Esc, KeyCode::Backspace], "back to the list"),
    (Key::Sort, "s", &[KeyCode::Char('s')], "sort by the next column"),
    (Key::Pause, "p", &[KeyCode::Char('p'), KeyCode::Char(' ')], "pause, and go on"),
    (Key::Longer, "+", &[KeyCode::Char('+'), KeyCode::Char('=')], "longer intervals"),
    (Key::Shorter, "-", &[KeyCode::Char('-')], "shorter intervals"),
    (Key::Help, "?", &[KeyCode::Char('?'), KeyCode::Char('h'), KeyCode::F(1)], "this text"),
    (Key::Redraw, "Ctrl-L", &[], "draw the screen anew"),
];

/// What a key is for, if anything.
pub(crate) fn meaning(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    if event.modifiers.contains(KeyModifiers::CONTROL) {
        return match event.code {
            KeyCode::Char('c') => Some(Key::Quit),
            KeyCode::Char('l') => Some(Key::Redraw),
            _ => None,
        };
    }
    KEYS.iter().find(|(_, _, codes, _)| codes.contains(&event.code)).map(|(key, ..)| *key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_means_one_thing() {
        for (key, _, codes, _) in KEYS {
            for &code in codes {
                let event = KeyEvent::new(code, KeyModifiers::NONE);
                assert_eq!(meaning(event), Some(key), "{code}");
            }
        }
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        assert_eq!(meaning(control('c')), Some(Key::Quit));
        assert_eq!(meaning(control('l')), Some(Key::Redraw));
        assert_eq!(meaning(control('q')), None);
        assert_eq!(meaning(KeyEvent::new(KeyCode::Char('x'), KeyModifiers::NONE)), None);
    }
}
