//! A handle of a plugin ("connection"), and each callback that takes one.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nbd_backend::Extent;
use nix::errno::Errno;

use crate::abi::{self, AskFn, HandlePointer, NbdkitPlugin};
use crate::callbacks::intern;
use crate::context;
use crate::error::PluginError;
use crate::extent_list::ExtentList;
use crate::intruder::guarded;
use crate::plugin::{Plugin, c_string, plugin_text};

/// What the plugin's `open` returned.
#[derive(Debug)]
pub(crate) struct Handle {
    plugin: Arc<Plugin>,
    pointer: HandlePointer,
    /// Lives as long as the process, because plugins may keep it.
    export_name: *const c_char,
    is_closed: AtomicBool,
}

// SAFETY: the interface lets callbacks run in any thread; how many at a time, the thread model says,
// which `backend` keeps to. The name is never changed.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// Whether the storage is opened for writing only in so far as the plugin can: a layer refuses writes.
const READ_WRITE: c_int = 0;
/// The connection is in the clear: see `callbacks::connection`.
const NO_TLS: c_int = 0;

impl Handle {
    /// Opens what the plugin serves to clients that ask for this name.
    pub(crate) fn open(plugin: Arc<Plugin>, name: &str) -> Result<Self, PluginError> {
        let table = *plugin.table();
        let mut export_name = intern(&c_string(name)?);
        context::name_export(export_name);
        if let Some(preconnect) = table.preconnect {
            // SAFETY: after `after_fork`.
            plugin.step("preconnect", || unsafe { preconnect(READ_WRITE) })?;
        }
        if let Some(default_export) = table.default_export.filter(|_| name.is_empty()) {
            // SAFETY: after `preconnect`.
            let ask = || unsafe { default_export(READ_WRITE, NO_TLS) };
            let name = plugin.call("default_export", ask, |name| !name.is_null())?;
            export_name = intern(&c_string(&plugin_text(name).unwrap_or_default())?);
            context::name_export(export_name);
        }
        let Some(open) = table.open else {
            return Err(PluginError::Incomplete("open"));
        };
        // SAFETY: after `preconnect`, and only once before `close`.
        let open = || unsafe { open(READ_WRITE) };
        let pointer = plugin.call("open", open, |pointer| !pointer.is_null())?;
        let handle = Self { plugin, pointer, export_name, is_closed: AtomicBool::new(false) };
        if let Some(description) = table.export_description {
            // SAFETY: the handle is open.
            let text = guarded("export_description", || unsafe { description(pointer) });
            tracing::debug!(
                "nbdkit:{}: {}",
                handle.plugin.name(),
                plugin_text(text).unwrap_or_default()
            );
        }
        Ok(handle)
    }

    pub(crate) fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    fn table(&self) -> &NbdkitPlugin {
        self.plugin.table()
    }

    /// Closes it, once.
    pub(crate) fn close(&self) {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(close) = self.table().close {
            let pointer = self.pointer;
            context::name_export(self.export_name);
            // SAFETY: no callback uses the handle any more, and none will.
            guarded("close", || unsafe { close(pointer) });
        }
    }

    pub(crate) fn size(&self) -> Result<i64, PluginError> {
        let Some(get_size) = self.table().get_size else {
            return Err(PluginError::Incomplete("get_size"));
        };
        // SAFETY: the handle is open.
        self.plugin.call("get_size", || unsafe { get_size(self.pointer) }, |size| *size != -1)
    }

    /// Smallest, preferred and largest request, as the plugin says; zeroes if it says nothing.
    pub(crate) fn block_size(&self) -> Result<[u32; 3], PluginError> {
        let [mut minimum, mut preferred, mut maximum] = [0; 3];
        if let Some(block_size) = self.table().block_size {
            let places = (&raw mut minimum, &raw mut preferred, &raw mut maximum);
            // SAFETY: the handle is open, and there are three places for numbers.
            self.plugin.step("block_size", || unsafe {
                block_size(self.pointer, places.0, places.1, places.2)
            })?;
        }
        Ok([minimum, preferred, maximum])
    }

    /// Asks what the plugin can do; `otherwise` is the answer of one that lacks the callback.
    pub(crate) fn ask(
        &self,
        callback: &'static str,
        function: impl Fn(&NbdkitPlugin) -> Option<AskFn>,
        otherwise: c_int,
    ) -> Result<c_int, PluginError> {
        match function(self.table()) {
            // SAFETY: the handle is open.
            Some(function) => self.plugin.step(callback, || unsafe { function(self.pointer) }),
            None => Ok(otherwise),
        }
    }

    /// Which optional callbacks there are: only these are called.
    pub(crate) fn has(&self, function: impl Fn(&NbdkitPlugin) -> bool) -> bool {
        function(self.table())
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let count = count(buffer.len())?;
        let (data, table) = (buffer.as_mut_ptr().cast(), self.table());
        let done = self.request("pread", || match (table.pread, table.pread_v1) {
            // SAFETY: the handle is open, and there is room for so many bytes.
            (Some(pread), _) => Some(unsafe { pread(self.pointer, data, count, offset, 0) }),
            // SAFETY: as above.
            (None, Some(pread)) => Some(unsafe { pread(self.pointer, data, count, offset) }),
            (None, None) => None,
        })?;
        self.check_count("pread", done, count)
    }

