//! Linear layers. The product adds bias and residual itself.

use candle_core::{Result, Shape, Tensor, bail};

use super::gemm::Packed;
use super::op::{OpResult, OperatorKind, View, apply1, apply2};
use super::product::{Addend, DenseRows};
use super::simd::Isa;
use crate::precision::Precision;

/// A linear layer's packed weights.
#[derive(Debug)]
pub(crate) struct PackedLinear(Packed);

impl PackedLinear {
    /// Packs a weight (outer, inner) and a bias (outer,).
    pub(crate) fn new(precision: Precision, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::on((Isa::best(), precision), weight, bias)
    }

    pub(super) fn on(how: (Isa, Precision), weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outer, inner) = weight.dims2()?;
        let weight = weight.flatten_all()?.to_vec1::<f32>()?;
        let bias = bias.map(|b| b.to_vec1::<f32>()).transpose()?;
        Ok(Self(Packed::new(
            OperatorKind::Linear,
            how,
            (outer, 1, inner),
            |o, _, i| weight[o * inner + i],
            bias.as_deref(),
        )))
    }

    /// (…, inner) -> (…, outer). `add`, of the output's shape, is added to the output.
    pub(crate) fn forward(&self, x: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        match add {
            None => apply1(OperatorKind::Linear, x, |[x]| self.compute(x, None)),
            Some(add) => apply2(OperatorKind::Linear, x, add, |[x, add]| self.compute(x, Some(add))),
        }
    }

    fn compute(&self, x: View, add: Option<View>) -> OpResult {
        let packed = &self.0;
        let Some((&inner, outside)) = x.dims.split_last().filter(|(inner, _)| **inner == packed.inner())
        else {
            bail!("linear: {:?} onto {} features", x.dims, packed.inner());
        };
        let rows = outside.iter().product();
        let dims = [outside, &[packed.outer()]].concat();
        if let Some(add) = add.filter(|add| add.dims != dims) {
            bail!("linear: {:?} added to {dims:?}", add.dims);
        }
        let add = add.map(|add| Addend { data: add.data, rows: 1 });
        let source = DenseRows { data: &packed.input(x.data), width: inner };
        Ok((packed.multiply(source, add, rows), Shape::from(dims)))
    }
}
