//! What is left to make of the chains of a plan.

use std::collections::{HashMap, HashSet};

use crate::base::key::Key;
use crate::cache::Cache;
use crate::op::chain::{Chain, Item, Need};

/// What a run keeps of each call, by the call: what others need of it. What seems to be kept already is among it, in case
/// that it is found damaged.
pub type Wanted = HashMap<Key, Vec<Item>>;

/// Finds which steps each chain is left with, how many calls that makes, and what of each call is to be kept.
///
/// `chains`: each chain that runs, in order, and whether the port of [`Chain::looks`] is wanted of it. `sources`: the
/// bytes of large items that may be kept; those of the first needs come first. Gives for each chain the first step (from
/// 0) that is made, or their number, and the calls; last the bytes that are newly kept.
pub(crate) fn forecast(
    chains: &[(&Chain, bool)],
    cache: &dyn Cache,
    sources: u64,
) -> (Vec<(usize, u64)>, Wanted, u64) {
    let mut known: HashMap<Key, bool> = HashMap::new();
    let mut cached = |key: &Key| {
        *known
            .entry(*key)
            .or_insert_with(|| cache.place(key).is_some())
    };
    // Which steps each makes: what the chains before it make in this run is there for it.
    let mut made: HashSet<Key> = HashSet::new();
    let mut makes: Vec<Vec<bool>> = Vec::with_capacity(chains.len());
    for (chain, _) in chains {
        let missing = chain
            .states
            .iter()
            .map(|keys| !keys.iter().all(|key| made.contains(key) || cached(key)))
            .collect();
        if cache.keeps() {
            made.extend(chain.states.iter().flatten());
        }
        makes.push(missing);
    }
    let needs = |chain: usize, step: usize| -> &[Need] {
        let (of, looks) = &chains[chain];
        let step_of = &of.steps[step];
        match (makes[chain].get(step).copied().unwrap_or(true), looks) {
            (true, _) => &step_of.needs,
            (false, true) => &step_of.looks,
            (false, false) => &[],
        }
    };
    // What is wanted of each call; a call whose large items do not fit keeps its small ones alone.
    let mut wanted = Wanted::new();
    let mut counted: HashSet<Key> = HashSet::new();
    let mut left = if cache.keeps() { sources } else { 0 };
    // Those of steps that seem to be there count too: they may be found damaged, and who has room for what does not
    // depend on where a run resumes.
    let all_needs = chains.iter().enumerate().flat_map(|(chain, (of, _))| {
        let needs = &needs;
        let steps = of.steps.iter().enumerate();
        steps.flat_map(move |(step, of)| of.needs.iter().chain(needs(chain, step)))
    });
    for need in all_needs.filter(|_| cache.keeps()) {
        let large: u64 = need
            .items
            .iter()
            .filter(|item| item.large && !counted.contains(&item.key))
            .map(|item| item.bytes)
            .sum();
        let fits = large <= left;
        if fits {
            left -= large;
            counted.extend(need.items.iter().map(|item| item.key));
        }
        for item in &need.items {
            if fits || !item.large {
                let items = wanted.entry(need.call).or_default();
                if !items.iter().any(|known| known.key == item.key) {
                    items.push(item.clone());
                }
            }
        }
    }
    // What is left to call.
    let mut items: HashSet<Key> = HashSet::new();
    let mut left = Vec::with_capacity(chains.len());
    for (index, (chain, _)) in chains.iter().enumerate() {
        let mut count = chain.extra;
        for (step, of) in chain.steps.iter().enumerate() {
            // Two halves with one prompt are one call of the step, whether anything of it is kept or not.
            let mut called: HashSet<Key> = HashSet::new();
            for need in needs(index, step) {
                let there = need
                    .items
                    .iter()
                    .all(|item| items.contains(&item.key) || cached(&item.key));
                if !there && called.insert(need.call) {
                    count += need.calls;
                    let kept = wanted.get(&need.call);
                    items.extend(kept.into_iter().flatten().map(|item| item.key));
                }
            }
            if makes[index].get(step).copied().unwrap_or(true) {
                count += of.calls;
                for (call, all) in &of.offers {
                    let kept = wanted.get(call).into_iter().flatten();
                    items.extend(kept.filter(|item| *all || item.large).map(|item| item.key));
                }
            }
        }
        let first = makes[index].iter().position(|makes| *makes);
        left.push((first.unwrap_or(chain.steps.len()), count));
    }
    let mut new = 0;
    let mut seen: HashSet<Key> = HashSet::new();
    let admitted: HashSet<Key> = wanted.values().flatten().map(|item| item.key).collect();
    for (chain, (of, _)) in chains.iter().enumerate() {
        for item in (0..of.steps.len())
            .flat_map(|step| needs(chain, step))
            .flat_map(|need| &need.items)
        {
            if admitted.contains(&item.key) && !cached(&item.key) && seen.insert(item.key) {
                new += item.bytes;
            }
        }
    }
    (left, wanted, new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{HostCache, Outputs};
    use crate::op::chain::Step;
    use std::collections::BTreeMap;

    fn key(name: u8) -> Key {
        Key([name; 32])
    }

    fn item(name: u8, large: bool) -> Item {
        Item {
            key: key(name),
            tag: 0,
            bytes: 10,
            large,
        }
    }

    fn chain(states: &[u8], needs: Vec<Vec<Need>>, offers: &[u8]) -> Chain {
        Chain {
            states: states.iter().map(|&name| vec![key(name)]).collect(),
            steps: needs
                .into_iter()
                .enumerate()
                .map(|(index, needs)| Step {
                    calls: 2,
                    offers: offers
                        .get(index)
                        .map(|&name| (key(name), true))
                        .into_iter()
                        .collect(),
                    needs,
                    looks: Vec::new(),
                })
                .collect(),
            ..Chain::default()
        }
    }

    fn kept(cache: &HostCache, names: &[u8]) {
        for &name in names {
            cache.put(key(name), &Outputs::new(BTreeMap::new()), 1.0);
        }
    }

    #[test]
    fn a_chain_makes_the_steps_whose_states_are_missing() {
        let cache = HostCache::new(10_000);
        let chain = chain(&[1, 2, 3], vec![vec![], vec![], vec![]], &[]);
        let resume = |cache: &HostCache| forecast(&[(&chain, false)], cache, 0).0[0];
        assert_eq!(resume(&cache), (0, 6));
        kept(&cache, &[1, 3]);
        assert_eq!(resume(&cache), (1, 2));
        kept(&cache, &[2]);
        assert_eq!(resume(&cache), (3, 0));
    }

    #[test]
    fn states_that_two_chains_share_are_made_once() {
        let cache = HostCache::new(10_000);
        let first = chain(&[1, 2, 3], vec![vec![], vec![], vec![]], &[]);
        let second = chain(&[1, 2, 9], vec![vec![], vec![], vec![]], &[]);
        let (calls, ..) = forecast(&[(&first, false), (&second, false)], &cache, 0);
        assert_eq!(calls, [(0, 6), (2, 2)]);
    }

    #[test]
    fn what_is_needed_of_a_call_is_kept_when_it_is_made_or_called_for() {
        let cache = HostCache::new(10_000);
        let need = |call: u8, items: Vec<Item>| Need {
            call: key(call),
            items,
            calls: 1,
        };
        let first = chain(&[1, 2], vec![vec![], vec![]], &[51, 52]);
        let second = chain(
            &[11, 12],
            vec![
                vec![need(51, vec![item(101, true), item(102, false)])],
                vec![need(60, vec![item(103, true)])],
            ],
            &[],
        );
        let both = [(&first, false), (&second, false)];
        // The first chain makes call 51 anyway; call 60 is the second one's own.
        let (calls, wanted, _) = forecast(&both, &cache, 100);
        assert_eq!(calls, [(0, 4), (0, 5)]);
        assert_eq!(wanted[&key(51)].len(), 2);
        assert_eq!(wanted[&key(60)].len(), 1);
        // Without room the large ones are called for anew; small ones are kept all the same.
        let (calls, wanted, _) = forecast(&both, &cache, 0);
        assert_eq!(calls, [(0, 4), (0, 6)]);
        assert_eq!(wanted[&key(51)], [item(102, false)]);
        // With room for one, the first need has it.
        let (calls, ..) = forecast(&both, &cache, 10);
        assert_eq!(calls, [(0, 4), (0, 5)]);
        // What is there is not called for.
        kept(&cache, &[103, 1, 2]);
        let (calls, ..) = forecast(&both, &cache, 100);
        assert_eq!(calls, [(2, 0), (0, 5)]);
    }
}
