//! The adapter against Burn's optimizers, against tensor operations of Burn and, bit for bit, against the core.

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
mod rows;
mod training;
