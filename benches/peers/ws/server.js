// An echo server on npm `ws`, under Node.js. It prints its address once it listens.
//
//     node server.js [PORT]
//
// With DEFLATE in the environment it agrees on permessage-deflate, as the client offers it, and compresses every answer.

import { WebSocketServer } from "ws";

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  maxPayload: 16 * 1024 * 1024,
  perMessageDeflate: process.env.DEFLATE ? { threshold: 0 } : false,
});

server.on("connection", (socket) => {
  socket.on("message", (message, isBinary) => socket.send(message, { binary: isBinary }));
});

server.on("listening", () => console.log(`ws://127.0.0.1:${server.address().port}/`));
