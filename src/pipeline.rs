//! Pipelines and bind groups of the update kernel.

use std::collections::HashMap;
use std::num::NonZeroU64;

use crate::Diagnostics;
use crate::diagnostics::HISTOGRAM_BYTES;
use crate::format::StateAccess;
use crate::hyperparameters::Rule;
use crate::layout::{Chunk, Coefficients, Segment};
use crate::plan::{AfterUse, Launch};
use crate::scope::{Refusal, catch};
use crate::shader::{Access, Copies, GradientBinding, Variant};

/// The kernel in one variant.
#[derive(Clone, Debug)]
pub struct Pipeline {
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
}

/// Pipelines made so far. They are kept for the optimizer's life: some drivers leak dropped ones.
#[derive(Debug)]
pub struct Pipelines {
    rule: Rule,
    diagnostics: Diagnostics,
    after_use: AfterUse,
    lanes: u32,
    made: HashMap<Key, Pipeline>,
}

/// What of a pipeline depends on the launch: its variant, and the format of all tensors if they have the same.
type Key = (Variant, Option<u32>);

/// What a launch binds.
pub struct Bindings<'a> {
    /// Slot of coefficients, or those that the device has prepared; dynamic offset.
    pub coefficients: wgpu::BindingResource<'a>,
    /// Slot of segments; dynamic offset.
    pub segments: wgpu::BindingResource<'a>,
    /// The launch's part of the chunk table: the kernel takes its length from the binding.
    pub chunks: wgpu::BindingResource<'a>,
    /// Window of values.
    pub parameters: wgpu::BindingResource<'a>,
    /// Window of gradients; left out where they share the binding of values.
    pub gradients: wgpu::BindingResource<'a>,
    /// Page of state.
    pub state: wgpu::BindingResource<'a>,
    /// Counters of the diagnostics.
    pub histogram: Option<wgpu::BindingResource<'a>>,
    /// Window of copies.
    pub copies: Option<wgpu::BindingResource<'a>>,
}

impl Pipelines {
    /// None made yet.
    pub fn new(rule: Rule, diagnostics: Diagnostics, after_use: AfterUse, lanes: u32) -> Self {
        Self { rule, diagnostics, after_use, lanes, made: HashMap::new() }
    }

    fn key(&self, launch: &Launch) -> Key {
        let variant = Variant {
            rule: self.rule,
            access: launch.access,
            gradients: launch.binding,
            state: launch.state_access,
            copies: launch.writes_copies(),
            diagnostics: self.diagnostics,
        };
        (variant, launch.format)
    }

    /// The pipeline of a launch, made on first use.
    pub fn get(&mut self, device: &wgpu::Device, launch: &Launch) -> Result<&Pipeline, Refusal> {
        let key = self.key(launch);
        if !self.made.contains_key(&key) {
            let mut constants = vec![
                ("LANES", f64::from(self.lanes)),
                ("ZERO_GRADIENTS", f64::from(u8::from(self.after_use == AfterUse::Zero))),
            ];
            constants.extend(launch.format.map(|format| ("FORMAT", f64::from(format))));
            let pipeline = catch(device, || Pipeline::new(device, key.0, &constants))?;
            self.made.insert(key, pipeline);
        }
        Ok(&self.made[&key])
    }

    /// A pipeline that `get` has made.
    pub fn made(&self, launch: &Launch) -> &wgpu::ComputePipeline {
        &self.made[&self.key(launch)].pipeline
    }
}

impl Pipeline {
    fn new(device: &wgpu::Device, variant: Variant, constants: &[(&str, f64)]) -> Self {
        let label = format!("adamod.update.{}", variant.name());
        let storage = storage_entry;
        let word_bytes = match variant.access {
            Access::Vec4 => 16,
            Access::Vec2 => 8,
            Access::Scalar => 4,
        };
        let state_word_bytes = match variant.state {
            StateAccess::Words4 => 16,
            StateAccess::Words2 => 8,
            StateAccess::Words1 => 4,
        };
        let mut entries = vec![
            storage(0, true, true, size_of::<Coefficients>() as u64),
            storage(1, true, true, size_of::<Segment>() as u64),
            storage(2, true, false, size_of::<Chunk>() as u64),
            storage(3, false, false, word_bytes),
            storage(5, false, false, state_word_bytes),
        ];
        match variant.gradients {
            GradientBinding::Read => entries.push(storage(4, true, false, word_bytes)),
            GradientBinding::ReadWrite => entries.push(storage(4, false, false, word_bytes)),
            GradientBinding::Shared => {}
        }
        if variant.diagnostics == Diagnostics::LearningRates {
            entries.push(storage(6, false, false, HISTOGRAM_BYTES));
        }
        if variant.copies == Copies::On {
            entries.push(storage(7, false, false, 4));
        }
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &entries,
        });
        let pipeline = compute_pipeline(device, &label, &layout, variant.source(), "update", constants);
        Self { layout, pipeline }
    }

    /// The bind group of a launch.
    pub fn bind_group(
        &self,
        device: &wgpu::Device,
        bindings: Bindings<'_>,
        gradients: GradientBinding,
    ) -> wgpu::BindGroup {
        let entry = |binding, resource| wgpu::BindGroupEntry { binding, resource };
        let mut entries = vec![
            entry(0, bindings.coefficients),
            entry(1, bindings.segments),
            entry(2, bindings.chunks),
            entry(3, bindings.parameters),
            entry(5, bindings.state),
        ];
        if gradients != GradientBinding::Shared {
            entries.push(entry(4, bindings.gradients));
        }
        if let Some(histogram) = bindings.histogram {
            entries.push(entry(6, histogram));
        }
        if let Some(copies) = bindings.copies {
            entries.push(entry(7, copies));
        }
        device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("adamod.update"),
            layout: &self.layout,
            entries: &entries,
        })
    }
}

/// A storage buffer of at least `bytes` bytes in a layout.
pub fn storage_entry(
    binding: u32,
    read_only: bool,
    has_dynamic_offset: bool,
    bytes: u64,
) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset,
            min_binding_size: NonZeroU64::new(bytes),
        },
        count: None,
    }
}

/// A compute pipeline of one bind group.
pub fn compute_pipeline(
    device: &wgpu::Device,
    label: &str,
    layout: &wgpu::BindGroupLayout,
    source: String,
    entry_point: &str,
    constants: &[(&str, f64)],
) -> wgpu::ComputePipeline {
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(label),
        bind_group_layouts: &[Some(layout)],
        immediate_size: 0,
    });
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some(entry_point),
        // No kernel reads workgroup memory that it has not written. Where a driver cannot zero it, one lane does, word by word: half
        // of the instructions of the kernel for 8-bit state.
        compilation_options: wgpu::PipelineCompilationOptions {
            constants,
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    })
}
