//! Lists and maps of JSON that are bounded while they are read: four megabytes of a stranger's can be a third of a million
//! elements.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// How many elements of one list or map are read.
pub const MAX_ELEMENTS: usize = 10_000;

/// A list, gathered into `C`.
#[derive(Debug)]
pub struct List<T, C = Vec<T>>(pub C, PhantomData<T>);

/// A map of texts, gathered into `C`.
#[derive(Debug, Default)]
pub struct Map<C = BTreeMap<String, String>>(pub C);

/// How many elements there were, of which none is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count(pub usize);

impl<T> Extend<T> for Count {
    fn extend<I: IntoIterator<Item = T>>(&mut self, more: I) {
        self.0 += more.into_iter().count();
    }
}

impl<T, C: Default> Default for List<T, C> {
    fn default() -> Self {
        Self(C::default(), PhantomData)
    }
}

fn too_many<E: Error>() -> E {
    E::custom(format_args!("there are at most {MAX_ELEMENTS} elements here"))
}

impl<'de, T: Deserialize<'de>, C: Default + Extend<T>> Deserialize<'de> for List<T, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self::default())
    }
}

impl<'de, T: Deserialize<'de>, C: Default + Extend<T>> Visitor<'de> for List<T, C> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Self, A::Error> {
        let mut count = 0;
        while let Some(element) = elements.next_element()? {
            count += 1;
            if count > MAX_ELEMENTS {
                return Err(too_many());
            }
            self.0.extend(Some(element));
        }
        Ok(self)
    }
}

impl<'de, C: Default + Extend<(String, String)>> Deserialize<'de> for Map<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self(C::default()))
    }
}

impl<'de, C: Default + Extend<(String, String)>> Visitor<'de> for Map<C> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Self, A::Error> {
        let mut count = 0;
        while let Some(entry) = entries.next_entry()? {
            count += 1;
            if count > MAX_ELEMENTS {
                return Err(too_many());
            }
            self.0.extend(Some(entry));
        }
        Ok(self)
    }
}
