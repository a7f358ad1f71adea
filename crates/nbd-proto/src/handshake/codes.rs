//! The numbers of the handshake: options, their replies, information types, flags.

use core::fmt;

/// Declares a number whose values have names, and which keeps a value that has none.
macro_rules! named_codes {
    ($(#[$meta:meta])* $name:ident($int:ty), $what:literal {
        $($(#[$item_meta:meta])* $item:ident = $value:expr, $text:literal;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(
            /// The number on the wire.
            pub $int,
        );

        impl $name {
            $($(#[$item_meta])* pub const $item: Self = Self($value);)*

            const fn name(self) -> Option<&'static str> {
                Some(match self {
                    $(Self::$item => $text,)*
                    _ => return None,
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, concat!($what, " {}"), self.0),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

named_codes! {
    /// What a client asks during option haggling (specification: "Option types").
    OptionType(u32), "option" {
        /// `NBD_OPT_EXPORT_NAME`: begin transmission, with no way to refuse.
        EXPORT_NAME = 1, "export name";
        /// `NBD_OPT_ABORT`: end the session.
        ABORT = 2, "abort";
        /// `NBD_OPT_LIST`: the exports there are.
        LIST = 3, "list";
        /// `NBD_OPT_PEEK_EXPORT`: withdrawn.
        PEEK_EXPORT = 4, "peek export";
        /// `NBD_OPT_STARTTLS`: secure the connection.
        STARTTLS = 5, "start TLS";
        /// `NBD_OPT_INFO`: tell about an export.
        INFO = 6, "info";
        /// `NBD_OPT_GO`: tell about an export, and begin transmission.
        GO = 7, "go";
        /// `NBD_OPT_STRUCTURED_REPLY`: answer with structured replies.
        STRUCTURED_REPLY = 8, "structured reply";
        /// `NBD_OPT_LIST_META_CONTEXT`: the metadata contexts there are.
        LIST_META_CONTEXT = 9, "list metadata contexts";
        /// `NBD_OPT_SET_META_CONTEXT`: the metadata contexts that block status is to be about.
        SET_META_CONTEXT = 10, "set metadata contexts";
        /// `NBD_OPT_EXTENDED_HEADERS`: requests and replies with 64-bit lengths.
        EXTENDED_HEADERS = 11, "extended headers";
    }
}

named_codes! {
    /// What a server answers to an option (specification: "Option reply types").
    OptionReplyType(u32), "option reply" {
        /// `NBD_REP_ACK`: done; always the last reply.
        ACK = 1, "acknowledged";
        /// `NBD_REP_SERVER`: an export.
        SERVER = 2, "export";
        /// `NBD_REP_INFO`: something about an export.
        INFO = 3, "information";
        /// `NBD_REP_META_CONTEXT`: a metadata context.
        META_CONTEXT = 4, "metadata context";
        /// `NBD_REP_ERR_UNSUP`: an unknown option.
        ERR_UNSUP = ERROR | 1, "unsupported";
        /// `NBD_REP_ERR_POLICY`: not allowed.
        ERR_POLICY = ERROR | 2, "forbidden by policy";
        /// `NBD_REP_ERR_INVALID`: a malformed option.
        ERR_INVALID = ERROR | 3, "invalid";
        /// `NBD_REP_ERR_PLATFORM`: not supported on this platform.
        ERR_PLATFORM = ERROR | 4, "not supported by the platform";
        /// `NBD_REP_ERR_TLS_REQD`: not before TLS.
        ERR_TLS_REQD = ERROR | 5, "TLS required";
        /// `NBD_REP_ERR_UNKNOWN`: no such export.
        ERR_UNKNOWN = ERROR | 6, "unknown export";
        /// `NBD_REP_ERR_SHUTDOWN`: the server is about to go.
        ERR_SHUTDOWN = ERROR | 7, "server is shutting down";
        /// `NBD_REP_ERR_BLOCK_SIZE_REQD`: only for clients that keep to the block size.
        ERR_BLOCK_SIZE_REQD = ERROR | 8, "block size must be honoured";
        /// `NBD_REP_ERR_TOO_BIG`: the option's data is too long.
        ERR_TOO_BIG = ERROR | 9, "too big";
        /// `NBD_REP_ERR_EXT_HEADER_REQD`: not without, or not after, extended headers.
        ERR_EXT_HEADER_REQD = ERROR | 10, "extended headers required";
    }
}

const ERROR: u32 = 1 << 31;

impl OptionReplyType {
    /// Whether the option was refused. True for types yet to be invented too.
    pub const fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }
}

named_codes! {
    /// What a reply tells about an export (specification: "NBD_REP_INFO").
    InfoType(u16), "information" {
        /// `NBD_INFO_EXPORT`: size and transmission flags.
        EXPORT = 0, "export";
        /// `NBD_INFO_NAME`: its canonical name.
        NAME = 1, "name";
        /// `NBD_INFO_DESCRIPTION`: words for people.
        DESCRIPTION = 2, "description";
        /// `NBD_INFO_BLOCK_SIZE`: minimum, preferred and maximum.
        BLOCK_SIZE = 3, "block size";
    }
}

/// `NBD_FLAG_FIXED_NEWSTYLE`, among the handshake flags: options may be refused politely.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// `NBD_FLAG_NO_ZEROES`, among the handshake flags: the padding behind export name may go.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// `NBD_FLAG_C_FIXED_NEWSTYLE`, among the client flags.
pub const FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// `NBD_FLAG_C_NO_ZEROES`, among the client flags.
pub const FLAG_C_NO_ZEROES: u32 = 1 << 1;

/// The metadata context that tells what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The longest string, in bytes (specification: "Conventions").
pub const MAX_STRING_BYTES: usize = 4096;
/// The most exports that a client lists.
pub const MAX_LISTED_EXPORTS: usize = 4096;
