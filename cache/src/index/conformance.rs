//! The conformance suite: tests that every [`PromptIndex`] must pass. [`run_all`] runs them.
#![allow(clippy::unwrap_used)] // A failed test panics.

use std::ops::RangeInclusive;

use super::{ExactHit, Filter, Holding, IndexError, PromptIndex, SearchFilter};
use crate::content::Content;
use crate::entry::{
    Compatibility, Entry, EntryId, FINISHED, Kept, KeptPicture, PaintedPlan, Part, ResumedFrom, Scope,
    SpecificationHash,
};

const ANY_GUIDANCE: RangeInclusive<f32> = 0.0..=f32::MAX;

/// Runs the whole suite. Each call of `make` returns a new, empty index, and a guard that must live as long as the index:
/// its directory or its server.
///
/// # Panics
/// If the index fails a test.
pub async fn run_all<I: PromptIndex, Guard>(make: impl AsyncFn() -> (I, Guard)) {
    an_entry_is_found_until_it_is_removed(&make().await.0).await;
    the_nearest_come_first(&make().await.0).await;
    only_compatible_entries_are_found(&make().await.0).await;
    no_scope_sees_another(&make().await.0).await;
    a_picture_is_held_once(&make().await.0).await;
    uses_are_counted(&make().await.0).await;
    a_scan_sees_every_entry_once(&make().await.0).await;
    impossible_embeddings_are_refused(&make().await.0).await;
    an_entry_may_change(&make().await.0).await;
    only_what_holds_is_found(&make().await.0).await;
    let (one, another) = (make().await, make().await);
    assert_ne!(one.0.name(), another.0.name(), "names are unique");
}

/// An entry of id `n` and specification `n`, with an intermediate state, the finished latent and a picture.
pub fn entry(n: u128, scope: &Scope, embedding: Vec<f32>) -> Entry {
    let kept = |timestep: f64, share: f32| Kept { timestep, share, bytes: 100, uses: 0 };
    Entry {
        id: EntryId::new(n),
        scope: scope.clone(),
        compatibility: compatibility("embedder"),
        model: "storybook".into(),
        guidance_scale: 4.0,
        embedding,
        prompt: Some(format!("prompt {n}")),
        prompt_hash: format!("hash {n}"),
        content: Content::default(),
        specification: specification(n),
        seed: n as u64,
        plan: PaintedPlan::guided(50),
        expected_quality: Some(0.9),
        resumed: None,
        picture: Some(KeptPicture::new(1000, [n as u8; 32])),
        states: vec![kept(801.0, 0.2), kept(FINISHED, 1.0)],
        created: 1000 + n as u64,
        last_used: 1000 + n as u64,
    }
}

/// The specification hash that holds `n`.
pub fn specification(n: u128) -> SpecificationHash {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&n.to_le_bytes());
    SpecificationHash::new(bytes)
}

/// The scope of a namespace of a tenant.
pub fn scope(tenant: &str, namespace: &str) -> Scope {
    Scope { tenant: tenant.into(), namespace: namespace.into() }
}

/// A compatibility; two of them differ in their embedder only.
pub fn compatibility(embedder: &str) -> Compatibility {
    Compatibility {
        latent_space: "space".into(),
        noise_schedule: "schedule".into(),
        width: 512,
        height: 512,
        embedder: embedder.into(),
        negative_prompt: "none".into(),
    }
}

/// A vector of length 1 at an angle, in the plane of the first two of four axes.
pub fn at_angle(degrees: f32) -> Vec<f32> {
    let (sine, cosine) = degrees.to_radians().sin_cos();
    vec![cosine, sine, 0.0, 0.0]
}

async fn add(index: &impl PromptIndex, entry: Entry) {
    assert_eq!(index.upsert(entry).await.unwrap(), None);
}

async fn found(index: &impl PromptIndex, scope: &Scope, embedding: &[f32], n: usize) -> Vec<EntryId> {
    let compatibility = compatibility("embedder");
    let filter = SearchFilter {
        scope,
        compatibility: &compatibility,
        guidance_scale: ANY_GUIDANCE,
        holding: Holding::Anything,
    };
    let near = index.search(&filter, embedding, n).await.unwrap();
    near.into_iter().map(|near| near.entry.id).collect()
}

