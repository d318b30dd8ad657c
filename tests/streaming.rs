//! The memory that saving and restoring take: the most that a process has meanwhile.
#![cfg(all(feature = "checkpoint", target_os = "linux"))]

mod common;

use adamod::{AdaMod, Checkpoint, Optimizer, Options, Parameter, State};

use common::gpu;

const TENSORS: u64 = 8;
/// Bytes of AdaMod's state per element in f32.
const BYTES_PER_ELEMENT: u64 = 12;

/// A line of `/proc/self/status` in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    1024 * line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap()
}

/// The most memory that the process has while it does something.
fn peak(action: impl FnOnce()) -> u64 {
    // Resets the peak to what the process has now (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    action();
    status("VmHWM:")
}

fn state(step: u64, tensor: u64, len: u64) -> State {
    let names = ["exp_avg", "exp_avg_sq", "exp_avg_lr"];
    let of = |offset: u64| (0..len).map(|i| (i + 7 * tensor + offset + step) as f32 * 1e-3).collect();
    State::new(step, names.into_iter().zip(0..).map(|(name, offset)| (name, of(offset))).collect())
}

#[test]
fn saving_and_restoring_need_256_mib_beside_the_state() {
    check("saving_and_restoring_need_256_mib_beside_the_state", 4_000_000);
}

/// The same for 1e9 bytes of state.
#[test]
#[ignore = "needs 1.5 GB of memory and 1 GB of disk"]
fn a_gigabyte_of_state_is_saved_and_restored_with_256_mib_beside_it() {
    let len = 1_000_000_000_u64.div_ceil(TENSORS * BYTES_PER_ELEMENT);
    check("a_gigabyte_of_state_is_saved_and_restored_with_256_mib_beside_it", len);
}

/// Saves and restores tensors of this length in a process of their own. On a software adapter the device's buffers are the process's
/// memory, too.
fn check(test: &str, len: u64) {
    const BOUND: u64 = 256 << 20;
    const CHILD: &str = "ADAMOD_TEST_STREAMING";
    if std::env::var_os(CHILD).is_none() {
        // glibc keeps what was freed in blocks below this threshold, which grows otherwise.
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--include-ignored"])
            .env(CHILD, "1")
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let gpu = gpu();
    let mut optimizer = gpu.optimizer(Options::new()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    let ids: Vec<_> = (0..TENSORS)
        .map(|tensor| optimizer.add_parameter(group, Parameter::new(&format!("{tensor}"), len)).unwrap())
        .collect();
    let before = status("VmRSS:");
    let write = |optimizer: &mut Optimizer, step| {
        for (&id, tensor) in ids.iter().zip(0..) {
            optimizer.write_state(id, &state(step, tensor, len)).unwrap();
            // Staging buffers are freed once the device is done.
            gpu.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        }
    };
    write(&mut optimizer, 1);
    let state_bytes = optimizer.state_bytes();
    assert!(state_bytes >= TENSORS * len * BYTES_PER_ELEMENT);

    let above = |peak: u64| peak.saturating_sub(before).saturating_sub(state_bytes);
    let saving = peak(|| optimizer.save(&path).unwrap());
    write(&mut optimizer, 2);
    let restoring = peak(|| optimizer.restore(&Checkpoint::open(&path).unwrap()).unwrap());
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{} MiB of state, {} MiB before it was there: saving takes {} MiB beside both ({} in all), restoring {} MiB ({} in all)",
        mib(state_bytes),
        mib(before),
        mib(above(saving)),
        mib(saving),
        mib(above(restoring)),
        mib(restoring),
    );
    for (what, peak) in [("saving", saving), ("restoring", restoring)] {
        let found = above(peak);
        assert!(found < BOUND, "{what} takes {found} bytes beside the state, expected less than {BOUND}");
    }
    for (&id, tensor) in ids.iter().zip(0..) {
        assert_eq!(optimizer.read_state(id).wait().unwrap(), state(1, tensor, len));
    }
}
