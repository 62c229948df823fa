//! The connections that there are: how many, whose, and what each of them waits for.
//!
//! Whoever opens connections and says nothing, or a byte a minute, holds each for a while and not for ever. When there are
//! as many as there may be, room is made by closing the idlest one of the address that has most, and never one with a
//! request in flight. [`door`] accepts them, and [`stream`] watches how much they send before a request is there.

mod door;
mod stream;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use pingora::protocols::Stream;
use tokio::{sync::Notify, time::Instant};

pub use self::door::{Door, bind};
use crate::network::Network;

/// How long a connection is kept for the next request. Proxies in front of us keep theirs for a minute.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a handshake may take, then the first request's headers (or HTTP/2's preface), and all headers from their first
/// byte.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most connections at once.
const MAX_CONNECTIONS: usize = 10_000;

/// How many descriptors one connection may need: its own, one to the registry, and some for everything else.
const DESCRIPTORS_PER_CONNECTION: u64 = 3;

/// How many connections so many descriptors are for.
pub fn connections_for(descriptors: Option<u64>) -> usize {
    let connections =
        descriptors.map_or(MAX_CONNECTIONS, |n| usize::try_from(n / DESCRIPTORS_PER_CONNECTION).unwrap_or(usize::MAX));
    connections.clamp(16, MAX_CONNECTIONS)
}

/// How many connections there may be.
#[derive(Clone, Debug)]
pub struct Limits {
    /// At once.
    pub connections: usize,
    /// At once from one address, if that is bounded.
    pub per_address: Option<usize>,
    /// Who is counted and never closed for others: the proxies in front of us, who bring everybody.
    pub exempt: Vec<IpNet>,
}

/// The connections of this process.
pub struct Connections {
    limits: Limits,
    table: Mutex<Table>,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    peer: SocketAddr,
    phase: Mutex<Phase>,
    /// It is to be closed, because others need its place.
    is_evicted: AtomicBool,
    /// Something has changed that its watcher must know.
    changed: Notify,
    /// The stream, once its headers were too long.
    aside: Mutex<Option<Stream>>,
    /// What is written now is short and comes at once: it is sent when it is there.
    gathers: AtomicBool,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug)]
struct Phase {
    /// How many requests there were.
    requests: u64,
    /// How many of them are being served.
    in_flight: usize,
    /// How many of those wait for the client: for a form, or for it to take an answer of ours.
    waiting: usize,
    /// Since when nothing is done but waiting.
    idle_since: Instant,
    /// When the connection is closed, if none comes.
    waits_until: Instant,
}

impl Phase {
    fn is_idle(&self) -> bool {
        self.waiting >= self.in_flight
    }
}

#[derive(Default)]
struct Table {
    connections: HashMap<SocketAddr, Arc<Connection>>,
    networks: HashMap<Network, Members>,
    /// The networks that have idle connections to give up, by how many connections they have in all.
    crowded: BTreeSet<(usize, Network)>,
    requests: usize,
}

/// The connections of one network.
#[derive(Default)]
struct Members {
    connections: usize,
    /// Those without a request, the idlest first.
    idle: BTreeSet<(Instant, SocketAddr)>,
}

/// A request that is being served.
pub struct InFlight {
    connections: Arc<Connections>,
    connection: Option<Arc<Connection>>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connections.end_request(self.connection.as_deref());
    }
}

/// A request that waits for its client: while all of a connection's do, it may be closed for others like an idle one.
pub struct Waiting<'a>(&'a InFlight);

