// The factor of the learning rates, from a schedule that goes by the steps that were taken.

@group(0) @binding(SCHEDULE_BINDING) var<storage, read> factors: array<f32>;

// The last factor holds from there on.
@compute @workgroup_size(1)
fn schedule() {
    kept.rate_factor = factors[min(kept.control.taken, arrayLength(&factors) - 1u)];
}
