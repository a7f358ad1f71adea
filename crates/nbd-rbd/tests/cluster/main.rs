//! Against a real cluster, whose configuration `NBD_TEST_CEPH_CONF` names. Without one nothing is tested,
//! and each test says so.
//!
//! The cluster must be one for tests, with a pool `rbd` and its OSDs' admin sockets on this machine: images
//! are made and removed, and an OSD is made slow.
//!
//! | module | what belongs there |
//! |---|---|
//! | `cluster` | the cluster, and images that are removed again |
//! | `process` | another process that has an image open, to be killed |
//! | `fence` | writes that come late, and clients that are shut out |
//! | `serve` | requests, shapes and growth |
//! | `refused` | what is refused, and in which words |

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod cluster;
mod fence;
mod process;
mod refused;
mod serve;
