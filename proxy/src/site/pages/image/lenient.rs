//! Reading documents of strangers without building what isn't wanted: an object of eight bytes would take six hundred in memory.
//! What is of another shape than one expects is passed over, and nothing of it is kept.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::super::words::plain;

/// A text, bounded and harmless; empty if there is something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(pub String);

/// An object, unless there is something else.
#[derive(Debug)]
pub struct Object<T>(pub Option<T>);

/// The first objects of a list; what isn't one is left out.
#[derive(Debug)]
pub struct Objects<T, const MAX: usize>(pub Vec<T>);

impl<T> Default for Object<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T, const MAX: usize> Default for Objects<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// What takes one shape, and passes over all others.
macro_rules! pass_over_others {
    ($nothing:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("anything")
        }
        fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok($nothing)
        }
    };
}

fn skip_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<(), A::Error> {
    while list.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn skip_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;
            pass_over_others!(Text::default());
            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(plain(text)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Text, A::Error> {
                skip_list(list).map(|()| Text::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
                skip_map(map).map(|()| Text::default())
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            pass_over_others!(Object(None));
            fn visit_str<E: Error>(self, _: &str) -> Result<Object<T>, E> {
                Ok(Object(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Object<T>, A::Error> {
                skip_list(list).map(|()| Object(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|value| Object(Some(value)))
            }
        }
        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}

impl<'de, T: DeserializeOwned, const MAX: usize> Deserialize<'de> for Objects<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: DeserializeOwned, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
            type Value = Objects<T, MAX>;
            pass_over_others!(Objects(Vec::new()));
            fn visit_str<E: Error>(self, _: &str) -> Result<Objects<T, MAX>, E> {
                Ok(Objects(Vec::new()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Objects<T, MAX>, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MAX {
                    match list.next_element::<Object<T>>()? {
                        Some(one) => kept.extend(one.0),
                        None => return Ok(Objects(kept)),
                    }
                }
                skip_list(list).map(|()| Objects(kept))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Objects<T, MAX>, A::Error> {
                skip_map(map).map(|()| Objects(Vec::new()))
            }
        }
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}
