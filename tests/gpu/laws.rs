//! What must hold whatever the numbers are.

use adamod::{
    AdaMod, Adam, Control, DeviceControl, Group, Hyperparameters, Options, Rule, RuleForm, RuleKind,
    StateFormat, WeightDecay,
};

use crate::common::{Engine, Layout, Model, Tensor, all, gpu, lay_out, precision, rules};

const LENGTHS: [usize; 6] = [5, 1024, 257, 3000, 1, 1757];

/// In every format of state, step counts on the host and on the device: also where eta comes down from alpha / epsilon, the rate of
/// elements without gradients, and nothing of that may be left.
#[test]
fn beta3_of_zero_is_adam_to_the_bit() {
    for state in StateFormat::ALL {
        for control in [Control::Host, Control::Device(DeviceControl::new())] {
            let model = |rule: Rule| {
                let hyperparameters =
                    Hyperparameters::from(rule).with_weight_decay(WeightDecay::Decoupled(1e-2));
                let group = Group::new(hyperparameters).with_precision(precision(state));
                Model::new(group, &LENGTHS).with_options(Options::new().with_control(control))
            };
            let adamod = model(AdaMod::new().with_betas([0.9, 0.999, 0.0]).into());
            let adam = model(Adam::new().with_betas([0.9, 0.999]).into());
            let mut of_adamod = Engine::new(gpu(), &adamod, Layout::TwoPools(256));
            let mut of_adam = Engine::new(gpu(), &adam, Layout::TwoPools(256));
            for step in 0..20 {
                let mut gradients = adamod.gradients(step);
                let is_late = |index: usize| index.is_multiple_of(3) && step < 5;
                gradients.iter_mut().for_each(|of| {
                    of.iter_mut()
                        .enumerate()
                        .filter(|(index, _)| is_late(*index))
                        .for_each(|(_, g)| *g = 0.0);
                });
                of_adamod.step(&all(&gradients));
                of_adam.step(&all(&gradients));
            }
            let bits = of_adamod.bits().into_iter().zip(of_adam.bits());
            for ((values, states), (adam_values, adam_states)) in bits {
                assert!(values == adam_values, "{state:?}, {control:?}");
                assert!(states[..2] == adam_states[..], "{state:?}, {control:?}");
            }
        }
    }
}

/// Of every rule that has averages, in every format that it offers, with one control after the other: two runs with different gradients have
/// the same averages after one step with the same ones, bit for bit above 8 bits.
#[test]
fn averages_with_decay_rates_of_zero_remember_nothing() {
    const RATES: [&str; 5] = ["betas[0]", "betas[1]", "betas[2]", "rho", "alpha"];
    const AVERAGES: [&str; 5] = ["exp_avg", "exp_avg_sq", "exp_avg_lr", "square_avg", "grad_avg"];
    let mut tested = 0;
    for form in RuleForm::all() {
        // NosAdam weighs squares by the step count.
        let is_average =
            |name: &str| AVERAGES.contains(&name) && (form.rule(), name) != (RuleKind::NosAdam, "exp_avg_sq");
        let mut rule = form.with_defaults();
        for name in RATES {
            rule.set_hyperparameter(name, 0.0);
        }
        assert_eq!(rule.form(), form);
        for state in StateFormat::ALL.into_iter().filter(|state| form.refusal(*state).is_none()) {
            let control = [Control::Host, Control::Device(DeviceControl::new())][tested % 2];
            let group = Group::new(rule).with_precision(precision(state));
            let model = Model::new(group, &[257, 64]).with_options(Options::new().with_control(control));
            let [one, other] = [0, 100].map(|first| {
                let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
                for step in [first, first + 1, first + 2, 50] {
                    engine.step(&all(&model.gradients(step)));
                }
                engine.bits()
            });
            for ((values, states), (other_values, other_states)) in one.iter().zip(&other) {
                assert_ne!(values, other_values, "{form}");
                for (index, of) in form.states().iter().enumerate().filter(|(_, of)| is_average(of.name)) {
                    // How wide the span of 8-bit codes is depends on the block's last one. The coarsest have 3 bits of fraction, and both
                    // numbers are rounded to a neighbour.
                    let is_close = |(one, other): (&u32, &u32)| {
                        let [a, b] = [one, other].map(|bits| f32::from_bits(*bits));
                        one == other || state == StateFormat::Q8 && (a - b).abs() <= a.max(b) / 4.0
                    };
                    let is_same = states[index].iter().zip(&other_states[index]).all(is_close);
                    assert!(is_same, "{form}, {state:?}, {control:?}: {}", of.name);
                    tested += 1;
                }
            }
        }
    }
    assert!(tested > 50, "{tested}");
}

