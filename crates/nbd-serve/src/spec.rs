//! What to serve, as it is written on the command line.
//!
//! ```text
//! file:PATH[,ro][,direct][,create=SIZE][,block=BYTES]
//! mem:SIZE[,block=BYTES]      null: and pattern: likewise
//! nbd://HOST[:PORT]/[EXPORT]  and the other NBD URIs
//! exec[,retry=SECONDS][,connections=N]:COMMAND, and exec+listen likewise
//! nbdkit:PLUGIN[,PARAMETER]   see `nbdkit`
//! rbd:POOL/IMAGE[,OPTION]     see `nbd_rbd`
//! cow:BASE+DIFF               see `cow`
//! LAYER[:OPTIONS]@SPEC        see `layer`
//! ```
//!
//! A path may contain commas: options are taken from the right, as long as they are words that
//! are known. So a file whose name ends like an option (`a,ro`) needs another name, a symbolic
//! link for instance; and one whose name ends *nearly* like an option is taken for a typing
//! error. What follows any other comma belongs to the path; if there is no such file, then the
//! message about it wonders whether an option was meant.

mod cow;
mod error;
mod layer;
mod nbdkit;
mod report;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

pub(crate) use cow::CowSpec;
pub(crate) use error::SpecError;
pub(crate) use layer::{Layer, LayerSpec};
use nbd_client::Target;
use nbd_net::address::Address;
use nbd_rbd::ImageSpec;
pub(crate) use nbdkit::NbdkitSpec;
pub(crate) use report::SpecReport;

use crate::size::{self, Size};

/// The block size of files and memory, unless something asks for another one.
pub(crate) const USUAL_BLOCK: u32 = 512;
/// The block size of files that are yet to be made, with direct I/O: it suits any file system.
pub(crate) const DIRECT_BLOCK: u32 = 4096;

const SCHEMES: [&str; 15] = [
    "file",
    "mem",
    "null",
    "pattern",
    "cow",
    "nbd",
    "nbds",
    "nbd+unix",
    "nbds+unix",
    "nbd+vsock",
    "nbds+vsock",
    "exec",
    "exec+listen",
    "nbdkit",
    "rbd",
];
const OPTIONS: [&str; 4] = ["ro", "direct", "create", "block"];

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spec {
    File(FileSpec),
    Memory(MemorySpec),
    /// Zeroes, whatever is written.
    Null(MemorySpec),
    /// Every eight bytes are their offset.
    Pattern(MemorySpec),
    Cow(Box<CowSpec>),
    Layer(Box<LayerSpec>),
    /// Another NBD server.
    Remote(Target),
    /// A plugin of nbdkit.
    Nbdkit(NbdkitSpec),
    /// An image of a Ceph cluster.
    Rbd(ImageSpec),
}

/// A file or a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileSpec {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) direct: bool,
    /// Make it, sparse and of this size, if there is none.
    pub(crate) create: Option<u64>,
    pub(crate) block: Option<u32>,
}

/// Memory, or what takes up none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemorySpec {
    pub(crate) size: u64,
    pub(crate) block: u32,
}

impl Spec {
    pub(crate) fn parse(text: &OsStr) -> Result<Self, SpecError> {
        if let Some((name, rest)) = layer::split(text.as_bytes()) {
            return layer::parse(name, rest).map(|layer| Self::Layer(Box::new(layer)));
        }
        let (scheme, rest) = split_scheme(text)?;
        match scheme {
            "file" => parse_file(rest).map(Self::File),
            "mem" => parse_memory(rest, "mem", "mem:SIZE").map(Self::Memory),
            "null" => parse_memory(rest, "null", "null:SIZE").map(Self::Null),
            "pattern" => parse_memory(rest, "pattern", "pattern:SIZE").map(Self::Pattern),
            "cow" => cow::parse(rest).map(|cow| Self::Cow(Box::new(cow))),
            "nbdkit" => nbdkit::parse(rest).map(Self::Nbdkit),
            "rbd" => {
                let text = str::from_utf8(rest).map_err(|_| SpecError::ImageNotUtf8)?;
                Ok(Self::Rbd(text.parse()?))
            }
            _ => {
                let text = text.to_str().ok_or(SpecError::NotUtf8)?;
                Ok(Self::Remote(text.parse()?))
            }
        }
    }

    /// The same with absolute paths: relative ones mean nothing to those who read about them
    /// elsewhere.
    pub(crate) fn absolute(self) -> Self {
        self.map_paths(&mut |path| std::path::absolute(&path).unwrap_or(path))
    }

    /// The paths that begin at the working directory.
    pub(crate) fn relative_paths(self) -> Vec<PathBuf> {
        let mut relative = Vec::new();
        self.map_paths(&mut |path| {
            relative.extend(path.is_relative().then(|| path.clone()));
            path
        });
        relative
    }

