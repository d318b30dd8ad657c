//! NaN in gradients, whatever its payload: it shows in the parameter, and nowhere else.

use adamod::{Control, DType, DeviceControl, NonFinite, Options, StateFormat, Workgroups};

use crate::common::{
    Engine, Kind, Layout, Model, bits_of, bytes_of, gpu, number_of, offers, rules_by_states,
};

/// Of several chunks, and odd, so that the last word of 16-bit elements has a half that no element owns.
const LEN: usize = 1031;

/// Elements with a NaN: the first and the last, in the middle of a quad and of a quant block, on both sides of a chunk's end.
const POISONED: [usize; 6] = [0, 5, 33, 1023, 1024, LEN - 1];

/// Every kind, with each shadow copy that it can have.
fn kinds() -> Vec<Kind> {
    let with_shadows = |kind: Kind| {
        let can_have = |shadow: &DType| kind.values == DType::F32 && *shadow != DType::F32;
        let shadows = DType::ALL.into_iter().filter(can_have);
        let shadows: Vec<_> = [None].into_iter().chain(shadows.map(Some)).collect();
        shadows.into_iter().map(move |shadow| Kind { shadow, ..kind })
    };
    Kind::all().into_iter().flat_map(with_shadows).collect()
}

/// NaNs of a data type: the one with all bits set, whose bits overflow where something is added to them, and the one that is next to
/// infinity, which becomes infinity where its lower bits are dropped.
fn nans(dtype: DType) -> [u32; 2] {
    let nans = match dtype {
        DType::F32 => [0xffff_ffff, 0x7f80_0001],
        DType::F16 => [0xffff, 0x7c01],
        DType::Bf16 => [0xffff, 0x7f81],
        dtype => panic!("the test does not know {dtype}"),
    };
    assert!(nans.iter().all(|&bits| number_of(dtype, bits).is_nan()));
    nans
}

/// The gradient with NaNs, as the bytes of its type. `which` chooses the payload that comes first.
fn poisoned(dtype: DType, gradient: &[f32], which: usize) -> Vec<u8> {
    let mut bytes = bytes_of(dtype, gradient);
    let size = dtype.bytes() as usize;
    for (number, element) in POISONED.into_iter().enumerate() {
        let bits = nans(dtype)[(number + which) % 2].to_le_bytes();
        bytes[size * element..size * (element + 1)].copy_from_slice(&bits[..size]);
    }
    bytes
}

/// After a step with the NaNs and two without.
#[test]
fn nan_of_any_payload_shows_in_its_parameter_and_leaves_its_neighbours_alone() {
    let propagating = DeviceControl::new().with_non_finite(NonFinite::Propagate);
    for (index, rule) in rules_by_states().into_iter().enumerate() {
        let tensors: Vec<_> =
            kinds().into_iter().filter(|kind| offers(&rule, kind)).map(|kind| (kind, LEN)).collect();
        let controls =
            [(Control::Host, Layout::TwoPools(16)), (Control::Device(propagating), Layout::OnePool(4))];
        for (number, (control, layout)) in controls.into_iter().enumerate() {
            for which in 0..2 {
                // The first rule meets every control with every payload, the others one of them.
                if index > 0 && (number, which) != (index % 2, index / 2 % 2) {
                    continue;
                }
                // On a CPU every 8-bit format has a kernel of its own, which takes seconds to compile.
                let workgroups = if index == 0 { Workgroups::Auto } else { Workgroups::Gpu };
                let options = Options::new().with_control(control).with_workgroups(workgroups);
                let model = Model::of_kinds(rule, &tensors).with_options(options);
                let mut engine = Engine::new(gpu(), &model, layout);
                let mut twin = model.twin::<f32>();
                for step in 0..3 {
                    let mut gradients = model.gradients(step);
                    for (index, gradient) in gradients.iter_mut().enumerate() {
                        let dtype = model.tensors[index].kind.gradients;
                        let mut bytes = bytes_of(dtype, gradient);
                        if step == 0 {
                            bytes = poisoned(dtype, gradient, which);
                        }
                        let bits = bits_of(dtype, &bytes);
                        *gradient = bits.iter().map(|&bits| number_of(dtype, bits)).collect();
                        engine.write_gradient_bytes(index, &bytes);
                    }
                    engine.record(&adamod::Step::all());
                    let gradients: Vec<_> = gradients.iter().map(|g| Some(g.as_slice())).collect();
                    twin.step(&gradients);
                    for (index, tensor) in model.tensors.iter().enumerate() {
                        let what = format!("{rule:?}, {:?}, step {step}", tensor.kind);
                        check(&engine, index, twin.values(index), control == Control::Host, &what);
                    }
                }
            }
        }
    }
}

fn check(engine: &Engine<'_>, index: usize, expected: &[f32], is_host: bool, what: &str) {
    let kind = engine.tensors[index].kind;
    let values = engine.values(index);
    let whole = engine.read_values(index);
    let shadow = engine.shadow_bits(index);
    for element in POISONED {
        assert!(values[element].is_nan(), "{what}: element {element} is {:e}", values[element]);
        assert!(whole[element].is_nan(), "{what}: element {element} is read as {:e}", whole[element]);
        if let (Some(dtype), Some(shadow)) = (kind.shadow, &shadow) {
            let number = number_of(dtype, shadow[element]);
            assert!(number.is_nan(), "{what}: the shadow copy of element {element} is {number:e}");
        }
    }
    // How far the values of few bits may be away where the device rounds otherwise: see `precision.rs`.
    let is_few = kind.values == DType::Bf16 || kind.state != StateFormat::F32;
    let allowed = if is_few { (6e-3, 2_f32.powi(-6)) } else { (1e-6, 1e-5) };
    for element in (0..LEN).filter(|element| !POISONED.contains(element)) {
        let (found, expected) = (whole[element], expected[element]);
        let is_same = found.to_bits() == expected.to_bits();
        let is_near = (found - expected).abs() <= allowed.0 + allowed.1 * expected.abs();
        let is_right = is_same || is_near && !(engine.gpu.is_exact() && is_host);
        assert!(is_right, "{what}: element {element} is {found:e}, expected {expected:e}");
        if let (Some(dtype), Some(shadow)) = (kind.shadow, &shadow) {
            let expected = bits_of(dtype, &bytes_of(dtype, &[whole[element]]));
            assert_eq!(shadow[element], expected[0], "{what}: the shadow copy of element {element}");
        }
    }
    assert_eq!(expected.len(), LEN);
}
