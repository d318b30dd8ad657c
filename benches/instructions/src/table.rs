//! The table: one row per mode.

use std::collections::BTreeMap;

use crate::driver::Compiled;
use crate::emit::Kernel;

/// The names of the columns.
pub const HEADER: &str = "mode\tinstructions\tvector\tper element\tusual\tloads\tstores\tLDS\tbarriers\tVGPRs\twaves\tLDS bytes\tspills";

struct Instruction<'a> {
    name: &'a str,
    /// The label that a branch goes to, or that stands before this instruction.
    line: &'a str,
}

impl Instruction<'_> {
    fn is_vector(&self) -> bool {
        self.name.starts_with("v_")
    }

    fn is_memory(&self) -> bool {
        ["buffer_", "global_", "ds_", "scratch_"].iter().any(|start| self.name.starts_with(start))
    }
}

/// The row of a compiled kernel.
pub fn row(name: &str, kernel: &Kernel, compiled: &Compiled) -> String {
    let mut labels = BTreeMap::new();
    let mut instructions = Vec::new();
    for line in compiled.assembly.lines() {
        let line = line.split(';').next().unwrap_or_default().trim();
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, instructions.len());
        } else if let Some(name) = line.split_whitespace().next() {
            instructions.push(Instruction { name, line });
        }
    }
    // What a branch skips if no lane needs it, or if the launch has no use for it, and that touches no memory, is a rare path. A branch
    // that ends with a jump has another side.
    let mut is_usual = vec![true; instructions.len()];
    for (index, instruction) in instructions.iter().enumerate() {
        let target = instruction.line.split_whitespace().nth(1).and_then(|label| labels.get(label));
        if let ("s_cbranch_execz" | "s_cbranch_scc0", Some(&end)) = (instruction.name, target)
            && index < end
            && !instructions[index..end].iter().any(Instruction::is_memory)
            && (instruction.name == "s_cbranch_execz" || instructions[end - 1].name != "s_branch")
        {
            is_usual[index + 1..end].fill(false);
        }
    }
    let count = |start: &str| instructions.iter().filter(|i| i.name.starts_with(start)).count();
    let vector = count("v_");
    let usual = instructions.iter().zip(&is_usual).filter(|(i, usual)| i.is_vector() && **usual).count();
    let widths = |kind: &str| {
        let mut widths = BTreeMap::new();
        for instruction in &instructions {
            let name = instruction.name;
            if name.starts_with("buffer_")
                && let Some(at) = name.find(kind)
            {
                *widths.entry(&name[at + kind.len()..]).or_insert(0) += 1;
            }
        }
        widths.iter().map(|(width, count)| format!("{count}x{width}")).collect::<Vec<_>>().join(",")
    };
    let elements = f64::from(kernel.elements_per_lane);
    let spills = compiled.statistic("Spilled VGPRs") + compiled.statistic("Spilled SGPRs");
    [
        name.to_owned(),
        instructions.len().to_string(),
        vector.to_string(),
        format!("{:.1}", vector as f64 / elements),
        format!("{:.1}", usual as f64 / elements),
        widths("_load_"),
        widths("_store_"),
        count("ds_").to_string(),
        count("s_barrier").to_string(),
        compiled.statistic("VGPRs").to_string(),
        compiled.statistic("Subgroups per SIMD").to_string(),
        compiled.statistic("LDS size").to_string(),
        (spills + compiled.statistic("Scratch size")).to_string(),
    ]
    .join("\t")
}
