//! Ranks that fail: every other rank ends with an error that says which rank and why, within the time limit.

use std::process::ExitCode;
use std::time::Duration;

use adamod::{Control, DeviceControl, NonFinite, StateFormat};
use adamod_mpi::{Distributed, Mode, Ranks, Settings};
use libtest_mimic::{Failed, Trial};

use crate::driver::{run, succeed};
use crate::engine::{Gpu, Pools, Setup, gradients};
use crate::laws::exact_setups;

/// How long ranks wait for one that is silent. They have compiled their kernels before.
const LIMIT: Duration = Duration::from_secs(5);
const RANKS: usize = 3;
/// The rank that fails.
const CULPRIT: usize = 1;
/// The step in which it fails.
const STEP: u64 = 2;

type Errors = Box<dyn std::error::Error>;

/// A fault of one rank, and what the errors of all ranks say.
struct Fault {
    name: &'static str,
    /// The end of the name of the test.
    law: &'static str,
    /// Part of every rank's error.
    says: &'static [&'static str],
    /// Whether the culprit ends with an error of its own.
    culprit_speaks: bool,
}

const FAULTS: [Fault; 11] = [
    // mpirun is told to let the others go on: by default it ends them.
    fault_of("killed", "a_killed_rank_is_named", &["rank 1 sent nothing for 5 s", "step 2"], false),
    fault_of("stuck", "a_rank_that_is_stuck_is_named", &["rank 1 sent nothing for 5 s", "step 2"], false),
    fault_of("lost", "a_rank_whose_step_fails_says_why", &["rank 1", "lost"], true),
    fault_of("panics", "a_rank_that_panics_says_why", &["rank 1", "the engine has a bug"], true),
    fault_of("leaves", "a_rank_that_ends_early_is_named", &["rank 1 has ended", "step 2"], false),
    fault_of(
        "length",
        "another_length_is_named",
        &["the length of parameter \"tensor.3\" of rank 1 is 34, expected 33"],
        true,
    ),
    fault_of("seed", "another_seed_is_named", &["the seed of rank 1 is 8, expected 7"], true),
    fault_of("values", "other_values_are_named", &["the values of parameter \"tensor.2\" of rank 1"], true),
    fault_of("rate", "other_hyperparameters_are_named", &["rank 1", "hyperparameters in step 2"], true),
    fault_of(
        "not-finite",
        "gradients_that_are_not_finite_are_named",
        &["the gradients of rank 1 are not finite in step 2"],
        true,
    ),
    fault_of(
        "skips",
        "too_many_skips_are_named",
        &["the gradients of rank 1 are not finite in step 4"],
        true,
    ),
];

const fn fault_of(
    name: &'static str,
    law: &'static str,
    says: &'static [&'static str],
    culprit_speaks: bool,
) -> Fault {
    Fault { name, law, says, culprit_speaks }
}

pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> =
        FAULTS.iter().map(|fault| Trial::test(fault.law, || check_fault(fault))).collect();
    trials.push(Trial::test("mpirun_ends_all_ranks_if_one_is_killed", killed_with_defaults));
    trials.push(Trial::test("the_last_checkpoint_is_whole_if_a_rank_is_killed_while_saving", torn));
    trials
}

/// Every rank but a dead one prints an error that says it all, before `mpirun` ends.
fn check_fault(fault: &'static Fault) -> Result<(), Failed> {
    let run = run(RANKS, &["--enable-recovery"], &["fault", fault.name])?;
    let complain = |why: String| Err(Failed::from(format!("{why}:\n{}", run.text)));
    for rank in 0..RANKS {
        if rank == CULPRIT && !fault.culprit_speaks {
            continue;
        }
        let start = format!("rank {rank}: error: ");
        let Some(line) = run.text.lines().find(|line| line.starts_with(&start)) else {
            return complain(format!("rank {rank} gives no error"));
        };
        if let Some(missing) = fault.says.iter().find(|says| !line.contains(**says)) {
            return complain(format!("rank {rank} does not say {missing:?}"));
        }
    }
    if run.text.contains("a rank went on") {
        return complain("a rank went on".to_owned());
    }
    Ok(())
}

/// By default `mpirun` ends all ranks and fails.
fn killed_with_defaults() -> Result<(), Failed> {
    let run = run(RANKS, &[], &["fault", "killed"])?;
    if run.is_success || !run.text.contains("rank 1") || run.text.contains("a rank went on") {
        return Err(format!("after {:?}:\n{}", run.took, run.text).into());
    }
    Ok(())
}

