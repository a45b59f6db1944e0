//! The page of a report, as HTML and as Markdown.

use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use retouch_graph::{Context, NodeError, Payload};

use super::stats::{Estimate, Measured, Picture};
use super::{Claim, MakeReport};
use crate::payload::Image;

/// Sorts a table by the column whose head is clicked; all of the page's code.
const SORT: &str = "document.querySelectorAll('table.sortable th').forEach(h=>h.onclick=()=>{const t=h.closest('table'),i=h.cellIndex,b=t.tBodies[0],d=h.dataset.d=h.dataset.d==='1'?'-1':'1';[...b.rows].sort((p,q)=>{const x=p.cells[i].dataset.v??p.cells[i].textContent,y=q.cells[i].dataset.v??q.cells[i].textContent;return d*(isNaN(x-y)||x===''||y===''?x.localeCompare(y):x-y)}).forEach(r=>b.append(r))});";
const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em;max-width:100em}table{border-collapse:collapse;margin:1em 0}th,td{border:1px solid #ccc;padding:.25em .6em;text-align:right;vertical-align:top}th:first-child,td:first-child,td.t{text-align:left}th{background:#eee;cursor:pointer}small{color:#666}img{image-rendering:pixelated;width:128px}img.plot{width:auto;max-width:100%}";

/// What a report says, before it is written in either form.
pub(super) struct Page<'a> {
    asked: &'a MakeReport,
    measured: &'a Measured,
    images: &'a [Arc<Image>],
    plot: &'a Image,
    baseline: &'a str,
}

/// A table of texts.
struct Texts {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl<'a> Page<'a> {
    pub(super) fn new(
        asked: &'a MakeReport,
        measured: &'a Measured,
        images: &'a [Arc<Image>],
        plot: &'a Image,
    ) -> Self {
        let first = measured.methods.first().map_or("", String::as_str);
        Self {
            asked,
            measured,
            images,
            plot,
            baseline: asked.baseline.as_deref().unwrap_or(first),
        }
    }

    /// What the numbers are of, in a sentence.
    fn about(&self) -> String {
        let m = self.measured;
        format!(
            "{} pictures: {} method{}, {} subject{}. Means over {} {}{}, each the mean over its pictures; in brackets the {} % percentile bootstrap interval over the {}s ({} draws). Differences and claims are paired by subject, prompt and seed.",
            m.pictures.len(),
            m.methods.len(),
            plural(m.methods.len()),
            m.subjects.len(),
            plural(m.subjects.len()),
            m.units,
            m.unit.name(),
            plural(m.units),
            self.asked.confidence * 100.0,
            m.unit.name(),
            self.asked.resamples,
        )
    }

    /// A row a method, a column a measure.
    fn by_method(&self, subject: Option<&str>) -> Texts {
        let m = self.measured;
        let head = std::iter::once("method".to_owned()).chain(m.columns.clone());
        let rows = (m.methods.iter())
            .filter(|method| m.of(method, subject).next().is_some())
            .map(|method| {
                let cells =
                    (0..m.columns.len()).map(|column| shown(m.estimate(method, subject, column)));
                std::iter::once(method.clone()).chain(cells).collect()
            });
        Texts {
            head: head.collect(),
            rows: rows.collect(),
        }
    }

    fn differences(&self) -> Texts {
        let m = self.measured;
        let head = std::iter::once(format!("minus {}", self.baseline)).chain(m.columns.clone());
        let rows = (m.methods.iter())
            .filter(|method| *method != self.baseline)
            .map(|method| {
                let cells = (0..m.columns.len())
                    .map(|column| shown(m.difference(method, self.baseline, column)));
                std::iter::once(method.clone()).chain(cells).collect()
            });
        Texts {
            head: head.collect(),
            rows: rows.collect(),
        }
    }

