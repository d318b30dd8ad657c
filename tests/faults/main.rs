//! Faults and long runs: devices that are lost, out of memory or hang, destroyed buffers, hostile files, several threads.
//! `docs/faults.md` lists them.

#[path = "../common/mod.rs"]
mod common;

mod buffers;
#[cfg(feature = "cli")]
mod cli;
mod errors;
mod gradients;
mod hang;
mod injection;
mod launches;
mod loss;
mod memory;
mod readers;
mod soak;
mod table;
mod threads;
