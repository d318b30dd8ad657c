//! Data-parallel training on several devices.

use std::sync::{Arc, Barrier, Mutex};

use adamod_burn::adamod::{Control, DeviceControl, Group, Options, Precision, StateFormat};
use adamod_burn::{Error, FusedOptimizer, Gpu};
use burn::backend::wgpu::{WgpuSetup, wgpu};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{Tensor, TensorData};

use crate::common::{Network, Ranks, adamod, assert_same, device, elements, gpu, optimizer, stored, values};

const LEARNING_RATE: f64 = 3e-3;
const RANKS: usize = 2;

fn group() -> Group {
    stored(Precision::new(StateFormat::Q8).with_f32_state_below(64))
}

fn options() -> Options {
    Options::new().with_control(Control::Device(DeviceControl::new())).with_seed(5)
}

/// A device of its own, on the machine's first adapter.
fn another_gpu() -> Gpu {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()));
    let adapter = adapter.expect("an adapter");
    let descriptor = wgpu::DeviceDescriptor {
        required_features: gpu().wgpu_device().features(),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
    let backend = adapter.get_info().backend;
    Gpu::from_setup(WgpuSetup { instance, adapter, device, queue, backend }).expect("Burn on the device")
}

/// The exchange of gradients between ranks. Burn's wgpu runtime has no collectives, so they go through the host.
struct Exchange {
    barrier: Barrier,
    gradients: Mutex<Vec<Vec<Vec<f32>>>>,
}

impl Exchange {
    fn new() -> Self {
        Self { barrier: Barrier::new(RANKS), gradients: Mutex::new(vec![Vec::new(); RANKS]) }
    }

    /// The mean over all ranks, summed in their order, so that it has the same bits on each.
    fn mean(&self, rank: usize, network: &Network, mut gradients: GradientsParams) -> GradientsParams {
        struct Take<'a>(&'a mut GradientsParams, Vec<Vec<f32>>);
        impl ModuleVisitor for Take<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.1.push(elements(self.0.remove::<D>(param.id).expect("a gradient")));
            }
        }
        struct Put<'a>(std::slice::Iter<'a, Vec<f32>>, GradientsParams);
        impl ModuleVisitor for Put<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                let data = self.0.next().expect("a gradient").clone();
                let data = TensorData::new(data, value.dims());
                self.1.register(param.id, Tensor::<D>::from_data(data, &value.device().without_autodiff()));
            }
        }
        let mut take = Take(&mut gradients, Vec::new());
        network.visit(&mut take);
        self.gradients.lock().expect("the gradients")[rank] = take.1;
        self.barrier.wait();
        let mean: Vec<Vec<f32>> = {
            let all = self.gradients.lock().expect("the gradients");
            let tensors = all[0].len();
            let mean = |tensor: usize, element: usize| {
                all.iter().map(|rank| rank[tensor][element]).sum::<f32>() / RANKS as f32
            };
            (0..tensors).map(|tensor| (0..all[0][tensor].len()).map(|e| mean(tensor, e)).collect()).collect()
        };
        self.barrier.wait();
        let mut put = Put(mean.iter(), GradientsParams::new());
        network.visit(&mut put);
        put.1
    }
}

