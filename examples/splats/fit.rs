//! Runs: a picture is fitted with Gaussians that are dropped and split while the optimizer goes on.

use std::error::Error;

use adamod::{
    AdaMod, Adam, GroupId, Hyperparameters, Optimizer, Options, Parameter, ParameterId, Remap, Step, View,
    Views, schedule, wgpu,
};
use clap::ValueEnum;

use crate::gpu::Gpu;
use crate::image::Image;
use crate::refine::Refinement;
use crate::render::{Renderer, Scene};
use crate::splat::{RATES, ROW_LEN, Row, scattered};

/// Steps between refinements.
pub const REFINE_EVERY: usize = 100;
/// Refinements end after this part of a run.
const REFINED_PART: f64 = 0.7;
/// A run starts with this part of its Gaussians.
const INITIAL_PART: f64 = 0.25;
/// All learning rates fall to this part of their start.
const FINAL_RATE: f64 = 0.1;
/// Steps that are submitted together.
const STEPS_A_SUBMIT: usize = 20;

/// The update rule of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rule {
    Adam,
    #[value(name = "adamod")]
    AdaMod,
}

/// What a refinement does with the optimizer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Refined {
    /// It follows its row, and both halves of a split row have their parent's
    Follows,
    /// It follows its row, and the halves of a split row start fresh
    FreshHalves,
    /// All of it starts again, as with a new optimizer
    Reset,
}

/// What distinguishes one run from another.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub rule: Rule,
    /// Factor of all learning rates.
    pub rate: f64,
    /// The decay rate of the second moment.
    pub beta2: f64,
    pub refined: Refined,
    /// Determines where the first Gaussians are.
    pub seed: u64,
}

/// The results of a run.
pub struct Outcome {
    /// Peak signal-to-noise ratio of every step, in dB.
    pub psnr: Vec<f64>,
    /// The picture at the steps that were asked for.
    pub frames: Vec<Image>,
    /// Gaussians at the end.
    pub count: usize,
}

/// What all runs share.
pub struct Fitter {
    gpu: Gpu,
    image: Image,
    renderer: Renderer,
    steps: usize,
    count: usize,
}

/// A run in progress.
struct Session<'a> {
    fitter: &'a Fitter,
    run: Run,
    scene: Scene,
    optimizer: Optimizer,
    group: GroupId,
    parameter: ParameterId,
}

impl Rule {
    /// Hyperparameters whose learning rate is a factor of the columns' own.
    fn hyperparameters(self, rate: f64, beta2: f64) -> Hyperparameters {
        /// That of 3D Gaussian Splatting: far below the gradients of a mean over all pixels, which are small.
        const EPSILON: f64 = 1e-15;
        /// The bound rises within 100 steps.
        const BETA3: f64 = 0.99;
        let rule: adamod::Rule = match self {
            Self::Adam => Adam::new().with_betas([0.9, beta2]).with_epsilon(EPSILON).into(),
            Self::AdaMod => AdaMod::new().with_betas([0.9, beta2, BETA3]).with_epsilon(EPSILON).into(),
        };
        Hyperparameters::from(rule).with_learning_rate(rate)
    }
}

impl Fitter {
    /// Prepares runs of `steps` steps that end with `count` Gaussians.
    pub fn new(gpu: &Gpu, image: Image, steps: usize, count: usize) -> Result<Self, String> {
        let renderer = Renderer::new(gpu, &image, steps)?;
        Ok(Self { gpu: gpu.clone(), image, renderer, steps, count })
    }

