//! Steps of several optimizers of one loss.

use super::device_steps::DeviceSteps;
use super::registry::Selection;
use super::step::{Part, Step};
use super::{Optimizer, begin_pass};
use crate::error::{Error, ErrorKind, JointError};
use crate::kernels::pipeline::Kernel;

/// A step of several optimizers of one loss, with one norm, one loss scale and one decision to skip.
///
/// The norm is over the gradients of all of them, with the bits of one optimizer that has all the parameters. The first optimizer decides:
/// its loss scale, its multiplier and its counts of steps hold for all, and are copied to the others' control buffers on the device. So the
/// engine reads the loss scale from any of them, and writes the multiplier to the first.
///
/// All optimizers need devices of one [`wgpu::Instance`], since wgpu tells devices of others apart only by chance, and
/// [`Control::Device`](crate::Control::Device) with equal settings. Their groups, formats, seeds and diagnostics may
/// differ.
///
/// ```
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// use adamod::{AdaMod, Adam, Control, DeviceControl, JointStep, LossScale, Optimizer, Options, Step};
/// # use adamod::{Parameter, View, Views};
///
/// # let (device, queue) = doc::gpu();
/// let control = DeviceControl::new().with_max_norm(1.0).with_loss_scale(LossScale::DYNAMIC);
/// let options = Options::new().with_control(Control::Device(control));
/// let mut encoder = Optimizer::new(&device, &queue, options.clone().with_label("encoder"))?;
/// let mut decoder = Optimizer::new(&device, &queue, options.with_label("decoder"))?;
/// # let buffer = doc::buffer(&device, 8192);
/// # let group = encoder.add_group(AdaMod::new())?;
/// # let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 4096));
/// # encoder.add_parameter(group, Parameter::new("weight", 1024).with_views(views))?;
/// // A gradient of infinity in one of them: neither takes the step.
/// queue.write_buffer(&buffer, 4096, &f32::INFINITY.to_le_bytes());
/// JointStep::new(&mut encoder, Step::all()).with(&mut decoder, Step::all()).submit()?;
/// assert_eq!(decoder.read_progress().wait()?, encoder.read_progress().wait()?);
/// assert_eq!(decoder.read_progress().wait()?.skipped, 1);
/// # Ok::<(), adamod::Error>(())
/// ```
///
/// # Half a step
///
/// With [`Step::norm`] for all of them, the norm of this device's gradients is in the first optimizer's control buffer. The engine reduces
/// it over its devices, writes it there, and records [`Step::after_norm`] for all of them.
#[derive(Debug)]
#[must_use = "a joint step does nothing unless it is encoded or submitted"]
pub struct JointStep<'a> {
    members: Vec<(&'a mut Optimizer, Step<'a>)>,
}

impl<'a> JointStep<'a> {
    /// A joint step in which this optimizer decides.
    pub fn new(first: &'a mut Optimizer, step: Step<'a>) -> Self {
        Self { members: vec![(first, step)] }
    }

    /// Adds an optimizer.
    pub fn with(mut self, optimizer: &'a mut Optimizer, step: Step<'a>) -> Self {
        self.members.push((optimizer, step));
        self
    }

    /// Records the step into an encoder, in a compute pass of its own.
    ///
    /// # Errors
    /// As [`Optimizer::encode`] for each optimizer, and with [`ErrorKind::Joint`] if one of them cannot take part. Nothing was recorded
    /// then, and no step count has advanced.
    pub fn encode(self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        let label = self.members[0].0.gpu.name("update");
        self.encode_in_pass(&mut begin_pass(encoder, &label))
    }

    /// Records the step into a compute pass of the caller's. Sets the pipeline and bind group 0.
    ///
    /// # Errors
    /// As [`JointStep::encode`].
    pub fn encode_in_pass(mut self, pass: &mut wgpu::ComputePass<'_>) -> Result<(), Error> {
        self.record(Some(pass)).map(|selections| self.advance(&selections))
    }

