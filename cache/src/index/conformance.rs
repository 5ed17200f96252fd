//! What every [`PromptIndex`] must do. Each function takes a maker of empty indexes;
//! [`everything`] runs them all.
#![allow(clippy::unwrap_used)] // A failed test panics.

use std::ops::RangeInclusive;

use super::{Filter, IndexError, PromptIndex, Sought};
use crate::content::Content;
use crate::entry::{Compatibility, Entry, EntryId, FINISHED, Kept, Scope};

const ANY_GUIDANCE: RangeInclusive<f32> = 0.0..=f32::MAX;

/// Runs the whole suite. `make` returns a new, empty index every time, and what must live as long as it:
/// a directory, a server.
///
/// # Panics
/// Where the index does not do what it must.
pub async fn everything<I: PromptIndex, Place>(make: impl AsyncFn() -> (I, Place)) {
    an_entry_is_found_until_it_is_removed(&make().await.0).await;
    the_nearest_come_first(&make().await.0).await;
    only_compatible_entries_are_found(&make().await.0).await;
    no_scope_sees_another(&make().await.0).await;
    a_picture_is_held_once(&make().await.0).await;
    uses_are_counted(&make().await.0).await;
    a_scan_sees_every_entry_once(&make().await.0).await;
    impossible_embeddings_are_refused(&make().await.0).await;
    an_entry_may_change(&make().await.0).await;
    let (one, another) = (make().await, make().await);
    assert_ne!(one.0.name(), another.0.name(), "a name is one index's only");
}

/// A plain entry: named `n`, of the picture `n`, with an intermediate state and the finished latent.
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
        exact: format!("picture {n}"),
        seed: n as u64,
        states: vec![kept(801.0, 0.2), kept(FINISHED, 1.0)],
        created: 1000 + n as u64,
        last_used: 1000 + n as u64,
    }
}

/// A namespace of a tenant.
pub fn scope(tenant: &str, namespace: &str) -> Scope {
    Scope { tenant: tenant.into(), namespace: namespace.into() }
}

/// A compatibility that differs by its embedder alone.
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
    let sought = Sought { scope, compatibility: &compatibility, guidance_scale: ANY_GUIDANCE };
    let near = index.search(&sought, embedding, n).await.unwrap();
    near.into_iter().map(|near| near.entry.id).collect()
}

async fn an_entry_is_found_until_it_is_removed(index: &impl PromptIndex) {
    let scope = scope("tenant", "");
    let one = entry(1, &scope, at_angle(10.0));
    assert_eq!(index.get(&one.id).await.unwrap(), None);
    assert!(found(index, &scope, &at_angle(10.0), 5).await.is_empty());
    add(index, one.clone()).await;
    assert_eq!(index.get(&one.id).await.unwrap().as_ref(), Some(&one));
    assert_eq!(index.exact(&scope, &one.exact).await.unwrap().as_ref(), Some(&one));
    assert_eq!(found(index, &scope, &at_angle(10.0), 5).await, std::slice::from_ref(&one.id));
    index.flush().await.unwrap();
    assert_eq!(index.remove(&one.id).await.unwrap().as_ref(), Some(&one));
    assert_eq!(index.remove(&one.id).await.unwrap(), None);
    assert_eq!(index.get(&one.id).await.unwrap(), None);
    assert_eq!(index.exact(&scope, &one.exact).await.unwrap(), None);
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
    let sought = Sought { scope: &scope, compatibility: &compatibility, guidance_scale: ANY_GUIDANCE };
    let near = index.search(&sought, &at_angle(22.0), 2).await.unwrap();
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
    let sought = Sought { scope: &scope, compatibility: &compatibility, guidance_scale: 3.0..=5.0 };
    let near = index.search(&sought, &at_angle(0.0), 5).await.unwrap();
    let names: Vec<_> = near.into_iter().map(|near| near.entry.id).collect();
    assert_eq!(names, [EntryId::new(3)]);
}

async fn no_scope_sees_another(index: &impl PromptIndex) {
    // Names that a careless concatenation would mix up.
    let scopes = [scope("a", "bc"), scope("ab", "c"), scope("abc", ""), scope("", "abc"), scope("a", "")];
    for (n, of) in scopes.iter().enumerate() {
        let mut one = entry(n as u128, of, at_angle(0.0));
        one.exact = "one picture".into();
        add(index, one).await;
    }
    for (n, of) in scopes.iter().enumerate() {
        let own = EntryId::new(n as u128);
        assert_eq!(found(index, of, &at_angle(0.0), 10).await, std::slice::from_ref(&own));
        assert_eq!(index.exact(of, "one picture").await.unwrap().unwrap().id, own);
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
    newer.exact = older.exact.clone();
    assert_eq!(index.upsert(newer.clone()).await.unwrap().as_ref(), Some(&older));
    assert_eq!(index.get(&older.id).await.unwrap(), None);
    assert_eq!(index.exact(&scope, &older.exact).await.unwrap().as_ref(), Some(&newer));
    assert_eq!(found(index, &scope, &at_angle(0.0), 5).await, std::slice::from_ref(&newer.id));
}

async fn uses_are_counted(index: &impl PromptIndex) {
    let one = entry(1, &scope("tenant", ""), at_angle(0.0));
    add(index, one.clone()).await;
    assert!(index.touch(&one.id, 801.0, 5000).await.unwrap());
    assert!(index.touch(&one.id, 801.0, 4000).await.unwrap());
    assert!(!index.touch(&one.id, 123.0, 6000).await.unwrap(), "no such state");
    assert!(!index.touch(&EntryId::new(9), 801.0, 6000).await.unwrap(), "no such entry");
    let after = index.get(&one.id).await.unwrap().unwrap();
    assert_eq!((after.kept(801.0).unwrap().uses, after.kept(FINISHED).unwrap().uses), (2, 0));
    assert_eq!(after.last_used, 5000, "time does not run backwards");
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
    assert_eq!(count(Filter { exact: Some("picture 3".into()), ..Filter::default() }).await, 1);
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
    let sought = Sought { scope: &scope, compatibility: &compatibility, guidance_scale: ANY_GUIDANCE };
    for embedding in impossible {
        let refused = index.upsert(entry(2, &scope, embedding.clone())).await;
        assert!(matches!(refused, Err(IndexError::Embedding(_))), "{embedding:?}: {refused:?}");
        let refused = index.search(&sought, &embedding, 3).await;
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
    (after.scope, after.embedding, after.exact) = (there.clone(), at_angle(90.0), "another".into());
    after.states.pop();
    add(index, after.clone()).await;
    assert_eq!(index.get(&before.id).await.unwrap().as_ref(), Some(&after));
    assert_eq!(index.exact(&here, &before.exact).await.unwrap(), None);
    assert_eq!(index.exact(&there, "another").await.unwrap().as_ref(), Some(&after));
    assert!(found(index, &here, &at_angle(0.0), 5).await.is_empty());
    assert_eq!(found(index, &there, &at_angle(90.0), 5).await, std::slice::from_ref(&after.id));
}
