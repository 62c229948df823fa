//! End-to-end tests: the real binaries over sockets, with real clients. One file for each thing that users see.
//!
//! They are one program, so that it is linked once.
#![allow(clippy::unwrap_used, missing_docs)]

mod access;
mod authority;
mod bounded;
mod browser;
mod certificates;
mod ci;
mod clients;
mod commands;
mod crash;
mod credentials;
mod deployment;
mod disk;
mod docs;
mod garbage;
mod hardening;
mod hostile;
mod kubernetes;
mod movers;
mod names;
mod objects;
mod observe;
mod outage;
mod overview;
mod pages;
mod power_loss;
mod quotas;
mod registry;
mod reload;
mod replicas;
mod retention;
mod scim;
mod sign_in;
mod sign_out;
mod spec;
mod standing;
mod terminal;
mod tls;
mod tokens;
mod transfer;
