//! The environment variables and files of each program, for the ends of their pages.

/// A name, and what it is for.
type Entry = (&'static str, &'static str);

const RUNTIME_DIR: Entry =
    ("NBD_RUNTIME_DIR", "Where attached devices are registered, in place of /run/nbd.");
const LOG: Entry = (
    "NBD_LOG",
    "What is logged unless --log-level says so: error, warn, info, debug, trace or off; also by crate, like \
     info,nbd_client=debug. Backends inherit it from their holder.",
);
const JOIN_SOCKET: Entry =
    ("/run/nbd/nbdN.join", "The socket on which a backend that is started by hand joins a device.");
const DEVICE_FOLDER: Entry = (
    "/run/nbd/nbdN/",
    "What there is of an attached device: the socket of its holder, its state for the next holder, its log.",
);
const LAST_LOG: Entry =
    ("/run/nbd/nbdN.log.last", "The log of a device that is not attached any more.");

/// The variables that a program reads.
pub(crate) fn environment(program: &str) -> &'static [Entry] {
    match program {
        "nbd-ctl" => &[
            RUNTIME_DIR,
            ("NBD_CTL_CONFIG", "The file with the devices, in place of /etc/nbd-ctl/devices.toml."),
            (
                "NBD_HOLDER_PROGRAM",
                "Another nbd-kernel-holder than the one beside nbd-ctl or in PATH.",
            ),
            ("NO_COLOR", "If it is set and not empty, nothing has colours."),
        ],
        "nbd-serve" => &[
            LOG,
            RUNTIME_DIR,
            ("NBD_JOIN", "The device to join, like nbd0, unless --join names it."),
            (
                "NBD_TAKEOVER",
                "If it is not empty, a living backend of the joined device is replaced.",
            ),
            ("NBD_REPLAY", "The recording to replay, unless --replay names it."),
            ("NBD_HOLDER_FD", "Set by a holder: the descriptor on which it is talked to."),
            ("LISTEN_FDS, LISTEN_PID", "Set by systemd: the sockets of --listen systemd."),
            ("NOTIFY_SOCKET", "Set by systemd: where it is told that the server is ready."),
        ],
        "nbd-kernel-holder" => &[
            LOG,
            RUNTIME_DIR,
            ("NOTIFY_SOCKET", "Set by systemd: where it is told that the device can be used."),
        ],
        _ => &[],
    }
}

/// The files that a program reads or makes.
pub(crate) fn files(program: &str) -> &'static [Entry] {
    match program {
        "nbd-ctl" => &[
            (
                "/etc/nbd-ctl/devices.toml",
                "The devices of this machine by name: nbd-ctl-devices(5).",
            ),
            DEVICE_FOLDER,
            JOIN_SOCKET,
            LAST_LOG,
            (
                "/dev/disk/by-nbd/NAME",
                "A link to the device that was given this name, made by udev.",
            ),
        ],
        "nbd-serve" => &[
            (
                "/etc/nbd-ctl/serve-NAME.conf",
                "EXPORTS and OPTIONS of the service nbd-serve@NAME, which listens on /run/nbd-serve/NAME.sock.",
            ),
            JOIN_SOCKET,
        ],
        "nbd-kernel-holder" => &[DEVICE_FOLDER, JOIN_SOCKET, LAST_LOG],
        _ => &[],
    }
}
