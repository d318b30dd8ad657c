//! Laws that every rank checks on its own.

use std::process::ExitCode;

use adamod::{Control, DType, Optimizer, Parameter, Shard, StateFormat, View, Views, wgpu};
use adamod_mpi::{Builder, Distributed, Error, Mode, Ranks, Settings};

use crate::engine::{Gpu, LIMIT, Pools, Setup, average, check, gradients, rank, step};

/// Steps of a run.
const STEPS: u64 = 4;

/// A step of all ranks, in which the gradients of one of them may be infinite or NaN.
fn step_with(distributed: &mut Distributed, pools: &Pools, all: &[Vec<Vec<f32>>]) -> Vec<usize> {
    pools.write_gradients(&all[distributed.ranks().rank()]);
    distributed.step().unwrap().not_finite
}

/// The gradients of all ranks in a step, and the rank of which one is not finite.
fn all_gradients(setup: &Setup, number: u64, ranks: usize) -> (Vec<Vec<Vec<f32>>>, Option<usize>) {
    let mut all: Vec<_> = (0..ranks).map(|rank| gradients(setup, number, rank)).collect();
    let spoilt = (setup.skips() && number == 2).then_some(ranks - 1);
    if let Some(rank) = spoilt {
        let tensor = setup.lengths.len() - 1;
        *all[rank][tensor].last_mut().unwrap() = [f32::NAN, f32::NEG_INFINITY][ranks % 2];
    }
    (all, spoilt)
}

/// Changes all that may change between two steps.
fn change<const N: usize>(setup: &Setup, single: &mut Optimizer, runs: [&mut Distributed; N]) {
    let group = single.groups().next().unwrap().0;
    single.set_learning_rate(group, 0.02).unwrap();
    if setup.skips() {
        single.set_max_norm(Some(0.25)).unwrap();
        single.set_schedule(&[1.0, 0.5, 0.25]).unwrap();
    }
    for distributed in runs {
        distributed.set_learning_rate(0, 0.02).unwrap();
        assert!(distributed.set_learning_rate(2, 0.02).is_err());
        if setup.skips() {
            distributed.set_max_norm(Some(0.25)).unwrap();
            distributed.set_schedule(&[1.0, 0.5, 0.25]).unwrap();
        }
    }
}

fn last_setups(count: usize) -> Vec<Setup> {
    let mut setups = Setup::all();
    setups.split_off(setups.len() - count)
}

/// In every mode, all ranks hold what one device holds that takes the steps with the averaged gradients: values, state, counters, norm and
/// loss scale, bit for bit.
pub fn laws(count: usize) -> ExitCode {
    rank(LIMIT, |ranks| -> Result<(), String> {
        let gpu = Gpu::open();
        for setup in last_setups(count) {
            let single_pools = Pools::new(&gpu, &setup);
            let mut single = single_pools.single();
            let mut runs = Mode::ALL.map(|mode| {
                let pools = Pools::new(&gpu, &setup);
                let distributed = pools.distributed(ranks, mode).unwrap();
                (mode, pools, distributed)
            });
            for number in 1..=STEPS {
                let (all, spoilt) = all_gradients(&setup, number, ranks.size());
                if number == 3 {
                    change(&setup, &mut single, runs.each_mut().map(|(_, _, distributed)| distributed));
                }
                step(&single_pools, &mut single, &average(&setup, &all));
                for (mode, pools, distributed) in &mut runs {
                    let not_finite = step_with(distributed, pools, &all);
                    assert_eq!(not_finite, Vec::from_iter(spoilt), "{mode:?}, {setup:?}");
                }
            }
            for (mode, _, distributed) in &mut runs {
                check(distributed, &single_pools, &single, &(*mode, &setup));
            }
            if setup.skips() {
                assert_eq!(single.read_progress().wait().unwrap().skipped, 1);
            }
        }
        Ok(())
    })
}

