//! Functions of slices as candle operators.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// A contiguous f32 tensor.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) dims: &'a [usize],
}

/// What an operator makes.
pub(super) type Made = Result<(Vec<f32>, Shape)>;

/// An operator of one to three tensors.
struct Op<F>(&'static str, F);

fn view<'a>(name: &str, storage: &'a CpuStorage, layout: &'a Layout) -> Result<View<'a>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((from, to))) => Ok(View { data: &data[from..to], dims: layout.dims() }),
        _ => bail!("{name} takes contiguous f32 tensors"),
    }
}

fn made(made: Made) -> Result<(CpuStorage, Shape)> {
    made.map(|(data, shape)| (CpuStorage::F32(data), shape))
}

impl<F: Fn([View; 1]) -> Made> CustomOp1 for Op<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        made((self.1)([view(self.0, s, l)?]))
    }
}

impl<F: Fn([View; 2]) -> Made> CustomOp2 for Op<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        made((self.1)([view(self.0, s1, l1)?, view(self.0, s2, l2)?]))
    }
}

impl<F: Fn([View; 3]) -> Made> CustomOp3 for Op<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        made((self.1)([view(self.0, s1, l1)?, view(self.0, s2, l2)?, view(self.0, s3, l3)?]))
    }
}

/// Applies `f` to one tensor.
pub(super) fn apply1(name: &'static str, x: &Tensor, f: impl Fn([View; 1]) -> Made) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Op(name, f))
}

/// Applies `f` to two tensors.
pub(super) fn apply2(
    name: &'static str,
    x: &Tensor,
    y: &Tensor,
    f: impl Fn([View; 2]) -> Made,
) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &Op(name, f))
}

/// Applies `f` to three tensors.
pub(super) fn apply3(
    name: &'static str,
    [x, y, z]: [&Tensor; 3],
    f: impl Fn([View; 3]) -> Made,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3_no_bwd(&y.contiguous()?, &z.contiguous()?, &Op(name, f))
}
