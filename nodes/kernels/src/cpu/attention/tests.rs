//! The fast attention against the plain one, on random shapes and every instruction set of the machine.

use super::super::tests::{bits, close, data, kernels};
use super::super::{Cpu, Isa};
use crate::{Attended, AttentionGradients, Backward, Kernel, Plain};
use candle_core::{Device, Tensor};
use proptest::prelude::*;

/// Two keys of three, others for each image.
fn some_keys(sources: usize, m: usize) -> Vec<Vec<u32>> {
    (0..sources as u32)
        .map(|s| {
            (0..m as u32)
                .filter(|j| (j + s) % 3 != 1 || *j == 0)
                .collect()
        })
        .collect()
}

/// A mask with zeros, ones and numbers between.
fn mask(images: usize, n: usize, seed: u64) -> Tensor {
    let numbers = data(&[images, n], seed);
    ((numbers * 0.6).unwrap() + 0.5)
        .unwrap()
        .clamp(0f32, 1f32)
        .unwrap()
}

fn everywhere(f: impl FnMut(Cpu)) {
    kernels().into_iter().for_each(f);
}

/// All results of sets that fuse have the same bits.
fn same_where_fused(f: impl Fn(Cpu) -> Tensor) {
    let mut first: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        if isa.fuses() {
            let got = bits(&f(Cpu::with(isa)));
            let first = first.get_or_insert_with(|| got.clone());
            assert_eq!(*first, got, "{isa:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_equals_the_plain_version(
        b in 1usize..7, shared: bool, n in 1usize..150, m in 1usize..300, heads in 1usize..4,
        size in prop_oneof![1usize..23, 60usize..100], seed in 0u64..99, chosen: bool,
    ) {
        let c = heads * size;
        let sources = if shared { 1 } else { b };
        let (q, k, v) = (data(&[b, n, c], seed), data(&[sources, m, c], seed + 1), data(&[sources, m, c], seed + 2));
        let keys = some_keys(sources, m);
        let keys = chosen.then_some(keys.as_slice());
        let plain = Plain.attention(&q, &k, &v, heads, 0.4, keys).unwrap();
        let plain_map = Plain.attention_map(&q, &k, heads, 0.4).unwrap();
        everywhere(|cpu| {
            close(&cpu.attention(&q, &k, &v, heads, 0.4, keys).unwrap(), &plain);
            close(&cpu.attention_map(&q, &k, heads, 0.4).unwrap(), &plain_map);
        });
        same_where_fused(|cpu| cpu.attention(&q, &k, &v, heads, 0.4, keys).unwrap());
        same_where_fused(|cpu| cpu.attention_map(&q, &k, heads, 0.4).unwrap());
    }

    #[test]
    fn a_blend_is_its_formula(
        b in 1usize..5, shared: bool, shared_mask: bool, n in 1usize..300, m in 1usize..200, heads in 1usize..4,
        size in prop_oneof![1usize..23, 60usize..100], seed in 0u64..99, chosen: bool,
    ) {
        let c = heads * size;
        let sources = if shared { 1 } else { b };
        let q = data(&[b, n, c], seed);
        let (k, v) = (data(&[sources, m, c], seed + 1), data(&[sources, m, c], seed + 2));
        let (k2, v2) = (data(&[b, n, c], seed + 3), data(&[b, n, c], seed + 4));
        let mask = mask(if shared_mask { 1 } else { b }, n, seed + 5);
        let keys = some_keys(sources, m);
        let inside = Attended { k: &k, v: &v, keys: chosen.then_some(keys.as_slice()) };
        let outside = Attended { k: &k2, v: &v2, keys: None };
        let plain = Plain.attention_blend(&q, inside, outside, &mask, heads, 0.4).unwrap();
        everywhere(|cpu| {
            let blend = cpu.attention_blend(&q, inside, outside, &mask, heads, 0.4).unwrap();
            close(&blend, &plain);
            let column = mask.unsqueeze(2).unwrap();
            let inside = cpu.attention(&q, inside.k, inside.v, heads, 0.4, inside.keys).unwrap();
            let outside = cpu.attention(&q, outside.k, outside.v, heads, 0.4, outside.keys).unwrap();
            let formula = (column.broadcast_mul(&inside).unwrap()
                + (1.0 - &column).unwrap().broadcast_mul(&outside).unwrap()).unwrap();
            assert_eq!(bits(&blend), bits(&formula), "{cpu:?}");
        });
    }

    #[test]
    fn a_query_gets_the_same_bits_wherever_it_is(
        b in 2usize..6, n in 2usize..200, m in 1usize..200, heads in 1usize..4, size in prop_oneof![1usize..23, 60usize..80], seed in 0u64..99, first in 0usize..200,
    ) {
        let c = heads * size;
        let first = first % n;
        let q = data(&[b, n, c], seed);
        let (k, v) = (data(&[b, m, c], seed + 1), data(&[b, m, c], seed + 2));
        everywhere(|cpu| {
            let all = cpu.attention(&q, &k, &v, heads, 0.3, None).unwrap();
            let maps = cpu.attention_map(&q, &k, heads, 0.3).unwrap();
            for image in 0..b {
                let part = |t: &Tensor| t.narrow(0, image, 1).unwrap();
                let rows = |t: &Tensor| part(t).narrow(1, first, n - first).unwrap();
                let alone = cpu.attention(&rows(&q), &part(&k), &part(&v), heads, 0.3, None).unwrap();
                assert_eq!(bits(&rows(&all)), bits(&alone), "{cpu:?}");
                let alone = cpu.attention_map(&rows(&q), &part(&k), heads, 0.3).unwrap();
                assert_eq!(bits(&rows(&maps)), bits(&alone), "{cpu:?}");
            }
        });
    }
}

/// A head longer than the blocks of the inner sum, scores far apart, and a last key that outweighs all.
#[test]
fn long_heads_and_large_scores() {
    let (q, v) = (data(&[1, 70, 300], 1), data(&[1, 200, 300], 2));
    let mut k = data(&[1, 200, 300], 3);
    for factor in [0.1, 1.0, 20.0] {
        k = (k * factor).unwrap();
        let plain = Plain.attention(&q, &k, &v, 1, 1.0, None).unwrap();
        everywhere(|cpu| close(&cpu.attention(&q, &k, &v, 1, 1.0, None).unwrap(), &plain));
        same_where_fused(|cpu| cpu.attention(&q, &k, &v, 1, 1.0, None).unwrap());
    }
}

/// The weights of a query add up to 1, so that equal values are given back.
#[test]
fn equal_values_are_given_back() {
    let (q, k) = (data(&[2, 65, 24], 1), data(&[2, 300, 24], 2));
    let v = Tensor::full(2f32, (2, 300, 24), &Device::Cpu).unwrap();
    let expected = Tensor::full(2f32, (2, 65, 24), &Device::Cpu).unwrap();
    everywhere(|cpu| {
        let got = cpu.attention(&q, &k, &v, 3, 0.3, None).unwrap();
        let off = (got - &expected).unwrap().abs().unwrap().max_all().unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-6);
    });
}

