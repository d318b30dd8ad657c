//! Ranks that fail: every other rank ends with an error that says which rank and why, within the time limit.

use std::process::ExitCode;
use std::time::Duration;

use adamod::{Control, DeviceControl, NonFinite, StateFormat};
use adamod_mpi::{Distributed, Mode, Ranks, Settings};
use libtest_mimic::{Failed, Trial};

use crate::driver::{Run, run, succeed, succeed_with};
use crate::engine::{Gpu, Pools, Setup, gradients, rank};
use crate::laws::exact_setups;

/// How long ranks wait for one that is silent. They have compiled their kernels before.
const LIMIT: Duration = Duration::from_secs(5);
const RANKS: usize = 3;
/// The rank that fails.
const CULPRIT: usize = 1;
/// The step in which it fails.
const STEP: u64 = 2;

type Errors = Box<dyn std::error::Error>;

/// The most seconds that a run with a fault may take: only one that hangs takes as long.
const HANG_SECONDS: u64 = 60;
/// mpirun lets the others go on if a rank is killed: by default it ends them.
const RECOVERY: &[&str] = &["--enable-recovery"];

/// A fault of one rank, and what the errors say.
struct Fault {
    name: &'static str,
    /// The end of the name of the test.
    law: &'static str,
    /// Options of `mpirun`.
    options: &'static [&'static str],
    /// Parts of the culprit's error, if it ends with one.
    culprit: &'static [&'static str],
    /// Parts of the others' errors.
    others: &'static [&'static str],
}

const FAULTS: [Fault; 17] = [
    Fault {
        options: RECOVERY,
        ..silent(
            "killed",
            "a_killed_rank_is_named",
            &["rank 1 sent nothing for 5 s, expected the gradients of", "of step 2"],
        )
    },
    silent(
        "stuck",
        "a_rank_that_is_stuck_is_named",
        &["rank 1 sent nothing for 5 s, expected the gradients of", "of step 2"],
    ),
    silent(
        "chain",
        "a_rank_that_waits_for_a_stuck_one_is_not_blamed",
        &["rank 1 sent nothing for 5 s, expected the", "of bucket 0 of step 2"],
    ),
    silent(
        "leaves",
        "a_rank_that_ends_early_is_named",
        &["rank 1 has ended, expected the gradients of", "of step 2 from it"],
    ),
    own("lost", "a_rank_whose_step_fails_says_why", &["lost"]),
    own("late", "ranks_that_are_late_print_their_errors", &["lost"]),
    own("panics", "a_rank_that_panics_says_why", &["panicked: the engine has a bug"]),
    Fault {
        name: "calls",
        law: "other_calls_are_named",
        options: &[],
        culprit: &["and this one wait for each other for 5 s"],
        others: &["rank 1 and this one wait for each other for 5 s, expected the gradients of", "of step 2"],
    },
    Fault {
        name: "bytes",
        law: "messages_of_another_length_are_named",
        options: &[],
        culprit: &["sent a message of"],
        others: &["rank 1", "sent a message of", "bytes, expected"],
    },
    all(
        "length",
        "another_length_is_named",
        &["the length of parameter \"tensor.3\" of rank 1 is 34, expected 33 as on rank 0"],
    ),
    all("seed", "another_seed_is_named", &["the seed of rank 1 is 8, expected 7 as on rank 0"]),
    all(
        "values",
        "other_values_are_named",
        &["the hash of the values of parameter \"tensor.2\" of rank 1 is"],
    ),
    all(
        "rate",
        "other_hyperparameters_are_named",
        &["rank 1 has other hyperparameters in step 2 than rank 0"],
    ),
    all(
        "not-finite",
        "gradients_that_are_not_finite_are_named",
        &["the gradients of rank 1 are not finite in step 2"],
    ),
    all("skips", "too_many_skips_are_named", &["the gradients of rank 1 are not finite in step 4"]),
    all(
        "overflow",
        "a_sum_that_overflows_is_named",
        &["the sum of the ranks' gradients overflows f32 in step 2"],
    ),
    all("number", "other_steps_are_named", &["rank 1 takes step 1, expected step 2 as on rank 0"]),
];

