//! From a variant of a kernel to its WGSL: files of `shaders/` joined in one order. No file is written twice for a variant.
//!
//! Each folder of variants is an axis; exactly one of its files is linked. `shaders/README.md` says which functions each axis defines.

use std::fmt::Write as _;

use super::abi::QUAD_ELEMENTS;
use super::bindings;
use crate::options::Diagnostics;
use crate::rules::update_rule::MAX_COEFFICIENTS;
use crate::rules::{RuleForm, RuleKind};
use crate::storage::block::{CHUNK_ELEMENTS, QUANT_BLOCK_ELEMENTS, StateAccess};
use crate::storage::state::{Format, MAX_STATES, Sign, StateFormat};

/// How a launch reads and writes parameters and gradients, four elements at a time. Depends on how they lie in their buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// In words of 16 bytes: all tensors are f32 and start at multiples of 16 bytes, and the buffers hold the last quads whole.
    Vec4,
    /// In words of 8 bytes: some tensors have 16-bit elements, all start at multiples of 8 bytes, and the buffers hold the last quads
    /// whole.
    Vec2,
    /// In words of 4 bytes.
    Scalar,
}

impl Access {
    /// All accesses.
    pub const ALL: [Self; 3] = [Access::Vec4, Access::Vec2, Access::Scalar];

    const fn name(self) -> &'static str {
        match self {
            Access::Vec4 => "vec4",
            Access::Vec2 => "vec2",
            Access::Scalar => "scalar",
        }
    }

    /// Bytes per word.
    pub const fn word_bytes(self) -> u64 {
        match self {
            Access::Vec4 => 16,
            Access::Vec2 => 8,
            Access::Scalar => 4,
        }
    }

    const fn wgsl(self) -> &'static str {
        match self {
            Access::Vec4 => include_str!("../../shaders/access/vec4.wgsl"),
            Access::Vec2 => include_str!("../../shaders/access/vec2.wgsl"),
            Access::Scalar => include_str!("../../shaders/access/scalar.wgsl"),
        }
    }
}

/// How a launch binds its gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GradientBinding {
    /// Read-only: they lie in a buffer without parameters of the launch, and are not zeroed.
    Read,
    /// `read_write`: they are zeroed, or lie in the parameters' buffer too far away for one binding.
    ReadWrite,
    /// None: they lie in the parameters' buffer and are read through its binding.
    Shared,
}

impl GradientBinding {
    /// All bindings.
    pub const ALL: [Self; 3] = [GradientBinding::Read, GradientBinding::ReadWrite, GradientBinding::Shared];

    const fn name(self) -> &'static str {
        match self {
            GradientBinding::Read => "read",
            GradientBinding::ReadWrite => "read_write",
            GradientBinding::Shared => "shared",
        }
    }

    /// Arrays have no shared binding.
    const fn wgsl(self, buffers: Buffers) -> &'static str {
        match (self, buffers) {
            (GradientBinding::Read, Buffers::One) => include_str!("../../shaders/gradients/read.wgsl"),
            (GradientBinding::Read, Buffers::Array) => {
                include_str!("../../shaders/gradients/read_array.wgsl")
            }
            (GradientBinding::ReadWrite, Buffers::One) => {
                include_str!("../../shaders/gradients/read_write.wgsl")
            }
            (GradientBinding::ReadWrite, Buffers::Array) => {
                include_str!("../../shaders/gradients/read_write_array.wgsl")
            }
            (GradientBinding::Shared, _) => include_str!("../../shaders/gradients/shared.wgsl"),
        }
    }
}

/// Whether the tensors of a launch lie in the same buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Buffers {
    /// Parameters lie in one binding, and so do gradients and shadow copies.
    One,
    /// Each tensor has bindings of its own, as elements of binding arrays. Gradients lie in other buffers than parameters.
    Array,
}

