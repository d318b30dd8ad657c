//! The kernels: from rows of Gaussians to a picture, to the loss, and back to gradients of the rows.

use adamod::wgpu;

use crate::gpu::{Gpu, Kernel, Launch, whole, workgroups};
use crate::image::Image;
use crate::refine::Refinement;
use crate::splat::{ROW_LEN, Row};

/// Gaussians that one dispatch has workgroups for.
pub const MOST_SPLATS: usize = 65_535;
/// Pixels along the side of a tile of forward.wgsl.
const TILE_PIXELS: usize = 8;
/// Tiles that one dispatch has workgroups for.
const MOST_TILES: usize = 65_535;

/// What all Gaussians of a picture share.
pub struct Renderer {
    gpu: Gpu,
    size: [usize; 2],
    picture: wgpu::Buffer,
    target: wgpu::Buffer,
    /// What is rendered, minus the target: a vec4 for each pixel.
    pub errors: wgpu::Buffer,
    /// The slot of the next loss. The loss kernel advances it.
    pub step: wgpu::Buffer,
    /// The mean squared error of each step.
    pub losses: wgpu::Buffer,
    prepare: Kernel,
    forward: Kernel,
    loss: Kernel,
    backward: Kernel,
    move_rows: Kernel,
}

/// A number of Gaussians, with what is computed from them.
pub struct Scene {
    pub count: usize,
    /// A [`Row`] for each.
    pub rows: wgpu::Buffer,
    /// A [`Row`] of gradients for each.
    pub gradients: wgpu::Buffer,
    /// The length of the position's gradient, summed over the steps, for each.
    pub scores: wgpu::Buffer,
    launches: [Launch; 4],
}

impl Renderer {
    /// Uploads a picture and compiles the kernels. There are slots for `steps` losses.
    ///
    /// # Errors
    /// If the picture is empty or has more tiles than a dispatch has workgroups.
    pub fn new(gpu: &Gpu, image: &Image, steps: usize) -> Result<Self, String> {
        let [width, height] = image.size;
        let tiles = tiles(image.size);
        if tiles == 0 || tiles > MOST_TILES {
            return Err(format!(
                "expected a picture of 1 to {MOST_TILES} tiles of 8 x 8 pixels, got {width} x {height} pixels"
            ));
        }
        let shared = include_str!("splat.wgsl");
        let kernel = |label: &str, source: &str| gpu.kernel(label, &format!("{shared}\n{source}"));
        let target: Vec<[f32; 4]> = image.pixels.iter().map(|&[r, g, b]| [r, g, b, 0.0]).collect();
        Ok(Self {
            gpu: gpu.clone(),
            size: image.size,
            picture: gpu.uniform("splats.picture", &[width as u32, height as u32]),
            target: gpu.filled("splats.target", &target),
            errors: gpu.buffer("splats.errors", 4 * target.len()),
            step: gpu.buffer("splats.step", 1),
            losses: gpu.buffer("splats.losses", steps),
            prepare: kernel("splats.prepare", include_str!("prepare.wgsl")),
            forward: kernel("splats.forward", include_str!("forward.wgsl")),
            loss: kernel("splats.loss", include_str!("loss.wgsl")),
            backward: kernel("splats.backward", include_str!("backward.wgsl")),
            move_rows: kernel("splats.move_rows", include_str!("move_rows.wgsl")),
        })
    }

    /// These Gaussians.
    pub fn scene(&self, rows: &[Row]) -> Scene {
        let scene = self.empty_scene(rows.len());
        self.gpu.write(&scene.rows, rows);
        scene
    }

    /// The Gaussians after a refinement, and the launch that moves the rows there. `parents` are those of the refinement, on the device.
    pub fn refined(&self, old: &Scene, refinement: &Refinement, parents: &wgpu::Buffer) -> (Scene, Launch) {
        let new = self.empty_scene(refinement.parents.len());
        let sides = self.gpu.filled("splats.sides", &refinement.sides);
        let bindings = [whole(parents), whole(&sides), whole(&old.rows), whole(&new.rows)];
        let launch = self.gpu.launch(&self.move_rows, bindings, workgroups(new.count));
        (new, launch)
    }

    fn empty_scene(&self, count: usize) -> Scene {
        // `struct Splat` of splat.wgsl.
        const SPLAT_LEN: usize = 12;
        let gpu = &self.gpu;
        let rows = gpu.buffer("splats.rows", count * ROW_LEN);
        let gradients = gpu.buffer("splats.gradients", count * ROW_LEN);
        let scores = gpu.buffer("splats.scores", count);
        let splats = gpu.buffer("splats.splats", count * SPLAT_LEN);
        let (picture, errors) = (whole(&self.picture), whole(&self.errors));
        let prepare = [whole(&rows), whole(&splats)];
        let forward = [picture.clone(), whole(&splats), whole(&self.target), errors.clone()];
        let loss = [whole(&self.step), errors.clone(), whole(&self.losses)];
        let backward = [picture, whole(&rows), whole(&splats), errors, whole(&gradients), whole(&scores)];
        let launches = [
            gpu.launch(&self.prepare, prepare, workgroups(count)),
            gpu.launch(&self.forward, forward, tiles(self.size) as u32),
            gpu.launch(&self.loss, loss, 1),
            gpu.launch(&self.backward, backward, count as u32),
        ];
        Scene { count, rows, gradients, scores, launches }
    }
}

impl Scene {
    /// Records the forward pass, the loss and the backward pass.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for launch in &self.launches {
            launch.record(&mut pass);
        }
    }
}

/// Tiles that cover a picture.
fn tiles(size: [usize; 2]) -> usize {
    size[0].div_ceil(TILE_PIXELS) * size[1].div_ceil(TILE_PIXELS)
}