/// All tensors share the memory of their gradients, bucket after bucket, and each bucket is averaged before the gradients of the next one
/// are written.
pub fn overlap() -> ExitCode {
    const LEN: usize = 8 * 1024;
    rank(LIMIT, |ranks| -> Result<(), Error> {
        let gpu = Gpu::open();
        let setup = Setup { lengths: vec![LEN; 3], bucket_bytes: 1, ..Setup::all().swap_remove(5) };
        let single_pools = Pools::new(&gpu, &setup);
        let mut single = single_pools.single();
        let pools = Pools::new(&gpu, &setup);
        let mut builder = Builder::new(
            ranks,
            Settings::new(Mode::ShardedGradients).with_bucket_bytes(1).with_wire(setup.wire),
            setup.options(),
        );
        let groups = pools.groups().map(|group| builder.add_group(group));
        let shared = gpu.buffer(4 * LEN as u64);
        for tensor in 0..3 {
            let label = crate::engine::label(tensor);
            let mut parameter = pools.parameter(&label, tensor);
            if let Some(views) = &mut parameter.views {
                views.gradients = View::new(&shared, 0);
            }
            builder.add_parameter(groups[usize::from(tensor == 2)], parameter)?;
        }
        let mut distributed = builder.build(&gpu.device, &gpu.queue)?;
        assert_eq!(distributed.buckets(), 3);
        for number in 1..=3 {
            let (all, _) = all_gradients(&setup, 2 * number + 1, ranks.size());
            step(&single_pools, &mut single, &average(&setup, &all));
            for bucket in 0..3 {
                let labels: Vec<_> = distributed.labels(bucket).map(str::to_owned).collect();
                let tensor: usize = labels[0].rsplit('.').next().unwrap().parse().unwrap();
                assert_eq!((labels.len(), tensor), (1, 2 - bucket), "the last tensors come first");
                let own = &all[ranks.rank()][tensor];
                gpu.queue.write_buffer(&shared, 0, bytemuck::cast_slice(own));
                distributed.reduce(bucket)?;
                // In the last step, all copies are submitted at once.
                while number < 3 && !distributed.is_reduced(bucket) {
                    distributed.poll()?;
                }
            }
            assert!(distributed.reduce(0).is_err(), "a bucket is reduced once in a step");
            distributed.step()?;
        }
        let own: u64 = distributed.gradient_bytes();
        assert_eq!(own, 3 * 4 * LEN as u64 / ranks.size() as u64, "bytes of averaged gradients");
        check(&mut distributed, &single_pools, &single, &setup);
        Ok(())
    })
}

/// Two optimizers of the same shapes, whose buckets the ranks reduce in different orders.
pub fn two() -> ExitCode {
    rank(LIMIT, |ranks| -> Result<(), Error> {
        let gpu = Gpu::open();
        let setup = Setup { lengths: vec![3000, 5, 1025], ..Setup::new(StateFormat::F32, Control::Host) };
        let mut runs = Vec::new();
        for _ in 0..2 {
            let (single_pools, pools) = (Pools::new(&gpu, &setup), Pools::new(&gpu, &setup));
            runs.push((
                pools.distributed(ranks, Mode::ShardedState)?,
                pools,
                single_pools.single(),
                single_pools,
            ));
        }
        for number in 1..=2 {
            let all = [0, 1].map(|run| all_gradients(&setup, 10 * number + run, ranks.size()).0);
            for run in [ranks.rank(), 1 - ranks.rank()] {
                let (distributed, pools, single, single_pools) = &mut runs[run];
                step(single_pools, single, &average(&setup, &all[run]));
                pools.write_gradients(&all[run][ranks.rank()]);
                (0..distributed.buckets()).try_for_each(|bucket| distributed.reduce(bucket))?;
            }
            runs.iter_mut().try_for_each(|(distributed, ..)| distributed.step().map(drop))?;
        }
        for (distributed, _, single, single_pools) in &mut runs {
            check(distributed, single_pools, single, &setup);
        }
        Ok(())
    })
}

/// A step sends 2 (N - 1) / N of the parameters for each rank in all, and state is 1 / N of one device's.
pub fn traffic() -> ExitCode {
    rank(LIMIT, |ranks| -> Result<(), Error> {
        const LEN: usize = 1024 * 24;
        let gpu = Gpu::open();
        let n = ranks.size() as u64;
        for (mode, wire, gradient_bytes) in [
            (Mode::Replicated, DType::F32, 4),
            (Mode::Replicated, DType::Bf16, 2),
            (Mode::ShardedState, DType::F32, 4),
            (Mode::ShardedGradients, DType::F16, 2),
        ] {
            let setup = Setup { lengths: vec![LEN; 2], wire, ..Setup::new(StateFormat::F32, Control::Host) };
            let setup = Setup { bucket_bytes: 4 * LEN as u64, ..setup };
            let pools = Pools::new(&gpu, &setup);
            let single = pools.single();
            let mut distributed = pools.distributed(ranks, mode)?;
            pools.write_gradients(&gradients(&setup, 1, ranks.rank()));
            let before = ranks.traffic();
            distributed.step()?;
            let sent = ranks.traffic().bytes - before.bytes;
            let elements = 2 * LEN as u64;
            let back = if mode == Mode::Replicated { gradient_bytes } else { 4 };
            let summaries = 48 * (n - 1);
            assert_eq!(
                sent,
                (n - 1) * elements * (gradient_bytes + back) / n + summaries,
                "{mode:?}, {wire}"
            );
            let states = |optimizer: &Optimizer| -> u64 {
                optimizer.parameters().filter_map(|id| optimizer.state_bytes_of(id)).sum()
            };
            let share = if mode.is_sharded() { n } else { 1 };
            assert_eq!(states(distributed.optimizer()), states(&single) / share, "{mode:?}");
        }
        Ok(())
    })
}

