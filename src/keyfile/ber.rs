//! BER (X.690), as far as PKCS#12 and PKCS#8 need it.
//!
//! RACF and old tools write indefinite lengths and octet strings in pieces, which DER does not
//! allow. Nothing here recurses without a limit, and nothing is allocated by a declared length.

use der::asn1::ObjectIdentifier;
use zeroize::Zeroizing;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
const CONSTRUCTED: u8 = 0x20;

/// The deepest nesting of indefinite lengths, and of octet strings in pieces.
const MAX_DEPTH: usize = 16;

/// What is not as it should be, or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Elements one after another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ber<'a> {
    rest: &'a [u8],
}

/// One element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
}

impl<'a> Ber<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether the next element has that tag.
    pub(super) fn is_next(&self, tag: u8) -> bool {
        self.rest.first() == Some(&tag)
    }

    /// The next element, whatever it is.
    pub(super) fn any(&mut self) -> Result<Element<'a>, Malformed> {
        let head = Head::read(self.rest)?;
        let body = self
            .rest
            .get(head.len..)
            .ok_or(Malformed("an element that ends early"))?;
        let (content, end) = match head.length {
            Some(length) => (length, length),
            None => {
                let length = indefinite(body)?;
                (length, length + 2)
            }
        };
        let element = Element {
            tag: head.tag,
            content: body
                .get(..content)
                .ok_or(Malformed("an element that ends early"))?,
        };
        self.rest = body
            .get(end..)
            .ok_or(Malformed("an element that ends early"))?;
        Ok(element)
    }

    /// The content of the next element, which must have that tag.
    pub(super) fn take(&mut self, tag: u8, what: &'static str) -> Result<&'a [u8], Malformed> {
        if !self.is_next(tag) {
            return Err(Malformed(what));
        }
        let element = self.any().map_err(|_| Malformed(what))?;
        Ok(element.content)
    }

    /// What is in the next element, which must have that tag.
    pub(super) fn inside(&mut self, tag: u8, what: &'static str) -> Result<Self, Malformed> {
        self.take(tag, what).map(Self::new)
    }

    pub(super) fn sequence(&mut self, what: &'static str) -> Result<Self, Malformed> {
        self.inside(SEQUENCE, what)
    }

    /// What is in a tag `[n] EXPLICIT`.
    pub(super) fn explicit(&mut self, n: u8, what: &'static str) -> Result<Self, Malformed> {
        self.inside(0xa0 | n, what)
    }

    /// An octet string under that tag, whole or in pieces.
    pub(super) fn octets(
        &mut self,
        tag: u8,
        what: &'static str,
    ) -> Result<Zeroizing<Vec<u8>>, Malformed> {
        let element = self.any().map_err(|_| Malformed(what))?;
        // With the room that it can take at most, so that no copy is left behind in growing.
        let mut octets = Zeroizing::new(Vec::with_capacity(element.content.len()));
        if element.tag == tag {
            octets.extend_from_slice(element.content);
        } else if element.tag == tag | CONSTRUCTED {
            pieces(element.content, &mut octets, MAX_DEPTH).map_err(|_| Malformed(what))?;
        } else {
            return Err(Malformed(what));
        }
        Ok(octets)
    }

    pub(super) fn oid(&mut self, what: &'static str) -> Result<ObjectIdentifier, Malformed> {
        let content = self.take(OID, what)?;
        ObjectIdentifier::from_bytes(content).map_err(|_| Malformed(what))
    }

    /// A number that is not negative and no longer than 64 bits.
    pub(super) fn number(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let content = self.take(INTEGER, what)?;
        let number = content.strip_prefix(&[0]).unwrap_or(content);
        if content.is_empty() || content.first().is_some_and(|first| *first >= 0x80) {
            return Err(Malformed(what));
        }
        // What does not fit is more than any limit.
        if number.len() > 8 {
            return Ok(u64::MAX);
        }
        Ok(number
            .iter()
            .fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }
}

/// What comes after the head of an element of that tag, however long it says it is.
pub(super) fn after_head(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    let head = Head::read(bytes).ok()?;
    if head.tag != tag {
        return None;
    }
    bytes.get(head.len..)
}

/// Tag and length of an element.
struct Head {
    tag: u8,
    /// None where it is indefinite.
    length: Option<usize>,
    /// How many bytes both take.
    len: usize,
}

impl Head {
    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let [tag, first, rest @ ..] = bytes else {
            return Err(Malformed("an element that ends early"));
        };
        let tag = *tag;
        if tag & 0x1f == 0x1f {
            return Err(Malformed("a tag number over 30"));
        }
        let head = |length, len| Self { tag, length, len };
        match *first {
            short @ 0..0x80 => Ok(head(Some(usize::from(short)), 2)),
            0x80 if tag & CONSTRUCTED != 0 => Ok(head(None, 2)),
            long @ 0x81..=0x84 => {
                let count = usize::from(long - 0x80);
                let length = rest
                    .get(..count)
                    .ok_or(Malformed("an element that ends early"))?
                    .iter()
                    .fold(0, |length, byte| (length << 8) | usize::from(*byte));
                Ok(head(Some(length), 2 + count))
            }
            _ => Err(Malformed("a length over 4 GiB")),
        }
    }
}