#[test]
fn ranks_that_average_gradients_stay_identical_bit_for_bit() {
    const STEPS: usize = 30;
    let exchange = Arc::new(Exchange::new());
    let threads: Vec<_> = (0..RANKS)
        .map(|rank| {
            let exchange = exchange.clone();
            std::thread::spawn(move || {
                let gpu = another_gpu();
                let mut optimizer = FusedOptimizer::new(&gpu, options()).expect("an optimizer");
                optimizer.add_group(group(), |_| true).expect("a group");
                let mut network = Network::new(&gpu.device().autodiff());
                (0..STEPS)
                    .map(|step| {
                        // Each rank has batches of its own.
                        let gradients = network.gradients(RANKS * step + rank);
                        let gradients = exchange.mean(rank, &network, gradients);
                        network = optimizer.step(LEARNING_RATE, network.clone(), gradients).expect("a step");
                        values(&network)
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let ranks: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("a rank")).collect();
    for (step, (first, second)) in ranks[0].iter().zip(&ranks[1]).enumerate() {
        assert_same(first, second, &format!("step {step}"));
    }
    assert_ne!(ranks[0][0], ranks[0][STEPS - 1]);
}

#[test]
fn gradients_of_several_devices_step_as_their_sum() {
    let other = another_gpu();
    let network = Network::new(&device());
    let there = network.clone().fork(&other.device().autodiff());
    let grads = vec![(network.gradients(0), gpu().device()), (there.gradients(1), other.device())];
    let mut optimizer = adamod();
    let found =
        optimizer.step(LEARNING_RATE, network.clone(), MultiGradientsParams { grads }).expect("a step");

    let loss = network.loss(0) + network.loss(1);
    let gradients = GradientsParams::from_grads(loss.backward(), &network);
    let expected = adamod().step(LEARNING_RATE, network, gradients).expect("a step");
    for ((path, found), (_, expected)) in values(&found).iter().zip(&values(&expected)) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5, "{path}: {found} {expected}");
        }
    }
    // A module on another device than the optimizer's is refused.
    let gradients = there.gradients(0);
    let error = optimizer.step(LEARNING_RATE, there, gradients).expect_err("another device");
    assert!(matches!(error.error(), Error::Device { .. }), "{error}");
}

#[test]
fn a_parameter_that_burn_distributes_stays_marked() {
    let mut module = Ranks::new(&device());
    let id = module.cube.id;
    module.cube = module.cube.map(|value| value.set_distributed(id));
    let gradients = module.gradients(0);
    let module = adamod().step(LEARNING_RATE, module, gradients).expect("a step");
    assert!(module.cube.val().is_distributed());
    assert!(!module.matrix.val().is_distributed());
}

/// Each rank has only the state of its own tensors, and receives the values of the others.
#[test]
fn ranks_that_share_the_state_step_as_one_that_has_it_all() {
    const MAX_NORM: f64 = 1.0;
    let new = || optimizer(options(), group());
    let is_of = |rank: usize, path: &str| path.starts_with("layers.0") == (rank == 0);

    let mut whole = new();
    let mut shards: Vec<_> = (0..RANKS).map(|_| new()).collect();
    let mut expected = Network::new(&device());
    let mut found = expected.clone();
    for step in 0..6 {
        let mut squares =
            SumOfSquares { gradients: expected.gradients(step), path: Vec::new(), of: [0.0; RANKS], is_of };
        expected.visit(&mut squares);
        // The one number that ranks exchange besides values.
        let norm = squares.of.iter().sum::<f64>().sqrt();
        let multiplier = (MAX_NORM / norm).min(1.0) as f32;

        whole.set_gradient_multiplier(multiplier).expect("a multiplier");
        let gradients = expected.gradients(step);
        expected = whole.step(LEARNING_RATE, expected, gradients).expect("a step");
        // All ranks step the same module here, so they see each other's values.
        let mut all = found.gradients(step);
        for (rank, optimizer) in shards.iter_mut().enumerate() {
            let mut mine =
                Split { all: &mut all, mine: GradientsParams::new(), path: Vec::new(), rank, is_of };
            found.visit(&mut mine);
            let mine = mine.mine;
            optimizer.set_gradient_multiplier(multiplier).expect("a multiplier");
            found = optimizer.step(LEARNING_RATE, found, mine).expect("a step");
        }
        assert_same(&values(&found), &values(&expected), &format!("step {step}"));
    }
    let bytes =
        |optimizer: &mut FusedOptimizer| optimizer.with_core(|core| core.state_bytes()).expect("bytes");
    let of_shards: u64 = shards.iter_mut().map(bytes).sum();
    assert_eq!(of_shards, bytes(&mut whole));
}

/// Squares of the gradients of each rank's parameters.
struct SumOfSquares<F> {
    gradients: GradientsParams,
    path: Vec<String>,
    of: [f64; RANKS],
    is_of: F,
}

impl<F: Fn(usize, &str) -> bool> ModuleVisitor for SumOfSquares<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        let gradient = elements(self.gradients.remove::<D>(param.id).expect("a gradient"));
        let squares: f64 = gradient.iter().map(|element| f64::from(*element).powi(2)).sum();
        for (rank, of) in self.of.iter_mut().enumerate() {
            *of += if (self.is_of)(rank, &path) { squares } else { 0.0 };
        }
    }
}

/// Takes one rank's gradients.
struct Split<'a, F> {
    all: &'a mut GradientsParams,
    mine: GradientsParams,
    path: Vec<String>,
    rank: usize,
    is_of: F,
}

impl<F: Fn(usize, &str) -> bool> ModuleVisitor for Split<'_, F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if (self.is_of)(self.rank, &self.path.join("."))
            && let Some(gradient) = self.all.remove::<D>(param.id)
        {
            self.mine.register(param.id, gradient);
        }
    }
}
