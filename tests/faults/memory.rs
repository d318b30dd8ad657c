//! Devices that run out of memory, in every single call that can.

use adamod::{
    AdaMod, Checkpoint, CheckpointError, Control, DeviceControl, Error, Optimizer, Options, Parameter,
    ParameterId, State, Step, Update, View, Views,
};

use crate::common::Gpu;
use crate::errors::{Refused as _, checked};
use crate::injection::{Fault, in_child};

const LENGTHS: [u64; 3] = [33, 1025, 5000];
const STRIDE: u64 = 4 * 5120;

/// The buffers of an engine, which are created before anything fails.
struct Buffers {
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
}

impl Buffers {
    fn new(gpu: &Gpu) -> Self {
        let (values, gradients) = (gpu.buffer(4 * STRIDE), gpu.buffer(4 * STRIDE));
        let numbers: Vec<f32> = (0..STRIDE).map(|i| (i as f32 * 0.37).sin()).collect();
        gpu.queue.write_buffer(&values, 0, bytemuck::cast_slice(&numbers));
        gpu.queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&numbers));
        gpu.queue.submit([]);
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        Self { values, gradients }
    }

    fn views(&self, place: u64) -> Views<'_> {
        let view = |buffer| View::new(buffer, place * STRIDE);
        Views::new(view(&self.values), view(&self.gradients))
    }
}

/// Repeats an attempt until it succeeds; `None` if the device was lost.
fn insist<T, E: std::error::Error + 'static>(
    gpu: &Gpu,
    refused: &mut u32,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Option<T> {
    for _ in 0..3 {
        match attempt() {
            Ok(done) => return Some(done),
            Err(error) => {
                *refused += 1;
                assert_names_the_cause(&checked(error), gpu);
            }
        }
        if is_lost(gpu) {
            return None;
        }
    }
    panic!("one fault, three errors");
}

/// Checks that the message names the lack of memory, unless the device was lost. What could not be made for lack of memory makes later
/// calls fail, too, but these are not the cause.
fn assert_names_the_cause(error: &dyn std::error::Error, gpu: &Gpu) {
    assert!(
        error.to_string().ends_with("the device refused the operation: Out of Memory") || is_lost(gpu),
        "{error}"
    );
}

/// Whether the device is lost, which is when an optimizer cannot be created.
fn is_lost(gpu: &Gpu) -> bool {
    Optimizer::new(&gpu.device, &gpu.queue, Options::new()).is_err_and(|error| checked(error).is_lost())
}

/// Calls every method of an optimizer that needs the device; `None` if the device was lost.
fn everything(gpu: &Gpu, options: &Options, buffers: &Buffers, refused: &mut u32) -> Option<Checkpoint> {
    let mut optimizer = insist(gpu, refused, || Optimizer::new(&gpu.device, &gpu.queue, options.clone()))?;
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    let mut ids: Vec<ParameterId> = Vec::new();
    for ((label, len), place) in ["a", "b", "c"].into_iter().zip(LENGTHS).zip(0..) {
        let parameter = Parameter::new(label, len).with_views(buffers.views(place));
        ids.push(insist(gpu, refused, || optimizer.add_parameter(group, parameter))?);
    }
    let steps = |optimizer: &Optimizer| ids.iter().map(|&id| optimizer.step_count(id)).collect::<Vec<_>>();
    for step in 0..2 {
        let before = steps(&optimizer);
        assert_eq!(before, [Some(step); 3]);
        insist(gpu, refused, || {
            let result = optimizer.submit(&Step::all());
            assert_eq!(
                steps(&optimizer) == before,
                result.is_err(),
                "a failed step counts, or a good one does not"
            );
            result
        })?;
    }
    let saved = insist(gpu, refused, || optimizer.checkpoint().wait())?;
    insist(gpu, refused, || optimizer.submit(&Step::all()))?;
    insist(gpu, refused, || optimizer.restore(&saved))?;
    let state = insist(gpu, refused, || optimizer.read_state(ids[1]).wait())?;
    assert_eq!(state.step, 2);
    insist(gpu, refused, || optimizer.write_state(ids[0], &first_elements(&state, 33)))?;
    let values = insist(gpu, refused, || optimizer.read_parameter(ids[2]).wait())?;
    insist(gpu, refused, || optimizer.write_parameter(ids[2], &values))?;
    insist(gpu, refused, || optimizer.remove_parameter(ids[1]))?;
    let parameter = Parameter::new("d", 5000).with_views(buffers.views(3));
    insist(gpu, refused, || optimizer.add_parameter(group, parameter))?;
    insist(gpu, refused, || optimizer.submit(&Step::all()))?;
    insist(gpu, refused, || optimizer.checkpoint().wait())
}

