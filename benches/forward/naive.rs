//! GPT-2 as one would first write it with candle's own layers: what our forward pass must not be slower than.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, ops::softmax_last_dim};

pub struct Gpt2 {
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
    n_head: usize,
}

struct Block {
    ln_1: LayerNorm,
    c_attn: Linear,
    attn_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    mlp_proj: Linear,
}

impl Gpt2 {
    pub fn load(file: &Path, n_layer: usize, n_head: usize) -> Result<Self> {
        let tensors = candle_core::safetensors::load(file, &Device::Cpu)?;
        let prefix = if tensors.contains_key("transformer.wte.weight") { "transformer." } else { "" };
        let get = |name: &str| tensors[&format!("{prefix}{name}")].to_dtype(DType::F32);
        let norm = |name: &str| -> Result<LayerNorm> {
            Ok(LayerNorm::new(get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?, 1e-5))
        };
        // Conv1D stores [in, out]; candle's Linear wants [out, in].
        let linear = |name: &str| -> Result<Linear> {
            let weight = get(&format!("{name}.weight"))?.t()?.contiguous()?;
            Ok(Linear::new(weight, Some(get(&format!("{name}.bias"))?)))
        };
        let blocks = (0..n_layer)
            .map(|i| {
                Ok(Block {
                    ln_1: norm(&format!("h.{i}.ln_1"))?,
                    c_attn: linear(&format!("h.{i}.attn.c_attn"))?,
                    attn_proj: linear(&format!("h.{i}.attn.c_proj"))?,
                    ln_2: norm(&format!("h.{i}.ln_2"))?,
                    c_fc: linear(&format!("h.{i}.mlp.c_fc"))?,
                    mlp_proj: linear(&format!("h.{i}.mlp.c_proj"))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let wte = get("wte.weight")?;
        Ok(Self {
            lm_head: Linear::new(wte.clone(), None),
            wte,
            wpe: get("wpe.weight")?,
            blocks,
            ln_f: norm("ln_f")?,
            n_head,
        })
    }

    /// Logits of one prompt; every value on the way goes to `keep`.
    pub fn forward(&self, ids: &[u32], keep: &mut dyn FnMut(Tensor)) -> Result<Tensor> {
        let t = ids.len();
        let positions = Tensor::arange(0u32, t as u32, &Device::Cpu)?;
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let mask: Vec<u8> = (0..t).flat_map(|q| (0..t).map(move |k| u8::from(k > q))).collect();
        let mask = Tensor::from_vec(mask, (t, t), &Device::Cpu)?;
        let closed = Tensor::full(f32::NEG_INFINITY, (1, self.n_head, t, t), &Device::Cpu)?;
        let mask = mask.broadcast_as((1, self.n_head, t, t))?;
        let mut x = (self.wte.index_select(&ids, 0)? + self.wpe.index_select(&positions, 0)?)?.unsqueeze(0)?;
        for block in &self.blocks {
            x = block.forward(&x, self.n_head, &mask, &closed, keep)?;
        }
        self.lm_head.forward(&self.ln_f.forward(&x)?)
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        heads: usize,
        mask: &Tensor,
        closed: &Tensor,
        keep: &mut dyn FnMut(Tensor),
    ) -> Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        let dim = width / heads;
        let normal = self.ln_1.forward(x)?;
        let qkv = self.c_attn.forward(&normal)?.reshape((b, t, 3, heads, dim))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q.matmul(&k.t()?)? * (1.0 / (dim as f64).sqrt()))?;
        let scores = mask.where_cond(closed, &scores)?;
        let pattern = softmax_last_dim(&scores)?;
        let z = pattern.matmul(&v)?.transpose(1, 2)?.reshape((b, t, width))?;
        let attn = self.attn_proj.forward(&z)?;
        let mid = (x + &attn)?;
        let pre = self.c_fc.forward(&self.ln_2.forward(&mid)?)?;
        let post = pre.gelu()?;
        let out = (&mid + self.mlp_proj.forward(&post)?)?;
        for value in [normal, q, k, v, scores, pattern, z, attn, mid, pre, post, out.clone()] {
            keep(value);
        }
        Ok(out)
    }
}