    /// Fits the picture. Keeps it as it is at the steps of `frames`, and calls `on_submit` with the number of steps that have just run.
    pub async fn run(
        &self,
        run: &Run,
        frames: &[usize],
        mut on_submit: impl FnMut(u64),
    ) -> Result<Outcome, Box<dyn Error>> {
        self.gpu.write(&self.renderer.step, &[0_u32]);
        let mut session = Session::new(self, run)?;
        let mut outcome = Outcome { psnr: Vec::new(), frames: Vec::new(), count: 0 };
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut recorded = 0;
        for step in 1..=self.steps {
            session.record(&mut encoder, step)?;
            recorded += 1;
            let target = self.refined_count(step);
            let is_shown = frames.contains(&step);
            if target.is_none() && !is_shown && step < self.steps && recorded < STEPS_A_SUBMIT {
                continue;
            }
            let next = self.gpu.device.create_command_encoder(&Default::default());
            let submission = self.gpu.submit(std::mem::replace(&mut encoder, next).finish());
            self.gpu.wait(submission).await?;
            on_submit(recorded as u64);
            recorded = 0;
            if is_shown {
                outcome.frames.push(self.rendered().await?);
            }
            if let Some(target) = target {
                session.refine(&mut encoder, target).await?;
            }
        }
        let losses: Vec<f32> = self.gpu.read(&self.renderer.losses).await?;
        outcome.psnr = losses.iter().map(|&loss| -10.0 * f64::from(loss).log10()).collect();
        outcome.count = session.scene.count;
        Ok(outcome)
    }

    /// The number of Gaussians after a step with a refinement: it rises in a line.
    fn refined_count(&self, step: usize) -> Option<usize> {
        let refinements = self.refinements();
        let refinement = step / REFINE_EVERY;
        (step.is_multiple_of(REFINE_EVERY) && refinement <= refinements).then(|| {
            let first = self.initial_count();
            first + (self.count - first) * refinement / refinements
        })
    }

    /// Refinements of a run.
    pub fn refinements(&self) -> usize {
        (REFINED_PART * self.steps as f64) as usize / REFINE_EVERY
    }

    /// Gaussians at the start of a run.
    fn initial_count(&self) -> usize {
        if self.refinements() == 0 { self.count } else { (INITIAL_PART * self.count as f64).ceil() as usize }
    }

    /// The picture of the last forward pass, whose colors may lie outside of 0 to 1.
    async fn rendered(&self) -> Result<Image, Box<dyn Error>> {
        let errors: Vec<[f32; 4]> = self.gpu.read(&self.renderer.errors).await?;
        let pixels = self.image.pixels.iter().zip(&errors);
        let pixels = pixels.map(|(target, error)| [0, 1, 2].map(|c| target[c] + error[c])).collect();
        Ok(Image { size: self.image.size, pixels })
    }
}

impl<'a> Session<'a> {
    fn new(fitter: &'a Fitter, run: &Run) -> Result<Self, Box<dyn Error>> {
        let scene = fitter.renderer.scene(&scattered(&fitter.image, fitter.initial_count(), run.seed));
        let mut optimizer = Optimizer::new(&fitter.gpu.device, &fitter.gpu.queue, Options::new())?;
        let group = optimizer.add_group(run.rule.hyperparameters(run.rate, run.beta2))?;
        let parameter = add_rows(&mut optimizer, group, &scene)?;
        Ok(Self { fitter, run: *run, scene, optimizer, group, parameter })
    }

    /// Records a training step: forward, loss, backward, update.
    fn record(&mut self, encoder: &mut wgpu::CommandEncoder, step: usize) -> Result<(), adamod::Error> {
        self.scene.record(encoder);
        let rate = self.run.rate * schedule::cosine(1.0, FINAL_RATE, self.fitter.steps as u64, step as u64);
        self.optimizer.set_learning_rate(self.group, rate)?;
        self.optimizer.encode(encoder, &Step::all())
    }

    /// Records that rows are dropped and split until there are `target`. Only the choice is made on the host, from a score and a row for each
    /// Gaussian; the rows and the state move on the device.
    async fn refine(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        target: usize,
    ) -> Result<(), Box<dyn Error>> {
        let gpu = &self.fitter.gpu;
        let rows: Vec<Row> = gpu.read(&self.scene.rows).await?;
        let scores: Vec<f32> = gpu.read(&self.scene.scores).await?;
        let refinement = Refinement::new(&rows, &scores, self.fitter.image.size, target);
        let parents = gpu.filled("splats.parents", &refinement.parents);
        let (scene, launch) = self.fitter.renderer.refined(&self.scene, &refinement, &parents);
        launch.record(&mut encoder.begin_compute_pass(&Default::default()));

        let (rows, row_len) = (scene.count as u64, ROW_LEN as u64);
        let remap = |source| Remap::new(row_len, rows, View::new(source, 0)).with_views(views(&scene));
        match self.run.refined {
            Refined::Follows => self.optimizer.remap(encoder, self.parameter, &remap(&parents))?,
            Refined::FreshHalves => {
                let sources = gpu.filled("splats.sources", &refinement.fresh_halves());
                self.optimizer.remap(encoder, self.parameter, &remap(&sources))?;
            }
            Refined::Reset => {
                self.optimizer.remove_parameter(self.parameter)?;
                self.parameter = add_rows(&mut self.optimizer, self.group, &scene)?;
            }
        }
        self.scene = scene;
        Ok(())
    }
}

