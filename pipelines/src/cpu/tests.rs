//! Every operator is compared with candle's, on random shapes and on every instruction set that this processor has.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Module, ops};

use super::attention::{attention_on, geglu_on};
use super::conv::{Conv, Geometry};
use super::linear::PackedLinear;
use super::norm::Norm;
use super::simd::Isa;
use crate::precision::Precision;

/// A pseudo-random generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn within(&mut self, from: usize, to: usize) -> usize {
        from + self.next() as usize % (to - from + 1)
    }

    /// Values in [-2, 2), at an unaligned offset in their storage.
    fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let n: usize = dims.iter().product();
        let values: Vec<f32> = (0..=n).map(|_| self.next() as f32 / (1u64 << 29) as f32 - 2.0).collect();
        let all = Tensor::from_vec(values, n + 1, &Device::Cpu).unwrap();
        all.narrow(0, 1, n).unwrap().reshape(dims).unwrap()
    }
}

#[track_caller]
fn close(what: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let largest = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let largest = |t: &Tensor| largest(t).to_scalar::<f32>().unwrap();
    let (error, scale) = (largest(&(ours - theirs).unwrap()), largest(theirs).max(1e-3));
    assert!(error <= 1e-5 * scale, "{what}: {error:e} of {scale:e}");
}

fn each(mut test: impl FnMut(Isa, &mut Random)) {
    for isa in Isa::all() {
        let mut random = Random(7);
        (0..40).for_each(|_| super::with_helpers(|| test(isa, &mut random)));
    }
}

/// [`each`] in every precision.
fn each_precision(mut test: impl FnMut((Isa, Precision), &mut Random)) {
    for precision in [Precision::F32, Precision::Bf16] {
        each(|isa, random| test((isa, precision), random));
    }
}

