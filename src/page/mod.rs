//! Interactive pages: one HTML file that holds its data, its script and its style, and asks no network for anything.
//!
//! A page is a list of [`Block`]s, each made from a frame. What it shows of a frame is text and numbers: data is inert
//! JSON, tokens become text nodes, and the content-security policy lets nothing run but the script that is in the file.

mod attention;
mod attribution;
mod lens;
mod maps;
mod predictions;
mod strips;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

pub use attention::{attention, patterns, patterns_fit};
pub use attribution::attribution;
pub use lens::lens;
pub use maps::{ablate, detection, heads, patch};
pub use predictions::predictions;
pub use strips::{applied, neurons, saliency};

use crate::error::{Error, Result, printable};
use crate::figure::{Scale, shown};

/// Largest page, in bytes: beyond it a browser takes long to open it.
pub const LIMIT: usize = 20 << 20;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(
    "'use strict';\n(() => {\n",
    include_str!("script/core.js"),
    include_str!("script/grid.js"),
    include_str!("script/attention.js"),
    include_str!("script/lens.js"),
    include_str!("script/maps.js"),
    include_str!("script/strips.js"),
    include_str!("script/bars.js"),
    include_str!("script/main.js"),
    "})();\n"
);

/// One view on a page.
#[derive(Clone, Debug)]
pub struct Block(Value);

impl Block {
    /// The same view under another title.
    pub fn titled(mut self, title: &str) -> Self {
        self.0["title"] = json!(printable(title));
        self
    }
}

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    blocks: Vec<Block>,
}

impl Page {
    /// A page of these views, from top to bottom.
    pub fn new(title: impl Into<String>, blocks: Vec<Block>) -> Self {
        Self { title: title.into(), blocks }
    }

    /// The file. `run` says how its numbers were made and is shown at the bottom; null shows nothing.
    ///
    /// # Errors
    /// [`Error::Request`] for more than [`LIMIT`] bytes.
    pub fn html(&self, run: &Value) -> Result<String> {
        let blocks: Vec<&Value> = self.blocks.iter().map(|Block(block)| block).collect();
        let data = json!({ "title": printable(&self.title), "blocks": blocks, "run": run, "palette": palette() });
        let data = inert(&data);
        let hash = |text: &str| BASE64.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
            hash(SCRIPT),
            hash(STYLE)
        );
        let title = escaped(&self.title);
        let html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"generator\" content=\"interp {}\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <noscript><p>This page draws itself with a script that it carries, and scripts are switched off. \
             The numbers are in frame.parquet beside it, and figure.svg is a picture without one.</p></noscript>\n\
             <script type=\"application/json\" id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
            env!("CARGO_PKG_VERSION")
        );
        match html.len() {
            bytes if bytes > LIMIT => Err(Error::request(format!(
                "the page would have {} MB, more than the {} that open quickly; choose fewer heads, layers or prompts, or shorter ones",
                bytes >> 20,
                LIMIT >> 20
            ))),
            _ => Ok(html),
        }
    }

    /// What a notebook shows for this page: a frame of its own, in which nothing of the notebook is visible.
    pub fn evcxr_display(&self) {
        match self.html(&Value::Null) {
            Ok(html) => crate::notebook::display(&[("text/html", framed(&html))]),
            Err(e) => crate::notebook::display(&[("text/plain", e.to_string())]),
        }
    }
}

/// A page inside of another one, on one line: what is displayed in a notebook has no line breaks, and a script needs its own.
fn framed(html: &str) -> String {
    format!(
        "<iframe sandbox=\"allow-scripts\" style=\"width:100%;height:640px;border:1px solid #8884;border-radius:6px\" \
         srcdoc=\"{}\">An interactive page: open this notebook in Jupyter to use it.</iframe>",
        escaped(html).replace('\n', "&#10;")
    )
}

