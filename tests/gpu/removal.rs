//! Parameters and groups that are removed: their handles are refused, what they had is free, and nobody else notices.

use adamod::{
    AdaMod, Control, DeviceControl, ErrorKind, Group, GroupId, Optimizer, Options, Parameter, ParameterId,
    State, StateFormat, Step, Update, View, Views,
};

use crate::common::{gpu, precision};

const PLACE_BYTES: u64 = 32 * 1024;

/// A pool of values and one of gradients, cut into equal places.
struct Pools {
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
}

impl Pools {
    fn new(places: u64) -> Self {
        let pools = Self {
            values: gpu().buffer(places * PLACE_BYTES),
            gradients: gpu().buffer(places * PLACE_BYTES),
        };
        let numbers: Vec<f32> =
            (0..places * PLACE_BYTES / 4).map(|i| ((i % 8192) as f32 * 0.37).sin()).collect();
        gpu().queue.write_buffer(&pools.gradients, 0, bytemuck::cast_slice(&numbers));
        pools
    }

    fn views(&self, place: u64) -> Views<'_> {
        let view = |buffer| View::new(buffer, place * PLACE_BYTES);
        Views::new(view(&self.values), view(&self.gradients))
    }

    fn parameter<'a>(&'a self, label: &'a str, len: u64, place: u64) -> Parameter<'a> {
        Parameter::new(label, len).with_views(self.views(place))
    }
}

fn optimizers() -> Vec<(Optimizer, GroupId)> {
    let mut all = Vec::new();
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        for state in StateFormat::ALL {
            let options = Options::new().with_control(control);
            let mut optimizer = gpu().optimizer(options).unwrap();
            let group = Group::new(AdaMod::new()).with_precision(precision(state));
            let group = optimizer.add_group(group).unwrap();
            all.push((optimizer, group));
        }
    }
    all
}

fn state(optimizer: &Optimizer, parameter: ParameterId) -> State {
    optimizer.read_state(parameter).wait().unwrap()
}