async fn an_entry_is_found_until_it_is_removed(index: &impl PromptIndex) {
    let scope = scope("tenant", "");
    let one = entry(1, &scope, at_angle(10.0));
    assert_eq!(index.get(&one.id).await.unwrap(), None);
    assert!(found(index, &scope, &at_angle(10.0), 5).await.is_empty());
    add(index, one.clone()).await;
    assert_eq!(index.get(&one.id).await.unwrap().as_ref(), Some(&one));
    assert_eq!(index.exact(&scope, &one.specification).await.unwrap(), ExactHit::of(&one));
    assert_eq!(found(index, &scope, &at_angle(10.0), 5).await, std::slice::from_ref(&one.id));
    index.flush().await.unwrap();
    assert_eq!(index.remove(&one.id).await.unwrap().as_ref(), Some(&one));
    assert_eq!(index.remove(&one.id).await.unwrap(), None);
    assert_eq!(index.get(&one.id).await.unwrap(), None);
    assert_eq!(index.exact(&scope, &one.specification).await.unwrap(), None);
    assert!(found(index, &scope, &at_angle(10.0), 5).await.is_empty());
}

async fn the_nearest_come_first(index: &impl PromptIndex) {
    let scope = scope("tenant", "");
    for n in 0..40 {
        add(index, entry(n, &scope, at_angle(2.0 * n as f32))).await;
    }
    let names = |ns: &[u128]| ns.iter().map(|&n| EntryId::new(n)).collect::<Vec<_>>();
    assert_eq!(found(index, &scope, &at_angle(20.5), 3).await, names(&[10, 11, 9]));
    assert_eq!(found(index, &scope, &at_angle(20.5), 100).await.len(), 40);
    assert!(found(index, &scope, &at_angle(20.5), 0).await.is_empty());
    index.remove(&EntryId::new(10)).await.unwrap();
    assert_eq!(found(index, &scope, &at_angle(20.5), 3).await, names(&[11, 9, 12]));
    let compatibility = compatibility("embedder");
    let filter = SearchFilter {
        scope: &scope,
        compatibility: &compatibility,
        guidance_scale: ANY_GUIDANCE,
        holding: Holding::Anything,
    };
    let near = index.search(&filter, &at_angle(22.0), 2).await.unwrap();
    assert!((near[0].similarity - 1.0).abs() < 1e-3, "the cosine of equal vectors");
    assert!((near[1].similarity - 2.0f32.to_radians().cos()).abs() < 1e-3 || near[1].similarity < 1.0);
}

async fn only_compatible_entries_are_found(index: &impl PromptIndex) {
    let scope = scope("tenant", "");
    let mut other = entry(1, &scope, at_angle(0.0));
    other.compatibility = compatibility("another");
    add(index, other).await;
    let mut strong = entry(2, &scope, at_angle(0.0));
    strong.guidance_scale = 9.0;
    add(index, strong).await;
    add(index, entry(3, &scope, at_angle(50.0))).await;
    let compatibility = compatibility("embedder");
    let filter = SearchFilter {
        scope: &scope,
        compatibility: &compatibility,
        guidance_scale: 3.0..=5.0,
        holding: Holding::Anything,
    };
    let near = index.search(&filter, &at_angle(0.0), 5).await.unwrap();
    let names: Vec<_> = near.into_iter().map(|near| near.entry.id).collect();
    assert_eq!(names, [EntryId::new(3)]);
}

async fn no_scope_sees_another(index: &impl PromptIndex) {
    // Scopes whose concatenated names are equal.
    let scopes = [scope("a", "bc"), scope("ab", "c"), scope("abc", ""), scope("", "abc"), scope("a", "")];
    for (n, of) in scopes.iter().enumerate() {
        let mut one = entry(n as u128, of, at_angle(0.0));
        one.specification = specification(77);
        add(index, one).await;
    }
    for (n, of) in scopes.iter().enumerate() {
        let own = EntryId::new(n as u128);
        assert_eq!(found(index, of, &at_angle(0.0), 10).await, std::slice::from_ref(&own));
        assert_eq!(index.exact(of, &specification(77)).await.unwrap().unwrap().entry, own);
    }
    assert!(found(index, &scope("b", ""), &at_angle(0.0), 10).await.is_empty());
    let filter = Filter { tenant: Some("a".into()), ..Filter::default() };
    assert_eq!(index.scan(&filter, None, 10).await.unwrap().len(), 2);
}