impl Buffers {
    const fn wgsl(self) -> [&'static str; 2] {
        match self {
            Self::One => ["", include_str!("../../shaders/buffers/one.wgsl")],
            Self::Array => [
                include_str!("../../shaders/lib/arrays.wgsl"),
                include_str!("../../shaders/buffers/array.wgsl"),
            ],
        }
    }

    /// What the text of a kernel begins with.
    const fn directives(self) -> &'static str {
        match self {
            Self::One => "",
            Self::Array => "enable wgpu_binding_array;\n\n",
        }
    }
}

/// Whether a launch writes 16-bit shadow copies of f32 parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shadow {
    /// No tensor has one.
    Off,
    /// Some tensors have one.
    On,
}

/// What a thread works on: a quad, two quads, or a quant block. A launch with 8-bit state needs one of the last two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantized {
    /// A quad. No tensor has 8-bit state.
    Off,
    /// Two quads. Four threads share a quant block, as suits a GPU.
    Shared,
    /// A quant block, as suits a CPU. All tensors of the launch have 8-bit state, and the same format.
    Whole,
}

impl Quantized {
    /// The kind for workgroups of `lanes` threads.
    pub const fn for_lanes(lanes: u32) -> Self {
        if lanes * Self::Shared.lane_elements() >= CHUNK_ELEMENTS { Self::Shared } else { Self::Whole }
    }

    /// What keeps a tensor apart from tensors of other formats. A thread with a quant block of its own has the code for eight quads, and
    /// that for every format of each is more than compilers of software adapters take in good time.
    pub fn format_apart(self, format: Format) -> Option<u32> {
        (self == Self::Whole && format.state == StateFormat::Q8).then(|| format.bits())
    }

    /// Elements that a thread works on at a time.
    pub const fn lane_elements(self) -> u32 {
        match self {
            Self::Off => QUAD_ELEMENTS,
            Self::Shared => 2 * QUAD_ELEMENTS,
            Self::Whole => QUANT_BLOCK_ELEMENTS as u32,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "",
            Self::Shared => ".q8",
            Self::Whole => ".q8_blocks",
        }
    }

    const fn wgsl(self) -> [&'static str; 2] {
        const CODES: &str = include_str!("../../shaders/lib/q8.wgsl");
        match self {
            Self::Off => ["", include_str!("../../shaders/quantized/off.wgsl")],
            Self::Shared => [CODES, include_str!("../../shaders/quantized/q8.wgsl")],
            Self::Whole => [CODES, include_str!("../../shaders/quantized/q8_blocks.wgsl")],
        }
    }
}

/// Whether a launch has rates by column or masked rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowFeatures {
    /// No tensor has either.
    Off,
    /// Some tensors have one of them.
    On,
}

const ROWS: &str = include_str!("../../shaders/lib/rows.wgsl");

/// What the text of the update kernel depends on. The overrides `LANES`, `FORMAT`, `WHOLE`, `CAUTION`, `ZERO_GRADIENTS` and
/// `RARE_PATHS_APART` vary besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The update rule and its states.
    pub form: RuleForm,
    /// How parameters and gradients are read and written.
    pub access: Access,
    /// How gradients are bound.
    pub gradients: GradientBinding,
    /// Whether tensors lie in the same buffers.
    pub buffers: Buffers,
    /// How state is read and written.
    pub state: StateAccess,
    /// What a thread works on.
    pub quantized: Quantized,
    /// Whether shadow copies are written.
    pub shadow: Shadow,
    /// Whether learning rates are counted.
    pub diagnostics: Diagnostics,
    /// Whether columns have rates or rows rest.
    pub rows: RowFeatures,
}

