//! What JavaScript calls.

use adamod::RuleKind;
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::demo::{Demo, Settings};
use crate::drawing;
use crate::gpu::Gpu;
use crate::report::rule_name;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console)]
    fn error(text: &str);
}

pub fn to_js(error: impl ToString) -> JsValue {
    js_sys::Error::new(&error.to_string()).into()
}

pub fn json(value: &impl Serialize) -> Result<String, JsValue> {
    serde_json::to_string(value).map_err(to_js)
}

/// A panic is an error on the console.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| error(&panic.to_string())));
}

/// The demo on its device.
#[wasm_bindgen]
pub struct Page {
    gpu: Gpu,
    demo: Option<Demo>,
}

/// A rule to choose.
#[derive(Serialize)]
struct Choice {
    name: &'static str,
    title: &'static str,
}

/// What the page shows as numbers.
#[derive(Serialize)]
struct Progress {
    epoch: usize,
    steps: usize,
    accuracy: f64,
    clipped: Option<f64>,
}

#[wasm_bindgen]
impl Page {
    /// Opens a device.
    pub async fn open() -> Result<Page, JsValue> {
        Ok(Self { gpu: Gpu::open().await.map_err(to_js)?, demo: None })
    }

    /// The rules to choose from, as JSON.
    pub fn rules(&self) -> Result<String, JsValue> {
        let choice = |rule: &RuleKind| Choice { name: rule.name(), title: rule_name(*rule) };
        json(&RuleKind::ALL.iter().map(choice).collect::<Vec<_>>())
    }

    /// Starts all runs anew.
    pub async fn start(
        &mut self,
        rule: &str,
        learning_rate: f64,
        beta3: f64,
        seed: u32,
        epochs: u32,
    ) -> Result<(), JsValue> {
        let rule =
            RuleKind::from_name(rule).ok_or_else(|| to_js(format!("expected a rule, got {rule:?}")))?;
        let settings = Settings { rule, learning_rate, beta3, seed: seed.into(), epochs: epochs as usize };
        self.demo = None;
        self.demo = Some(Demo::new(&self.gpu, settings).await.map_err(to_js)?);
        Ok(())
    }

    fn demo(&self) -> Result<&Demo, JsValue> {
        self.demo.as_ref().ok_or_else(|| to_js("nothing was started"))
    }

    /// Trains all runs for an epoch. Returns whether one was left.
    pub async fn train_epoch(&mut self) -> Result<bool, JsValue> {
        let demo = self.demo.as_mut().ok_or_else(|| to_js("nothing was started"))?;
        demo.train_epoch().await.map_err(to_js)
    }

    /// Epoch, steps, test accuracy and clipped share, as JSON.
    pub fn progress(&self) -> Result<String, JsValue> {
        let demo = self.demo()?;
        let (epoch, steps, accuracy, clipped) = (demo.epoch(), demo.steps(), demo.accuracy(), demo.clipped());
        json(&Progress { epoch, steps, accuracy, clipped })
    }

    /// The losses as SVG.
    pub fn loss_picture(&self, width: u32, height: u32) -> Result<String, JsValue> {
        self.demo()?.loss_picture((width, height)).map_err(to_js)
    }

    /// The learning rates as SVG, if the chosen rule has any.
    pub fn rates_picture(&self, width: u32, height: u32) -> Result<Option<String>, JsValue> {
        self.demo()?.rates_picture((width, height)).map_err(to_js)
    }

    /// Ten probabilities for a drawing of `width` pixels a row with ink from 0 to 255. None without ink.
    pub async fn recognise(&self, ink: &[u8], width: usize) -> Result<Vec<f64>, JsValue> {
        let Some(image) = drawing::image(ink, width) else { return Ok(Vec::new()) };
        self.demo()?.recognise(&image).await.map(Vec::from).map_err(to_js)
    }
}