#[test]
fn what_is_no_number_stays_visible() {
    let mut numbers = vec![0.5f32; 70 * 8];
    numbers[66 * 8 + 3] = f32::NAN;
    let q = Tensor::from_vec(numbers, (1, 70, 8), &Device::Cpu).unwrap();
    let k = data(&[1, 100, 8], 1);
    everywhere(|cpu| {
        let got = cpu.attention(&q, &k, &k, 2, 0.3, None).unwrap();
        let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, x) in got.iter().enumerate() {
            let (row, head) = (i / 8, i % 8 / 4);
            assert_eq!(x.is_nan(), row == 66 && head == 0, "{cpu:?} {i}");
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let (q, k) = (data(&[2, 5, 8], 1), data(&[2, 6, 8], 2));
    let cpu = Cpu::default();
    let attend = |k: &Tensor, heads, keys: Option<&[Vec<u32>]>| {
        cpu.attention(&q, k, k, heads, 0.3, keys).is_ok()
    };
    assert!(attend(&k, 2, None) && attend(&k, 2, Some(&[vec![0, 5], vec![3]])));
    assert!(!attend(&k, 3, None), "heads that do not divide C");
    assert!(
        !attend(&k, 2, Some(&[vec![0, 6], vec![3]])),
        "a key that is not there"
    );
    assert!(
        !attend(&k, 2, Some(&[vec![3, 1], vec![3]])),
        "keys out of order"
    );
    assert!(!attend(&k, 2, Some(&[vec![3], vec![]])), "no key");
    assert!(!attend(&k, 2, Some(&[vec![3]])), "keys of one image of two");
    assert!(!attend(&data(&[3, 6, 8], 2), 2, None), "another batch");
    assert!(!attend(&data(&[2, 6, 7], 2), 2, None), "another width");
    let side = Attended {
        k: &k,
        v: &k,
        keys: None,
    };
    for dims in [[2, 4], [3, 5]] {
        let mask = data(&dims, 3);
        assert!(cpu.attention_blend(&q, side, side, &mask, 2, 0.3).is_err());
    }
}

/// Shapes (images, images of keys, queries, keys, heads, channels of one, causal): of one task and of several, of whole panels,
/// blocks and vectors and of others.
#[test]
fn gradients_equal_the_plain_ones_and_are_the_same_bits_by_all_sets_that_fuse() {
    for (images, sources, n, m, heads, size, causal) in [
        (1, 1, 1, 1, 1, 1, false),
        (2, 2, 130, 77, 2, 40, false),
        (2, 1, 65, 200, 3, 20, false),
        (1, 1, 1300, 100, 1, 40, false),
        (3, 1, 64, 96, 2, 160, false),
        (1, 1, 77, 77, 2, 64, true),
        (1, 1, 200, 200, 1, 33, true),
    ] {
        let c = heads * size;
        let [grad, q] = [1, 2].map(|seed| data(&[images, n, c], seed));
        let [k, v] = [3, 4].map(|seed| data(&[sources, m, c], seed));
        let y = match causal {
            true => Plain.causal_attention(&q, &k, &v, heads, 0.2),
            false => Plain.attention(&q, &k, &v, heads, 0.2, None),
        };
        let y = y.unwrap();
        let gradients = |kernel: &dyn Backward| {
            let of = kernel.attention_backward((&grad, &y), (&q, &k, &v), heads, 0.2, causal);
            let AttentionGradients { q, k, v } = of.unwrap();
            [q, k, v]
        };
        let due = gradients(&Plain);
        everywhere(|cpu| {
            for (found, due) in gradients(&cpu).iter().zip(&due) {
                close(found, due);
            }
        });
        same_where_fused(|cpu| {
            let all = gradients(&cpu).map(|t| t.flatten_all().unwrap());
            Tensor::cat(&all, 0).unwrap()
        });
    }
    let [grad, q, k, v] = [1, 2, 3, 4].map(|seed| data(&[1, 8, 12], seed));
    let other = data(&[1, 9, 12], 5);
    for (given, of) in [(&other, &k), (&grad, &other)] {
        let of = Cpu::default().attention_backward((&grad, given), (&q, of, &v), 3, 0.2, false);
        assert!(of.is_err());
    }
}
