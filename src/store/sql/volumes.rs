//! The history by volume: pages by the indices, and what belongs to a page in a few statements.

use std::collections::HashMap;
use std::fmt::Write as _;

use async_trait::async_trait;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Sql, text, ticks};
use crate::key::DataKeyId;
use crate::store::{
    DataKeySets, OnMedium, Place, StoreError, StoredEedk, VolumeKey, VolumeQuery, VolumeSet,
    Volumes, VolumesFound, WriteOff,
};
use crate::volser::Volser;

/// Names in one list of a statement. Shorter lists are filled up, so that there are few statements.
const LISTS: [usize; 3] = [1, 16, 128];

/// Rows of the history that are read at a time.
const PAGE: usize = 128;

/// A value of a statement.
enum Value {
    Text(String),
    Number(i64),
}

type Asked<'q> = Query<'q, Any, AnyArguments>;

fn bound<'q>(query: Asked<'q>, values: Vec<Value>) -> Asked<'q> {
    values.into_iter().fold(query, |query, value| match value {
        Value::Text(text) => query.bind(text),
        Value::Number(number) => query.bind(number),
    })
}

/// A statement under construction: constant pieces, and values by number.
struct Statement {
    sql: String,
    values: Vec<Value>,
    joined: &'static str,
}

impl Statement {
    /// All generations that are wanted, by the index that fits best: a volume and a data key have
    /// few rows, a drive's and a KEK's are in order of time.
    fn of(query: &VolumeQuery) -> Self {
        let VolumeQuery {
            volser,
            kek,
            dki,
            drive,
            since,
            until,
        } = query;
        let by_kek = volser.is_none() && dki.is_none() && drive.is_none();
        let mut statement = Self {
            sql: match kek {
                Some(_) if by_kek => "SELECT r.dki, r.generation, r.made FROM eedks r",
                _ => "SELECT r.dki, r.generation, r.made FROM generations r",
            }
            .to_owned(),
            values: Vec::new(),
            joined: " WHERE ",
        };
        if let Some(volser) = volser {
            statement.and("r.volser = ", Value::Text(volser.to_string()), "");
        }
        if let Some(dki) = dki {
            statement.and("r.dki = ", Value::Text(dki.to_string()), "");
        }
        if let Some(drive) = drive {
            statement.and("r.drive = ", Value::Text(drive.to_string()), "");
        }
        match kek {
            Some(kek) if by_kek => {
                statement.and("r.kek_hash = ", Value::Text(kek.to_string()), "");
            }
            Some(kek) => statement.and(
                "EXISTS (SELECT 1 FROM eedks e WHERE e.dki = r.dki
                     AND e.generation = r.generation AND e.kek_hash = ",
                Value::Text(kek.to_string()),
                ")",
            ),
            None => {}
        }
        if let Some(since) = since {
            statement.and("r.made >= ", Value::Number(ticks(*since)), "");
        }
        if let Some(until) = until {
            statement.and("r.made < ", Value::Number(ticks(*until)), "");
        }
        statement
    }

    fn add(&mut self, value: Value) {
        self.values.push(value);
        // Writing to a String does not fail.
        let _ = write!(self.sql, "${}", self.values.len());
    }

    fn and(&mut self, before: &'static str, value: Value, after: &'static str) {
        self.sql.push_str(self.joined);
        self.joined = " AND ";
        self.sql.push_str(before);
        self.add(value);
        self.sql.push_str(after);
    }

    fn behind(&mut self, place: &Place) {
        // The first alone is what an index is looked up by.
        self.and("r.made >= ", Value::Number(place.made), "");
        self.and(
            "(r.made, r.dki, r.generation) > (",
            Value::Number(place.made),
            ", ",
        );
        self.add(Value::Text(place.dki.to_string()));
        self.sql.push_str(", ");
        self.add(Value::Number(i64::from(place.generation)));
        self.sql.push(')');
    }

    fn limit(&mut self, order: &'static str, limit: usize) {
        self.sql.push_str(order);
        self.sql.push_str(" LIMIT ");
        self.add(Value::Number(i64::try_from(limit).unwrap_or(i64::MAX)));
    }
}

