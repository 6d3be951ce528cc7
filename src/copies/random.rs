//! The operating system's random numbers, as `vsss-rs` takes them.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};

/// `aws-lc-rs`'s generator. The trait has no way to say that it failed, so
/// that is kept, and whoever used it looks afterwards.
#[derive(Debug, Default)]
pub(super) struct Random {
    pub(super) failed: bool,
}

impl Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        if aws_lc_rs::rand::fill(bytes).is_err() {
            self.failed = true;
        }
    }
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Random {}
