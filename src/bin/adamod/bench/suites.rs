//! The suites: lists of groups of variants. Nothing is created here, so they can be listed before anything is measured.

use adamod::low_level::CHUNK_ELEMENTS;
use adamod::{DType, Diagnostics, MasterWeights, RuleForm, RuleKind, StateFormat};

use super::designs::{Design, SINGLE_BINDINGS, designs};
use super::mode::{Gradients, Mode, Placement};
use super::models::{GPT2_WIDTH, gpt2_small, resnet50};

/// A question that the bench answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// Bytes per second of one AdaMod tensor, by size.
    Roofline,
    /// The tensors of models beside one flat tensor of the same size.
    Tensors,
    /// Pools, own buffers, unaligned tensors and tensors that move.
    Layout,
    /// Host time of a step of 1, 148 and 10,000 tensors, beside one flat tensor of the same size.
    Host,
    /// Every rule in every format of state; 16-bit parameters and gradients with each master weights; clipping; diagnostics.
    Modes,
    /// Design choices of the kernels beside the default, as on a GPU.
    Variants,
    /// More than 2^31 elements, if the device has room for them, checked at 2^30, 2^31 and the end among others.
    Large,
}

impl Suite {
    /// All suites, in the order in which they run.
    pub const ALL: [Self; 7] =
        [Self::Roofline, Self::Tensors, Self::Layout, Self::Host, Self::Modes, Self::Variants, Self::Large];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Roofline => "roofline",
            Self::Tensors => "tensors",
            Self::Layout => "layout",
            Self::Host => "host",
            Self::Modes => "modes",
            Self::Variants => "variants",
            Self::Large => "large",
        }
    }
}

/// Variants that move equally many bytes, measured in the same rounds with one copy and one stream kernel.
#[derive(Clone, Debug)]
pub struct Group {
    pub suite: Suite,
    pub variants: Vec<Variant>,
}

/// One row of the report.
#[derive(Clone, Debug)]
pub struct Variant {
    pub case: String,
    pub mode: Mode,
    pub placement: Placement,
    pub lengths: Vec<u64>,
    /// Only in the suite `variants`.
    pub design: Option<Design>,
}

impl Group {
    /// Elements of each variant.
    pub fn parameters(&self) -> u64 {
        self.variants[0].lengths.iter().sum()
    }
}

/// How large cases are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The largest case of `roofline`, and the size of `modes`.
    pub most_elements: u64,
    /// The most bytes of a buffer. A larger tensor is cut into several, each in buffers of its own.
    pub most_buffer_bytes: u64,
    /// Only a selection that takes less than a minute on a CPU.
    pub quick: bool,
    /// Models at their own width on software adapters, too.
    pub full: bool,
    pub is_cpu: bool,
}

