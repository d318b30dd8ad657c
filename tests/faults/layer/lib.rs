//! A Vulkan layer that makes a device fail, and counts what is submitted. Built by the tests with `rustc`, loaded by Vulkan's
//! loader into their child processes.
//!
//! `$ADAMOD_FAULTS` is a file with one line, `KIND N`, which the layer reads again whenever it changes:
//!
//! - `lose_on_submit N`: the N-th submit from now on loses its device;
//! - `lose_on_query N`: the N-th wait or query of progress loses its device;
//! - `out_of_memory N`: the N-th call that can fail for lack of memory fails;
//! - `out_of_memory_from N`: that call and all later ones fail;
//! - `hang 0`: devices report no progress any more;
//! - `none 0`: no fault.
//!
//! The layer writes a line for every fault and every submit to the file `$ADAMOD_FAULTS.log`.
//!
//! See the Vulkan loader's LoaderLayerInterface.md for how a layer is found and linked.
#![allow(non_snake_case)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::mem::transmute;
use std::sync::{LazyLock, Mutex};

type Handle = *mut c_void;
type VkResult = i32;
type Function = Option<unsafe extern "system" fn()>;
type GetProcAddr = unsafe extern "system" fn(Handle, *const c_char) -> Function;

const SUCCESS: VkResult = 0;
const TIMEOUT: VkResult = 2;
const ERROR_OUT_OF_DEVICE_MEMORY: VkResult = -2;
const ERROR_INITIALIZATION_FAILED: VkResult = -3;
const ERROR_DEVICE_LOST: VkResult = -4;

const LOADER_INSTANCE_CREATE_INFO: i32 = 47;
const LOADER_DEVICE_CREATE_INFO: i32 = 48;
const LAYER_LINK_INFO: i32 = 0;

#[repr(C)]
pub struct NegotiateLayerInterface {
    structure_type: i32,
    next: *mut c_void,
    version: u32,
    get_instance_proc_addr: Option<GetProcAddr>,
    get_device_proc_addr: Option<GetProcAddr>,
    get_physical_device_proc_addr: Function,
}

/// `VkLayerInstanceCreateInfo` and `VkLayerDeviceCreateInfo`, as far as they are alike.
#[repr(C)]
struct CreateInfo {
    structure_type: i32,
    next: *mut CreateInfo,
    function: i32,
    link: *mut Link,
}

/// `VkLayerInstanceLink` and `VkLayerDeviceLink`.
#[repr(C)]
struct Link {
    next: *mut Link,
    get_instance_proc_addr: GetProcAddr,
    get_device_proc_addr: GetProcAddr,
}

#[repr(C)]
struct SubmitInfo {
    structure_type: i32,
    next: *const c_void,
    wait_count: u32,
    waits: *const u64,
    stages: *const u32,
    command_count: u32,
    commands: *const Handle,
    signal_count: u32,
    signals: *const u64,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    barriers: u32,
    dispatches: u32,
    copies: u32,
    fills: u32,
}

#[derive(Default)]
struct Device {
    get_proc_addr: Option<GetProcAddr>,
    is_lost: bool,
    /// The last values of semaphores before it began to hang.
    frozen: HashMap<u64, u64>,
}

#[derive(Default)]
struct State {
    instance_proc_addr: Option<GetProcAddr>,
    /// By dispatch key, which a device shares with its queues and command buffers.
    devices: HashMap<usize, Device>,
    commands: HashMap<usize, Counts>,
    order: String,
    kind: String,
    number: u64,
    seen: u64,
}

// SAFETY: its function pointers may be called from any thread.
unsafe impl Send for State {}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

/// The first word of every dispatchable handle points to its dispatch table.
unsafe fn key(handle: Handle) -> usize {
    unsafe { *handle.cast::<usize>() }
}

fn path() -> String {
    std::env::var("ADAMOD_FAULTS").unwrap_or_default()
}

fn log(line: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path() + ".log");
    if let Ok(mut file) = file {
        let _ = writeln!(file, "{line}");
    }
}

