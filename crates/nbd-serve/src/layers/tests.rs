use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nbd_backend::{AsyncBackend, Backend, Command, Geometry, Task, ZeroOptions};
use nbd_control::settings;

use super::layered::Layered;
use super::*;
use crate::spec::MemorySpec;
use crate::storage::file::{FileExport, FileKind};
use crate::storage::mem;
use crate::storage::synthetic::{self, Null, Pattern};
use crate::testing::pattern;

const SIZE: u64 = 1 << 20;

fn null() -> Arc<dyn Backend> {
    Arc::new(Null(synthetic::null(MemorySpec { size: SIZE, block: 512 })))
}

/// A layer on top of `null:`, and the table of its settings.
fn layer(name: &str, values: &[(&str, &str)]) -> (Layered, Arc<std::fs::File>) {
    let schema = SCHEMAS.iter().find(|schema| schema.name == name).unwrap();
    let mut numbers: Vec<u64> = schema.options.iter().map(|option| option.default).collect();
    for (name, value) in values {
        let index = schema.options.iter().position(|option| option.name == *name).unwrap();
        numbers[index] = schema.options[index].kind.parse(value).unwrap();
    }
    let table = Arc::new(settings::make(&schema.settings(&numbers, &[])).unwrap());
    let options = OptionValues::new(Arc::clone(&table), 0, numbers);
    (Layered::with(null(), configurable(schema, options)), table)
}

/// Changes a setting as a holder does.
fn set(table: &std::fs::File, assignment: &str) {
    let changes = settings::plan(&settings::load(table).unwrap(), &[assignment]).unwrap();
    settings::change(table, &changes).unwrap();
}

/// Which of a number of writes fail.
fn failures(layer: &Layered) -> Vec<u64> {
    let blocks = 0..SIZE / 4096;
    blocks.filter(|block| layer.write_at(&[1; 4096], block * 4096, false).is_err()).collect()
}

#[test]
fn errors_are_as_many_as_asked_for_and_the_same_for_a_seed() {
    let fail = |seed: &str| failures(&layer("error", &[("rate", "0.25"), ("seed", seed)]).0);
    let first = fail("1");
    assert!((32..96).contains(&first.len()), "{} of 256", first.len());
    assert_eq!(first, fail("1"));
    assert_ne!(first, fail("2"));
    assert!(failures(&layer("error", &[]).0).is_empty());
    assert_eq!(failures(&layer("error", &[("rate", "1")]).0).len(), 256);
}

#[test]
fn a_bad_place_stays_bad_and_a_bad_moment_does_not() {
    let (sticky, _) = layer("error", &[("write", "0.25"), ("sticky", "on")]);
    assert_eq!(failures(&sticky), failures(&sticky));
    let (fickle, _) = layer("error", &[("write", "0.25")]);
    assert_ne!(failures(&fickle), failures(&fickle));
}

#[test]
fn errors_have_a_kind_a_number_and_a_place() {
    let (layer, _) =
        layer("error", &[("write", "1"), ("errno", "ENOSPC"), ("from", "8K"), ("to", "12K")]);
    assert_eq!(failures(&layer), [2]);
    assert!(layer.write_at(&[0; 512], 12 * 1024 - 512, false).is_err());
    assert!(layer.read_at(&mut [0; 4096], 8192).is_ok());
    assert!(layer.flush().is_ok());
    let error = layer.trim(0, SIZE, false).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28));
}

#[test]
fn settings_are_obeyed_from_the_next_command_on() {
    let (layer, table) = layer("error", &[]);
    assert!(layer.flush().is_ok());
    set(&table, "error.flush=1");
    assert!(layer.flush().is_err());
    assert!(layer.read_at(&mut [0; 512], 0).is_ok());
    set(&table, "error.flush=0");
    assert!(layer.flush().is_ok());
}

#[test]
fn a_delay_is_at_least_as_long_as_asked_for() {
    let (layer, _) = layer("delay", &[("write", "20ms"), ("jitter", "5ms")]);
    let begun = Instant::now();
    layer.write_at(&[0; 512], 0, false).unwrap();
    layer.trim(0, 512, false).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(40));
    assert!(layer.as_inline().is_none());
}

#[test]
fn a_rate_holds_for_all_threads_together() {
    let (layer, _) = layer("rate", &[("bytes", "1M")]);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| layer.write_at(&[0; 64 << 10], 0, false).unwrap());
        }
    });
    assert!(begun.elapsed() >= Duration::from_millis(250));
}