/// The groups of a suite.
pub fn groups(suite: Suite, sizes: Sizes) -> Vec<Group> {
    let group = |variants| Group { suite, variants };
    match suite {
        Suite::Roofline => {
            roofline_sizes(sizes).map(|elements| roofline(elements, sizes.most_buffer_bytes)).collect()
        }
        Suite::Tensors => models(sizes)
            .into_iter()
            .map(|(name, lengths)| {
                let elements = lengths.iter().sum();
                let flat = flat(format!("{name} flat"), Mode::ADAMOD, elements, sizes.most_buffer_bytes);
                group(vec![pooled(name, lengths), flat])
            })
            .collect(),
        Suite::Layout => {
            let (name, lengths) = gpt2(sizes);
            let placements = [
                ("two pools", Placement::TwoPools),
                ("one pool", Placement::OnePool),
                ("own buffers", Placement::OwnBuffers),
                ("unaligned", Placement::Unaligned),
                ("moving", Placement::Moving),
            ];
            let variant = |(layout, placement)| Variant {
                placement,
                ..pooled(format!("{name}, {layout}"), lengths.clone())
            };
            vec![group(placements.map(variant).to_vec())]
        }
        Suite::Host => [1, 148, 10_000]
            .into_iter()
            .map(|tensors| {
                let fixed = pooled(format!("{tensors} x 256"), vec![256; tensors]);
                let moving = Variant {
                    case: format!("{tensors} x 256, moving"),
                    placement: Placement::Moving,
                    ..fixed.clone()
                };
                let mut variants = vec![fixed];
                if tensors > 1 {
                    let own = Variant {
                        case: format!("{tensors} x 256, own buffers"),
                        placement: Placement::OwnBuffers,
                        ..variants[0].clone()
                    };
                    let alone = Variant {
                        case: format!("{}, {}", own.case, SINGLE_BINDINGS.name),
                        design: Some(SINGLE_BINDINGS),
                        ..own.clone()
                    };
                    variants.extend([own, alone]);
                    let case = format!("{tensors} x 256 flat");
                    variants.push(flat(case, Mode::ADAMOD, 256 * tensors as u64, sizes.most_buffer_bytes));
                }
                variants.push(moving);
                group(variants)
            })
            .collect(),
        Suite::Modes => {
            let largest = if sizes.is_cpu { 1 << 22 } else { 1 << 26 };
            let elements = largest.min(sizes.most_elements) >> if sizes.quick { 2 } else { 0 };
            let alone =
                |mode| group(vec![flat(size_name(elements), mode, elements, sizes.most_buffer_bytes)]);
            modes().into_iter().map(alone).collect()
        }
        // Nothing that runs by the way.
        Suite::Variants | Suite::Large if sizes.quick => Vec::new(),
        Suite::Variants => {
            let elements = sizes.most_elements.min(if sizes.is_cpu { 1 << 20 } else { 1 << 25 });
            let variant = |(design, mode): (Design, Mode)| Variant {
                design: Some(design),
                ..flat(
                    format!("{} {}", size_name(elements), design.name),
                    mode,
                    elements,
                    sizes.most_buffer_bytes,
                )
            };
            let beside = |mode| group(designs(mode).into_iter().map(variant).collect());
            modes_with_variants().map(beside).into()
        }
        Suite::Large => {
            let elements = LARGE.min(sizes.most_elements);
            // 20 bytes per parameter, and 5 for devices with less memory.
            let small = Mode {
                state: StateFormat::Q8,
                values: DType::Bf16,
                ..Mode::f32(RuleKind::Sgd.default_form())
            };
            let alone =
                |mode| group(vec![flat(size_name(elements), mode, elements, sizes.most_buffer_bytes)]);
            [small, Mode::ADAMOD].map(alone).into()
        }
    }
}

/// Every measured mode, in the order of the table.
fn modes() -> Vec<Mode> {
    let mut modes = Vec::new();
    for form in RuleForm::all() {
        let f32 = Mode::f32(form);
        // Without states there is one format.
        let formats = StateFormat::ALL.into_iter().filter(|&state| {
            state == StateFormat::F32 || form.refusal(state).is_none() && !form.states().is_empty()
        });
        modes.extend(formats.clone().map(|state| Mode { state, ..f32 }));
        // State in bf16 lies between the others.
        for state in formats.filter(|state| *state != StateFormat::Bf16) {
            let bf16 = Mode { state, values: DType::Bf16, ..f32 };
            // Split32 keeps every bit of f32 in half the bytes of F32.
            let masters = MasterWeights::ALL.into_iter().filter(|master_weights| {
                master_weights.fit(DType::Bf16) && *master_weights != MasterWeights::F32
            });
            modes.extend(masters.map(|master_weights| Mode { master_weights, ..bf16 }));
        }
        modes.push(Mode { gradients: Gradients::Clipped, ..f32 });
        modes.push(Mode { shadow: true, ..f32 });
        if form.rule().has_element_rates() {
            modes.push(Mode { diagnostics: Diagnostics::RateHistograms, ..f32 });
        }
    }
    modes
}

/// Modes with kernels that differ, the one with most to decide first.
fn modes_with_variants() -> [Mode; 6] {
    let f32 = Mode::ADAMOD;
    let bf16 = Mode { values: DType::Bf16, ..f32 };
    [
        Mode { state: StateFormat::Q8, ..bf16 },
        Mode { state: StateFormat::Bf16, ..bf16 },
        f32,
        Mode { state: StateFormat::Q8, master_weights: MasterWeights::Split24, ..bf16 },
        Mode { master_weights: MasterWeights::Split24, ..bf16 },
        Mode { gradients: Gradients::Clipped, ..f32 },
    ]
}

/// Past 2^31, with a ragged end.
const LARGE: u64 = (1 << 31) + 1_000_003;

/// One tensor in two pools, or as many as it takes if buffers of `most_buffer_bytes` bytes cannot hold it.
fn flat(case: String, mode: Mode, elements: u64, most_buffer_bytes: u64) -> Variant {
    let chunk = u64::from(CHUNK_ELEMENTS);
    let most = (most_buffer_bytes / mode.values.bytes() / chunk * chunk).max(chunk);
    let tensors = elements.div_ceil(most).max(1);
    let each = elements.div_ceil(tensors).next_multiple_of(chunk);
    let mut lengths = vec![each; tensors as usize - 1];
    lengths.push(elements - each * (tensors - 1));
    let placement = if tensors == 1 { Placement::TwoPools } else { Placement::OwnBuffers };
    Variant { case, mode, placement, lengths, design: None }
}

