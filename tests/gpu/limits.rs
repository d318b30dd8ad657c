//! Tensors past one binding and past one dimension of the grid, with lowered limits and with the adapter's own.

use adamod::{AdaMod, GradientBinding, Group, RuleKind, Sgd, StateFormat, Step};

use crate::common::{Engine, Gpu, Layout, Model, all, gpu, precision};

/// 64 KiB a binding, 3 workgroups a dimension: small tensors meet every edge.
fn small() -> Gpu {
    Gpu::with_limits(|limits| wgpu::Limits {
        max_storage_buffer_binding_size: 64 * 1024,
        max_compute_workgroups_per_dimension: 3,
        ..limits
    })
}

/// Elements of a binding of 64 KiB.
const WINDOW: usize = 16 * 1024;

#[test]
fn tensors_past_a_binding_equal_tensors_within_one() {
    let small = small();
    let lengths = [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 5, 100, 1, 1023, 2 * WINDOW - 1024, 1025];
    for rule in RuleKind::ALL {
        for layout in [
            Layout::TwoPools(256),
            Layout::TwoPools(4),
            Layout::OnePool(256),
            Layout::OnePool(4),
            Layout::OwnBuffers,
        ] {
            let model = Model::new(rule.with_defaults(), &lengths);
            let mut cut = Engine::new(&small, &model, layout);
            let mut whole = Engine::new(gpu(), &model, Layout::TwoPools(256));
            for step in 0..3 {
                let gradients = model.gradients(step);
                cut.step(&all(&gradients));
                whole.step(&all(&gradients));
                cut.assert_neighbours_untouched(&all(&gradients));
            }
            assert!(cut.optimizer.launches().len() > 1);
            assert_eq!(cut.bits(), whole.bits(), "{rule} {layout:?}");
        }
    }
}

#[test]
fn state_in_fewer_bits_is_cut_at_chunks_too() {
    let small = small();
    for state in StateFormat::ALL {
        let group = Group::new(AdaMod::new()).with_precision(precision(state));
        let model = Model::new(group, &[3 * WINDOW + 5, 100, 1023, 2 * WINDOW]);
        let mut cut = Engine::new(&small, &model, Layout::TwoPools(256));
        let mut whole = Engine::new(gpu(), &model, Layout::TwoPools(256));
        for step in 0..3 {
            let gradients = model.gradients(step);
            cut.step(&all(&gradients));
            whole.step(&all(&gradients));
        }
        assert!(cut.optimizer.launches().len() > 1);
        assert!(cut.bits() == whole.bits(), "{state:?}");
    }
}

#[test]
fn a_pool_of_values_then_gradients_past_a_binding_uses_two_bindings() {
    let small = small();
    let model = Model::new(Sgd::new(), &[3 * WINDOW]);
    let mut cut = Engine::new(&small, &model, Layout::OnePool(256));
    cut.optimizer.warm_up(&Step::all()).unwrap();
    assert!(cut.optimizer.launches().len() > 1);
    assert!(cut.optimizer.launches().all(|launch| launch.gradients == GradientBinding::ReadWrite));
    let mut whole = Engine::new(gpu(), &model, Layout::OnePool(256));
    whole.optimizer.warm_up(&Step::all()).unwrap();
    assert_eq!(whole.optimizer.launches().len(), 1);
    assert!(whole.optimizer.launches().all(|launch| launch.gradients == GradientBinding::Shared));
    let gradients = model.gradients(1);
    cut.step(&all(&gradients));
    whole.step(&all(&gradients));
    assert_eq!(cut.bits(), whole.bits());
}

/// One tensor past 65,535 chunks: 67,107,840 elements are 65,535 chunks of 1,024.
#[test]
fn a_tensor_past_65535_workgroups_is_updated_to_its_end() {
    let gpu = gpu();
    let len = 65_535 * 1024 + 1757;
    let mut model = Model::new(Sgd::new(), &[1]);
    model.tensors[0].values = (0..len).map(|i| (i % 1021) as f32).collect();
    let mut engine = Engine::new(gpu, &model, Layout::TwoPools(256));
    let gradient: Vec<f32> = (0..len).map(|i| (i % 1013) as f32).collect();
    engine.step(&[Some(&gradient)]);
    let mut twin = model.twin::<f32>();
    twin.step(&[Some(&gradient)]);
    let values = engine.values(0);
    let is_close = |(got, expected): (&f32, &f32)| {
        let difference = (got - expected).abs();
        difference <= 1e-5 * expected.abs().max(1.0)
    };
    let wrong = values.iter().zip(twin.values(0)).position(|pair| !is_close(pair));
    assert_eq!(wrong, None);
}