#[test]
fn a_window_shows_only_its_part() {
    let geometry = synthetic::pattern(MemorySpec { size: SIZE, block: 512 });
    let whole = Arc::new(Pattern(geometry));
    let subrange = Layered::subrange(whole, Geometry { size: 4096, ..geometry }, 8192);
    let mut word = [0; 8];
    subrange.read_at(&mut word, 16).unwrap();
    assert_eq!(u64::from_be_bytes(word), 8192 + 16);
    assert_eq!(subrange.geometry().size, 4096);
    let read = Command::Read { offset: 0, length: 512 };
    assert!(subrange.as_inline().unwrap().never_blocks(&read));
}

#[test]
fn subrange_lends_its_part_and_a_layer_with_a_hook_lends_nothing() {
    let size = MemorySpec { size: SIZE, block: 512 };
    let file = mem::make(SIZE).unwrap();
    let memory = FileExport::new(file, "mem:".into(), FileKind::Memory, false, mem::geometry(size));
    let data = pattern(SIZE as usize, 3);
    memory.write_at(&data, 0, false).unwrap();
    let (geometry, memory) = (memory.geometry(), Arc::new(memory));
    let lower: Arc<dyn Backend> = Arc::<FileExport>::clone(&memory);
    let subrange = Layered::subrange(lower, Geometry { size: 64 << 10, ..geometry }, 8192);
    let mut lent = [0; 4096];
    subrange.as_mapped().unwrap().mapped_range(512, 4096).unwrap().read(&mut lent).unwrap();
    assert_eq!(lent, data[8192 + 512..8192 + 512 + 4096]);
    assert_eq!(
        subrange.as_mapped().unwrap().mapped_range_mut(512, 4096).unwrap().offset(),
        8192 + 512
    );
    let witness = Arc::new(Witness(Mutex::default()));
    let layer = Layered::with(memory, Box::new(witness));
    assert!(layer.as_mapped().is_none());
}

/// Takes tasks and never finishes them.
struct Remote(Geometry);

impl Backend for Remote {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        Some(self)
    }
}

impl AsyncBackend for Remote {
    fn submit_async(&self, _task: Box<dyn Task>) {}
}

/// A task knows its own offset, and no hook.
#[test]
fn tasks_pass_a_layer_only_where_it_changes_nothing_about_them() {
    let geometry = synthetic::pattern(MemorySpec { size: SIZE, block: 512 });
    let part = Geometry { size: 4096, ..geometry };
    let remote = || Arc::new(Remote(geometry));
    assert!(Layered::subrange(remote(), part, 0).as_async().is_some());
    assert!(Layered::subrange(remote(), part, 4096).as_async().is_none());
    let witness = Arc::new(Witness(Mutex::default()));
    assert!(Layered::with(remote(), Box::new(witness)).as_async().is_none());
}

/// What it was asked, and what it lets through.
struct Witness(Mutex<Vec<(Command, usize)>>);

impl CommandHook for Arc<Witness> {
    fn run(
        &self,
        command: &Command,
        payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        self.0.lock().unwrap().push((*command, payload.len()));
        inner()
    }
}

#[test]
fn every_command_goes_through_a_layer_once() {
    let witness = Arc::new(Witness(Mutex::default()));
    let layer = Layered::with(null(), Box::new(Arc::clone(&witness)));
    let how = ZeroOptions { fua: true, ..ZeroOptions::default() };
    layer.read_at(&mut [0; 512], 1).unwrap();
    layer.write_at(&[0; 1024], 2, true).unwrap();
    layer.flush().unwrap();
    layer.trim(3, 512, false).unwrap();
    layer.write_zeroes(4, 512, how).unwrap();
    layer.cache(5, 512).unwrap();
    assert_eq!(layer.extents(6, 512, true).unwrap()[0].length, 512);
    let length = 512;
    let zeroes =
        Command::WriteZeroes { offset: 4, length, fua: true, no_hole: false, fast_only: false };
    assert_eq!(
        *witness.0.lock().unwrap(),
        [
            (Command::Read { offset: 1, length: 512 }, 0),
            (Command::Write { offset: 2, length: 1024, fua: true }, 1024),
            (Command::Flush, 0),
            (Command::Trim { offset: 3, length, fua: false }, 0),
            (zeroes, 0),
            (Command::Cache { offset: 5, length }, 0),
            (Command::BlockStatus { offset: 6, length, one: true }, 0),
        ]
    );
}

#[test]
fn a_second_layer_of_a_kind_has_settings_of_its_own() {
    let schema = &SCHEMAS[0];
    let values = vec![0; schema.options.len()];
    let mut all = schema.settings(&values, &[]);
    all.extend(schema.settings(&values, &all));
    all.extend(schema.settings(&values, &all));
    let names: Vec<_> = all.iter().map(|setting| &*setting.name).collect();
    assert!(names.contains(&"delay.read") && names.contains(&"delay2.read"), "{names:?}");
    assert!(names.contains(&"delay3.seed"), "{names:?}");
}