#[test]
fn a_removed_parameter_is_refused_everywhere() {
    let pools = Pools::new(2);
    for (mut optimizer, group) in optimizers() {
        let kept = optimizer.add_parameter(group, pools.parameter("kept", 100, 0)).unwrap();
        let gone = optimizer.add_parameter(group, pools.parameter("gone", 100, 1)).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        optimizer.remove_parameter(gone).unwrap();
        let refuses = |optimizer: &mut Optimizer| {
            let mut encoder = gpu().encoder();
            let error = optimizer.encode(&mut encoder, &Step::of(&[kept, gone])).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
            let update = Update::new(gone, pools.views(1));
            let error = optimizer.encode(&mut encoder, &Step::at(&[update])).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
            let error = optimizer.set_views(gone, pools.views(1)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
            let error = optimizer.read_state(gone).wait().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
            let error = optimizer.read_parameter(gone).wait().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
            let error = optimizer.write_parameter(gone, &[0.0; 100]).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
            let error = optimizer.remove_parameter(gone).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
            assert_eq!(optimizer.step_count(gone), None);
            assert_eq!(optimizer.label(gone), None);
            assert_eq!(optimizer.group_of(gone), None);
            assert!(optimizer.parameters().all(|parameter| parameter != gone));
            assert_eq!(optimizer.state_bytes_of(gone), None);
            assert_eq!(optimizer.step_count(kept), Some(1));
        };
        refuses(&mut optimizer);
        // Neither its label nor its bytes are taken; the handle of what comes after it is another one.
        let next = optimizer.add_parameter(group, pools.parameter("gone", 50, 1)).unwrap();
        assert_ne!(next, gone);
        assert_eq!(optimizer.parameter("gone"), Some(next));
        refuses(&mut optimizer);
        optimizer.submit(&Step::all()).unwrap();
        assert_eq!((state(&optimizer, kept).step, state(&optimizer, next).step), (2, 1));
    }
}

/// What comes into the place of a parameter starts from zero, and what stays goes on, as in an optimizer of their own.
#[test]
fn others_step_as_if_a_removed_parameter_had_never_been() {
    for ((mut optimizer, group), (mut alone, alone_group)) in optimizers().into_iter().zip(optimizers()) {
        let (pools, alone_pools) = (Pools::new(3), Pools::new(3));
        let first = optimizer.add_parameter(group, pools.parameter("first", 5000, 0)).unwrap();
        let gone = optimizer.add_parameter(group, pools.parameter("gone", 3000, 1)).unwrap();
        let alone_first = alone.add_parameter(alone_group, alone_pools.parameter("first", 5000, 0)).unwrap();
        for _ in 0..3 {
            optimizer.submit(&Step::all()).unwrap();
            alone.submit(&Step::all()).unwrap();
        }
        let bytes = optimizer.state_bytes();
        optimizer.remove_parameter(gone).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        alone.submit(&Step::all()).unwrap();
        let next = optimizer.add_parameter(group, pools.parameter("next", 2900, 2)).unwrap();
        let alone_next = alone.add_parameter(alone_group, alone_pools.parameter("next", 2900, 2)).unwrap();
        for _ in 0..3 {
            optimizer.submit(&Step::all()).unwrap();
            alone.submit(&Step::all()).unwrap();
        }
        // It is where the removed one was.
        assert_eq!(optimizer.state_bytes(), bytes);
        assert_eq!(state(&optimizer, first), state(&alone, alone_first));
        assert_eq!(state(&optimizer, next), state(&alone, alone_next));
        let (values, alone_values) = (gpu().read(&pools.values), gpu().read(&alone_pools.values));
        for place in [0, 2] {
            let range = place * PLACE_BYTES as usize / 4..(place + 1) * PLACE_BYTES as usize / 4;
            assert!(values[range.clone()] == alone_values[range]);
        }
    }
}

#[test]
fn a_parameter_can_be_removed_before_its_first_step_and_without_views() {
    let pools = Pools::new(1);
    let (mut optimizer, group) = optimizers().remove(0);
    let gone = optimizer.add_parameter(group, Parameter::new("pooled", 10)).unwrap();
    let kept = optimizer.add_parameter(group, pools.parameter("kept", 10, 0)).unwrap();
    optimizer.submit(&Step::all()).unwrap_err();
    optimizer.remove_parameter(gone).unwrap();
    optimizer.submit(&Step::all()).unwrap();
    optimizer.remove_parameter(kept).unwrap();
    assert_eq!(optimizer.state_bytes(), 0);
    // Nothing to do is no error.
    optimizer.submit(&Step::all()).unwrap();
}

#[test]
fn groups_are_removed_once_they_are_empty() {
    let pools = Pools::new(2);
    let (mut optimizer, first) = optimizers().remove(0);
    let second = optimizer.add_group(AdaMod::new()).unwrap();
    let parameter = optimizer.add_parameter(first, pools.parameter("p", 10, 0)).unwrap();
    let other = optimizer.add_parameter(second, pools.parameter("q", 10, 1)).unwrap();
    optimizer.submit(&Step::all()).unwrap();
    let error = optimizer.remove_group(first).unwrap_err();
    let is_in_use = matches!(error.kind(), ErrorKind::GroupInUse { members: 1, label } if label == "p");
    assert!(is_in_use, "{error}");
    assert_eq!(optimizer.group_of(parameter), Some(first));
    optimizer.remove_parameter(parameter).unwrap();
    optimizer.remove_group(first).unwrap();
    let error = optimizer.remove_group(first).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownGroup), "{error}");
    assert_eq!(optimizer.groups().map(|(id, _)| id).collect::<Vec<_>>(), [second]);
    assert_eq!(optimizer.group(first), None);
    assert!(optimizer.set_learning_rate(first, 1.0).is_err());
    let error = optimizer.add_parameter(first, pools.parameter("p", 10, 0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownGroup), "{error}");
    // A checkpoint knows the groups that are left, and fits an optimizer that never had another one.
    optimizer.submit(&Step::all()).unwrap();
    let checkpoint = optimizer.checkpoint().wait().unwrap();
    let mut fresh = gpu().optimizer(Options::new()).unwrap();
    let group = fresh.add_group(AdaMod::new()).unwrap();
    let restored = fresh.add_parameter(group, pools.parameter("q", 10, 1)).unwrap();
    fresh.restore(&checkpoint).unwrap();
    assert_eq!(state(&fresh, restored), state(&optimizer, other));
    // The next group has the place, not the handle.
    let third = optimizer.add_group(AdaMod::new()).unwrap();
    assert_ne!(third, first);
    assert_eq!(optimizer.group(first), None);
    optimizer.add_parameter(third, pools.parameter("p", 10, 0)).unwrap();
    optimizer.submit(&Step::all()).unwrap();
}