/// The first elements of a state.
fn first_elements(state: &State, len: usize) -> State {
    let cut = |(name, elements): &(&'static str, Vec<f32>)| (*name, elements[..len].to_vec());
    State::new(state.step, state.tensors.iter().map(cut).collect())
}

/// For every n, the n-th call that can run out of memory does. The method returns an error, and succeeds when it is called again. The run
/// ends with the same bits. If wgpu loses the device, a new device does everything again.
#[test]
fn running_out_of_memory_at_any_call_is_an_error_that_changes_nothing() {
    in_child("memory::running_out_of_memory_at_any_call_is_an_error_that_changes_nothing", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        for control in [Control::Host, Control::Device(DeviceControl::new())] {
            let options = Options::new().with_control(control);
            let mut refused = 0;
            let expected = everything(&gpu, &options, &Buffers::new(&gpu), &mut refused).unwrap();
            assert_eq!(refused, 0);
            let (mut lost, mut survived) = (0, 0);
            for number in 1.. {
                let doomed = gpu.sibling();
                let buffers = Buffers::new(&doomed);
                let faults = layer.faults();
                layer.arm(Fault::OutOfMemory(number));
                let mut refused = 0;
                let reached = everything(&doomed, &options, &buffers, &mut refused);
                layer.arm(Fault::None);
                if layer.faults() == faults {
                    // There are fewer than `number` such calls.
                    println!("{control:?}: {number} calls, {survived} errors, {lost} devices lost");
                    assert!(number > 20);
                    break;
                }
                match reached {
                    Some(reached) => {
                        assert_eq!(reached, expected, "call {number}");
                        survived += u32::from(refused > 0);
                    }
                    None => {
                        lost += 1;
                        let gpu = gpu.sibling();
                        let again = everything(&gpu, &options, &Buffers::new(&gpu), &mut 0);
                        assert_eq!(again.as_ref(), Some(&expected), "call {number}");
                    }
                }
            }
            assert!(survived > 0);
        }
    });
}

