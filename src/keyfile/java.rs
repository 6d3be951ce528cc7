//! Java's way of writing: numbers, strings, and serialised objects, of which the fields are read
//! and nothing is ever made.
//!
//! Source: Java Object Serialization Specification, chapter 6 (the grammar of the stream);
//! `java.io.DataInput` for the modified UTF-8.

use std::rc::Rc;

/// The deepest nesting of objects, classes and fields.
const MAX_DEPTH: usize = 12;

/// The most objects, classes and strings of one stream; a sealed key has some twenty.
const MAX_HANDLES: usize = 200;

/// The most fields of a class.
const MAX_FIELDS: u16 = 64;

/// The most strings and byte arrays that are kept of an object: a store has many, and each costs
/// more memory than it has bytes in the stream.
const MAX_KEPT: usize = 16;

/// Bytes in Java's order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// Bytes after their number, 32 bits.
    pub(super) fn counted(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }

    /// A string in modified UTF-8 after its length, 16 bits.
    pub(super) fn utf(&mut self) -> Option<String> {
        let length = usize::from(self.u16()?);
        modified_utf8(self.take(length)?)
    }
}

/// NUL has two bytes, and characters beyond U+FFFF are two surrogates of three bytes each.
fn modified_utf8(bytes: &[u8]) -> Option<String> {
    let mut units = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        let (unit, after) = match *rest {
            [] => return String::from_utf16(&units).ok(),
            [a @ 0x01..0x80, ref after @ ..] => (u16::from(a), after),
            [a @ 0xc0..0xe0, b @ 0x80..0xc0, ref after @ ..] => {
                ((u16::from(a & 0x1f) << 6) | u16::from(b & 0x3f), after)
            }
            [
                a @ 0xe0..0xf0,
                b @ 0x80..0xc0,
                c @ 0x80..0xc0,
                ref after @ ..,
            ] => (
                (u16::from(a & 0x0f) << 12) | (u16::from(b & 0x3f) << 6) | u16::from(c & 0x3f),
                after,
            ),
            _ => return None,
        };
        units.push(unit);
        rest = after;
    }
}

/// The strings and byte arrays of a serialised object, of all its classes.
#[derive(Debug)]
pub(super) struct Object<'a> {
    fields: Vec<(Rc<str>, Value<'a>)>,
}

impl<'a> Object<'a> {
    /// Reads a stream with one object from where the bytes stand.
    pub(super) fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        if bytes.u32()? != 0xaced_0005 {
            return None;
        }
        let mut stream = Stream {
            bytes,
            handles: Vec::new(),
        };
        match stream.value(MAX_DEPTH)? {
            Value::Object(object) => Some(object),
            Value::Bytes(_) | Value::Text(_) | Value::Other => None,
        }
    }

    /// A field that is a string.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.fields.iter().find_map(|(field, value)| match value {
            Value::Text(text) if **field == *name => Some(&**text),
            _ => None,
        })
    }

    /// A field that is a byte array.
    pub(super) fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        self.fields.iter().find_map(|(field, value)| match value {
            Value::Bytes(bytes) if **field == *name => Some(*bytes),
            _ => None,
        })
    }
}

