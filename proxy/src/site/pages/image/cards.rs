//! The cards of an image: its platforms, layers, what it says of itself, how it runs.

use maud::{Markup, html};

use super::{
    super::{
        target::written,
        words::{digest, link, plain, size},
    },
    document::{Artifact, MAX_SHOWN, SETTINGS},
    read::{Image, platforms},
};

impl Image {
    /// The platforms of an index, to choose one.
    pub fn platforms(&self) -> Markup {
        html! {
            section class="card rows" {
                h2 class="folder" { "Platforms" }
                ul {
                    @for (part, name) in platforms(&self.document) {
                        li {
                            a class="name" href={ "/image/" (written(&self.repository, &self.reference)) "?platform=" (part.digest) } aria-current=[(self.chosen.as_ref() == Some(&part.digest)).then_some("true")] { (name) }
                            @if self.chosen.as_ref() == Some(&part.digest) { span class="chip" { "shown below" } }
                            span class="soft" { (digest(&part.digest.to_string())) }
                        }
                    }
                }
            }
        }
    }

    /// Each with a bar beside the largest; of what is no image, its files.
    pub fn layers(&self) -> Markup {
        let layers = &self.inner.layers;
        let commands = self.config.commands();
        let largest = layers.iter().map(|layer| layer.size).max().unwrap_or_default().max(1);
        let total = layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size));
        let is_image = self.artifact() == Artifact::Image;
        html! {
            section class="card" {
                h2 {
                    @if is_image { "Layers" } @else { "Files" }
                    span class="soft" { " · " (layers.len()) " · " (size(total)) @if self.is_index { " · " (self.platform()) } }
                }
                ol class="layers" {
                    @for (i, layer) in layers.iter().enumerate().take(MAX_SHOWN) {
                        li {
                            @match commands.get(i).filter(|command| !command.is_empty()) {
                                Some(command) => code { (command) },
                                None => code { (plain(&layer.media_type)) },
                            }
                            span class="number" { (size(layer.size)) }
                            @if is_image {
                                meter min="0" max=(largest) value=(layer.size) aria-label={ "Size of layer " (i + 1) } {}
                                a class="fine" href={ "/layer/" (self.repository) "@" (layer.digest) } aria-label={ "where used: layer " (i + 1) } { "where used" }
                            }
                        }
                    }
                }
                @if layers.len() > MAX_SHOWN { p class="soft" { "These are the first " (MAX_SHOWN) "." } }
            }
        }
    }

    /// What it is, and what it says of itself.
    pub fn facts(&self) -> Markup {
        // What it says of itself: of the manifest, or of the configuration's labels.
        let labels = self.config.labels();
        let own = |key: &str| {
            let label = labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
            self.inner.annotations.get(key).or_else(|| self.document.annotations.get(key)).cloned().or(label)
        };
        let said = [
            ("Source", "org.opencontainers.image.source"),
            ("Revision", "org.opencontainers.image.revision"),
            ("Version", "org.opencontainers.image.version"),
            ("Licences", "org.opencontainers.image.licenses"),
            ("Documents", "org.opencontainers.image.documentation"),
        ];
        let more: Vec<(&String, &String)> = self.inner.annotations.iter().take(MAX_SHOWN).collect();
        html! {
            section class="card" {
                h2 { "What it is" }
                dl {
                    @if !self.is_index && self.artifact() == Artifact::Image { dt { "Platform" } dd { (self.config.platform()) } }
                    dt { "Digest" } dd { (digest(&self.digest.to_string())) }
                    @if let Some(subject) = &self.document.subject {
                        dt { "Attached to" } dd { a href={ "/image/" (self.repository) "@" (subject.digest) } { (digest(&subject.digest.to_string())) } }
                    }
                    @for (name, key) in said { @if let Some(value) = own(key) { dt { (name) } dd { (link(&value)) } } }
                }
                @if !more.is_empty() {
                    details {
                        summary { "Annotations" }
                        dl { @for (key, value) in more { dt { (plain(key)) } dd { (link(value)) } } }
                    }
                }
                @if said.iter().any(|(_, key)| own(key).is_some()) { p class="fine" { "Source, revision, version and the like: as the image claims." } }
            }
        }
    }

    /// Its configuration.
    pub fn how_it_runs(&self) -> Markup {
        let rows: Vec<_> = SETTINGS
            .map(|(name, key)| (name, self.config.texts(key)))
            .into_iter()
            .filter(|(_, all)| !all.is_empty())
            .collect();
        let labels = self.config.labels();
        html! {
            @if !rows.is_empty() || !labels.is_empty() {
                section class="card" {
                    h2 { "How it runs" }
                    dl { @for (name, all) in &rows { dt { (name) } dd { @for one in all { code { (one) } br; } } } }
                    @if !labels.is_empty() {
                        details {
                            summary { "Labels" }
                            dl { @for (key, value) in &labels { dt { (plain(key)) } dd { (link(value)) } } }
                        }
                    }
                }
            }
        }
    }
}
