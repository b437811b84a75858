// An echo server on Bun, whose WebSocket server is uWebSockets. It prints its address once it listens.
//
//     bun server.js [PORT [FOLDER]]
//
// With a folder, that of cert.pem and key.pem, it speaks TLS. With DEFLATE=shared or DEFLATE=dedicated in the environment it
// agrees on permessage-deflate and compresses every answer, by one compressor for all connections or one for each.

const [port, folder] = process.argv.slice(2);
const tls = folder && {
  cert: Bun.file(`${folder}/cert.pem`),
  key: Bun.file(`${folder}/key.pem`),
};

const compress = process.env.DEFLATE;

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
    perMessageDeflate: compress ? { compress, decompress: "shared" } : false,
    message(socket, message) {
      socket.send(message, Boolean(compress));
    },
  },
});

console.log(`${tls ? "wss" : "ws"}://127.0.0.1:${server.port}/`);
