//! A Vulkan driver as a compiler: SPIR-V in, assembly and statistics out.

use std::ffi::CStr;

use anyhow::Context as _;
use ash::vk;

/// Bindings of the kernel: `src/kernels/bindings.rs`. Coefficients and segments have dynamic offsets.
const BINDINGS: u32 = 13;
const DYNAMIC_BINDINGS: u32 = 2;

/// The first device of the first driver. It lives as long as the process.
pub struct Driver {
    /// Device, driver and its version.
    pub name: String,
    device: ash::Device,
    executables: ash::khr::pipeline_executable_properties::Device,
    layout: vk::PipelineLayout,
    _entry: ash::Entry,
}

/// What the driver tells of a compiled kernel.
pub struct Compiled {
    pub assembly: String,
    statistics: Vec<(String, u64)>,
}

impl Compiled {
    /// A statistic by the driver's name for it.
    pub fn statistic(&self, name: &str) -> u64 {
        self.statistics.iter().find(|(of, _)| of == name).map_or(0, |(_, value)| *value)
    }
}

fn text(characters: &[std::ffi::c_char]) -> String {
    let bytes = characters.iter().map(|c| c.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    String::from_utf8(bytes).unwrap_or_default()
}

impl Driver {
    /// Opens the driver that `VK_DRIVER_FILES` names, with the features that wgpu asks for where they change code.
    pub fn open() -> anyhow::Result<Self> {
        // SAFETY: all handles come from the calls above their use, nothing is destroyed, and all structures that pointers lead to live
        // until the call returns.
        unsafe {
            let entry = ash::Entry::load().context("expected a Vulkan loader")?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let instance = entry
                .create_instance(&vk::InstanceCreateInfo::default().application_info(&application), None)?;
            let adapter = *instance.enumerate_physical_devices()?.first().context("expected a device")?;
            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(adapter, &mut properties);
            let device_name = text(&properties.properties.device_name);
            let name = format!("{device_name}, {} {}", text(&driver.driver_name), text(&driver.driver_info));

            let mut executables = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
                .pipeline_executable_info(true);
            let mut robustness =
                vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
            let features = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
            let priorities = [1.0];
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&priorities)];
            let extensions = [
                ash::khr::pipeline_executable_properties::NAME.as_ptr(),
                ash::ext::robustness2::NAME.as_ptr(),
            ];
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&extensions)
                .enabled_features(&features)
                .push_next(&mut executables)
                .push_next(&mut robustness);
            let device = instance.create_device(adapter, &info, None)?;
            let executables = ash::khr::pipeline_executable_properties::Device::new(&instance, &device);

            let bindings: Vec<_> = (0..BINDINGS)
                .map(|binding| {
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(binding)
                        .descriptor_type(match binding < DYNAMIC_BINDINGS {
                            true => vk::DescriptorType::STORAGE_BUFFER_DYNAMIC,
                            false => vk::DescriptorType::STORAGE_BUFFER,
                        })
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE)
                })
                .collect();
            let set = device.create_descriptor_set_layout(
                &vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings),
                None,
            )?;
            let sets = [set];
            let layout = device
                .create_pipeline_layout(&vk::PipelineLayoutCreateInfo::default().set_layouts(&sets), None)?;
            Ok(Self { name, device, executables, layout, _entry: entry })
        }
    }

    /// Compiles the entry point `update` of a module.
    pub fn compile(&self, spirv: &[u32]) -> anyhow::Result<Compiled> {
        const ENTRY_POINT: &CStr = c"update";
        // SAFETY: as in `open`. The driver writes as many bytes of a representation as it asked for.
        unsafe {
            let module =
                self.device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(spirv), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(ENTRY_POINT);
            let info = vk::ComputePipelineCreateInfo::default()
                .flags(
                    vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                        | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
                )
                .stage(stage)
                .layout(self.layout);
            let pipelines = self
                .device
                .create_compute_pipelines(vk::PipelineCache::null(), &[info], None)
                .map_err(|(_, error)| error)?;
            let executable = vk::PipelineExecutableInfoKHR::default().pipeline(pipelines[0]);
            let statistics = self
                .executables
                .get_pipeline_executable_statistics(&executable)?
                .iter()
                .map(|statistic| (text(&statistic.name), statistic.value.u64))
                .collect();
            // Twice: sizes, then the text.
            let call = self.executables.fp().get_pipeline_executable_internal_representations_khr;
            let mut count = 0;
            call(self.device.handle(), &executable, &mut count, std::ptr::null_mut()).result()?;
            let mut representations =
                vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            call(self.device.handle(), &executable, &mut count, representations.as_mut_ptr()).result()?;
            let mut texts: Vec<_> = representations.iter().map(|of| vec![0_u8; of.data_size]).collect();
            for (representation, text) in representations.iter_mut().zip(&mut texts) {
                representation.p_data = text.as_mut_ptr().cast();
            }
            call(self.device.handle(), &executable, &mut count, representations.as_mut_ptr()).result()?;
            let assembly = representations
                .iter()
                .zip(texts)
                .find(|(representation, _)| text(&representation.name).contains("Assembly"))
                .map(|(_, text)| text)
                .context("expected assembly among the driver's representations")?;
            let assembly = assembly.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Compiled { assembly: String::from_utf8(assembly.to_vec())?, statistics })
        }
    }
}