#[derive(Debug)]
enum Value<'a> {
    Bytes(&'a [u8]),
    Text(Rc<str>),
    Object(Object<'a>),
    /// Null, a number, an enum's constant, something that was in the stream before.
    Other,
}

#[derive(Debug)]
struct Class {
    name: String,
    flags: u8,
    fields: Vec<(u8, Rc<str>)>,
    parent: Option<Rc<Self>>,
}

/// What a later part of the stream may refer to.
enum Handle {
    Class(Rc<Class>),
    Text(Rc<str>),
    Other,
}

struct Stream<'s, 'a> {
    bytes: &'s mut Bytes<'a>,
    handles: Vec<Handle>,
}

const TC_NULL: u8 = 0x70;
const TC_REFERENCE: u8 = 0x71;
const TC_CLASSDESC: u8 = 0x72;
const TC_OBJECT: u8 = 0x73;
const TC_STRING: u8 = 0x74;
const TC_ARRAY: u8 = 0x75;
const TC_BLOCKDATA: u8 = 0x77;
const TC_ENDBLOCKDATA: u8 = 0x78;
const TC_ENUM: u8 = 0x7e;
const SC_WRITE_METHOD: u8 = 0x01;
const SC_SERIALIZABLE: u8 = 0x02;
const SC_ENUM: u8 = 0x10;
const FIRST_HANDLE: u32 = 0x7e_0000;

impl<'a> Stream<'_, 'a> {
    fn remember(&mut self, handle: Handle) -> Option<usize> {
        if self.handles.len() >= MAX_HANDLES {
            return None;
        }
        self.handles.push(handle);
        Some(self.handles.len() - 1)
    }

    fn referred(&mut self) -> Option<&Handle> {
        let handle = self.bytes.u32()?.checked_sub(FIRST_HANDLE)?;
        self.handles.get(usize::try_from(handle).ok()?)
    }

    fn value(&mut self, depth: usize) -> Option<Value<'a>> {
        let depth = depth.checked_sub(1)?;
        match self.bytes.u8()? {
            TC_NULL => Some(Value::Other),
            TC_REFERENCE => Some(match self.referred()? {
                Handle::Text(text) => Value::Text(Rc::clone(text)),
                Handle::Class(_) | Handle::Other => Value::Other,
            }),
            TC_STRING => {
                let text: Rc<str> = self.bytes.utf()?.into();
                self.remember(Handle::Text(Rc::clone(&text)))?;
                Some(Value::Text(text))
            }
            TC_ARRAY => {
                let class = self.class(depth)??;
                self.remember(Handle::Other)?;
                // Others than of bytes are in no key.
                (class.name == "[B").then_some(())?;
                self.bytes.counted().map(Value::Bytes)
            }
            TC_ENUM => {
                let class = self.class(depth)??;
                self.remember(Handle::Other)?;
                (class.flags & SC_ENUM != 0).then_some(())?;
                self.value(depth)?;
                Some(Value::Other)
            }
            TC_OBJECT => {
                let class = self.class(depth)??;
                self.remember(Handle::Other)?;
                let mut object = Object { fields: Vec::new() };
                self.fields(&class, &mut object, depth)?;
                Some(Value::Object(object))
            }
            _ => None,
        }
    }

    /// The fields of a class, its parent's first.
    fn fields(&mut self, class: &Class, object: &mut Object<'a>, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        if let Some(parent) = &class.parent {
            self.fields(parent, object, depth)?;
        }
        (class.flags & SC_SERIALIZABLE != 0).then_some(())?;
        for (kind, name) in &class.fields {
            let value = match kind {
                b'B' | b'Z' => self.bytes.take(1).map(|_| Value::Other)?,
                b'C' | b'S' => self.bytes.take(2).map(|_| Value::Other)?,
                b'I' | b'F' => self.bytes.take(4).map(|_| Value::Other)?,
                b'J' | b'D' => self.bytes.take(8).map(|_| Value::Other)?,
                b'[' | b'L' => self.value(depth)?,
                _ => return None,
            };
            match value {
                Value::Bytes(_) | Value::Text(_) if object.fields.len() < MAX_KEPT => {
                    object.fields.push((Rc::clone(name), value));
                }
                Value::Bytes(_) | Value::Text(_) => return None,
                Value::Object(_) | Value::Other => {}
            }
        }
        if class.flags & SC_WRITE_METHOD != 0 {
            self.annotation(depth)?;
        }
        Some(())
    }

    /// What a class wrote of its own, up to its end.
    fn annotation(&mut self, depth: usize) -> Option<()> {
        for _ in 0..MAX_HANDLES {
            let mut ahead = *self.bytes;
            match ahead.u8()? {
                TC_ENDBLOCKDATA => {
                    *self.bytes = ahead;
                    return Some(());
                }
                TC_BLOCKDATA => {
                    let length = ahead.u8()?;
                    ahead.take(usize::from(length))?;
                    *self.bytes = ahead;
                }
                _ => {
                    self.value(depth)?;
                }
            }
        }
        None
    }

    /// A class; the inner None is null.
    #[expect(
        clippy::option_option,
        reason = "no class is another thing than no sense"
    )]
    fn class(&mut self, depth: usize) -> Option<Option<Rc<Class>>> {
        let depth = depth.checked_sub(1)?;
        match self.bytes.u8()? {
            TC_NULL => Some(None),
            TC_REFERENCE => match self.referred()? {
                Handle::Class(class) => Some(Some(Rc::clone(class))),
                Handle::Text(_) | Handle::Other => None,
            },
            TC_CLASSDESC => {
                let name = self.bytes.utf()?;
                self.bytes.take(8)?; // serialVersionUID
                // Nothing may refer to it before it is whole, but its number is taken here.
                let handle = self.remember(Handle::Other)?;
                let flags = self.bytes.u8()?;
                let count = self.bytes.u16()?;
                if count > MAX_FIELDS {
                    return None;
                }
                let mut fields = Vec::new();
                for _ in 0..count {
                    let kind = self.bytes.u8()?;
                    let name: Rc<str> = self.bytes.utf()?.into();
                    if matches!(kind, b'[' | b'L') {
                        // The name of its class, which nothing hangs on.
                        match self.value(depth)? {
                            Value::Text(_) => {}
                            Value::Bytes(_) | Value::Object(_) | Value::Other => return None,
                        }
                    }
                    fields.push((kind, name));
                }
                self.annotation(depth)?;
                let parent = self.class(depth)?;
                let class = Rc::new(Class {
                    name,
                    flags,
                    fields,
                    parent,
                });
                if let Some(place) = self.handles.get_mut(handle) {
                    *place = Handle::Class(Rc::clone(&class));
                }
                Some(Some(class))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modified_utf8_is_read_as_java_writes_it() {
        assert_eq!(modified_utf8(b"kek1").as_deref(), Some("kek1"));
        assert_eq!(modified_utf8(&[0xc0, 0x80]).as_deref(), Some("\0"));
        assert_eq!(modified_utf8("ä€".as_bytes()).as_deref(), Some("ä€"));
        let gothic = [0xed, 0xa0, 0x80, 0xed, 0xbc, 0xb0];
        assert_eq!(modified_utf8(&gothic).as_deref(), Some("\u{10330}"));
    }

    #[test]
    fn broken_utf8_is_refused() {
        for broken in [
            &[0x00][..],
            &[0xc3],
            &[0xe2, 0x82],
            &[0x80],
            &[0xf0, 0x9f, 0x98, 0x80],
            &[0xed, 0xa0, 0x80],
        ] {
            assert_eq!(modified_utf8(broken), None, "{broken:x?}");
        }
    }

    #[test]
    fn an_object_without_end_is_refused() {
        let mut stream = vec![0xac, 0xed, 0, 5];
        // Each class is the parent of one more.
        for _ in 0..100_000 {
            stream.extend([
                TC_OBJECT,
                TC_CLASSDESC,
                0,
                1,
                b'X',
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                2,
                0,
                0,
                TC_ENDBLOCKDATA,
            ]);
        }
        assert!(Object::read(&mut Bytes::new(&stream)).is_none());
    }

    #[test]
    fn an_array_that_lies_about_its_length_is_refused() {
        let class = [
            TC_CLASSDESC,
            0,
            2,
            b'[',
            b'B',
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            2,
            0,
            0,
            TC_ENDBLOCKDATA,
            TC_NULL,
        ];
        let mut stream = vec![TC_ARRAY];
        stream.extend(class);
        stream.extend([0x7f, 0xff, 0xff, 0xff, 1]);
        let mut bytes = Bytes::new(&stream);
        let mut stream = Stream {
            bytes: &mut bytes,
            handles: Vec::new(),
        };
        assert!(stream.value(MAX_DEPTH).is_none());
    }
}
