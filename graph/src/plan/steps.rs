//! What is left to make of the chains of a plan.

use std::collections::{HashMap, HashSet};

use crate::base::key::Key;
use crate::cache::Cache;
use crate::op::chain::{Chain, Item, Need};

/// What a run keeps of each call, by the call: what other tasks need of it. Items that seem to be in the cache are among
/// them, as an entry may turn out damaged.
pub type ItemsToKeep = HashMap<Key, Vec<Item>>;

/// What is left to make of the chains of a plan.
#[derive(Debug)]
pub(crate) struct Work {
    /// For each chain: the first step (from 0) that is made, or their number; and the calls.
    pub(crate) chains: Vec<(usize, u64)>,
    /// What of each call is to be kept.
    pub(crate) to_keep: ItemsToKeep,
    /// The bytes that are newly kept.
    pub(crate) kept_bytes: u64,
}

/// Finds which steps each chain is left with, how many calls that makes, and what of each call is to be kept.
///
/// `chains`: each chain that runs, in order, and whether the port of [`Chain::looks`] is needed of it. `sources`: the
/// bytes of large items that may be kept; those of the first needs come first.
pub(crate) fn work(chains: &[(&Chain, bool)], cache: &dyn Cache, sources: u64) -> Work {
    let mut lookup = Lookup {
        cache,
        known: HashMap::new(),
    };
    cache.expect(&mut chains.iter().flat_map(|(chain, _)| keys(chain)));
    let left = Left {
        chains,
        makes: missing_steps(chains, &mut lookup),
    };
    let to_keep = match cache.keeps() {
        true => left.to_keep(sources),
        false => ItemsToKeep::new(),
    };
    Work {
        chains: left.calls(&to_keep, &mut lookup),
        kept_bytes: left.kept_bytes(&to_keep, &mut lookup),
        to_keep,
    }
}

/// The keys of a chain that a cache may be asked for.
fn keys(chain: &Chain) -> impl Iterator<Item = Key> {
    let items = (chain.steps.iter()).flat_map(|step| step.needs.iter().chain(&step.looks));
    let items = items.flat_map(|need| need.items.iter().map(|item| item.key));
    chain.states.iter().flatten().copied().chain(items)
}

/// What a cache has; it is asked once for each key.
struct Lookup<'a> {
    cache: &'a dyn Cache,
    known: HashMap<Key, bool>,
}

impl Lookup<'_> {
    fn has(&mut self, key: &Key) -> bool {
        let cache = self.cache;
        *(self.known.entry(*key)).or_insert_with(|| cache.place(key).is_some())
    }
}

/// For each chain and step: whether it is made. What earlier chains make in this run is there for later ones.
fn missing_steps(chains: &[(&Chain, bool)], lookup: &mut Lookup<'_>) -> Vec<Vec<bool>> {
    let mut made: HashSet<Key> = HashSet::new();
    let mut makes: Vec<Vec<bool>> = Vec::with_capacity(chains.len());
    for (chain, _) in chains {
        let missing = (chain.states.iter())
            .map(|keys| !(keys.iter()).all(|key| made.contains(key) || lookup.has(key)))
            .collect();
        if lookup.cache.keeps() {
            made.extend(chain.states.iter().flatten());
        }
        makes.push(missing);
    }
    makes
}

/// The chains of a plan and which steps of each are made.
struct Left<'a> {
    chains: &'a [(&'a Chain, bool)],
    makes: Vec<Vec<bool>>,
}

impl<'a> Left<'a> {
    fn makes(&self, chain: usize, step: usize) -> bool {
        self.makes[chain].get(step).copied().unwrap_or(true)
    }

