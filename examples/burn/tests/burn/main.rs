//! The adapter against Burn's tensor operations and against the core.

mod checkpoints;
mod common;
mod configs;
mod counterparts;
mod custom_training_loop;
mod groups;
mod in_place;
mod per_tensor;
mod precision;
mod ranks;
mod rates;
mod records;
mod refusals;
mod training;
