//! From a name to a shared object for this processor.

use std::env::consts::ARCH;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::PluginError;

/// Names a directory to look into first.
const DIRECTORY_VARIABLE: &str = "NBDKIT_PLUGINDIR";

/// The part of an ELF file's header that tells what it is for: up to `e_machine`.
const HEADER_LEN: usize = 20;
/// `ET_DYN`.
const SHARED_OBJECT: u16 = 3;

/// The file of a plugin. As with nbdkit, what contains a dot or a slash is a path, and anything else
/// the name of an installed one.
pub(crate) fn find(name: &str) -> Result<PathBuf, PluginError> {
    if name.contains(['.', '/']) {
        // Without a slash the loader would look elsewhere.
        let path = PathBuf::from(name);
        return std::path::absolute(&path).map_err(|source| PluginError::Read { path, source });
    }
    let directories = directories();
    let file = format!("nbdkit-{name}-plugin.so");
    let found =
        directories.iter().map(|directory| directory.join(&file)).find(|path| path.exists());
    found.ok_or_else(|| {
        let searched: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        PluginError::NotFound { name: name.into(), searched: searched.join(", ") }
    })
}

/// Where plugins are installed, by distribution.
fn directories() -> Vec<PathBuf> {
    let named = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from);
    let usual = [
        "/usr/local/lib/nbdkit/plugins".into(),
        format!("/usr/lib/{ARCH}-linux-gnu/nbdkit/plugins"),
        "/usr/lib64/nbdkit/plugins".into(),
        "/usr/lib/nbdkit/plugins".into(),
    ];
    named.into_iter().chain(usual.map(PathBuf::from)).collect()
}

/// Looks whether the loader can make something of a file, for errors that say more than its own.
pub(crate) fn check(path: &Path) -> Result<(), PluginError> {
    let failed = |source| PluginError::Read { path: path.into(), source };
    let mut header = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(HEADER_LEN as u64).read_to_end(&mut header).map_err(failed)?;
    let theirs = match machine(&header) {
        None => return Err(PluginError::NotShared(path.into())),
        Some(theirs) => theirs,
    };
    let own = std::fs::read("/proc/self/exe").ok().and_then(|program| machine(&program));
    match own {
        Some(own) if own != theirs => {
            Err(PluginError::Architecture { path: path.into(), theirs: theirs.name() })
        }
        _ => Ok(()),
    }
}

/// A kind of processor: the class, byte order and machine of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Machine {
    class: u8,
    order: u8,
    number: u16,
}

impl Machine {
    fn name(self) -> String {
        let name = match self.number {
            3 => "x86",
            20 | 21 => "powerpc",
            22 => "s390x",
            40 => "arm",
            62 => "x86_64",
            183 => "aarch64",
            243 => "riscv",
            258 => "loongarch",
            number => return format!("another processor (ELF machine {number})"),
        };
        format!("{name} ({} bits)", if self.class == 1 { 32 } else { 64 })
    }
}

/// What a shared object is for; nothing for another file.
fn machine(header: &[u8]) -> Option<Machine> {
    let header: &[u8; HEADER_LEN] = header.first_chunk()?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let (class, order) = (header[4], header[5]);
    let number = |at: usize| {
        let bytes = [header[at], header[at + 1]];
        if order == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    };
    (number(16) == SHARED_OBJECT).then_some(Machine { class, order, number: number(18) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(find("/x/y.so").unwrap(), Path::new("/x/y.so"));
        assert!(find("y.so").unwrap().is_absolute());
        let error = find("no-such-plugin").unwrap_err().to_string();
        assert!(error.contains("nbdkit-no-such-plugin-plugin.so is in none of"), "{error}");
    }

    #[test]
    fn this_program_is_for_this_processor_and_its_source_for_none() {
        check(Path::new("/proc/self/exe")).unwrap();
        let error = check(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml").as_path());
        assert!(matches!(error, Err(PluginError::NotShared(_))), "{error:?}");
    }

    #[test]
    fn other_processors_are_named() {
        let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\xb7\0";
        assert_eq!(machine(&header).unwrap().name(), "aarch64 (64 bits)");
        header[16] = 2;
        assert_eq!(machine(&header), None, "a program");
        header[16] = 3;
        header[18] = 9;
        assert!(machine(&header).unwrap().name().contains("ELF machine 9"));
        assert_eq!(machine(&header[..19]), None);
    }
}