/// The culprit says nothing, or too late.
const fn silent(name: &'static str, law: &'static str, others: &'static [&'static str]) -> Fault {
    Fault { name, law, options: &[], culprit: &[], others }
}

/// The culprit tells the others why it ends.
const fn own(name: &'static str, law: &'static str, culprit: &'static [&'static str]) -> Fault {
    Fault { name, law, options: &[], culprit, others: &["rank 1 failed: "] }
}

/// All ranks find it.
const fn all(name: &'static str, law: &'static str, says: &'static [&'static str]) -> Fault {
    Fault { name, law, options: &[], culprit: says, others: says }
}

pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> =
        FAULTS.iter().map(|fault| Trial::test(fault.law, || check_fault(fault))).collect();
    trials.push(Trial::test("mpirun_ends_all_ranks_if_one_is_killed", killed_with_defaults));
    trials.push(Trial::test("the_last_checkpoint_is_whole_if_a_rank_is_killed_while_saving", torn));
    trials.push(Trial::test("a_rank_that_is_busy_after_its_last_step_holds_nobody_up", || {
        // Few messages arrive without the sender's help.
        succeed_with(2, &["--mca", "btl_vader_eager_limit", "1024"], &["busy"])
    }));
    trials
}

/// Every rank but a silent one prints an error that says it all, before `mpirun` ends.
fn check_fault(fault: &'static Fault) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_str().ok_or("the temporary folder has no name in UTF-8")?;
    let run = run(RANKS, fault.options, &["fault", fault.name, path], HANG_SECONDS)?;
    for rank in 0..RANKS {
        check_error(&run, rank, if rank == CULPRIT { fault.culprit } else { fault.others })?;
    }
    // A rank whose step fails says the same itself.
    if let Some(error) = error_of(&run, CULPRIT).filter(|_| fault.others == ["rank 1 failed: "]) {
        let expected = format!("rank 1 failed: {error}");
        (0..RANKS)
            .filter(|&rank| rank != CULPRIT)
            .try_for_each(|rank| check_error(&run, rank, &[&expected]))?;
    }
    // With recovery, mpirun reports success.
    if run.text.contains("a rank went on") || (run.is_success && fault.options.is_empty()) {
        return Err(format!("the run went on:\n{}", run.text).into());
    }
    Ok(())
}

/// What a rank says after its name.
fn error_of(run: &Run, rank: usize) -> Option<&str> {
    run.text.lines().find_map(|line| line.strip_prefix(&format!("rank {rank}: error: ")))
}

fn check_error(run: &Run, rank: usize, says: &[&str]) -> Result<(), Failed> {
    let error = error_of(run, rank).unwrap_or_default();
    match says.iter().find(|says| !error.contains(**says)) {
        Some(missing) => Err(format!("rank {rank} does not say {missing:?}:\n{}", run.text).into()),
        None => Ok(()),
    }
}

/// By default `mpirun` ends all ranks and fails.
fn killed_with_defaults() -> Result<(), Failed> {
    let run = run(RANKS, &[], &["fault", "killed", ""], HANG_SECONDS)?;
    let names = |line: &str| line.contains("process rank 1") && line.contains("signal 9");
    if run.is_success || !run.text.lines().any(names) || run.text.contains("a rank went on") {
        return Err(run.text.into());
    }
    Ok(())
}

