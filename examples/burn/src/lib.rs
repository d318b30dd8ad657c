//! adamod in Burn.