async fn a_picture_is_held_once(index: &impl PromptIndex) {
    let scope = scope("tenant", "");
    let older = entry(1, &scope, at_angle(0.0));
    add(index, older.clone()).await;
    let mut newer = entry(2, &scope, at_angle(0.0));
    newer.specification = older.specification;
    assert_eq!(index.upsert(newer.clone()).await.unwrap().as_ref(), Some(&older));
    assert_eq!(index.get(&older.id).await.unwrap(), None);
    assert_eq!(index.exact(&scope, &older.specification).await.unwrap(), ExactHit::of(&newer));
    assert_eq!(found(index, &scope, &at_angle(0.0), 5).await, std::slice::from_ref(&newer.id));
}

async fn uses_are_counted(index: &impl PromptIndex) {
    let one = entry(1, &scope("tenant", ""), at_angle(0.0));
    add(index, one.clone()).await;
    assert!(index.touch(&one.id, Part::State(801.0), 1, 5000).await.unwrap());
    assert!(index.touch(&one.id, Part::State(801.0), 2, 4000).await.unwrap());
    assert!(index.touch(&one.id, Part::Picture, 7, 4500).await.unwrap());
    assert!(!index.touch(&one.id, Part::State(123.0), 1, 6000).await.unwrap(), "no such state");
    assert!(!index.touch(&EntryId::new(9), Part::Picture, 1, 6000).await.unwrap(), "no such entry");
    let after = index.get(&one.id).await.unwrap().unwrap();
    assert_eq!((after.kept(801.0).unwrap().uses, after.kept(FINISHED).unwrap().uses), (3, 0));
    assert_eq!(after.picture.unwrap().uses, 7);
    assert_eq!(after.last_used, 5000, "the last use is never set back");
}

async fn a_scan_sees_every_entry_once(index: &impl PromptIndex) {
    let scope = scope("tenant", "namespace");
    for n in 0..25 {
        let mut one = entry(n, &scope, at_angle(n as f32));
        one.model = if n % 5 == 0 { "fifth" } else { "other" }.into();
        add(index, one).await;
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = index.scan(&Filter::default(), after.as_ref(), 7).await.unwrap();
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        seen.extend(page.into_iter().map(|entry| entry.id));
    }
    let all: Vec<EntryId> = (0..25).map(EntryId::new).collect();
    assert_eq!(seen, all);
    let count = async |filter: Filter| index.scan(&filter, None, 100).await.unwrap().len();
    assert_eq!(count(Filter { model: Some("fifth".into()), ..Filter::default() }).await, 5);
    assert_eq!(count(Filter { namespace: Some("else".into()), ..Filter::default() }).await, 0);
    assert_eq!(count(Filter { created_before: Some(1010), ..Filter::default() }).await, 10);
    assert_eq!(count(Filter { prompt_hash: Some("hash 7".into()), ..Filter::default() }).await, 1);
    assert_eq!(count(Filter { prompt_contains: Some("pt 2".into()), ..Filter::default() }).await, 6);
    assert_eq!(count(Filter { specification: Some(specification(3)), ..Filter::default() }).await, 1);
}

