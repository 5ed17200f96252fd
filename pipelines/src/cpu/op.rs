//! Functions of slices as candle operators, and how long each kind of them took.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// A contiguous f32 tensor.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) dims: &'a [usize],
}

/// What an operator makes.
pub(super) type Made = Result<(Vec<f32>, Shape)>;

/// The operators, by what they are called in errors and profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Convolution,
    Linear,
    GroupNorm,
    LayerNorm,
    Attention,
    Geglu,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Convolution, Self::Linear, Self::GroupNorm, Self::LayerNorm, Self::Attention, Self::Geglu];
}

/// Calls, nanoseconds and flops per kind.
static SPENT: [[AtomicU64; 3]; 6] = [const { [const { AtomicU64::new(0) }; 3] }; 6];

/// What the operators of one kind did.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Which.
    pub kind: Kind,
    /// How often they ran.
    pub calls: u64,
    /// Wall time.
    pub time: Duration,
    /// Multiplications and additions of their matrix products.
    pub flops: u64,
}

/// What the process' operators did since it was last asked.
pub(crate) fn take_profile() -> Vec<Spent> {
    let take = |kind: Kind| {
        let [calls, time, flops] = SPENT[kind as usize].each_ref().map(|n| n.swap(0, Relaxed));
        Spent { kind, calls, time: Duration::from_nanos(time), flops }
    };
    Kind::ALL.map(take).to_vec()
}

/// Notes the flops of the running operator.
pub(super) fn count(kind: Kind, flops: usize) {
    SPENT[kind as usize][2].fetch_add(flops as u64, Relaxed);
}

/// Runs an operator and notes its time, which costs some 50 ns where operators take some 30 µs.
fn made(kind: Kind, f: impl FnOnce() -> Made) -> Result<(CpuStorage, Shape)> {
    let start = Instant::now();
    let (data, shape) = f()?;
    let [calls, time, _] = &SPENT[kind as usize];
    calls.fetch_add(1, Relaxed);
    time.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
    Ok((CpuStorage::F32(data), shape))
}

/// An operator of one to three tensors.
struct Op<F>(Kind, F);

fn view<'a>(kind: Kind, storage: &'a CpuStorage, layout: &'a Layout) -> Result<View<'a>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((from, to))) => Ok(View { data: &data[from..to], dims: layout.dims() }),
        _ => bail!("{kind:?} takes contiguous f32 tensors"),
    }
}

impl<F: Fn([View; 1]) -> Made> CustomOp1 for Op<F> {
    fn name(&self) -> &'static str {
        "pentimento"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        made(self.0, || (self.1)([view(self.0, s, l)?]))
    }
}

impl<F: Fn([View; 2]) -> Made> CustomOp2 for Op<F> {
    fn name(&self) -> &'static str {
        "pentimento"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        made(self.0, || (self.1)([view(self.0, s1, l1)?, view(self.0, s2, l2)?]))
    }
}

impl<F: Fn([View; 3]) -> Made> CustomOp3 for Op<F> {
    fn name(&self) -> &'static str {
        "pentimento"
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
        made(self.0, || (self.1)([view(self.0, s1, l1)?, view(self.0, s2, l2)?, view(self.0, s3, l3)?]))
    }
}

/// Applies `f` to one tensor.
pub(super) fn apply1(kind: Kind, x: &Tensor, f: impl Fn([View; 1]) -> Made) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Op(kind, f))
}

/// Applies `f` to two tensors.
pub(super) fn apply2(kind: Kind, x: &Tensor, y: &Tensor, f: impl Fn([View; 2]) -> Made) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &Op(kind, f))
}

/// Applies `f` to three tensors.
pub(super) fn apply3(kind: Kind, [x, y, z]: [&Tensor; 3], f: impl Fn([View; 3]) -> Made) -> Result<Tensor> {
    x.contiguous()?.apply_op3_no_bwd(&y.contiguous()?, &z.contiguous()?, &Op(kind, f))
}
