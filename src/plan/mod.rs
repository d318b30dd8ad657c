//! Where things lie and which dispatches a step has. Nothing here uses a GPU.

pub mod allocator;
pub mod cohorts;
pub mod launches;
pub mod limits;
pub mod overlap;
pub mod places;
pub mod views;
