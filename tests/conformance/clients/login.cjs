// Chromium with one visitor's cookies: login.cjs PROFILE HOME. Each line of standard input is a step as JSON, "login" and
// "logout" on the pages of HOME, or a WebSocket that a page opens; what came of it is a line of standard output.
'use strict';
const { createInterface } = require('node:readline');
const { chromium } = require('playwright-core');

const [profile, home] = process.argv.slice(2);

const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'];
FLAGS.push(`--ignore-certificate-errors-spki-list=${process.env.RINGWAY_TRUSTED_KEY}`);
// Every host of the test's is this machine.
FLAGS.push('--host-resolver-rules=MAP *.example 127.0.0.1');

// Runs in the page: one message there and back, and the closing handshake.
function talk([url, protocols]) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url, protocols);
    let echo = null;
    socket.addEventListener('open', () => socket.send('hello'));
    socket.addEventListener('message', ({ data }) => {
      echo = data;
      socket.close(1000);
    });
    socket.addEventListener('close', ({ code }) => resolve({ echo, code, protocol: socket.protocol }));
  });
}

// Runs in the page: the status that it is answered with, and the token where it gets one.
async function ask() {
  const response = await fetch('/token');
  return [response.status, await response.text()];
}

async function login(context) {
  const page = await context.newPage();
  await page.goto(home);
  const [before] = await page.evaluate(ask);
  await page.fill('[name=user]', 'ann');
  await page.fill('[name=password]', 'correct horse');
  await page.click('button');
  await page.waitForURL('**/chat');
  const [during, token] = await page.evaluate(ask);
  const cookies = await page.evaluate(() => document.cookie);
  const protocol = await page.evaluate(() => performance.getEntriesByType('navigation')[0].nextHopProtocol);
  await page.close();
  return { before, during, token, cookies, protocol };
}

async function logout(context) {
  const page = await context.newPage();
  await page.goto(`${home}chat`);
  await page.click('button');
  await page.waitForURL(home);
  const [after] = await page.evaluate(ask);
  await page.close();
  return { after };
}

async function open(context, { page: address, url, protocols }) {
  const page = await context.newPage();
  // What kept a WebSocket from opening is told to whoever debugs the page, and not to its scripts.
  let fault = null;
  page.on('websocket', (socket) => socket.on('socketerror', (text) => (fault = text)));
  await page.goto(address);
  const told = await page.evaluate(talk, [url, protocols]);
  await page.close();
  let status = fault === null ? 101 : Number(/response code: (\d+)/.exec(fault)?.[1]);
  // Chromium has words of its own for a 401.
  if (fault?.startsWith('HTTP Authentication failed')) status = 401;
  return { ...told, status, fault };
}

async function main() {
  // A profile, as people have one: in a private window Chromium takes no cookies to other sites, whatever is set in it.
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.RINGWAY_CHROMIUM,
    args: FLAGS,
  });
  try {
    for await (const line of createInterface({ input: process.stdin })) {
      const step = JSON.parse(line);
      const told = await (step === 'login' ? login(context) : step === 'logout' ? logout(context) : open(context, step));
      console.log(JSON.stringify(told));
    }
  } finally {
    await context.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
