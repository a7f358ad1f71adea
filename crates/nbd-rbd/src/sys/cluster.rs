//! A connection to a cluster, and a pool of it.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use crate::sys::api::{self, Api, LibraryError};
use crate::sys::errno::Errno;
use crate::sys::names::{c_string, list, text};

/// A client of a cluster: configured first, then connected. Ends when the last share is dropped.
pub(crate) struct Cluster {
    pub(super) api: &'static Api,
    handle: api::Cluster,
}

// SAFETY: librados locks what it does with a handle; it may be used by any thread.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// A client that knows only its name and its cluster's.
    pub(crate) fn new(cluster: &str, client: &str) -> Result<Result<Self, Errno>, LibraryError> {
        let api = Api::get()?;
        let create = || {
            let (cluster, client) = (c_string(cluster)?, c_string(client)?);
            let mut handle = null_mut();
            // SAFETY: two strings, and a place for a handle.
            let error = unsafe {
                (api.rados_create2)(&raw mut handle, cluster.as_ptr(), client.as_ptr(), 0)
            };
            Errno::check(error).map(|()| Self { api, handle })
        };
        Ok(create())
    }

    /// Reads a configuration file: a named one, or the first of those that Ceph looks for. Then what the
    /// environment says, which is more important.
    pub(crate) fn read_conf(&self, path: Option<&str>) -> Result<(), Errno> {
        let path = path.map(c_string).transpose()?;
        let path = path.as_ref().map_or(null(), |path| path.as_ptr());
        // SAFETY: the handle is not connected; null or a string.
        Errno::check(unsafe { (self.api.rados_conf_read_file)(self.handle, path) })?;
        // SAFETY: as above; null stands for CEPH_ARGS.
        Errno::check(unsafe { (self.api.rados_conf_parse_env)(self.handle, null()) })
    }

    pub(crate) fn set(&self, option: &str, value: &str) -> Result<(), Errno> {
        let (option, value) = (c_string(option)?, c_string(value)?);
        // SAFETY: two strings.
        let set =
            unsafe { (self.api.rados_conf_set)(self.handle, option.as_ptr(), value.as_ptr()) };
        Errno::check(set)
    }

    pub(crate) fn get(&self, option: &str) -> Option<String> {
        let option = c_string(option).ok()?;
        let mut value: [c_char; 1024] = [0; 1024];
        let (room, size) = (value.as_mut_ptr(), value.len());
        // SAFETY: a string, and room for so many bytes. On success it is filled with a string.
        let got = unsafe { (self.api.rados_conf_get)(self.handle, option.as_ptr(), room, size) };
        // SAFETY: as above.
        (got == 0).then(|| unsafe { text(value.as_ptr()) })
    }

    /// Connects. Waits for monitors as long as `client_mount_timeout` says.
    pub(crate) fn connect(&self) -> Result<(), Errno> {
        // SAFETY: it is configured, and connected only here.
        Errno::check(unsafe { (self.api.rados_connect)(self.handle) })
    }

    /// Our address, by which the cluster knows us.
    pub(crate) fn address(&self) -> Result<String, Errno> {
        let mut address = null_mut();
        // SAFETY: the handle is connected; a place for a string, which is then ours.
        Errno::check(unsafe { (self.api.rados_getaddrs)(self.handle, &raw mut address) })?;
        // SAFETY: a string.
        let copy = unsafe { text(address) };
        // SAFETY: librados allocated it, and it is not used any more.
        unsafe { (self.api.rados_buffer_free)(address) };
        Ok(copy)
    }

    pub(crate) fn pools(&self) -> Result<Vec<String>, Errno> {
        list(|buffer| {
            let (room, size) = (buffer.as_mut_ptr().cast(), buffer.len());
            // SAFETY: room for so many bytes.
            let needed = unsafe { (self.api.rados_pool_list)(self.handle, room, size) };
            // It returns the size that it needs.
            if needed > 0 && needed as usize > size { -libc::ERANGE } else { needed }
        })
    }

    /// No server of the cluster executes a request of the client with this address any more, once we
    /// have the map of the cluster that says so: that is waited for.
    pub(crate) fn blocklist(&self, address: &str) -> Result<(), Errno> {
        let address = c_string(address)?.into_raw();
        // SAFETY: a string of our own, which the interface only forgets to declare constant. 0 seconds
        // stand for what the cluster is configured to.
        let added = unsafe { (self.api.rados_blocklist_add)(self.handle, address, 0) };
        // SAFETY: made by `into_raw` above.
        drop(unsafe { CString::from_raw(address) });
        Errno::check(added)?;
        // SAFETY: the handle is connected.
        Errno::check(unsafe { (self.api.rados_wait_for_latest_osdmap)(self.handle) })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: nothing uses it any more: pools have a share of it, and images one of their pool.
        unsafe { (self.api.rados_shutdown)(self.handle) };
    }
}

/// A pool, and the namespace in it.
pub(crate) struct Pool {
    pub(super) cluster: Arc<Cluster>,
    pub(super) context: api::IoContext,
}

// SAFETY: as for the cluster. The namespace is set only before a pool is shared.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    pub(crate) fn open(cluster: &Arc<Cluster>, name: &str) -> Result<Self, Errno> {
        let name = c_string(name)?;
        let mut context = null_mut();
        // SAFETY: the cluster is connected; a string, and a place for the context.
        let error = unsafe {
            (cluster.api.rados_ioctx_create)(cluster.handle, name.as_ptr(), &raw mut context)
        };
        Errno::check(error)?;
        Ok(Self { cluster: Arc::clone(cluster), context })
    }

    pub(crate) fn has_namespace(&self, name: &str) -> Result<bool, Errno> {
        let name = c_string(name)?;
        let mut exists = false;
        // SAFETY: a string and a place for a bool.
        let error = unsafe {
            let function = self.cluster.api.rbd_namespace_exists;
            function(self.context, name.as_ptr(), &raw mut exists)
        };
        Errno::check(error).map(|()| exists)
    }

    pub(crate) fn namespaces(&self) -> Result<Vec<String>, Errno> {
        list(|buffer| {
            let mut size = buffer.len();
            // SAFETY: room for so many bytes.
            unsafe {
                let function = self.cluster.api.rbd_namespace_list;
                function(self.context, buffer.as_mut_ptr().cast(), &raw mut size)
            }
        })
    }

    /// From now on, images are those of this namespace.
    pub(crate) fn enter(&mut self, namespace: &str) -> Result<(), Errno> {
        let namespace = c_string(namespace)?;
        let function = self.cluster.api.rados_ioctx_set_namespace;
        // SAFETY: a string; no image is open yet, because this is not shared.
        unsafe { function(self.context, namespace.as_ptr()) };
        Ok(())
    }

    pub(crate) fn images(&self) -> Result<Vec<String>, Errno> {
        list(|buffer| {
            let mut size = buffer.len();
            let room = buffer.as_mut_ptr().cast();
            // SAFETY: room for so many bytes.
            unsafe { (self.cluster.api.rbd_list)(self.context, room, &raw mut size) }
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: no image is open: each has a share of this.
        unsafe { (self.cluster.api.rados_ioctx_destroy)(self.context) };
    }
}
