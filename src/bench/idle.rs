//! Connections that are opened and left in peace: what each costs the server in memory, and all in processor time.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;

use super::Setting;
use super::client::OpenFault;
use super::crowd::Crowd;
use super::figures;
use super::generator::Generator;
use super::measure::measure;
use super::messages::Shape;
use super::process::Memory;
use super::tally::Tally;

/// How long a server is given to settle before its memory is read.
const SETTLE: Duration = Duration::from_secs(1);

/// What idle connections cost a server.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Upkeep {
    /// Memory before the first connection.
    pub before: Memory,
    /// With all connections open and silent.
    pub opened: Memory,
    /// After one message on each.
    pub used: Memory,
    /// After all have left.
    pub closed: Memory,
    /// Resident bytes that each open, silent connection added.
    pub bytes_per_connection: f64,
    /// The same after one message on each.
    pub bytes_per_used_connection: f64,
    /// The share of a core that all together take while nothing happens.
    pub idle_cpu: f64,
    /// Descriptors before, with all connections open, and after.
    pub descriptors: [usize; 3],
}

/// Why idle connections could not be measured.
#[derive(Debug)]
pub enum IdleFault {
    /// A connection could not be opened.
    Open(OpenFault),
    /// The server's process is gone.
    Server(io::Error),
}

/// Opens the setting's connections, holds them for its duration, has each send one message, which is to be answered
/// within its grace, and leaves.
///
/// # Errors
/// [`IdleFault`].
pub(super) async fn run(
    generator: &Rc<Generator>,
    setting: &Setting,
    shape: Shape,
    tally: &Rc<Tally>,
) -> Result<Option<Upkeep>, IdleFault> {
    let Setting { connections, duration, grace, progress, .. } = setting;
    let server = setting.server.as_ref();
    let sample = || server.map(|server| Ok((server.memory()?, server.descriptors()?))).transpose();
    let before = sample().map_err(IdleFault::Server)?;
    progress(&format!("opening {connections} connections"));
    let opened = Crowd::open(generator, &setting.door, shape, 0..*connections).await;
    let mut crowd = opened.map_err(IdleFault::Open)?;
    progress(&format!("{connections} connections are open, and silent for {:.1} s", duration.as_secs_f64()));
    crowd.hold(SETTLE, tally).await;
    let opened = sample().map_err(IdleFault::Server)?;
    let held = measure(server, Rc::clone(tally), crowd.hold(*duration, tally)).await;
    let held = held.map_err(IdleFault::Server)?;
    progress(&format!("{connections} connections send a message each"));
    crowd.one_message_each(*grace, tally).await;
    crowd.hold(SETTLE, tally).await;
    let used = sample().map_err(IdleFault::Server)?;
    progress(&format!("{connections} connections leave"));
    crowd.leave(tally).await;
    let (Some(server), Some(before), Some(opened), Some(used)) = (server, before, opened, used) else {
        return Ok(None);
    };
    // It may take a while to notice that all have left.
    let mut waited = Duration::ZERO;
    while waited < *grace && server.descriptors().map_err(IdleFault::Server)? > before.1 {
        generator.wait(Duration::from_millis(100)).await;
        waited += Duration::from_millis(100);
    }
    generator.wait(SETTLE).await;
    let closed = sample().map_err(IdleFault::Server)?.unwrap_or_default();
    let each = |memory: Memory| {
        let added = figures::float(memory.rss_bytes) - figures::float(before.0.rss_bytes);
        added / f64::from(*connections)
    };
    Ok(Some(Upkeep {
        before: before.0,
        opened: opened.0,
        used: used.0,
        closed: closed.0,
        bytes_per_connection: each(opened.0),
        bytes_per_used_connection: each(used.0),
        idle_cpu: held.server_cpu.unwrap_or_default().as_secs_f64() / held.elapsed.as_secs_f64(),
        descriptors: [before.1, opened.1, closed.1],
    }))
}