/// A rank dies when some files of the next checkpoint are complete: the one before it goes on.
fn torn() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_str().ok_or("the temporary folder has no name in UTF-8")?;
    succeed(RANKS, &["save", path, "sharded-state", "1"])?;
    for name in ["torn", "torn-manifest"] {
        let run = run(RANKS, &["--enable-recovery"], &["fault", name, path])?;
        if run.text.contains("a rank went on") || !run.text.contains("has taken its steps") {
            return Err(format!("{name} does not stop the run:\n{}", run.text).into());
        }
        succeed(2, &["go-on", path, "sharded-gradients", "1"])?;
    }
    Ok(())
}

/// Ends this process at once.
fn kill() -> ! {
    let id = std::process::id().to_string();
    std::process::Command::new("kill").args(["-KILL", &id]).status().expect("kill is there");
    unreachable!("the process was killed")
}

/// Runs a scenario in which the culprit fails. What it returns is printed by the crate.
pub fn fault(name: &str, folder: Option<&str>) -> ExitCode {
    adamod_mpi::run(LIMIT, |ranks| -> Result<(), Errors> {
        let gpu = Gpu::open();
        if let Some(folder) = folder {
            return torn_save(name, ranks, &gpu, folder);
        }
        let is_culprit = ranks.rank() == CULPRIT;
        let (pools, mut distributed) = start(name, ranks, &gpu)?;
        for number in 1..=6 {
            let mut own = gradients(&pools.setup, number, ranks.rank());
            if is_culprit && number >= STEP {
                match name {
                    "killed" => kill(),
                    "stuck" => std::thread::sleep(2 * LIMIT),
                    "lost" => gpu.device.destroy(),
                    "panics" => panic!("the engine has a bug"),
                    "leaves" => return Ok(()),
                    "rate" => distributed.set_learning_rate(0, 0.5)?,
                    "not-finite" | "skips" => own[0][7] = f32::INFINITY,
                    _ => {}
                }
            }
            pools.write_gradients(&own);
            distributed.step()?;
        }
        println!("a rank went on");
        Ok(())
    })
}

fn start(name: &str, ranks: &Ranks, gpu: &Gpu) -> Result<(Pools, Distributed), Errors> {
    let is_culprit = ranks.rank() == CULPRIT;
    let control = match name {
        "not-finite" => {
            Control::Device(DeviceControl::new().with_max_norm(1.0).with_non_finite(NonFinite::Propagate))
        }
        "skips" => Control::Device(DeviceControl::new()),
        _ => Control::Host,
    };
    let mut setup = Setup::new(StateFormat::F32, control);
    if is_culprit && name == "length" {
        setup.lengths[3] += 1;
    }
    let mut options = setup.options();
    if is_culprit && name == "seed" {
        options = options.with_seed(8);
    }
    let settings = Settings::new(Mode::ShardedState).with_bucket_bytes(setup.bucket_bytes);
    let settings = if name == "skips" { settings.with_most_skips(2) } else { settings };
    let pools = Pools::new(gpu, &setup);
    if is_culprit && name == "values" {
        pools.spoil(2);
    }
    let builder = pools.builder_with(ranks, settings, options, pools.groups());
    let distributed = builder.build(&gpu.device, &gpu.queue)?;
    Ok((pools, distributed))
}

/// Goes on from a checkpoint, and dies while saving the next one.
fn torn_save(name: &str, ranks: &Ranks, gpu: &Gpu, folder: &str) -> Result<(), Errors> {
    let (setup, root) = (exact_setups(1).swap_remove(0), format!("{folder}/0"));
    let pools = Pools::new(gpu, &setup);
    let settings =
        Settings::new(Mode::ShardedState).with_bucket_bytes(setup.bucket_bytes).with_save_limit(LIMIT);
    let builder = pools.builder_with(ranks, settings, setup.options(), pools.groups());
    let mut distributed = builder.build(&gpu.device, &gpu.queue)?;
    distributed.restore(&root)?;
    for number in 7..9 {
        pools.write_gradients(&gradients(&setup, number, 0));
        distributed.step()?;
    }
    println!("rank {} has taken its steps", ranks.rank());
    match (name, ranks.rank()) {
        ("torn", CULPRIT) => {
            let _draft = distributed.write(&root)?;
            kill()
        }
        ("torn-manifest", 0) => {
            // Rank 0 has written a part of the next manifest.
            let _draft = distributed.write(&root)?;
            std::fs::write(format!("{root}/checkpoint.json.new"), "{\"version\":")?;
            kill()
        }
        _ => {
            distributed.save(&root)?;
            println!("a rank went on");
        }
    }
    Ok(())
}