    /// What a step needs of other calls in this run.
    fn needs(&self, chain: usize, step: usize) -> &'a [Need] {
        let (of, looks) = &self.chains[chain];
        let step_of = &of.steps[step];
        match (self.makes(chain, step), looks) {
            (true, _) => &step_of.needs,
            (false, true) => &step_of.looks,
            (false, false) => &[],
        }
    }

    /// What is to be kept of each call; of a call whose large items do not fit only the small ones are.
    fn to_keep(&self, sources: u64) -> ItemsToKeep {
        let mut to_keep = ItemsToKeep::new();
        let mut counted: HashSet<Key> = HashSet::new();
        let mut left = sources;
        // Needs of steps that seem to be there count too: an entry may turn out damaged, and what gets room must not depend
        // on where a run resumes.
        let all_needs = self.chains.iter().enumerate().flat_map(|(chain, (of, _))| {
            let steps = of.steps.iter().enumerate();
            steps.flat_map(move |(step, of)| of.needs.iter().chain(self.needs(chain, step)))
        });
        for need in all_needs {
            let large: u64 = (need.items.iter())
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
                    let items = to_keep.entry(need.call).or_default();
                    if !items.iter().any(|other| other.key == item.key) {
                        items.push(item.clone());
                    }
                }
            }
        }
        to_keep
    }

    /// For each chain: the first step that is made, or their number; and the calls that are left.
    fn calls(&self, to_keep: &ItemsToKeep, lookup: &mut Lookup<'_>) -> Vec<(usize, u64)> {
        let mut items: HashSet<Key> = HashSet::new();
        let mut left = Vec::with_capacity(self.chains.len());
        for (index, (chain, _)) in self.chains.iter().enumerate() {
            let mut count = chain.extra;
            for (step, of) in chain.steps.iter().enumerate() {
                // Two halves with one prompt are one call of the step, whether anything of it is kept or not.
                let mut called: HashSet<Key> = HashSet::new();
                for need in self.needs(index, step) {
                    let there = (need.items.iter())
                        .all(|item| items.contains(&item.key) || lookup.has(&item.key));
                    if !there && called.insert(need.call) {
                        count += need.calls;
                        let kept = to_keep.get(&need.call);
                        items.extend(kept.into_iter().flatten().map(|item| item.key));
                    }
                }
                if self.makes(index, step) {
                    count += of.calls;
                    for (call, all) in &of.offers {
                        let kept = to_keep.get(call).into_iter().flatten();
                        items.extend(kept.filter(|item| *all || item.large).map(|item| item.key));
                    }
                }
            }
            let first = self.makes[index].iter().position(|makes| *makes);
            left.push((first.unwrap_or(chain.steps.len()), count));
        }
        left
    }

    fn kept_bytes(&self, to_keep: &ItemsToKeep, lookup: &mut Lookup<'_>) -> u64 {
        let mut bytes = 0;
        let mut seen: HashSet<Key> = HashSet::new();
        let admitted: HashSet<Key> = to_keep.values().flatten().map(|item| item.key).collect();
        for (chain, (of, _)) in self.chains.iter().enumerate() {
            for item in (0..of.steps.len())
                .flat_map(|step| self.needs(chain, step))
                .flat_map(|need| &need.items)
            {
                if admitted.contains(&item.key) && !lookup.has(&item.key) && seen.insert(item.key) {
                    bytes += item.bytes;
                }
            }
        }
        bytes
    }
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
        let resume = |cache: &HostCache| work(&[(&chain, false)], cache, 0).chains[0];
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
        let Work { chains: calls, .. } = work(&[(&first, false), (&second, false)], &cache, 0);
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
        let Work {
            chains: calls,
            to_keep,
            ..
        } = work(&both, &cache, 100);
        assert_eq!(calls, [(0, 4), (0, 5)]);
        assert_eq!(to_keep[&key(51)].len(), 2);
        assert_eq!(to_keep[&key(60)].len(), 1);
        // Without room the large ones are made again; small ones are kept all the same.
        let Work {
            chains: calls,
            to_keep,
            ..
        } = work(&both, &cache, 0);
        assert_eq!(calls, [(0, 4), (0, 6)]);
        assert_eq!(to_keep[&key(51)], [item(102, false)]);
        // With room for one, the first need has it.
        let Work { chains: calls, .. } = work(&both, &cache, 10);
        assert_eq!(calls, [(0, 4), (0, 5)]);
        // What is there is not called for.
        kept(&cache, &[103, 1, 2]);
        let Work { chains: calls, .. } = work(&both, &cache, 100);
        assert_eq!(calls, [(2, 0), (0, 5)]);
    }
}