/// A rank dies when some files of the next checkpoint are complete: the one before it goes on.
fn torn() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_str().ok_or("the temporary folder has no name in UTF-8")?;
    succeed(RANKS, &["save", path, "sharded-state", "1"])?;
    for (name, culprit) in [("torn", CULPRIT), ("torn-manifest", 0)] {
        let run = run(RANKS, RECOVERY, &["fault", name, path], HANG_SECONDS)?;
        if run.text.contains("a rank went on") || !run.text.contains("has taken its steps") {
            return Err(format!("{name} does not stop the run:\n{}", run.text).into());
        }
        let says = format!("rank {culprit} sent nothing for 5 s, expected its");
        (0..RANKS).filter(|&rank| rank != culprit).try_for_each(|rank| check_error(&run, rank, &[&says]))?;
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
pub fn fault(name: &str, folder: &str) -> ExitCode {
    adamod_mpi::run(LIMIT, |ranks| -> Result<(), Errors> {
        let gpu = Gpu::open();
        if name.starts_with("torn") {
            return torn_save(name, ranks, &gpu, folder);
        }
        let is_culprit = ranks.rank() == CULPRIT;
        let (pools, mut distributed) = start(name, ranks, &gpu)?;
        for number in 1..=6 {
            let mut own = gradients(&pools.setup, number, ranks.rank());
            if is_culprit && number >= STEP {
                match name {
                    "killed" => kill(),
                    "stuck" | "chain" => std::thread::sleep(Duration::from_secs(3600)),
                    "lost" | "late" => gpu.device.destroy(),
                    "calls" => distributed.save(folder)?,
                    "bytes" => drop(ranks.gather(&[0; 3])?),
                    "panics" => panic!("the engine has a bug"),
                    "leaves" => return Ok(()),
                    "rate" => distributed.set_learning_rate(0, 0.5)?,
                    "not-finite" | "skips" => own[0][7] = f32::INFINITY,
                    _ => {}
                }
            } else if name == "bytes" && number == STEP {
                ranks.gather(&[0; 4])?;
            } else if name == "late" && number == STEP && ranks.rank() == 2 {
                // It is still at work when the others have heard of the error.
                std::thread::sleep(LIMIT - Duration::from_secs(1));
            }
            if name == "overflow" && number == STEP {
                own[0][7] = f32::MAX;
            }
            if name == "number" {
                distributed.save(format!("{folder}/{number}"))?;
                if number == STEP {
                    distributed.restore(format!("{folder}/{}", if is_culprit { 1 } else { 2 }))?;
                }
            }
            pools.write_gradients(&own);
            let result = distributed.step();
            if name == "late" && is_culprit && result.is_err() {
                std::thread::sleep(Duration::from_secs(1));
            }
            result?;
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
    let mut mode = Mode::ShardedState;
    if name == "chain" {
        // Rank 0 has no piece: it only waits for the averages of the others, and rank 2 for gradients of rank 1.
        (mode, setup.lengths) = (Mode::Replicated, vec![500; 2]);
    }
    let settings = Settings::new(mode).with_bucket_bytes(setup.bucket_bytes);
    let settings = if name == "skips" { settings.with_most_skips(2) } else { settings };
    let pools = Pools::new(gpu, &setup);
    if is_culprit && name == "values" {
        pools.spoil(2);
    }
    let builder = pools.builder_with(ranks, settings, options, pools.groups());
    let distributed = builder.build(&gpu.device, &gpu.queue)?;
    Ok((pools, distributed))
}

/// One rank has the only shard. After the step it does something else for longer than others wait for a message.
pub fn busy() -> ExitCode {
    rank(LIMIT, |ranks| -> Result<(), Errors> {
        let gpu = Gpu::open();
        let setup = Setup { lengths: vec![1000], ..Setup::new(StateFormat::F32, Control::Host) };
        let pools = Pools::new(&gpu, &setup);
        let mut distributed = pools.distributed(ranks, Mode::ShardedState)?;
        pools.write_gradients(&gradients(&setup, 1, ranks.rank()));
        distributed.step()?;
        if distributed.parameters().len() == 1 {
            std::thread::sleep(LIMIT + Duration::from_secs(2));
        }
        Ok(())
    })
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