    /// Tells plugins the name of the export that they are part of.
    pub(crate) fn name_export(&mut self, name: &str) {
        match self {
            Self::Nbdkit(plugin) => plugin.export_name = name.into(),
            Self::Cow(cow) => cow.base.name_export(name),
            Self::Layer(layered) => layered.inner.name_export(name),
            Self::File(_)
            | Self::Memory(_)
            | Self::Null(_)
            | Self::Pattern(_)
            | Self::Remote(_)
            | Self::Rbd(_) => {}
        }
    }

    fn map_paths(self, change: &mut dyn FnMut(PathBuf) -> PathBuf) -> Self {
        match self {
            Self::File(mut file) => {
                file.path = change(file.path);
                Self::File(file)
            }
            Self::Cow(mut cow) => {
                cow.base = cow.base.map_paths(change);
                cow.diff = change(cow.diff);
                Self::Cow(cow)
            }
            Self::Layer(mut layered) => {
                if let Layer::Record(log) = layered.layer {
                    layered.layer = Layer::Record(change(log));
                }
                layered.inner = layered.inner.map_paths(change);
                Self::Layer(layered)
            }
            Self::Remote(Target::Uri(mut uri)) => {
                uri.tls_certificates = uri.tls_certificates.map(&mut *change);
                uri.address = match uri.address {
                    // Not a name in the abstract namespace.
                    Address::Unix(path) if !path.as_os_str().as_bytes().starts_with(&[0]) => {
                        Address::Unix(change(path))
                    }
                    other => other,
                };
                Self::Remote(Target::Uri(uri))
            }
            Self::Nbdkit(plugin) => Self::Nbdkit(plugin.map_path(change)),
            Self::Rbd(image) => Self::Rbd(image.map_paths(change)),
            Self::Memory(_) | Self::Null(_) | Self::Pattern(_) | Self::Remote(_) => self,
        }
    }
}

/// Whether a text begins like a specification, and not like a path.
fn is_spec(text: &[u8]) -> bool {
    let begins = |scheme: &&str| {
        text.strip_prefix(scheme.as_bytes()).is_some_and(|rest| rest.starts_with(b":"))
    };
    SCHEMES.iter().any(begins) || layer::split(text).is_some()
}

/// The scheme of a program with options, which stand before the colon: `exec,retry=60:nbdkit -s`.
pub(crate) fn program(text: &[u8]) -> Option<&'static str> {
    let head = &text[..text.iter().position(|byte| *byte == b':')?];
    let scheme = head.split(|byte| *byte == b',').next()?;
    ["exec", "exec+listen"].into_iter().find(|known| known.as_bytes() == scheme)
}

fn split_scheme(text: &OsStr) -> Result<(&str, &[u8]), SpecError> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':');
    if let Some(scheme) = program(bytes) {
        return Ok((scheme, &bytes[colon.unwrap_or_default() + 1..]));
    }
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'+';
    let is_word = |word: &&[u8]| !word.is_empty() && word.iter().all(is_letter);
    let word = colon.map(|colon| &bytes[..colon]).filter(is_word);
    let (Some(colon), Some(word)) = (colon, word.and_then(|word| str::from_utf8(word).ok())) else {
        return Err(SpecError::NoScheme(text.to_string_lossy().into()));
    };
    if SCHEMES.contains(&word) {
        return Ok((word, &bytes[colon + 1..]));
    }
    let known: Vec<_> = SCHEMES.into_iter().chain(layer::names()).collect();
    Err(SpecError::UnknownScheme { scheme: word.into(), similar: similar(word, &known) })
}

fn parse_file(rest: &[u8]) -> Result<FileSpec, SpecError> {
    let (path, options) = split_options(rest, "file")?;
    if path.is_empty() {
        return Err(SpecError::NoPath);
    }
    let mut spec = FileSpec { path: OsStr::from_bytes(path).into(), ..FileSpec::default() };
    for option in options {
        match option.name {
            "ro" => spec.read_only = option.without_value()?,
            "direct" => spec.direct = option.without_value()?,
            "create" => spec.create = Some(option.size()?),
            _ => spec.block = Some(option.block()?),
        }
    }
    if spec.create.is_some() && spec.read_only {
        return Err(SpecError::CreateReadOnly);
    }
    if let Some(size) = spec.create {
        check_multiple(size, spec.block_of_new_file())?;
    }
    Ok(spec)
}

fn parse_memory(
    rest: &[u8],
    scheme: &'static str,
    usage: &'static str,
) -> Result<MemorySpec, SpecError> {
    let (size, options) = split_options(rest, scheme)?;
    let mut block = USUAL_BLOCK;
    for option in options {
        match option.name {
            "block" => block = option.block()?,
            name => {
                return Err(SpecError::UnknownOption {
                    option: name.into(),
                    scheme,
                    similar: None,
                });
            }
        }
    }
    let size = size::parse(&String::from_utf8_lossy(size))
        .map_err(|source| SpecError::BadSize { option: usage, source })?;
    check_multiple(size, block)?;
    Ok(MemorySpec { size, block })
}

