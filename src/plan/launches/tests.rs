use super::*;
use crate::plan::allocator::Allocator;
use crate::plan::limits::grid;
use crate::rules::RuleKind;
use crate::storage::block::state_words;
use crate::storage::master::MasterWeights;
use crate::storage::state::{Sign, StateFormat, StateTensor};
use proptest::prelude::*;

const STATES: [StateTensor; 3] = [StateTensor::new("state", Sign::Signed); 3];

/// Tensors as a caller has them, that do not overlap, in buffers of these sizes.
#[derive(Clone, Debug)]
struct Scene {
    tensors: Vec<Placed>,
    sizes: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    length: u64,
    values: Location,
    gradients: Location,
    shadow: Option<Location>,
    layout: BlockLayout,
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16])
}

fn layout() -> impl Strategy<Value = BlockLayout> {
    let state = prop::sample::select(StateFormat::ALL.to_vec());
    let master = prop::sample::select(vec![
        MasterWeights::None,
        MasterWeights::Split24,
        MasterWeights::Split32,
        MasterWeights::F32,
    ]);
    (1_usize..4, state, master).prop_map(|(states, state, master_weights)| BlockLayout {
        states: &STATES[..states],
        state,
        master_weights,
    })
}

/// The buffer that holds nothing but shadow.
const SHADOW: usize = 3;

fn scene() -> impl Strategy<Value = Scene> {
    let length = prop_oneof![1_u64..5, 1020_u64..1030, 1_u64..60_000];
    let place = || (0_usize..3, 0_u64..9, dtype());
    let tensor = (length, place(), place(), any::<bool>(), layout());
    prop::collection::vec(tensor, 1..12).prop_map(|tensors| {
        let mut sizes = vec![0; SHADOW + 1];
        let mut place = |(buffer, gap, dtype): (usize, u64, DType), length: u64| {
            let offset = sizes[buffer] + gap * WORD_BYTES;
            sizes[buffer] = (offset + length * dtype.bytes()).next_multiple_of(WORD_BYTES);
            Location { buffer: buffer as u32, offset, dtype }
        };
        let tensors = tensors
            .into_iter()
            .map(|(length, values, gradients, is_copied, layout)| Placed {
                length,
                values: place(values, length),
                gradients: place(gradients, length),
                shadow: is_copied.then(|| place((SHADOW, 1, DType::Bf16), length)),
                layout,
            })
            .collect();
        Scene { tensors, sizes }
    })
}

fn limits(binding_bytes: u64, launch_chunks: u64) -> PlanLimits {
    let tuning = Tuning::default();
    PlanLimits {
        binding_bytes,
        offset_alignment: 256,
        launch_chunks,
        windows: 1,
        least_array_len: 1,
        array_words: u64::MAX,
        lanes: 256,
        tuning,
    }
}

/// A tensor of AdaMod without anything that is rare.
fn tensor_of(values: Location, gradients: Location, extents: &[Extent], layout: BlockLayout) -> Tensor<'_> {
    Tensor {
        values,
        gradients,
        shadow: None,
        extents,
        layout,
        key: [0; 2],
        first_quad: 0,
        form: RuleKind::AdaMod.default_form(),
        is_cautious: false,
        has_factors: false,
        row_mask: None,
    }
}

/// Extents of all tensors, and words of each buffer.
fn allocate(tensors: &[(BlockLayout, u64)], limits: &PlanLimits) -> (Vec<Vec<Extent>>, Vec<u64>) {
    let mut allocator = Allocator::new(limits);
    let mut pending: u64 = tensors.iter().map(|&(layout, length)| state_words(layout, length)).sum();
    let extents = tensors
        .iter()
        .map(|&(layout, length)| {
            let extents = allocator.allocate(0, layout, length, pending);
            pending -= state_words(layout, length);
            extents
        })
        .collect();
    (extents, allocator.capacities().collect())
}