/// How long the content of an element of indefinite length is, up to its end-of-contents.
fn indefinite(bytes: &[u8]) -> Result<usize, Malformed> {
    let mut at: usize = 0;
    let mut depth = 1;
    loop {
        let rest = bytes
            .get(at..)
            .ok_or(Malformed("an element that ends early"))?;
        if rest.starts_with(&[0, 0]) {
            depth -= 1;
            if depth == 0 {
                return Ok(at);
            }
            at += 2;
            continue;
        }
        let head = Head::read(rest)?;
        at += head.len;
        match head.length {
            Some(length) => at = at.saturating_add(length),
            None if depth == MAX_DEPTH => return Err(Malformed("indefinite lengths too deep")),
            None => depth += 1,
        }
    }
}

fn pieces(content: &[u8], octets: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
    let mut ber = Ber::new(content);
    while !ber.is_empty() {
        let piece = ber.any()?;
        if piece.tag == OCTETS {
            octets.extend_from_slice(piece.content);
        } else if piece.tag == OCTETS | CONSTRUCTED && depth > 0 {
            pieces(piece.content, octets, depth - 1)?;
        } else {
            return Err(Malformed("a piece of an octet string that is none"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        Ber::new(bytes).octets(OCTETS, "octets").map(|o| o.to_vec())
    }

    #[test]
    fn an_octet_string_whole_and_in_pieces() {
        assert_eq!(octets(&[4, 2, 7, 8]), Ok(vec![7, 8]));
        assert_eq!(octets(&[0x24, 7, 4, 1, 7, 4, 2, 8, 9]), Ok(vec![7, 8, 9]));
        let pieces = [
            0x24, 0x80, 4, 1, 7, 0x24, 0x80, 4, 1, 8, 0, 0, 4, 1, 9, 0, 0,
        ];
        assert_eq!(octets(&pieces), Ok(vec![7, 8, 9]));
    }

    #[test]
    fn what_follows_an_indefinite_length_is_found() {
        let mut ber = Ber::new(&[0x30, 0x80, 0x30, 0x80, 2, 1, 5, 0, 0, 0, 0, 2, 1, 6]);
        let mut outer = ber.sequence("outer").unwrap();
        assert_eq!(outer.sequence("inner").unwrap().number("n"), Ok(5));
        assert!(outer.is_empty());
        assert_eq!(ber.number("n"), Ok(6));
        assert!(ber.is_empty());
    }

    #[test]
    fn an_indefinite_length_without_an_end_is_refused() {
        assert!(Ber::new(&[0x30, 0x80, 2, 1, 5, 0]).any().is_err());
        assert!(Ber::new(&[0x30, 0x80]).any().is_err());
        // A primitive element cannot have one.
        assert!(Ber::new(&[4, 0x80, 0, 0]).any().is_err());
    }

    #[test]
    fn a_nesting_without_end_is_refused() {
        let deep = [0x30, 0x80].repeat(1_000_000);
        let error = Ber::new(&deep).any().unwrap_err();
        assert_eq!(error, Malformed("indefinite lengths too deep"));
        let mut nested = vec![4, 0];
        for _ in 0..60 {
            let mut outer = vec![0x24, u8::try_from(nested.len()).unwrap()];
            outer.append(&mut nested);
            nested = outer;
        }
        assert!(octets(&nested).is_err());
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        for lie in [
            &[4, 0x84, 0xff, 0xff, 0xff, 0xff, 1][..],
            &[4, 0x85, 0, 0, 0, 0, 1, 1],
            &[4, 0xff],
            &[4, 5, 1],
            &[4],
            &[0x1f, 1, 1],
        ] {
            assert!(octets(lie).is_err(), "{lie:x?}");
        }
    }

    #[test]
    fn a_number_is_never_negative_and_never_wraps() {
        let number = |bytes: &[u8]| Ber::new(bytes).number("n");
        assert_eq!(number(&[2, 1, 0]), Ok(0));
        assert_eq!(number(&[2, 5, 0, 0x80, 0, 0, 0]), Ok(0x8000_0000));
        assert_eq!(number(&[2, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(u64::MAX));
        assert!(number(&[2, 1, 0x80]).is_err());
        assert!(number(&[2, 0]).is_err());
    }
}
