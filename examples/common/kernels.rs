//! Every kernel of the library, as text with its entry point and overrides.

use adamod::low_level::{
    Buffers, MAX_STATES, RowFeatures, StateAccess, Variant, abi, joint_source, norm_source, partials_source,
    prepare_source, remap_source, schedule_source,
};
use adamod::{Access, GradientBinding};

/// A kernel as text.
pub struct Kernel {
    /// `update.RULE.PART.PART`, `norm_of_chunks.PART.PART` or the name of the entry point.
    pub name: String,
    /// WGSL.
    pub source: String,
    /// The name of the entry point.
    pub entry_point: String,
    /// Values of the overrides.
    pub constants: Vec<(&'static str, f64)>,
}

/// Every variant of every kernel, with everything switched on that an override can switch.
pub fn all() -> Vec<Kernel> {
    let lanes = ("LANES", f64::from(abi::GPU_LANES));
    let control = [("USES_NORM", 1.0), ("SKIPS", 1.0), ("IS_DYNAMIC", 1.0), lanes];
    let mut all = Vec::new();
    let mut add = |name: &str, source: String, constants: &[(&'static str, f64)]| {
        for entry_point in entry_points(&source) {
            let name = if name.is_empty() { entry_point.clone() } else { format!("{entry_point}.{name}") };
            all.push(Kernel { name, source: source.clone(), entry_point, constants: constants.to_vec() });
        }
    };
    for variant in Variant::all() {
        let mut constants = vec![lanes, ("ZERO_GRADIENTS", 1.0)];
        if variant.rows == RowFeatures::On {
            constants.push(("HAS_MASKS", 1.0));
        }
        add(&variant.name(), variant.source(), &constants);
    }
    for access in [StateAccess::Words4, StateAccess::Words1] {
        let constants = [lanes, ("STATES", MAX_STATES as f64)];
        add(access.name(), remap_source(2, access), &constants);
    }
    for access in Access::ALL {
        for gradients in GradientBinding::ALL {
            add(&format!("{access:?}.{gradients:?}"), norm_source(access, gradients, Buffers::One), &control);
        }
    }
    for source in [partials_source(), prepare_source(), schedule_source(), joint_source()] {
        add("", source, &control);
    }
    all
}

/// The names of a source's entry points.
fn entry_points(source: &str) -> Vec<String> {
    let name = |text: &str| Some(text.split_once("fn ")?.1.split_once('(')?.0.to_owned());
    source.split("@compute").skip(1).filter_map(name).collect()
}