impl State {
    /// Reads the order, and returns whether an event of this kind is the one that fails.
    fn strikes(&mut self, kind: &str) -> bool {
        let order = std::fs::read_to_string(path()).unwrap_or_default();
        if order != self.order {
            let mut words = order.split_whitespace();
            self.kind = words.next().unwrap_or("none").to_owned();
            self.number = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            self.seen = 0;
            self.order = order;
        }
        let (is_mine, is_from) = match self.kind.strip_suffix("_from") {
            Some(stem) => (stem == kind, true),
            None => (self.kind == kind, false),
        };
        if !is_mine {
            return false;
        }
        self.seen += 1;
        let strikes = self.seen == self.number || (is_from && self.seen > self.number);
        if strikes {
            log(&format!("fault {} {}", self.kind, self.seen));
        }
        strikes
    }

    fn is_hanging(&mut self) -> bool {
        self.strikes("");
        self.kind == "hang"
    }
}

/// A function of a device in the next layer or the driver.
unsafe fn next(handle: Handle, name: &CStr) -> Function {
    let key = unsafe { key(handle) };
    let get_proc_addr = STATE.lock().unwrap().devices[&key].get_proc_addr.unwrap();
    // The call needs the device itself, and the handle may be a queue or a command buffer.
    let device = DEVICES.lock().unwrap()[&key] as Handle;
    unsafe { get_proc_addr(device, name.as_ptr()) }
}

/// The same function under either of two names: older drivers have it under that of its extension.
unsafe fn next_or(handle: Handle, name: &CStr, extension: &CStr) -> Function {
    unsafe { next(handle, name).or_else(|| next(handle, extension)) }
}

static DEVICES: LazyLock<Mutex<HashMap<usize, usize>>> = LazyLock::new(Mutex::default);

#[unsafe(no_mangle)]
pub unsafe extern "system" fn vkNegotiateLoaderLayerInterfaceVersion(
    interface: *mut NegotiateLayerInterface,
) -> VkResult {
    let interface = unsafe { &mut *interface };
    interface.version = interface.version.min(2);
    interface.get_instance_proc_addr = Some(get_instance_proc_addr);
    interface.get_device_proc_addr = Some(get_device_proc_addr);
    interface.get_physical_device_proc_addr = None;
    SUCCESS
}

unsafe extern "system" fn get_instance_proc_addr(instance: Handle, name: *const c_char) -> Function {
    let ours = hook(unsafe { CStr::from_ptr(name) });
    if ours.is_some() {
        return ours;
    }
    let following = STATE.lock().unwrap().instance_proc_addr?;
    unsafe { following(instance, name) }
}

unsafe extern "system" fn get_device_proc_addr(device: Handle, name: *const c_char) -> Function {
    let following = STATE.lock().unwrap().devices.get(&unsafe { key(device) })?.get_proc_addr?;
    // There is no hook for a function that the driver lacks.
    unsafe { following(device, name) }?;
    hook(unsafe { CStr::from_ptr(name) }).or_else(|| unsafe { following(device, name) })
}

/// Finds the loader's link in a chain of structures, and advances it to the next layer.
unsafe fn take_link(mut info: *mut CreateInfo, structure_type: i32) -> Option<&'static Link> {
    unsafe {
        while !info.is_null() {
            if (*info).structure_type == structure_type && (*info).function == LAYER_LINK_INFO {
                let link = (*info).link;
                (*info).link = (*link).next;
                return Some(&*link);
            }
            info = (*info).next;
        }
    }
    None
}

unsafe extern "system" fn create_instance(
    info: *const CreateInfo,
    allocator: *const c_void,
    instance: *mut Handle,
) -> VkResult {
    unsafe {
        let Some(link) = take_link((*info).next, LOADER_INSTANCE_CREATE_INFO) else {
            return ERROR_INITIALIZATION_FAILED;
        };
        let following = link.get_instance_proc_addr;
        STATE.lock().unwrap().instance_proc_addr = Some(following);
        let create: unsafe extern "system" fn(*const CreateInfo, *const c_void, *mut Handle) -> VkResult =
            transmute(following(std::ptr::null_mut(), c"vkCreateInstance".as_ptr()));
        create(info, allocator, instance)
    }
}

