//! Floating-point numbers in JSON as one text, separated by spaces. Every bit comes back, and infinity and NaN can be written.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serializer, de};

/// The numbers as text.
pub fn write<T: Display>(numbers: impl IntoIterator<Item = T>) -> String {
    numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

/// The numbers of a text.
pub fn read<T: FromStr>(text: &str) -> Result<Vec<T>, String> {
    let number = |word: &str| word.parse().map_err(|_| format!("{word:?}: expected a number"));
    text.split_whitespace().map(number).collect()
}

/// For serde: `#[serde(with = "numbers")]`.
pub fn serialize<T: Display, S: Serializer>(numbers: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&write(numbers))
}

/// For serde.
pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    read(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub mod one {
    //! A single number: `#[serde(with = "numbers::one")]`.

    use super::*;

    /// For serde.
    pub fn serialize<T: Display, S: Serializer>(number: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    /// For serde.
    pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let mut numbers: Vec<T> = super::deserialize(deserializer)?;
        match (numbers.pop(), numbers.len()) {
            (Some(number), 0) => Ok(number),
            (_, others) => Err(de::Error::custom(format!("expected one number, got {}", others + 1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Numbers {
        #[serde(with = "super")]
        some: Vec<f32>,
        #[serde(with = "super::one")]
        one: f64,
    }

    #[test]
    fn every_bit_comes_back() {
        let some =
            vec![0.1, -0.0, f32::MIN_POSITIVE / 3.0, f32::MAX, f32::INFINITY, f32::NAN, 1.0 + f32::EPSILON];
        let text = serde_json::to_string(&Numbers { some: some.clone(), one: 0.1 + 0.2 }).unwrap();
        let found: Numbers = serde_json::from_str(&text).unwrap();
        let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found.some), bits(&some));
        assert_eq!(found.one, 0.1 + 0.2);
        for wrong in [r#"{"some":"1 x","one":"1"}"#, r#"{"some":"","one":""}"#, r#"{"some":"","one":"1 2"}"#]
        {
            assert!(serde_json::from_str::<Numbers>(wrong).is_err(), "{wrong}");
        }
    }
}
