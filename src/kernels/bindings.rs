//! The numbers of all bindings of bind group 0, in Rust and in WGSL.

macro_rules! bindings {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        $($(#[$doc])* pub const $name: u32 = $number;)*

        const ALL: &[(&str, u32)] = &[$((stringify!($name), $number)),*];
    };
}

bindings! {
    /// Coefficients of each cohort or parameter; dynamic offset.
    COEFFICIENTS = 0,
    /// The segment table; dynamic offset.
    SEGMENTS = 1,
    /// The launch's part of the chunk table. The kernel takes the number of chunks from its length.
    CHUNKS = 2,
    /// The window of parameters, with the gradients in it where both share it.
    PARAMETERS = 3,
    /// The window of gradients.
    GRADIENTS = 4,
    /// The state buffer.
    STATE = 5,
    /// Counters of the histograms.
    HISTOGRAM = 6,
    /// The window of shadow copies.
    SHADOW = 7,
    /// Group and activity of each parameter; dynamic offset.
    ROWS = 8,
    /// Hyperparameters of each group; dynamic offset.
    GROUPS = 9,
    /// The control buffer.
    CONTROL = 10,
    /// The coefficients that the device prepares.
    PREPARED = 11,
    /// Partial sums of the norm.
    PARTIALS = 12,
    /// Factors of the learning rates, one per step that was taken.
    SCHEDULE = 13,
    /// The control buffer of another optimizer in a joint step.
    OTHER_CONTROL = 14,
    /// The table of a remap.
    REMAP = 15,
    /// The old row of each new one.
    SOURCES = 16,
    /// Step counts.
    STEPS = 17,
    /// Means of columns, and the sums that they are made from.
    MEANS = 18,
    /// The factors of columns, and where segments have them and their masks; dynamic offset.
    ROW_TABLE = 19,
    /// Masks of rows.
    ROW_MASKS = 20,
    /// The first of the other state buffers that hold old rows; the others follow.
    OLD_STATE = 32,
}

/// The numbers as WGSL constants: `const STATE_BINDING = 5;`.
pub fn wgsl() -> String {
    ALL.iter().map(|(name, number)| format!("const {name}_BINDING = {number};\n")).collect()
}