    fn claims(&self) -> Texts {
        let row = |claim: &Claim| {
            let ratio = (self.measured.column(&claim.column))
                .and_then(|column| self.measured.ratio(&claim.method, &claim.to, column));
            let text = format!(
                "{}: {} at least {} of {}",
                claim.column,
                claim.method,
                percent(claim.at_least),
                claim.to
            );
            let (found, verdict) = match ratio {
                None => ("-".to_owned(), "no pictures to compare"),
                Some(ratio) => (
                    format!(
                        "{} [{}, {}]",
                        percent(ratio.mean),
                        percent(ratio.low),
                        percent(ratio.high)
                    ),
                    if ratio.low >= claim.at_least {
                        "holds"
                    } else if ratio.high < claim.at_least {
                        "refuted"
                    } else if ratio.mean >= claim.at_least {
                        "holds in the mean, not over the whole interval"
                    } else {
                        "fails in the mean, not over the whole interval"
                    },
                ),
            };
            vec![text, found, verdict.to_owned()]
        };
        Texts {
            head: ["claim", "found", "verdict"].map(str::to_owned).to_vec(),
            rows: self.asked.claims.iter().map(row).collect(),
        }
    }

    fn definitions(&self) -> Texts {
        let m = self.measured;
        let rows = m.columns.iter().map(|column| {
            let text = m
                .definitions
                .get(column)
                .map_or("not defined by its node", String::as_str);
            vec![column.clone(), text.to_owned()]
        });
        Texts {
            head: ["column", "what it is"].map(str::to_owned).to_vec(),
            rows: rows.collect(),
        }
    }

    /// The parts of the page in order: a heading, a sentence, a table.
    fn parts(&self) -> Vec<(String, String, Texts)> {
        let m = self.measured;
        let mut parts = vec![(
            "All subjects".to_owned(),
            self.about(),
            self.by_method(None),
        )];
        if m.methods.len() > 1 {
            let text = format!(
                "The mean of each method's number minus that of {}, pair by pair.",
                self.baseline
            );
            parts.push(("Differences".to_owned(), text, self.differences()));
        }
        if !self.asked.claims.is_empty() {
            let text = "A share of the other method's mean with its interval; a claim holds when all of the interval does.".to_owned();
            parts.push(("Claims".to_owned(), text, self.claims()));
        }
        if m.subjects.len() > 1 {
            for subject in &m.subjects {
                let text = "Intervals over the prompts.".to_owned();
                let table = self.by_method(Some(subject));
                parts.push((format!("Subject: {subject}"), text, table));
            }
        }
        parts.push((
            "Definitions".to_owned(),
            "Defined in docs/measuring.md.".to_owned(),
            self.definitions(),
        ));
        parts
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!("# {}\n", in_markdown(self.asked.title.as_str()));
        for (heading, about, table) in self.parts() {
            let _ = write!(
                text,
                "\n## {}\n\n{}\n\n",
                in_markdown(&heading),
                in_markdown(&about)
            );
            let line = |cells: &[String]| {
                let cells: Vec<String> = cells.iter().map(|cell| in_markdown(cell)).collect();
                format!("| {} |\n", cells.join(" | "))
            };
            text.push_str(&line(&table.head));
            let rule: Vec<String> = table.head.iter().map(|_| "---".to_owned()).collect();
            text.push_str(&line(&rule));
            for row in &table.rows {
                text.push_str(&line(row));
            }
        }
        text
    }

