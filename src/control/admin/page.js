// Shows /api/v1/status, read anew every two seconds. Everything that came over the wire enters as text.
"use strict";

const PERIOD_MS = 2000;
const ANSWER_TIMEOUT_MS = 5000;

// What each end means to somebody who does not know its label, and whose doing it is.
const ENDS = {
  closed: ["good", "closing handshake done"],
  http_done: ["good", "plain HTTP answered"],
  drained: ["good", "asked to leave, and left in time"],
  client_gone: ["client", "gone without a Close: end of file or reset"],
  handshake_timeout: ["client", "sent no whole request head in time"],
  idle: ["client", "no message within the idle timeout"],
  pong_timeout: ["client", "did not answer a ping"],
  slow_client: ["client", "did not read what was sent"],
  refused: ["refused", "opening handshake refused"],
  limit: ["refused", "a limit on connections or rates"],
  violation: ["refused", "broke a rule of RFC 6455"],
  message_too_big: ["refused", "frame or message over its limit"],
  tls_failed: ["refused", "TLS failed"],
  proxy_header_invalid: ["refused", "PROXY header missing, malformed or from a stranger"],
  upstream_unavailable: ["fault", "no upstream could be reached"],
  upstream_gone: ["fault", "the upstream went away"],
  shutdown: ["fault", "cut when the gateway stopped"],
  internal: ["fault", "a fault of the gateway"],
};

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

let token = null;
let before = null;

document.getElementById("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = document.getElementById("token").value;
  read();
});
document.addEventListener("visibilitychange", readIfSeen);
setInterval(readIfSeen, PERIOD_MS);
read();

// Nobody looks at a hidden page, and while the token is asked for there is nothing to show.
function readIfSeen() {
  if (!document.hidden && document.getElementById("token-form").hidden) read();
}