fn check_multiple(size: u64, block: u32) -> Result<(), SpecError> {
    if size.is_multiple_of(u64::from(block)) {
        Ok(())
    } else {
        Err(SpecError::Unaligned { size, block })
    }
}

struct ParsedOption<'a> {
    name: &'static str,
    value: Option<&'a str>,
}

impl ParsedOption<'_> {
    fn without_value(&self) -> Result<bool, SpecError> {
        match self.value {
            None => Ok(true),
            Some(_) => Err(SpecError::NeedlessValue(self.name)),
        }
    }

    fn size(&self) -> Result<u64, SpecError> {
        size::parse(self.value.unwrap_or_default())
            .map_err(|source| SpecError::BadSize { option: "create=SIZE", source })
    }

    fn block(&self) -> Result<u32, SpecError> {
        let text = self.value.unwrap_or_default();
        match size::parse(text) {
            Ok(block @ (512 | 1024 | 2048 | 4096)) => Ok(block as u32),
            _ => Err(SpecError::BadBlock(text.into())),
        }
    }
}

/// Takes options off the right end, in the order in which they are written.
fn split_options<'a>(
    text: &'a [u8],
    scheme: &'static str,
) -> Result<(&'a [u8], Vec<ParsedOption<'a>>), SpecError> {
    let mut rest = text;
    let mut options: Vec<ParsedOption<'a>> = Vec::new();
    while let Some(comma) = rest.iter().rposition(|byte| *byte == b',') {
        let Ok(part) = str::from_utf8(&rest[comma + 1..]) else {
            break;
        };
        let (word, value) = match part.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (part, None),
        };
        if word == "rw" {
            return Err(SpecError::Writable);
        }
        let Some(name) = OPTIONS.into_iter().find(|option| *option == word) else {
            let similar = similar(word, &OPTIONS);
            // There is no comma in a size, so there the part can be nothing but an option.
            if similar.is_some() || scheme != "file" {
                let option = word.into();
                return Err(SpecError::UnknownOption { option, scheme, similar });
            }
            break;
        };
        if options.iter().any(|option| option.name == name) {
            return Err(SpecError::Repeated(name));
        }
        options.insert(0, ParsedOption { name, value });
        rest = &rest[..comma];
    }
    Ok((rest, options))
}

/// The known word that somebody may have meant who wrote another one.
fn similar(word: &str, known: &[&'static str]) -> Option<&'static str> {
    match word {
        "readonly" | "read-only" => return known.iter().copied().find(|known| *known == "ro"),
        "unix" | "vsock" => return known.iter().copied().find(|known| known.ends_with(word)),
        "memory" | "ram" => return known.iter().copied().find(|known| *known == "mem"),
        _ => {}
    }
    let word = word.to_ascii_lowercase();
    let distance = |known: &&str| strsim::osa_distance(&word, known);
    let nearest = known.iter().copied().min_by_key(distance)?;
    (distance(&nearest) <= (nearest.len() / 3).max(1)).then_some(nearest)
}

impl FileSpec {
    /// The same for a device that has grown since its file was made.
    pub(crate) fn grown_to(mut self, size: u64) -> Self {
        self.create = self.create.map(|create| create.max(size));
        self
    }

    /// The block size of the file that `create` makes, known before there is any; so it does not
    /// depend on what the file system says of the file later.
    pub(crate) fn block_of_new_file(&self) -> u32 {
        let usual = if self.direct { DIRECT_BLOCK } else { USUAL_BLOCK };
        self.block.unwrap_or(usual)
    }

    /// The end of the path that may have been meant as an option.
    pub(crate) fn doubtful_end(&self) -> Option<&str> {
        let name = self.path.file_name()?.to_str()?;
        name.rsplit_once(',').map(|(_, end)| end)
    }
}

/// The canonical form, which is also what people are told that the device serves.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => {
                write!(f, "file:{}", file.path.display())?;
                let flags = [(file.read_only, ",ro"), (file.direct, ",direct")];
                for (_, text) in flags.iter().filter(|(given, _)| *given) {
                    f.write_str(text)?;
                }
                if let Some(size) = file.create {
                    write!(f, ",create={}", Size(size))?;
                }
                match file.block {
                    Some(block) => write!(f, ",block={block}"),
                    None => Ok(()),
                }
            }
            Self::Memory(memory) => write!(f, "mem:{memory}"),
            Self::Null(null) => write!(f, "null:{null}"),
            Self::Pattern(pattern) => write!(f, "pattern:{pattern}"),
            Self::Cow(cow) => cow.fmt(f),
            Self::Layer(layer) => layer.fmt(f),
            Self::Remote(target) => target.fmt(f),
            Self::Nbdkit(plugin) => plugin.fmt(f),
            Self::Rbd(image) => image.fmt(f),
        }
    }
}

impl fmt::Display for MemorySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Size(self.size))?;
        match self.block {
            USUAL_BLOCK => Ok(()),
            block => write!(f, ",block={block}"),
        }
    }
}
