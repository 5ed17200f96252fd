//! Linear layers, bias and residual in the product's epilogue.

use candle_core::{Result, Shape, Tensor, bail};

use super::gemm::{Addend, Dense, Packed, Product};
use super::op::{Kind, Made, View, apply1, apply2};
use super::simd::Isa;
use crate::precision::Precision;

/// A linear layer's packed weights.
#[derive(Debug)]
pub(crate) struct Linear(Packed);

impl Linear {
    /// From (outer, inner) and (outer,).
    pub(crate) fn new(precision: Precision, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::on((Isa::best(), precision), weight, bias)
    }

    pub(super) fn on(how: (Isa, Precision), weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outer, inner) = weight.dims2()?;
        let weight = weight.flatten_all()?.to_vec1::<f32>()?;
        let bias = bias.map(|b| b.to_vec1::<f32>()).transpose()?;
        Ok(Self(Packed::new(
            Kind::Linear,
            how,
            (outer, 1, inner),
            |o, _, i| weight[o * inner + i],
            bias.as_deref(),
        )))
    }

    /// (…, inner) -> (…, outer), plus `add` of that shape.
    pub(crate) fn forward(&self, x: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        match add {
            None => apply1(Kind::Linear, x, |[x]| self.compute(x, None)),
            Some(add) => apply2(Kind::Linear, x, add, |[x, add]| self.compute(x, Some(add))),
        }
    }

    fn compute(&self, x: View, add: Option<View>) -> Made {
        let packed = &self.0;
        let Some((&inner, outside)) = x.dims.split_last().filter(|(inner, _)| **inner == packed.inner) else {
            bail!("linear: {:?} onto {} features", x.dims, packed.inner);
        };
        let rows = outside.iter().product();
        let dims = [outside, &[packed.outer]].concat();
        if let Some(add) = add.filter(|add| add.dims != dims) {
            bail!("linear: {:?} added to {dims:?}", add.dims);
        }
        let add = add.map(|add| Addend { data: add.data, rows: 1 });
        let source = Dense { data: &packed.input(x.data), width: inner };
        let out = Product { packed, source, add, rows }.compute();
        Ok((out, Shape::from(dims)))
    }
}