/// Marks a range, of which nothing may be marked yet.
fn mark(taken: &mut [bool], start: u64, count: u64) {
    for taken in &mut taken[start as usize..(start + count) as usize] {
        assert!(!std::mem::replace(taken, true), "covered twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Every element of every tensor is in one chunk, every chunk has a block of its own, and every launch is within the limits.
    #[test]
    fn launches_cover_every_element_once_within_the_limits(
        scene in scene(),
        zeroes_gradients in prop::sample::select(vec![false, true]),
        binding_bytes in prop::sample::select(vec![16 * 1024, 64 * 1024, 1 << 20]),
        launch_chunks in prop::sample::select(vec![9_u64, 100, 1 << 20]),
        lanes in prop::sample::select(vec![8_u32, 64, 256]),
        two_quads in any::<bool>(),
        windows in prop::sample::select(vec![1_u32, 2, 64]),
        array_words in prop::sample::select(vec![8_u64, 1024, u64::MAX]),
    ) {
        let tuning = Tuning { two_quads, ..Tuning::default() };
        let limits = PlanLimits { windows, array_words, lanes, tuning, ..limits(binding_bytes, launch_chunks) };
        let sizes: Vec<_> = scene.tensors.iter().map(|tensor| (tensor.layout, tensor.length)).collect();
        let (extents, buffers) = allocate(&sizes, &limits);
        let tensors: Vec<_> = scene
            .tensors
            .iter()
            .zip(&extents)
            .map(|(&Placed { values, gradients, shadow, layout, .. }, extents)| {
                Tensor { values, gradients, shadow, extents, layout, key: [0; 2],
                first_quad: 0, form: RuleKind::AdaMod.default_form(), is_cautious: false, has_factors: false, row_mask: None }
            })
            .collect();
        let plan = Plan::new(&tensors, &scene.sizes, zeroes_gradients, &limits);
        let table = plan.chunk_table();
        // Halves of words of 4 bytes that launches read or write.
        let mut taken: Vec<_> = scene.sizes.iter().map(|&size| vec![false; size as usize / 2]).collect();
        let mut state: Vec<_> = buffers.iter().map(|&words| vec![false; words as usize]).collect();
        for launch in &plan.launches {
            prop_assert!(launch.windows.len() <= windows as usize);
            let is_array = launch.windows.len() > 1;
            prop_assert!(!is_array || launch.windows.len() == launch.segments.len());
            for Windows { values, gradients, shadow } in &launch.windows {
                for window in [Some(values), Some(gradients), shadow.as_ref()].into_iter().flatten() {
                    prop_assert_eq!(window.offset % limits.offset_alignment, 0);
                    prop_assert!(window.bytes <= limits.binding_bytes && window.bytes > 0);
                    prop_assert!(window.end() <= scene.sizes[window.buffer as usize]);
                }
                let words = |window: &Window, bytes| if is_array { window.bytes / bytes } else { 0 };
                let access = launch.access.word_bytes();
                prop_assert!(words(values, access).max(words(gradients, access)) <= array_words);
                prop_assert!(shadow.as_ref().is_none_or(|shadow| words(shadow, WORD_BYTES) <= array_words));
                // wgpu refuses a buffer that a dispatch both reads and writes, and last quads are written whole.
                let has_gradients = |buffer: u32| launch.windows.iter().any(|of| of.gradients.buffer == buffer);
                let has_values = |buffer: u32| launch.windows.iter().any(|of| of.values.buffer == buffer);
                prop_assert!(!is_array || !has_gradients(values.buffer));
                let is_apart = |of: Window| !has_gradients(of.buffer) && !has_values(of.buffer);
                prop_assert!(!is_array || shadow.is_none_or(is_apart));
            }
            prop_assert!(u64::from(launch.chunks) <= launch_chunks);
            prop_assert_eq!(u64::from(launch.first_chunk) * 16 % limits.offset_alignment, 0);
            for Windows { values, gradients, .. } in &launch.windows {
                match launch.binding {
                    GradientBinding::Read => {
                        prop_assert_ne!(values.buffer, gradients.buffer);
                        prop_assert_eq!(zeroes_gradients, false);
                    }
                    GradientBinding::Shared => prop_assert!(values == gradients && !is_array),
                    GradientBinding::ReadWrite => {
                        prop_assert!(values.buffer == gradients.buffer || zeroes_gradients);
                        // Browsers refuse two writable bindings that overlap.
                        prop_assert!(!values.overlaps(gradients));
                    }
                }
            }
            let first = launch.first_chunk as usize;
            let word_bytes = match launch.access {
                Access::Vec4 => 16,
                Access::Vec2 => 8,
                Access::Scalar => 4,
            };
            for chunk in &table[first..first + launch.chunks as usize] {
                prop_assert!(launch.segments.contains(&chunk.segment));
                let segment = plan.segments[chunk.segment as usize];
                let tensor = &scene.tensors[plan.pieces[chunk.segment as usize].tensor as usize];
                prop_assert!(launch.format.is_none_or(|format| format == segment.format));
                prop_assert!(tensor.layout.access(u64::from(chunk.elements)) >= launch.state_access);
                let elements = u64::from(chunk.elements);
                prop_assert!(
                    !launch.is_whole || elements.is_multiple_of(launch.quantized.lane_elements().into())
                );
                prop_assert!(tensor.layout.state != StateFormat::Q8 || launch.quantized == Quantized::for_lanes(lanes));
                prop_assert!(launch.quantized != Quantized::Whole || launch.format.is_some());
                let window = if is_array { chunk.segment - launch.segments.start } else { 0 };
                let windows = &launch.windows[window as usize];
                let shadow = windows.shadow.as_ref().zip(tensor.shadow);
                prop_assert_eq!(shadow.is_some(), tensor.shadow.is_some());
                for (window, start, view, is_in_words) in [
                    Some((&windows.values, segment.parameters, tensor.values, true)),
                    Some((&windows.gradients, segment.gradients, tensor.gradients, true)),
                    shadow.map(|(window, view)| (window, segment.shadow, view, false)),
                ]
                .into_iter()
                .flatten()
                {
                    let bytes = view.dtype.bytes();
                    let in_window = u64::from(start) * WORD_BYTES + u64::from(chunk.first) * bytes;
                    if is_in_words && launch.access != Access::Scalar {
                        prop_assert!(in_window.is_multiple_of(word_bytes) && 4 * bytes >= word_bytes);
                        prop_assert!(in_window + elements.next_multiple_of(4) * bytes <= window.bytes);
                    }
                    let end = (in_window + elements * bytes).next_multiple_of(WORD_BYTES);
                    prop_assert!(end <= window.bytes);
                    let start = (window.offset + in_window) / 2;
                    mark(&mut taken[window.buffer as usize], start, elements * bytes / 2);
                }
                let block = tensor.layout.words(elements);
                prop_assert!(chunk.state.is_multiple_of(4));
                mark(&mut state[launch.state_buffer as usize], chunk.state.into(), block);
            }
        }
        for tensor in &scene.tensors {
            for view in [Some(tensor.values), Some(tensor.gradients), tensor.shadow].into_iter().flatten() {
                let start = view.offset as usize / 2;
                let end = start + (tensor.length * view.dtype.bytes() / 2) as usize;
                let range = &taken[view.buffer as usize][start..end];
                prop_assert!(range.iter().all(|&taken| taken), "an element is in no chunk");
            }
        }
        let covered: u64 = state.iter().flatten().map(|&taken| u64::from(taken)).sum();
        let needed: u64 = sizes.iter().map(|&(layout, length)| state_words(layout, length)).sum();
        prop_assert_eq!(covered, needed);
    }
}

const F32_STATE: BlockLayout =
    BlockLayout { states: &STATES, state: StateFormat::F32, master_weights: MasterWeights::None };

#[test]
fn tuning_changes_the_kernel_of_a_launch() {
    let kernel = |state, lanes, tuning| {
        let limits = PlanLimits { lanes, tuning, ..limits(1 << 20, 1 << 20) };
        let layout = BlockLayout { state, ..F32_STATE };
        let (extents, _) = allocate(&[(layout, 2048)], &limits);
        let at = |buffer| Location { buffer, offset: 0, dtype: DType::F32 };
        let tensor = tensor_of(at(0), at(1), &extents[0], layout);
        let plan = Plan::new(&[tensor], &[8192; 2], false, &limits);
        let [launch] = plan.launches.as_slice() else { panic!("one launch") };
        (launch.access, launch.state_access, launch.quantized, launch.is_whole)
    };
    let f32 = |lanes, tuning| kernel(StateFormat::F32, lanes, tuning);
    let default = Tuning::default();
    assert_eq!(f32(256, default), (Access::Vec4, StateAccess::Words4, Quantized::Off, true));
    let masks = Tuning { constant_masks: false, ..default };
    assert_eq!(f32(256, masks), (Access::Vec4, StateAccess::Words4, Quantized::Off, false));
    let two_quads = Tuning { two_quads: true, ..default };
    assert_eq!(f32(256, two_quads), (Access::Vec4, StateAccess::Words4, Quantized::Shared, true));
    // Too few threads for all pairs of quads.
    assert_eq!(f32(64, two_quads), f32(64, default));
    for (most_word_bytes, access, state) in
        [(8, Access::Vec2, StateAccess::Words2), (4, Access::Scalar, StateAccess::Words1)]
    {
        assert_eq!(f32(256, Tuning { most_word_bytes, ..default }), (access, state, Quantized::Off, true));
    }
    let q8 = |lanes| kernel(StateFormat::Q8, lanes, default);
    assert_eq!(q8(256), (Access::Vec4, StateAccess::Words2, Quantized::Shared, true));
    assert_eq!(q8(32), (Access::Vec4, StateAccess::Words1, Quantized::Whole, true));
}

#[test]
fn the_first_buffer_is_as_large_as_its_tensors() {
    let (_, buffers) = allocate(&[1000, 24, 5].map(|length| (F32_STATE, length)), &limits(1 << 20, 1 << 20));
    assert_eq!(buffers, [3 * (1000 + 24 + 8)]);
}

#[test]
fn pools_have_buffers_of_their_own() {
    let mut allocator = Allocator::new(&limits(1 << 20, 1 << 20));
    let words = state_words(F32_STATE, 1000);
    let buffers: Vec<_> = [(0, 2 * words), (7, words), (0, words)]
        .map(|(pool, pending)| allocator.allocate(pool, F32_STATE, 1000, pending)[0].buffer)
        .into();
    assert_eq!(buffers, [0, 1, 0]);
    assert_eq!(allocator.capacities().collect::<Vec<_>>(), [2 * words, words]);
}

#[test]
fn blocks_that_were_given_back_are_used_again() {
    let mut allocator = Allocator::new(&limits(1 << 20, 1 << 20));
    let words = |length| state_words(F32_STATE, length);
    let place = |allocator: &mut Allocator, length| allocator.allocate(0, F32_STATE, length, words(length));
    let first = allocator.allocate(0, F32_STATE, 3000, words(3000) + words(500) + words(2000));
    let second = place(&mut allocator, 500);
    let third = place(&mut allocator, 2000);
    let capacities: Vec<_> = allocator.capacities().collect();
    allocator.release(F32_STATE, &second);
    // The gap is too short for this one, the buffer's end as well: a buffer of its own.
    let fourth = place(&mut allocator, 700);
    assert_eq!(fourth[0].buffer, 1);
    assert_eq!(place(&mut allocator, 500), second);
    allocator.release(F32_STATE, &first);
    allocator.release(F32_STATE, &second);
    // Both gaps are one now.
    let joined = place(&mut allocator, 3400);
    assert_eq!((joined.len(), joined[0].state), (1, 0));
    allocator.release(F32_STATE, &joined);
    allocator.release(F32_STATE, &third);
    allocator.release(F32_STATE, &fourth);
    assert_eq!(allocator.capacities().collect::<Vec<_>>(), [0, 0], "buffers without tensors are vacant");
    assert_eq!(place(&mut allocator, 5)[0].buffer, 0);
    assert_eq!(capacities, [words(3000) + words(500) + words(2000)]);
}

proptest! {
    /// However tensors come and go, no two live ones share a word, and buffers do not add up.
    #[test]
    fn blocks_of_live_tensors_never_overlap(
        actions in prop::collection::vec((0_u32..3, layout(), 1_u64..9000, any::<prop::sample::Index>()), 1..80),
    ) {
        let mut allocator = Allocator::new(&limits(64 * 1024, 1 << 20));
        let mut live: Vec<(BlockLayout, u64, Vec<Extent>)> = Vec::new();
        for (pool, layout, length, removed) in actions {
            if live.len() > 6 {
                let (layout, _, extents) = live.swap_remove(removed.index(live.len()));
                allocator.release(layout, &extents);
            }
            let extents = allocator.allocate(pool, layout, length, state_words(layout, length));
            live.push((layout, length, extents));
            let mut taken: Vec<_> = allocator.capacities().map(|words| vec![false; words as usize]).collect();
            for (layout, length, extents) in &live {
                prop_assert_eq!(extents.iter().map(|extent| extent.elements).sum::<u64>(), *length);
                for extent in extents {
                    let words = state_words(*layout, extent.elements);
                    mark(&mut taken[extent.buffer as usize], extent.state.into(), words);
                }
            }
        }
        for (layout, _, extents) in &live {
            allocator.release(*layout, extents);
        }
        prop_assert!(allocator.capacities().all(|words| words == 0));
    }
}

#[test]
fn tensors_that_move_within_their_buffers_keep_the_chunk_table() {
    let limits = limits(1 << 20, 1 << 20);
    let (extents, _) = allocate(&[3000, 10].map(|length| (F32_STATE, length)), &limits);
    let plan = |offsets: [u64; 2]| {
        let tensors: Vec<_> = extents
            .iter()
            .zip(offsets)
            .map(|(extents, offset)| {
                tensor_of(
                    Location { buffer: 0, offset, dtype: DType::F32 },
                    Location { buffer: 1, offset: 0, dtype: DType::F32 },
                    extents,
                    F32_STATE,
                )
            })
            .collect();
        Plan::new(&tensors, &[40_000, 40_000], false, &limits)
    };
    assert!(plan([0, 20_000]).has_chunks_of(&plan([16_000, 512])));
    assert_ne!(plan([0, 20_000]).segments, plan([16_000, 512]).segments);
}

/// Without binding arrays each tensor with buffers of its own has a launch. With them, tensors with the same kernel share one.
#[test]
fn tensors_with_buffers_of_their_own_share_launches_through_binding_arrays() {
    let lengths = [1000, 24, 2048, 10, 1 << 21, 36];
    let launches = |windows| {
        let limits = PlanLimits { windows, ..limits(1 << 26, 1 << 20) };
        let (extents, _) = allocate(&lengths.map(|length| (F32_STATE, length)), &limits);
        let at = |buffer| Location { buffer, offset: 0, dtype: DType::F32 };
        let tensor = |(index, extents): (u32, _)| {
            tensor_of(
                at(2 * index),
                // The last one has its gradient where the first one has its values.
                at(if index == 5 { 0 } else { 2 * index + 1 }),
                extents,
                F32_STATE,
            )
        };
        let tensors: Vec<_> = (0..).zip(extents.iter().map(Vec::as_slice)).map(tensor).collect();
        let sizes: Vec<_> = lengths.into_iter().flat_map(|length| [4 * length; 2]).collect();
        let plan = Plan::new(&tensors, &sizes, false, &limits);
        plan.launches.iter().map(|launch| (launch.windows.len(), launch.access)).collect::<Vec<_>>()
    };
    assert_eq!(launches(1).len(), 6);
    // One that reads words of 4 bytes, because its buffer ends within a quad, one that is large, and one that reads what another writes.
    let (wide, narrow) = (Access::Vec4, Access::Scalar);
    assert_eq!(launches(64), [(3, wide), (1, narrow), (1, wide), (1, wide)]);
    assert_eq!(launches(2), [(2, wide), (2, wide), (1, narrow), (1, wide)]);
}

/// A window's worth at a time: more pieces would be more segments, or more launches.
#[test]
fn tensors_past_a_window_are_cut_where_windows_end() {
    let limits = limits(64 * 1024, 1 << 20);
    let layout = BlockLayout { states: &STATES[..1], ..F32_STATE };
    let length = 16 * u64::from(CHUNK_ELEMENTS);
    let (extents, _) = allocate(&[(layout, length)], &limits);
    let location = |buffer| Location { buffer, offset: 4, dtype: DType::F32 };
    let (values, gradients) = (location(0), location(1));
    let tensor = tensor_of(values, gradients, &extents[0], layout);
    let size = 4 + 4 * length;
    let plan = Plan::new(&[tensor], &[size, size], false, &limits);
    assert_eq!(plan.launches.iter().map(|launch| launch.chunks).collect::<Vec<_>>(), [15, 1]);
    assert_eq!(plan.segments.len(), 2);
}

/// Values and gradients with a border within one offset's alignment, too large for one window together.
#[test]
fn neighbours_too_large_for_one_window_are_cut_until_their_windows_are_apart() {
    let limits = limits(64 * 1024, 1 << 20);
    let layout = BlockLayout { states: &STATES[..1], ..F32_STATE };
    for length in [8_193, 10_001, 15_999] {
        let (extents, _) = allocate(&[(layout, length)], &limits);
        let location = |offset| Location { buffer: 0, offset, dtype: DType::F32 };
        let (values, gradients) = (location(0), location(4 * length));
        let tensor = tensor_of(values, gradients, &extents[0], layout);
        let plan = Plan::new(&[tensor], &[8 * length], false, &limits);
        assert_eq!(plan.launches.len(), 2, "{length}");
        for launch in plan.launches {
            let is_shared = launch.binding == GradientBinding::Shared;
            let [Windows { values, gradients, .. }] = &launch.windows[..] else { panic!("one window") };
            assert!(is_shared || !values.overlaps(gradients), "{length}");
        }
    }
}

#[test]
fn partial_sums_are_few_however_many_chunks_there_are() {
    let (extents, _) = allocate(&[(F32_STATE, 10)], &limits(1 << 20, 1 << 20));
    let location = |buffer| Location { buffer, offset: 0, dtype: DType::F32 };
    let tensor = tensor_of(location(0), location(1), &extents[0], F32_STATE);
    let plan = Plan::new(&[tensor], &[40, 40], false, &limits(1 << 20, 1 << 20));
    for chunks in [&[1][..], &[1, 300, 4000], &[4096], &[4097], &[1, 8_000_000, 70_000]] {
        let launches: Vec<_> =
            chunks.iter().map(|&chunks| Launch { chunks, ..plan.launches[0].clone() }).collect();
        let partials = Plan { launches, ..plan.clone() }.partials(256, 1000);
        let mut last_end = 0;
        for (partials, &chunks) in partials.iter().zip(chunks) {
            let count = partials.end - partials.start;
            assert!(
                partials.start >= last_end
                    && (size_of::<Partial>() as u64 * partials.start).is_multiple_of(256)
            );
            assert!((1..=u64::from(chunks).min(1000)).contains(&count));
            last_end = partials.end;
        }
        let count: u64 = partials.iter().map(|partials| partials.end - partials.start).sum();
        assert!(count <= 1000 + chunks.len() as u64, "{chunks:?}: {count}");
        let all: u64 = chunks.iter().copied().map(u64::from).sum();
        assert!(count >= all.min(500), "{chunks:?}: {count}");
    }
}

#[test]
fn grids_reach_every_chunk_with_less_than_a_row_to_spare() {
    for chunks in [1, 2, 65_535, 65_536, 65_537, 131_070, 1_000_003] {
        let (x, y) = grid(chunks, 65_535);
        assert!(x <= 65_535 && y <= 65_535);
        assert!(x * y >= chunks && x * y - chunks < y, "{chunks}: {x} x {y}");
    }
    assert_eq!(grid(65_535, 65_535), (65_535, 1));
}