/// What cannot be distributed is refused by name, and so are checkpoints of other parameters.
pub fn refusals() -> ExitCode {
    rank(LIMIT, |ranks| -> Result<(), String> {
        let gpu = Gpu::open();
        let setup = Setup::new(StateFormat::F32, Control::Host);
        let pools = Pools::new(&gpu, &setup);
        let mut builder = pools.builder(ranks, Mode::ShardedState);
        let mut refuse = |group: usize, parameter: Parameter<'_>, says: &str| {
            let error = builder.add_parameter(group, parameter).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        };
        refuse(0, pools.parameter("tensor.0", 0), "\"tensor.0\" was added before");
        let whole = pools.parameter("wte", 0);
        let views = whole.views.unwrap();
        refuse(2, whole, "the group is number 2, expected one of 2 groups");
        refuse(0, Parameter::new("wte", 64), "\"wte\" has no views");
        refuse(0, whole.with_shard(Shard::new(0, 6000)), "\"wte\" has a shard");
        refuse(0, Parameter::new("wte", 0).with_views(views), "\"wte\" has no elements");
        refuse(
            0,
            Parameter::new("wte", 1 << 20).with_views(views),
            "the values of parameter \"wte\" end at byte 4194304",
        );
        let fixed = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 256,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let views = Views::new(View::new(&fixed, 0), View::new(&fixed, 0));
        refuse(
            0,
            Parameter::new("wte", 64).with_views(views),
            "the values buffer of parameter \"wte\" has usages",
        );

        refuse_buckets(ranks, &gpu).map_err(|error| error.to_string())?;

        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut saving = pools.distributed(ranks, Mode::ShardedState).map_err(|error| error.to_string())?;
        let error = saving.restore(folder.path()).unwrap_err().to_string();
        assert!(error.contains("checkpoint.json"), "{error}");
        assert!(matches!(saving.step(), Err(Error::Ended)), "a run goes on after an error");
        let mut saving = pools.distributed(ranks, Mode::ShardedState).map_err(|error| error.to_string())?;
        // A save succeeds although it cannot remove this file with the older checkpoints.
        std::fs::write(folder.path().join("step-notes"), "").map_err(|error| error.to_string())?;
        for _ in 0..2 {
            saving.save(folder.path()).map_err(|error| error.to_string())?;
        }
        saving.reduce(0).map_err(|error| error.to_string())?;
        let error = saving.save(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("a bucket of step 1 was reduced already"), "{error}");
        let longer = Setup { lengths: [&setup.lengths[..], &[7]].concat(), ..setup.clone() };
        let shorter = Setup { lengths: setup.lengths[..7].to_vec(), ..setup };
        for (setup, says) in [(longer, "\"tensor.8\" with nothing"), (shorter, "expected nothing")] {
            let pools = Pools::new(&gpu, &setup);
            let mut other = pools.distributed(ranks, Mode::Replicated).map_err(|error| error.to_string())?;
            let error = other.restore(folder.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        Ok(())
    })
}

/// Buckets that are too large or too many.
fn refuse_buckets(ranks: &Ranks, gpu: &Gpu) -> Result<(), Error> {
    let build = |gpu: &Gpu, lengths: Vec<usize>, bucket_bytes: u64| {
        let setup = Setup { lengths, bucket_bytes, ..Setup::new(StateFormat::F32, Control::Host) };
        let built = Pools::new(gpu, &setup).distributed(ranks, Mode::ShardedState);
        built.map(drop).unwrap_err().to_string()
    };
    let error = build(gpu, vec![1; 10_918], 1);
    assert!(error.starts_with("there are 10918 buckets, expected at most 10917"), "{error}");
    // Each buffer of the engine is small enough for this device, but not a bucket of f32 gradients.
    let small = Gpu::with_largest_buffer(1 << 16);
    let setup = Setup {
        dtype: DType::Bf16,
        gradients: DType::Bf16,
        lengths: vec![9000; 2],
        ..Setup::new(StateFormat::F32, Control::Host)
    };
    let pools = Pools::new(&small, &setup);
    let mut builder = Builder::new(ranks, Settings::new(Mode::ShardedState), setup.options());
    let groups = pools.groups().map(|group| builder.add_group(group));
    for (tensor, gradients) in [small.buffer(36_000), small.buffer(36_000)].iter().enumerate() {
        let label = crate::engine::label(tensor);
        let mut parameter = pools.parameter(&label, tensor);
        if let Some(views) = &mut parameter.views {
            views.gradients = View::new(gradients, 0).with_dtype(DType::F32);
        }
        builder.add_parameter(groups[0], parameter)?;
    }
    let error = builder.build(&small.device, &small.queue).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("bucket 0 takes 72000 bytes, expected at most 65536"), "{error}");
    Ok(())
}

