//! What `cargo test` runs: each test is one or more runs of `mpirun`.

use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::faults;

/// The most time that a run may take. A run that hangs is killed and fails.
const LIMIT_SECONDS: u32 = 100;

/// What a run printed, and whether all its ranks ended well.
pub struct Run {
    pub text: String,
    pub is_success: bool,
    pub took: Duration,
}

/// Starts a scenario on some ranks. `options` go to `mpirun`.
pub fn run(ranks: usize, options: &[&str], scenario: &[&str]) -> Result<Run, Failed> {
    let start = Instant::now();
    // `timeout` also ends mpirun's children, because mpirun passes the signal on.
    let output = Command::new("timeout")
        .arg("--kill-after=10")
        .arg(LIMIT_SECONDS.to_string())
        .args(["mpirun", "--oversubscribe", "--bind-to", "none", "-np"])
        .arg(ranks.to_string())
        .args(options)
        .arg(std::env::current_exe()?)
        .args(scenario)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        // Containers often forbid processes to read each other's memory.
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        // Each rank's software device would take all cores.
        .env("LP_NUM_THREADS", "1")
        .output()
        .map_err(|error| format!("mpirun could not be started ({error}): see .ci/with-mpi"))?;
    let Output { status, stdout, stderr } = output;
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if matches!(status.code(), Some(124 | 137)) && start.elapsed().as_secs() >= LIMIT_SECONDS.into() {
        return Err(format!("{scenario:?} on {ranks} ranks hung for {LIMIT_SECONDS} s:\n{text}").into());
    }
    Ok(Run { text, is_success: status.success(), took: start.elapsed() })
}

/// Every rank has to end well.
pub fn succeed(ranks: usize, scenario: &[&str]) -> Result<(), Failed> {
    let run = run(ranks, &[], scenario)?;
    let ended = run.text.matches("this rank is done").count();
    if run.is_success && ended == ranks {
        return Ok(());
    }
    Err(format!("{scenario:?} on {ranks} ranks: {ended} ended well\n{}", run.text).into())
}

/// Saved by four ranks, restored on others and in other modes.
fn checkpoints() -> Result<(), Failed> {
    for (from, setups) in [("sharded-gradients", "2"), ("replicated", "1")] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_str().ok_or("the temporary folder has no name in UTF-8")?;
        succeed(4, &["save", path, from, setups])?;
        for (ranks, to) in [(2, "sharded-state"), (1, "replicated"), (3, "sharded-gradients")] {
            succeed(ranks, &["go-on", path, to, setups])?;
        }
    }
    Ok(())
}

pub fn main() -> ExitCode {
    let mut trials = Vec::new();
    // Every setup on two ranks, and the last ones on others.
    for (ranks, scope) in [(1, "2"), (2, "all"), (3, "1"), (4, "3"), (8, "1")] {
        let name = format!("sharded_is_replicated_is_one_device_on_{ranks}_ranks");
        trials.push(Trial::test(name, move || succeed(ranks, &["laws", scope])));
    }
    let law = |name: &str, test: fn() -> Result<(), Failed>| Trial::test(name, test);
    trials.extend([
        law("buckets_are_reduced_while_the_backward_pass_runs", || succeed(4, &["overlap"])),
        law("a_step_sends_the_least_bytes_and_state_is_divided", || {
            [1, 2, 4].into_iter().try_for_each(|ranks| succeed(ranks, &["traffic"]))
        }),
        law("checkpoints_of_4_ranks_go_on_with_the_same_bits_on_others", checkpoints),
    ]);
    trials.extend(faults::trials());
    let mut arguments = Arguments::from_args();
    // Runs share the cores.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}