impl Sql {
    pub(super) async fn history(
        &self,
        volser: Option<&Volser>,
    ) -> Result<Vec<VolumeKey>, StoreError> {
        let query = VolumeQuery {
            volser: volser.cloned(),
            ..VolumeQuery::default()
        };
        let mut keys = Vec::new();
        let mut after = None;
        loop {
            let page = self.walk_volumes(&query, after.as_ref(), PAGE).await?;
            let dkis: Vec<DataKeyId> = page.iter().map(|place| place.dki).collect();
            let mut sets: Vec<VolumeKey> = self
                .data_keys(&dkis)
                .await?
                .into_iter()
                .flat_map(|key| key.sets)
                .map(|set| set.key)
                .filter(|key| {
                    page.iter()
                        .any(|place| (place.dki, place.generation) == (key.dki, key.generation))
                })
                .collect();
            keys.append(&mut sets);
            after = page.last().copied();
            if page.len() < PAGE {
                break;
            }
        }
        keys.sort_by(|one, other| {
            (other.created, one.dki, other.generation).cmp(&(
                one.created,
                other.dki,
                one.generation,
            ))
        });
        Ok(keys)
    }

    /// Two EEDKs of a generation may be under one KEK: each generation once.
    async fn places(&self, statement: Statement) -> Result<Vec<Place>, StoreError> {
        // Constant pieces and numbers; what was given is bound.
        let query = sqlx::query(AssertSqlSafe(statement.sql));
        let rows = bound(query, statement.values)
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        let mut places = Vec::with_capacity(rows.len());
        for row in &rows {
            let row = self.row(row);
            places.push(Place {
                made: row.get("made")?,
                dki: row.parsed("dki")?,
                generation: row.count("generation")?,
            });
        }
        places.dedup();
        Ok(places)
    }

    /// All rows with one of these names in a column, in a few statements.
    async fn listed(
        &self,
        before: &'static str,
        after: &'static str,
        names: &[String],
    ) -> Result<Vec<AnyRow>, StoreError> {
        let mut all = Vec::new();
        let [.., longest] = LISTS;
        for part in names.chunks(longest) {
            let size = LISTS
                .into_iter()
                .find(|size| *size >= part.len())
                .unwrap_or(longest);
            let numbers: Vec<String> = (1..=size).map(|number| format!("${number}")).collect();
            let sql = format!("{before} IN ({}){after}", numbers.join(", "));
            let filling = part.last().cloned().unwrap_or_default();
            let values = part
                .iter()
                .cloned()
                .chain(std::iter::repeat(filling))
                .take(size)
                .map(Value::Text)
                .collect();
            let query = sqlx::query(AssertSqlSafe(sql));
            let rows = bound(query, values)
                .fetch_all(&self.pool)
                .await
                .map_err(|source| self.database(source))?;
            all.extend(rows);
        }
        Ok(all)
    }

    /// The EEDKs of these data keys, by data key and generation.
    async fn eedks_of(
        &self,
        dkis: &[String],
    ) -> Result<HashMap<(DataKeyId, u32), Vec<StoredEedk>>, StoreError> {
        let rows = self
            .listed(
                "SELECT * FROM eedks WHERE dki",
                " ORDER BY dki, generation, position",
                dkis,
            )
            .await?;
        let mut all: HashMap<_, Vec<StoredEedk>> = HashMap::new();
        for raw in &rows {
            let row = self.row(raw);
            let of = (row.parsed("dki")?, row.count("generation")?);
            all.entry(of).or_default().push(self.stored_eedk(raw)?);
        }
        Ok(all)
    }

    /// When each of these volumes was given up last, if it was.
    async fn written_off(
        &self,
        volsers: &[String],
    ) -> Result<HashMap<String, (i64, WriteOff)>, StoreError> {
        let rows = self
            .listed(
                "SELECT * FROM write_offs WHERE volser",
                " ORDER BY id",
                volsers,
            )
            .await?;
        let mut all = HashMap::new();
        for row in &rows {
            let row = self.row(row);
            let at: String = row.get("at")?;
            let volume = WriteOff {
                volser: row.parsed("volser")?,
                reason: row.get("reason")?,
                operator: row.get("operator")?,
                at: OffsetDateTime::parse(&at, &Rfc3339).map_err(|_| row.damaged("at"))?,
            };
            all.insert(volume.volser.to_string(), (row.get("made")?, volume));
        }
        Ok(all)
    }
}

