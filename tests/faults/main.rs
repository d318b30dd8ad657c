//! What goes wrong, and what becomes of it: devices that are lost, out of memory or hang, buffers that are gone, hostile files,
//! long runs, several threads.

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
