//! What the end-to-end tests are made of: a stand-in identity provider, the two real processes, people who sign in,
//! images, and the clients that happen to be installed.

pub mod api;
pub mod blueprint;
pub mod bucket;
pub mod certified;
pub mod images;
pub mod person;
pub mod postgres;
pub mod process;
pub mod receiver;
pub mod relay;
pub mod scim_push;
pub mod stand_in;
pub mod system;
pub mod tools;