    pub(super) fn html(&self, context: &Context<'_>) -> Result<String, NodeError> {
        let title = in_html(self.asked.title.as_str());
        let mut text = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        );
        let _ = writeln!(
            text,
            "<p><img class=\"plot\" alt=\"means and intervals\" src=\"{}\"></p>",
            data(self.plot)?
        );
        for (heading, about, table) in self.parts() {
            let _ = write!(
                text,
                "<h2>{}</h2>\n<p>{}</p>\n<table class=\"sortable\"><thead><tr>",
                in_html(&heading),
                in_html(&about)
            );
            for cell in &table.head {
                let _ = write!(text, "<th>{}</th>", in_html(cell));
            }
            text.push_str("</tr></thead><tbody>\n");
            for row in &table.rows {
                text.push_str("<tr>");
                for cell in row {
                    // What is sorted by is the mean, without its interval.
                    let value = cell.split(" [").next().unwrap_or(cell);
                    let _ = write!(
                        text,
                        "<td data-v=\"{}\">{}</td>",
                        in_html(value),
                        in_html(cell)
                    );
                }
                text.push_str("</tr>\n");
            }
            text.push_str("</tbody></table>\n");
        }
        if !self.images.is_empty() && self.asked.pictures > 0 {
            self.pictures(&mut text, context)?;
        }
        let _ = write!(text, "<script>{SORT}</script>\n</body></html>\n");
        Ok(text)
    }

    /// The pictures beside their numbers, the lowest of the column `worst` first.
    fn pictures(&self, text: &mut String, context: &Context<'_>) -> Result<(), NodeError> {
        let m = self.measured;
        let by = (self.asked.worst.as_deref())
            .and_then(|name| m.column(name))
            .unwrap_or(0);
        let _ = write!(
            text,
            "<h2>Pictures</h2>\n<p>Of each method the {} with the lowest <code>{}</code>; click a head to sort.</p>\n<table class=\"sortable\"><thead><tr><th>picture</th><th>subject</th><th>method</th><th>prompt</th><th>seed</th>",
            self.asked.pictures,
            in_html(&m.columns[by])
        );
        for column in &m.columns {
            let _ = write!(text, "<th>{}</th>", in_html(column));
        }
        text.push_str("</tr></thead><tbody>\n");
        for picture in self.worst(by) {
            context.check_cancelled()?;
            let Some(image) = self.images.get(picture.table) else {
                continue;
            };
            let file = data(&image.select(picture.row)?)?;
            let _ = write!(text, "<tr><td><img alt=\"\" src=\"{file}\"></td>");
            for label in [
                &picture.subject,
                &picture.method,
                &picture.prompt,
                &picture.seed,
            ] {
                let _ = write!(text, "<td class=\"t\">{}</td>", in_html(label));
            }
            for value in &picture.values {
                let value = value.map_or_else(|| "-".to_owned(), decimals);
                let _ = write!(text, "<td>{value}</td>");
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</tbody></table>\n");
        Ok(())
    }

    /// Of each method the pictures with the lowest number, those without one first.
    fn worst(&self, by: usize) -> Vec<&Picture> {
        let mut shown: Vec<&Picture> = Vec::new();
        for method in &self.measured.methods {
            let mut own: Vec<&Picture> = self.measured.of(method, None).collect();
            let value = |picture: &Picture| picture.values[by].unwrap_or(f64::NEG_INFINITY);
            own.sort_by(|a, b| value(a).total_cmp(&value(b)));
            shown.extend(own.into_iter().take(self.asked.pictures));
        }
        shown.sort_by(|a, b| {
            let value = |picture: &Picture| picture.values[by].unwrap_or(f64::NEG_INFINITY);
            value(a).total_cmp(&value(b))
        });
        shown
    }
}

/// A picture as an address that holds it.
fn data(image: &Image) -> Result<String, NodeError> {
    let files = image.encode("png")?;
    let file = files.first().map(Vec::as_slice).unwrap_or_default();
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(file)))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn decimals(value: f64) -> String {
    format!("{value:.3}")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn shown(estimate: Option<Estimate>) -> String {
    estimate.map_or_else(
        || "-".to_owned(),
        |Estimate { mean, low, high }| {
            format!("{} [{}, {}]", decimals(mean), decimals(low), decimals(high))
        },
    )
}

/// A text where HTML is read: prompts and names may hold anything.
fn in_html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A text inside a line of Markdown.
fn in_markdown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '<' | '>' | '|' | '#' => {
                safe.push('\\');
                safe.push(c);
            }
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}
