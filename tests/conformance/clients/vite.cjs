// Opens a site of Vite's in Chromium: vite.cjs URL FILE SCREENSHOT. Sees that it came by HTTP/2 and that its hot reload is
// connected, edits the file, and sees the page change without being loaded again.
'use strict';
const { readFileSync, writeFileSync } = require('node:fs');
const { chromium } = require('playwright-core');

const [url, file, screenshot] = process.argv.slice(2);
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'];
FLAGS.push(`--ignore-certificate-errors-spki-list=${process.env.RINGWAY_TRUSTED_KEY}`);

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.RINGWAY_CHROMIUM, args: FLAGS });
  try {
    const page = await browser.newPage();
    const faults = [];
    page.on('pageerror', (error) => faults.push(String(error)));
    page.on('console', (message) => message.type() === 'error' && faults.push(message.text()));
    const opened = page.waitForEvent('websocket');
    await page.goto(url);
    await page.waitForFunction(() => document.querySelector('#words')?.textContent === 'before');
    const socket = await opened;
    if (!socket.url().startsWith(url.replace('https', 'wss'))) throw new Error(`hot reload by ${socket.url()}`);
    const protocols = await page.evaluate(() =>
      performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource')).map(
        (entry) => [new URL(entry.name).pathname, entry.nextHopProtocol],
      ),
    );
    const others = protocols.filter(([, protocol]) => protocol !== 'h2');
    if (protocols.length < 4 || others.length > 0) throw new Error(`not by HTTP/2: ${JSON.stringify(protocols)}`);
    await page.evaluate(() => (window.mark = 'still here'));
    writeFileSync(file, readFileSync(file, 'utf8').replace('before', 'after'));
    await page.waitForFunction(() => document.querySelector('#words').textContent === 'after');
    if ((await page.evaluate(() => window.mark)) !== 'still here') throw new Error('the page was loaded again');
    await page.screenshot({ path: screenshot });
    if (faults.length > 0) throw new Error(`the page complains: ${faults.join('; ')}`);
    console.log(`chromium: ${await browser.version()}, ${protocols.length} resources by HTTP/2, hot reload by ${socket.url()}`);
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
