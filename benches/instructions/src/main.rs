//! Counts the instructions that Mesa's RADV makes of the update kernel in every mode of `adamod bench`. RADV's null winsys
//! (`RADV_FORCE_FAMILY`) compiles without a GPU; wgpu gets no device from it, so naga's SPIR-V is handed over as wgpu does.
//!
//! `.ci/instructions` runs it and compares the table with the committed one.

#[path = "../../../src/bin/adamod/bench/designs.rs"]
#[allow(dead_code, reason = "the tool uses more of it")]
mod designs;
mod driver;
mod emit;
#[path = "../../../src/bin/adamod/bench/mode.rs"]
#[allow(dead_code, reason = "the tool uses more of it")]
mod mode;
#[path = "../../../src/bin/adamod/bench/models.rs"]
#[allow(dead_code, reason = "the tool uses more of it")]
mod models;
#[path = "../../../src/bin/adamod/bench/suites.rs"]
#[allow(dead_code, reason = "the tool uses more of it")]
mod suites;
mod table;

use adamod::{DType, StateFormat};
use mode::Mode;
use suites::{Sizes, Suite, groups};

fn main() -> anyhow::Result<()> {
    let driver = driver::Driver::open()?;
    // A folder for the assembly.
    let listings = std::env::args().nth(1);
    println!("# {}", driver.name);
    println!("{}", table::HEADER);
    let sizes = Sizes {
        most_elements: 1 << 20,
        most_buffer_bytes: 1 << 31,
        quick: false,
        full: false,
        is_cpu: false,
    };
    let measured = groups(Suite::Modes, sizes).into_iter().flat_map(|group| group.variants);
    // The bench leaves this one out, because it lies between others. Its kernel is one of its own.
    let bf16 = Mode { state: StateFormat::Bf16, values: DType::Bf16, ..Mode::ADAMOD };
    for mode in measured.map(|variant| variant.mode).chain([bf16]) {
        let name = mode.name();
        let kernel = emit::kernel(mode);
        let compiled = driver.compile(&kernel.spirv()?)?;
        if let Some(folder) = &listings {
            std::fs::write(format!("{folder}/{name}.asm"), &compiled.assembly)?;
        }
        println!("{}", table::row(&name, &kernel, &compiled));
    }
    Ok(())
}