/// Registers the rows of a scene as one parameter whose columns have rates of their own.
fn add_rows(optimizer: &mut Optimizer, group: GroupId, scene: &Scene) -> Result<ParameterId, adamod::Error> {
    let len = (scene.count * ROW_LEN) as u64;
    let parameter = optimizer.add_parameter(group, Parameter::new("splats", len).with_views(views(scene)))?;
    optimizer.set_column_factors(parameter, bytemuck::cast_slice(&[RATES]))?;
    Ok(parameter)
}

fn views(scene: &Scene) -> Views<'_> {
    Views::new(View::new(&scene.rows, 0), View::new(&scene.gradients, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 300;
    const COUNT: usize = 40;

    fn fitter(gpu: &Gpu) -> Fitter {
        let image = Image::drawn([32, 24], crate::landscape::color);
        Fitter::new(gpu, image, STEPS, COUNT).unwrap()
    }

    fn run(refined: Refined) -> Run {
        Run { rule: Rule::AdaMod, rate: 1.0, beta2: 0.99, refined, seed: 1 }
    }

    /// Rows of a tensor.
    fn rows_of(elements: &[f32]) -> Vec<&[f32]> {
        elements.chunks(ROW_LEN).collect()
    }

    /// Trains, refines once, and compares rows and state with those before, for each way to refine.
    #[test]
    fn rows_and_state_follow_a_refinement() {
        const TARGET: usize = 15;
        let gpu = pollster::block_on(Gpu::open()).unwrap();
        let fitter = fitter(&gpu);
        for refined in [Refined::Follows, Refined::FreshHalves, Refined::Reset] {
            let mut session = Session::new(&fitter, &run(refined)).unwrap();
            let submit = |encoder: wgpu::CommandEncoder| _ = gpu.queue.submit([encoder.finish()]);
            let encoder = || gpu.device.create_command_encoder(&Default::default());
            let read_rows =
                |scene: &Scene| -> Vec<Row> { pollster::block_on(gpu.read(&scene.rows)).unwrap() };

            let mut steps = encoder();
            (1..=3).for_each(|step| session.record(&mut steps, step).unwrap());
            submit(steps);
            // A row that is dropped.
            let mut old_rows = read_rows(&session.scene);
            old_rows[4].opacity = -20.0;
            gpu.write(&session.scene.rows, &old_rows);
            let scores: Vec<f32> = pollster::block_on(gpu.read(&session.scene.scores)).unwrap();
            let old_state = session.optimizer.read_state(session.parameter).wait().unwrap();
            let expected = Refinement::new(&old_rows, &scores, fitter.image.size, TARGET);
            assert_eq!(expected.parents.len(), TARGET);
            assert!(!expected.parents.contains(&4));
            assert_eq!(expected.sides.iter().filter(|side| **side != 0.0).count(), 12);

            let mut refine = encoder();
            pollster::block_on(session.refine(&mut refine, TARGET)).unwrap();
            submit(refine);
            let new_rows = read_rows(&session.scene);
            for (place, (&parent, &side)) in expected.parents.iter().zip(&expected.sides).enumerate() {
                check_row(&old_rows[parent as usize], side, &new_rows[place]);
            }

            let step = session.optimizer.step_count(session.parameter);
            if refined == Refined::Reset {
                assert_eq!(step, Some(0));
            } else {
                assert_eq!(step, Some(3));
                let new_state = session.optimizer.read_state(session.parameter).wait().unwrap();
                for name in ["exp_avg", "exp_avg_sq", "exp_avg_lr"] {
                    let [old, new] =
                        [&old_state, &new_state].map(|state| rows_of(state.tensor(name).unwrap()));
                    for (place, (&parent, &side)) in expected.parents.iter().zip(&expected.sides).enumerate()
                    {
                        let inherits = refined == Refined::Follows || side == 0.0;
                        assert_eq!(new[place] == old[parent as usize], inherits, "{name} of row {place}");
                    }
                }
            }

            // The new rows train.
            let mut steps = encoder();
            session.record(&mut steps, 4).unwrap();
            submit(steps);
            let trained = read_rows(&session.scene);
            assert!(trained.iter().zip(&new_rows).all(|(trained, new)| trained.color != new.color));
        }
    }

    /// A row that moved has its bits. The two halves of a split one have its mass, its mean and its variance along the longer axis.
    fn check_row(old: &Row, side: f32, new: &Row) {
        if side == 0.0 {
            assert_eq!(new, old);
            return;
        }
        let is_close =
            |found: f32, expected: f32| assert!((found - expected).abs() <= 1e-4, "{found}, not {expected}");
        let longer = usize::from(old.log_scale[0] <= old.log_scale[1]);
        let angle = old.angle + longer as f32 * std::f32::consts::FRAC_PI_2;
        let [dx, dy] = [0, 1].map(|axis| new.position[axis] - old.position[axis]);
        let (along, across) = (dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin());
        let [old_scale, new_scale] = [old, new].map(|row| row.log_scale[longer].exp());
        is_close(across, 0.0);
        assert!(side * along > 0.0);
        is_close((along.powi(2) + new_scale.powi(2)) / old_scale.powi(2), 1.0);
        for c in 0..3 {
            is_close(2.0 * new.color[c] * new_scale, old.color[c] * old_scale);
        }
        assert_eq!((new.angle, new.opacity), (old.angle, old.opacity));
        assert_eq!(new.log_scale[1 - longer], old.log_scale[1 - longer]);
    }

    #[test]
    fn a_run_grows_to_its_gaussians_and_is_repeated_bit_for_bit() {
        let gpu = pollster::block_on(Gpu::open()).unwrap();
        let fitter = fitter(&gpu);
        let counts: Vec<_> = (1..=STEPS).filter_map(|step| fitter.refined_count(step)).collect();
        assert_eq!((fitter.initial_count(), counts), (10, vec![25, 40]));

        let mut submitted = 0;
        let frames = [1, 150, STEPS];
        let mut fit =
            |run: &Run| pollster::block_on(fitter.run(run, &frames, |steps| submitted += steps)).unwrap();
        let [first, again] = [run(Refined::Follows), run(Refined::Follows)].map(|run| fit(&run));
        let other = fit(&run(Refined::Reset));
        assert_eq!(submitted, 3 * STEPS as u64);
        assert_eq!(first.count, 40);
        assert_eq!(first.psnr.len(), STEPS);
        assert_eq!(first.psnr, again.psnr);
        assert_eq!(first.frames, again.frames);
        // Alike until the first refinement, apart after it.
        assert_eq!(first.psnr[..=REFINE_EVERY], other.psnr[..=REFINE_EVERY]);
        assert_ne!(first.psnr[REFINE_EVERY + 1..], other.psnr[REFINE_EVERY + 1..]);

        // The picture has the loss.
        let squares = first.frames[2].pixels.iter().flatten().zip(fitter.image.pixels.iter().flatten());
        let mean = squares.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / (3 * 32 * 24) as f64;
        assert!((first.psnr[STEPS - 1] + 10.0 * mean.log10()).abs() < 1e-4);
        assert!(first.psnr[STEPS - 1] > first.psnr[0] + 5.0, "{:?}", first.psnr);
    }

    #[test]
    fn a_picture_without_pixels_is_refused() {
        let gpu = pollster::block_on(Gpu::open()).unwrap();
        for size in [[0, 5], [8 * 65_536, 1]] {
            let image = Image { size, pixels: vec![[0.0; 3]; size[0] * size[1]] };
            assert!(Renderer::new(&gpu, &image, 1).is_err());
        }
    }
}
