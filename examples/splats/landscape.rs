//! The picture that is fitted unless the command line names another: a lake before mountains, all of it formulas. It has smooth parts, edges
//! and fine detail.

type Color = [f32; 3];

/// The shore, as a fraction of the height.
const SHORE: f32 = 0.68;
/// The middle of the sun.
const SUN: [f32; 2] = [0.42, 0.3];

/// The color of a point, both coordinates in units of the height.
pub fn color(x: f32, y: f32) -> Color {
    if let Some(color) = boat(x, y) {
        return color;
    }
    if y < SHORE {
        return land(x, y);
    }
    // A mirror of the land, with waves that grow towards the viewer.
    let depth = y - SHORE;
    let wave = (0.4 * depth) * (260.0 * depth.powf(0.7) + 9.0 * (5.0 * x).sin()).sin();
    let mirrored = land(x + 0.3 * wave, SHORE - 0.9 * depth + 0.25 * wave);
    mix(mirrored, [0.05, 0.16, 0.28], 0.3 + 0.6 * depth)
}

/// What is above the shore, or mirrored below it.
fn land(x: f32, y: f32) -> Color {
    let far = 0.36 - 0.12 * (2.3 * x + 0.6).sin() - 0.05 * (7.1 * x + 1.0).sin() - 0.02 * jagged(9.0 * x);
    let near = 0.56 - 0.05 * (3.7 * x + 2.5).sin() - 0.02 * (11.0 * x).sin();
    if let Some(color) = firs(x, y) {
        color
    } else if y > near {
        mix([0.16, 0.27, 0.2], [0.33, 0.42, 0.22], 0.5 + 0.5 * (40.0 * x + 90.0 * (y - near)).sin())
    } else if y > far {
        // Snow down to a ragged line, and faces that turn to the sun or away from it.
        let depth = y - far;
        let is_lit = jagged(9.0 * x + 3.0 * depth) > 0.5;
        let has_snow = depth < 0.05 + 0.05 * jagged(21.0 * x);
        match (has_snow, is_lit) {
            (true, true) => [0.97, 0.93, 0.9],
            (true, false) => [0.66, 0.7, 0.82],
            (false, true) => mix([0.5, 0.42, 0.46], [0.36, 0.4, 0.48], 4.0 * depth),
            (false, false) => mix([0.33, 0.31, 0.41], [0.32, 0.37, 0.46], 4.0 * depth),
        }
    } else {
        sky(x, y)
    }
}

fn sky(x: f32, y: f32) -> Color {
    let distance = (x - SUN[0]).hypot(y - SUN[1]);
    if distance < 0.06 {
        return [1.0, 0.96, 0.78];
    }
    let clear = mix([0.16, 0.3, 0.58], [0.98, 0.7, 0.48], (1.9 * y).min(1.0));
    let glowing = mix(clear, [1.0, 0.85, 0.55], (-9.0 * (distance - 0.06)).exp());
    let cloud = (5.0 * x + 40.0 * y + 2.0 * (9.0 * x).sin()).sin() * (3.0 * x + 1.0).sin() - 0.35;
    mix(glowing, [1.0, 0.9, 0.88], (2.0 * cloud).clamp(0.0, 0.7))
}

/// Fir trees along the shore.
fn firs(x: f32, y: f32) -> Option<Color> {
    const TREES: f32 = 22.0;
    let tree = (TREES * x).floor();
    let random = |salt: f32| (43.7 * (12.9 * tree + salt).sin()).rem_euclid(1.0);
    if random(0.0) < 0.25 {
        return None;
    }
    let height = 0.1 + 0.12 * random(1.0);
    // 0 at the top, 1 at the foot.
    let down = (y - (SHORE - height)) / height;
    let aside = (TREES * x - tree - 0.5 - 0.2 * (random(2.0) - 0.5)).abs();
    let width = 0.4 * down * (0.6 + 0.4 * (5.0 * down).rem_euclid(1.0));
    let is_tree = (0.0..1.0).contains(&down) && aside < width;
    is_tree.then(|| mix([0.05, 0.16, 0.13], [0.14, 0.3, 0.16], random(3.0) * aside / width))
}

/// A sailing boat on the lake.
fn boat(x: f32, y: f32) -> Option<Color> {
    let [aside, up] = [x - 0.95, 0.83 - y];
    let is_hull = (-0.025..0.0).contains(&up) && aside.abs() < 0.085 + up;
    let is_mast = (0.0..0.2).contains(&up) && aside.abs() < 0.003;
    let is_sail = |side: f32, width: f32| {
        (0.012..0.19).contains(&up) && (0.008..width * (0.19 - up)).contains(&(side * aside))
    };
    match () {
        () if is_hull => Some([0.7, 0.13, 0.1]),
        () if is_mast => Some([0.25, 0.15, 0.1]),
        () if is_sail(1.0, 0.55) => Some([0.98, 0.97, 0.94]),
        () if is_sail(-1.0, 0.35) => Some([0.93, 0.78, 0.3]),
        () => None,
    }
}

/// A zigzag between 0 and 1 with teeth of two sizes.
fn jagged(x: f32) -> f32 {
    let zigzag = |x: f32| 2.0 * (x.rem_euclid(1.0) - 0.5).abs();
    0.65 * zigzag(x) + 0.35 * zigzag(2.7 * x + 0.3)
}

/// `part` of `b` in `a`, at most all of it.
fn mix(a: Color, b: Color, part: f32) -> Color {
    let part = part.clamp(0.0, 1.0);
    [0, 1, 2].map(|c| a[c] + part * (b[c] - a[c]))
}