unsafe extern "system" fn create_device(
    physical: Handle,
    info: *const CreateInfo,
    allocator: *const c_void,
    device: *mut Handle,
) -> VkResult {
    unsafe {
        let Some(link) = take_link((*info).next, LOADER_DEVICE_CREATE_INFO) else {
            return ERROR_INITIALIZATION_FAILED;
        };
        let (instance_proc_addr, device_proc_addr) = (link.get_instance_proc_addr, link.get_device_proc_addr);
        type Create =
            unsafe extern "system" fn(Handle, *const CreateInfo, *const c_void, *mut Handle) -> VkResult;
        let create: Create = transmute(instance_proc_addr(std::ptr::null_mut(), c"vkCreateDevice".as_ptr()));
        let result = create(physical, info, allocator, device);
        if result == SUCCESS {
            let made = Device { get_proc_addr: Some(device_proc_addr), ..Device::default() };
            STATE.lock().unwrap().devices.insert(key(*device), made);
            DEVICES.lock().unwrap().insert(key(*device), *device as usize);
            log("device");
        }
        result
    }
}

unsafe extern "system" fn queue_submit(
    queue: Handle,
    count: u32,
    submits: *const SubmitInfo,
    fence: u64,
) -> VkResult {
    unsafe {
        {
            let mut state = STATE.lock().unwrap();
            if state.strikes("lose_on_submit") {
                state.devices.get_mut(&key(queue)).unwrap().is_lost = true;
            }
            if state.devices[&key(queue)].is_lost {
                return ERROR_DEVICE_LOST;
            }
            let mut total = Counts::default();
            let mut buffers = 0;
            for submit in 0..count as usize {
                let submit = &*submits.add(submit);
                buffers += submit.command_count;
                for command in 0..submit.command_count as usize {
                    let counts = state.commands.get(&(*submit.commands.add(command) as usize));
                    let counts = counts.copied().unwrap_or_default();
                    total.barriers += counts.barriers;
                    total.dispatches += counts.dispatches;
                    total.copies += counts.copies;
                    total.fills += counts.fills;
                }
            }
            let Counts { barriers, dispatches, copies, fills } = total;
            log(&format!("submit {buffers} {dispatches} {barriers} {copies} {fills}"));
        }
        let submit: unsafe extern "system" fn(Handle, u32, *const SubmitInfo, u64) -> VkResult =
            transmute(next(queue, c"vkQueueSubmit"));
        submit(queue, count, submits, fence)
    }
}

/// The result of a wait or a query if it has to be a wrong one.
unsafe fn query(device: Handle) -> Option<VkResult> {
    let mut state = STATE.lock().unwrap();
    let key = unsafe { key(device) };
    if state.strikes("lose_on_query") {
        state.devices.get_mut(&key).unwrap().is_lost = true;
    }
    if state.devices[&key].is_lost {
        return Some(ERROR_DEVICE_LOST);
    }
    state.is_hanging().then_some(TIMEOUT)
}

unsafe extern "system" fn wait_semaphores(device: Handle, info: *const c_void, timeout: u64) -> VkResult {
    unsafe {
        if let Some(answer) = query(device) {
            return answer;
        }
        let wait: unsafe extern "system" fn(Handle, *const c_void, u64) -> VkResult =
            transmute(next_or(device, c"vkWaitSemaphores", c"vkWaitSemaphoresKHR"));
        wait(device, info, timeout)
    }
}

unsafe extern "system" fn wait_for_fences(
    device: Handle,
    count: u32,
    fences: *const u64,
    all: u32,
    timeout: u64,
) -> VkResult {
    unsafe {
        if let Some(answer) = query(device) {
            return answer;
        }
        let wait: unsafe extern "system" fn(Handle, u32, *const u64, u32, u64) -> VkResult =
            transmute(next(device, c"vkWaitForFences"));
        wait(device, count, fences, all, timeout)
    }
}

