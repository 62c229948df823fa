//! Connects to the registry, or to the mirror.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use berth_config::Upstream;
use pingora::{
    Error, ErrorType, Result,
    connectors::l4::Connect,
    prelude::HttpPeer,
    protocols::l4::{socket::SocketAddr, stream::Stream},
};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{net::UnixStream, time::timeout};

/// How long the registry may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of a push the kernel takes ahead of the registry, in bytes, as far as the system allows it (`net.core.wmem_max`); it
/// counts twice as much, with what it needs itself. By default there is room for three of Pingora's pieces, and the two
/// processes wait for each other 30,000 times a gigabyte.
const SEND_BUFFER_BYTES: usize = 512 * 1024;

/// Where it is now.
///
/// # Errors
/// If its name can't be resolved.
pub async fn peer_at(upstream: &Upstream) -> Result<HttpPeer> {
    let mut peer = match upstream {
        Upstream::Unix(path) => {
            let mut peer = HttpPeer::new_uds(&path.to_string_lossy(), false, String::new())?;
            peer.options.custom_l4 = Some(Arc::new(LocalSocket));
            peer
        }
        Upstream::Tcp { .. } => {
            let mut addresses = tokio::net::lookup_host(upstream.authority()).await.map_err(|e| {
                Error::because(ErrorType::ConnectNoRoute, "the registry's name can't be resolved", e).into_up()
            })?;
            let address = addresses.next().ok_or_else(|| Error::new_up(ErrorType::ConnectNoRoute))?;
            HttpPeer::new(address, false, String::new())
        }
    };
    peer.options.connection_timeout = Some(CONNECT_TIMEOUT);
    Ok(peer)
}

/// Whether it isn't there.
pub fn is_connecting(kind: &ErrorType) -> bool {
    use ErrorType::{ConnectError, ConnectNoRoute, ConnectRefused, SocketError};
    matches!(kind, ConnectError | ConnectNoRoute | ConnectRefused | SocketError)
}

/// A unix socket with room for a push.
#[derive(Debug)]
struct LocalSocket;

#[async_trait]
impl Connect for LocalSocket {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let failed = |kind, error: io::Error| Error::because(kind, "the registry's socket", error);
        let path = address.as_unix().and_then(|address| address.as_pathname());
        let path = path.ok_or_else(|| Error::explain(ErrorType::InternalError, "not a unix socket"))?;
        let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await;
        let connected = connected.map_err(|late| failed(ErrorType::ConnectTimedout, late.into()))?;
        let socket = connected.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => failed(ErrorType::ConnectRefused, error),
            io::ErrorKind::PermissionDenied => failed(ErrorType::InternalError, error),
            _ => failed(ErrorType::ConnectError, error),
        })?;
        // Without it a push is slower, and that is all.
        let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        Ok(socket.into())
    }
}
