//! From accept to the one counted end.

use std::net::IpAddr;
use std::rc::Rc;

use super::addresses;
use super::place::Port;
use crate::metrics::{AddressRefusal, End};
use crate::net::timers::{TICK, Tick, Timer};
use crate::route::policy;

/// A connection's entry in the books: accepted when made, ended once when dropped.
///
/// Whoever drops it without having said how the connection ended has panicked; that is counted too, as
/// [`End::Internal`].
#[derive(Debug)]
pub struct Life {
    /// The connection's one deadline; what passes with it depends on what the connection is doing.
    pub timer: Timer<Rc<Port>>,
    accepted: Tick,
    end: Option<End>,
    /// What its address gives back when it ends, where connections are limited by address.
    address: Option<addresses::Place>,
    /// True exactly while the connection counts towards the limits of its port and of the gateway.
    is_admitted: bool,
}

impl Life {
    /// Counts an accepted connection.
    pub fn begin(port: &Rc<Port>) -> Self {
        port.cells.connections_accepted.increment();
        port.cells.connections_active.add(1);
        port.resources.cells.connections_active.add(1);
        port.resources.occupy();
        let accepted = port.resources.timers.now();
        Self { timer: Timer::new(Rc::clone(port)), accepted, end: None, address: None, is_admitted: false }
    }

    /// Asks for leave to stay; `false` where the port or the gateway is at its limit.
    pub fn admit(&mut self) -> bool {
        let [of_port, of_gateway] = &self.timer.clock().admissions;
        self.is_admitted = of_port.enter();
        if self.is_admitted && !of_gateway.enter() {
            of_port.leave();
            self.is_admitted = false;
        }
        self.is_admitted
    }

    /// Asks for leave to stay, for somebody from this address; what it is refused for, where it is.
    ///
    /// # Errors
    /// [`AddressRefusal::Denied`] and [`AddressRefusal::Connections`].
    pub fn admit_from(&mut self, address: IpAddr) -> Result<(), AddressRefusal> {
        let port = self.timer.clock();
        if !policy::admits(&port.access, address) {
            return Err(AddressRefusal::Denied);
        }
        if let Some(addresses) = &port.addresses {
            self.address = addresses.connect(address).map_err(|_| AddressRefusal::Connections)?;
        }
        Ok(())
    }

    /// The port that the connection came to.
    pub fn port(&self) -> &Rc<Port> {
        self.timer.clock()
    }

    /// Says how the connection ends, once this is dropped.
    pub fn end(&mut self, end: End) {
        self.end = Some(end);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let port = self.timer.clock();
        let cells = &port.cells;
        let lasted = TICK * (port.resources.timers.now() - self.accepted);
        cells.connection_duration.observe(lasted);
        cells.ended(self.end.unwrap_or(End::Internal));
        if self.end.is_none() {
            cells.panics.increment();
        }
        cells.connections_active.sub(1);
        port.resources.cells.connections_active.sub(1);
        if let (Some(place), Some(addresses)) = (self.address, &port.addresses) {
            addresses.disconnect(place);
        }
        if self.is_admitted {
            for admission in &port.admissions {
                admission.leave();
            }
        }
        port.resources.vacate();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Access, Limits};
    use crate::metrics::{Driver, Metrics};
    use crate::net::clock;
    use crate::net::contain::contain_now;
    use crate::service::Resources;
    use crate::service::admission::Admission;

    /// A port that holds one connection, and the metrics that it counts in.
    fn port() -> (Rc<Port>, Metrics) {
        let metrics = Metrics::new(1, vec!["80".to_owned()], vec![], clock::time_of_day());
        let port = Port {
            resources: Resources::new(metrics.shard_cells(0), Driver::Epoll),
            cells: metrics.port_cells(0, 0),
            limits: Limits::DEFAULT,
            number: 80,
            tls: None,
            proxies: None,
            access: Access::default(),
            addresses: None,
            admissions: [Admission::new(1), Admission::new(2)],
        };
        (Rc::new(port), metrics)
    }

    #[test]
    fn a_connection_ends_once_as_it_was_said() {
        let (port, metrics) = port();
        let mut life = Life::begin(&port);
        assert_eq!(metrics.port_totals(0).connections_active, 1);
        life.end(End::Closed);
        drop(life);
        let totals = metrics.port_totals(0);
        assert_eq!((totals.connections_accepted, totals.connections_active, totals.panics), (1, 0, 0));
        assert_eq!(totals.connections_ended[End::Closed.index()], 1);
    }

    #[test]
    fn a_panic_ends_its_connection_counted_and_gives_its_place_back() {
        let (port, metrics) = port();
        contain_now(|| {
            let mut life = Life::begin(&port);
            assert!(life.admit());
            panic!("in the middle of a connection");
        });
        let totals = metrics.port_totals(0);
        assert_eq!((totals.connections_active, totals.panics), (0, 1));
        assert_eq!(totals.connections_ended[End::Internal.index()], 1);
        assert!(Life::begin(&port).admit());
    }

    #[test]
    fn what_a_full_gateway_refuses_takes_no_place_of_the_port() {
        let (port, _metrics) = port();
        let [of_port, of_gateway] = &port.admissions;
        assert!(of_gateway.enter() && of_gateway.enter());
        assert!(!Life::begin(&port).admit());
        assert!(of_port.enter(), "the port's own place was given back");
    }
}
