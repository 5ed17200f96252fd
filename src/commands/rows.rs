//! Files of measurements that can be cut: the settings in the first line, then a measured row a line.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The file, open for more.
pub struct Rows(File);

impl Rows {
    /// Opens it, or begins it, and reads what is there. A last line that was cut is removed.
    ///
    /// # Errors
    /// The file cannot be used, is none of ours, or was measured under other settings.
    pub fn open<S, R>(path: &Path, settings: &S) -> anyhow::Result<(Self, Vec<R>)>
    where
        S: Serialize + DeserializeOwned + PartialEq,
        R: DeserializeOwned,
    {
        let name = || path.display().to_string();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(name)?;
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.with_context(name)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(name)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).with_context(name)?;
        file.seek(SeekFrom::End(0)).with_context(name)?;
        let mut lines = text[..whole].lines();
        let mut rows = Self(file);
        match lines.next() {
            None => rows.line(&serde_json::to_string(settings)?).with_context(name)?,
            Some(first) => {
                let theirs: S = serde_json::from_str(first).with_context(name)?;
                if theirs != *settings {
                    bail!(
                        "{}: was measured under other settings; give another --out\n  there: {first}",
                        name()
                    );
                }
            }
        }
        let read = rows_of(lines, path)?;
        Ok((rows, read))
    }

    /// Reads the settings and the rows of a file, without a last line that was cut.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub fn read<S: DeserializeOwned, R: DeserializeOwned>(path: &Path) -> anyhow::Result<(S, Vec<R>)> {
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(name)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines();
        let settings = serde_json::from_str(lines.next().unwrap_or_default()).with_context(name)?;
        Ok((settings, rows_of(lines, path)?))
    }

    /// Adds a row.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&mut self, row: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.line(&serde_json::to_string(row)?)?)
    }

    fn line(&mut self, line: &str) -> std::io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())
    }
}

/// The rows of the lines after the first.
fn rows_of<R: DeserializeOwned>(lines: std::str::Lines<'_>, path: &Path) -> anyhow::Result<Vec<R>> {
    let name = || path.display().to_string();
    let read = |(i, line)| serde_json::from_str(line).with_context(|| format!("{}: line {}", name(), i + 2));
    lines.enumerate().map(read).collect()
}
