// Echoes text and binary of the sizes given after the URL with npm's ws, then closes with 1000.
'use strict';
const { once } = require('node:events');
const { randomBytes } = require('node:crypto');
const WebSocket = require('ws');

const [url, ...sizes] = process.argv.slice(2);

// Text of `size` bytes with characters of every length that UTF-8 has.
function text(size) {
  const unit = 'aé€😀';
  const unitSize = Buffer.byteLength(unit);
  return unit.repeat(Math.floor(size / unitSize)) + 'x'.repeat(size % unitSize);
}

async function main() {
  const client = new WebSocket(url);
  await once(client, 'open');
  for (const size of sizes.map(Number)) {
    for (const sent of [text(size), randomBytes(size)]) {
      client.send(sent);
      const [data, isBinary] = await once(client, 'message');
      const isSame = isBinary === Buffer.isBuffer(sent) && data.equals(Buffer.from(sent));
      if (!isSame) throw new Error(`another echo at ${size} bytes`);
    }
    console.log(`ws: ${size} bytes`);
  }
  client.close(1000);
  const [code] = await once(client, 'close');
  if (code !== 1000) throw new Error(`closed with ${code}`);
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