    pub(crate) fn write(&self, data: &[u8], offset: u64, flags: u32) -> io::Result<()> {
        let count = count(data.len())?;
        let (data, table) = (data.as_ptr().cast(), self.table());
        let done = self.request("pwrite", || match (table.pwrite, table.pwrite_v1) {
            // SAFETY: the handle is open, and there are so many bytes.
            (Some(pwrite), _) => Some(unsafe { pwrite(self.pointer, data, count, offset, flags) }),
            // SAFETY: as above.
            (None, Some(pwrite)) => Some(unsafe { pwrite(self.pointer, data, count, offset) }),
            (None, None) => None,
        });
        self.check_count("pwrite", done?, count)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        let table = self.table();
        self.request("flush", || match (table.flush, table.flush_v1) {
            // SAFETY: the handle is open.
            (Some(flush), _) => Some(unsafe { flush(self.pointer, 0) }),
            // SAFETY: as above.
            (None, Some(flush)) => Some(unsafe { flush(self.pointer) }),
            (None, None) => None,
        })
        .map(drop)
    }

    pub(crate) fn trim(&self, count: u32, offset: u64, flags: u32) -> io::Result<()> {
        let table = self.table();
        self.request("trim", || match (table.trim, table.trim_v1) {
            // SAFETY: the handle is open.
            (Some(trim), _) => Some(unsafe { trim(self.pointer, count, offset, flags) }),
            // SAFETY: as above.
            (None, Some(trim)) => Some(unsafe { trim(self.pointer, count, offset) }),
            (None, None) => None,
        })
        .map(drop)
    }

    /// `EOPNOTSUPP` if the caller has to write zeroes.
    pub(crate) fn zero(&self, count: u32, offset: u64, flags: u32) -> io::Result<()> {
        let is_unsupported = match (self.table().zero, self.table().zero_v1) {
            (Some(_), _) => false,
            // Version 1 has no flags, and may be slow.
            (None, Some(_)) => flags & abi::FLAG_FAST_ZERO != 0,
            (None, None) => true,
        };
        if is_unsupported {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let may_trim = c_int::from(flags & abi::FLAG_MAY_TRIM != 0);
        let table = self.table();
        self.request("zero", || match (table.zero, table.zero_v1) {
            // SAFETY: the handle is open.
            (Some(zero), _) => Some(unsafe { zero(self.pointer, count, offset, flags) }),
            // SAFETY: as above.
            (None, Some(zero)) => Some(unsafe { zero(self.pointer, count, offset, may_trim) }),
            (None, None) => None,
        })
        .map(drop)
    }

    pub(crate) fn cache(&self, count: u32, offset: u64) -> io::Result<()> {
        match self.table().cache {
            Some(cache) => self
                // SAFETY: the handle is open.
                .request("cache", || Some(unsafe { cache(self.pointer, count, offset, 0) }))
                .map(drop),
            // One that says it could, and has no callback for it, has nothing to do.
            None => Ok(()),
        }
    }

    pub(crate) fn extents(&self, count: u32, offset: u64, flags: u32) -> io::Result<Vec<Extent>> {
        let mut list = ExtentList::new(offset, offset + u64::from(count));
        let pointer = (&raw mut list).cast();
        self.request("extents", || {
            let extents = self.table().extents?;
            // SAFETY: the handle is open, and the list lives until the callback returns.
            Some(unsafe { extents(self.pointer, count, offset, flags, pointer) })
        })?;
        if list.len() == 0 {
            context::report_error("extents: plugin must return at least one extent");
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(list.into_extents())
    }

    /// Carries a request out, and finds out why it failed if it did: as the plugin set the error,
    /// else as errno says if the plugin keeps that, else EIO. Without such a callback it is EINVAL.
    fn request(
        &self,
        callback: &'static str,
        function: impl FnOnce() -> Option<c_int>,
    ) -> io::Result<c_int> {
        context::name_export(self.export_name);
        context::enter(callback);
        Errno::clear();
        let result = function();
        let errno = Errno::last_raw();
        context::leave();
        match result {
            Some(result @ 0..) => Ok(result),
            Some(-1) => Err(io::Error::from_raw_os_error(match context::errno() {
                0 if self.table().errno_is_preserved != 0 && errno != 0 => errno,
                0 => libc::EIO,
                set => set,
            })),
            Some(odd) => Err(self.odd(callback, odd, "is neither success (0) nor failure (-1)")),
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// A plugin returns 0. One that returns the number of bytes, as read(2) does, works with nbdkit
    /// too; but if they are fewer, then the rest of the buffer was never filled in.
    fn check_count(&self, callback: &'static str, result: c_int, count: u32) -> io::Result<()> {
        if result == 0 || result.cast_unsigned() == count {
            return Ok(());
        }
        Err(self.odd(callback, result, "is neither 0 nor the length of the request"))
    }

    fn odd(&self, callback: &'static str, result: c_int, why: &str) -> io::Error {
        let name = self.plugin.name();
        tracing::error!("nbdkit:{name}: `{callback}` returns {result}, which {why}");
        io::Error::from_raw_os_error(libc::EIO)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

/// A length as plugins get it. Requests have been split before.
fn count(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
