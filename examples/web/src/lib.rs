//! The digits demo of `examples/digits` for a browser, and the library's tests there. The demo's network, kernels, data and pictures are those
//! files themselves.

#[path = "../../common/axis_labels.rs"]
mod axis_labels;
pub mod demo;
#[path = "../../common/digits.rs"]
mod digits;
pub mod drawing;
#[path = "../../digits/gpu.rs"]
pub mod gpu;
#[path = "../../common/minibatches.rs"]
mod minibatches;
#[path = "../../digits/network.rs"]
mod network;
#[cfg(target_arch = "wasm32")]
mod page;
#[cfg(all(feature = "suite", target_arch = "wasm32"))]
mod page_check;
#[path = "../../common/picture.rs"]
mod picture;
mod pictures;
#[path = "../../digits/plots.rs"]
#[allow(dead_code, reason = "the page has no grid of runs")]
mod plots;
#[path = "../../common/rates.rs"]
#[allow(dead_code, reason = "the page has no command line")]
mod rates;
#[path = "../../digits/report.rs"]
#[allow(dead_code, reason = "the page has no grid of runs")]
mod report;
#[path = "../../common/ridges.rs"]
mod ridges;
#[path = "../../common/statistics.rs"]
mod statistics;
#[cfg(any(feature = "suite", not(target_arch = "wasm32")))]
pub mod suite;
#[path = "../../digits/train.rs"]
#[allow(dead_code, reason = "the page trains step by step")]
mod train;
