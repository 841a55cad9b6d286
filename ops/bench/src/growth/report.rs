//! Prints the points of the command `growth` with the fitted exponents, as tables or as JSON.

use anyhow::Result;
use serde::Serialize;

use super::args::GrowthArgs;
use super::fit::exponent;
use super::point::Point;
use super::row::{Bus, Row};
use crate::report::median;

/// One column of a table.
#[derive(Debug, PartialEq, Serialize)]
struct Column {
    name: String,
    /// The median of the rounds for each size; `None` for a size without a result.
    medians: Vec<Option<f64>>,
    /// The exponent that is fitted to the medians.
    exponent: Option<f64>,
}

/// One row of the command on one transport.
#[derive(Debug, PartialEq, Serialize)]
struct Table {
    bus: Bus,
    row: Row,
    sizes: Vec<usize>,
    columns: Vec<Column>,
    errors: Vec<String>,
}

/// Collects the points of one row on one transport, or returns `None` when there are none.
fn table(points: &[Point], bus: Bus, row: Row) -> Option<Table> {
    let mine: Vec<&Point> = points.iter().filter(|point| point.bus == bus && point.row == row).collect();
    let mut sizes: Vec<usize> = mine.iter().map(|point| point.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let names = &mine.iter().find(|point| !point.figures.is_empty()).or(mine.first())?.figures;
    let columns = names.iter().map(|figure| column(&mine, &sizes, &figure.name)).collect();
    let errors = mine.iter().filter_map(|point| {
        let error = point.error.as_ref()?;
        Some(format!("{} {}: {error}", point.size, row.size()))
    });
    Some(Table { bus, row, errors: errors.collect(), columns, sizes })
}

fn column(points: &[&Point], sizes: &[usize], name: &str) -> Column {
    let medians: Vec<Option<f64>> = sizes
        .iter()
        .map(|&size| {
            let values: Vec<f64> = points
                .iter()
                .filter(|point| point.size == size)
                .filter_map(|point| point.figures.iter().find(|figure| figure.name == name))
                .map(|figure| figure.value)
                .collect();
            (!values.is_empty()).then(|| median(values))
        })
        .collect();
    let fitted: Vec<(f64, f64)> =
        sizes.iter().zip(&medians).filter_map(|(&size, median)| Some((size as f64, (*median)?))).collect();
    Column { name: name.to_owned(), exponent: exponent(&fitted), medians }
}

fn tables(args: &GrowthArgs, points: &[Point]) -> Vec<Table> {
    let pairs = args.buses().into_iter().flat_map(|bus| args.rows().into_iter().map(move |row| (bus, row)));
    pairs.filter_map(|(bus, row)| table(points, bus, row)).collect()
}

/// Returns one line about one point.
pub fn line(point: &Point) -> String {
    let head = format!("{} {} {} round {}", point.bus, point.size, point.row.size(), point.round + 1);
    if let Some(error) = &point.error {
        return format!("{head}: {error}");
    }
    let figures = point.figures.iter().map(|figure| format!("{} {}", figure.name, short(figure.value)));
    format!("{head}: {}", figures.collect::<Vec<_>>().join(", "))
}

/// Prints all points.
pub fn print(args: &GrowthArgs, points: &[Point]) -> Result<()> {
    let tables = tables(args, points);
    if args.json {
        let all = serde_json::json!({
            "durability": args.durability,
            "generation": format!("{:?}", args.generation).to_lowercase(),
            "load": args.load,
            "summary": tables,
            "runs": points,
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        for table in &tables {
            println!("{}", markdown(table));
        }
    }
    Ok(())
}

/// Returns a table with one line per size and a last line of exponents.
fn markdown(table: &Table) -> String {
    let mut text = format!("\n### {}: {}\n\n| {} |", table.bus, table.row.size(), table.row.size());
    for column in &table.columns {
        text.push_str(&format!(" {} |", column.name));
    }
    text.push_str("\n|--:|");
    text.push_str(&"--:|".repeat(table.columns.len()));
    for (place, size) in table.sizes.iter().enumerate() {
        text.push_str(&format!("\n| {size} |"));
        for column in &table.columns {
            let value = column.medians[place].map_or("-".to_owned(), short);
            text.push_str(&format!(" {value} |"));
        }
    }
    text.push_str("\n| **exponent** |");
    for column in &table.columns {
        let value = column.exponent.map_or("-".to_owned(), |exponent| format!("**{exponent:.2}**"));
        text.push_str(&format!(" {value} |"));
    }
    for error in &table.errors {
        text.push_str(&format!("\n\nfailed at {error}"));
    }
    text
}

/// Returns a number with about three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::figure;
    use super::*;

    fn point(size: usize, round: usize, cost: Option<f64>) -> Point {
        Point {
            bus: Bus::Memory,
            row: Row::Backlog,
            size,
            round,
            figures: cost.map(|cost| figure("drain us/message", cost)).into_iter().collect(),
            error: cost.is_none().then(|| "no delivery arrived in time".to_owned()),
        }
    }

    #[test]
    fn a_table_has_medians_and_their_exponent() {
        let costs = [(100, 0, 2.0), (10, 0, 1.0), (10, 1, 0.2), (100, 1, 2.0), (10, 2, 0.1), (100, 2, 9.0)];
        let points = costs.map(|(size, round, cost)| point(size, round, Some(cost)));
        let table = table(&points, Bus::Memory, Row::Backlog).expect("points");
        assert_eq!(table.sizes, [10, 100]);
        assert_eq!(table.columns[0].medians, [Some(0.2), Some(2.0)]);
        assert!((table.columns[0].exponent.expect("two sizes") - 1.0).abs() < 1e-9);
        let text = markdown(&table);
        assert!(text.ends_with("| 10 | 0.200 |\n| 100 | 2.00 |\n| **exponent** | **1.00** |"), "{text}");
    }

    #[test]
    fn a_failed_size_is_shown_and_not_fitted() {
        let points = [point(10, 0, Some(1.0)), point(100, 0, None)];
        let table = table(&points, Bus::Memory, Row::Backlog).expect("points");
        assert_eq!(table.columns[0].exponent, None);
        let text = markdown(&table);
        assert!(text.contains("\n| 100 | - |\n| **exponent** | - |"), "{text}");
        assert!(text.ends_with("failed at 100 messages waiting: no delivery arrived in time"), "{text}");
    }

    #[test]
    fn a_row_without_points_has_no_table() {
        assert_eq!(table(&[point(10, 0, Some(1.0))], Bus::Memory, Row::Keys), None);
    }
}
