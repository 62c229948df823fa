//! Lists and maps of JSON that are bounded while they are read: four megabytes of a stranger's can be a third of a million
//! elements.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// A list of at most `MAX` elements, gathered into `C`.
#[derive(Debug)]
pub struct List<T, const MAX: usize, C = Vec<T>>(pub C, PhantomData<T>);

/// A map of at most `MAX` texts, gathered into `C`.
#[derive(Debug, Default)]
pub struct Map<const MAX: usize, C = BTreeMap<String, String>>(pub C);

/// How many elements there were, of which none is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count(pub usize);

impl<T> Extend<T> for Count {
    fn extend<I: IntoIterator<Item = T>>(&mut self, more: I) {
        self.0 += more.into_iter().count();
    }
}

impl<T, const MAX: usize, C: Default> Default for List<T, MAX, C> {
    fn default() -> Self {
        Self(C::default(), PhantomData)
    }
}

/// Takes what `next` gives until it gives no more, `max` elements at most.
fn gather<T, E: Error>(
    into: &mut impl Extend<T>,
    max: usize,
    mut next: impl FnMut() -> Result<Option<T>, E>,
) -> Result<(), E> {
    let mut count = 0;
    while let Some(element) = next()? {
        count += 1;
        if count > max {
            return Err(E::custom(format_args!("there are at most {max} elements here")));
        }
        into.extend(Some(element));
    }
    Ok(())
}

impl<'de, T: Deserialize<'de>, const MAX: usize, C: Default + Extend<T>> Deserialize<'de> for List<T, MAX, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self::default())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize, C: Default + Extend<T>> Visitor<'de> for List<T, MAX, C> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Self, A::Error> {
        gather(&mut self.0, MAX, || elements.next_element())?;
        Ok(self)
    }
}

impl<'de, const MAX: usize, C: Default + Extend<(String, String)>> Deserialize<'de> for Map<MAX, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self(C::default()))
    }
}

impl<'de, const MAX: usize, C: Default + Extend<(String, String)>> Visitor<'de> for Map<MAX, C> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Self, A::Error> {
        gather(&mut self.0, MAX, || entries.next_entry())?;
        Ok(self)
    }
}