impl Variant {
    /// Every variant that can be built; those with rates by column or masked rows only with one binding of gradients, and without
    /// shadow copies. Those with binding arrays are [`Variant::with_arrays`].
    pub fn all() -> Vec<Self> {
        let states = [
            (StateAccess::Words4, Quantized::Off),
            (StateAccess::Words2, Quantized::Off),
            (StateAccess::Words1, Quantized::Off),
            (StateAccess::Words4, Quantized::Shared),
            (StateAccess::Words2, Quantized::Shared),
            (StateAccess::Words1, Quantized::Shared),
            (StateAccess::Words1, Quantized::Whole),
        ];
        let mut all = Vec::new();
        for form in RuleForm::all() {
            for access in Access::ALL {
                for gradients in GradientBinding::ALL {
                    for (state, quantized) in states {
                        for shadow in [Shadow::Off, Shadow::On] {
                            for diagnostics in [Diagnostics::Off, Diagnostics::RateHistograms] {
                                for rows in [RowFeatures::Off, RowFeatures::On] {
                                    all.push(Self {
                                        form,
                                        access,
                                        gradients,
                                        buffers: Buffers::One,
                                        state,
                                        quantized,
                                        shadow,
                                        diagnostics,
                                        rows,
                                    });
                                }
                            }
                        }
                    }
                }
            }
        }
        all.retain(|variant| {
            variant.form.rule().has_element_rates() || variant.diagnostics == Diagnostics::Off
        });
        // These two touch neither gradients nor shadow copies.
        all.retain(|variant| {
            variant.rows == RowFeatures::Off
                || variant.gradients == GradientBinding::Read && variant.shadow == Shadow::Off
        });
        all
    }

    /// Every variant with binding arrays.
    pub fn with_arrays() -> Vec<Self> {
        let is_one =
            |variant: &Self| variant.gradients != GradientBinding::Shared && variant.rows == RowFeatures::Off;
        let arrays = Self::all().into_iter().filter(is_one);
        arrays.map(|variant| Self { buffers: Buffers::Array, ..variant }).collect()
    }

    /// The variant's name, for labels: `adamod.vec4.read.words4`.
    pub fn name(&self) -> String {
        let shadow = match self.shadow {
            Shadow::Off => "",
            Shadow::On => ".shadow",
        };
        let diagnostics = match self.diagnostics {
            Diagnostics::Off => "",
            Diagnostics::RateHistograms => ".rate_histograms",
        };
        let rows = match self.rows {
            RowFeatures::Off => "",
            RowFeatures::On => ".rows",
        };
        let buffers = match self.buffers {
            Buffers::One => "",
            Buffers::Array => ".array",
        };
        let quantized = self.quantized.name();
        let (form, access, gradients) = (self.form, self.access.name(), self.gradients.name());
        let state = self.state.name();
        format!("{form}.{access}.{gradients}{buffers}.{state}{quantized}{shadow}{diagnostics}{rows}")
    }

    /// The WGSL of the update kernel; its entry point is `update`.
    pub fn source(&self) -> String {
        let state = match self.state {
            StateAccess::Words4 => include_str!("../../shaders/state/words4.wgsl"),
            StateAccess::Words2 => include_str!("../../shaders/state/words2.wgsl"),
            StateAccess::Words1 => include_str!("../../shaders/state/words1.wgsl"),
        };
        let [codes, quantized] = self.quantized.wgsl();
        let tensors = tensor_files(self.access, self.gradients, self.buffers);
        let rule = [
            include_str!("../../shaders/lib/step.wgsl"),
            include_str!("../../shaders/lib/arithmetic.wgsl"),
            include_str!("../../shaders/lib/elementary.wgsl"),
            self.form.rule().wgsl(),
        ];
        let state = [
            include_str!("../../shaders/lib/random.wgsl"),
            state,
            include_str!("../../shaders/lib/state.wgsl"),
            codes,
            quantized,
            include_str!("../../shaders/lib/master.wgsl"),
        ];
        let kernel = [
            match (self.shadow, self.buffers) {
                (Shadow::Off, _) => include_str!("../../shaders/shadow/off.wgsl"),
                (Shadow::On, Buffers::One) => include_str!("../../shaders/shadow/on.wgsl"),
                (Shadow::On, Buffers::Array) => include_str!("../../shaders/shadow/array.wgsl"),
            },
            include_str!("../../shaders/lib/shadow.wgsl"),
            match self.diagnostics {
                Diagnostics::Off => include_str!("../../shaders/diagnostics/off.wgsl"),
                Diagnostics::RateHistograms => include_str!("../../shaders/diagnostics/rate_histograms.wgsl"),
            },
            match self.rows {
                RowFeatures::Off => "",
                RowFeatures::On => ROWS,
            },
            match self.rows {
                RowFeatures::Off => include_str!("../../shaders/rows/off.wgsl"),
                RowFeatures::On => include_str!("../../shaders/rows/on.wgsl"),
            },
            include_str!("../../shaders/kernels/update.wgsl"),
        ];
        let files = tensors.iter().chain(&rule).chain(&state).chain(&kernel);
        self.buffers.directives().to_owned() + &linked(files.copied(), &update_glue(self.form, self.rows))
    }
}