async fn impossible_embeddings_are_refused(index: &impl PromptIndex) {
    let scope = scope("tenant", "");
    add(index, entry(1, &scope, at_angle(0.0))).await;
    let impossible = [
        vec![],
        vec![0.0; 4],
        vec![f32::NAN, 0.0, 0.0, 1.0],
        vec![f32::INFINITY, 0.0, 0.0, 0.0],
        vec![0.5, 0.0, 0.0, 0.0],
        vec![1.0, 0.0, 0.0],
        vec![1.0, 0.0, 0.0, 0.0, 0.0],
    ];
    let compatibility = compatibility("embedder");
    let filter = SearchFilter {
        scope: &scope,
        compatibility: &compatibility,
        guidance_scale: ANY_GUIDANCE,
        holding: Holding::Anything,
    };
    for embedding in impossible {
        let refused = index.upsert(entry(2, &scope, embedding.clone())).await;
        assert!(matches!(refused, Err(IndexError::Embedding(_))), "{embedding:?}: {refused:?}");
        let refused = index.search(&filter, &embedding, 3).await;
        assert!(matches!(refused, Err(IndexError::Embedding(_))), "{embedding:?}");
    }
    assert_eq!(index.get(&EntryId::new(2)).await.unwrap(), None);
    assert_eq!(found(index, &scope, &at_angle(0.0), 5).await.len(), 1);
}

async fn an_entry_may_change(index: &impl PromptIndex) {
    let (here, there) = (scope("tenant", "here"), scope("tenant", "there"));
    let before = entry(1, &here, at_angle(0.0));
    add(index, before.clone()).await;
    let mut after = before.clone();
    (after.scope, after.embedding, after.specification) = (there.clone(), at_angle(90.0), specification(99));
    after.states.pop();
    add(index, after.clone()).await;
    assert_eq!(index.get(&before.id).await.unwrap().as_ref(), Some(&after));
    assert_eq!(index.exact(&here, &before.specification).await.unwrap(), None);
    assert_eq!(index.exact(&there, &specification(99)).await.unwrap(), ExactHit::of(&after));
    assert!(found(index, &here, &at_angle(0.0), 5).await.is_empty());
    assert_eq!(found(index, &there, &at_angle(90.0), 5).await, std::slice::from_ref(&after.id));
}

async fn only_what_holds_is_found(index: &impl PromptIndex) {
    let scope = scope("tenant", "");
    for n in 0..60 {
        let mut one = entry(n, &scope, at_angle(n as f32));
        match n % 3 {
            0 => {}
            1 => {
                one.states.clear();
                one.resumed = Some(ResumedFrom { entry: EntryId::new(0), loss: 0.02 });
            }
            _ => {
                one.picture = None;
                one.states.pop();
            }
        }
        add(index, one).await;
    }
    let compatibility = compatibility("embedder");
    let nearest = async |holding, n| {
        let filter = SearchFilter {
            scope: &scope,
            compatibility: &compatibility,
            guidance_scale: ANY_GUIDANCE,
            holding,
        };
        let near = index.search(&filter, &at_angle(0.0), n).await.unwrap();
        near.into_iter().map(|near| near.entry.id).collect::<Vec<_>>()
    };
    let names = |ns: &[u128]| ns.iter().map(|&n| EntryId::new(n)).collect::<Vec<_>>();
    assert_eq!(nearest(Holding::Anything, 4).await, names(&[0, 1, 2, 3]));
    assert_eq!(nearest(Holding::Source, 4).await, names(&[0, 2, 3, 5]));
    assert_eq!(nearest(Holding::WholePicture, 4).await, names(&[0, 1, 3, 4]));
    assert_eq!(nearest(Holding::WholePicture, 100).await.len(), 40);
    assert_eq!(
        index.exact(&scope, &specification(2)).await.unwrap(),
        None,
        "its whole picture is not stored"
    );

    let mut changed = index.get(&EntryId::new(0)).await.unwrap().unwrap();
    changed.states.retain(Kept::is_finished);
    add(index, changed.clone()).await;
    assert_eq!(nearest(Holding::Source, 2).await, names(&[2, 3]));
    (changed.picture, changed.states) =
        (None, vec![Kept { timestep: 801.0, share: 0.2, bytes: 100, uses: 0 }]);
    add(index, changed).await;
    assert_eq!(nearest(Holding::Source, 2).await, names(&[0, 2]));
    assert_eq!(nearest(Holding::WholePicture, 2).await, names(&[1, 3]));
    assert_eq!(index.exact(&scope, &specification(0)).await.unwrap(), None);
}