#[test]
fn zero_gradients_without_decay_move_nothing() {
    for rule in rules() {
        let model = Model::new(rule, &LENGTHS);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let zeros: Vec<Vec<f32>> = LENGTHS.iter().map(|&len| vec![0.0; len]).collect();
        for _ in 0..3 {
            engine.step(&all(&zeros));
        }
        for (index, tensor) in model.tensors.iter().enumerate() {
            assert_eq!(engine.values(index), tensor.values, "{rule:?}");
        }
    }
}

#[test]
fn a_learning_rate_of_zero_moves_nothing_but_the_moments() {
    let hyperparameters =
        Hyperparameters::new().with_learning_rate(0.0).with_weight_decay(WeightDecay::Decoupled(0.5));
    let model = Model::new(hyperparameters, &[100]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.step(&all(&model.gradients(1)));
    assert_eq!(engine.values(0), model.tensors[0].values);
    let state = engine.state(0);
    assert!(state.tensor("exp_avg").unwrap().iter().any(|&m| m != 0.0));
    assert!(state.tensor("exp_avg_lr").unwrap().iter().all(|&s| s == 0.0));
}

/// A tensor, and the same elements as several tensors of odd lengths in another layout.
#[test]
fn splitting_a_tensor_changes_no_bit() {
    let parts = [1000, 24, 1, 2047, 1500];
    let whole = Model::new(AdaMod::new(), &[parts.iter().sum()]);
    let mut split = whole.clone();
    split.tensors.clear();
    let mut start = 0;
    for part in parts {
        let values = whole.tensors[0].values[start..start + part].to_vec();
        let label = format!("part at {start}");
        split.tensors.push(Tensor { label, values, ..whole.tensors[0].clone() });
        start += part;
    }
    for layout in [Layout::TwoPools(256), Layout::TwoPools(4), Layout::OnePool(16)] {
        let mut of_whole = Engine::new(gpu(), &whole, Layout::TwoPools(256));
        let mut of_split = Engine::new(gpu(), &split, layout);
        for step in 0..10 {
            let gradients = whole.gradients(step);
            of_whole.step(&all(&gradients));
            let mut rest = gradients[0].as_slice();
            let slices: Vec<_> = parts
                .iter()
                .map(|&part| {
                    let (head, tail) = rest.split_at(part);
                    rest = tail;
                    Some(head)
                })
                .collect();
            of_split.step(&slices);
        }
        let joined: Vec<u32> = of_split.bits().into_iter().flat_map(|(values, _)| values).collect();
        assert_eq!(of_whole.bits()[0].0, joined, "{layout:?}");
    }
}

#[test]
fn regrouping_changes_no_bit() {
    let one_group = Model::new(AdaMod::new(), &LENGTHS);
    let mut many_groups = one_group.clone();
    many_groups.groups = vec![Group::new(AdaMod::new()); LENGTHS.len()];
    for (index, tensor) in many_groups.tensors.iter_mut().enumerate() {
        tensor.group = index;
    }
    let mut of_one = Engine::new(gpu(), &one_group, Layout::TwoPools(256));
    let mut of_many = Engine::new(gpu(), &many_groups, Layout::OwnBuffers);
    for step in 0..10 {
        let gradients = one_group.gradients(step);
        of_one.step(&all(&gradients));
        of_many.step(&all(&gradients));
    }
    assert_eq!(of_one.bits(), of_many.bits());
}

#[test]
fn order_of_registration_changes_no_bit() {
    let model = Model::new(AdaMod::new(), &LENGTHS);
    let (locations, sizes) = lay_out(&LENGTHS, Layout::TwoPools(32));
    let forward = [0, 1, 2, 3, 4, 5];
    let shuffled = [3, 0, 5, 4, 1, 2];
    let mut engines =
        [forward, shuffled].map(|order| Engine::with_order(gpu(), &model, locations.clone(), &sizes, &order));
    for step in 0..10 {
        let gradients = model.gradients(step);
        for engine in &mut engines {
            engine.step(&all(&gradients));
        }
    }
    assert_eq!(engines[0].bits(), engines[1].bits());
}
