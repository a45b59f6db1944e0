//! The source branches of a swap: what is kept of their calls, and the calls for the rest, several in one.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use retouch_graph::Key;

use crate::checkpoint::model::Checkpoint;
use crate::networks::unet::grid_at;
use crate::sampling::control::{
    Branch, Capture, Captured, CapturedParts, Captures, Half, Part, Rows, of_half,
};
use crate::sampling::guidance::{Member, keep, together, wanted};
use crate::sampling::memory::StepStore;
use crate::sampling::swap::setup::{CallContext, Retouch, Source, StepNeeds};
use crate::{Error, Result};

/// Pixels of latents, over all rows, that calls of sources are made together for. A call of few pixels spends its time
/// on reading the network's weights and on handing out work; of many, on computing, and gains nothing.
const TOGETHER: usize = 4096;

/// A call that a source branch needs.
struct Due<'a> {
    model: &'a Checkpoint,
    member: Member<'a>,
    /// What it is to give.
    asked: BTreeSet<(Half, Part)>,
    /// Whether the unconditional half is the conditional.
    same: bool,
}

impl Due<'_> {
    /// Whether all that the call is to give is kept.
    fn is_kept(&self, memory: &dyn StepStore) -> bool {
        self.asked.iter().all(|(half, part)| {
            let call = memory.call(self.member.rows.branch, *half, self.member.step);
            call.is_some_and(|call| memory.part(&call, *part).is_some())
        })
    }
}

/// What is kept of what these halves of a branch give at step k, and the rows of the halves that lack something.
fn lacking(
    k: usize,
    parts: &BTreeSet<Part>,
    all: Rows,
    memory: &dyn StepStore,
) -> (CapturedParts, Rows) {
    let mut store = CapturedParts::new();
    let mut rows = Rows {
        unconditional: false,
        conditional: false,
        ..all
    };
    for (half, _) in all.halves() {
        let parts = of_half(parts, half);
        let kept: Option<Vec<Captured>> = memory
            .call(all.branch, half, k)
            .and_then(|call| parts.iter().map(|part| memory.part(&call, *part)).collect());
        match kept {
            Some(kept) => {
                store.extend(parts.into_iter().map(|part| (half, part)).zip(kept));
            }
            None if parts.is_empty() => {}
            None if half == Half::Unconditional => rows.unconditional = true,
            None => rows.conditional = true,
        }
    }
    (store, rows)
}

/// What the calls of these rows of a branch at step k are called.
fn names(k: usize, rows: Rows, memory: &dyn StepStore) -> BTreeSet<Key> {
    let halves = rows.halves().into_iter();
    halves
        .filter_map(|(half, _)| memory.call(rows.branch, half, k))
        .collect()
}