unsafe extern "system" fn get_semaphore_counter_value(
    device: Handle,
    semaphore: u64,
    value: *mut u64,
) -> VkResult {
    unsafe {
        let answer = query(device);
        if answer == Some(ERROR_DEVICE_LOST) {
            return ERROR_DEVICE_LOST;
        }
        let get: unsafe extern "system" fn(Handle, u64, *mut u64) -> VkResult =
            transmute(next_or(device, c"vkGetSemaphoreCounterValue", c"vkGetSemaphoreCounterValueKHR"));
        let result = get(device, semaphore, value);
        let mut state = STATE.lock().unwrap();
        let frozen = &mut state.devices.get_mut(&key(device)).unwrap().frozen;
        if answer == Some(TIMEOUT) {
            // The work may be done already. The value from before the hang is returned.
            *value = *frozen.entry(semaphore).or_insert(0);
        } else {
            frozen.insert(semaphore, *value);
        }
        result
    }
}

unsafe extern "system" fn cmd_pipeline_barrier(
    commands: Handle,
    from: u32,
    to: u32,
    flags: u32,
    memory_count: u32,
    memory: *const c_void,
    buffer_count: u32,
    buffers: *const c_void,
    image_count: u32,
    images: *const c_void,
) {
    unsafe {
        count(commands, |counts| counts.barriers += 1);
        type Barrier = unsafe extern "system" fn(
            Handle,
            u32,
            u32,
            u32,
            u32,
            *const c_void,
            u32,
            *const c_void,
            u32,
            *const c_void,
        );
        let barrier: Barrier = transmute(next(commands, c"vkCmdPipelineBarrier"));
        barrier(commands, from, to, flags, memory_count, memory, buffer_count, buffers, image_count, images);
    }
}

unsafe extern "system" fn cmd_dispatch(commands: Handle, x: u32, y: u32, z: u32) {
    unsafe {
        count(commands, |counts| counts.dispatches += 1);
        let dispatch: unsafe extern "system" fn(Handle, u32, u32, u32) =
            transmute(next(commands, c"vkCmdDispatch"));
        dispatch(commands, x, y, z);
    }
}

unsafe extern "system" fn cmd_copy_buffer(
    commands: Handle,
    from: u64,
    to: u64,
    regions: u32,
    region: *const c_void,
) {
    unsafe {
        count(commands, |counts| counts.copies += 1);
        let copy: unsafe extern "system" fn(Handle, u64, u64, u32, *const c_void) =
            transmute(next(commands, c"vkCmdCopyBuffer"));
        copy(commands, from, to, regions, region);
    }
}

unsafe extern "system" fn cmd_fill_buffer(commands: Handle, buffer: u64, offset: u64, size: u64, data: u32) {
    unsafe {
        count(commands, |counts| counts.fills += 1);
        let fill: unsafe extern "system" fn(Handle, u64, u64, u64, u32) =
            transmute(next(commands, c"vkCmdFillBuffer"));
        fill(commands, buffer, offset, size, data);
    }
}

unsafe fn count(commands: Handle, add: impl FnOnce(&mut Counts)) {
    add(STATE.lock().unwrap().commands.entry(commands as usize).or_default());
}

unsafe extern "system" fn begin_command_buffer(commands: Handle, info: *const c_void) -> VkResult {
    unsafe {
        {
            let mut state = STATE.lock().unwrap();
            state.commands.insert(commands as usize, Counts::default());
            if state.strikes("out_of_memory") {
                return ERROR_OUT_OF_DEVICE_MEMORY;
            }
        }
        let begin: unsafe extern "system" fn(Handle, *const c_void) -> VkResult =
            transmute(next(commands, c"vkBeginCommandBuffer"));
        begin(commands, info)
    }
}

unsafe extern "system" fn create_compute_pipelines(
    device: Handle,
    cache: u64,
    count: u32,
    infos: *const c_void,
    allocator: *const c_void,
    pipelines: *mut u64,
) -> VkResult {
    unsafe {
        if STATE.lock().unwrap().strikes("out_of_memory") {
            for index in 0..count as usize {
                *pipelines.add(index) = 0;
            }
            return ERROR_OUT_OF_DEVICE_MEMORY;
        }
        type Create =
            unsafe extern "system" fn(Handle, u64, u32, *const c_void, *const c_void, *mut u64) -> VkResult;
        let create: Create = transmute(next(device, c"vkCreateComputePipelines"));
        create(device, cache, count, infos, allocator, pipelines)
    }
}

