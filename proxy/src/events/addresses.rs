//! Where events may be sent to: what somebody else's name server says shall not lead into this network.

use std::{io, net::SocketAddr};

use berth_config::is_public_address;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Looks names up, and leaves out what is private.
pub struct PublicAddresses;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public_address(address.ip())).collect();
            if public.is_empty() {
                let message = "it has only addresses of this network; set privateAddresses if it is yours";
                return Err(io::Error::other(message).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}