/// A factor as a product rounds it, as f32.
fn rounded(precision: Precision, x: &Tensor) -> Tensor {
    x.to_dtype(precision.dtype()).unwrap().to_dtype(DType::F32).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

#[test]
fn linear_equals_candles() {
    each_precision(|how, random| {
        let (rows, inner, outer) = (random.within(1, 40), random.within(1, 300), random.within(1, 70));
        let (weight, bias) = (random.tensor(&[outer, inner]), random.tensor(&[outer]));
        let (x, add) = (random.tensor(&[rows, inner]), random.tensor(&[rows, outer]));
        let what = format!("{how:?} {rows}x{inner}x{outer}");
        let theirs = candle_nn::Linear::new(rounded(how.1, &weight), Some(bias.clone()));
        let theirs = theirs.forward(&rounded(how.1, &x)).unwrap();
        let ours = PackedLinear::on(how, &weight, Some(&bias)).unwrap();
        close(&what, &ours.forward(&x, None).unwrap(), &theirs);
        close(&what, &ours.forward(&x, Some(&add)).unwrap(), &(theirs + add).unwrap());
    });
}

#[test]
fn convolution_equals_candles() {
    each_precision(|how, random| {
        // Sometimes there are more channels than one chunk of the product holds.
        let channels = if random.within(0, 7) == 0 { 600 } else { 70 };
        let (batch, inner, outer) = (random.within(1, 3), random.within(1, channels), random.within(1, 70));
        let (h, w) = (random.within(2, 12), random.within(2, 12));
        let side = if random.within(0, 3) == 0 { 1 } else { 3 };
        let (stride, near) = (random.within(1, 2), if side == 1 { 0 } else { random.within(0, 1) });
        let far = if side == 1 { 0 } else { 1 };
        let weight = random.tensor(&[outer, inner, side, side]);
        let bias = random.tensor(&[outer]);
        let x = random.tensor(&[batch, inner, h, w]);
        let resize = (random.within(0, 2) == 0).then(|| (random.within(2, 15), random.within(2, 15)));
        let what = format!(
            "{how:?} {batch}x{inner}x{h}x{w} to {outer}, side {side}, stride {stride}, near {near}, {resize:?}"
        );

        let seen = resize.map_or(x.clone(), |(h, w)| x.upsample_nearest2d(h, w).unwrap());
        let padded = seen.pad_with_zeros(2, near, far).unwrap().pad_with_zeros(3, near, far).unwrap();
        let theirs = rounded(how.1, &padded).conv2d(&rounded(how.1, &weight), 0, stride, 1, 1).unwrap();
        let theirs = theirs.broadcast_add(&bias.reshape((1, outer, 1, 1)).unwrap()).unwrap();
        let ours = Conv::on(how, &weight, Some(&bias), Geometry { stride, near, far }).unwrap();
        close(&what, &ours.forward(&last(&x), resize, None).unwrap(), &last(&theirs));

        let shift = random.tensor(&[batch, outer]);
        let shifted = theirs.broadcast_add(&shift.reshape((batch, outer, 1, 1)).unwrap()).unwrap();
        close(&what, &ours.forward(&last(&x), resize, Some(&shift)).unwrap(), &last(&shifted));
        let residual = random.tensor(theirs.dims());
        let added = ours.forward(&last(&x), resize, Some(&last(&residual))).unwrap();
        close(&what, &added, &last(&(theirs + residual).unwrap()));
    });
}

#[test]
fn norms_equal_candles() {
    each(|isa, random| {
        let groups = random.within(1, 9);
        let (batch, channels) = (random.within(1, 3), groups * random.within(1, 20));
        let (h, w) = (random.within(1, 25), random.within(2, 25));
        let (weight, bias) = (random.tensor(&[channels]), random.tensor(&[channels]));
        let x = (random.tensor(&[batch, channels, h, w]) + 5.0).unwrap();
        let what = format!("{isa:?} {batch}x{channels}x{h}x{w} in {groups}");
        let theirs = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), channels, groups, 1e-5).unwrap();
        let theirs = theirs.forward(&x).unwrap();
        let ours = Norm::on(isa, &weight, &bias, groups, 1e-5).unwrap();
        close(&what, &ours.group_norm(&last(&x), false).unwrap(), &last(&theirs));
        close(&what, &ours.group_norm(&last(&x), true).unwrap(), &last(&theirs.silu().unwrap()));

        if channels > 1 {
            // The reference is computed in f64, because candle's layer norm subtracts squares and is inaccurate for few
            // channels.
            let x = last(&x);
            let d = x.to_dtype(DType::F64).unwrap();
            let d = d.broadcast_sub(&d.mean_keepdim(D::Minus1).unwrap()).unwrap();
            let variance = d.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
            let d = d.broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap()).unwrap();
            let d = d.to_dtype(DType::F32).unwrap();
            let theirs = d.broadcast_mul(&weight).unwrap().broadcast_add(&bias).unwrap();
            close(&what, &ours.layer_norm(&x).unwrap(), &theirs);
        }
    });
}

#[test]
fn attention_equals_candles() {
    each(|isa, random| {
        let (batch, heads, width) = (random.within(1, 3), random.within(1, 4), random.within(1, 40));
        let (queries, keys, causal) = (random.within(1, 40), random.within(1, 90), random.within(0, 1) == 0);
        let queries = if causal { keys } else { queries };
        let dims = |rows| [batch, rows, heads * width];
        let (q, k, v) =
            (random.tensor(&dims(queries)), random.tensor(&dims(keys)), random.tensor(&dims(keys)));
        let what = format!("{isa:?} {batch}x{heads}x{width}, {queries} to {keys}, causal {causal}");

        let split = |x: &Tensor| {
            let x = x.reshape((batch, (), heads, width)).unwrap();
            x.transpose(1, 2).unwrap().contiguous().unwrap()
        };
        let scores = split(&q).matmul(&split(&k).t().unwrap()).unwrap();
        let mut scores = (scores / (width as f64).sqrt()).unwrap();
        if causal {
            let mask = (0..keys * keys).map(|i| if i % keys > i / keys { f32::NEG_INFINITY } else { 0.0 });
            let mask = Tensor::from_iter(mask, &Device::Cpu).unwrap().reshape((keys, keys)).unwrap();
            scores = scores.broadcast_add(&mask).unwrap();
        }
        let mixed = ops::softmax_last_dim(&scores).unwrap().matmul(&split(&v)).unwrap();
        let theirs = mixed.transpose(1, 2).unwrap().flatten_from(2).unwrap();
        close(&what, &attention_on(isa, [&q, &k, &v], heads, causal).unwrap(), &theirs);
    });
}

