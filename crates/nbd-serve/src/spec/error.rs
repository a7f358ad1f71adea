//! Why a text does not say what to serve, and what to write instead.

use nbd_client::TargetError;
use nbd_rbd::ImageSpecError;
use thiserror::Error;

use crate::size::{self, Size, SizeError};

/// Why a text does not say what to serve.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum SpecError {
    #[error("has no type: {}", with_scheme(.0))]
    NoScheme(String),
    #[error("there is no export `{scheme}:`; {}", schemes(*.similar))]
    UnknownScheme { scheme: String, similar: Option<&'static str> },
    #[error("the path is missing: write file:PATH, like file:disk.img")]
    NoPath,
    #[error("unknown option `{option}`; {}", options(*.similar, .scheme))]
    UnknownOption { option: String, scheme: &'static str, similar: Option<&'static str> },
    #[error("there is no option `rw`: leave it out, a device is writable unless `ro` is given")]
    Writable,
    #[error("the option `{0}` is given twice")]
    Repeated(&'static str),
    #[error("the option `{0}` takes no value: write just `{0}`")]
    NeedlessValue(&'static str),
    #[error("`block={0}` is not a block size: write 512, 1024, 2048 or 4096")]
    BadBlock(String),
    #[error("{option}")]
    BadSize { option: &'static str, source: SizeError },
    #[error(
        "the size {} is not a multiple of the block size {block}: choose another size, or a \
         smaller block with block=BYTES",
        Size(*.size)
    )]
    Unaligned { size: u64, block: u32 },
    #[error(
        "`create` and `ro` together make an empty device that cannot be written: leave one of them out"
    )]
    CreateReadOnly,
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("it is not UTF-8: in a URI, write its bytes as %XX")]
    NotUtf8,
    #[error(
        "`{0}` is a layer and needs something below it: write {0}@SPEC, like {0}@file:disk.img"
    )]
    NothingBelow(&'static str),
    #[error("the log is missing: write record:FILE@SPEC, like record:log@file:disk.img")]
    NoLog,
    #[error("`{layer}` has no options: leave `{option}` out, and write {layer}@SPEC")]
    NeedlessOption { layer: &'static str, option: String },
    #[error("`{0}` is not the number of a partition: write partition:1@SPEC")]
    BadPartition(String),
    #[error("{layer}: unknown option `{option}`; {}", layer_options(*.similar, .known))]
    UnknownLayerOption {
        layer: &'static str,
        option: String,
        similar: Option<&'static str>,
        known: Vec<&'static str>,
    },
    #[error("{layer}: {option}: `{value}` is not {expected}")]
    BadLayerOption {
        layer: &'static str,
        option: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error(
        "write cow:BASE+DIFF, like cow:base.img+changes.cow: the base is only read, and what is written goes to the diff, which is made if there is none"
    )]
    NoDiff,
    #[error("the plugin is missing: write nbdkit:PLUGIN,KEY=VALUE, like nbdkit:file,disk.img")]
    NoPlugin,
    #[error("the parameters of a plugin must be UTF-8")]
    PluginNotUtf8,
    #[error(
        "`{0}` is no plugin: write its parameters after commas, like nbdkit:file,disk.img; for nbdkit's \
         own options and filters use exec:nbdkit"
    )]
    PluginOptions(String),
    #[error(transparent)]
    Image(#[from] ImageSpecError),
    #[error("the name of an image and its options must be UTF-8")]
    ImageNotUtf8,
    #[error("a base is only read, so leave `create` out")]
    CreateBase,
}

fn layer_options(similar: Option<&str>, known: &[&str]) -> String {
    match similar {
        Some(option) => format!("did you mean `{option}`?"),
        None => format!("there are {}", known.join(", ")),
    }
}

fn with_scheme(text: &str) -> String {
    match size::parse(text) {
        Ok(_) => format!("write mem:{text} to serve memory of that size"),
        Err(_) if text.contains(' ') => {
            format!("write exec:{text} to start an NBD server, or file:{text} to serve a file")
        }
        Err(_) => format!("write file:{text} to serve a file or a block device"),
    }
}

fn schemes(similar: Option<&str>) -> String {
    match similar {
        Some(scheme) => format!("did you mean `{scheme}:`?"),
        None => "there are file:PATH, mem:SIZE, nbd://HOST/EXPORT, nbds: with TLS, \
                 nbd+unix:///?socket=PATH, nbd+vsock:, exec:COMMAND, nbdkit:PLUGIN and rbd:POOL/IMAGE; \
                 more are in `nbd-serve --help`"
            .into(),
    }
}

fn options(similar: Option<&str>, scheme: &str) -> String {
    match (similar, scheme) {
        (Some(option), _) => format!("did you mean `{option}`?"),
        (None, "file") => "there are ro, direct, create=SIZE and block=BYTES".into(),
        (None, _) => format!("{scheme}: has only block=BYTES"),
    }
}