    /// Records the step into an encoder of its own and submits it.
    ///
    /// # Errors
    /// As [`JointStep::encode`], and if the submit fails. No step count has advanced then.
    pub fn submit(mut self) -> Result<wgpu::SubmissionIndex, Error> {
        let gpu = self.members[0].0.gpu.clone();
        let (commands, selections) = gpu.catch(|| {
            let mut encoder = gpu.encoder("step");
            let selections = self.record(Some(&mut begin_pass(&mut encoder, &gpu.name("update"))))?;
            Ok::<_, Error>((encoder.finish(), selections))
        })??;
        let submission = gpu.submit(commands)?;
        self.advance(&selections);
        Ok(submission)
    }

    /// Allocates and compiles what the step needs, as [`Optimizer::warm_up`].
    ///
    /// # Errors
    /// As [`JointStep::encode`].
    pub fn warm_up(mut self) -> Result<(), Error> {
        self.record(None).map(drop)
    }

    fn record(&mut self, pass: Option<&mut wgpu::ComputePass<'_>>) -> Result<Vec<Selection>, Error> {
        self.check()?;
        let part = self.members[0].1.part;
        let uses_norm = self.members[0].0.recorder.source().device().is_some_and(DeviceSteps::uses_norm);
        let parts: &[Part] = match part {
            Part::Whole if uses_norm => &[Part::Norm, Part::AfterJointNorm],
            Part::Whole => &[Part::AfterJointNorm],
            Part::Norm => &[Part::Norm],
            Part::AfterNorm | Part::AfterJointNorm => &[Part::AfterNorm],
        };
        let prepared = self.prepare(parts);
        if let (Ok(_), Some(pass)) = (&prepared, pass) {
            for &part in parts {
                // Sums are joined once all are complete; the others follow before anything is decided.
                if part != Part::Norm {
                    self.record_joint(pass, Kernel::Follow);
                }
                for (optimizer, _) in &mut self.members {
                    optimizer.recorder.record(pass, part);
                }
                if part == Part::Norm {
                    self.record_joint(pass, Kernel::Join);
                }
            }
        }
        for (optimizer, _) in &mut self.members {
            optimizer.recorder.finish();
        }
        prepared
    }

    /// Checks that all optimizers can follow the first one.
    fn check(&self) -> Result<(), Error> {
        let (first, first_step) = &self.members[0];
        let settings_of = |optimizer: &Optimizer| {
            let steps = optimizer.recorder.source().device()?;
            Some((*steps.settings(), steps.uses_norm()))
        };
        let expected = settings_of(first);
        for (optimizer, step) in &self.members {
            let found = settings_of(optimizer);
            let error = match (found, expected) {
                _ if optimizer.gpu.device != first.gpu.device => JointError::Device,
                (None, _) | (_, None) => JointError::Host,
                (Some(found), Some(expected)) if found != expected => {
                    JointError::Control { found: Box::new(found.0), expected: Box::new(expected.0) }
                }
                _ if step.part != first_step.part => JointError::Half,
                _ => continue,
            };
            return Err(ErrorKind::Joint { optimizer: optimizer.options.label.clone(), error }.into());
        }
        Ok(())
    }

    fn prepare(&mut self, parts: &[Part]) -> Result<Vec<Selection>, Error> {
        let mut first_control = None;
        let mut selections = Vec::with_capacity(self.members.len());
        for (optimizer, step) in &mut self.members {
            selections.push(optimizer.prepare(step, parts)?);
            let (pipelines, source) = optimizer.recorder.pipelines_and_source();
            let Some(steps) = source.device_mut() else { continue };
            match &first_control {
                None => first_control = Some(steps.control().clone()),
                Some(first) => steps.follow(pipelines, first)?,
            }
        }
        Ok(selections)
    }

    /// Records a kernel for each optimizer but the first.
    fn record_joint(&self, pass: &mut wgpu::ComputePass<'_>, kernel: Kernel) {
        for (optimizer, _) in &self.members[1..] {
            optimizer.recorder.record_joint(pass, kernel);
        }
    }

    fn advance(&mut self, selections: &[Selection]) {
        for ((optimizer, step), selection) in self.members.iter_mut().zip(selections) {
            optimizer.advance(step, selection);
        }
    }
}
