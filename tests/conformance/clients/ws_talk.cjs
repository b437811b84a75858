// Opens one connection of npm's ws after the other, as the JSON on standard input says, and prints what came of each as
// one line of JSON.
'use strict';
const { createHash } = require('node:crypto');
const { once } = require('node:events');
const { readFileSync } = require('node:fs');
const { text } = require('node:stream/consumers');
const { promisify } = require('node:util');
const WebSocket = require('ws');

// Beyond this what waits to be sent stops the sending.
const WAITING_SIZE_MAX = 1 << 20;

// Sends the messages of a file, a ping within each that is fragmented, and expects all of them back.
async function echo(client, { file, messages }) {
  const bytes = readFileSync(file);
  const digest = createHash('sha256');
  let offset = 0;
  const parts = messages.map(([size, isBinary, isFragmented]) => {
    const data = bytes.subarray(offset, (offset += size));
    digest.update(`${isBinary ? 'binary' : 'text'} ${size} `).update(data);
    return { data, isBinary, isFragmented };
  });

  let count = 0;
  let pongs = 0;
  client.on('pong', () => (pongs += 1));
  const all = new Promise((resolve, reject) => {
    client.on('message', (data, isBinary) => {
      const sent = parts[count];
      if (!sent || isBinary !== sent.isBinary || !data.equals(sent.data)) {
        reject(new Error(`another echo of message ${count}`));
      }
      count += 1;
      if (count === parts.length) resolve();
    });
    client.on('close', (code, reason) => reject(new Error(`closed with ${code} ${reason} after ${count} echoes`)));
  });
  const send = promisify(client.send.bind(client));
  for (const { data, isBinary: binary, isFragmented } of parts) {
    const half = isFragmented ? data.length >> 1 : 0;
    if (isFragmented) {
      client.send(data.subarray(0, half), { binary, fin: false });
      client.ping('within');
    }
    const sent = send(data.subarray(half), { binary, fin: true });
    if (client.bufferedAmount > WAITING_SIZE_MAX) await sent;
  }
  await all;
  return { count, pongs, digest: digest.digest('hex') };
}

async function talk({ url, action, deflate, subprotocols, code, reason, ...rest }) {
  const client = new WebSocket(url, subprotocols, { perMessageDeflate: deflate, maxPayload: 0 });
  if (action === 'refused') {
    const [, response] = await once(client, 'unexpected-response');
    return { status: response.statusCode, fields: response.headers, body: await text(response) };
  }
  // A server that closes at once may do so before this would be listened for.
  const closed = once(client, 'close');
  await once(client, 'open');
  const { protocol: subprotocol, extensions } = client;
  const seen = action === 'echo' ? await echo(client, rest) : {};
  if (action !== 'closed') client.close(code ?? undefined, reason ?? undefined);
  const [closeCode, closeReason] = await closed;
  return { subprotocol, extensions, ...seen, code: closeCode, reason: closeReason.toString() };
}

async function main() {
  for (const one of JSON.parse(await text(process.stdin))) console.log(JSON.stringify(await talk(one)));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