impl InFlight {
    /// Says that the whole answer is written at once, up to its flush: then its header isn't sent apart.
    pub fn gather_answer(&self) {
        if let Some(connection) = &self.connection {
            connection.gathers.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for the client until this is dropped.
    pub fn wait_for_client(&self) -> Waiting<'_> {
        let Self { connections, connection } = self;
        connections.change(&mut lock(&connections.table), connection.as_deref(), |phase| phase.waiting += 1);
        Waiting(self)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let InFlight { connections, connection } = self.0;
        connections.change(&mut lock(&connections.table), connection.as_deref(), |phase| phase.waiting -= 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    fn new(peer: SocketAddr) -> Self {
        let now = Instant::now();
        let phase = Phase { requests: 0, in_flight: 0, waiting: 0, idle_since: now, waits_until: now + HEADER_TIMEOUT };
        Self {
            peer,
            phase: Mutex::new(phase),
            is_evicted: AtomicBool::new(false),
            changed: Notify::new(),
            aside: Mutex::default(),
            gathers: AtomicBool::new(false),
        }
    }

    fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    /// When it is closed unless something happens; never, while a request is in flight.
    fn deadline(&self) -> Option<Instant> {
        let phase = self.phase();
        (phase.in_flight == 0).then_some(phase.waits_until)
    }

    /// The handshake is over: the first request has its own time.
    fn has_shaken_hands(&self) {
        lock(&self.phase).waits_until = Instant::now() + HEADER_TIMEOUT;
    }

    /// Keeps the stream for who refuses it.
    fn set_aside(&self, stream: Stream) {
        *lock(&self.aside) = Some(stream);
    }

    /// The first byte of a request is here.
    fn begins_header(&self) {
        lock(&self.phase).waits_until = Instant::now() + HEADER_TIMEOUT;
        self.changed.notify_one();
    }
}

impl Connections {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, table: Mutex::default() }
    }

    /// Whether no request is being served.
    pub fn is_idle(&self) -> bool {
        lock(&self.table).requests == 0
    }

    /// Lets a connection in, if there is room or room can be made.
    fn admit(&self, peer: SocketAddr) -> Option<Arc<Connection>> {
        let mut table = lock(&self.table);
        let network = Network::of(peer.ip());
        let is_exempt = self.is_exempt(peer.ip());
        let own = table.networks.get(&network).map_or(0, |members| members.connections);
        if !is_exempt && self.limits.per_address.is_some_and(|most| own >= most) && !table.evict_idlest_of(network) {
            return None;
        }
        if table.connections.len() >= self.limits.connections && !table.evict_idlest() {
            return None;
        }
        // The client may have gone, and come again from the same port, before that was noticed.
        if let Some(before) = table.connections.get(&peer).cloned() {
            table.remove(&before);
        }
        let connection = Arc::new(Connection::new(peer));
        table.connections.insert(peer, Arc::clone(&connection));
        table.change(network, |members| {
            members.connections += 1;
            if !is_exempt {
                members.idle.insert((connection.phase().idle_since, peer));
            }
        });
        Some(connection)
    }

    /// A connection has ended.
    fn leave(&self, connection: &Arc<Connection>) {
        let mut table = lock(&self.table);
        // It may have been evicted, and its address and port be another's by now.
        if table.connections.get(&connection.peer).is_some_and(|known| Arc::ptr_eq(known, connection)) {
            table.remove(connection);
        }
    }

    /// A request has come on the connection of this peer.
    pub fn begin_request(self: &Arc<Self>, peer: SocketAddr) -> InFlight {
        let mut table = lock(&self.table);
        table.requests += 1;
        let connection = table.connections.get(&peer).cloned();
        self.change(&mut table, connection.as_deref(), |phase| {
            phase.requests += 1;
            phase.in_flight += 1;
        });
        InFlight { connections: Arc::clone(self), connection }
    }

    fn end_request(&self, connection: Option<&Connection>) {
        let mut table = lock(&self.table);
        table.requests -= 1;
        self.change(&mut table, connection, |phase| {
            phase.in_flight -= 1;
            phase.waits_until = Instant::now() + IDLE_TIMEOUT;
        });
    }

    /// Changes what a connection waits for, and puts it among those that may be closed for others, or takes it away.
    fn change(&self, table: &mut Table, connection: Option<&Connection>, change: impl FnOnce(&mut Phase)) {
        let Some(connection) = connection else { return };
        let mut phase = lock(&connection.phase);
        let peer = connection.peer;
        let before = *phase;
        change(&mut phase);
        if phase.is_idle() && !before.is_idle() {
            phase.idle_since = Instant::now();
        }
        // It may have been evicted, and its address and port be another's by now.
        let is_there = table.connections.get(&peer).is_some_and(|known| std::ptr::eq(&**known, connection));
        if !is_there || self.is_exempt(peer.ip()) || phase.is_idle() == before.is_idle() {
            return;
        }
        let now = *phase;
        table.change(Network::of(peer.ip()), |members| match now.is_idle() {
            true => drop(members.idle.insert((now.idle_since, peer))),
            false => drop(members.idle.remove(&(before.idle_since, peer))),
        });
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.limits.exempt.iter().any(|net| net.contains(&address))
    }
}

impl Table {
    /// Changes the members of a network, and puts it where it belongs by their number.
    fn change(&mut self, network: Network, change: impl FnOnce(&mut Members)) {
        let members = self.networks.entry(network).or_default();
        self.crowded.remove(&(members.connections, network));
        change(members);
        if !members.idle.is_empty() {
            self.crowded.insert((members.connections, network));
        }
        if members.connections == 0 {
            self.networks.remove(&network);
        }
    }

    fn remove(&mut self, connection: &Connection) {
        let peer = connection.peer;
        self.connections.remove(&peer);
        let since = connection.phase().idle_since;
        self.change(Network::of(peer.ip()), |members| {
            members.connections -= 1;
            members.idle.remove(&(since, peer));
        });
    }

    /// Closes the idlest connection of the network that has most; whether there was one.
    fn evict_idlest(&mut self) -> bool {
        let crowded = self.crowded.last().map(|&(_, network)| network);
        crowded.is_some_and(|network| self.evict_idlest_of(network))
    }