/// Text as HTML shows it, also inside of quotation marks.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// JSON in which nothing can end a script element or open a comment.
fn inert(data: &Value) -> String {
    let text = data.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// A token as a page shows it: white space visible, nothing that turns the line around.
fn token(text: &str) -> String {
    printable(&shown(text))
}

/// A number with the digits that an f32 has; null for what is none.
fn number(value: f64) -> Value {
    // Through text, so that 0.1 as f32 is written 0.1 and not 0.10000000149.
    let short = (value as f32).to_string().parse::<f64>();
    short.ok().and_then(serde_json::Number::from_f64).into()
}

fn numbers(values: &[f64]) -> Value {
    values.iter().map(|x| number(*x)).collect()
}

fn scale(scale: Scale) -> Value {
    let (low, high) = scale.ends();
    let kind = match scale {
        Scale::Sequential { .. } => "sequential",
        Scale::Diverging { .. } => "diverging",
    };
    json!({ "kind": kind, "low": low, "high": high })
}

/// The colours of both kinds of scale, on light and on dark ground.
fn palette() -> Value {
    const STEPS: usize = 65;
    let hex = |[r, g, b]: [u8; 3]| format!("#{r:02x}{g:02x}{b:02x}");
    let ramp = |scale: Scale, dark: bool| -> Vec<String> {
        let (low, high) = scale.ends();
        let at = |i: usize| low + (high - low) * i as f64 / (STEPS - 1) as f64;
        (0..STEPS).map(|i| hex(if dark { scale.color_on_dark(at(i)) } else { scale.color(at(i)) })).collect()
    };
    let ground = |dark: bool| {
        json!({
            "sequential": ramp(Scale::Sequential { low: 0.0, high: 1.0 }, dark),
            "diverging": ramp(Scale::Diverging { reach: 1.0 }, dark),
            // What is no number, or was not computed.
            "none": if dark { "#34343a" } else { "#e4e4e6" },
        })
    };
    json!({ "light": ground(false), "dark": ground(true) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_data_ends_it() {
        let text = "</script><script>x=1</script><!-- & \u{2028}";
        let data = inert(&json!({ "a": text }));
        assert!(!data.contains(['<', '>', '&', '\u{2028}']), "{data}");
        assert_eq!(serde_json::from_str::<Value>(&data).unwrap()["a"], text);
    }

    #[test]
    fn titles_are_text() {
        let html = Page::new("<b>\"&'", Vec::new()).html(&Value::Null).unwrap();
        assert!(html.contains("<title>&lt;b&gt;&quot;&amp;&#39;</title>"));
    }

    #[test]
    fn a_page_has_a_limit() {
        let block = Block(json!({ "kind": "x", "text": "a".repeat(LIMIT) }));
        let error = Page::new("", vec![block]).html(&Value::Null).unwrap_err().to_string();
        assert!(error.contains("the page would have 20 MB"), "{error}");
    }

    #[test]
    fn numbers_are_short_and_honest() {
        assert_eq!(number(f64::from(0.1_f32)).to_string(), "0.1");
        assert_eq!(number(f64::NAN), Value::Null);
    }

    #[test]
    fn frames_that_are_not_whole_are_refused() {
        let (model, tokenizer) = (crate::embedded::model().unwrap(), crate::embedded::tokenizer().unwrap());
        let tokens = tokenizer.tokens(&["Mary and John went"], crate::text::Encoding::default()).unwrap();
        let patterns = crate::attention::of_layers(&model, &tokens, 0..2).unwrap();
        let convention = crate::convention::LayerNormConvention::Recompute;
        let layers = crate::lens::logit_lens(&model, &tokenizer, &tokens, 2, convention).unwrap();
        let next = crate::predict::top(&model, &tokenizer, &tokens, 2).unwrap();
        assert!(attention(&patterns).is_ok() && lens(&layers).is_ok() && predictions(&next).is_ok());
        for rows in [0, 2, 7, patterns.height() - 1] {
            let error = attention(&patterns.head(Some(rows))).unwrap_err().to_string();
            assert!(error.contains(if rows == 0 { "holds no pattern" } else { "must be whole" }), "{rows}: {error}");
        }
        assert!(lens(&layers.head(Some(0))).is_err() && lens(&layers.head(Some(11))).is_err());
        assert!(predictions(&next.head(Some(0))).is_err());
        // Positions are those of the frame, not of its rows.
        let Block(tail) = predictions(&next.tail(Some(2))).unwrap();
        assert_eq!(tail["prompts"][0]["tokens"][0]["pos"], tokens.longest() - 1);
    }

    #[test]
    fn patterns_of_a_model_are_those_of_its_frame() {
        let (model, tokenizer) = (crate::embedded::model().unwrap(), crate::embedded::tokenizer().unwrap());
        let tokens = tokenizer.tokens(&["Mary and John went"], crate::text::Encoding::default()).unwrap();
        let Block(framed) = attention(&crate::attention::of_layers(&model, &tokens, 0..6).unwrap()).unwrap();
        let Some(Block(direct)) = patterns(&tokens, &crate::attention::of_prompt(&model, &tokens).unwrap()) else {
            panic!("five tokens fit")
        };
        assert_eq!(framed, direct);
        assert!(!patterns_fit(1024, 144) && patterns_fit(200, 144));
    }
}
