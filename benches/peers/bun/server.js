// An echo server on Bun, whose WebSocket server is uWebSockets. It prints its address once it listens.
//
//     bun server.js [PORT]

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  fetch(request, server) {
    if (server.upgrade(request)) return;
    return new Response("open a WebSocket\n", { status: 426 });
  },
  websocket: {
    idleTimeout: 0,
    maxPayloadLength: 16 * 1024 * 1024,
    backpressureLimit: 64 * 1024 * 1024,
    perMessageDeflate: false,
    message(socket, message) {
      socket.send(message);
    },
  },
});

console.log(`ws://127.0.0.1:${server.port}/`);
