//! A state's rows, whatever its database: how a backup keeps it, so that it
//! can be brought back into SQLite and into PostgreSQL.

use serde::{Deserialize, Serialize};

/// What a column keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CellKind {
    /// A number or a truth.
    Integer,
    /// Text.
    Text,
    /// Bytes.
    Blob,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cell {
    /// None.
    Null,
    /// A number or a truth.
    Integer(i64),
    /// Text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Cell {
    /// Bytes that it takes, about.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Null | Self::Integer(_) => 8,
            Self::Text(text) => text.len() + 8,
            Self::Blob(bytes) => bytes.len() + 8,
        }
    }

    /// Whether it may stand in such a column.
    #[must_use]
    pub const fn fits(&self, kind: CellKind) -> bool {
        matches!(
            (self, kind),
            (Self::Null, _)
                | (Self::Integer(_), CellKind::Integer)
                | (Self::Text(_), CellKind::Text)
                | (Self::Blob(_), CellKind::Blob)
        )
    }
}

/// A table's name and columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableShape {
    /// Its name.
    pub name: String,
    /// Its columns, in the order of its rows' cells.
    pub columns: Vec<(String, CellKind)>,
}

impl TableShape {
    /// Whether names are such as our tables have, and so may stand in a statement.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let plain = |name: &str| {
            let mut chars = name.chars();
            chars.next().is_some_and(|c| c.is_ascii_lowercase())
                && name.len() <= 63
                && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        plain(&self.name)
            && !self.columns.is_empty()
            && self.columns.len() <= 256
            && self.columns.iter().all(|(name, _)| plain(name))
    }
}
