//! Functions of slices as candle operators, and a profile of each kind of operator.

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

/// An operator's output: its values and its shape.
pub(super) type OpResult = Result<(Vec<f32>, Shape)>;

/// The kinds of operators. Errors and profiles name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum OperatorKind {
    Convolution,
    Linear,
    GroupNorm,
    LayerNorm,
    Attention,
    Geglu,
}

impl OperatorKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Convolution, Self::Linear, Self::GroupNorm, Self::LayerNorm, Self::Attention, Self::Geglu];
}

/// Calls, nanoseconds and flops per kind.
static PROFILE: [[AtomicU64; 3]; 6] = [const { [const { AtomicU64::new(0) }; 3] }; 6];

/// The calls, time and flops of the operators of one kind.
#[derive(Debug, Clone, Copy)]
pub struct OperatorProfile {
    /// The kind.
    pub kind: OperatorKind,
    /// The number of calls.
    pub calls: u64,
    /// The wall time of all calls.
    pub time: Duration,
    /// The multiplications and additions of all matrix products.
    pub flops: u64,
}

/// Returns the profile of the process's operators since the last call.
pub(crate) fn take_profile() -> Vec<OperatorProfile> {
    let take = |kind: OperatorKind| {
        let [calls, time, flops] = PROFILE[kind as usize].each_ref().map(|n| n.swap(0, Relaxed));
        OperatorProfile { kind, calls, time: Duration::from_nanos(time), flops }
    };
    OperatorKind::ALL.map(take).to_vec()
}

/// Adds the flops of a matrix product to the profile.
pub(super) fn count(kind: OperatorKind, flops: usize) {
    PROFILE[kind as usize][2].fetch_add(flops as u64, Relaxed);
}

/// Runs an operator and adds its time to the profile. That costs some 50 ns; an operator takes some 30 µs.
fn timed(kind: OperatorKind, f: impl FnOnce() -> OpResult) -> Result<(CpuStorage, Shape)> {
    let start = Instant::now();
    let (data, shape) = f()?;
    let [calls, time, _] = &PROFILE[kind as usize];
    calls.fetch_add(1, Relaxed);
    time.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
    Ok((CpuStorage::F32(data), shape))
}

/// An operator on one to three tensors.
struct Op<F>(OperatorKind, F);

fn view<'a>(kind: OperatorKind, storage: &'a CpuStorage, layout: &'a Layout) -> Result<View<'a>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((from, to))) => Ok(View { data: &data[from..to], dims: layout.dims() }),
        _ => bail!("{kind:?} takes contiguous f32 tensors"),
    }
}

impl<F: Fn([View; 1]) -> OpResult> CustomOp1 for Op<F> {
    fn name(&self) -> &'static str {
        "pentimento"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        timed(self.0, || (self.1)([view(self.0, s, l)?]))
    }
}

impl<F: Fn([View; 2]) -> OpResult> CustomOp2 for Op<F> {
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
        timed(self.0, || (self.1)([view(self.0, s1, l1)?, view(self.0, s2, l2)?]))
    }
}

impl<F: Fn([View; 3]) -> OpResult> CustomOp3 for Op<F> {
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
        timed(self.0, || (self.1)([view(self.0, s1, l1)?, view(self.0, s2, l2)?, view(self.0, s3, l3)?]))
    }
}

/// Applies `f` to one tensor.
pub(super) fn apply1(kind: OperatorKind, x: &Tensor, f: impl Fn([View; 1]) -> OpResult) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Op(kind, f))
}

/// Applies `f` to two tensors.
pub(super) fn apply2(
    kind: OperatorKind,
    x: &Tensor,
    y: &Tensor,
    f: impl Fn([View; 2]) -> OpResult,
) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &Op(kind, f))
}

/// Applies `f` to three tensors.
pub(super) fn apply3(
    kind: OperatorKind,
    [x, y, z]: [&Tensor; 3],
    f: impl Fn([View; 3]) -> OpResult,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3_no_bwd(&y.contiguous()?, &z.contiguous()?, &Op(kind, f))
}
