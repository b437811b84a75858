//! What README, ARCHITECTURE and CHANGELOG say that the code could contradict: names, labels, defaults, examples, paths.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ringway::config::Config;
use ringway::metrics::{ConnectResult, End, Family, HandshakeResult, TlsFailure};

const DOCUMENTS: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];

#[test]
fn readme_lists_every_family_with_its_labels_and_no_other() {
    let listed: BTreeMap<String, String> = table("README.md", "family").into_iter().map(pair).collect();
    let exported: BTreeMap<String, String> = Family::ALL
        .iter()
        .map(|family| family.definition())
        .map(|definition| (definition.name.to_owned(), definition.labels.join(", ")))
        .collect();
    assert_eq!(listed, exported);
}

#[test]
fn readme_explains_every_end_and_every_result_and_no_other() {
    let firsts =
        |header| -> Vec<String> { table("README.md", header).into_iter().map(|row| pair(row).0).collect() };
    let ends: Vec<&str> = End::ALL.iter().map(|end| end.label()).collect();
    assert_eq!(firsts("end"), ends);
    let results: Vec<&str> = HandshakeResult::ALL.iter().map(|result| result.label()).collect();
    assert_eq!(firsts("result"), results);
    let failures: Vec<&str> = TlsFailure::ALL.iter().map(|failure| failure.label()).collect();
    assert_eq!(firsts("failure"), failures);
    let attempts: Vec<&str> = ConnectResult::ALL.iter().map(|result| result.label()).collect();
    assert_eq!(firsts("attempt"), attempts);
}

#[test]
fn readme_lists_every_limit_with_its_default_and_no_other() {
    let listed: Vec<String> = table("README.md", "key")
        .into_iter()
        .map(pair)
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    let shown = Config::built_in().to_toml();
    let (_, from_limits) = shown.split_once("[limits]\n").expect("limits are shown");
    let in_force: Vec<&str> = from_limits.lines().take_while(|line| !line.is_empty()).collect();
    assert_eq!(listed, in_force);
}

#[test]
fn every_configuration_that_is_shown_is_a_good_one() {
    let mut count = 0;
    for document in DOCUMENTS {
        for example in text_of(document).split("```toml\n").skip(1) {
            let (example, _) = example.split_once("```").expect("a block ends");
            let (_, warnings) = Config::from_toml(example, Path::new(""))
                .unwrap_or_else(|faults| panic!("{document}: {faults:?}"));
            assert!(warnings.is_empty(), "{document}: {warnings:?}");
            count += 1;
        }
    }
    assert!(count > 0, "README shows a configuration");
}

#[test]
fn every_file_that_is_named_is_there() {
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = text_of(document);
        let linked = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let linked = linked.filter(|target| !target.contains("://") && !target.starts_with('#'));
        // Of what stands in backticks, all that is a path and not a pattern.
        let quoted = text.split('`').skip(1).step_by(2);
        let quoted = quoted.filter(|words| {
            ["src/", "tests/", "benches/", "deploy/"].iter().any(|folder| words.starts_with(folder))
        });
        let quoted = quoted.filter_map(|words| words.split_whitespace().next());
        for name in linked.chain(quoted).filter(|name| !name.ends_with(".environment")) {
            if !Path::new(env!("CARGO_MANIFEST_DIR")).join(name).exists() {
                missing.push(format!("{document} names {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_heading_that_is_linked_is_there() {
    for document in DOCUMENTS {
        let text = text_of(document);
        let headings: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"))
            .collect();
        for target in text.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(headings.iter().any(|heading| heading == target), "{document} links to #{target}");
        }
    }
}

fn text_of(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// The rows, as cells, of the table whose first column is headed so.
fn table(document: &str, header: &str) -> Vec<Vec<String>> {
    let text = text_of(document);
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {header} |")));
    assert!(lines.next().is_some(), "{document} has no table of {header}");
    // The line of dashes follows.
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The first two cells of a row, without backticks.
fn pair(row: Vec<String>) -> (String, String) {
    let mut cells = row.into_iter().map(|cell| cell.trim_matches('`').to_owned());
    (cells.next().unwrap_or_default(), cells.next().unwrap_or_default())
}
