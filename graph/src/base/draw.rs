//! Seeds of `random`: all seeds of a run are derived from one number, which records of runs hold.

/// The seed of the `index`-th `random` (from 0) of a run whose seeds are drawn from `draw`: that number itself, then
/// outputs of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). They are
/// hashed rather than counted up: noise of neighbouring seeds must not be what two draws of one workflow give.
pub(crate) fn seed(draw: u64, index: u64) -> u64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    if index == 0 {
        return draw;
    }
    let state = draw.wrapping_add(index.wrapping_mul(GAMMA));
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// The index of the first `random` among the values of a sweep: its draws are apart from those of the workflow.
pub(crate) const OF_SWEEP: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_the_outputs_of_splitmix64() {
        // The first outputs for the state 1234567, as in the generator's published test vectors.
        let known = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!([1, 2, 3].map(|index| seed(1_234_567, index)), known);
        assert_eq!(seed(77, 0), 77);
    }

    #[test]
    fn neighbouring_draws_and_indices_give_seeds_far_apart() {
        let mut seeds: Vec<u64> = (0..40)
            .flat_map(|draw| {
                (1..40)
                    .chain(OF_SWEEP..OF_SWEEP + 40)
                    .map(move |at| seed(draw, at))
            })
            .collect();
        seeds.sort_unstable();
        let close = seeds.windows(2).filter(|pair| pair[1] - pair[0] < 1 << 20);
        assert_eq!(close.count(), 0);
    }
}
