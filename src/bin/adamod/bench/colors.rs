//! The colors of rules in pictures, here and in the examples.

use adamod::RuleKind;
use plotters::style::RGBColor;

/// Colors for rules without one of their own, most of which color-blind readers can distinguish (after Okabe and Ito).
const OTHERS: [RGBColor; 10] = [
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 86, 75),
    RGBColor(148, 103, 189),
    RGBColor(165, 165, 20),
    RGBColor(20, 160, 175),
    RGBColor(160, 30, 60),
    RGBColor(70, 100, 40),
];

/// The color of a rule in every picture.
pub fn rule_color(rule: RuleKind) -> RGBColor {
    match rule {
        RuleKind::AdaMod => RGBColor(0, 114, 178),
        RuleKind::Adam => RGBColor(213, 94, 0),
        RuleKind::Sgd => RGBColor(110, 110, 120),
        other => {
            let others = RuleKind::ALL
                .iter()
                .filter(|rule| ![RuleKind::AdaMod, RuleKind::Adam, RuleKind::Sgd].contains(*rule));
            OTHERS[others.take_while(|rule| **rule != other).count() % OTHERS.len()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_different_colors() {
        for rule in RuleKind::ALL {
            let alike = RuleKind::ALL.iter().filter(|other| rule_color(**other) == rule_color(*rule));
            assert_eq!(alike.count(), 1, "{rule}");
        }
    }
}