    fn evict_idlest_of(&mut self, network: Network) -> bool {
        let idlest = self.networks.get(&network).and_then(|members| members.idle.first().copied());
        let Some(connection) = idlest.and_then(|(_, peer)| self.connections.get(&peer).cloned()) else { return false };
        self.remove(&connection);
        connection.is_evicted.store(true, Ordering::Relaxed);
        connection.changed.notify_one();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn connections(connections: usize, per_address: Option<usize>) -> Arc<Connections> {
        let exempt = vec!["10.9.0.0/16".parse().expect("a net")];
        Arc::new(Connections::new(Limits { connections, per_address, exempt }))
    }

    fn count(connections: &Connections) -> usize {
        lock(&connections.table).connections.len()
    }

    fn is_there(connections: &Connections, peer: SocketAddr) -> bool {
        lock(&connections.table).connections.contains_key(&peer)
    }

    #[test]
    fn room_is_made_by_the_idlest_of_whoever_has_most() {
        let all = connections(4, None);
        let others = peer("192.0.2.7:1");
        all.admit(others).expect("room");
        let crowd = [1, 2, 3].map(|port| peer(&format!("198.51.100.1:{port}")));
        crowd.iter().for_each(|peer| drop(all.admit(*peer).expect("room")));
        // The first of the crowd is busy, so the second goes, and then the third.
        let busy = all.begin_request(crowd[0]);
        all.admit(peer("203.0.113.1:1")).expect("room is made");
        assert_eq!(crowd.map(|peer| is_there(&all, peer)), [true, false, true]);
        all.admit(peer("203.0.113.2:1")).expect("room is made");
        assert_eq!(crowd.map(|peer| is_there(&all, peer)), [true, false, false]);
        assert!(is_there(&all, others));
        drop(busy);
        assert!(all.is_idle() && count(&all) == 4);
    }

    #[test]
    fn nothing_in_flight_and_no_proxy_of_ours_is_closed_for_others() {
        let all = connections(2, None);
        let proxy = all.admit(peer("10.9.0.1:1")).expect("room");
        let client = peer("192.0.2.1:1");
        all.admit(client).expect("room");
        let busy = all.begin_request(client);
        assert!(all.admit(peer("192.0.2.2:1")).is_none());
        drop(busy);
        assert!(all.admit(peer("192.0.2.2:1")).is_some() && !is_there(&all, client));
        assert!(is_there(&all, proxy.peer));
        all.leave(&proxy);
        assert_eq!(count(&all), 1);
    }

    #[test]
    fn a_bound_for_an_address_closes_its_own_idlest_and_exempts_proxies() {
        let all = connections(100, Some(2));
        let (a, b, c) = (peer("[2001:db8::1]:1"), peer("[2001:db8::2]:1"), peer("[2001:db8::3]:1"));
        let (_a, _b) = (all.admit(a).expect("room"), all.admit(b).expect("room"));
        let busy = [all.begin_request(a), all.begin_request(b)];
        assert!(all.admit(c).is_none());
        drop(busy);
        assert!(all.admit(c).is_some() && count(&all) == 2);
        (1..9).for_each(|port| assert!(all.admit(peer(&format!("10.9.0.1:{port}"))).is_some()));
    }

    #[test]
    fn whoever_comes_again_from_the_same_port_takes_the_place_of_who_was_there() {
        let all = connections(2, Some(1));
        let client = peer("192.0.2.1:1");
        let first = all.admit(client).expect("room");
        let busy = all.begin_request(client);
        // With a bound of one for an address, the first of which is busy and has gone.
        let roomy = connections(2, None);
        let before = roomy.admit(client).expect("room");
        let request = roomy.begin_request(client);
        let again = roomy.admit(client).expect("room");
        assert_eq!(count(&roomy), 1);
        drop(request);
        roomy.leave(&before);
        assert_eq!(count(&roomy), 1);
        roomy.leave(&again);
        let table = lock(&roomy.table);
        assert!(table.connections.is_empty() && table.networks.is_empty() && table.crowded.is_empty());
        drop(busy);
        all.leave(&first);
    }

    #[test]
    fn a_request_that_waits_for_its_client_may_be_closed_for_others() {
        let all = connections(1, None);
        let client = peer("192.0.2.1:1");
        let slow = all.admit(client).expect("room");
        let request = all.begin_request(client);
        assert!(all.admit(peer("192.0.2.2:1")).is_none());
        let waiting = request.wait_for_client();
        assert!(all.admit(peer("192.0.2.2:1")).is_some() && slow.is_evicted.load(Ordering::Relaxed));
        drop(waiting);
        drop(request);
        all.leave(&slow);
        assert_eq!(count(&all), 1);
        // Once it is there, it isn't any more.
        let request = all.begin_request(peer("192.0.2.2:1"));
        drop(request.wait_for_client());
        assert!(all.admit(peer("192.0.2.3:1")).is_none());
    }

    #[test]
    fn whoever_left_is_forgotten_and_who_was_evicted_leaves_nobody_else() {
        let all = connections(1, None);
        let first = all.admit(peer("192.0.2.1:1")).expect("room");
        let second = all.admit(peer("192.0.2.1:2")).expect("room is made");
        let again = all.admit(peer("192.0.2.1:1")).expect("room is made");
        all.leave(&first);
        all.leave(&second);
        assert_eq!(count(&all), 1);
        all.leave(&again);
        let table = lock(&all.table);
        assert!(table.connections.is_empty() && table.networks.is_empty() && table.crowded.is_empty());
    }
}
