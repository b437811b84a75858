// Opens the built-in page in Chromium, sees that it connects, then echoes from it the sizes given after the URL.
'use strict';
const { chromium } = require('playwright-core');

const [url, ...sizes] = process.argv.slice(2);

const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
// The key of a certificate that is trusted, whoever signed it.
if (process.env.RINGWAY_TRUSTED_KEY) {
  FLAGS.push(`--ignore-certificate-errors-spki-list=${process.env.RINGWAY_TRUSTED_KEY}`);
}

// Runs in the page: echoes text and binary of every size and closes with 1000.
async function echoAll([target, all]) {
  const socket = new WebSocket(target);
  socket.binaryType = 'arraybuffer';
  const next = (name) =>
    new Promise((resolve, reject) => {
      socket.addEventListener(name, resolve, { once: true });
      if (name !== 'close') socket.addEventListener('close', (event) => reject(new Error(`closed with ${event.code}`)));
    });
  await next('open');
  for (const size of all) {
    const bytes = new Uint8Array(size);
    for (let index = 0; index < size; index += 65536) {
      crypto.getRandomValues(bytes.subarray(index, Math.min(size, index + 65536)));
    }
    const unit = 'aé€😀';
    const text = unit.repeat(Math.floor(size / 10)) + 'x'.repeat(size % 10);
    for (const sent of [text, bytes]) {
      const answer = next('message');
      socket.send(sent);
      const { data } = await answer;
      let isSame = data === sent;
      if (sent === bytes) {
        const received = new Uint8Array(data);
        isSame = received.length === size && received.every((byte, index) => byte === bytes[index]);
      }
      if (!isSame) throw new Error(`another echo at ${size} bytes`);
    }
  }
  const closed = new Promise((resolve) => socket.addEventListener('close', resolve));
  socket.close(1000);
  const { code, wasClean } = await closed;
  return { code, wasClean };
}

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.RINGWAY_CHROMIUM, args: FLAGS });
  try {
    const page = await browser.newPage();
    const faults = [];
    page.on('pageerror', (error) => faults.push(String(error)));
    page.on('console', (message) => message.type() === 'error' && faults.push(message.text()));
    const opened = page.waitForEvent('websocket');
    await page.goto(url.replace(/^ws/, 'http').replace('/echo', '/'));
    const pageSocket = await opened;
    if (pageSocket.url() !== url) throw new Error(`the page opened ${pageSocket.url()}`);
    await pageSocket.waitForEvent('framereceived');
    console.log(`chromium: ${await browser.version()}, the page "${await page.title()}" is echoed to`);

    const { code, wasClean } = await page.evaluate(echoAll, [url, sizes.map(Number)]);
    if (code !== 1000 || !wasClean) throw new Error(`closed with ${code}, clean: ${wasClean}`);
    if (faults.length > 0) throw new Error(`the page complains: ${faults.join('; ')}`);
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
