// An echo server on npm `ws`, under Node.js, whose delay and cost are known: for whoever tests what measures them. It
// prints its address once it listens.
//
//     node known.js HOLD_MS WORK_US
//
// Every answer is held for HOLD_MS, and takes WORK_US of processor time.

import { WebSocketServer } from "ws";

const [holdMs, workUs] = process.argv.slice(2).map(Number);

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });

function work() {
  const start = process.cpuUsage();
  for (let done = 0; done < workUs; ) {
    const { user, system } = process.cpuUsage(start);
    done = user + system;
  }
}

server.on("connection", (socket) => {
  const answer = (message, isBinary) => {
    work();
    socket.send(message, { binary: isBinary });
  };
  socket.on("message", holdMs > 0 ? (...message) => setTimeout(answer, holdMs, ...message) : answer);
});

server.on("listening", () => console.log(`ws://127.0.0.1:${server.address().port}/`));
