use super::*;
use proptest::prelude::*;

/// Tensors as a caller has them: lengths and locations that do not overlap, in buffers of these sizes.
#[derive(Clone, Debug)]
struct Scene {
    lengths: Vec<u64>,
    locations: Vec<(Location, Location)>,
    sizes: Vec<u64>,
}

fn scene() -> impl Strategy<Value = Scene> {
    let length = prop_oneof![1_u64..5, 1020_u64..1030, 1_u64..60_000];
    let tensor = (length, 0_usize..3, 0_usize..3, 0_u64..9, 0_u64..9);
    prop::collection::vec(tensor, 1..12).prop_map(|tensors| {
        let mut sizes = vec![0; 3];
        let mut place = |buffer: usize, gap: u64, length: u64| {
            let offset = sizes[buffer] + gap * ELEMENT_BYTES;
            sizes[buffer] = offset + length * ELEMENT_BYTES;
            Location { buffer: buffer as u32, offset }
        };
        let locations = tensors
            .iter()
            .map(|&(length, values, gradients, gap, other_gap)| {
                (place(values, gap, length), place(gradients, other_gap, length))
            })
            .collect();
        Scene { lengths: tensors.iter().map(|tensor| tensor.0).collect(), locations, sizes }
    })
}

fn limits(binding_bytes: u64, launch_chunks: u64) -> PlanLimits {
    PlanLimits { binding_bytes, offset_alignment: 256, launch_chunks }
}

/// Extents of all tensors, and elements of each page.
fn allocate(lengths: &[u64], states: u32, limits: &PlanLimits) -> (Vec<Vec<Extent>>, Vec<u64>) {
    let mut allocator = Allocator::new(states, limits);
    let mut pending: u64 = lengths.iter().map(|&length| allocator.state_elements(length)).sum();
    let extents = lengths
        .iter()
        .map(|&length| {
            let extents = allocator.allocate(length, pending);
            pending -= allocator.state_elements(length);
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
        states in 1_u32..4,
        binding_bytes in prop::sample::select(vec![16 * 1024, 64 * 1024, 1 << 20]),
        launch_chunks in prop::sample::select(vec![9_u64, 100, 1 << 20]),
    ) {
        let limits = limits(binding_bytes, launch_chunks);
        let (extents, pages) = allocate(&scene.lengths, states, &limits);
        let tensors: Vec<_> = scene
            .locations
            .iter()
            .zip(&extents)
            .map(|(&(values, gradients), extents)| Tensor { values, gradients, extents })
            .collect();
        let plan = Plan::new(&tensors, &scene.sizes, states, &limits);
        let table = plan.chunk_table(states);
        let mut values: Vec<_> = scene.sizes.iter().map(|&size| vec![false; size as usize / 4]).collect();
        let mut gradients = values.clone();
        let mut state: Vec<_> = pages.iter().map(|&elements| vec![false; elements as usize]).collect();
        for launch in &plan.launches {
            for window in [&launch.values, &launch.gradients] {
                prop_assert_eq!(window.offset % limits.offset_alignment, 0);
                prop_assert!(window.bytes <= limits.binding_bytes && window.bytes > 0);
                prop_assert!(window.end() <= scene.sizes[window.buffer as usize]);
            }
            prop_assert!(u64::from(launch.chunks) <= launch_chunks);
            prop_assert_eq!(u64::from(launch.first_chunk) * 16 % limits.offset_alignment, 0);
            match launch.binding {
                GradientBinding::Read => prop_assert_ne!(launch.values.buffer, launch.gradients.buffer),
                GradientBinding::Shared => prop_assert_eq!(launch.values, launch.gradients),
                GradientBinding::ReadWrite => prop_assert_eq!(launch.values.buffer, launch.gradients.buffer),
            }
            let first = launch.first_chunk as usize;
            let word = if launch.access == Access::Vec4 { 4 } else { 1 };
            for chunk in &table[first..first + launch.chunks as usize] {
                prop_assert!(launch.segments.contains(&chunk.segment));
                let segment = plan.segments[chunk.segment as usize];
                let elements = u64::from(chunk.elements);
                for (window, start, taken) in [
                    (&launch.values, segment.parameters, &mut values),
                    (&launch.gradients, segment.gradients, &mut gradients),
                ] {
                    let in_window = u64::from(start) + u64::from(chunk.first);
                    prop_assert!(in_window.is_multiple_of(word));
                    prop_assert!((in_window + elements).next_multiple_of(word) * ELEMENT_BYTES <= window.bytes);
                    mark(&mut taken[window.buffer as usize], window.offset / 4 + in_window, elements);
                }
                let block = block_elements(states, chunk.elements);
                mark(&mut state[launch.page as usize], chunk.state.into(), block);
            }
        }
        for (&length, &(of_values, of_gradients)) in scene.lengths.iter().zip(&scene.locations) {
            for (taken, location) in [(&values, of_values), (&gradients, of_gradients)] {
                let start = location.offset as usize / 4;
                let range = &taken[location.buffer as usize][start..start + length as usize];
                prop_assert!(range.iter().all(|&taken| taken), "an element is in no chunk");
            }
        }
        let covered: u64 = state.iter().flatten().map(|&taken| u64::from(taken)).sum();
        let allocator = Allocator::new(states, &limits);
        let needed: u64 = scene.lengths.iter().map(|&length| allocator.state_elements(length)).sum();
        prop_assert_eq!(covered, needed);
    }
}

#[test]
fn the_first_page_is_as_large_as_its_tensors() {
    let (_, pages) = allocate(&[1000, 24, 5], 3, &limits(1 << 20, 1 << 20));
    assert_eq!(pages, [3 * (1000 + 24 + 8)]);
}

#[test]
fn tensors_that_move_within_their_buffers_keep_the_chunk_table() {
    let limits = limits(1 << 20, 1 << 20);
    let (extents, _) = allocate(&[3000, 10], 3, &limits);
    let plan = |offsets: [u64; 2]| {
        let tensors: Vec<_> = extents
            .iter()
            .zip(offsets)
            .map(|(extents, offset)| Tensor {
                values: Location { buffer: 0, offset },
                gradients: Location { buffer: 1, offset: 0 },
                extents,
            })
            .collect();
        Plan::new(&tensors, &[40_000, 40_000], 3, &limits)
    };
    assert!(plan([0, 20_000]).has_chunks_of(&plan([16_000, 512])));
    assert_ne!(plan([0, 20_000]).segments, plan([16_000, 512]).segments);
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
