// A server of npm's ws on the bound socket that was handed over, with permessage-deflate where a second argument says so. What it does with a
// connection is up to the path; of each that ended it prints what it saw, as one line of JSON.
'use strict';
const { createHash } = require('node:crypto');
const { createServer } = require('node:http');
const { WebSocketServer } = require('ws');

const [descriptor, deflate] = process.argv.slice(2);

// Beyond this the answers that wait stop the reading.
const WAITING_SIZE_MAX = 1 << 20;

const http = createServer();
const server = new WebSocketServer({
  server: http,
  perMessageDeflate: deflate === 'deflate',
  maxPayload: 0,
  // A connection with 60 pongs that wait is ended by default, and every tenth message has a ping within.
  maxPendingAutoPongs: 0,
  // Autobahn sends more fragments of one message than may be by default.
  maxFragments: 0,
  maxBufferedChunks: 0,
  // The last one that is offered: not what a client or a gateway would choose by itself.
  handleProtocols: (offered) => [...offered].at(-1),
  verifyClient: ({ req }, decide) => {
    const [, action, status] = req.url.split('/');
    if (action !== 'refuse') return decide(true);
    decide(false, Number(status), 'this is the upstream\n', { 'WWW-Authenticate': 'Basic realm="upstream"' });
  },
});
http.listen({ fd: Number(descriptor) }, () => console.log(JSON.stringify({ listening: true })));

server.on('connection', (socket, request) => {
  const url = new URL(request.url, 'ws://localhost');
  const digest = createHash('sha256');
  let count = 0;

  socket.on('message', (data, isBinary) => {
    digest.update(`${isBinary ? 'binary' : 'text'} ${data.length} `).update(data);
    count += 1;
    const sent = () => {
      if (socket.isPaused && socket.bufferedAmount < WAITING_SIZE_MAX) socket.resume();
    };
    if (count % 10 === 0) {
      const half = data.length >> 1;
      socket.send(data.subarray(0, half), { binary: isBinary, fin: false });
      socket.send(data.subarray(half), { binary: isBinary, fin: true }, sent);
    } else {
      socket.send(data, { binary: isBinary }, sent);
    }
    if (socket.bufferedAmount >= WAITING_SIZE_MAX) socket.pause();
  });
  // What a client did wrong, the Close says.
  socket.on('error', () => {});
  socket.on('close', (code, reason) => {
    const { protocol: subprotocol, extensions } = socket;
    const seen = { subprotocol, extensions, count, digest: digest.digest('hex'), code, reason: reason.toString() };
    console.log(JSON.stringify(seen));
  });

  if (url.pathname === '/close') {
    const code = url.searchParams.get('code');
    socket.close(code ? Number(code) : undefined, url.searchParams.get('reason') ?? undefined);
  }
});
