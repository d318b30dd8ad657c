//! The arithmetic of the CPU reference, in f32 or f64.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Sub};

/// f32 or f64.
pub trait Real:
    Copy
    + Debug
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + 'static
{
    /// Whether values and states are stored in the formats of the GPU. f64 stores them in full.
    const IS_STORED: bool;
    /// Rounds to this precision.
    fn from_f64(value: f64) -> Self;
    /// Rounds to f32.
    fn to_f32(self) -> f32;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($($t:ty: $is_stored:literal),*) => {$(
        impl Real for $t {
            const IS_STORED: bool = $is_stored;
            fn to_f32(self) -> f32 {
                self as f32
            }
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn is_finite(self) -> bool {
                self.is_finite()
            }
        }
    )*};
}
real!(f32: true, f64: false);