async function read() {
  let status;
  try {
    const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
    const answer = await fetch("api/v1/status", { headers, signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
    document.getElementById("token-form").hidden = answer.status !== 401;
    if (answer.status === 401) {
      trouble(token === null ? null : "That is not the token.");
      document.getElementById("main").hidden = true;
      badge("token needed", "client");
      return;
    }
    if (!answer.ok) throw new Error(`the gateway answered ${answer.status}`);
    status = await answer.json();
  } catch (error) {
    const since = before ? ` What is shown is from ${new Date(before.at).toLocaleTimeString()}.` : "";
    trouble(`The gateway does not answer (${error.message}).${since}`);
    badge("no answer", "fault");
    return;
  }
  trouble(null);
  // An older answer that arrives late shows nothing new, and a redraw would take away what somebody is selecting.
  if (before && status.uptime_seconds <= before.status.uptime_seconds
      && status.started_timestamp_seconds === before.status.started_timestamp_seconds) return;
  const isSame = before && before.status.started_timestamp_seconds === status.started_timestamp_seconds;
  if (getSelection().isCollapsed) show(status, isSame ? before.status : null);
  before = { status, at: Date.now() };
}

function show(status, earlier) {
  const tone = { serving: "good", starting: "client", draining: "client" }[status.phase];
  badge(status.phase, tone);
  const driver = status.io_driver ?? "no driver yet";
  const reason = status.io_driver_fallback ? ` (${status.io_driver_fallback})` : "";
  const commit = status.commit === "unknown" ? "" : ` (${status.commit.slice(0, 9)})`;
  document.getElementById("build").textContent = `${status.version}${commit} · ${driver}${reason}`;

  const total = (pick) => status.ports.reduce((sum, port) => sum + pick(port), 0);
  const rate = (pick) => {
    const seconds = earlier ? status.uptime_seconds - earlier.uptime_seconds : 0;
    return seconds > 0 ? (pick(status) - pick(earlier)) / seconds : null;
  };
  const messages = (of) => of.ports.reduce((sum, port) => sum + port.messages.received, 0);
  const cpu = rate((of) => of.process.cpu_seconds);
  const { resident_memory_bytes: memory, open_fds: open, max_fds: limit } = status.process;
  replace("tiles", [
    tile("connections open", whole.format(total((port) => port.connections_active))),
    tile("accepted so far", short.format(total((port) => port.connections_accepted))),
    tile("messages in, each second", known(rate(messages), short.format)),
    tile("CPU, of one core", known(cpu, percent)),
    tile("memory", known(memory, bytes)),
    tile(limit ? `descriptors of ${short.format(limit)}` : "descriptors", known(open, short.format)),
    tile("up for", duration(status.uptime_seconds)),
  ]);
  replace("ports", status.ports.map(portCard));
  document.getElementById("upstreams-section").hidden = status.upstreams.length === 0;
  replace("upstreams", status.upstreams.map(upstreamRow));
  replace("shards", status.shards.map((shard) => {
    const share = shard.connections_active / Math.max(1, ...status.shards.map((each) => each.connections_active));
    return shardRow(shard, share, rate((of) => of.shards[shard.index].cpu_seconds));
  }));
  document.getElementById("main").hidden = false;
}

function portCard(port) {
  const tone = { up: "good", draining: "client", down: "fault" }[port.state];
  const address = port.address.includes(":") ? `[${port.address}]` : port.address;
  const name = port.label === String(port.number) ? `Port ${port.label}` : `${port.label}, port ${port.number}`;
  const ended = Object.values(port.connections_ended).reduce((sum, count) => sum + count, 0);
  const handshakes = port.handshake_duration_seconds;
  const pings = port.ping_round_trip_seconds;
  const troubles = [
    ["panics", port.panics],
    ["accepts that failed", sum(port.accept_errors)],
    ["slow clients cut", port.slow_clients.cut],
  ].filter(([, count]) => count > 0);
  return make("article", { class: "card" },
    make("div", { class: "port-head" },
      make("h3", {}, name),
      make("span", { class: "quiet" }, address),
      make("span", { class: `badge ${tone}` }, port.state)),
    make("dl", { class: "funnel" },
      pair("accepted", whole.format(port.connections_accepted)),
      pair("open", whole.format(port.connections_active)),
      pair("ended", whole.format(ended)),
      pair("messages in", short.format(port.messages.received)),
      pair("messages out", short.format(port.messages.sent)),
      pair("on the wire", bytes(port.wire_bytes.received + port.wire_bytes.sent)),
      pair("handshake, mean", handshakes.count ? time(handshakes.sum / handshakes.count) : "–"),
      pair("ping, mean", pings.count ? time(pings.sum / pings.count) : "–"),
      pair("limit", port.connections_limit ? short.format(port.connections_limit) : "–")),
    make("h4", {}, "How connections ended"),
    ...ends(port.connections_ended, ended),
    make("h4", {}, "Opening handshakes"),
    counts(Object.entries(port.handshakes), port.handshakes_in_progress),
    ...counted("Rules that clients broke", Object.entries(port.violations)),
    ...counted("Closes", port.closes.map((close) => [`${close.code} by ${close.initiator}`, close.count])),
    ...certificates(port.tls),
    ...counted("TLS handshakes", port.tls ? Object.entries(port.tls_handshakes) : []),
    ...counted("Why TLS failed", Object.entries(port.tls_failures)),
    ...counted("Needs a look", troubles));
}

function certificates(tls) {
  if (tls === null) return [];
  const days = (certificate) => Math.floor((certificate.not_after_timestamp_seconds - Date.now() / 1000) / 86400);
  const line = (certificate) => make("p", { class: days(certificate) < 14 ? "trouble" : "quiet" },
    `${certificate.name} for ${certificate.hosts.join(", ") || "no host"}, good for ${days(certificate)} days`);
  return [
    make("h4", {}, `TLS ${tls.versions.join(" and ")}`),
    ...tls.certificates.map(line),
    ...(tls.fault === null ? [] : [make("p", { class: "trouble" }, `Not in force: ${tls.fault}`)]),
  ];
}

function ends(byLabel, total) {
  const seen = Object.entries(byLabel).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  if (seen.length === 0) return [make("p", { class: "quiet" }, "None has ended yet.")];
  const order = ["good", "client", "refused", "fault"];
  const parts = order.map((tone) => {
    const count = seen.filter(([label]) => toneOf(label) === tone).reduce((sum, [, count]) => sum + count, 0);
    const part = make("i", { class: tone });
    part.style.flexGrow = count;
    return count > 0 ? part : null;
  });
  const rows = seen.map(([label, count]) => make("tr", {},
    make("th", { scope: "row" },
      make("span", { class: `dot ${toneOf(label)}` }), label,
      make("small", {}, ENDS[label]?.[1] ?? "")),
    make("td", {}, whole.format(count)),
    make("td", { class: "share" }, percent(count / total))));
  return [
    make("div", { class: "bar", "aria-hidden": "true" }, ...parts.filter(Boolean)),
    make("table", { class: "ends" }, make("tbody", {}, ...rows)),
  ];
}

function counted(title, entries) {
  return entries.some(([, count]) => count > 0) ? [make("h4", {}, title), counts(entries, 0)] : [];
}

function counts(entries, inProgress) {
  const seen = entries.filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  if (inProgress > 0) seen.push(["in progress", inProgress]);
  if (seen.length === 0) return make("p", { class: "quiet" }, "None yet.");
  const rows = seen.map(([label, count]) =>
    make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, whole.format(count))));
  return make("table", {}, make("tbody", {}, ...rows));
}

