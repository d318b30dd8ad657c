//! Numbers as axes of pictures show them.
#![allow(dead_code, reason = "each example uses a part of it")]

/// A number as people write it, without trailing zeros.
pub fn plain(value: f64) -> String {
    if value == 0.0 || (1e-3..1e5).contains(&value.abs()) {
        // Axis values carry rounding errors.
        format!("{}", (value * 1e6).round() / 1e6)
    } else {
        power_of_ten(value)
    }
}

/// The labels of a log axis with this range, which are all plain numbers or all powers of ten.
pub fn log_label(range: &std::ops::Range<f64>) -> fn(&f64) -> String {
    let is_plain = |value: f64| (1e-3..1e5).contains(&value);
    if is_plain(range.start) && is_plain(range.end) {
        |value| plain(*value)
    } else {
        |value| power_of_ten(*value)
    }
}

/// A power of ten, or a multiple of one: 10⁻⁵, 2·10¹².
pub fn power_of_ten(value: f64) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let text = format!("{value:.5e}");
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return text;
    };
    let exponent: String = (exponent.chars())
        .map(|c| match c.to_digit(10) {
            Some(digit) => DIGITS[digit as usize],
            None => '⁻',
        })
        .collect();
    match mantissa.trim_end_matches('0').trim_end_matches('.') {
        "1" => format!("10{exponent}"),
        mantissa => format!("{mantissa}·10{exponent}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_labels_are_readable() {
        assert_eq!([0.0, 0.01, 10.0, -2.5, 25_000.0].map(plain), ["0", "0.01", "10", "-2.5", "25000"]);
        assert_eq!([1e-5, 250_000.0, 10_000_000.0].map(plain), ["10⁻⁵", "2.5·10⁵", "10⁷"]);
        assert_eq!([2e12, f64::NAN].map(power_of_ten), ["2·10¹²", "NaN"]);
    }

    #[test]
    fn an_axis_has_labels_of_one_kind() {
        assert_eq!([0.01, 1.0].map(|value| log_label(&(0.002..2.0))(&value)), ["0.01", "1"]);
        assert_eq!([1e-4, 0.01, 1.0].map(|value| log_label(&(1e-5..2.0))(&value)), ["10⁻⁴", "10⁻²", "10⁰"]);
    }

    #[test]
    fn rounding_errors_are_left_out() {
        assert_eq!(plain(0.1 + 1e-12), "0.1");
        assert_eq!(power_of_ten(9.999_999_999e-6), "10⁻⁵");
    }
}
