//! A wrapper for a serde serializer that refuses values which the decoder would refuse or change: nesting deeper than
//! the decoder's limit, and numbers that JSON cannot represent.
//!
//! Its state is in the stack frames of the serialization, so a valid value needs no allocation.

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// The number of nested arrays and maps at which decoding stops, so that it does not exhaust the stack: the deepest
/// value that can be read and written has one level less.
pub const MAX_DEPTH: usize = 128;

/// A value that is checked while it is serialized. `FINITE` is true for an encoding without NaN and infinity.
pub(crate) struct Checked<'a, T: ?Sized, const FINITE: bool> {
    value: &'a T,
    /// The number of arrays and maps around it.
    depth: usize,
}

impl<'a, T: ?Sized, const FINITE: bool> Checked<'a, T, FINITE> {
    pub(crate) fn new(value: &'a T) -> Self {
        Self { value, depth: 0 }
    }
}

impl<T: Serialize + ?Sized, const FINITE: bool> Serialize for Checked<'_, T, FINITE> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(Checking::<S, FINITE> { inner: serializer, depth: self.depth })
    }
}

/// The wrapper for the serializer itself and for each compound serializer that it returns.
struct Checking<S, const FINITE: bool> {
    inner: S,
    depth: usize,
}

impl<S, const FINITE: bool> Checking<S, FINITE> {
    #[inline]
    fn at<'a, T: ?Sized>(&self, value: &'a T) -> Checked<'a, T, FINITE> {
        Checked { value, depth: self.depth }
    }
}

/// The depth inside one more array or map. Decoders read one level less than their limit [`MAX_DEPTH`].
#[inline]
fn deeper<E: Error>(depth: usize) -> Result<usize, E> {
    match depth + 1 {
        MAX_DEPTH.. => Err(E::custom(format_args!("nested deeper than {} levels", MAX_DEPTH - 1))),
        depth => Ok(depth),
    }
}

#[inline]
fn finite<E: Error, const FINITE: bool>(is_finite: bool) -> Result<(), E> {
    if FINITE && !is_finite {
        return Err(E::custom(
            "JSON has neither NaN nor infinity; use an `Option` or do not publish the event",
        ));
    }
    Ok(())
}

macro_rules! scalars {
    ($($name:ident($type:ty);)*) => {$(
        #[inline]
        fn $name(self, value: $type) -> Result<S::Ok, S::Error> {
            self.inner.$name(value)
        }
    )*};
}

macro_rules! begin {
    ($($name:ident($($argument:ident: $type:ty),*) -> $compound:ident = $levels:literal;)*) => {$(
        #[inline]
        fn $name(self, $($argument: $type),*) -> Result<Self::$compound, S::Error> {
            let mut depth = self.depth;
            for _ in 0..$levels {
                depth = deeper(depth)?;
            }
            Ok(Checking { inner: self.inner.$name($($argument),*)?, depth })
        }
    )*};
}

impl<S: Serializer, const FINITE: bool> Serializer for Checking<S, FINITE> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Checking<S::SerializeSeq, FINITE>;
    type SerializeTuple = Checking<S::SerializeTuple, FINITE>;
    type SerializeTupleStruct = Checking<S::SerializeTupleStruct, FINITE>;
    type SerializeTupleVariant = Checking<S::SerializeTupleVariant, FINITE>;
    type SerializeMap = Checking<S::SerializeMap, FINITE>;
    type SerializeStruct = Checking<S::SerializeStruct, FINITE>;
    type SerializeStructVariant = Checking<S::SerializeStructVariant, FINITE>;

    scalars! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_unit_struct(&'static str);
    }

    begin! {
        serialize_seq(length: Option<usize>) -> SerializeSeq = 1;
        serialize_tuple(length: usize) -> SerializeTuple = 1;
        serialize_tuple_struct(name: &'static str, length: usize) -> SerializeTupleStruct = 1;
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, length: usize) -> SerializeTupleVariant = 2;
        serialize_map(length: Option<usize>) -> SerializeMap = 1;
        serialize_struct(name: &'static str, length: usize) -> SerializeStruct = 1;
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, length: usize) -> SerializeStructVariant = 2;
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        finite::<_, FINITE>(value.is_finite())?;
        self.inner.serialize_f32(value)
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        finite::<_, FINITE>(value.is_finite())?;
        self.inner.serialize_f64(value)
    }

    #[inline]
    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.inner.serialize_none()
    }

    #[inline]
    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.inner.serialize_unit()
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let value = self.at(value);
        self.inner.serialize_some(&value)
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.inner.serialize_unit_variant(name, index, variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = self.at(value);
        self.inner.serialize_newtype_struct(name, &value)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = Checked::<T, FINITE> { value, depth: deeper(self.depth)? };
        self.inner.serialize_newtype_variant(name, index, variant, &value)
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! parts {
    ($($trait:ident::$name:ident;)*) => {$(
        impl<S: $trait, const FINITE: bool> $trait for Checking<S, FINITE> {
            type Ok = S::Ok;
            type Error = S::Error;

            #[inline]
            fn $name<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                let value = self.at(value);
                self.inner.$name(&value)
            }

            #[inline]
            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        }
    )*};
}

parts! {
    SerializeSeq::serialize_element;
    SerializeTuple::serialize_element;
    SerializeTupleStruct::serialize_field;
    SerializeTupleVariant::serialize_field;
}

macro_rules! fields {
    ($($trait:ident)*) => {$(
        impl<S: $trait, const FINITE: bool> $trait for Checking<S, FINITE> {
            type Ok = S::Ok;
            type Error = S::Error;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), S::Error> {
                let value = self.at(value);
                // The error text becomes the path to the field, from the outermost field inwards.
                self.inner.serialize_field(name, &value).map_err(|error| S::Error::custom(format_args!("{name}: {error}")))
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), S::Error> {
                self.inner.skip_field(name)
            }

            #[inline]
            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        }
    )*};
}

fields! { SerializeStruct SerializeStructVariant }

impl<S: SerializeMap, const FINITE: bool> SerializeMap for Checking<S, FINITE> {
    type Ok = S::Ok;
    type Error = S::Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        let key = self.at(key);
        self.inner.serialize_key(&key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        let value = self.at(value);
        self.inner.serialize_value(&value)
    }

    #[inline]
    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}
