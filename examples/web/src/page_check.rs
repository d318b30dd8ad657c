//! What the check's page calls.

use std::sync::{Arc, Mutex};

use adamod::wgpu;
use wasm_bindgen::prelude::*;

use crate::demo::Demo;
use crate::gpu::Gpu;
use crate::page::{json, to_js};
use crate::suite::{self, Extent};

/// Runs the demo's short race and the tests, and hands each outcome to `report`: a kind and JSON.
#[wasm_bindgen]
pub async fn check(all: bool, report: js_sys::Function) -> Result<(), JsValue> {
    let post = |kind: &str, json: &str| {
        // What the page's own function throws is the page's affair.
        let _ = report.call2(&JsValue::NULL, &kind.into(), &json.into());
    };
    let outcome = |outcome: suite::Outcome| {
        if let Ok(json) = serde_json::to_string(&outcome) {
            post("outcome", &json);
        }
    };
    let gpu = Gpu::open().await.map_err(to_js)?;
    let uncaught = Arc::new(Mutex::new(Vec::new()));
    let errors = uncaught.clone();
    gpu.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        if let Ok(mut errors) = errors.lock() {
            errors.push(error.to_string());
        }
    }));
    let numbers = |numbers| {
        if let Ok(json) = serde_json::to_string(&numbers) {
            post("numbers", &json);
        }
    };
    Demo::short_races(&gpu, numbers).await.map_err(to_js)?;
    let extent = if all { Extent::All } else { Extent::Sample };
    suite::run(&gpu, extent, outcome).await;
    suite::compile(&gpu, extent, outcome).await;
    // Errors of wgpu that nobody waited for. There are none.
    let uncaught = uncaught.lock().map(|errors| errors.clone()).unwrap_or_default();
    post("uncaught", &json(&uncaught)?);
    Ok(())
}
