//! Continues from a checkpoint that `adamod_checkpoint.py` wrote in PyTorch, with recorded gradients.
//!
//! `cargo run --example pytorch -- FOLDER OUT [FOLDER OUT ...]` reads `checkpoint.safetensors` and `run.safetensors` from each FOLDER.
//! The latter has the gradients `grad.T.NAME` of the steps T = 1, 2, and so on, and the values `param.NAME` if the checkpoint has none.
//! Gradients are rounded to the data type of their parameter. It writes `checkpoint.safetensors`, with values, to the OUT that follows.
//!
//! `cargo run --example pytorch -- --check FILE ...` prints a line for each checkpoint: `ok`, or what is wrong with it.

use std::error::Error;
use std::path::Path;

use adamod::{Checkpoint, DType, Optimizer, Options, Parameter, ParameterId, Step, View, Views, wgpu};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Every tensor of a pool starts at a multiple of this.
const ALIGNMENT_BYTES: u64 = 256;

/// A run that continues from a checkpoint.
struct Run {
    device: wgpu::Device,
    queue: wgpu::Queue,
    gradients: wgpu::Buffer,
    optimizer: Optimizer,
    parameters: Vec<Place>,
}

/// A parameter and its byte offset in the pools.
struct Place {
    name: String,
    id: ParameterId,
    dtype: DType,
    offset: u64,
}

fn elements(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let tensor = file.tensor(name).map_err(|error| format!("tensor {name:?}: {error}"))?;
    let halves = || tensor.data().chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]]));
    match tensor.dtype() {
        Dtype::F32 => Ok(bytemuck::pod_collect_to_vec(tensor.data())),
        Dtype::F16 => Ok(halves().map(|bits| f16::from_bits(bits).to_f32()).collect()),
        Dtype::BF16 => Ok(halves().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
        found => Err(format!("tensor {name:?} is {found:?}, expected F32, F16 or BF16").into()),
    }
}

/// The bytes of elements that are rounded to a data type, in whole words.
fn bytes_of(dtype: DType, elements: &[f32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = match dtype {
        DType::F16 => elements.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bf16 => elements.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => bytemuck::pod_collect_to_vec(elements),
    };
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

impl Run {
    /// Creates the optimizer that the checkpoint describes, with its state, and its values or those of `run`.
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
                bytes = (place + parameter.dtype.bytes() * parameter.len).next_multiple_of(ALIGNMENT_BYTES);
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
        for (saved, offset) in checkpoint.parameters().zip(places) {
            let dtype = saved.dtype;
            let view = |buffer| View::new(buffer, offset).with_dtype(dtype);
            let views = Views::new(view(&values), view(&gradients));
            let parameter = Parameter::new(saved.label, saved.len).with_dtype(dtype).with_views(views);
            let id = optimizer.add_parameter(groups[saved.group], parameter)?;
            if !saved.has_values {
                optimizer.write_parameter(id, &elements(run, &format!("param.{}", saved.label))?)?;
            }
            parameters.push(Place { name: saved.label.to_owned(), id, dtype, offset });
        }
        optimizer.restore(checkpoint)?;
        Ok(Self { device, queue, gradients, optimizer, parameters })
    }

    /// Takes a step with each set of gradients and returns the number of steps.
    fn steps(&mut self, run: &SafeTensors<'_>) -> Result<u64> {
        for step in 1.. {
            let mut present = Vec::new();
            for Place { name, id, dtype, offset } in &self.parameters {
                let tensor = format!("grad.{step}.{name}");
                if run.names().contains(&tensor.as_str()) {
                    let gradient = bytes_of(*dtype, &elements(run, &tensor)?);
                    self.queue.write_buffer(&self.gradients, *offset, &gradient);
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
}

/// Prints what is wrong with each file, if anything.
fn check(files: &[String]) {
    for file in files {
        match Checkpoint::load(file) {
            Ok(_) => println!("ok"),
            Err(error) => println!("{error}"),
        }
    }
}

/// Continues from the checkpoint of a folder and writes the last state to another.
fn continue_run(folder: &Path, out: &Path) -> Result<()> {
    let checkpoint = Checkpoint::load(folder.join("checkpoint.safetensors"))?;
    let bytes = std::fs::read(folder.join("run.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    std::fs::create_dir_all(out)?;
    if out.canonicalize()? == folder.canonicalize()? {
        return Err(
            format!("OUT is {}, the same folder as FOLDER, expected another one", out.display()).into()
        );
    }
    let mut run = Run::new(&checkpoint, &file)?;
    let steps = run.steps(&file)?;
    run.optimizer.save_with_values(out.join("checkpoint.safetensors"))?;
    println!("{steps} steps of {} parameters", run.parameters.len());
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [option, files @ ..] if option == "--check" => check(files),
        folders if !folders.is_empty() && folders.len().is_multiple_of(2) => {
            for pair in folders.chunks_exact(2) {
                continue_run(Path::new(&pair[0]), Path::new(&pair[1]))?;
            }
        }
        _ => return Err("usage: pytorch FOLDER OUT [FOLDER OUT ...], or pytorch --check FILE ...".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

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
        let mut found = HashMap::new();
        for Place { name, id, .. } in &run.parameters {
            found.insert(format!("param.{name}"), run.optimizer.read_parameter(*id).wait().unwrap());
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
        for file in ["checkpoint.safetensors", "version-2.safetensors", "version-3.safetensors"] {
            assert_continues_as_pytorch(&Checkpoint::from_bytes(&fixture(file)).unwrap());
        }
    }

    /// `there_and_back.py --fixture` made the other files from the first.
    #[test]
    fn all_versions_of_the_checkpoint_have_the_same_content() {
        let [one, two, three] = ["checkpoint.safetensors", "version-2.safetensors", "version-3.safetensors"]
            .map(|file| Checkpoint::from_bytes(&fixture(file)).unwrap());
        for other in [&two, &three] {
            assert_eq!(one.groups(), other.groups());
            assert!(one.parameters().eq(other.parameters()));
        }
        let run = fixture("run.safetensors");
        let run = SafeTensors::deserialize(&run).unwrap();
        let states = |checkpoint: &Checkpoint| {
            let run = Run::new(checkpoint, &run).unwrap();
            let state = |place: &Place| run.optimizer.read_state(place.id).wait().unwrap();
            run.parameters.iter().map(state).collect::<Vec<_>>()
        };
        assert_eq!(states(&one), states(&two));
        assert_eq!(states(&one), states(&three));
    }
}
