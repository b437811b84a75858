// Socket.IO's own client: socket_io.cjs URL TRANSPORTS. TRANSPORTS is `polling`, `websocket` or `polling,websocket`. Prints
// what it found, and exits with 0 only if all went well. With a third argument it connects, says so, and waits until it is
// connected again after it was cut off.
'use strict';
const assert = require('node:assert');
const { randomBytes } = require('node:crypto');
const { io } = require('socket.io-client');

const [url, list, reconnects] = process.argv.slice(2);
const transports = list.split(',');
// Such as a login has set before.
const extraHeaders = { cookie: `session=${randomBytes(8).toString('hex')}` };
const TIMEOUT_MS = 20_000;

// A connection, by the last transport where there are two: an upgrade from the first.
async function connect() {
  const socket = io(url, { transports, forceNew: true, reconnectionDelay: 100, extraHeaders });
  const { engine } = await new Promise((resolve, reject) => {
    socket.io.once('open', () => resolve(socket.io));
    socket.io.once('error', reject);
  });
  assert.strictEqual(engine.transport.name, transports[0]);
  const upgraded = transports.length > 1 && new Promise((resolve) => engine.once('upgrade', resolve));
  await new Promise((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('connect_error', reject);
  });
  await upgraded;
  return socket;
}

// The next event of this name, as its arguments.
function next(socket, name) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${name}`)), TIMEOUT_MS);
    socket.once(name, (...values) => {
      clearTimeout(timer);
      resolve(values);
    });
  });
}

const ask = (socket, ...question) => socket.timeout(TIMEOUT_MS).emitWithAck(...question);

async function talk() {
  const socket = await connect();
  const { name, transport } = await ask(socket, 'who');
  assert.strictEqual(transport, transports.at(-1));

  assert.deepStrictEqual(await ask(socket, 'echo', { text: 'aé€😀', list: [1, null] }), { text: 'aé€😀', list: [1, null] });
  for (const size of [0, 1, 126, 65_536, 1 << 20]) {
    const bytes = randomBytes(size);
    const answer = await ask(socket, 'echo', { bytes, beside: [bytes] });
    assert.ok(bytes.equals(answer.bytes) && bytes.equals(answer.beside[0]), `another echo at ${size} bytes`);
    const returned = next(socket, 'returned');
    socket.emit('return', bytes);
    const [first, { again }] = await returned;
    assert.ok(bytes.equals(first) && bytes.equals(again), `another event at ${size} bytes`);
  }

  const others = await Promise.all([connect(), connect(), connect()]);
  await Promise.all(others.slice(0, 2).map((other) => ask(other, 'join', 'room')));
  let strays = 0;
  others[2].on('said', () => (strays += 1));
  const heard = others.slice(0, 2).map((other) => next(other, 'said'));
  socket.emit('say', 'room', 'hello');
  assert.deepStrictEqual(await Promise.all(heard), [['hello'], ['hello']]);
  await ask(others[2], 'who');
  assert.strictEqual(strays, 0, 'who is not in the room hears nothing');
  for (const one of [socket, ...others]) one.disconnect();
  console.log(JSON.stringify({ name, transport }));
}

async function comeBack() {
  const socket = await connect();
  console.log('connected');
  await next(socket, 'disconnect');
  console.log('cut off');
  await next(socket, 'connect');
  await ask(socket, 'who');
  console.log('connected again');
  socket.disconnect();
}

(reconnects ? comeBack() : talk()).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
