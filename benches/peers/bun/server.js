// An echo server on Bun, whose WebSocket server is uWebSockets. It prints its address once it listens.
//
//     bun server.js [PORT [FOLDER]]
//
// With a folder, that of cert.pem and key.pem, it speaks TLS.

const [port, folder] = process.argv.slice(2);
const tls = folder && {
  cert: Bun.file(`${folder}/cert.pem`),
  key: Bun.file(`${folder}/key.pem`),
};

const server = Bun.serve({
  tls,
  hostname: "127.0.0.1",
  port: Number(port ?? 0),
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

console.log(`${tls ? "wss" : "ws"}://127.0.0.1:${server.port}/`);
