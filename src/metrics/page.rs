//! A page of measurements in the Prometheus text format, version 0.0.4.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{BOUNDS, Histogram};

/// The `Content-Type` of a page.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows; its name ends in `_total`.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// Times, in seconds.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// Measurements of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The name, as it is shown.
    pub name: &'static str,
    /// What the values are.
    pub kind: Kind,
    /// The names of their labels.
    pub labels: &'static [&'static str],
    /// What they mean.
    pub help: &'static str,
}

/// One value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Of a counter.
    Count(u64),
    /// Of a gauge.
    Level(f64),
    /// Of a histogram.
    Times(Histogram),
}

impl From<bool> for Value {
    fn from(so: bool) -> Self {
        Self::Level(f64::from(u8::from(so)))
    }
}

impl From<usize> for Value {
    /// A level; past 4 billion, that.
    fn from(level: usize) -> Self {
        Self::Level(f64::from(u32::try_from(level).unwrap_or(u32::MAX)))
    }
}

impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Self::Level(time.as_secs_f64())
    }
}

type Labels = Vec<(&'static str, String)>;

/// The page.
#[derive(Debug, Default)]
pub struct Page(Vec<(Family, Vec<(Labels, Value)>)>);

impl Page {
    /// Adds a value. The labels' values stand in the order of the family's names.
    pub fn add(&mut self, family: Family, labels: &[&str], value: impl Into<Value>) {
        let named = family
            .labels
            .iter()
            .zip(labels)
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        let value = (named, value.into());
        match self.0.iter_mut().find(|(known, _)| *known == family) {
            Some((_, values)) => values.push(value),
            None => self.0.push((family, vec![value])),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// A value that is not of its family's kind.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (family, values) in &self.0 {
            // The encoder adds it.
            let name = family.name.strip_suffix("_total").unwrap_or(family.name);
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (labels, value) in values {
                if labels.is_empty() {
                    encode(&mut metric, family.kind, value)?;
                } else {
                    encode(&mut metric.encode_family(labels)?, family.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Count(count)) => {
            metric.encode_counter::<NoLabelSet, u64, f64>(count, None)
        }
        (Kind::Gauge, Value::Level(level)) => metric.encode_gauge(level),
        (Kind::Histogram, Value::Times(times)) => {
            let bounds = BOUNDS
                .iter()
                .map(|bound| Duration::from_micros(*bound).as_secs_f64())
                .chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.buckets).collect();
            metric.encode_histogram::<NoLabelSet>(
                times.sum().as_secs_f64(),
                times.count(),
                &buckets,
                None,
            )
        }
        (Kind::Counter | Kind::Gauge | Kind::Histogram, _) => Err(fmt::Error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Latency, families};

    #[test]
    fn a_page_is_prometheus_text() {
        let took = Latency::default();
        took.observe(Duration::from_millis(2));
        took.observe(Duration::from_secs(100));
        let mut page = Page::default();
        page.add(families::REQUESTS, &["create", "ok"], Value::Count(7));
        page.add(families::REQUESTS, &["create", "EF01"], Value::Count(1));
        page.add(families::CONNECTIONS, &[], 3_usize);
        page.add(
            families::REQUEST_SECONDS,
            &["create"],
            Value::Times(took.read()),
        );
        let text = page.text().unwrap();
        for line in [
            "# TYPE ekm_requests_total counter",
            "ekm_requests_total{verb=\"create\",code=\"ok\"} 7",
            "ekm_requests_total{verb=\"create\",code=\"EF01\"} 1",
            "# TYPE ekm_connections gauge",
            "ekm_connections 3.0",
            "ekm_request_seconds_bucket{verb=\"create\",le=\"0.001\"} 0",
            "ekm_request_seconds_bucket{verb=\"create\",le=\"0.0025\"} 1",
            "ekm_request_seconds_bucket{verb=\"create\",le=\"60\"} 1",
            "ekm_request_seconds_bucket{verb=\"create\",le=\"+Inf\"} 2",
            "ekm_request_seconds_sum{verb=\"create\"} 100.002",
            "ekm_request_seconds_count{verb=\"create\"} 2",
        ] {
            assert!(
                text.lines().any(|own| own == line),
                "no {line:?} in\n{text}"
            );
        }
    }

    #[test]
    fn a_value_of_another_kind_is_refused() {
        let mut page = Page::default();
        page.add(families::CONNECTIONS, &[], Value::Count(1));
        assert!(page.text().is_err());
    }

    #[test]
    fn names_follow_the_conventions_and_are_unlike() {
        let mut names = std::collections::BTreeSet::new();
        for family in families::ALL {
            assert!(names.insert(family.name), "{} twice", family.name);
            assert!(family.name.starts_with("ekm_"));
            assert_eq!(
                family.name.ends_with("_total"),
                family.kind == Kind::Counter,
                "{}",
                family.name
            );
            assert!(
                family.kind != Kind::Histogram || family.name.ends_with("_seconds"),
                "{}",
                family.name
            );
        }
    }

    #[test]
    fn the_readme_lists_every_family() {
        let page = include_str!("../../docs/operating.md");
        for family in families::ALL {
            let labels: Vec<String> = family
                .labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect();
            let row = format!(
                "| `{}` | {} | {} | {} |",
                family.name,
                family.kind,
                labels.join(" "),
                family.help
            );
            assert!(
                page.contains(&row),
                "docs/operating.md lacks the line\n{row}"
            );
        }
    }
}
