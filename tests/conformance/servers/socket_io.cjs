// Socket.IO's own server on a port of 127.0.0.1: socket_io.cjs PORT NAME. It prints a line once it listens. It
// answers what it is asked, and keeps rooms.
'use strict';
const { createServer } = require('node:http');
const { Server } = require('socket.io');

const [port, name] = process.argv.slice(2);
const http = createServer();
const io = new Server(http, { maxHttpBufferSize: 4 << 20 });

io.on('connection', (socket) => {
  socket.on('who', (answer) => answer({ name, transport: socket.conn.transport.name }));
  socket.on('echo', (data, answer) => answer(data));
  socket.on('return', (data) => socket.emit('returned', data, { again: data }));
  socket.on('join', async (room, answer) => {
    await socket.join(room);
    answer();
  });
  socket.on('say', (room, words) => io.to(room).emit('said', words));
});
http.listen(Number(port), '127.0.0.1', () => console.log('listening'));