function upstreamRow(upstream) {
  const [tone, state] = upstream.healthy ? ["good", "in use"]
    : upstream.ejected ? ["client", "ejected"] : ["fault", "not in use"];
  const isNamed = upstream.addresses.length !== 1 || !upstream.upstream.endsWith(upstream.addresses[0]);
  return make("tr", {},
    make("th", { scope: "row" },
      upstream.upstream,
      make("small", {}, `route ${upstream.route}${isNamed ? `, at ${upstream.addresses.join(", ") || "no address"}` : ""}`),
      upstream.fault === null ? "" : make("small", { class: "why" }, upstream.fault)),
    make("td", {}, whole.format(upstream.connections_active)),
    make("td", {}, whole.format(upstream.connections_in_progress)),
    make("td", {}, whole.format(upstream.ejections)),
    make("td", {}, make("span", { class: `badge ${tone}` }, state)));
}

function shardRow(shard, share, cpu) {
  const part = make("i", { class: "good" });
  part.style.width = `${share * 100}%`;
  return make("tr", {},
    make("th", { scope: "row" }, String(shard.index)),
    make("td", {}, whole.format(shard.connections_active)),
    make("td", { class: "spread" }, make("div", { class: "bar", "aria-hidden": "true" }, share > 0 ? part : "")),
    make("td", {}, known(cpu, percent)),
    make("td", {}, time(shard.loop_lag_seconds)));
}

function toneOf(label) { return ENDS[label]?.[0] ?? "fault"; }
function sum(byLabel) { return Object.values(byLabel).reduce((sum, count) => sum + count, 0); }

function tile(term, value) { return make("div", {}, make("dt", {}, term), make("dd", {}, value)); }
function pair(term, value) { return make("div", {}, make("dt", {}, term), make("dd", {}, value)); }

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function replace(id, children) { document.getElementById(id).replaceChildren(...children); }

function badge(text, tone) {
  const element = document.getElementById("phase");
  // Said anew only where it changed: the badge is a live region.
  if (element.textContent !== text) element.textContent = text;
  element.className = `badge ${tone}`;
}

function trouble(sentence) {
  const element = document.getElementById("trouble");
  element.hidden = sentence === null;
  if (element.textContent !== sentence) element.textContent = sentence ?? "";
}

function known(value, format) { return value === null || value === undefined ? "–" : format(value); }

function percent(share) {
  if (share > 0 && share < .001) return "<0.1%";
  return `${(share * 100).toFixed(share > 0 && share < .1 ? 1 : 0)}%`;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  const value = count / 2 ** (10 * step);
  return `${value.toFixed(step > 0 && value < 100 ? 1 : 0)} ${units[step]}`;
}

function time(seconds) {
  if (seconds < .001) return `${(seconds * 1e6).toFixed(0)} µs`;
  return seconds < 1 ? `${(seconds * 1e3).toFixed(1)} ms` : `${seconds.toFixed(1)} s`;
}

function duration(seconds) {
  const [days, hours, minutes] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60].map(Math.floor);
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
}
