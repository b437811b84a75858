//! From accept to the one counted end.

use std::rc::Rc;

use super::place::Port;
use crate::metrics::End;
use crate::net::timers::{TICK, Tick};

/// A connection's entry in the books: accepted when made, ended once when dropped.
///
/// Whoever drops it without having said how the connection ended has panicked; that is counted too, as
/// [`End::Internal`].
#[derive(Debug)]
pub struct Life {
    port: Rc<Port>,
    accepted: Tick,
    end: Option<End>,
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
        Self { port: Rc::clone(port), accepted, end: None, is_admitted: false }
    }

    /// Asks for leave to stay; `false` where the port or the gateway is at its limit.
    pub fn admit(&mut self) -> bool {
        let [of_port, of_gateway] = &self.port.admissions;
        self.is_admitted = of_port.enter();
        if self.is_admitted && !of_gateway.enter() {
            of_port.leave();
            self.is_admitted = false;
        }
        self.is_admitted
    }

    /// The port that the connection came to.
    pub fn port(&self) -> &Rc<Port> {
        &self.port
    }

    /// Says how the connection ends, once this is dropped.
    pub fn end(&mut self, end: End) {
        self.end = Some(end);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let cells = &self.port.cells;
        let lasted = TICK * (self.port.resources.timers.now() - self.accepted);
        cells.connection_duration.observe(lasted);
        cells.ended(self.end.unwrap_or(End::Internal));
        if self.end.is_none() {
            cells.panics.increment();
        }
        cells.connections_active.sub(1);
        self.port.resources.cells.connections_active.sub(1);
        if self.is_admitted {
            for admission in &self.port.admissions {
                admission.leave();
            }
        }
        self.port.resources.vacate();
    }
}
