//! Taking turns.

use std::collections::VecDeque;

/// Something that waits in parts, which are taken out one at a time.
pub(super) trait Parts {
    /// What is taken out.
    type Part;
    /// Takes the next part.
    fn next(&mut self) -> Option<Self::Part>;
    /// The part that `next` would take.
    fn peek(&self) -> Option<&Self::Part>;
    /// How many parts wait.
    fn len(&self) -> usize;
    /// Forgets parts that nobody wants any more.
    fn retain(&mut self, wanted: &mut dyn FnMut(&Self::Part) -> bool);
}

impl<T> Parts for VecDeque<T> {
    type Part = T;
    fn next(&mut self) -> Option<T> {
        self.pop_front()
    }
    fn peek(&self) -> Option<&T> {
        self.front()
    }
    fn len(&self) -> usize {
        self.len()
    }
    fn retain(&mut self, wanted: &mut dyn FnMut(&T) -> bool) {
        VecDeque::retain(self, wanted);
    }
}

/// Serves keys in turn, one part each.
///
/// The key being served keeps its place at the front until the next turn is taken, then lines up behind
/// all who came meanwhile: a newcomer waits for the part being served, not for one more of the same key.
pub(super) struct Turns<K, Q> {
    line: VecDeque<(K, Q)>,
    front_is_served: bool,
}

impl<K, Q> Default for Turns<K, Q> {
    fn default() -> Self {
        Self { line: VecDeque::new(), front_is_served: false }
    }
}

impl<K: PartialEq, Q: Parts + Default> Turns<K, Q> {
    /// A key's parts; a new key lines up at the end.
    pub(super) fn entry(&mut self, key: K) -> &mut Q {
        let at = self.line.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
            self.line.push_back((key, Q::default()));
            self.line.len() - 1
        });
        &mut self.line[at].1
    }

    /// How many parts of a key wait.
    pub(super) fn len_of<R: PartialEq + ?Sized>(&self, key: &R) -> usize
    where
        K: std::borrow::Borrow<R>,
    {
        self.line.iter().find(|(k, _)| k.borrow() == key).map_or(0, |(_, q)| q.len())
    }
}

impl<K, Q: Parts> Turns<K, Q> {
    /// A key's parts.
    pub(super) fn get<R: PartialEq + ?Sized>(&self, key: &R) -> Option<&Q>
    where
        K: std::borrow::Borrow<R>,
    {
        self.line.iter().find(|(k, _)| k.borrow() == key).map(|(_, q)| q)
    }

    /// Every key's parts.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Q> {
        self.line.iter().map(|(_, q)| q)
    }

    /// How many parts are served before the one at `place` among its key's, if nobody else comes.
    pub(super) fn before<R: PartialEq + ?Sized>(&self, key: &R, place: usize) -> usize
    where
        K: std::borrow::Borrow<R>,
    {
        let served = usize::from(self.front_is_served && !self.line.is_empty());
        let (served, rest) = (self.line.iter().take(served), self.line.iter().skip(served));
        let mut own = false;
        let others = rest.chain(served).map(|(k, q)| {
            if k.borrow() == key {
                own = true;
                return place;
            }
            // Those in line before this key have a turn more until its own.
            q.len().min(place + usize::from(!own))
        });
        others.sum()
    }
}

impl<K, Q: Parts> Parts for Turns<K, Q> {
    type Part = Q::Part;

    fn next(&mut self) -> Option<Q::Part> {
        if std::mem::take(&mut self.front_is_served) {
            let served = self.line.pop_front().filter(|(_, q)| q.len() > 0);
            self.line.extend(served);
        }
        let part = self.line.front_mut()?.1.next();
        self.front_is_served = true;
        part
    }

    fn peek(&self) -> Option<&Q::Part> {
        // The key that was served is the last, if it wants more.
        let served = usize::from(self.front_is_served);
        let next = self.line.get(served).or_else(|| self.line.front())?;
        next.1.peek()
    }

    fn len(&self) -> usize {
        self.line.iter().map(|(_, q)| q.len()).sum()
    }

    fn retain(&mut self, wanted: &mut dyn FnMut(&Q::Part) -> bool) {
        let mut served = self.front_is_served;
        self.line.retain_mut(|(_, q)| {
            q.retain(wanted);
            std::mem::take(&mut served) || q.len() > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients, their requests, the requests' pictures.
    type Line = Turns<char, Turns<u8, VecDeque<&'static str>>>;

    fn add(line: &mut Line, client: char, request: u8, pictures: &[&'static str]) {
        line.entry(client).entry(request).extend(pictures);
    }

    fn rest(line: &mut Line) -> Vec<&'static str> {
        std::iter::from_fn(|| line.next()).collect()
    }

    #[test]
    fn a_newcomer_waits_for_one_picture() {
        let mut line = Line::default();
        add(&mut line, 'a', 1, &["a1", "a2", "a3", "a4"]);
        assert_eq!(line.next(), Some("a1"));
        add(&mut line, 'b', 2, &["b1", "b2"]);
        assert_eq!(line.next(), Some("b1"));
        add(&mut line, 'c', 3, &["c1"]);
        let mut line_is_foreseen = || {
            let next = line.peek().copied();
            assert_eq!(next, line.next());
            next
        };
        let rest: Vec<_> = std::iter::from_fn(&mut line_is_foreseen).collect();
        assert_eq!(rest, ["a2", "c1", "b2", "a3", "a4"]);
    }

    #[test]
    fn more_requests_give_no_more_turns() {
        let mut line = Line::default();
        add(&mut line, 'a', 1, &["a1", "a2"]);
        add(&mut line, 'a', 2, &["A1", "A2"]);
        add(&mut line, 'b', 3, &["b1", "b2"]);
        assert_eq!(rest(&mut line), ["a1", "b1", "A1", "b2", "a2", "A2"]);
    }

    #[test]
    fn a_stream_of_newcomers_starves_nobody() {
        let mut line = Line::default();
        add(&mut line, 'a', 0, &["a1", "a2"]);
        line.next();
        for (turn, client) in ('b'..'z').enumerate() {
            add(&mut line, client, 0, &["new", "new"]);
            if line.next() == Some("a2") {
                assert!(turn <= 1);
                return;
            }
        }
        panic!("a2 was never served");
    }

    #[test]
    fn the_served_key_may_ask_for_more_and_others_may_leave() {
        let mut line = Line::default();
        add(&mut line, 'a', 1, &["a1"]);
        line.next();
        add(&mut line, 'a', 2, &["a2"]);
        add(&mut line, 'b', 3, &["gone", "b1"]);
        assert_eq!((line.len(), line.len_of(&'b')), (3, 2));
        line.retain(&mut |picture| *picture != "gone");
        assert_eq!((line.len(), line.len_of(&'a')), (2, 1));
        assert_eq!(rest(&mut line), ["b1", "a2"]);
    }
}
