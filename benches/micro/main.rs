//! What the pieces of an echo cost in processor time, one by one: `cargo bench`, or `cargo bench -- mask` for those of a
//! name.

mod cpu_time;
mod gateway;
mod protocol;

use cpu_time::CpuTime;
use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    protocol::mask(&mut criterion);
    protocol::frame_header(&mut criterion);
    protocol::utf8(&mut criterion);
    protocol::request_head(&mut criterion);
    protocol::echo(&mut criterion);
    gateway::route(&mut criterion);
    gateway::metric_cell(&mut criterion);
    gateway::scrape(&mut criterion);
    gateway::sweep(&mut criterion);
    criterion.final_summary();
}