/// Steps recorded into an encoder of the caller's: of all parameters, of some, and at views of the step.
#[test]
fn recording_that_runs_out_of_memory_counts_nothing() {
    in_child("memory::recording_that_runs_out_of_memory_counts_nothing", |layer| {
        type Record =
            fn(&mut Optimizer, &mut wgpu::CommandEncoder, &Buffers, [ParameterId; 2]) -> Result<(), Error>;
        let recordings: [Record; 3] = [
            |optimizer, encoder, _, _| optimizer.encode(encoder, &Step::all()),
            |optimizer, encoder, _, [_, second]| optimizer.encode(encoder, &Step::of(&[second])),
            |optimizer, encoder, buffers, [first, second]| {
                let update = |parameter, place| Update::new(parameter, buffers.views(place));
                optimizer.encode(encoder, &Step::at(&[update(second, 3), update(first, 2)]))
            },
        ];
        let gpu = Gpu::with_limits(|limits| limits);
        for control in [Control::Host, Control::Device(DeviceControl::new())] {
            for record in recordings {
                let run = |doomed: &Gpu, fault: Fault| {
                    let buffers = Buffers::new(doomed);
                    let options = Options::new().with_control(control);
                    let mut optimizer =
                        Optimizer::new(&doomed.device, &doomed.queue, options.clone()).unwrap();
                    let group = optimizer.add_group(AdaMod::new()).unwrap();
                    let ids = [("a", 0), ("b", 1)].map(|(label, place)| {
                        let parameter = Parameter::new(label, 33).with_views(buffers.views(place));
                        optimizer.add_parameter(group, parameter).unwrap()
                    });
                    let mut encoder = doomed.encoder();
                    layer.arm(fault);
                    let result = record(&mut optimizer, &mut encoder, &buffers, ids);
                    layer.arm(Fault::None);
                    if let Err(error) = result {
                        assert_names_the_cause(&checked(error), doomed);
                        assert_eq!(ids.map(|id| optimizer.step_count(id)), [Some(0); 2]);
                        if is_lost(doomed) {
                            return None;
                        }
                        encoder = doomed.encoder();
                        record(&mut optimizer, &mut encoder, &buffers, ids).unwrap();
                    }
                    doomed.submit(encoder);
                    Some(optimizer.checkpoint().wait().unwrap())
                };
                let expected = run(&gpu, Fault::None).unwrap();
                for number in 1.. {
                    let faults = layer.faults();
                    if let Some(reached) = run(&gpu.sibling(), Fault::OutOfMemory(number)) {
                        assert_eq!(reached, expected, "{control:?}, call {number}");
                    }
                    if layer.faults() == faults {
                        assert!(number > 5);
                        break;
                    }
                }
            }
        }
    });
}

/// A restore changes everything or nothing, whichever call runs out of memory.
#[test]
fn a_restore_that_runs_out_of_memory_changes_nothing() {
    in_child("memory::a_restore_that_runs_out_of_memory_changes_nothing", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        for control in [Control::Host, Control::Device(DeviceControl::new())] {
            let options = Options::new().with_control(control);
            let mut failed = 0;
            for number in 1.. {
                let doomed = gpu.sibling();
                let buffers = Buffers::new(&doomed);
                let mut optimizer = Optimizer::new(&doomed.device, &doomed.queue, options.clone()).unwrap();
                let group = optimizer.add_group(AdaMod::new()).unwrap();
                for ((label, len), place) in ["a", "b", "c"].into_iter().zip(LENGTHS).zip(0..) {
                    let parameter = Parameter::new(label, len).with_views(buffers.views(place));
                    optimizer.add_parameter(group, parameter).unwrap();
                }
                optimizer.submit(&Step::all()).unwrap();
                let earlier = optimizer.checkpoint().wait().unwrap();
                optimizer.set_learning_rate(group, 0.5).unwrap();
                optimizer.submit(&Step::all()).unwrap();
                let now = optimizer.checkpoint().wait().unwrap();
                let faults = layer.faults();
                layer.arm(Fault::OutOfMemory(number));
                let result = optimizer.restore(&earlier);
                layer.arm(Fault::None);
                if layer.faults() == faults {
                    result.unwrap();
                    break;
                }
                if let Err(error) = result {
                    let error = checked(error);
                    assert_names_the_cause(&error, &doomed);
                    failed += 1;
                    assert_eq!(optimizer.group(group).unwrap().hyperparameters.learning_rate, 0.5, "{error}");
                    if !is_lost(&doomed) {
                        assert_eq!(optimizer.checkpoint().wait().unwrap(), now, "call {number}: {error}");
                    }
                }
            }
            assert!(failed > 0);
        }
    });
}

