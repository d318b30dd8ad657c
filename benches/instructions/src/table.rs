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
    let usual = usual_path(&instructions, &labels);
    let count = |start: &str| instructions.iter().filter(|i| i.name.starts_with(start)).count();
    let vector = count("v_");
    let usual = instructions.iter().zip(&usual).filter(|(i, usual)| i.is_vector() && **usual).count();
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

/// Which instructions are on the usual path: not what a branch skips if no lane needs it, or if the launch has no use for it, and that
/// touches no memory. If all lanes take one of two sides, the shorter one is the usual one.
fn usual_path(instructions: &[Instruction<'_>], labels: &BTreeMap<&str, usize>) -> Vec<bool> {
    let mut is_usual = vec![true; instructions.len()];
    let target = |instruction: &Instruction<'_>| {
        instruction.line.split_whitespace().nth(1).and_then(|label| labels.get(label)).copied()
    };
    for (index, instruction) in instructions.iter().enumerate() {
        let Some(end) = target(instruction).filter(|&end| index < end) else {
            continue;
        };
        let skipped = index + 1..end;
        let jump = instructions.get(end - 1).filter(|last| last.name == "s_branch");
        let rare = match (instruction.name, jump.and_then(target)) {
            ("s_cbranch_execz", _) | ("s_cbranch_scc0", None) => skipped,
            ("s_cbranch_scc0", Some(join)) if end < join => {
                let vector = |side: &[Instruction<'_>]| side.iter().filter(|i| i.is_vector()).count();
                let is_longer = vector(&instructions[skipped.clone()]) > vector(&instructions[end..join]);
                if is_longer { skipped } else { end..join }
            }
            _ => continue,
        };
        if !instructions[index + 1..rare.end].iter().any(Instruction::is_memory) {
            is_usual[rare].fill(false);
        }
    }
    is_usual
}
