//! What holds besides the numbers: many steps before a submit, checkpoints, and errors that arrive late.

use adamod::{Checkpoint, DType, Error, ErrorKind, MasterWeights, RuleKind, StateFormat, Workgroups};

use super::engine::{Engine, Kind};
use super::{Source, Tested};
use crate::gpu::Gpu;

/// Tensors of three kinds with AdaMod.
fn engine(gpu: &Gpu, source: Source) -> Result<Engine, Box<dyn std::error::Error>> {
    let f32 = Kind {
        values: DType::F32,
        gradients: DType::F32,
        master_weights: MasterWeights::None,
        state: StateFormat::F32,
    };
    let q8 = Kind {
        values: DType::Bf16,
        gradients: DType::Bf16,
        master_weights: MasterWeights::Split24,
        state: StateFormat::Q8,
    };
    let tensors = [(f32, 1030), (Kind { state: StateFormat::Bf16, ..q8 }, 40), (q8, 1500)];
    Engine::new(gpu, RuleKind::AdaMod.default_form(), source.control(), &tensors, 16, Workgroups::Auto)
}

/// A hundred steps of one submit are a hundred steps.
pub async fn many_steps(gpu: &Gpu, source: Source) -> Tested {
    let mut engine = engine(gpu, source)?;
    engine.steps_at_once(0, 100)?;
    engine.check(source == Source::Host).await.map(Some)
}

/// A run that continues from the bytes of a checkpoint has the bits of one that was never interrupted.
pub async fn checkpoint(gpu: &Gpu, source: Source) -> Tested {
    let mut run = engine(gpu, source)?;
    for step in 0..5 {
        run.step(step)?;
    }
    let checkpoint = run.optimizer.checkpoint_with_values();
    let values: Vec<u8> = gpu.read(&run.values).await?;
    let bytes = gpu.finish(checkpoint).await?.to_bytes()?;

    let mut resumed = engine(gpu, source)?;
    resumed.take_values(&values);
    resumed.optimizer.restore(&Checkpoint::from_bytes(&bytes)?)?;
    for step in 5..10 {
        run.step(step)?;
        resumed.step(step)?;
    }
    let (expected, found) = (run.check(false).await?, resumed.check(false).await?);
    if found == expected { Ok(Some(found)) } else { Err(format!("{found}, expected {expected}").into()) }
}

/// A copy that wgpu refuses is an error, and no zeros. What it does not touch works as before.
pub async fn refused_copies(gpu: &Gpu) -> Tested {
    let mut engine = engine(gpu, Source::Host)?;
    engine.step(0)?;
    let parameter = engine.parameter(0);
    engine.values.destroy();
    let values = gpu.finish(engine.optimizer.read_parameter(parameter)).await;
    expect_refused("a read", values.map(|values| values.len()))?;
    let checkpoint = gpu.finish(engine.optimizer.checkpoint_with_values()).await;
    expect_refused("a checkpoint", checkpoint.map(|checkpoint| checkpoint.parameters().len()))?;
    let state = gpu.finish(engine.optimizer.read_state(parameter)).await?;
    if state.tensors[0].1.iter().all(|x| *x == 0.0) {
        return Err("the state is zero after a step".into());
    }
    Ok(None)
}

fn expect_refused(
    what: &str,
    found: Result<usize, Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let Err(error) = found else { return Err(format!("{what} of a destroyed buffer succeeded").into()) };
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(ErrorKind::Device(_)) => Ok(()),
        _ => Err(format!("{what} of a destroyed buffer: {error}, expected that wgpu refuses it").into()),
    }
}

/// On a lost device, reads and checkpoints say that it is lost.
pub async fn lost_device() -> Tested {
    let gpu = Gpu::open().await?;
    let mut engine = engine(&gpu, Source::Host)?;
    engine.step(0)?;
    let before = engine.optimizer.read_parameter(engine.parameter(0));
    gpu.finish(before).await?;
    gpu.device.destroy();
    let values = engine.optimizer.read_parameter(engine.parameter(0)).await.map(|_| ());
    let checkpoint = engine.optimizer.checkpoint().await.map(|_| ());
    for found in [values, checkpoint] {
        match found {
            Err(error) if error.is_lost() => {}
            Err(error) => return Err(format!("{error}, expected that the device is lost").into()),
            Ok(()) => return Err("a read from a lost device succeeded".into()),
        }
    }
    Ok(None)
}