/// The files that read and write parameters and gradients.
fn tensor_files(access: Access, gradients: GradientBinding, buffers: Buffers) -> [&'static str; 9] {
    let [arrays, parameters] = buffers.wgsl();
    [
        include_str!("../../shaders/lib/abi.wgsl"),
        include_str!("../../shaders/lib/format.wgsl"),
        include_str!("../../shaders/lib/rounding.wgsl"),
        include_str!("../../shaders/lib/place.wgsl"),
        access.wgsl(),
        arrays,
        parameters,
        gradients.wgsl(buffers),
        include_str!("../../shaders/lib/gradient.wgsl"),
    ]
}

/// The files that prepare a step on the device, without entry points. Every rule has its coefficients there: all of the library, and
/// those of the caller's that the optimizer has.
fn control_files(custom: &[RuleKind]) -> Vec<&'static str> {
    let mut files = vec![
        include_str!("../../shaders/lib/step.wgsl"),
        include_str!("../../shaders/lib/arithmetic.wgsl"),
        include_str!("../../shaders/lib/elementary.wgsl"),
    ];
    files.extend(RuleKind::ALL.iter().chain(custom).map(|rule| rule.wgsl()));
    files.push(include_str!("../../shaders/lib/control.wgsl"));
    files
}

/// The WGSL of the kernels that sum the squares of gradients. Their entry points are `norm_of_chunks` and, for a last launch that also
/// prepares the step, `norm_and_prepare`.
pub fn norm_source(access: Access, gradients: GradientBinding, buffers: Buffers) -> String {
    norm_source_with(access, gradients, buffers, &[])
}

/// The same for an optimizer that has these rules besides those of the library.
pub(crate) fn norm_source_with(
    access: Access,
    gradients: GradientBinding,
    buffers: Buffers,
    custom: &[RuleKind],
) -> String {
    let mut files = tensor_files(access, gradients, buffers).to_vec();
    files.push(include_str!("../../shaders/lib/sums.wgsl"));
    files.extend(control_files(custom));
    files.push(include_str!("../../shaders/lib/norm.wgsl"));
    files.push(include_str!("../../shaders/lib/partials.wgsl"));
    files.push(include_str!("../../shaders/kernels/norm.wgsl"));
    buffers.directives().to_owned() + &linked(files.into_iter(), &control_glue(custom))
}

/// The WGSL of the kernel that computes the norm from the partial sums of all launches. Its entry point is `norm_of_partials`.
pub fn partials_source() -> String {
    partials_source_with(&[])
}

/// The same for an optimizer that has these rules besides those of the library.
pub(crate) fn partials_source_with(custom: &[RuleKind]) -> String {
    let kernels = [
        include_str!("../../shaders/lib/sums.wgsl"),
        include_str!("../../shaders/lib/norm.wgsl"),
        include_str!("../../shaders/lib/partials.wgsl"),
        include_str!("../../shaders/kernels/partials.wgsl"),
    ];
    control_source(&kernels, custom)
}

/// The WGSL of the kernels that prepare a step without looking at gradients. Their entry points are `prepare`, `prepare_joint` and
/// `no_norm`.
pub fn prepare_source() -> String {
    prepare_source_with(&[])
}

