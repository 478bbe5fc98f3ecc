//! Colours: ramps of even steps in OKLab lightness, so that equal differences of value look equally different.

/// Red, green, blue.
pub type Rgb = [u8; 3];

/// Text and axes.
pub const INK: Rgb = [38, 38, 44];
/// Secondary text, ticks and frames.
pub const GREY: Rgb = [128, 128, 136];
/// Grid lines.
pub const PALE: Rgb = [226, 226, 230];
/// The page.
pub const PAPER: Rgb = [255, 255, 255];
/// A value that is no number.
pub const NO_NUMBER: Rgb = [190, 190, 190];

/// Line colours that colour-blind readers tell apart (Okabe & Ito 2008).
pub const LINES: [Rgb; 6] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [230, 159, 0]];

/// How values become colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// From white to dark blue.
    Sequential {
        /// What is white.
        low: f64,
        /// What is darkest.
        high: f64,
    },
    /// White at 0, red below, blue above.
    Diverging {
        /// What is darkest, on either side.
        reach: f64,
    },
}

impl Scale {
    /// A sequential scale over the finite values; a scale of one value still has a width.
    pub fn over(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-12 * high.abs().max(1e-12) {
            high = low + 1.0;
        }
        Scale::Sequential { low, high }
    }

    /// A diverging scale that holds the finite values.
    pub fn around_zero(values: impl Iterator<Item = f64>) -> Self {
        let reach = values.filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
        Scale::Diverging { reach: if reach > 0.0 { reach } else { 1.0 } }
    }

    /// The values at the two ends.
    pub fn ends(self) -> (f64, f64) {
        match self {
            Scale::Sequential { low, high } => (low, high),
            Scale::Diverging { reach } => (-reach, reach),
        }
    }

    /// The colour of a value; beyond the ends it is that of the end.
    pub fn color(self, value: f64) -> Rgb {
        self.along(value, ramp)
    }

    /// The same on a dark page: what was white is dark, what was darkest is brightest.
    pub fn color_on_dark(self, value: f64) -> Rgb {
        self.along(value, dark_ramp)
    }

    fn along(self, value: f64, ramp: impl Fn(f64, (f64, f64)) -> Rgb) -> Rgb {
        if value.is_nan() {
            return NO_NUMBER;
        }
        let (low, high) = self.ends();
        let at = ((value - low) / (high - low)).clamp(0.0, 1.0);
        match self {
            Scale::Sequential { .. } => ramp(at, BLUE),
            Scale::Diverging { .. } if at < 0.5 => ramp(1.0 - 2.0 * at, RED),
            Scale::Diverging { .. } => ramp(2.0 * at - 1.0, BLUE),
        }
    }
}

/// Ink that is readable on a colour.
pub fn ink_on(color: Rgb) -> Rgb {
    let [r, g, b] = color.map(f64::from);
    if 0.299 * r + 0.587 * g + 0.114 * b < 140.0 { PAPER } else { INK }
}

/// Hue of a ramp: the direction of its chroma in OKLab's a–b plane.
const BLUE: (f64, f64) = (-0.17, -0.985);
const RED: (f64, f64) = (0.86, 0.51);

/// White at 0, dark at 1: lightness falls evenly, chroma rises and falls within what the screen can show.
fn ramp(at: f64, (a, b): (f64, f64)) -> Rgb {
    let lightness = 1.0 - 0.68 * at;
    let chroma = 0.145 * (std::f64::consts::PI * at.powf(0.85)).sin().max(0.0) + 0.05 * at;
    oklab(lightness, a * chroma, b * chroma)
}

/// Nearly black at 0, bright at 1.
fn dark_ramp(at: f64, (a, b): (f64, f64)) -> Rgb {
    let chroma = 0.13 * (std::f64::consts::PI * at.powf(0.8)).sin().max(0.0) + 0.03 * at;
    oklab(0.23 + 0.65 * at, a * chroma, b * chroma)
}

/// OKLab to sRGB (Ottosson 2020).
fn oklab(l: f64, a: f64, b: f64) -> Rgb {
    let cube = |x: f64| x * x * x;
    let long = cube(l + 0.396_337_777_4 * a + 0.215_803_757_3 * b);
    let medium = cube(l - 0.105_561_345_8 * a - 0.063_854_172_8 * b);
    let short = cube(l - 0.089_484_177_5 * a - 1.291_485_548_0 * b);
    [
        4.076_741_662_1 * long - 3.307_711_591_3 * medium + 0.230_969_929_2 * short,
        -1.268_438_004_6 * long + 2.609_757_401_1 * medium - 0.341_319_396_5 * short,
        -0.004_196_086_3 * long - 0.703_418_614_7 * medium + 1.707_614_701_0 * short,
    ]
    .map(|linear| {
        let x = linear.clamp(0.0, 1.0);
        let encoded = if x <= 0.003_130_8 { 12.92 * x } else { 1.055 * x.powf(1.0 / 2.4) - 0.055 };
        (encoded * 255.0).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lightness([r, g, b]: Rgb) -> f64 {
        let linear = |x: u8| {
            let x = f64::from(x) / 255.0;
            if x <= 0.040_45 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) }
        };
        let (r, g, b) = (linear(r), linear(g), linear(b));
        let l = (0.412_221_470_8 * r + 0.536_332_536_3 * g + 0.051_445_992_9 * b).cbrt();
        let m = (0.211_903_498_2 * r + 0.680_699_545_1 * g + 0.107_396_956_6 * b).cbrt();
        let s = (0.088_302_461_9 * r + 0.281_718_837_6 * g + 0.629_978_700_5 * b).cbrt();
        0.210_454_255_3 * l + 0.793_617_785_0 * m - 0.004_072_046_8 * s
    }

    #[test]
    fn equal_steps_look_equal_and_zero_is_white() {
        for scale in [Scale::Sequential { low: 0.0, high: 1.0 }, Scale::Diverging { reach: 1.0 }] {
            assert_eq!(scale.color(0.0), [255, 255, 255]);
            for i in 0..10 {
                let step =
                    lightness(scale.color(f64::from(i) / 10.0)) - lightness(scale.color(f64::from(i + 1) / 10.0));
                assert!((step - 0.068).abs() < 0.012, "{scale:?} step {i}: {step}");
            }
        }
        assert_eq!(Scale::Diverging { reach: 1.0 }.color(f64::NAN), NO_NUMBER);
    }

    #[test]
    fn scales_hold_their_values() {
        assert_eq!(Scale::over([2.0, f64::NAN, 4.0].into_iter()).ends(), (2.0, 4.0));
        assert_eq!(Scale::over([3.0].into_iter()).ends(), (3.0, 4.0));
        assert_eq!(Scale::around_zero([-3.0, 1.0, f64::INFINITY].into_iter()).ends(), (-3.0, 3.0));
        assert_eq!(Scale::around_zero(std::iter::empty()).ends(), (-1.0, 1.0));
    }
}
