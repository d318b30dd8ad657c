//! What `cargo test` runs: each test is one or more runs of `mpirun`.

use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::faults;

/// The most seconds that a run may take. A run that hangs is killed and fails.
const LIMIT_SECONDS: u64 = 300;

/// What a run printed, and whether all its ranks ended well.
pub struct Run {
    pub text: String,
    pub is_success: bool,
}

/// Starts a scenario on some ranks, which fails if it hangs for a number of seconds. `options` go to `mpirun`.
pub fn run(ranks: usize, options: &[&str], scenario: &[&str], limit: u64) -> Result<Run, Failed> {
    run_program(&std::env::current_exe()?, ranks, options, scenario, limit)
}

fn run_program(
    program: &Path,
    ranks: usize,
    options: &[&str],
    scenario: &[&str],
    limit: u64,
) -> Result<Run, Failed> {
    let start = Instant::now();
    // `timeout` also ends mpirun's children, because mpirun passes the signal on.
    let output = Command::new("timeout")
        .arg("--kill-after=10")
        .arg(limit.to_string())
        .args(["mpirun", "--oversubscribe", "--bind-to", "none", "-np"])
        .arg(ranks.to_string())
        .args(options)
        .arg(program)
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
    if start.elapsed().as_secs() >= limit {
        return Err(format!("{scenario:?} on {ranks} ranks hung for {limit} s:\n{text}").into());
    }
    Ok(Run { text, is_success: status.success() })
}

/// Every rank has to end well.
pub fn succeed(ranks: usize, scenario: &[&str]) -> Result<(), Failed> {
    succeed_with(ranks, &[], scenario)
}

pub fn succeed_with(ranks: usize, options: &[&str], scenario: &[&str]) -> Result<(), Failed> {
    let run = run(ranks, options, scenario, LIMIT_SECONDS)?;
    let ended = run.text.matches("this rank is done").count();
    if run.is_success && ended == ranks {
        return Ok(());
    }
    Err(format!("{scenario:?} on {ranks} ranks: {ended} ended well\n{}", run.text).into())
}

/// Saved by four ranks, restored on others and in other modes.
fn checkpoints() -> Result<(), Failed> {
    let runs: [(_, _, &[_]); 2] = [
        ("sharded-gradients", "3", &[(2, "sharded-state"), (1, "replicated")]),
        ("replicated", "1", &[(3, "sharded-gradients")]),
    ];
    for (from, setups, others) in runs {
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_str().ok_or("the temporary folder has no name in UTF-8")?;
        succeed(4, &["save", path, from, setups])?;
        for &(ranks, to) in others {
            succeed(ranks, &["go-on", path, to, setups])?;
        }
    }
    Ok(())
}

/// The losses of every step of the digits network. What was done before a restored checkpoint has none.
fn losses(ranks: usize, arguments: &[&str]) -> Result<Vec<f32>, Failed> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_str().ok_or("the temporary file has no name in UTF-8")?;
    let arguments = [&["train", "--losses", path], arguments].concat();
    let program = Path::new(env!("CARGO_BIN_EXE_adamod-mpi"));
    let run = run_program(program, ranks, &[], &arguments, LIMIT_SECONDS)?;
    if !run.is_success {
        return Err(format!("{arguments:?} on {ranks} ranks:\n{}", run.text).into());
    }
    Ok(std::fs::read_to_string(path)?.lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// The ranks' gradients are sums over other rows than one rank's, so only the last digits of the losses differ: by 4e-7 after 33 steps on 2
/// and 4 ranks.
fn digits() -> Result<(), Failed> {
    let check = |found: &[f32], expected: &[f32], what: &str| {
        let is_near = |(found, expected): (&f32, &f32)| (found / expected - 1.0).abs() <= 4e-6;
        if found.len() == expected.len() && !found.is_empty() && found.iter().zip(expected).all(is_near) {
            return Ok(());
        }
        Err(Failed::from(format!("{what}: {found:?}, expected {expected:?}")))
    };
    let one = losses(1, &["--epochs", "3"])?;
    if one[one.len() - 1] > 0.95 * one[0] {
        return Err(format!("nothing was learnt: {one:?}").into());
    }
    let replicated = losses(4, &["--epochs", "3", "--mode", "replicated"])?;
    check(&replicated, &one, "replicated")?;
    // Saved by four ranks, which end after two epochs, and continued by two.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("checkpoints");
    // What a run leaves that was killed in its first save.
    std::fs::create_dir_all(path.join("step-000000011.0"))?;
    let path = path.to_str().ok_or("the temporary folder has no name in UTF-8")?;
    let first = losses(4, &["--epochs", "2", "--checkpoints", path])?;
    if first[..] != replicated[..first.len()] {
        return Err(format!("sharded: {first:?}, replicated: {replicated:?}").into());
    }
    let last = losses(2, &["--epochs", "3", "--mode", "sharded-state", "--checkpoints", path])?;
    check(&last[first.len()..], &one[first.len()..], "continued")
}

pub fn main() -> ExitCode {
    let mut trials = Vec::new();
    for (ranks, setups) in [(1, "3"), (2, "6"), (3, "3"), (4, "6"), (8, "3")] {
        let name = format!("sharded_is_replicated_is_one_device_on_{ranks}_ranks");
        trials.push(Trial::test(name, move || succeed(ranks, &["laws", setups])));
    }
    let law = |name: &str, test: fn() -> Result<(), Failed>| Trial::test(name, test);
    trials.extend([
        law("buckets_are_reduced_while_the_backward_pass_runs", || succeed(4, &["overlap"])),
        law("optimizers_of_one_run_do_not_mix_their_messages", || succeed(2, &["two"])),
        law("a_step_sends_the_least_bytes_and_state_is_divided", || {
            [1, 2, 4].into_iter().try_for_each(|ranks| succeed(ranks, &["traffic"]))
        }),
        law("what_cannot_be_distributed_is_refused_by_name", || succeed(1, &["refusals"])),
        law("digits_are_learnt_alike_on_1_2_and_4_ranks", digits),
        law("checkpoints_of_4_ranks_go_on_with_the_same_bits_on_others", checkpoints),
    ]);
    trials.extend(faults::trials());
    let mut arguments = Arguments::from_args();
    // Runs share the cores.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}