/// The same for an optimizer that has these rules besides those of the library.
pub(crate) fn prepare_source_with(custom: &[RuleKind]) -> String {
    control_source(&[include_str!("../../shaders/kernels/prepare.wgsl")], custom)
}

/// The WGSL of the kernel that takes the factor of the learning rates from a schedule. Its entry point is `schedule`.
pub fn schedule_source() -> String {
    control_source(&[include_str!("../../shaders/kernels/schedule.wgsl")], &[])
}

/// The WGSL of the kernels that move rows, which read so many state buffers besides the one that they write, in words of 16 or 4 bytes. Their
/// entry points are `remap`, `rates_of_bands` and `mean_rates`.
pub fn remap_source(old_buffers: u32, access: StateAccess) -> String {
    let is_wide = access == StateAccess::Words4;
    let files = [
        include_str!("../../shaders/lib/abi.wgsl"),
        include_str!("../../shaders/lib/format.wgsl"),
        include_str!("../../shaders/lib/rounding.wgsl"),
        include_str!("../../shaders/lib/place.wgsl"),
        include_str!("../../shaders/lib/step.wgsl"),
        include_str!("../../shaders/lib/random.wgsl"),
        if is_wide {
            include_str!("../../shaders/state/words4.wgsl")
        } else {
            include_str!("../../shaders/state/words1.wgsl")
        },
        include_str!("../../shaders/lib/state.wgsl"),
        include_str!("../../shaders/lib/q8.wgsl"),
        ROWS,
        include_str!("../../shaders/kernels/remap.wgsl"),
        if is_wide {
            include_str!("../../shaders/old_state/words4.wgsl")
        } else {
            include_str!("../../shaders/old_state/words1.wgsl")
        },
    ];
    let word = if is_wide { "vec4<u32>" } else { "u32" };
    let (mut buffers, mut cases) = (String::new(), String::new());
    for index in 0..old_buffers {
        let _ = writeln!(
            buffers,
            "@group(0) @binding(OLD_STATE_BINDING + {index}) var<storage, read> old_state_{index}: array<{word}>;"
        );
        let _ = write!(
            cases,
            "        case {}u: {{\n            return old_state_{index}[index];\n        }}\n",
            index + 1
        );
    }
    let glue = format!(
        "{buffers}// A word of the bound state, or of one of the other buffers.
fn old_at(any_buffer: u32, index: u32) -> {word} {{
    switch select(OLD_BUFFER, any_buffer, OLD_BUFFER == ANY_BUFFER) {{
{cases}        default: {{
            return state[index];
        }}
    }}
}}
"
    );
    linked(files.into_iter(), &glue)
}

/// Words of an element of the binding arrays of [`reach_source`].
pub(crate) const REACH_WORDS: u32 = 64;

/// The WGSL of the kernel that tries binding arrays. Its entry point is `reach`.
pub fn reach_source() -> String {
    let glue = format!("const REACH_WORDS = {REACH_WORDS}u;\n");
    Buffers::Array.directives().to_owned()
        + &linked([include_str!("../../shaders/kernels/reach.wgsl")].into_iter(), &glue)
}

/// The WGSL of the kernels of joint steps. Their entry points are `join` and `follow`.
pub fn joint_source() -> String {
    let kernels = [
        include_str!("../../shaders/lib/sums.wgsl"),
        include_str!("../../shaders/lib/norm.wgsl"),
        include_str!("../../shaders/kernels/joint.wgsl"),
    ];
    control_source(&kernels, &[])
}

/// What the WGSL of a rule sees, and that WGSL at the end: the smallest module in which it has to be valid.
pub(crate) fn rule_source(wgsl: &str) -> String {
    let files = [
        include_str!("../../shaders/lib/abi.wgsl"),
        include_str!("../../shaders/lib/format.wgsl"),
        include_str!("../../shaders/lib/rounding.wgsl"),
        include_str!("../../shaders/lib/step.wgsl"),
        include_str!("../../shaders/lib/arithmetic.wgsl"),
        include_str!("../../shaders/lib/elementary.wgsl"),
    ];
    linked(files.into_iter(), wgsl)
}

