//! Continues from a checkpoint that `adamod_checkpoint.py` wrote in PyTorch, with recorded gradients.
//!
//! `cargo run --example pytorch -- FOLDER OUT` reads `checkpoint.safetensors` and `run.safetensors` from FOLDER. The latter has the
//! values `param.NAME` and the gradients `grad.T.NAME` of the steps T = 1, 2, and so on. It writes `checkpoint.safetensors` and
//! `values.safetensors` to OUT.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use adamod::{Checkpoint, Optimizer, Options, Parameter, ParameterId, Step, View, Views, wgpu};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Every tensor of a pool starts at a multiple of this.
const ALIGNMENT_BYTES: u64 = 256;

/// A run that continues from a checkpoint.
struct Run {
    device: wgpu::Device,
    queue: wgpu::Queue,
    gradients: wgpu::Buffer,
    optimizer: Optimizer,
    /// Name, id and byte offset in the pools of each parameter.
    parameters: Vec<(String, ParameterId, u64)>,
}

fn elements(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let tensor = file.tensor(name).map_err(|error| format!("tensor {name:?}: {error}"))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("tensor {name:?} is {:?}, expected F32", tensor.dtype()).into());
    }
    Ok(bytemuck::pod_collect_to_vec(tensor.data()))
}

impl Run {
    /// Creates the optimizer that the checkpoint describes, with its state and the values of `run`.
    fn new(checkpoint: &Checkpoint, run: &SafeTensors<'_>) -> Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            required_limits: adapter.limits(),
            ..Default::default()
        }))?;
        let mut bytes = 0;
        let places: Vec<u64> = checkpoint
            .parameters()
            .map(|parameter| {
                let place = bytes;
                bytes = (place + 4 * parameter.len).next_multiple_of(ALIGNMENT_BYTES);
                place
            })
            .collect();
        let pool = |label| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes.max(ALIGNMENT_BYTES),
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let (values, gradients) = (pool("values"), pool("gradients"));
        let options = Options::new().with_seed(checkpoint.seed());
        let mut optimizer = Optimizer::new(&device, &queue, options)?;
        let groups = checkpoint
            .groups()
            .iter()
            .map(|&group| optimizer.add_group(group))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut parameters = Vec::new();
        for (saved, place) in checkpoint.parameters().zip(places) {
            let views = Views::new(View::new(&values, place), View::new(&gradients, place));
            let parameter = Parameter::new(saved.label, saved.len).with_views(views);
            let id = optimizer.add_parameter(groups[saved.group], parameter)?;
            optimizer.write_parameter(id, &elements(run, &format!("param.{}", saved.label))?)?;
            parameters.push((saved.label.to_owned(), id, place));
        }
        optimizer.restore(checkpoint)?;
        Ok(Self { device, queue, gradients, optimizer, parameters })
    }

    /// Takes a step with each set of gradients and returns the number of steps.
    fn steps(&mut self, run: &SafeTensors<'_>) -> Result<u64> {
        for step in 1.. {
            let mut present = Vec::new();
            for (name, id, place) in &self.parameters {
                let tensor = format!("grad.{step}.{name}");
                if run.names().contains(&tensor.as_str()) {
                    let gradient = elements(run, &tensor)?;
                    self.queue.write_buffer(&self.gradients, *place, bytemuck::cast_slice(&gradient));
                    present.push(*id);
                }
            }
            if present.is_empty() {
                return Ok(step - 1);
            }
            let mut encoder = self.device.create_command_encoder(&Default::default());
            self.optimizer.encode(&mut encoder, &Step::of(&present))?;
            self.queue.submit([encoder.finish()]);
        }
        Ok(0)
    }

    fn values(&self) -> Result<HashMap<String, Vec<f32>>> {
        let value = |(name, id, _): &(String, ParameterId, u64)| {
            Ok((format!("param.{name}"), self.optimizer.read_parameter(*id).wait()?))
        };
        self.parameters.iter().map(value).collect()
    }
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [folder, out] = arguments.as_slice() else {
        return Err("usage: pytorch FOLDER OUT".into());
    };
    let (folder, out) = (Path::new(folder), Path::new(out));
    let checkpoint = Checkpoint::load(folder.join("checkpoint.safetensors"))?;
    let bytes = std::fs::read(folder.join("run.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut run = Run::new(&checkpoint, &file)?;
    let steps = run.steps(&file)?;
    std::fs::create_dir_all(out)?;
    run.optimizer.checkpoint().wait()?.save(out.join("checkpoint.safetensors"))?;
    let values = run.values()?;
    let mut views = Vec::new();
    for (name, value) in &values {
        views.push((name, TensorView::new(Dtype::F32, vec![value.len()], bytemuck::cast_slice(value))?));
    }
    std::fs::write(out.join("values.safetensors"), safetensors::serialize(views, None)?)?;
    println!("{steps} steps of {} parameters", values.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pytorch/fixture").join(name))
            .unwrap()
    }

    /// The first ten steps are those of the authors' optimizer in PyTorch, and so are the expected results of ten more. Values agree
    /// within 1e-6 + 1e-5 |p|, and states within 1e-5 of each element plus 1e-6 of the largest.
    fn assert_continues_as_pytorch(checkpoint: &Checkpoint) {
        let steps: Vec<u64> = checkpoint.parameters().map(|parameter| parameter.step).collect();
        assert_eq!(steps, [10, 10, 6, 10]);
        let (bytes, expected) = (fixture("run.safetensors"), fixture("expected.safetensors"));
        let (file, expected) =
            (SafeTensors::deserialize(&bytes).unwrap(), SafeTensors::deserialize(&expected).unwrap());
        let mut run = Run::new(checkpoint, &file).unwrap();
        assert_eq!(run.steps(&file).unwrap(), 10);
        let mut found = run.values().unwrap();
        for (name, id, _) in &run.parameters {
            let state = run.optimizer.read_state(*id).wait().unwrap();
            for (kind, elements) in state.tensors {
                found.insert(format!("{kind}.{name}"), elements);
            }
        }
        assert_eq!(found.len(), expected.len());
        for (name, found) in found {
            let expected = elements(&expected, &name).unwrap();
            assert_eq!(found.len(), expected.len(), "{name}");
            let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let absolute = 1e-6 * if name.starts_with("param.") { 1.0 } else { largest };
            for (found, expected) in found.iter().zip(&expected) {
                let difference = (found - expected).abs();
                assert!(
                    difference <= absolute + 1e-5 * expected.abs(),
                    "{name}: {found}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn a_run_of_pytorch_continues_as_in_pytorch() {
        for file in ["checkpoint.safetensors", "version-2.safetensors"] {
            assert_continues_as_pytorch(&Checkpoint::from_bytes(&fixture(file)).unwrap());
        }
    }

    /// `there_and_back.py --fixture` made the second file from the first.
    #[test]
    fn both_versions_of_the_checkpoint_have_the_same_content() {
        let [one, two] = ["checkpoint.safetensors", "version-2.safetensors"]
            .map(|file| Checkpoint::from_bytes(&fixture(file)).unwrap());
        assert_eq!(one.groups(), two.groups());
        assert!(one.parameters().eq(two.parameters()));
        let run = fixture("run.safetensors");
        let run = SafeTensors::deserialize(&run).unwrap();
        let states = |checkpoint: &Checkpoint| {
            let run = Run::new(checkpoint, &run).unwrap();
            let state =
                |(_, id, _): &(String, ParameterId, u64)| run.optimizer.read_state(*id).wait().unwrap();
            run.parameters.iter().map(state).collect::<Vec<_>>()
        };
        assert_eq!(states(&one), states(&two));
    }
}
