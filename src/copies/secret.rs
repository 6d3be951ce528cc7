//! The transport key, and how it is split: Shamir over GF(2^8) with the
//! polynomial of AES, one polynomial for each byte.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vsss_rs::Gf256;
use zeroize::Zeroizing;

use super::random::Random;

/// Most shares: each has a holder who types a passphrase.
const MOST: u8 = 16;

/// An AES-256 key that wraps one KEK once.
#[derive(Clone)]
pub struct TransportKey(Zeroizing<[u8; 32]>);

impl TransportKey {
    /// A new one.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub fn new() -> Result<Self, SplitError> {
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| SplitError::NoRandom)?;
        Ok(Self(key))
    }

    /// Its bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for TransportKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TransportKey([REDACTED])")
    }
}

// It crosses to a bridge on its socket, in a frame that is wiped.
impl Serialize for TransportKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for TransportKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <[u8; 32]>::deserialize(from).map(|key| Self(Zeroizing::new(key)))
    }
}

/// How many of how many shares are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    needed: u8,
    total: u8,
}

impl Quorum {
    /// `needed` of `total`.
    ///
    /// # Errors
    /// One share alone would do, more are needed than there are, or there are too many.
    pub const fn new(needed: u8, total: u8) -> Result<Self, SplitError> {
        if needed < 2 || needed > total || total > MOST {
            return Err(SplitError::Quorum { needed, total });
        }
        Ok(Self { needed, total })
    }

    /// Shares that are needed.
    #[must_use]
    pub const fn needed(self) -> u8 {
        self.needed
    }

    /// Shares that there are.
    #[must_use]
    pub const fn total(self) -> u8 {
        self.total
    }
}

impl std::fmt::Display for Quorum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-of-{}", self.needed, self.total)
    }
}

impl std::str::FromStr for Quorum {
    type Err = SplitError;

    fn from_str(text: &str) -> Result<Self, SplitError> {
        let numbers = text
            .split_once("-of-")
            .and_then(|(needed, total)| Some((needed.parse().ok()?, total.parse().ok()?)));
        let (needed, total) = numbers.ok_or(SplitError::Syntax)?;
        Self::new(needed, total)
    }
}

/// Why a key cannot be split or put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// It is not `M-of-N`.
    #[error("write for example 2-of-3: two of three shares are needed")]
    Syntax,
    /// The numbers do not fit.
    #[error(
        "{needed}-of-{total} cannot be: at least 2 shares must be needed, no more than there are, and there are at most {MOST}"
    )]
    Quorum {
        /// Shares that would be needed.
        needed: u8,
        /// Shares that there would be.
        total: u8,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandom,
    /// There are too few.
    #[error("{needed} shares are needed: {missing} more")]
    TooFew {
        /// How many are missing.
        missing: u8,
        /// How many are needed.
        needed: u8,
    },
    /// The shares do not fit each other.
    #[error("the shares are not points of one polynomial: two have the same number")]
    Points,
}

/// One share in clear: the polynomials' values at `x`.
pub struct Point {
    /// Number of the share, from 1.
    pub x: u8,
    /// One byte for each byte of the key.
    pub y: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Point")
            .field("x", &self.x)
            .finish_non_exhaustive()
    }
}

/// Splits a key; the points have the numbers 1, 2 …
///
/// # Errors
/// The operating system gives no random numbers.
pub fn split(key: &TransportKey, quorum: Quorum) -> Result<Vec<Point>, SplitError> {
    let mut random = Random::default();
    let shares = Gf256::split_bytes(
        quorum.needed.into(),
        quorum.total.into(),
        key.expose(),
        &mut random,
    )
    .map_err(|_| SplitError::Points)?;
    let shares = Zeroizing::new(shares);
    if random.failed {
        return Err(SplitError::NoRandom);
    }
    shares
        .iter()
        .map(|share| match share.split_first() {
            Some((x, y)) => {
                let mut point = Point {
                    x: *x,
                    y: Zeroizing::new([0; 32]),
                };
                // The key has 32 bytes, and so has each share.
                for (to, from) in point.y.iter_mut().zip(y) {
                    *to = *from;
                }
                Ok(point)
            }
            None => Err(SplitError::Points),
        })
        .collect()
}