#[async_trait]
impl Volumes for Sql {
    async fn find_volumes(
        &self,
        query: &VolumeQuery,
        limit: usize,
    ) -> Result<VolumesFound, StoreError> {
        let mut statement = Statement::of(query);
        // One more says that there are more; a generation may be there twice.
        statement.limit(
            " ORDER BY r.made DESC, r.dki DESC, r.generation DESC",
            limit.saturating_add(1).saturating_mul(2),
        );
        let mut places = self.places(statement).await?;
        let more = places.len() > limit;
        places.truncate(limit);
        let dkis: Vec<DataKeyId> = places.iter().map(|place| place.dki).collect();
        let keys = self.data_keys(&dkis).await?;
        let mut sets: HashMap<(DataKeyId, u32), VolumeSet> = keys
            .into_iter()
            .flat_map(|key| key.sets)
            .map(|set| ((set.key.dki, set.key.generation), set))
            .collect();
        Ok(VolumesFound {
            volumes: places
                .iter()
                .filter_map(|place| sets.remove(&(place.dki, place.generation)))
                .collect(),
            more,
        })
    }

    async fn walk_volumes(
        &self,
        query: &VolumeQuery,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Place>, StoreError> {
        let mut statement = Statement::of(query);
        if let Some(place) = after {
            statement.behind(place);
        }
        statement.limit(" ORDER BY r.made, r.dki, r.generation", limit);
        self.places(statement).await
    }

    async fn count_volumes(&self, query: &VolumeQuery, most: usize) -> Result<usize, StoreError> {
        let mut statement = Statement::of(query);
        statement
            .sql
            .insert_str(0, "SELECT COUNT(*) AS number FROM (");
        statement.limit("", most);
        statement.sql.push_str(") AS counted");
        let query = sqlx::query(AssertSqlSafe(statement.sql));
        let row = bound(query, statement.values)
            .fetch_one(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        let number: i64 = self.row(&row).get("number")?;
        Ok(usize::try_from(number).unwrap_or_default())
    }

    async fn data_keys(&self, dkis: &[DataKeyId]) -> Result<Vec<DataKeySets>, StoreError> {
        let mut dkis = dkis.to_vec();
        dkis.sort_unstable();
        dkis.dedup();
        let names: Vec<String> = dkis.iter().map(ToString::to_string).collect();
        let rows = self
            .listed("SELECT * FROM generations WHERE dki", "", &names)
            .await?;
        let states = self
            .listed(
                "SELECT id, dki, generation, state FROM eedk_states WHERE dki",
                " ORDER BY id",
                &names,
            )
            .await?;
        let mut last: HashMap<(DataKeyId, u32), String> = HashMap::new();
        for row in &states {
            let row = self.row(row);
            let of = (row.parsed("dki")?, row.count("generation")?);
            last.insert(of, row.get("state")?);
        }
        let mut eedks = self.eedks_of(&names).await?;
        let mut volsers: Vec<String> = Vec::new();
        for row in &rows {
            volsers.push(self.row(row).get("volser")?);
        }
        volsers.sort_unstable();
        volsers.dedup();
        let given_up = self.written_off(&volsers).await?;
        let mut all: HashMap<DataKeyId, Vec<VolumeSet>> = HashMap::new();
        for row in &rows {
            let fields = self.row(row);
            let of = (
                fields.parsed::<DataKeyId>("dki")?,
                fields.count("generation")?,
            );
            let state = last.get(&of).ok_or_else(|| fields.damaged("state"))?;
            let key: VolumeKey =
                self.volume_with(row, state, eedks.remove(&of).unwrap_or_default())?;
            let made: i64 = fields.get("made")?;
            let written_off = given_up
                .get(key.volser.as_str())
                .filter(|(until, _)| made <= *until)
                .map(|(_, volume)| volume.clone());
            all.entry(of.0).or_default().push(VolumeSet {
                key,
                medium: OnMedium::No,
                catalog: false,
                pending: fields.flag("pending")?,
                written_off,
            });
        }
        Ok(dkis
            .into_iter()
            .filter_map(|dki| Some(DataKeySets::settled(dki, all.remove(&dki)?)))
            .collect())
    }

    async fn write_off(&self, volume: &WriteOff) -> Result<(), StoreError> {
        let WriteOff {
            volser,
            reason,
            operator,
            at,
        } = volume;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO write_offs (volser, reason, operator, at, made)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(volser.as_str())
        .bind(reason)
        .bind(operator)
        .bind(text(*at))
        .bind(ticks(*at))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }
}
