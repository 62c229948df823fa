//! A file in pieces, for whoever sends it; and an open file that one process hands to another, so that its bytes aren't.

mod handover;
mod pieces;

pub use handover::{Asked, Given, MAX_BODY_BYTES, Received, receive, send, socket_of};
pub use pieces::{Pieces, read_cached};