#[test]
fn geglu_equals_candles() {
    each(|isa, random| {
        let (rows, half) = (random.within(1, 30), random.within(1, 90));
        let x = (random.tensor(&[rows, 2 * half]) * 3.0).unwrap();
        let gate = x.narrow(D::Minus1, half, half).unwrap().gelu_erf().unwrap();
        let theirs = (x.narrow(D::Minus1, 0, half).unwrap() * gate).unwrap();
        close(&format!("{isa:?} {rows}x{half}"), &geglu_on(isa, &x).unwrap(), &theirs);
    });
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    each_precision(|how, random| {
        let (batch, inner, outer) = (random.within(2, 5), random.within(1, 80), random.within(1, 80));
        let (h, w) = (random.within(2, 17), random.within(2, 17));
        let geometry = Geometry { stride: 1, near: 1, far: 1 };
        let conv = Conv::on(how, &random.tensor(&[outer, inner, 3, 3]), None, geometry).unwrap();
        let x = random.tensor(&[batch, h, w, inner]);
        let together = conv.forward(&x, None, None).unwrap();
        for row in 0..batch {
            let alone = conv.forward(&x.narrow(0, row, 1).unwrap(), None, None).unwrap();
            assert_eq!(values(&alone), values(&together.narrow(0, row, 1).unwrap()), "{how:?} row {row}");
        }
    });
}

/// Helper threads must not change a result in any bit, because whether a call has them depends on other calls.
#[test]
fn helpers_change_nothing() {
    let mut random = Random(7);
    for (round, isa) in Isa::all().into_iter().cycle().take(16).enumerate() {
        let precision = if round < 8 { Precision::F32 } else { Precision::Bf16 };
        let (pixels, inner, outer) = (random.within(9, 33), 8 * random.within(8, 20), random.within(30, 200));
        let geometry = Geometry { stride: 1, near: 1, far: 1 };
        let conv = Conv::on((isa, precision), &random.tensor(&[outer, inner, 3, 3]), None, geometry).unwrap();
        let linear = PackedLinear::on((isa, precision), &random.tensor(&[outer, inner]), None).unwrap();
        let norm = Norm::on(isa, &random.tensor(&[inner]), &random.tensor(&[inner]), 8, 1e-5).unwrap();
        let x = random.tensor(&[2, pixels, pixels, inner]);
        let rows = x.flatten(1, 2).unwrap();
        let calls: [&dyn Fn() -> Tensor; 6] = [
            &|| conv.forward(&x, None, None).unwrap(),
            &|| linear.forward(&rows, None).unwrap(),
            &|| norm.group_norm(&x, true).unwrap(),
            &|| norm.layer_norm(&rows).unwrap(),
            &|| attention_on(isa, [&rows, &rows, &rows], 4, false).unwrap(),
            &|| geglu_on(isa, &rows).unwrap(),
        ];
        for (number, call) in calls.iter().enumerate() {
            let (alone, together) = (values(&call()), values(&super::with_helpers(call)));
            assert!(
                alone == together,
                "{isa:?} {precision}, operator {number}, {pixels}x{pixels}x{inner} to {outer}"
            );
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let linear = PackedLinear::new(Precision::F32, &zeros(&[3, 2]), None).unwrap();
    assert!(linear.forward(&zeros(&[4, 3]), None).is_err());
    assert!(linear.forward(&zeros(&[4, 2]), Some(&zeros(&[4, 2]))).is_err());
    assert!(linear.forward(&zeros(&[4, 2]).to_dtype(DType::F64).unwrap(), None).is_err());
    assert_eq!(linear.forward(&zeros(&[0, 2]), None).unwrap().dims(), [0, 3]);
    let geometry = Geometry { stride: 1, near: 0, far: 0 };
    let conv = Conv::new(Precision::F32, &zeros(&[3, 2, 3, 3]), None, geometry).unwrap();
    assert!(conv.forward(&zeros(&[1, 2, 2, 2]), None, None).is_err(), "smaller than the kernel");
    assert!(conv.forward(&zeros(&[1, 4, 4, 3]), None, None).is_err());
    assert!(Conv::new(Precision::F32, &zeros(&[3, 2, 5, 5]), None, geometry).is_err());
    assert!(Norm::new(&zeros(&[3]), &zeros(&[3]), 2, 1e-5).is_err());
}
