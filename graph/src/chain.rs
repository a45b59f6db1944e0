//! Step chains: a sampler isn't one cache entry but a chain of them, so that an edit resumes at the first step that it
//! touches, and what its calls give besides (keys and values of attention, say) is kept for others.
//!
//! The engine knows no tensor. A node says, before anything runs, under which keys the state before each of its steps is
//! kept, how many calls of a network a step makes, and what it needs of calls that others may have made already. From
//! that the plan knows where the node resumes and how many calls are left; the node, when it runs, gets and puts the
//! entries themselves.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::device::LOOK;
use crate::files::{Digest, lock};
use crate::key::Key;
use crate::port::Known;
use crate::registry::KnownPorts;

/// What a node tells those downstream of it while the plan is made; they know its type.
pub type Note = Arc<dyn Any + Send + Sync>;

/// Something that a call gives besides its result, kept under a key of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is called.
    pub key: Key,
    /// What of the call it is; the node that makes the call knows.
    pub tag: u64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Whether the budget for the sources' keys and values counts it: what is small is always kept.
    pub large: bool,
}

/// A call that a step makes, unless all that it needs of it is kept already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The call. Who makes the same call for another reason is asked to keep the items.
    pub call: Key,
    /// What is needed of it.
    pub items: Vec<Item>,
    /// How many calls it counts for (one for each image).
    pub calls: u64,
}

/// A step of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The calls that the step itself makes.
    pub calls: u64,
    /// Their names, and whether they give what is small too: what others need of them can be kept while they are made.
    pub offers: Vec<(Key, bool)>,
    /// What the step needs of other calls.
    pub needs: Vec<Need>,
    /// What is needed of other calls, even if the step is there already, to make the port of [`Chain::looks`].
    pub looks: Vec<Need>,
}

/// The steps of a node, and the keys of the states between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The number of the first step: earlier ones are another node's.
    pub first: usize,
    /// The steps from there on.
    pub steps: Vec<Step>,
    /// For each step: the entries that hold the state after it, and what later steps need of it besides. A step whose
    /// entries are all there is not made again.
    pub states: Vec<Vec<Key>>,
    /// The port that [`Step::looks`] are for.
    pub looks: Option<&'static str>,
    /// Calls that are made whenever the node runs.
    pub extra: u64,
    /// What a call's seconds depend on (the model, the size), for whoever predicts them.
    pub class: String,
}

impl Chain {
    /// T: one past the number of the last step.
    #[must_use]
    pub fn end(&self) -> usize {
        self.first + self.steps.len()
    }
}

/// What a node says of itself when the plan is made.
#[derive(Clone, Default)]
pub struct Chained {
    /// For those downstream.
    pub note: Option<Note>,
    /// Keys of output ports that are not the node's own key: equal values of other nodes have them too.
    pub ports: Vec<(&'static str, Key)>,
    /// Its steps.
    pub chain: Option<Chain>,
    /// Calls of a network that a node without steps makes.
    pub calls: u64,
}

impl fmt::Debug for Chained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chained")
            .field("ports", &self.ports)
            .field("chain", &self.chain)
            .finish_non_exhaustive()
    }
}

/// A link of an input port, while the plan is made.
#[derive(Clone)]
pub struct UpLink {
    /// The key of the value.
    pub key: Key,
    /// The output port that it comes from.
    pub port: &'static str,
    note: Option<Note>,
}

impl UpLink {
    /// What the node upstream says of itself, as `T`.
    #[must_use]
    pub fn note<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.note.clone()?.downcast().ok()
    }
}

/// What a node knows of its inputs while the plan is made.
pub struct Upstream<'a> {
    /// The node's own key.
    pub key: Key,
    /// The files that it reads: role and digest.
    pub files: &'a [(String, Digest)],
    /// What numbers depend on.
    pub numerics: &'a str,
    pub(crate) links: Vec<(&'static str, Vec<UpLink>)>,
    pub(crate) known: &'a KnownPorts,
}

impl fmt::Debug for Upstream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Upstream<'_> {
    pub(crate) fn up(key: Key, port: &'static str, note: Option<Note>) -> UpLink {
        UpLink { key, port, note }
    }

    /// The first link of an input port.
    #[must_use]
    pub fn link(&self, port: &str) -> Option<&UpLink> {
        let (_, links) = self.links.iter().find(|(name, _)| *name == port)?;
        links.first()
    }

    /// All links of an input port that takes a list.
    #[must_use]
    pub fn links(&self, port: &str) -> &[UpLink] {
        let found = self.links.iter().find(|(name, _)| *name == port);
        found.map_or(&[], |(_, links)| links.as_slice())
    }

    /// The facts of the (first) value that is linked to an input port, as the check knew them.
    #[must_use]
    pub fn facts<F: DeserializeOwned>(&self, port: &str) -> Option<F> {
        self.facts_at(port, 0)
    }

    /// The facts of value `index` of a port that takes a list.
    #[must_use]
    pub fn facts_at<F: DeserializeOwned>(&self, port: &str, index: usize) -> Option<F> {
        match self.known.get(port)?.get(index)? {
            Known::Facts(facts) => serde_json::from_value(facts.clone()).ok(),
            _ => None,
        }
    }
}

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

/// What is being made right now, by key: who needs it too waits and finds it in the cache.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    busy: Mutex<HashSet<Key>>,
    changed: Condvar,
}

impl InFlight {
    /// Takes the key for itself, after whoever has it; `None` when `stop` says so meanwhile.
    pub(crate) fn claim(&self, key: Key, stop: impl Fn() -> bool) -> Option<Claim<'_>> {
        let mut busy = lock(&self.busy);
        while !busy.insert(key) {
            if stop() {
                return None;
            }
            busy = self
                .changed
                .wait_timeout(busy, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Some(Claim { owner: self, key })
    }
}

/// The right to make what a key names, until it is dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    owner: &'a InFlight,
    key: Key,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.owner.busy).remove(&self.key);
        self.owner.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{HostCache, Outputs};
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

    #[test]
    fn work_in_flight_is_waited_for() {
        let flight = InFlight::default();
        let claim = flight.claim(key(1), || false);
        assert!(claim.is_some());
        assert!(flight.claim(key(1), || true).is_none());
        assert!(flight.claim(key(2), || true).is_some());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| flight.claim(key(1), || false).is_some());
            drop(claim);
            assert!(waits.join().unwrap());
        });
    }
}