/// Puts a key together from the first `needed` points.
///
/// # Errors
/// There are too few, or two have one number.
pub fn combine(points: &[&Point], quorum: Quorum) -> Result<TransportKey, SplitError> {
    let needed = usize::from(quorum.needed);
    let Some(points) = points.get(..needed) else {
        let have = u8::try_from(points.len()).unwrap_or(u8::MAX);
        return Err(SplitError::TooFew {
            missing: quorum.needed.saturating_sub(have),
            needed: quorum.needed,
        });
    };
    let shares: Zeroizing<Vec<Vec<u8>>> = Zeroizing::new(
        points
            .iter()
            .map(|point| {
                let mut share = Vec::with_capacity(33);
                share.push(point.x);
                share.extend_from_slice(&*point.y);
                share
            })
            .collect(),
    );
    let combined = Gf256::combine_bytes(&*shares).map_err(|_| SplitError::Points)?;
    let combined = Zeroizing::new(combined);
    let mut key = Zeroizing::new([0; 32]);
    for (to, from) in key.iter_mut().zip(&*combined) {
        *to = *from;
    }
    Ok(TransportKey(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product in GF(2^8) of FIPS 197, 4.2, written down once more.
    fn times(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 != 0 {
                product ^= a;
            }
            a = (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 };
            b >>= 1;
        }
        product
    }

    fn inverse(a: u8) -> u8 {
        (1..=255).find(|b| times(a, *b) == 1).unwrap()
    }

    /// What a site without `ekm` would compute: Lagrange at 0.
    fn by_hand(points: &[&Point]) -> [u8; 32] {
        let mut key = [0; 32];
        for one in points {
            let mut weight = 1;
            for other in points.iter().filter(|other| other.x != one.x) {
                weight = times(weight, times(other.x, inverse(other.x ^ one.x)));
            }
            for (byte, y) in key.iter_mut().zip(&*one.y) {
                *byte ^= times(weight, *y);
            }
        }
        key
    }

    #[test]
    fn any_two_of_three_and_no_one_give_the_key() {
        let quorum: Quorum = "2-of-3".parse().unwrap();
        let key = TransportKey::new().unwrap();
        let points = split(&key, quorum).unwrap();
        assert_eq!(points.iter().map(|p| p.x).collect::<Vec<_>>(), [1, 2, 3]);
        for (a, b) in [(0, 1), (1, 0), (0, 2), (1, 2)] {
            let pair = [&points[a], &points[b]];
            assert_eq!(combine(&pair, quorum).unwrap().expose(), key.expose());
            assert_eq!(&by_hand(&pair), key.expose());
        }
        assert_eq!(
            combine(&[&points[1]], quorum).unwrap_err(),
            SplitError::TooFew {
                missing: 1,
                needed: 2
            }
        );
        assert_eq!(
            combine(&[&points[1], &points[1]], quorum).unwrap_err(),
            SplitError::Points
        );
    }

    #[test]
    fn five_of_nine() {
        let quorum = Quorum::new(5, 9).unwrap();
        let key = TransportKey::new().unwrap();
        let points = split(&key, quorum).unwrap();
        let some: Vec<&Point> = points.iter().skip(3).take(5).collect();
        assert_eq!(combine(&some, quorum).unwrap().expose(), key.expose());
        assert_eq!(&by_hand(&some), key.expose());
    }

    #[test]
    fn coefficients_take_every_value() {
        // With 2 of 2 the second share is key + coefficient * 2: where a coefficient could not be 0
        // (RUSTSEC-2024-0398), no byte of a share would ever be the key's own.
        let quorum = Quorum::new(2, 2).unwrap();
        let key = TransportKey::new().unwrap();
        let mut seen = [false; 256];
        for _ in 0..200 {
            for point in split(&key, quorum).unwrap() {
                for (y, k) in point.y.iter().zip(key.expose()) {
                    seen[usize::from(y ^ k)] = true;
                }
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn quorums_that_protect_nothing_are_refused() {
        for text in ["1-of-3", "4-of-3", "2-of-17", "0-of-0"] {
            assert!(matches!(
                text.parse::<Quorum>(),
                Err(SplitError::Quorum { .. })
            ));
        }
        for text in ["", "2of3", "2-of-", "two-of-three", "2-of-300", "-1-of-3"] {
            assert_eq!(text.parse::<Quorum>(), Err(SplitError::Syntax), "{text}");
        }
    }

    #[test]
    fn the_key_is_in_no_debug_output() {
        let key = TransportKey::new().unwrap();
        assert_eq!(format!("{key:?}"), "TransportKey([REDACTED])");
        let point = split(&key, Quorum::new(2, 2).unwrap()).unwrap().remove(0);
        assert_eq!(format!("{point:?}"), "Point { x: 1, .. }");
    }
}
