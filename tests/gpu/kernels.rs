//! Compiled kernels that optimizers share.

use adamod::low_level::Tuning;
use adamod::{AdaMod, Control, DeviceControl, NonFinite, Optimizer, Options, Parameter, Step, View, Views};

use crate::common::{Engine, Layout, Model, Tolerance, all, gpu, to_f64};

const VALUES: Tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };

fn options(non_finite: NonFinite) -> Options {
    let control = DeviceControl::new().with_max_norm(1.0).with_non_finite(non_finite);
    // Trying binding arrays takes a kernel, too.
    Options::new().with_control(Control::Device(control)).with_tuning(Tuning::SINGLE_BINDINGS)
}

#[test]
fn optimizers_compile_each_kernel_once_together() {
    let gpu = gpu().sibling();
    assert!(gpu.kernels.is_empty());
    let mut compiled = Vec::new();
    // The third one binds gradients otherwise, for the norm and for the step. The last one prepares steps otherwise.
    for options in [
        options(NonFinite::Skip),
        options(NonFinite::Skip).with_label("second").with_seed(5),
        options(NonFinite::Skip).with_zero_gradients(true),
        options(NonFinite::Propagate),
    ] {
        let model = Model::new(AdaMod::new(), &[300, 5, 1025]).with_options(options);
        let mut engine = Engine::new(&gpu, &model, Layout::TwoPools(16));
        let mut twin = model.twin::<f64>();
        let gradients = model.scaled_gradients(1, 1e-4);
        engine.step(&all(&gradients));
        let wide = to_f64(&all(&gradients));
        twin.step(&wide.iter().map(Option::as_deref).collect::<Vec<_>>());
        for index in 0..3 {
            VALUES.check(&engine.values(index), twin.values(index)).unwrap();
        }
        compiled.push(gpu.kernels.len());
    }
    assert_eq!(compiled, [2, 2, 4, 5]);
}

#[test]
fn a_kernel_is_compiled_for_each_device() {
    let [first, second] = [gpu().sibling(), gpu().sibling()];
    for (number, gpu) in [(1, &first), (2, &second)] {
        let options = Options::new().with_tuning(Tuning::SINGLE_BINDINGS);
        let mut optimizer =
            Optimizer::with_kernels(&gpu.device, &gpu.queue, options, &first.kernels).unwrap();
        let group = optimizer.add_group(AdaMod::new()).unwrap();
        let (values, gradients) = (gpu.buffer(4096), gpu.buffer(4096));
        let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
        optimizer.add_parameter(group, Parameter::new("x", 1024).with_views(views)).unwrap();
        let mut encoder = gpu.encoder();
        optimizer.encode(&mut encoder, &Step::all()).unwrap();
        gpu.submit(encoder);
        assert_eq!(first.kernels.len(), number);
    }
}
