// An echo server on npm `ws`, under Node.js. It prints its address once it listens.
//
//     node server.js [PORT]

import { WebSocketServer } from "ws";

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  maxPayload: 16 * 1024 * 1024,
  perMessageDeflate: false,
});

server.on("connection", (socket) => {
  socket.on("message", (message, isBinary) => socket.send(message, { binary: isBinary }));
});

server.on("listening", () => console.log(`ws://127.0.0.1:${server.address().port}/`));
