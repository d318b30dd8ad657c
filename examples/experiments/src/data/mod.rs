//! Data from files as they are published. Every reader checks what it reads and names the file in its errors.

pub mod catalogue;
pub mod images;