/// Makes calls of one model as one, and keeps what is wanted of each.
fn make(dues: &[Due<'_>], with: CallContext<'_>) -> Result<Vec<CapturedParts>> {
    let Some(model) = dues.first().map(|due| due.model) else {
        return Ok(Vec::new());
    };
    let mut captures = Captures::default();
    let mut members = Vec::new();
    for Due { member, asked, .. } in dues {
        let (_, _, h, w) = member.z.dims4()?;
        let capture = Capture::new(asked.clone(), |level| grid_at((h, w), level));
        captures.push(member.step, member.rows, capture);
        members.push(member.clone());
    }
    let start = Instant::now();
    together(model, &members, &mut captures, with.monitor)?;
    let rows: usize = members.iter().map(|member| member.rows.count()).sum();
    let per_row = start.elapsed().as_secs_f64() / rows.max(1) as f64;
    let mut stores = captures.finish()?;
    for (due, store) in dues.iter().zip(&mut stores) {
        let (rows, step) = (due.member.rows, due.member.step);
        let seconds = per_row * rows.count() as f64;
        keep(with.memory, rows.branch, step, rows, store, seconds);
        if due.same {
            let negative = store.iter().filter_map(|((_, part), given)| {
                let large = !matches!(part, Part::Map(_));
                large.then(|| ((Half::Unconditional, *part), given.clone()))
            });
            let negative: CapturedParts = negative.collect();
            store.extend(negative);
        }
    }
    Ok(stores)
}

impl Retouch<'_> {
    /// What a source branch gives at step k: what was made ahead, else from the memory, else by calling those of its halves
    /// that lack something.
    pub(super) fn source(
        &self,
        source: &Source<'_>,
        k: usize,
        parts: &BTreeSet<Part>,
        branch: Branch,
        with: CallContext<'_>,
        ahead: &mut HashMap<(usize, Branch), CapturedParts>,
    ) -> Result<CapturedParts> {
        if let Some(made) = ahead.remove(&(k, branch)) {
            return Ok(made);
        }
        let images = source.trajectory[k].dim(0)?;
        let all = Rows::new(branch, images, self.settings.guidance != 1.0);
        let store = self.halves(source, k, parts, all, with, true)?;
        store.ok_or_else(|| Error::request("a branch was not called"))
    }

    /// What these halves of a source branch give at step k; `None` when that takes a call and `calls` forbids it.
    pub(super) fn halves(
        &self,
        source: &Source<'_>,
        k: usize,
        parts: &BTreeSet<Part>,
        all: Rows,
        with: CallContext<'_>,
        calls: bool,
    ) -> Result<Option<CapturedParts>> {
        let (mut store, rows) = lacking(k, parts, all, with.memory);
        if rows.count() == 0 {
            return Ok(Some(store));
        }
        if !calls {
            return Ok(None);
        }
        // A node on another device may be making the same.
        let _held = with.memory.claim_calls(&names(k, rows, with.memory))?;
        let (made, rows) = lacking(k, parts, rows, with.memory);
        store.extend(made);
        if rows.count() == 0 {
            return Ok(Some(store));
        }
        let due = self.due(source, k, parts, rows, with)?;
        for made in make(&[due], with)? {
            store.extend(made);
        }
        Ok(Some(store))
    }

    /// The call for these rows of a source branch at step k.
    fn due<'s>(
        &self,
        source: &'s Source<'_>,
        k: usize,
        parts: &BTreeSet<Part>,
        mut rows: Rows,
        with: CallContext<'_>,
    ) -> Result<Due<'s>> {
        let CallContext { ddim, memory, .. } = with;
        // Both halves with one prompt are one call.
        let name = |half| memory.call(rows.branch, half, k);
        let same = rows.unconditional
            && rows.conditional
            && name(Half::Unconditional).is_some_and(|call| name(Half::Conditional) == Some(call));
        if same {
            rows.unconditional = false;
        }
        let mut asked = wanted(memory, rows.branch, k, rows);
        for (half, _) in rows.halves() {
            asked.extend(of_half(parts, half).into_iter().map(|part| (half, part)));
        }
        let drawer = source.drawers[k].draws.conditioned()?;
        Ok(Due {
            model: drawer.model,
            member: Member {
                conditions: drawer.conditions,
                guided: self.settings.guidance != 1.0,
                z: &source.trajectory[k],
                timestep: ddim.timesteps()[k] as f32,
                step: k,
                rows,
                beside: None,
            },
            asked,
            same,
        })
    }

    /// Makes in one call what the sources of step k lack, and those of the steps behind it, as far as [`TOGETHER`] goes and
    /// one model draws them. What a branch gives at a step is left in `ahead`; what cannot be part of the call is not.
    pub(super) fn call_ahead(
        &self,
        k: usize,
        with: CallContext<'_>,
        ahead: &mut HashMap<(usize, Branch), CapturedParts>,
    ) -> Result<()> {
        let CallContext { ddim, memory, .. } = with;
        let s = &self.settings;
        let steps = ddim.steps();
        if ahead.keys().any(|(step, _)| *step == k) {
            return Ok(());
        }
        let mut dues: Vec<Due<'_>> = Vec::new();
        let mut kept = Vec::new();
        let mut calls = BTreeSet::new();
        let mut pixels = 0;
        'steps: for j in k..steps {
            let needs = self.needs(j)?;
            if !(needs.swap || needs.lock) || j > k && memory.state(j + 1).is_some() {
                break;
            }
            let mut sources = vec![(Branch::Context, &self.context, &needs.context)];
            for (index, (source, parts)) in
                self.references.iter().zip(&needs.references).enumerate()
            {
                if self.twin(index, j, memory).is_none() {
                    sources.push((Branch::Reference(index), source, parts));
                }
            }
            let before = dues.len();
            for (branch, source, parts) in sources {
                let (images, _, h, w) = source.trajectory[j].dims4()?;
                // Nothing joins what is too large alone: it is looked for when it is needed.
                if 2 * images * h * w > TOGETHER {
                    continue;
                }
                let all = Rows::new(branch, images, s.guidance != 1.0);
                let (store, rows) = lacking(j, parts, all, memory);
                if rows.count() == 0 {
                    if j == k {
                        ahead.insert((k, branch), store);
                    }
                    continue;
                }
                // Another model, or other prompts to encode, can wait until they are needed.
                let (own, first) = (source.drawers[j].draws, source.drawers[k].draws);
                if !std::ptr::addr_eq(own, first) {
                    break 'steps;
                }
                let due = self.due(source, j, parts, rows, with)?;
                let joins = match dues.first() {
                    Some(first) => {
                        std::ptr::eq(first.model, due.model) && first.member.joins(&due.member)?
                    }
                    None => due.member.joins(&due.member)?,
                };
                let own = names(j, due.member.rows, memory);
                // What another branch is about to give is found when that is done.
                if !joins || !own.is_disjoint(&calls) {
                    continue;
                }
                let more = due.member.rows.count() * h * w;
                if pixels + more > TOGETHER {
                    // Of this step what fits, of a later one all or nothing.
                    if j == k {
                        continue;
                    }
                    dues.truncate(before);
                    kept.truncate(before);
                    break 'steps;
                }
                pixels += more;
                calls.extend(own);
                kept.push(store);
                dues.push(due);
            }
            if dues.len() == before {
                break; // what lacks nothing is not looked through for what comes behind it
            }
        }
        // One by one they are called for where they are needed.
        if dues.len() > 1 {
            let _held = memory.claim_calls(&calls)?;
            if dues.iter().any(|due| due.is_kept(memory)) {
                // A node on another device made some of it in the meantime.
                return Ok(());
            }
            let made = make(&dues, with)?;
            for ((due, mut store), made) in dues.iter().zip(kept).zip(made) {
                store.extend(made);
                ahead.insert((due.member.step, due.member.rows.branch), store);
            }
        }
        Ok(())
    }

    /// What the prompt half of all branches gives at step k, of what is needed the parts that `of` leaves.
    pub(super) fn sources(
        &self,
        k: usize,
        needs: &StepNeeds,
        of: &dyn Fn(&BTreeSet<Part>) -> BTreeSet<Part>,
        with: CallContext<'_>,
        calls: bool,
    ) -> Result<Option<(CapturedParts, Vec<CapturedParts>)>> {
        let half = |source: &Source<'_>, parts: &BTreeSet<Part>, branch| {
            with.monitor.goes_on()?;
            // With guidance or without, the prompt's half alone.
            let rows = Rows::new(branch, source.trajectory[k].dim(0)?, false);
            self.halves(source, k, &of(parts), rows, with, calls)
        };
        let Some(context) = half(&self.context, &needs.context, Branch::Context)? else {
            return Ok(None);
        };
        let mut references = Vec::new();
        for (index, (source, parts)) in self.references.iter().zip(&needs.references).enumerate() {
            let store = match self.twin(index, k, with.memory) {
                Some(twin) => Some(CapturedParts::clone(&references[twin])),
                None => half(source, parts, Branch::Reference(index))?,
            };
            match store {
                Some(store) => references.push(store),
                None => return Ok(None),
            }
        }
        Ok(Some((context, references)))
    }

    /// The context's or a reference's branch.
    ///
    /// # Errors
    /// When there is no such branch.
    pub fn source_of(&self, branch: Branch) -> Result<&Source<'_>> {
        match branch {
            Branch::Context => Some(&self.context),
            Branch::Reference(index) => self.references.get(index),
            Branch::Plain | Branch::Target => None,
        }
        .ok_or_else(|| Error::request(format!("{branch:?} is not a source of the swap")))
    }
}