fn mode_of(name: &str) -> Mode {
    match name {
        "replicated" => Mode::Replicated,
        "sharded-state" => Mode::ShardedState,
        "sharded-gradients" => Mode::ShardedGradients,
        other => panic!("unknown mode {other:?}"),
    }
}

/// Setups whose averages do not depend on the number of ranks, because all ranks have the same gradients and sums of them are exact.
pub fn exact_setups(count: usize) -> Vec<Setup> {
    last_setups(count).into_iter().map(|setup| Setup { exact: true, wire: DType::F32, ..setup }).collect()
}

/// The steps before and after a checkpoint.
pub const SAVED_AFTER: u64 = 3;
const ENDS_AFTER: u64 = 6;

fn take_steps(distributed: &mut Distributed, pools: &Pools, steps: std::ops::RangeInclusive<u64>) {
    for number in steps {
        pools.write_gradients(&gradients(&pools.setup, number, 0));
        distributed.step().unwrap();
    }
}

/// Trains and saves two checkpoints, of which the second replaces the first.
pub fn save(folder: &str, mode: &str, count: usize) -> ExitCode {
    rank(LIMIT, |ranks| -> Result<(), Error> {
        let gpu = Gpu::open();
        for (index, setup) in exact_setups(count).iter().enumerate() {
            let pools = Pools::new(&gpu, setup);
            let mut distributed = pools.distributed(ranks, mode_of(mode))?;
            let root = format!("{folder}/{index}");
            take_steps(&mut distributed, &pools, 1..=1);
            distributed.save(&root)?;
            take_steps(&mut distributed, &pools, 2..=SAVED_AFTER);
            distributed.save(&root)?;
            if ranks.rank() == 0 {
                // The manifest and one folder.
                assert_eq!(std::fs::read_dir(&root).unwrap().count(), 2);
            }
        }
        Ok(())
    })
}

/// Restores a checkpoint and goes on: with the bits of one device that was never interrupted.
pub fn go_on(folder: &str, mode: &str, count: usize) -> ExitCode {
    rank(LIMIT, |ranks| -> Result<(), Error> {
        let gpu = Gpu::open();
        for (index, setup) in exact_setups(count).iter().enumerate() {
            go_on_with(ranks, &gpu, setup, &format!("{folder}/{index}"), mode_of(mode))?;
        }
        Ok(())
    })
}

fn go_on_with(ranks: &Ranks, gpu: &Gpu, setup: &Setup, root: &str, mode: Mode) -> Result<(), Error> {
    let single_pools = Pools::new(gpu, setup);
    let mut single = single_pools.single();
    let take = |single: &mut Optimizer, steps: std::ops::RangeInclusive<u64>| {
        steps.for_each(|number| step(&single_pools, single, &gradients(setup, number, 0)));
    };
    take(&mut single, 1..=SAVED_AFTER);
    let pools = Pools::new(gpu, setup);
    let mut distributed = pools.distributed(ranks, mode)?;
    // A restore discards the steps that this run has taken.
    take_steps(&mut distributed, &pools, 20..=20);
    distributed.restore(root)?;
    assert_eq!(distributed.steps(), SAVED_AFTER);
    check(&mut distributed, &single_pools, &single, &("restored", mode, setup));
    take(&mut single, SAVED_AFTER + 1..=ENDS_AFTER);
    take_steps(&mut distributed, &pools, SAVED_AFTER + 1..=ENDS_AFTER);
    check(&mut distributed, &single_pools, &single, &(mode, setup));
    Ok(())
}