/// Functions of the form `f(device, info, out)`.
macro_rules! allocations {
    ($($function:ident $name:literal)*) => {
        $(unsafe extern "system" fn $function(device: Handle, info: *const c_void, made: *mut u64) -> VkResult {
            unsafe {
                if STATE.lock().unwrap().strikes("out_of_memory") {
                    return ERROR_OUT_OF_DEVICE_MEMORY;
                }
                let allocate: unsafe extern "system" fn(Handle, *const c_void, *mut u64) -> VkResult =
                    transmute(next(device, $name));
                allocate(device, info, made)
            }
        })*
    };
}

allocations! {
    allocate_descriptor_sets c"vkAllocateDescriptorSets"
    allocate_command_buffers c"vkAllocateCommandBuffers"
}

/// Functions of the form `f(device, info, allocator, out)`.
macro_rules! creations {
    ($($function:ident $name:literal)*) => {
        $(unsafe extern "system" fn $function(
            device: Handle,
            info: *const c_void,
            allocator: *const c_void,
            made: *mut u64,
        ) -> VkResult {
            unsafe {
                if STATE.lock().unwrap().strikes("out_of_memory") {
                    return ERROR_OUT_OF_DEVICE_MEMORY;
                }
                type Create =
                    unsafe extern "system" fn(Handle, *const c_void, *const c_void, *mut u64) -> VkResult;
                let create: Create = transmute(next(device, $name));
                create(device, info, allocator, made)
            }
        })*

        fn creation(name: &CStr) -> Function {
            $(if name == $name {
                type Create =
                    unsafe extern "system" fn(Handle, *const c_void, *const c_void, *mut u64) -> VkResult;
                let function: Create = $function;
                return unsafe { transmute::<Create, Function>(function) };
            })*
            None
        }
    };
}

creations! {
    allocate_memory c"vkAllocateMemory"
    create_buffer c"vkCreateBuffer"
    create_shader_module c"vkCreateShaderModule"
    create_pipeline_layout c"vkCreatePipelineLayout"
    create_descriptor_set_layout c"vkCreateDescriptorSetLayout"
    create_descriptor_pool c"vkCreateDescriptorPool"
    create_command_pool c"vkCreateCommandPool"
    create_semaphore c"vkCreateSemaphore"
}

fn hook(name: &CStr) -> Function {
    let pointer: *const () = match name.to_bytes() {
        b"vkGetInstanceProcAddr" => get_instance_proc_addr as *const (),
        b"vkGetDeviceProcAddr" => get_device_proc_addr as *const (),
        b"vkCreateInstance" => create_instance as *const (),
        b"vkCreateDevice" => create_device as *const (),
        b"vkQueueSubmit" => queue_submit as *const (),
        b"vkWaitSemaphores" | b"vkWaitSemaphoresKHR" => wait_semaphores as *const (),
        b"vkWaitForFences" => wait_for_fences as *const (),
        b"vkGetSemaphoreCounterValue" | b"vkGetSemaphoreCounterValueKHR" => {
            get_semaphore_counter_value as *const ()
        }
        b"vkCmdPipelineBarrier" => cmd_pipeline_barrier as *const (),
        b"vkCmdDispatch" => cmd_dispatch as *const (),
        b"vkCmdCopyBuffer" => cmd_copy_buffer as *const (),
        b"vkCmdFillBuffer" => cmd_fill_buffer as *const (),
        b"vkBeginCommandBuffer" => begin_command_buffer as *const (),
        b"vkCreateComputePipelines" => create_compute_pipelines as *const (),
        b"vkAllocateCommandBuffers" => allocate_command_buffers as *const (),
        b"vkAllocateDescriptorSets" => allocate_descriptor_sets as *const (),
        _ => return creation(name),
    };
    unsafe { transmute::<*const (), Function>(pointer) }
}
