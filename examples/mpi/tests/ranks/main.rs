//! Laws and faults of several ranks. Started by `cargo test`, this program starts itself under `mpirun`, with a hard time limit.

mod driver;
mod engine;
mod faults;
mod laws;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Open MPI tells every process of a run its rank.
    if std::env::var_os("OMPI_COMM_WORLD_RANK").is_some() {
        let words: Vec<_> = std::env::args().skip(1).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        return match words[..] {
            ["laws", count] => laws::laws(count.parse().expect("a number")),
            ["overlap"] => laws::overlap(),
            ["two"] => laws::two(),
            ["busy"] => faults::busy(),
            ["refusals"] => laws::refusals(),
            ["traffic"] => laws::traffic(),
            ["save", folder, mode, count] => laws::save(folder, mode, count.parse().expect("a number")),
            ["go-on", folder, mode, count] => laws::go_on(folder, mode, count.parse().expect("a number")),
            ["fault", name, folder] => faults::fault(name, folder),
            _ => panic!("unknown scenario {words:?}"),
        };
    }
    driver::main()
}
