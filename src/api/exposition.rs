//! The text formats in which Prometheus and others read metrics: OpenMetrics 1.0 for those that ask for it, and the older
//! format (0.0.4) for all others, such as browsers, `curl` and agents of other systems.

use std::fmt::Write as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exposition {
    OpenMetrics,
    Text,
}

impl Exposition {
    /// Chooses by the header `Accept` (RFC 9110 section 12.5.1): OpenMetrics if it is named, and not less welcome than
    /// plain text.
    pub(super) fn accepted(accept: &str) -> Self {
        let open_metrics = quality(accept, "application/openmetrics-text");
        if open_metrics > 0.0 && open_metrics >= quality(accept, "text/plain") {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts from OpenMetrics.
    pub(super) fn text(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => converted(&open_metrics),
        }
    }
}

/// The highest quality that a header names for a media type; 0 if none.
fn quality(accept: &str, media_type: &str) -> f32 {
    let qualities = accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        parts.next().filter(|name| name.eq_ignore_ascii_case(media_type))?;
        let named = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        Some(named.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
    });
    qualities.fold(0.0, f32::max)
}

/// In the older format a counter is named as its samples are (`…_total`), there are no units, no end and no quotation marks
/// that are escaped in descriptions.
fn converted(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let (keyword, rest) = comment.split_once(' ').unwrap_or((comment, ""));
        let (family, value) = rest.split_once(' ').unwrap_or((rest, ""));
        match keyword {
            "HELP" => help = Some((family, value)),
            "TYPE" => {
                let (suffix, kind) = match value {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some((_, help)) = help.take().filter(|(of, _)| *of == family) {
                    let help = help.replace("\\\"", "\"");
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "# HELP {family}{suffix} {help}");
                }
                let _ = writeln!(text, "# TYPE {family}{suffix} {kind}");
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Metrics;

    #[test]
    fn openmetrics_is_for_those_that_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3, \
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for accept in
            [prometheus, "application/openmetrics-text", "text/plain, Application/OpenMetrics-Text; q=1"]
        {
            assert_eq!(Exposition::accepted(accept), Exposition::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain;version=0.0.4",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "text/plain;q=0.9,application/openmetrics-text;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=high",
            ";;,,q=",
        ] {
            assert_eq!(Exposition::accepted(accept), Exposition::Text, "{accept}");
        }
    }

    #[test]
    fn the_older_format_names_counters_as_their_samples() {
        let open_metrics = "# HELP hub_events Events \\\"in\\\".\n# TYPE hub_events counter\n\
                            hub_events_total{domain=\"a # b\"} 3\n\
                            # HELP hub_age_seconds Age.\n# TYPE hub_age_seconds gauge\n# UNIT hub_age_seconds seconds\n\
                            hub_age_seconds 0.5\n# HELP hub_run Run.\n# TYPE hub_run info\nhub_run_info{v=\"1\"} 1\n\
                            # TYPE hub_odd unknown\nhub_odd 1\n# EOF\n";
        let text = "# HELP hub_events_total Events \"in\".\n# TYPE hub_events_total counter\n\
                    hub_events_total{domain=\"a # b\"} 3\n\
                    # HELP hub_age_seconds Age.\n# TYPE hub_age_seconds gauge\nhub_age_seconds 0.5\n\
                    # HELP hub_run_info Run.\n# TYPE hub_run_info gauge\nhub_run_info{v=\"1\"} 1\n\
                    # TYPE hub_odd untyped\nhub_odd 1\n";
        assert_eq!(Exposition::Text.text(open_metrics.to_owned()), text);
        assert_eq!(Exposition::OpenMetrics.text(open_metrics.to_owned()), open_metrics);
    }

    /// Each sample of the hub belongs to the family before it, as parsers of the older format require.
    #[test]
    fn every_sample_has_its_type() {
        let metrics = Metrics::new();
        let _ = metrics.of_domain("user-lifecycle");
        let open_metrics = metrics.encode().unwrap();
        let text = Exposition::Text.text(open_metrics.clone());
        let (mut family, mut kind, mut samples) = ("", "", 0);
        for line in text.lines() {
            if let Some(of) = line.strip_prefix("# TYPE ") {
                (family, kind) = of.split_once(' ').unwrap();
            } else if let Some(of) = line.strip_prefix("# ") {
                assert!(of.starts_with("HELP "), "{line}");
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} after {family}"));
                let known: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(known.contains(&suffix), "{line} after {family}");
                samples += 1;
            }
        }
        assert_eq!(samples, open_metrics.lines().filter(|line| !line.starts_with('#')).count());
        assert!(samples > 20, "{samples}");
    }
}
