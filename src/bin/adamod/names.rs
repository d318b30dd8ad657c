//! Values that the library lists by name (rules, formulas, formats), on the command line and in traces.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// The value with this name.
pub fn find<T: Copy>(all: &[T], name: fn(T) -> &'static str, text: &str) -> Option<T> {
    all.iter().copied().find(|&value| name(value) == text)
}

/// All names, for messages: `paper, authors`.
pub fn list<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> String {
    all.iter().map(|&value| name(value)).collect::<Vec<_>>().join(", ")
}

/// A parser of command-line arguments that accepts these names.
pub fn parser<T>(all: &'static [T], name: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|&value| name(value)))
        .try_map(move |text: String| find(all, name, &text).ok_or("unknown name"))
}
