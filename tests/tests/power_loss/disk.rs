//! A disk that knows what is durable only after which flush. What a power cut leaves of the rest is up to chance: of names any
//! of the changes since, in their order; of a file what it was at its last flush, or what it is, or zeros as long as that. That
//! is what ext4 and XFS allow, and more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::trace::{Call, Event};

#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Change {
    MakeFolder(String),
    RemoveFolder(String),
    Create(String, usize),
    Unlink(String, usize),
    /// Of this file from here to there.
    Move(String, String, usize),
    /// Two names whose files are exchanged.
    Exchange((String, usize), (String, usize)),
}

impl Change {
    /// A name that it changes; its folder is what must be flushed.
    fn name(&self) -> &str {
        match self {
            Self::MakeFolder(name) | Self::RemoveFolder(name) | Self::Create(name, _) | Self::Unlink(name, _) => name,
            Self::Move(_, to, _) | Self::Exchange(_, (to, _)) => to,
        }
    }
}

struct Recorded {
    change: Change,
    at: usize,
    is_durable: bool,
}

/// The disk as the process sees it, and what is durable of it.
#[derive(Default)]
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    changes: Vec<Recorded>,
}

/// What is left after a power cut: folders, and files with their content.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    folders: BTreeSet<String>,
    files: BTreeMap<String, Vec<u8>>,
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Disk {
    fn record(&mut self, at: usize, change: Change) {
        self.changes.push(Recorded { change, at, is_durable: false });
    }

    /// Does what the process did. Flushes of what `ignored` says are forgotten, as if the program had none there.
    pub fn apply(&mut self, event: &Event, ignored: &dyn Fn(&str) -> bool) {
        let at = event.ended;
        match &event.call {
            Call::Open { path, truncate } => match self.names.get(path) {
                Some(&file) if *truncate => self.files[file].content.clear(),
                Some(_) => {}
                None => {
                    self.files.push(File::default());
                    let file = self.files.len() - 1;
                    self.names.insert(path.clone(), file);
                    self.record(at, Change::Create(path.clone(), file));
                }
            },
            Call::Write { path, bytes } => {
                if let Some(&file) = self.names.get(path) {
                    self.files[file].content.extend_from_slice(bytes);
                }
            }
            Call::Truncate { path, len } => {
                if let Some(&file) = self.names.get(path) {
                    self.files[file].content.resize(*len, 0);
                }
            }
            Call::MakeFolder { path } => self.record(at, Change::MakeFolder(path.clone())),
            Call::RemoveFolder { path } => self.record(at, Change::RemoveFolder(path.clone())),
            Call::Unlink { path } => {
                if let Some(file) = self.names.remove(path) {
                    self.record(at, Change::Unlink(path.clone(), file));
                }
            }
            Call::Rename { from, to, exchange: false } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                    self.record(at, Change::Move(from.clone(), to.clone(), file));
                }
            }
            Call::Rename { from, to, exchange: true } => {
                if let (Some(&one), Some(&other)) = (self.names.get(from), self.names.get(to)) {
                    self.names.insert(from.clone(), other);
                    self.names.insert(to.clone(), one);
                    self.record(at, Change::Exchange((from.clone(), one), (to.clone(), other)));
                }
            }
            Call::Flush { path } if !ignored(path) => {
                if let Some(&file) = self.names.get(path) {
                    self.files[file].durable = self.files[file].content.clone();
                }
                for recorded in &mut self.changes {
                    // What had ended before the flush began.
                    if recorded.at < event.began && folder_of(recorded.change.name()) == path {
                        recorded.is_durable = true;
                    }
                }
            }
            Call::Flush { .. } | Call::Answer { .. } => {}
        }
    }

    /// What a power cut leaves now. `chance` gives a number below its argument.
    pub fn cut(&self, root: &str, chance: &mut dyn FnMut(usize) -> usize) -> State {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let mut folders = BTreeSet::from([root.to_owned()]);
        // All of the pending changes, none, or each by itself.
        let mode = chance(4);
        for recorded in &self.changes {
            let kept = recorded.is_durable
                || match mode {
                    0 => false,
                    1 => true,
                    _ => chance(2) == 0,
                };
            if !kept || !folders.contains(folder_of(recorded.change.name())) {
                continue;
            }
            match &recorded.change {
                Change::MakeFolder(path) => drop(folders.insert(path.clone())),
                Change::RemoveFolder(path) => {
                    let below = format!("{path}/");
                    let is_empty = !names.keys().any(|name| name.starts_with(&below))
                        && !folders.iter().any(|folder| folder.starts_with(&below));
                    if is_empty {
                        folders.remove(path);
                    }
                }
                Change::Create(path, file) => drop(names.insert(path, *file)),
                Change::Unlink(path, file) => {
                    if names.get(path.as_str()) == Some(file) {
                        names.remove(path.as_str());
                    }
                }
                Change::Move(from, to, file) => {
                    if names.get(from.as_str()) == Some(file) {
                        names.remove(from.as_str());
                    }
                    names.insert(to, *file);
                }
                Change::Exchange((from, one), (to, other)) => {
                    names.insert(from, *other);
                    names.insert(to, *one);
                }
            }
        }
        let content = |file: usize, chance: &mut dyn FnMut(usize) -> usize| {
            let File { content, durable } = &self.files[file];
            match chance(3) {
                _ if content == durable => content.clone(),
                0 => durable.clone(),
                1 => content.clone(),
                _ => vec![0; content.len()],
            }
        };
        let files = names.into_iter().map(|(path, file)| (path.to_owned(), content(file, chance))).collect();
        State { folders, files }
    }
}

impl State {
    /// Writes it to a folder that stands for `root`.
    pub fn write(&self, root: &str, to: &Path) {
        let place = |path: &str| to.join(path.strip_prefix(root).unwrap().trim_start_matches('/'));
        for folder in &self.folders {
            fs::create_dir_all(place(folder)).unwrap();
        }
        for (path, content) in &self.files {
            fs::write(place(path), content).unwrap();
        }
    }
}