/// A restore in several parts changes nothing, or says that it was interrupted and leaves counts and hyperparameters alone, whichever
/// call runs out of memory. Another restore makes it whole.
#[test]
fn a_restore_in_parts_that_runs_out_of_memory_says_how_far_it_came() {
    const LEN: u64 = 3_000_001;
    in_child("memory::a_restore_in_parts_that_runs_out_of_memory_says_how_far_it_came", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        let folder = tempfile::tempdir().unwrap();
        let optimizer_on = |gpu: &Gpu| {
            let mut optimizer = Optimizer::new(&gpu.device, &gpu.queue, Options::new()).unwrap();
            let group = optimizer.add_group(AdaMod::new()).unwrap();
            let ids =
                ["a", "b"].map(|label| optimizer.add_parameter(group, Parameter::new(label, LEN)).unwrap());
            (optimizer, group, ids)
        };
        let [earlier, later] = [1_u64, 2].map(|step| {
            let (mut optimizer, _, ids) = optimizer_on(&gpu);
            for (id, offset) in ids.into_iter().zip(0_u64..) {
                let of = |kind: u64| (0..LEN).map(|i| (i % 97 + kind + step + offset) as f32).collect();
                let names = ["exp_avg", "exp_avg_sq", "exp_avg_lr"];
                let tensors = names.into_iter().zip(0..).map(|(name, kind)| (name, of(kind))).collect();
                optimizer.write_state(id, &State::new(step, tensors)).unwrap();
            }
            let path = folder.path().join(step.to_string());
            optimizer.save(&path).unwrap();
            Checkpoint::open(path).unwrap()
        });
        let (mut interrupted, mut unchanged) = (0, 0);
        for number in 1.. {
            let doomed = gpu.sibling();
            let (mut optimizer, group, ids) = optimizer_on(&doomed);
            optimizer.restore(&earlier).unwrap();
            optimizer.set_learning_rate(group, 0.5).unwrap();
            let before = optimizer.checkpoint().wait().unwrap();
            let faults = layer.faults();
            layer.arm(Fault::OutOfMemory(number));
            let result = optimizer.restore(&later);
            layer.arm(Fault::None);
            if layer.faults() == faults {
                result.unwrap();
                println!("{interrupted} restores were interrupted, {unchanged} changed nothing");
                break;
            }
            let Err(error) = result else { continue };
            assert_eq!(ids.map(|id| optimizer.step_count(id)), [Some(1); 2], "call {number}: {error}");
            assert_eq!(optimizer.group(group).unwrap().hyperparameters.learning_rate, 0.5, "{error}");
            let is_interrupted = matches!(error, CheckpointError::Interrupted(_));
            interrupted += u32::from(is_interrupted);
            unchanged += u32::from(!is_interrupted);
            if is_lost(&doomed) {
                continue;
            }
            if !is_interrupted {
                assert_eq!(optimizer.checkpoint().wait().unwrap(), before, "call {number}: {error}");
            }
            optimizer.restore(&later).unwrap();
            assert_eq!(optimizer.checkpoint().wait().unwrap(), later, "call {number}: {error}");
        }
        assert!(interrupted > 0 && unchanged > 0, "{interrupted}, {unchanged}");
    });
}

/// All calls run out of memory from some point on.
#[test]
fn running_out_of_memory_for_good_is_an_error_each_time() {
    in_child("memory::running_out_of_memory_for_good_is_an_error_each_time", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        let buffers = Buffers::new(&gpu);
        let mut optimizer = Optimizer::new(&gpu.device, &gpu.queue, Options::new()).unwrap();
        let group = optimizer.add_group(AdaMod::new()).unwrap();
        let parameter = Parameter::new("a", 5000).with_views(buffers.views(0));
        let id = optimizer.add_parameter(group, parameter).unwrap();
        layer.arm(Fault::OutOfMemoryFrom(1));
        for _ in 0..5 {
            assert_names_the_cause(&optimizer.submit(&Step::all()).refused(), &gpu);
            assert_names_the_cause(&optimizer.checkpoint().wait().refused(), &gpu);
            assert_eq!(optimizer.step_count(id), Some(0));
        }
    });
}