/// A case of `roofline`.
pub fn roofline(elements: u64, most_buffer_bytes: u64) -> Group {
    let case = flat(size_name(elements), Mode::ADAMOD, elements, most_buffer_bytes);
    Group { suite: Suite::Roofline, variants: vec![case] }
}

/// Sizes to try after one that did not fit on the device, so that the last case fills its memory: the largest first, all above half of it.
pub fn sizes_below(elements: u64) -> [u64; 3] {
    [7, 6, 5].map(|eighths| elements / 8 * eighths)
}

fn pooled(case: String, lengths: Vec<u64>) -> Variant {
    Variant { case, mode: Mode::ADAMOD, placement: Placement::TwoPools, lengths, design: None }
}

/// Powers of two below the largest size, then the largest size.
fn roofline_sizes(sizes: Sizes) -> impl Iterator<Item = u64> {
    let most = sizes.most_elements;
    let step = if sizes.quick { 4 } else { 1 };
    let powers = (10..u64::BITS).step_by(step).map(|power| 1_u64 << power);
    powers.take_while(move |&size| size < most).chain([most])
}

fn models(sizes: Sizes) -> Vec<(String, Vec<u64>)> {
    let mut models = vec![gpt2(sizes), ("10,000 x 256".into(), vec![256; 10_000])];
    if !(sizes.quick && sizes.is_cpu) {
        models.push(("ResNet-50".into(), resnet50()));
    }
    models
}

/// GPT-2 small, narrower on a software adapter.
fn gpt2(sizes: Sizes) -> (String, Vec<u64>) {
    let width = match (sizes.is_cpu && !sizes.full, sizes.quick) {
        (false, _) => GPT2_WIDTH,
        (true, false) => GPT2_WIDTH / 4,
        (true, true) => GPT2_WIDTH / 16,
    };
    let name = match width {
        GPT2_WIDTH => "GPT-2 small".into(),
        _ => format!("GPT-2 small, width {width}"),
    };
    (name, gpt2_small(width))
}

/// `2^20`, or the number if it is not a power of two.
pub fn size_name(elements: u64) -> String {
    if elements.is_power_of_two() { format!("2^{}", elements.ilog2()) } else { elements.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_of_a_group_move_equal_bytes() {
        for (quick, full, is_cpu) in
            [(true, false, true), (false, false, true), (false, true, true), (false, false, false)]
        {
            let sizes = Sizes { most_elements: 5_000, most_buffer_bytes: 1 << 31, quick, full, is_cpu };
            for suite in Suite::ALL {
                for group in groups(suite, sizes) {
                    for variant in &group.variants {
                        assert_eq!(variant.lengths.iter().sum::<u64>(), group.parameters());
                        assert_eq!(
                            variant.mode.bytes_per_parameter(),
                            group.variants[0].mode.bytes_per_parameter()
                        );
                        assert!(variant.lengths.iter().all(|&len| len > 0), "{variant:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn roofline_ends_at_the_largest_size() {
        let sizes = Sizes {
            most_elements: 5_000,
            most_buffer_bytes: 1 << 31,
            quick: false,
            full: false,
            is_cpu: true,
        };
        assert_eq!(roofline_sizes(sizes).collect::<Vec<_>>(), [1_024, 2_048, 4_096, 5_000]);
        let sizes = Sizes { most_elements: 1_024, ..sizes };
        assert_eq!(roofline_sizes(sizes).collect::<Vec<_>>(), [1_024]);
    }

    #[test]
    fn a_tensor_beyond_a_buffer_lies_in_several() {
        let lengths = |elements, bytes| flat(String::new(), Mode::ADAMOD, elements, bytes).lengths;
        assert_eq!(lengths(1 << 29, 1 << 31), [1 << 29]);
        for (elements, bytes) in
            [(1 << 31, (1_u64 << 32) - 1), (LARGE, (1 << 31) - 1), (5_000, 4_096), (1 << 36, 1 << 32)]
        {
            let variant = flat(String::new(), Mode::ADAMOD, elements, bytes);
            assert_eq!(variant.placement, Placement::OwnBuffers);
            assert_eq!(variant.lengths.iter().sum::<u64>(), elements);
            let (last, others) = variant.lengths.split_last().unwrap();
            assert!(others.iter().all(|&len| len % u64::from(CHUNK_ELEMENTS) == 0 && 4 * len <= bytes));
            assert!((1..=others[0]).contains(last), "{last}");
        }
    }
}
