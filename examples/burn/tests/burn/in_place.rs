//! Which buffers a step writes.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::common::{Network, Ranks, adamod, assert_same, device, gpu, place, values, wave};

const LEARNING_RATE: f64 = 1e-2;

#[test]
fn a_value_that_is_not_shared_keeps_its_buffer() {
    let mut network = Network::new(&device());
    let mut optimizer = adamod();
    // The first step may copy what the initialisation shares.
    let gradients = network.gradients(0);
    network = optimizer.step(LEARNING_RATE, network, gradients).expect("a step");
    let before = place(network.output.weight.val());
    let values_before = values(&network);
    let gradients = network.gradients(1);
    network = optimizer.step(LEARNING_RATE, network, gradients).expect("a step");
    assert_ne!(values_before, values(&network));
    assert_eq!(before, place(network.output.weight.val()));
}

#[test]
fn clones_of_a_module_keep_their_values() {
    let network = Network::new(&device());
    let kept = network.clone();
    let before = values(&kept);
    let gradients = network.gradients(0);
    let network = adamod().step(LEARNING_RATE, network, gradients).expect("a step");
    assert_same(&values(&kept), &before, "the clone");
    assert_ne!(before, values(&network));
    assert_ne!(place(kept.output.weight.val()), place(network.output.weight.val()));
}

#[test]
fn a_live_autodiff_graph_differentiates_the_old_values() {
    let network = Network::new(&device());
    let gradient = |network: &Network, loss: Tensor<1>| {
        let gradient = network.layers[0].weight.val().grad(&loss.backward());
        gradient.expect("a gradient").into_data()
    };
    let expected = gradient(&network, network.loss(1));
    let live = network.loss(1);
    let old = network.layers[0].weight.val();
    let gradients = network.gradients(0);
    let network = adamod().step(LEARNING_RATE, network, gradients).expect("a step");
    let found = old.grad(&live.backward()).expect("a gradient").into_data();
    assert_eq!(expected, found);
    assert_ne!(expected, gradient(&network, network.loss(1)));
}

#[test]
fn tensors_that_move_between_steps_are_found() {
    let run = |moves: bool| {
        let mut optimizer = adamod();
        let mut module = Ranks::new(&device());
        let mut holes = Vec::new();
        for step in 0..4 {
            let gradients = module.gradients(step);
            module = optimizer.step(LEARNING_RATE, module, gradients).expect("a step");
            if moves {
                // Leaves holes in the pools, which the clean-up closes.
                for _ in 0..8 {
                    holes.push(wave(&[4096], 0.0, &gpu().device()));
                }
                let kept = holes.split_off(holes.len() / 2);
                holes = kept;
                gpu().device().sync().expect("a device");
                gpu().device().memory_cleanup();
            }
        }
        values(&module)
    };
    assert_same(&run(true), &run(false), "moved");
}

#[test]
fn values_and_gradients_that_are_transposed_step_as_contiguous_ones() {
    use burn::module::{Param, ParamId};
    use burn::optim::GradientsParams;

    #[derive(Module, Debug)]
    struct Matrix {
        weight: Param<Tensor<2>>,
    }
    let plain = gpu().device();
    let run = |is_transposed: bool| {
        // Both lie as [6, 4] and are [4, 6]. A copy through the host is contiguous.
        let lay = |phase: f32| {
            let tensor = wave(&[6, 4], phase, &plain).transpose();
            if is_transposed { tensor } else { Tensor::from_data(tensor.into_data(), &plain) }
        };
        let weight = Param::initialized(ParamId::new(), lay(0.0).autodiff().require_grad());
        let mut module = Matrix { weight };
        let mut optimizer = adamod();
        for step in 0..3 {
            let mut gradients = GradientsParams::new();
            gradients.register(module.weight.id, lay(step as f32));
            module = optimizer.step(LEARNING_RATE, module, gradients).expect("a step");
        }
        values(&module)
    };
    assert_same(&run(true), &run(false), "transposed");
}

#[test]
fn two_parameters_may_share_a_gradient() {
    use burn::module::Param;
    use burn::optim::GradientsParams;

    #[derive(Module, Debug)]
    struct Summands {
        first: Param<Tensor<1>>,
        second: Param<Tensor<1>>,
    }
    let summand = |phase| Param::from_tensor(wave(&[40], phase, &device()));
    let module = Summands { first: summand(0.0), second: summand(1.0) };
    let before = values(&module);
    let loss = (module.first.val() + module.second.val()).square().mean();
    let gradients = GradientsParams::from_grads(loss.backward(), &module);
    let of = |id| gradients.get::<1>(id).expect("a gradient");
    assert_eq!(place(of(module.first.id)), place(of(module.second.id)), "the gradients share a buffer");
    let module = adamod().step(LEARNING_RATE, module, gradients).expect("a step");
    for ((path, before), (_, after)) in before.iter().zip(&values(&module)) {
        assert!(before.iter().zip(after).all(|(before, after)| before != after), "{path}");
    }
}

#[test]
fn a_module_may_change_threads_between_steps() {
    let run = |changes: bool| {
        let mut network = Network::new(&device());
        let mut optimizer = adamod();
        for index in 0..4 {
            let step = move || {
                let gradients = network.gradients(index);
                (optimizer.step(LEARNING_RATE, network, gradients).expect("a step"), optimizer)
            };
            (network, optimizer) = match changes {
                true => std::thread::spawn(step).join().expect("a thread"),
                false => step(),
            };
        }
        let checkpoint = optimizer.checkpoint().expect("a checkpoint");
        assert!(checkpoint.parameters().all(|parameter| parameter.step == 4));
        values(&network)
    };
    assert_same(&run(true), &run(false), "threads");
}
