//! Child processes whose Vulkan devices fail on demand.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::package;

/// A fault that the layer in `layer/lib.rs` injects.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The n-th submit loses the device.
    LoseOnSubmit(u64),
    /// The n-th wait or query of progress loses the device.
    LoseOnQuery(u64),
    /// The n-th call that can run out of memory does.
    OutOfMemory(u64),
    /// The n-th call that can run out of memory and all later ones do.
    OutOfMemoryFrom(u64),
    /// The device makes no progress.
    Hang,
    /// No fault.
    None,
}

/// The commands of a submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submit {
    pub command_buffers: u32,
    pub dispatches: u32,
    pub barriers: u32,
    pub copies: u32,
    pub fills: u32,
}

/// The layer of this process.
pub struct Layer {
    orders: PathBuf,
}

const ORDERS: &str = "ADAMOD_FAULTS";

impl Layer {
    /// Sets the fault from now on. Its number counts from here.
    pub fn arm(&self, fault: Fault) {
        static ORDER: AtomicU64 = AtomicU64::new(0);
        let (kind, number) = match fault {
            Fault::LoseOnSubmit(number) => ("lose_on_submit", number),
            Fault::LoseOnQuery(number) => ("lose_on_query", number),
            Fault::OutOfMemory(number) => ("out_of_memory", number),
            Fault::OutOfMemoryFrom(number) => ("out_of_memory_from", number),
            Fault::Hang => ("hang", 0),
            Fault::None => ("none", 0),
        };
        let order = ORDER.fetch_add(1, Ordering::Relaxed);
        // The file is replaced as a whole, because the layer may read it at any moment.
        let new = self.orders.with_extension("new");
        std::fs::write(&new, format!("{kind} {number} {order}")).unwrap();
        std::fs::rename(new, &self.orders).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(log_of(&self.orders)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The number of faults so far.
    pub fn faults(&self) -> usize {
        self.log().iter().filter(|line| line.starts_with("fault")).count()
    }

    /// All submits so far.
    pub fn submits(&self) -> Vec<Submit> {
        let parse = |line: &String| {
            let mut numbers = line.strip_prefix("submit ")?.split(' ').map(|word| word.parse().unwrap());
            let mut next = || numbers.next().unwrap();
            Some(Submit {
                command_buffers: next(),
                dispatches: next(),
                barriers: next(),
                copies: next(),
                fills: next(),
            })
        };
        self.log().iter().filter_map(parse).collect()
    }
}

fn log_of(orders: &Path) -> PathBuf {
    let mut path = orders.as_os_str().to_owned();
    path.push(".log");
    path.into()
}

const LAYER: &str = "VK_LAYER_ADAMOD_faults";

/// Folder with the layer and its manifest. The layer is built when this version of its source is first used.
fn layer() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(built) = package::built_layer() {
            return built;
        }
        let source = package::folder().join("tests/faults/layer/lib.rs");
        let version = crc32fast::hash(&std::fs::read(&source).unwrap());
        let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = all.join(format!("layer-{version:08x}"));
        if folder.exists() {
            return folder;
        }
        // The folder is renamed when it is complete, because other processes may build it at the same time.
        let new = tempfile::tempdir_in(all).unwrap();
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let library = format!("{prefix}adamod_faults{suffix}");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-o"])
            .args([&new.path().join(&library), &source])
            .output()
            .expect("rustc builds the layer");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let manifest = serde_json::json!({
            "file_format_version": "1.2.0",
            "layer": {
                "name": LAYER,
                "type": "GLOBAL",
                // From the manifest's folder.
                "library_path": format!("./{library}"),
                "api_version": "1.3.0",
                "implementation_version": "1",
                "description": "Makes devices fail",
            },
        });
        std::fs::write(new.path().join("adamod_faults.json"), manifest.to_string()).unwrap();
        let renamed = std::fs::rename(new.path(), &folder);
        assert!(renamed.is_ok() || folder.exists(), "{renamed:?}");
        folder
    })
}

/// Runs `body` in a child process with the layer. `test` is the path of the test, `module::name`; the child runs only that test.
pub fn in_child(test: &str, body: impl FnOnce(&Layer)) {
    if let Some(orders) = std::env::var_os(ORDERS) {
        let layer = Layer { orders: orders.into() };
        body(&layer);
        assert!(layer.log().contains(&"device".to_owned()), "no device was made through the layer");
        std::fs::write(layer.orders.with_extension("done"), "").unwrap();
        return;
    }
    spawn(test, |command| {
        command.env("VK_LAYER_PATH", layer()).env("VK_INSTANCE_LAYERS", LAYER).env("WGPU_BACKEND", "vulkan");
    });
}

/// Runs `body` in a child process, where nothing else uses memory.
pub fn alone(test: &str, body: impl FnOnce()) {
    if let Some(orders) = std::env::var_os(ORDERS) {
        body();
        std::fs::write(PathBuf::from(orders).with_extension("done"), "").unwrap();
        return;
    }
    spawn(test, |_| {});
}

fn spawn(test: &str, prepare: impl FnOnce(&mut Command)) {
    let folder = tempfile::tempdir().unwrap();
    let orders = folder.path().join("orders");
    std::fs::write(&orders, "none 0").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--include-ignored"]).env(ORDERS, &orders);
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    print!("{text}");
    assert!(output.status.success(), "{test} failed in its child: {:?}", output.status);
    assert!(orders.with_extension("done").exists(), "{test} is no test of this binary");
}