fn control_source(kernels: &[&'static str], custom: &[RuleKind]) -> String {
    let mut files = vec![
        include_str!("../../shaders/lib/abi.wgsl"),
        include_str!("../../shaders/lib/format.wgsl"),
        include_str!("../../shaders/lib/rounding.wgsl"),
    ];
    files.extend(control_files(custom));
    files.extend(kernels);
    linked(files.into_iter(), &control_glue(custom))
}

fn linked(files: impl Iterator<Item = &'static str>, glue: &str) -> String {
    let mut source = bindings::wgsl();
    for file in files {
        source.push('\n');
        source.push_str(file);
    }
    source.push('\n');
    source.push_str(glue);
    source
}

/// `AdaModCoefficients(array[0], array[1], ...)`.
fn from_array(rule: RuleKind, array: &str) -> String {
    let count = rule.coefficients().len();
    let members: Vec<_> = (0..count).map(|index| format!("{array}[{index}]")).collect();
    format!("{}Coefficients({})", rule.type_name(), members.join(", "))
}

/// The rule's states, its step under the name `step`, and its coefficients at another learning rate.
fn update_glue(form: RuleForm, rows: RowFeatures) -> String {
    let rule = form.rule();
    let mut glue = format!("const FORM = {}u;\nconst STATES = {}u;\n", form.number(), form.states().len());
    let signs = form.states().iter().map(|state| state.sign).chain(std::iter::repeat(Sign::Signed));
    for (index, sign) in signs.take(MAX_STATES).enumerate() {
        let sign = match sign {
            Sign::Signed => "SIGNED",
            Sign::NonNegative => "NON_NEGATIVE",
            Sign::Positive => "POSITIVE",
        };
        let _ = writeln!(glue, "const SIGN_{index} = {sign};");
    }
    let (name, coefficients) = (rule.name(), from_array(rule, "c.of_rule"));
    let _ = write!(
        glue,
        "fn step(general: General, c: Coefficients, e: Elements) -> Stepped {{
    return {name}_step(general, {coefficients}, e);
}}
"
    );
    if rows == RowFeatures::On {
        glue.push_str(
            "fn with_factor(c: Coefficients, factor: f32) -> Coefficients {\n    var scaled = c;\n",
        );
        let rates = rule.rate_coefficients();
        for index in (0..MAX_COEFFICIENTS).filter(|index| rates >> index & 1 == 1) {
            let _ = writeln!(glue, "    scaled.of_rule[{index}] *= factor;");
        }
        glue.push_str("    return scaled;\n}\n");
    }
    glue
}

/// `coefficients_of_rule`, which calls the function of each rule.
fn control_glue(custom: &[RuleKind]) -> String {
    let mut glue = format!(
        "// No rule's coefficients depend on its form.
const FORM = 0u;

fn coefficients_of_rule(rule: u32, base: array<f32, {MAX_COEFFICIENTS}>, variant: u32, decay: Decay) -> array<f32, {MAX_COEFFICIENTS}> {{
    switch rule {{
"
    );
    for &rule in RuleKind::ALL.iter().chain(custom) {
        let members = rule.coefficients().iter().map(|name| format!("c.{name}"));
        let members = members.chain(std::iter::repeat("0.0".to_owned())).take(MAX_COEFFICIENTS);
        let _ = write!(
            glue,
            "        case {}u: {{
            let c = {}_coefficients({}, variant, decay);
            return array<f32, {MAX_COEFFICIENTS}>({});
        }}
",
            rule.code(),
            rule.name(),
            from_array(rule, "base"),
            members.collect::<Vec<_>>().join(", ")
        );
    }
    glue.push_str("        default: {\n            return base;\n        }\n    }\n}\n");
    glue
}
